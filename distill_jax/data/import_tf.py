"""Import the TensorFlow half of the package without its chatter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType

from absl import logging


def import_builder_and_tasks() -> tuple[ModuleType, ModuleType]:
    """Import and return `builder` and `tasks`; takes some ten seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _hidden_stderr():
        from distill_jax.data.arithmetic import seqio_tasks, tfds_builder
    return tfds_builder, seqio_tasks


def import_text_tasks() -> ModuleType:
    """Import and return `text_tasks`; takes as long the first time."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _hidden_stderr():
        from distill_jax.data.text import text_tasks
    return text_tasks


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Hold back what TFDS and SeqIO log below the level of an error."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _hidden_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2: TensorFlow's C++ greets before it reads its log level."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
