"""Where students lie between a suppressed model and the oracle: `python -m distill_jax.reports.language_gap …`.

Of a finished `configs/language.py:why`, or any run that measures bits per byte, it prints
  * each model's bits per byte to forget after the attack, and its share of the way from `maxent` to `oracle`,
  * the tokens that an attacker reads until the model is down to given bits per byte,
  * how much of the reference's logits, on held-out text to forget, each model's logits show (`evals.leakage`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.config import ConfigError, check
from distill_jax.data.records import EVALUATION_ROWS, Rows, load_manifest
from distill_jax.evals import leakage
from distill_jax.interop.model_source import open_model
from distill_jax.io.files import read_json
from distill_jax.io.node import CONFIG, DONE, ROWS, Node, finished
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Relearn
from distill_jax.statistics.attack_rows import attack_rows, attackers
from distill_jax.statistics.robustness import attack_table
from distill_jax.statistics.student_t import mean_interval

FROM, TO, KNOWN = "maxent", "oracle", "reference"


def tokens_to(steps: Sequence[int], bits: np.ndarray, goal: float, tokens: int) -> float:
    """Return the tokens that an attacker reads until bits per byte are down to a goal; inf if they never are.

    Between two evaluations the bits are taken to be linear in the steps.

    Args:
      steps: at which `bits` [K] were measured.
      tokens: in a step's batch.
    """
    below = np.nonzero(bits <= goal)[0]
    if not len(below):
        return math.inf
    k = int(below[0])
    if k == 0:
        return float(steps[0] * tokens)
    share = (bits[k - 1] - goal) / (bits[k - 1] - bits[k])
    return float(tokens * (steps[k - 1] + share * (steps[k] - steps[k - 1])))


def node(workdir: Path, name: str) -> Node:
    """Return a workdir's only finished node of a name.

    Raises:
      ConfigError: if there is none, there are several, or it is not what was finished there.
    """
    paths = [path for path in _finished(workdir) if read_json(path / CONFIG)["name"] == name]
    check(bool(paths), f"--workdir={workdir}: has no finished node {name}; `distill-jax run` makes it")
    check(len(paths) == 1, f"--workdir={workdir}: has {len(paths)} nodes {name}; keep one, or name another workdir")
    return finished(paths[0])


def attacks(workdir: Path) -> dict[str, tuple[list[int], np.ndarray, int]]:
    """Return {model: (steps [K], bits per byte [S, K] of the worst case so far, tokens a step)} of finished attacks."""
    out = {}
    for attack in (finished(path) for path in _finished(workdir) if read_json(path / CONFIG)["verb"] == Relearn.kind):
        config = read_json(attack.sealed(CONFIG))
        settings, start = config["settings"], attack.directory.parent / config["inputs"]["start"]
        members = attackers(settings["learning_rates"], settings["seeds"])
        steps, _, bits = attack_table(attack_rows(attack.rows(), members), "heldout")
        worst = np.minimum.accumulate(bits.min(axis=1), axis=1)
        tokens = settings["batch"] * Rows(_rows(workdir)).row_length
        out[read_json(start / CONFIG)["name"]] = steps, worst, tokens
    for name in (FROM, TO):
        check(name in out, f"--workdir={workdir}: has no finished attack on {name}; `distill-jax run` makes it")
    return out


def _finished(workdir: Path) -> list[Path]:
    """Return the directories of a workdir's finished nodes."""
    return [done.parent for done in sorted(workdir.glob(f"nodes/*/{DONE}"))]


def _rows(workdir: Path) -> str:
    return str(node(workdir, "data").sealed(ROWS).parent / EVALUATION_ROWS)


def attack_lines(workdir: Path, at: int, goals: Sequence[float]) -> Iterator[str]:
    """Yield the tables of what attacks bring back; intervals are over the attacker's seeds, and of nothing else."""
    by_model = attacks(workdir)
    for name, (steps, _, _) in by_model.items():
        check(at in steps, f"--at={at}: relearn-{name} was measured at {', '.join(map(str, steps))}")
    last = {name: bits[:, steps.index(at)] for name, (steps, bits, _) in by_model.items()}
    heads = [f"tokens to {goal:g}" for goal in goals]
    yield "  ".join([f"{'model':28}{'English':>8}{'Korean':>8}{f'after {at}':>22}{'of the way':>22}", *heads])
    for name, (steps, bits, tokens) in by_model.items():
        result = node(workdir, name).result()
        way = (last[name] - last[FROM]) / (last[TO] - last[FROM])
        reach = [_thousands([tokens_to(steps, seed, goal, tokens) for seed in bits]) for goal in goals]
        cells = f"{name:28}{result['retain']:8.3f}{result['forget']:8.3f}{_band(last[name]):>22}{_band(way):>22}"
        yield "  ".join([cells, *(f"{cell:>{len(head)}}" for cell, head in zip(reach, heads, strict=True))])


def _band(values: np.ndarray) -> str:
    low, high = mean_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def _thousands(tokens: Sequence[float]) -> str:
    mean = float(np.mean(tokens))
    return "never" if math.isinf(mean) else f"{mean / 1000:.1f}k"


def leakage_lines(workdir: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the table of what models' logits on held-out text to forget show of the reference's."""
    manifest = load_manifest(node(workdir, "data").sealed(ROWS).parent)
    parts: dict[str, dict[str, int]] = manifest["evaluation"]["parts"]
    ends = dict(zip(parts, np.cumsum([part["rows"] for part in parts.values()]).tolist(), strict=True))
    rows = Rows(_rows(workdir)).gather(np.arange(ends["heldout"] - parts["heldout"]["rows"], ends["heldout"]))
    mesh, models = make_mesh(1), {}
    for name in dict.fromkeys((KNOWN, TO, *names)):
        model = open_model(node(workdir, name).directory)
        models[name] = leakage.centred_logits(model.cfg, model.load(mesh, None), rows)
    positions = len(models[KNOWN].targets)
    to_bits = positions / (math.log(2) * parts["heldout"]["bytes"])
    yield f"{'model':28}{'SD':>7}{'R² on the reference':>24}{'oracle':>8}{'beyond it':>10}{'best scale':>11}{'bits':>7}"
    for row in leakage.table(models, KNOWN, TO, to_bits):
        band = f"{row['r2']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        yield (
            f"{row['model']:28}{row['sd']:7.3f}{band:>24}{row['r2_naive']:8.3f}{row['r2_beyond_naive']:10.3f}"
            f"{row['scale']:11.2f}{row['bits_scaled']:7.3f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m distill_jax.reports.language_gap", description="Take the gap apart."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--at", type=int, default=60, help="attack steps at which models are compared")
    parser.add_argument("--bits", type=float, nargs="*", default=[2.0, 1.9, 1.8], help="goals of the attacker")
    given = parser.parse_args(arguments)
    try:
        print(*attack_lines(given.workdir, given.at, given.bits), sep="\n")
        names = [name for name in attacks(given.workdir) if name != TO]
        print("", *leakage_lines(given.workdir, names), sep="\n")
    except (ConfigError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
