"""Prepare documents to forget and to retain, and multiple-choice items.

Run as `python -m distill_jax.data.facts.prepare_choices --config=FILE.json --output=DIR`.
"""

from __future__ import annotations

import functools

from distill_jax.data.atomic_build import run_command_line
from distill_jax.data.facts.choices_config import ChoicesConfig
from distill_jax.data.facts.prepare_documents import prepare_documents
from distill_jax.data.multiple_choice.prepare_quiz import write_quiz

prepare_choices = functools.partial(prepare_documents, evaluation=write_quiz)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.facts.prepare_choices", ChoicesConfig, prepare_choices, arguments)


if __name__ == "__main__":
    main()
