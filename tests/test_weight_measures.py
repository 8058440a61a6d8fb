"""Distance in weights, loss barrier and the order of few models, against float64, known curves and scipy."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.stats

from distill_jax.evals.scale import ACCURACY
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.reports import weight_measures
from distill_jax.reports.ranking import rankings
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import LossBarrier
from distill_jax.stages.loss_barrier import barrier, loss_between, relative_distance
from distill_jax.statistics.rank_correlation import spearman, spearman_interval
from tests.referee import swept

pytestmark = pytest.mark.unit
CFG = TransformerConfig(
    vocab=37, layers=2, hidden=24, mlp=40, heads=4, kv_heads=2, head_dim=6, query_scale=6.0, init_std=0.3
)
init = jax.jit(transformer.init, static_argnums=0)


def test_the_barrier_of_a_parabola_is_its_height_and_of_a_line_or_a_valley_none():
    t = np.linspace(0, 1, 11)
    line = 2.0 + 3.0 * t
    assert barrier(line + 4 * 0.7 * t * (1 - t)) == pytest.approx(0.7)
    assert barrier(line) == pytest.approx(0.0, abs=1e-12)
    assert barrier(line - t * (1 - t)) == pytest.approx(0.0, abs=1e-12)


def test_between_a_model_and_itself_there_is_no_barrier_and_at_the_ends_there_are_the_models():
    one, two = (init(CFG, jax.random.key(seed)) for seed in (0, 1))
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 37, (3, 9)), np.ones((3, 9)), np.ones((3, 9))]).astype(np.int32)
    loss = loss_between(CFG, make_mesh(1, devices=jax.devices()[:1]), "all")
    same = np.array([loss(one, one, np.float32(t), rows) for t in (0, 0.3, 1)])
    assert barrier(same) == pytest.approx(0.0, abs=1e-5)
    for t, model in ((0.0, two), (1.0, one), (0.25, jax.tree.map(lambda w, r: 0.25 * w + 0.75 * r, one, two))):
        logits = np.asarray(transformer.apply(CFG, model, rows[0], rows[1]), np.float64)[:, :-1]
        picked = np.take_along_axis(logits, rows[0][:, 1:, None], axis=2)[..., 0]
        expected = np.mean(np.log(np.exp(logits).sum(axis=2)) - picked)
        assert float(loss(one, two, np.float32(t), rows)) == pytest.approx(expected, rel=1e-4)


def test_distances_are_relative_norms_of_each_part_in_float64():
    one, two = (init(CFG, jax.random.key(seed)) for seed in (0, 1))
    found = relative_distance(one, two)

    def norm(*parts) -> float:
        leaves = [np.asarray(w, np.float64) for tree in parts for w in jax.tree.leaves(tree)]
        return math.sqrt(sum(float((w**2).sum()) for w in leaves))

    gap = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), one, two)
    assert found["all"] == pytest.approx(norm(gap) / norm(two))
    assert found["embedding"] == pytest.approx(norm(gap["embedding"]) / norm(two["embedding"]))
    assert found["mlp"] == pytest.approx(norm(gap["layers"]["mlp"]) / norm(two["layers"]["mlp"]))
    assert found["attention"] == pytest.approx(norm(gap["layers"]["attention"]) / norm(two["layers"]["attention"]))
    assert found["norms"] == 0.0 and relative_distance(two, two)["all"] == 0.0
    halved = jax.tree.map(lambda w: w / 2, two)
    assert relative_distance(halved, two)["attention"] == pytest.approx(0.5)


def test_a_rank_correlation_is_scipys_ties_and_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 8), rng.normal(size=8)
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_the_interval_of_a_rank_correlation_covers_the_true_one():
    """Of normal pairs of correlation r that of ranks is 6/π asin(r / 2)."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        x = rng.normal(size=12)
        low, high = spearman_interval(spearman(x, 0.6 * x + 0.8 * rng.normal(size=12)), 12)
        covered += low <= 6 / math.pi * math.asin(0.3) <= high
    assert covered >= 0.92 * 300
    assert spearman_interval(1.0, 7)[0] < 0.97 and spearman_interval(1.0, 7)[1] == 1.0
    assert all(map(math.isnan, spearman_interval(1.0, 4)))


@pytest.mark.parametrize(
    ("count", "noise", "says"),
    [(7, 0.0, "open: 7 models"), (14, 9.0, "the interval holds 0"), (14, 0.1, "less comes back")],
)
def test_few_models_or_a_wide_interval_leave_it_open(count, noise, says):
    rng = np.random.default_rng(2)
    distance = np.arange(count) / count
    back = np.clip(1 - distance + noise * rng.normal(size=count) / 10, 0, None)
    measured = [
        {"distance": {"all": d}, "barrier": {"retain": d}, "came_back": b}
        for d, b in zip(distance.tolist(), back.tolist(), strict=True)
    ]
    for one in weight_measures.predictions(measured, ACCURACY):
        assert says in one["words"] and one["models"] == count


def test_a_sweep_ranks_recipes_by_the_means_of_their_seeds_and_leaves_out_what_was_not_measured():
    alphas = [0.05 * i for i in range(1, 12)]
    truths = {("reference", None, None): 0.94, ("oracle", None, None): 0.02, ("suppressed", None, None): 0.9}
    sweep = swept(np.random.default_rng(0), truths | {("undo", a, 0.0): 0.9 - 1.5 * a for a in alphas}, seeds=3)
    means = {"suppressed None None []": 0.0, "oracle None None []": 9.0} | {f"undo {a} 0.0 []": 10 * a for a in alphas}
    for run in sweep.runs:  # single seeds of a recipe lie further apart than recipes do
        far = means.get(run["recipe"], 0.0) + 3 * (run["seed"] - 1)
        weights = {"distance": {"all": far}, "barrier": {"retain": -far}}
        run |= {"parameters": 1, "attack": None, "weights": None if run["kind"] == "reference" else weights}
    (ranking,) = rankings(sweep)
    back = {row["recipe"]: row["recovered"]["value"] for row in (*ranking["recipes"], *ranking["baselines"])}
    rho = scipy.stats.spearmanr(list(means.values()), [back[recipe] for recipe in means]).statistic
    assert [(one["measure"], one["models"]) for one in ranking["prediction"]] == [
        ("distance in weights", 13),
        ("barrier on retain", 13),
    ]
    assert [one["rho"] for one in ranking["prediction"]] == pytest.approx([rho, -rho], abs=1e-3)
    sweep.runs[-1]["weights"] = None  # of one seed of the last recipe
    assert rankings(sweep)[0]["prediction"][0]["models"] == 12


@pytest.mark.parametrize(
    ("settings", "says"), [({"points": 2}, "points"), ({"rows": 0}, "rows"), ({"sets": ()}, "sets")]
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=f"{says} = "):
        LossBarrier(start="m", reference="r", **settings)
