"""GPU types by what one can hold, for sweeps that ask a cluster for as many as a population fits on.

The memory is that of the vendors' data sheets, in their bytes. Of it JAX takes three quarters as it starts
(docs.jax.dev/en/latest/gpu_memory_allocation.html).
"""

from __future__ import annotations

from collections.abc import Mapping

MEMORY: Mapping[str, float] = {
    **{"t4": 16e9, "v100": 16e9, "v100-32gb": 32e9, "a10g": 24e9, "l4": 24e9, "l40s": 48e9},
    **{"a100": 40e9, "a100-80gb": 80e9, "h100": 80e9, "h200": 141e9, "b200": 180e9},
}
SHARE = 0.75  # that JAX takes


def usable_bytes(kind: str) -> float:
    """Return the bytes that programs may take on a GPU of a type."""
    return SHARE * MEMORY[kind]


def ray_name(kind: str) -> str:
    """Return what Ray calls a type, whatever its memory: its option `accelerator_type`."""
    return kind.partition("-")[0].upper()
