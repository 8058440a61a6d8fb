"""`distill-jax generate`: write what a model says after given texts or tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import backend
from distill_jax.commands import command_line
from distill_jax.commands.command_line import flag
from distill_jax.commands.model_flags import INPUT, ModelFlags
from distill_jax.config import check
from distill_jax.io.storage import location

SEEDS = (-(2**31), 2**31 - 1)  # JAX takes an argument of a compiled program as int32


@dataclasses.dataclass(frozen=True)
class Flags(ModelFlags):
    """Flags of generate."""

    input: str = flag("", INPUT, required=True, path=True)
    new: int = flag(64, "tokens at most")
    temperature: float = flag(0.0, "of sampling; 0: always the likeliest token")
    seed: int = flag(0, "of sampling", bounds=SEEDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.new >= 1, f"--new={self.new}: must be at least 1")
        check(self.temperature >= 0, f"--temperature={self.temperature}: must not be negative")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("generate", Flags, "--model=… --input=… --output=… [--flag=value …]")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = command_line.read("generate", Flags, arguments)
    flags = parsed.flags
    backend.import_jax()
    from distill_jax.interop import generation
    from distill_jax.interop.rows import Inference

    backend.find_devices()
    model, rows, output = location(flags.model), location(flags.input), location(flags.output)
    how = Inference(flags.dtype, flags.batch, flags.tokenizer, flags.chat)
    sampling = generation.Sampling(flags.new, flags.temperature, flags.seed)
    generation.generate(model, rows, output, how, sampling)
    print(f"generate: {output}")
    return 0
