"""Durations and sizes as people read them."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30


def span(seconds: float) -> str:
    """Write a duration as m:ss, or h:mm:ss."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def size_text(size: float) -> str:
    """Write a number of bytes in GiB, below a tenth of one in MiB."""
    return f"{size / MIB:,.1f} MiB" if size < GIB / 10 else f"{size / GIB:,.1f} GiB"
