"""What every report states about its own making."""

from __future__ import annotations

import datetime

import jax


def report_metadata(seconds: float | None = None) -> dict[str, str | float]:
    """Return when and on what a report was made, and how long its run took where that is known."""
    metadata: dict[str, str | float] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.devices()[0].device_kind} ({jax.device_count()} devices), jax {jax.__version__}",
    }
    return metadata if seconds is None else metadata | {"duration_seconds": round(seconds, 1)}
