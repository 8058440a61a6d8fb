"""Protect a model of your own: make it forget, and find out whether it stays forgotten.

  configs/protect.py:documents    what is to be forgotten is text; measured in bits per byte of documents held out
  configs/protect.py:questions    it is questions with answers; measured by those answered exactly, of facts held out
  configs/protect.py:choices      it is text, and multiple-choice items are what models are measured by

`distill-jax protect --model=DIR --forget=FILES --retain=FILES --workdir=DIR` fills in what the model decides (its
vocabulary, its context, a learning rate for its size, adapters where its weights do not fit), says so, and runs this;
with --print_config it writes the config file that says the same. A second preset names the unlearning method:
`protect:documents,rmu`.

The model's shape is that of its config.json. It suppresses (`suppress`), damages what it suppressed (`damage`), distils
the damaged copy back on text to retain (`distill`), attacks the untouched, the suppressed and the protected model alike
(`attack`), writes the protected one as transformers loads it, and ends in `report/card.md`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from distill_jax.config import check_setting
from distill_jax.data.facts.choices_config import ChoicesConfig
from distill_jax.data.facts.documents_config import DocumentsConfig
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section, unlearn_section
from distill_jax.stages import Distill, Export, Import, Knowledge, Perturb, Relearn, Stage, Unlearn
from distill_jax.stages.context import RunSettings
from distill_jax.stages.methods import METHODS

KINDS = {"documents": DocumentsConfig, "questions": FactsConfig, "choices": ChoicesConfig}


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers for a kind of data, documents if `arg` is empty, and perhaps a method: "documents,rmu"."""
    kind, _, method = (arg or "documents").partition(",")
    method = method or "maxent"
    if kind not in KINDS or method not in METHODS:
        raise ValueError(f"no preset {arg!r} in configs/protect.py; it is one of {', '.join(KINDS)}, with ,METHOD of "
                         f"{', '.join(METHODS)}")  # fmt: skip
    c = ConfigDict()
    c.experiment = "protect"
    c.description = "Make a model forget, and attack what comes out."
    c.seed = 0
    c.kind = kind
    c.model = ConfigDict({"dtype": "float32", "unroll": 1, "remat": "none"})
    c.reference = section(Import, "content", "lora_rank", "lora_alpha")
    c.data = section(KINDS[kind], "content")
    c.run = section(RunSettings, evaluation_batch=16, loss_chunk=1024)
    c.knowledge = section(Knowledge)
    c.method = method
    hold = {"hold": "kl"} if "hold" in METHODS[method].settings() else {}
    c.suppress = unlearn_section(method, "weights", steps=100, batch=8, warmup=10, **hold)
    c.damage = section(Perturb, alpha=0.25, beta=0.1, must_lose=0.05)  # as the student's tolerance, or it has its goal
    c.distill = section(Distill, "weights", "uniform", data="retain", steps=1000, batch=8, evaluate_every=50)
    c.attack = section(Relearn, "weights", "learning_rate", "final_learning_rate", steps=100, batch=8)
    c.attack.update(warmup=0, weight_decay=0.0, seeds=2, evaluate_steps=(0, 5, 10, 25, 50, 100))
    if kind == "questions":  # what stands in a question is to be read as before; text to retain teaches all of it
        c.suppress.loss_on = c.attack.loss_on = "answer"
    c.attack_apart = False  # an attack for each learning rate, where all together do not fit into memory
    c.export = section(Export)
    c.pretraining_tokens = 0.0  # that the model was trained on, if it is known
    return set_rate(c, 1e-4)


def set_rate(c: ConfigDict, rate: float) -> ConfigDict:
    """Set the learning rates of all stages: `rate` where weights are to change, and a range about it for attackers."""
    c.suppress.update(learning_rate=rate, final_learning_rate=rate)
    c.distill.update(learning_rate=2 * rate, final_learning_rate=0.2 * rate)
    c.attack.learning_rates = tuple(float(f"{factor * rate:.2g}") for factor in (10, 3, 1, 0.3))
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_stages(c), data=data_class(c.kind), notes=notes(c))


def notes(c: ConfigDict) -> dict[str, float]:
    """Return what the card says of the model besides."""
    mend = "must not be negative; 0 where it is not known"
    check_setting(c.pretraining_tokens >= 0, "pretraining_tokens", c.pretraining_tokens, mend)
    return {"pretraining_tokens": c.pretraining_tokens}


def data_class(kind: str) -> type:
    """Return what the settings of a kind of data are of."""
    check_setting(kind in KINDS, "kind", kind, f"choose one of {', '.join(KINDS)}")
    return KINDS[kind]


def _stages(c: ConfigDict) -> dict[str, Stage]:
    seed = {"seed": c.seed}
    student = Distill(teacher="suppressed", start="damaged", **c.distill, **seed)  # checks its own tolerance
    must_lose = max(c.damage.must_lose, student.tolerance) if c.damage.must_lose else 0.0
    stages: dict[str, Stage] = {
        "reference": Import(**c.reference),
        "knowledge": Knowledge(start="reference", **c.knowledge),
        "suppressed": Unlearn(start="reference", method=c.method, **c.suppress, **seed),
        "damaged": Perturb(start="suppressed", **{**c.damage, "must_lose": must_lose}, **seed),
        "protected": student,
        "export": Export(start="protected", **c.export),
    }
    return stages | attacks(c, ("reference", "suppressed", "protected"))


def attacks(c: ConfigDict, names: tuple[str, ...]) -> dict[str, Stage]:
    """Return the attacks on models: a stage each, or with `attack_apart` one for each learning rate."""
    settings = {key: value for key, value in c.attack.items() if key != "learning_rates"}
    rates = (
        {f"-{rate:g}": (rate,) for rate in c.attack.learning_rates} if c.attack_apart else {"": c.attack.learning_rates}
    )
    return {
        f"relearn-{name}{tail}": Relearn(start=name, learning_rates=of, **settings, seed=c.seed)
        for name in names
        for tail, of in rates.items()
    }
