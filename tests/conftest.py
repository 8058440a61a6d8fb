"""Two CPU devices for every test, and programs that compile fast; it must be said before JAX is first imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is compilation: unoptimised programs compile in half of it.
flags = " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
