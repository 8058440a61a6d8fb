"""The package stays as readable as it is, or becomes more so: `python -m tests.house` prints the figures."""

from __future__ import annotations

import pytest

from tests import house

pytestmark = pytest.mark.unit

# A limit only goes down.
LIMITS = {"any": 3.8, "lambdas": 4.0, "reflection": 2.0, "many_parameters": 15}
TYPED = (
    "bench",
    "data",
    "doublebind",
    "evals",
    "interop",
    "io",
    "losses",
    "models",
    "perf",
    "sharding",
    "statistics",
    "train",
)  # rooms that meet the goal for `Any` by far


def test_the_package_keeps_to_its_limits():
    figures = house.measure(house.PACKAGE.rglob("*.py"))
    assert figures.files > 100
    over = {name: getattr(figures, name) for name, limit in LIMITS.items() if getattr(figures, name) > limit}
    assert not over, f"{over} with limits {LIMITS}: `python -m tests.house` shows where; mend it there"
    assert not house.names_twice(), "a file's name says which it is without its folder"


@pytest.mark.parametrize("room", TYPED)
def test_a_typed_room_stays_typed(room):
    assert house.measure(dict(house.rooms())[room]).any <= 2.0


def test_the_figures_of_a_file_counted_by_hand(tmp_path):
    """Two `Any` (an import is none), one lambda, one getattr, one function of six parameters and one of five."""
    path = tmp_path / "hand.py"
    path.write_text(
        "from typing import Any\n"
        "class C:\n"
        "    def many(self, a, b, c, d, *, e, f): ...\n"
        "    def few(self, a, b, c, d, e):\n"
        "        return getattr(self, a)\n"
        "x: Any = 1\n"
        "y: dict[str, Any] = {}\n"
        "z = lambda: 0\n"
        "\n"
        "# Any lambda\n"
    )
    figures = house.measure([path])
    assert (figures.lines, figures.any, figures.lambdas, figures.reflection) == (10, 200.0, 100.0, 100.0)
    assert (figures.many_parameters, figures.file_lines, figures.function_lines) == (1, 10, 1.5)
