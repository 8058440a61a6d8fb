"""A model's role follows from the graph: who distilled from whom, from what start, on what data; never from a name."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.roles import Role, provenance
from distill_jax.io.node import Node
from distill_jax.losses.cross_entropy import Sum
from distill_jax.models.presets import preset
from distill_jax.reports.claims import judge
from distill_jax.reports.model_labels import labels
from distill_jax.stages import Distill, Finetune, Import, Perturb, Pretrain, Stage, Unlearn
from distill_jax.stages.context import RunSettings
from distill_jax.stages.methods import METHODS
from distill_jax.stages.methods.method import OutputMethod
from tests import referee

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
# Names that say nothing, or the wrong thing.
STAGES: dict[str, tuple[Stage, Role]] = {
    "a": (Pretrain(), Role.REFERENCE),
    "student-1": (Pretrain(data="retain"), Role.ORACLE),
    "oracle": (Unlearn(start="a", method="rmu"), Role.SUPPRESSED),
    "b": (Unlearn(start="student-1"), Role.SUPPRESSED_ORACLE),
    "undo-0.5": (Distill(teacher="oracle"), Role.RANDOM_STUDENT),
    "c": (Distill(teacher="oracle", stop=False), Role.EQUAL_COMPUTE),
    "d": (Distill(teacher="oracle", data="retain"), Role.DISTILLED),
    "e": (Distill(teacher="a"), Role.REFERENCE_STUDENT),
    "f": (Distill(teacher="a", data="filtered"), Role.FILTERED),
    "g": (Distill(teacher="oracle", start="oracle"), Role.UNDAMAGED),
    "h": (Perturb(start="oracle", alpha=0.3), Role.OTHER),
    "i": (Distill(teacher="oracle", start="h"), Role.UNDO),
    "j": (Perturb(start="oracle", alpha=0.3, shrink=False), Role.OTHER),
    "k": (Distill(teacher="oracle", start="j"), Role.NOISE_ONLY),
    "l": (Distill(teacher="student-1", start="a"), Role.MATCHED_REFERENCE),
    "m": (Distill(teacher="student-1"), Role.MATCHED_STUDENT),
    "n": (Distill(teacher="b"), Role.DISTILLED),
    "o": (Import(path="/x"), Role.REFERENCE),
}


def nodes_of(stages: dict[str, Stage]) -> dict[str, Node]:
    data = ArithmeticConfig(filter_labels=10)
    experiment = CheckedExperiment("x", "", preset("cpu"), data, stages, RunSettings())
    return graph.build(experiment, Path("nowhere"))


def test_roles_follow_from_the_graph():
    nodes = nodes_of({name: stage for name, (stage, _) in STAGES.items()})
    assert {name: provenance(nodes[name], nodes).role for name in STAGES} == {
        n: role for n, (_, role) in STAGES.items()
    }
    undo = provenance(nodes["i"], nodes)
    assert (undo.method, undo.teacher, undo.alpha, undo.beta) == ("rmu", "oracle", 0.3, 0.1)
    assert provenance(nodes["g"], nodes).alpha == 0 and provenance(nodes["c"], nodes).alpha is None


def test_models_of_one_role_have_labels_of_their_own():
    nodes = nodes_of({"r": Pretrain(), "u": Unlearn(start="r"), "s": Distill(teacher="u"), "t": Distill(teacher="u")})
    named = labels({name: provenance(nodes[name], nodes) for name in ("r", "u", "s", "t")})
    assert named["s"] == "Random student of MaxEnt" and len(set(named.values())) == 4 and "t" in named["t"]


def test_a_published_model_is_not_said_to_have_read_all_data():
    published, taught = Import(path="x"), Finetune(start="o", data="inject")
    alone, arm = nodes_of({"r": published}), nodes_of({"o": published, "r": taught})
    for nodes, expected in ((alone, ["Original model"]), (arm, ["Oracle (before teaching)", "Taught model"])):
        assert [
            *labels({name: provenance(nodes[name], nodes) for name in nodes if name != "data"}).values()
        ] == expected


def test_the_shipped_experiment_has_the_models_that_its_claims_compare():
    module = load_module(ROOT / "configs/arithmetic.py")
    nodes = graph.build(load_experiment(module, module.get_config("smoke,full")), Path("nowhere"))
    made = {name: provenance(node, nodes) for name, node in nodes.items() if name != "data"}
    found = {name: (of.role, of.method) for name, of in made.items()}
    assert found["student-rmu"] == (Role.RANDOM_STUDENT, "rmu")
    assert found["undo-0.6"] == (Role.UNDO, "maxent") and made["undo-0.6"].alpha == 0.6
    assert found["undo-0.0"][0] is Role.UNDAMAGED and found["student-budget"][0] is Role.EQUAL_COMPUTE
    assert found["match-from-reference"][0] is Role.MATCHED_REFERENCE


@dataclasses.dataclass(frozen=True)
class Refusal(OutputMethod):
    """A method of one's own: raise the entropy by lowering the largest logit."""

    name: ClassVar[str] = "refusal"
    label: ClassVar[str] = "Refusal"

    def forget_loss(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> Sum:
        """Return (sum, weight) of the largest logit."""
        del targets
        return jnp.sum(jnp.max(logits, axis=-1) * mask), jnp.sum(mask)


def test_a_new_method_is_a_class_and_a_line(monkeypatch):
    """It can be chosen, has its label on the page and a claim of its own, and its loss is the one that is minimised."""
    monkeypatch.setitem(METHODS, "refusal", Refusal)
    stages: dict[str, Stage] = {
        "r": Pretrain(), "u": Unlearn(start="r", method="refusal"), "s": Distill(teacher="u")
    }  # fmt: skip
    nodes = nodes_of(stages)
    named = labels({name: provenance(nodes[name], nodes) for name in stages})
    assert named["u"] == "Refusal, suppressed" and named["s"] == "Random student of Refusal"
    with pytest.raises(ValueError, match="layer = 2: Refusal does not read it"):
        Unlearn(start="r", method="refusal", layer=2)
    models = referee.world(referee.np.random.default_rng(0))
    refusing = [dataclasses.replace(m, method="refusal") if m.method == "maxent" else m for m in models]
    claims = {claim.name: claim for claim in judge(refusing)}
    assert "Refusal" in claims["distilling refusal"].statement and "distilling maxent" not in claims
    logits = jnp.array([[[1.0, 3.0], [2.0, 0.0]]])
    stage: Any = stages["u"]
    total, weight = stage.objective().forget_loss(logits, jnp.zeros((1, 2), int), jnp.array([[1.0, 0.0]]))
    assert (float(total), float(weight)) == (3.0, 1.0)


def test_a_method_that_was_made_robust_is_not_the_plain_one():
    """Averaged with it, as its twin of the same seed, it would make a finding on MaxEnt one on a mixture."""
    stages = {
        "r": Pretrain(),
        "u": Unlearn(start="r"),
        "v": Unlearn(start="r", robust="sam"),
        "s": Distill(teacher="v"),
    }
    nodes = nodes_of(stages)
    made = {name: provenance(nodes[name], nodes) for name in stages}
    assert [made[name].method for name in "ruvs"] == [None, "maxent", "maxent+sam", "maxent+sam"]
    assert labels(made)["s"] == "Random student of MaxEnt with SAM"


def test_of_a_robust_method_alone_is_concluded_too():
    rng = np.random.default_rng(0)
    models = [
        dataclasses.replace(m, method=m.method and "maxent+sam") for m in referee.world(rng)
        if m.name in ("reference", "oracle", "maxent", "student")
    ]  # fmt: skip
    said = {one.name: one for one in judge(models)}
    assert said["suppression"].state == "held" and said["distilling maxent+sam"].state == "held"
    assert {name for name in said if name.startswith("distilling")} == {"distilling maxent+sam"}
    assert "MaxEnt with SAM" in said["distilling maxent+sam"].statement


def test_what_damage_must_cost_identifies_no_node():
    alike = [Perturb(start="u", alpha=0.5, must_lose=share).fingerprint_fields() for share in (0.0, 0.05)]
    assert alike[0] == alike[1] != Perturb(start="u", alpha=0.6).fingerprint_fields()
