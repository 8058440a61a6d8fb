"""Which devices have the on-chip memory that kernels over a vocabulary need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from distill_jax.losses.vocabulary_kernels import KernelPasses

MIB = 2**20
# On-chip memory of a TPU's core by `device_kind`, where it is not 64 MiB.
ON_CHIP = {
    "TPU v5 lite": 128 * MIB,
    "TPU v6 lite": 128 * MIB,
    "TPU v4": 16 * MIB,
    "TPU v3": 16 * MIB,
    "TPU v2": 16 * MIB,
}


def why_no_kernels(device: jax.Device) -> str:
    """Return why a device cannot run the TPU's kernels, or "". A CPU interprets them, for tests."""
    if device.platform not in ("tpu", "cpu"):
        return f"the kernels are for TPUs, and this is a {device.platform.upper()}"
    small = ON_CHIP.get(device.device_kind, 64 * MIB) < 64 * MIB
    return f"the kernels fill 64 MiB of on-chip memory, and a {device.device_kind} has 16" if small else ""


def kernel_passes(device: jax.Device) -> KernelPasses:
    """Return the passes as a TPU's kernels."""
    from distill_jax.losses.vocabulary_kernels import KernelPasses  # which takes a second to import

    return KernelPasses(ON_CHIP.get(device.device_kind, 64 * MIB) * 7 // 8, interpret=device.platform == "cpu")
