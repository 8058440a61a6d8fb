"""The adaptive search against a fixed grid of the same number of trials, on surfaces whose best is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from distill_jax.io.node import Node
from distill_jax.perf.clock import Clock, Lap
from distill_jax.perf.ledger import ledger
from distill_jax.reports.attack_catalogue import attacked_models
from distill_jax.stages import Attack, Relearn, Search
from distill_jax.stages.attacks.refinement import GRID, Point, first_round, proposals, search

pytestmark = pytest.mark.property
OPTIMIZERS, RATES = ("adamw", "lion", "muon", "sgd"), tuple(1e-2 / 2.5**i for i in range(6))
GRID_POINTS = [Point(o, 4, float(f"{r:.3g}")) for o in OPTIMIZERS for r in RATES]
Surface = Callable[[Point], float]


def surface(rng: np.random.Generator) -> Surface:
    """Return what an attack truly brings back: each optimiser has a best rate, a height and a width, and a batch."""
    peaks = {
        o: (rng.uniform(math.log(1e-4), math.log(1e-2)), rng.uniform(0.2, 0.7), rng.uniform(0.7, 1.6))
        for o in OPTIMIZERS
    }
    batches = dict(zip(OPTIMIZERS, rng.choice([2, 4, 8], len(OPTIMIZERS)), strict=True))

    def value(point: Point) -> float:
        at, height, width = peaks[point.optimizer]
        off = 0.02 * abs(math.log2(point.batch / batches[point.optimizer]))
        return height * math.exp(-(((math.log(point.rate) - at) / width) ** 2)) - off

    return value


def measured(truth: Surface, noise: float, rng: np.random.Generator) -> Callable:
    def measure(points: Sequence[Point]) -> dict[Point, tuple[float, float]]:
        return {p: tuple(truth(p) + noise * rng.normal(size=2)) for p in points}

    return measure


def reported(truth: Surface, origin: dict[Point, int], noise: float, rng: np.random.Generator) -> float:
    """Return the truth of what is chosen by a noisy half, on the mean over both halves."""
    ends = []
    for half in (0, 1):
        mine = [p for p, by in origin.items() if by in (GRID, half)]
        ends.append(truth(max(mine, key=lambda p: truth(p) + noise * rng.normal())))
    return float(np.mean(ends))


@pytest.mark.parametrize("width", [1.0, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_it_is_no_weaker_than_the_grid_for_the_same_compute(noise, width):
    gains = []
    for draw in range(300):
        rng = np.random.default_rng(draw)
        truth = surface(rng)
        origin = search(GRID_POINTS, measured(truth, noise, rng), len(GRID_POINTS), width)
        rows = sum(point.batch for point in origin)  # that a step reads: what trials cost, if each has as many steps
        assert len(origin) <= len(GRID_POINTS) and rows <= sum(point.batch for point in GRID_POINTS)
        grid = reported(truth, dict.fromkeys(GRID_POINTS, GRID), noise, rng)
        gains.append(reported(truth, origin, noise, rng) - grid)
    assert np.mean(gains) > 0 and np.min(gains) > (-1e-9 if not noise else -0.1), (np.mean(gains), np.min(gains))


def test_its_first_round_is_part_of_the_grid_and_it_never_tries_a_point_twice():
    asked: list[Point] = []
    truth = surface(np.random.default_rng(3))

    def measure(points: Sequence[Point]) -> dict[Point, tuple[float, float]]:
        asked.extend(points)
        return {p: (truth(p), truth(p)) for p in points}

    origin = search(GRID_POINTS, measure, 24, width=2.0)
    assert set(asked[: len(first_round(GRID_POINTS))]) < set(GRID_POINTS)
    assert len(asked) == len(set(asked)) == len(origin) <= 24
    assert {p.batch for p in origin} > {4}  # batches too


def test_what_only_one_half_proposed_is_its_own():
    """The halves disagree about the optimiser: each refines its own, and neither sees what the other found."""
    best = {0: "adamw", 1: "muon"}

    def measure(points: Sequence[Point]) -> dict[Point, tuple[float, ...]]:
        return {
            p: tuple(float(p.optimizer == best[h]) - abs(math.log(p.rate / 1e-3)) / 10 for h in (0, 1)) for p in points
        }

    origin = search(GRID_POINTS, measure, len(GRID_POINTS), keep=1)
    refined = {(p.optimizer, by) for p, by in origin.items() if by != GRID}
    assert {("adamw", 0), ("muon", 1)} <= refined and not {("adamw", 1), ("muon", 0)} & refined


def test_nothing_to_propose_ends_the_search():
    point = Point("adamw", 4, 1e-3)
    assert proposals([point], [point, point.moved(rate=2), point.moved(rate=0.5)], 2.0, 1.0) == []
    assert search([point], lambda points: {p: (0.0, 0.0) for p in points}, 1) == {point: GRID}


class Asked:
    """A context, and attacks on its model that train nothing: Lion brings back most, at 1e-3."""

    def __init__(self, node: Node) -> None:
        self.nodes, self.ran, self.clock = {"maxent": node}, [], Clock()

    def run(self, stage: Relearn, ctx: object, nodes: Sequence[Node]) -> None:
        (node,) = nodes
        self.ran.append(node.name)
        metrics = node.continued_metrics(0)
        for seed in range(stage.seeds):
            for rate in stage.learning_rates:
                for step in stage.evaluate_steps:
                    off = abs(math.log(rate / 1e-3))
                    right = max(0, 9 - round(3 * off) - 2 * (stage.optimizer != "lion")) if step else 0
                    label = f"lr={rate:g},seed={seed}"
                    metrics.write("evaluation", step, label, {"heldout": right / 10, "retain": 0.9, "shown": 1.0})
                    metrics.write_counts("facts", step, label, "correct", [right] * 8)
        metrics.close()
        facts = {"prompts_by_fact": [10] * 8, "diverged_at": {}}
        members = len(stage.learning_rates) * stage.seeds
        node.finish(
            {"members": members, "diverged": 0, **facts}, ledger({"attack": 7.0}, {"attack": 1}, Lap({"step": 1.5}))
        )


def test_a_search_trains_parts_that_are_kept_and_counts_every_trial(tmp_path, monkeypatch):
    model = Node("maxent", "unlearn", None, {}, "0" * 12, tmp_path / "maxent")
    model.directory.mkdir()
    model.finish({"retain": 0.9}, {})
    settings = {"steps": 4, "evaluate_steps": (0, 4), "seeds": 2, "learning_rates": (1.6e-2, 8e-3, 4e-3, 2e-3)}
    stage = Search(start="maxent", **settings, optimizers=("adamw", "lion"), points=9)
    node = Node("search-on-maxent", "search", stage, {"start": "maxent"}, "1" * 12, tmp_path / "search")
    node.directory.mkdir()
    asked = Asked(model)
    monkeypatch.setattr(Relearn, "run", lambda self, ctx, nodes: asked.run(self, ctx, nodes))
    stage.run(asked, [node])
    assert node.done and node.ledger()["flops"] == {"attack": 7.0 * len(asked.ran)}
    assert node.ledger()["goodput"]["seconds"]["step"] == pytest.approx(1.5 * len(asked.ran))
    models = attacked_models({"maxent": model, node.name: node})
    configurations = models["maxent"].configurations
    assert len(configurations) == 9 and node.result()["members"] == 18
    assert len({c.attack for c in configurations}) == 2  # by optimiser; each once, however many rounds tried it
    choice = models["maxent"].worst(models["maxent"].everything)
    best, _ = choice.winner()
    assert "lion" in best.name and abs(math.log(best.rate / 1e-3)) < 0.25 and choice.scores.value >= 0.8
    # Stopped and continued, it trains nothing twice.
    (node.directory / "DONE").unlink()
    before = len(asked.ran)
    stage.run(asked, [node])
    assert len(asked.ran) == before


def test_attacks_of_unequally_many_seeds_are_chosen_among_on_those_that_all_have(tmp_path):
    """A search with more seeds beside attacks with fewer had ended the report, after all of them had run."""
    model = Node("maxent", "unlearn", None, {}, "0" * 12, tmp_path / "maxent")
    model.directory.mkdir()
    model.finish({"retain": 0.9}, {})
    nodes, asked = {"maxent": model}, Asked(model)
    for name, seeds in (("lion", 2), ("adamw", 4)):
        stage = Attack(
            start="maxent", steps=4, evaluate_steps=(0, 4), seeds=seeds, learning_rates=(1e-3,), optimizer=name
        )
        node = nodes[name] = Node(f"{name}-on-maxent", "attack", stage, {"start": "maxent"}, name, tmp_path / name)
        node.directory.mkdir()
        asked.run(stage, asked, [node])
    attacked = attacked_models(nodes)["maxent"]
    assert attacked.worst(attacked.everything).by_fact.shape == (2, 8)
    assert attacked.worst(attacked.everything).winner()[0].name == "lion"
