"""Files that the package ships beside its code, found alike in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
TINY = _PACKAGE / "tiny"
"""A random model of some thousand parameters, adapters to it and multiple-choice items: enough for smoke runs."""
