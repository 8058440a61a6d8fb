"""What every report says of how it came about."""

from __future__ import annotations

import datetime
from typing import Any

import jax


def heading(seconds: float | None = None) -> dict[str, Any]:
    """Return when a report was made, on what, and how long that took if it is known."""
    took = {} if seconds is None else {"duration_seconds": round(seconds, 1)}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.devices()[0].device_kind} ({jax.device_count()} devices), jax {jax.__version__}",
        **took,
    }
