"""Peak speeds by device, for the model FLOPs utilisation (MFU); planning for slices has a table of its own."""

from __future__ import annotations

from collections.abc import Iterable

import jax

# Dense bf16 FLOP/s of one JAX device, by `device_kind`, from the vendors' data sheets.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # one of a chip's two devices
}


def peak_flops(devices: Iterable[jax.Device]) -> float | None:
    """Return the devices' bf16 FLOP/s together; None if the kind of one of them is not in the table."""
    each = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in each else float(sum(filter(None, each)))


def mfu(flops_per_second: float, peak: float | None) -> float | None:
    """Return the share of the peak, against bf16 whatever the computation's dtype; None where no peak is known."""
    return flops_per_second / peak if peak else None
