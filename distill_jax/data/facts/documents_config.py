"""Documents to forget and to retain."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.data.facts.forget_config import ForgetConfig


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(ForgetConfig):
    """Settings of documents to forget and to retain; those held out are read by no training, unlearning among it."""

    PREPARE: ClassVar[str] = "distill_jax.data.facts.prepare_documents"
