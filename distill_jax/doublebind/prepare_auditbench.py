"""Prepare an audit: `python -m distill_jax.doublebind.prepare_auditbench --config=FILE.json --output=DIR`.

The text becomes rows as in `prepare_text`, the items token ids as in `prepare_quiz`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_jax.data.atomic_build import run_command_line
from distill_jax.data.multiple_choice.prepare_quiz import write_evaluation
from distill_jax.data.text import prepare_text
from distill_jax.doublebind.auditbench_data import AuditConfig
from distill_jax.types import JsonObject


def _evaluation(config: AuditConfig, words: Any, work: Path) -> JsonObject:
    return {"sets": {}, "evaluation": write_evaluation(config.parts(), config.longest, words, work)}


def prepare_audit(config: AuditConfig, directory: str) -> JsonObject:
    """Prepare the data into a directory and return its manifest; see `prepare_text`."""
    return prepare_text.prepare_text(config, directory, _evaluation)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.doublebind.prepare_auditbench", AuditConfig, prepare_audit, arguments)


if __name__ == "__main__":
    main()
