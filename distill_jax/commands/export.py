"""`distill-jax export`: write a model as transformers loads it, or its adapters as PEFT does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import backend
from distill_jax.commands import command_line
from distill_jax.commands.command_line import flag
from distill_jax.config import check
from distill_jax.io.storage import location

DTYPES = ("", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of export."""

    model: str = flag("", "DIR: a finished node, or an imported model", required=True, path=True)
    to: str = flag("", "DIR: what is written", required=True, path="directory")
    dtype: str = flag("", "float32, bfloat16 or float16; as it is stored when left out")
    shard_gb: float = flag(5.0, "10⁹ bytes of a file of weights at most")
    adapter_only: bool = flag(False, "write the node's LoRA adapters as PEFT loads them")

    def __post_init__(self) -> None:
        mend = "choose float32, bfloat16 or float16, or leave it out"
        check(self.dtype in DTYPES, f"--dtype={self.dtype}: {mend}")
        check(self.shard_gb > 0, f"--shard_gb={self.shard_gb}: must be above 0")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("export", Flags, "--model=… --to=… [--flag=value …]")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = command_line.read("export", Flags, arguments)
    flags = parsed.flags
    backend.import_jax()
    from distill_jax.interop import exporting

    backend.find_devices()
    if flags.adapter_only:
        exporting.export_adapter(location(flags.model), location(flags.to))
    else:
        size = int(flags.shard_gb * 10**9)
        exporting.export_model(location(flags.model), location(flags.to), flags.dtype or None, size)
    print(f"export: {flags.to}")
    return 0
