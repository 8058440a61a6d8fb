"""Prepare documents to forget and to retain.

Run as `python -m distill_jax.data.facts.prepare_documents --config=FILE.json --output=DIR`. As `prepare_text`, once
they are known to be enough, and on one side each.
"""

from __future__ import annotations

from distill_jax.data.atomic_build import run_command_line
from distill_jax.data.facts.documents_config import DocumentsConfig
from distill_jax.data.text import prepare_text
from distill_jax.io.files import Digests
from distill_jax.types import JsonObject


def prepare_documents(
    config: DocumentsConfig, directory: str, evaluation: prepare_text.WriteEvaluation | None = None
) -> JsonObject:
    """Prepare the data into a directory and return its manifest; see `prepare_text`.

    Raises:
      ValueError: for whatever is wrong with them.
    """
    config = config if config.content else config.with_content_hash(Digests())
    config.check_documents()
    return prepare_text.prepare_text(config, directory, evaluation)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in the settings ends in one line and exit code 2."""
    run_command_line("distill_jax.data.facts.prepare_documents", DocumentsConfig, prepare_documents, arguments)


if __name__ == "__main__":
    main()
