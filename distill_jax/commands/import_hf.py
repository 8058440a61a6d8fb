"""`distill-jax import`: make a published model a node, which stages and commands start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import backend
from distill_jax.commands import command_line, config_line
from distill_jax.commands.command_line import flag
from distill_jax.io.storage import location


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of import."""

    from_: str = flag("", "DIR of config.json and safetensors, or FILE.gguf", required=True, path=True)
    workdir: str = flag("", "DIR: the node goes to its nodes/", required=True, path="directory")
    adapter: str = flag("", "DIR: PEFT LoRA adapters, merged in", path=True)
    keep_adapter: bool = flag(False, "keep them as adapters, in a node of their own")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    return command_line.usage("import", Flags, "--from=… --workdir=… [--flag=value …]")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = command_line.read("import", Flags, arguments)
    flags = parsed.flags
    backend.import_jax()
    from distill_jax.interop import importing

    backend.find_devices()
    adapter = location(flags.adapter) if flags.adapter else None
    source, workdir = location(flags.from_), config_line.workdir(flags.workdir)
    print(f"import: {importing.import_model(source, workdir, adapter, flags.keep_adapter)}")
    return 0
