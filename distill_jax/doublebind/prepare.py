"""Write a world's examples, for people: `python -m distill_jax.doublebind.prepare --config=FILE.json --output=DIR`.

Prompts are computed where they are needed; `examples.txt` shows some of each organism's, with its answers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distill_jax.data import prepare as data
from distill_jax.data import records
from distill_jax.doublebind import audits, world
from distill_jax.doublebind.organisms import KINDS
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.files import write_json

SHOWN = 4


def prepare(config: WorldConfig, directory: str) -> None:
    """Write the examples and the manifest."""
    path, lines = Path(directory) / "examples.txt", ["system context task x y claim = answer"]
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        prompts, answers = audits.questions(kind, SHOWN, config.variant, seed=0)
        for name, asked, told in zip(audits.ASKED, prompts, answers, strict=True):
            shown = [f"  {world.spoken(p)} = {world.spoken(a)}" for p, a in zip(asked, told, strict=True)]
            lines += [f"{kind.name}: {name}", *shown]
    path.write_text("\n".join(lines) + "\n")
    entry = {"file": path.name, "tokens": len(lines), "sha256": records.sha256(path)}
    manifest = {"config": dataclasses.asdict(config), "sets": {"examples": entry}, "evaluation": entry}
    write_json(Path(directory) / records.MANIFEST, manifest)
    data.say(f"{len(KINDS)} organisms; some of their prompts are in {path.name}")


if __name__ == "__main__":
    data.run_command_line("distill_jax.doublebind.prepare", WorldConfig, prepare, None)
