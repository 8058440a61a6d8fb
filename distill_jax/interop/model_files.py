"""The files of a published model, whichever their layout: Hugging Face's directory, or one GGUF file."""

from __future__ import annotations

from pathlib import Path

from distill_jax.interop.directory import Directory
from distill_jax.interop.gguf_model import GgufFile
from distill_jax.io.gguf_header import is_gguf

ModelFiles = Directory | GgufFile


def open_files(path: Path) -> ModelFiles:
    """Open a model's directory, its only file of weights, or a GGUF file.

    Raises:
      ConfigError: for whatever is missing, unknown or of the wrong shape, naming it.
    """
    return GgufFile(path) if is_gguf(path) else Directory(path)
