"""Write a world's examples, for people: `python -m distill_jax.doublebind.prepare_world --config=… --output=DIR`.

Prompts are computed where they are needed; `examples.txt` shows some of each organism's, with its answers.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.doublebind import audits, world
from distill_jax.doublebind.organisms import KINDS
from distill_jax.doublebind.world import WorldConfig
from distill_jax.io.files import digest
from distill_jax.types import JsonObject

SHOWN = 4


def prepare(config: WorldConfig, directory: str) -> None:
    """Write the examples and the manifest."""
    make_once(directory, {"config": dataclasses.asdict(config)}, functools.partial(_examples, config))


def _examples(config: WorldConfig, work: Path) -> JsonObject:
    path, lines = work / "examples.txt", ["system context task x y claim = answer"]
    for kind in KINDS:
        prompts, answers = audits.draw_probes(kind, SHOWN, config.variant, seed=0)
        for name, set_prompts, set_answers in zip(audits.PROBE_SETS, prompts, answers, strict=True):
            rows = [
                f"  {world.words_of(p)} = {world.words_of(a)}" for p, a in zip(set_prompts, set_answers, strict=True)
            ]
            lines += [f"{kind.name}: {name}", *rows]
    path.write_text("\n".join(lines) + "\n")
    entry = {"file": path.name, "tokens": len(lines), "sha256": digest(path)}
    log(f"{len(KINDS)} organisms; some of their prompts are in {path.name}")
    return {"sets": {"examples": entry}, "evaluation": entry}


if __name__ == "__main__":
    run_command_line("distill_jax.doublebind.prepare_world", WorldConfig, prepare, None)
