"""JAX as every command gets it: the settings that determine numbers, the devices, and the host's memory."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import gc
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_jax import console
from distill_jax.config import ConfigError, check

# What determines numbers, whoever sets it: a node's identity promises them. JAX reads each from the environment.
NUMERICS: dict[str, bool | int | str | None] = {
    "jax_enable_x64": False,  # the dtype of whatever names none
    "jax_explicit_x64_dtypes": "warn",
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,  # other draws at every shape
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,  # categorical samples
    "jax_softmax_custom_jvp": False,  # the gradient of a softmax
    "jax_default_matmul_precision": None,
}
ACCELERATORS = ("dev/nvidia*", "dev/dxg", "dev/kfd", "dev/accel*", "dev/vfio/[0-9]*")
FIX_PLATFORMS = "name one that is here, such as cpu, or none"
GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus
_TRUE, _FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")  # as JAX reads them


def pin_numerics() -> None:
    """Give every setting of NUMERICS its value, here and in processes started from here; say on stderr what gives way.

    It costs nothing before JAX is imported; afterwards it must come before the first draw.
    """
    overruled = []
    for name, value in NUMERICS.items():
        given = os.environ.pop(name.upper(), None)
        if value is not None:  # written out, as another version of JAX may have another default
            os.environ[name.upper()] = str(value)
        if given is not None and not _means(given, value):
            overruled.append(f"{name.upper()}={given}")
        if "jax" in sys.modules:
            overruled += _pin_imported(name, value)
    if overruled:
        settings = ", ".join(dict.fromkeys(overruled))
        print(f"distill-jax: not heeded, as it would change every number: {settings}", file=sys.stderr)


def _means(given: str, value: bool | int | str | None) -> bool:
    if isinstance(value, bool):
        return given.lower() in (_TRUE if value else _FALSE)
    return given.lower() == ("" if value is None else str(value))


def _pin_imported(name: str, value: bool | int | str | None) -> list[str]:
    import jax

    now = getattr(jax.config, name)  # its only way to tell
    now = now.name.lower() if isinstance(now, enum.Enum) else now
    if now == value:
        return []
    jax.config.update(name, value)
    return [f"{name}={now}"]


def has_accelerator(root: Path = Path("/")) -> bool:
    """Whether this machine has a GPU, or a TPU's chips, to look at its devices."""
    vendors = (path.read_text().strip() for path in root.glob("sys/bus/pci/devices/*/vendor"))
    return any(any(root.glob(pattern)) for pattern in ACCELERATORS) or GOOGLE in vendors


def settle_for_cpu() -> None:
    """Name the platform where only a CPU can be it: libtpu asks the network for a TPU for seconds, and complains.

    It does nothing once JAX is imported.
    """
    if "jax" not in sys.modules and importlib.util.find_spec("libtpu") and not has_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def import_jax() -> None:
    """Import JAX, its numerics pinned.

    Raises:
      ConfigError: if it cannot be imported with what the environment says.
    """
    pin_numerics()  # again: a config's imports may have set what they like
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError(f"JAX refuses its environment: {error}; unset that variable") from error


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables as long as the block lasts; processes that are started later do not have them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def set_up(run: Mapping[str, Any]) -> None:
    """Prepare JAX for computing; no device is touched yet.

    Args:
      run: of a config's `run`: "cpu_devices", and "compile_cache", a directory or "".
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:
        count = run.get("cpu_devices", 1)
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={count}".strip()
    import_jax()
    if run.get("compile_cache"):
        import jax

        jax.config.update("jax_compilation_cache_dir", str(run["compile_cache"]))
    _keep_freed_memory()


def check_platforms() -> None:
    """Refuse a platform in JAX_PLATFORMS that nothing installed here can be; no device is touched.

    Raises:
      ConfigError: naming the variable and the platform.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    for name in filter(None, platforms.split(",")):
        plugin = "cuda" if name == "gpu" else name
        built_in = name == "cpu" or (name == "tpu" and importlib.util.find_spec("libtpu") is not None)
        there = built_in or any(plugin in module or name == "gpu" for module in _plugins())
        check(there, f"JAX_PLATFORMS={platforms}: JAX has no {name} here; {FIX_PLATFORMS}")


def _plugins() -> list[str]:
    """Return the names of JAX's plugins, as it finds them: modules of a namespace, and entry points."""
    namespace = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules(namespace.submodule_search_locations) if namespace else ()
    points = importlib.metadata.entry_points(group="jax_plugins")
    return [*(module.name for module in modules), *(point.name for point in points)]


def find_devices() -> None:
    """Start JAX's backend.

    Raises:
      ConfigError: if there is no such platform here as the environment names.
    """
    import jax

    # Where there is no TPU, libtpu says so in many lines of its own.
    quiet = contextlib.nullcontext() if has_accelerator() else console.captured_stderr()
    try:
        with quiet:
            jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for cuda without its plugin
        text = " ".join(str(error).split(" (set JAX_PLATFORMS")[0].split()) or "JAX finds no such platform here"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(f"JAX_PLATFORMS={platforms}: {text.rstrip('.')}; {FIX_PLATFORMS}") from error


def _keep_freed_memory() -> None:
    """Stop glibc from handing each step's buffers back to the kernel: mapping them anew cost a third of a CPU step.

    What piles up so between stages is handed back by `release_freed_memory`.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h's M_ constants
    if mallopt := _of_libc("mallopt"):
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def release_freed_memory() -> None:
    """Hand back to the kernel what nothing uses: between two stages, whose buffers differ in size and would not fit.

    Kept, the gaps between them grew by half a gigabyte a stage of a model of 135M parameters.
    """
    gc.collect()  # arrays in circles of references
    if trim := _of_libc("malloc_trim"):
        trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None where another one has no such function."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
        return function
    except (AttributeError, OSError):
        return None
