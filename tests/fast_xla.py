"""Flags that make XLA's CPU compiler quick: a test's programs run for milliseconds and compile for seconds."""

from importlib.metadata import version

# Left out: LLVM's optimiser, the emitters that write fused loops through MLIR, and codegen in parallel modules. Each
# costs more than it saves in a program this small; together three quarters of what compiling a smoke run takes.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters, and end a process for an unknown flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """Return XLA_FLAGS for a process of so many CPU devices that compiles quickly."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
