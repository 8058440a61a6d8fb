"""The sealed JSON files of a `report/` directory."""

from __future__ import annotations

from pathlib import Path

from distill_jax.config import ConfigError
from distill_jax.io.files import read_sealed
from distill_jax.types import JsonObject


def read_report_file(path: Path) -> JsonObject:
    """Read a JSON file of a report.

    Raises:
      ConfigError: if it is missing, or was changed since it was written.
    """
    try:
        return read_sealed(path)
    except (OSError, ValueError) as error:
        why = "was changed since it was written, or is an earlier version's"
        mend = "the command that wrote it, `distill-jax run` (or audit, or sweep), writes it again from its nodes"
        raise ConfigError(f"{path} (report/{path.name}) {why}; {mend}") from error
