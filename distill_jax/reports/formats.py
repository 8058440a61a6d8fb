"""How pages write numbers: what is missing as a dash, never guessed."""

from __future__ import annotations

from collections.abc import Iterable

from distill_jax.evals.scale import MISSING


def count(value: int | None) -> str:
    """Write a whole number with its thousands apart."""
    return MISSING if value is None else f"{value:,}"


def plural(number: int | None, noun: str) -> str:
    """Write a number of things."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def number(value: float | None) -> str:
    """Write a share with two decimals."""
    return MISSING if value is None else f"{value:.2f}"


def short(value: float | None) -> str:
    """Write a quantity of any size in three digits."""
    return MISSING if value is None else f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:,.0f}"


def tenths(value: float | None) -> str:
    """Write a fraction in per cent, for a column whose heading has the unit."""
    return MISSING if value is None else f"{value * 100:.1f}"


def scientific(value: float | None) -> str:
    """Write a count of FLOPs."""
    return MISSING if value is None else f"{value:.2e}"


def flops(value: float | None) -> str:
    """Write a count of FLOPs in a sentence or a table: 9.1 × 10⁸."""
    if value is None:
        return MISSING
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits} × 10{str(int(power)).translate(SUPERSCRIPT)}" if value else "0"


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def listed(parts: Iterable[str]) -> str:
    """Write "a, b and c"."""
    *first, last = [*parts] or [""]
    return f"{', '.join(first)} and {last}" if first else last
