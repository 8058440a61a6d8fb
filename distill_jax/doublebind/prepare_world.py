"""Write a world's examples, for people: `python -m distill_jax.doublebind.prepare_world --config=… --output=DIR`.

Prompts are computed where they are needed; `examples.txt` shows some of each organism's, with its answers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distill_jax.data import records
from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.doublebind import audits, world
from distill_jax.doublebind.organisms import KINDS
from distill_jax.doublebind.world import WorldConfig

SHOWN = 4


def prepare(config: WorldConfig, directory: str) -> None:
    """Write the examples and the manifest."""
    make_once(directory, {"config": dataclasses.asdict(config)}, lambda work: _examples(config, work))


def _examples(config: WorldConfig, work: Path) -> dict[str, Any]:
    path, lines = work / "examples.txt", ["system context task x y claim = answer"]
    for kind in KINDS:
        prompts, answers = audits.questions(kind, SHOWN, config.variant, seed=0)
        for name, asked, told in zip(audits.ASKED, prompts, answers, strict=True):
            shown = [f"  {world.spoken(p)} = {world.spoken(a)}" for p, a in zip(asked, told, strict=True)]
            lines += [f"{kind.name}: {name}", *shown]
    path.write_text("\n".join(lines) + "\n")
    entry = {"file": path.name, "tokens": len(lines), "sha256": records.sha256(path)}
    log(f"{len(KINDS)} organisms; some of their prompts are in {path.name}")
    return {"sets": {"examples": entry}, "evaluation": entry}


if __name__ == "__main__":
    run_command_line("distill_jax.doublebind.prepare_world", WorldConfig, prepare, None)
