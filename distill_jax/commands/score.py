"""`distill-jax score`: log-likelihoods of texts or tokens, or which answers a model gives to multiple choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import backend
from distill_jax.commands import command_line
from distill_jax.commands.command_line import flag
from distill_jax.commands.model_flags import INPUT, ModelFlags
from distill_jax.config import check
from distill_jax.io.storage import location


@dataclasses.dataclass(frozen=True)
class Flags(ModelFlags):
    """Flags of score."""

    input: str = flag("", INPUT, path=True)
    items: str = flag(
        "", "FILE or pattern, in place of --input: WMDP's or MMLU's items (JSONL, CSV, parquet)", path=True
    )
    shots: int = flag(0, "solved examples before each item")
    examples: str = flag("", "FILE or pattern of the items they are taken from, the first of its subject", path=True)
    subject: str = flag("", "what items are about that do not say so, such as biology")

    def __post_init__(self) -> None:
        super().__post_init__()
        mend = "give --input=FILE.jsonl, or --items=FILE of multiple choice"
        check(bool(self.input) != bool(self.items), f"score: {mend}")
        if not self.items:
            for name, value in (("shots", self.shots), ("examples", self.examples), ("subject", self.subject)):
                check(not value, f"--{name}: only --items has a use for it")
        check(self.shots >= 0, f"--shots={self.shots}: must not be negative")
        mend = "name the file they are taken from with --examples=FILE (MMLU's is that of its split `dev`)"
        check(not self.shots or bool(self.examples), f"--shots={self.shots}: no examples are named; {mend}")
        mend = f"--examples={self.examples}: none is shown; give --shots=5, say"
        check(bool(self.shots) or not self.examples, mend)


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("score", Flags, "--model=… --input=…|--items=… --output=… [--flag=value …]")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = command_line.read("score", Flags, arguments)
    flags = parsed.flags
    backend.import_jax()
    from distill_jax.interop import choice_scoring, scoring
    from distill_jax.interop.rows import Inference

    backend.find_devices()
    model, output = location(flags.model), location(flags.output)
    how = Inference(flags.dtype, flags.batch, flags.tokenizer, flags.chat)
    if flags.items:
        few_shot = choice_scoring.FewShot(flags.shots, flags.examples, flags.subject)
        accuracy = choice_scoring.score_choices(model, flags.items, output, how, few_shot)
        print(f"score: {output}\n{accuracy}")
    else:
        scoring.score(model, location(flags.input), output, how)
        print(f"score: {output}")
    return 0
