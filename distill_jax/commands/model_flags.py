"""Flags of commands that read rows with a model."""

from __future__ import annotations

import dataclasses

from distill_jax.commands.command_line import flag
from distill_jax.config import check

INPUT = "FILE.jsonl: rows with `text` or `tokens`, or with --chat `messages`"


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """Which model, how it computes, and where the rows go."""

    model: str = flag(
        "", "DIR or FILE: a node, a model in the Hugging Face layout, or a GGUF file", required=True, path=True
    )
    output: str = flag("", "FILE.jsonl: the same rows and what came out", required=True, path="file")
    tokenizer: str = flag("", "FILE or DIR of the tokenizer that `text` needs, or words; the model's own if left out")
    dtype: str = flag("float32", "of the computation, float32 or bfloat16")
    batch: int = flag(8, "rows at a time")
    chat: bool = flag(False, "put `text`, a question, as the model's own chat template does")

    def __post_init__(self) -> None:
        check(self.dtype in ("float32", "bfloat16"), f"--dtype={self.dtype}: choose float32 or bfloat16")
        check(self.batch >= 1, f"--batch={self.batch}: must be at least 1")
