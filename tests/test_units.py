"""Durations and sizes are written as people read them: nothing of a tiny model is 0.00 GiB."""

from __future__ import annotations

import pytest

from distill_jax.units import size_text, span

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (36061, "10:01:01"),
        (-3, "0:00"),
    ],
)
def test_durations(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(2**20 / 2, "0.5 MiB"), (100 * 2**20, "100.0 MiB"), (2**30 / 5, "0.2 GiB"), (1.5 * 2**40, "1,536.0 GiB")],
)
def test_sizes(size, text):
    assert size_text(size) == text
