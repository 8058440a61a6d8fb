"""The family of partial re-initialisations: which weights change, to what, and what a model so made is called."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment import graph
from distill_jax.experiment.damage_rounds import damage_rounds
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.roles import Role, provenance
from distill_jax.models import transformer
from distill_jax.models.presets import preset
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages import Distill, Finetune, Perturb, Pretrain, Unlearn
from distill_jax.stages.context import RunSettings

pytestmark = pytest.mark.unit
CFG = TransformerConfig(vocab=40, layers=4, hidden=24, mlp=40, heads=2, kv_heads=1, head_dim=8, init_std=0.5)
KEY = jax.random.key(5)


@functools.cache
def start():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), transformer.shapes(CFG))


def leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in paths}


def changed(**settings):
    """Return {name: bool, where a weight is another than before}, and the weights."""
    stage = Perturb(start="x", **{"alpha": 0.5, **settings})
    stage.validate(CFG, ArithmeticConfig())
    new, old = leaves(stage.damaged(CFG, start(), KEY)), leaves(start())
    return {name: new[name] != old[name] for name in old}, new


def test_a_chosen_part_has_the_weights_that_all_would_have():
    _, everything = changed()
    for part in ({"modules": ("layers/mlp/*",)}, {"layers": (0, -1)}, {"modules": ("*/query",), "layers": (2,)}):
        where, new = changed(**part)
        for name, moved in where.items():
            np.testing.assert_array_equal(new[name][moved], everything[name][moved])


def test_modules_are_chosen_by_name_and_layers_by_place():
    where, _ = changed(modules=("layers/mlp/*", "embedding"))
    assert {n for n, moved in where.items() if moved.all()} == {"embedding", "layers/mlp/gate_up", "layers/mlp/down"}
    assert {n for n, moved in where.items() if moved.any()} == {n for n, moved in where.items() if moved.all()}
    where, _ = changed(layers=(0, -1))
    for name, moved in where.items():
        if name.startswith("layers/"):
            assert [bool(layer.all()) for layer in moved] == [True, False, False, True]
            assert not moved[1:3].any()
        else:
            assert not moved.any()


@pytest.mark.parametrize("order", ["smallest", "largest"])
def test_weights_are_chosen_by_magnitude_within_every_matrix(order):
    where, _ = changed(share=0.25, order=order)
    old = leaves(start())
    for name, moved in where.items():
        if name.endswith("scale"):
            assert not moved.any()
            continue
        stacked = name.startswith("layers/")
        for w, m in zip(old[name] if stacked else [old[name]], moved if stacked else [moved], strict=True):
            count = m.sum()
            assert count == pytest.approx(0.25 * w.size, abs=1)
            ranks = np.argsort(np.abs(w), axis=None)
            chosen = ranks[:count] if order == "smallest" else ranks[-count:]
            np.testing.assert_array_equal(np.sort(chosen), np.flatnonzero(m))


def test_interpolation_ends_at_a_fresh_model():
    """At α = 1 weights have the scale of `init_std` and forget the model; in between they are the mean of both."""
    _, fresh = changed(alpha=1.0, noise="init")
    _, half = changed(alpha=0.25, noise="init")
    for name, w in leaves(start()).items():
        np.testing.assert_allclose(half[name], 0.75 * np.float64(w) + 0.25 * np.float64(fresh[name]), atol=1e-6)
        if name.endswith("scale"):
            assert not fresh[name].any()  # norms act as 1 + scale
        else:
            assert fresh[name].std() == pytest.approx(CFG.init_std, rel=4 / np.sqrt(w.size))
            assert abs(np.corrcoef(w.ravel(), fresh[name].ravel())[0, 1]) < 5 / np.sqrt(w.size)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": "gauss"}, "noise = 'gauss'"),
        ({"noise": "init", "beta": 0.3}, "reads neither beta nor shrink"),
        ({"share": 0.0}, "share = 0.0"),
        ({"share": 0.5, "order": "biggest"}, "order = 'biggest'"),
        ({"order": "largest"}, "lower share"),
        ({"layers": (4,)}, "layers 0 to 3"),
        ({"modules": ("layers/mlp/dwon",)}, "no weights match 'layers/mlp/dwon'"),
        ({"modules": ("embedding",), "layers": (0,)}, "together they mean no weight"),
        ({"modules": ("*/scale",), "share": 0.5}, "together they mean no weight"),
    ],
)
def test_parts_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Perturb(start="x", **settings).validate(CFG, ArithmeticConfig())


def nodes_of(stages, data=None):
    experiment = CheckedExperiment("x", "", preset("cpu"), data or ArithmeticConfig(), stages, RunSettings())
    return graph.build(experiment, Path("nowhere"))


def test_rounds_damage_as_much_as_one_and_are_no_undo():
    """What remains of the weights is (1 - α) after all rounds; α's own claims are of single, whole damages."""
    distil = lambda start: Distill(teacher="u", start=start)  # noqa: E731
    train = lambda start: Finetune(start=start, data="retain")  # noqa: E731
    stages = {"r": Pretrain(), "u": Unlearn(start="r"), "d": Perturb(start="u"), "once": distil("d")}
    stages |= damage_rounds("thrice", "u", 3, distil, alpha=0.6, beta=0.2)
    stages |= damage_rounds("trained", "u", 2, train, alpha=0.6)
    stages |= {"p": Perturb(start="u", layers=(-1,)), "top": distil("p")}
    damages = [stages[f"thrice-damaged-{i}"] for i in range(3)]
    assert np.prod([1 - d.alpha for d in damages]) == pytest.approx(0.4)
    assert [d.start for d in damages] == ["u", "thrice-recovered-0", "thrice-recovered-1"]
    assert {d.beta for d in damages} == {0.2} and len({d.seed for d in damages}) == 3
    assert stages["trained"].start == "trained-damaged-1"
    nodes = nodes_of(stages)
    roles = {name: provenance(nodes[name], nodes).role for name in ("once", "thrice", "top", "thrice-recovered-0")}
    assert roles == {
        "once": Role.UNDO, "thrice": Role.REINITIALISED, "top": Role.REINITIALISED, "thrice-recovered-0": Role.UNDO,
    }  # fmt: skip
    with pytest.raises(ValueError, match="rounds = 0"):
        damage_rounds("none", "u", 0, distil, alpha=0.6)
