"""Unlearn-and-Distill and UNDO on arithmetic: keep + and −, forget × and ÷.

  configs/arithmetic.py            the paper's own setting: 0.3B parameters, 2 M examples, operands to 50 and 20, mixed
                                   with English text that you name (--config.data.english=FILE,FILE)
  configs/arithmetic.py:cpu        the same stages with a 0.1 M-parameter model: minutes on two cores
  configs/arithmetic.py:cpu,full   adds GradDiff, RMU and the controls
  configs/arithmetic.py:cpu,truth  an attack on models of known truth: × and ÷ are taught to the oracle, then hidden
                                   behind a password, or erased by subtracting what it learned
  configs/arithmetic.py:smoke      the same graph for a few steps: seconds, learns nothing

Expected of :cpu: the suppressed model is back at most held-out facts within the attack; UNDO resists more as α grows;
the random student and the oracle resist most.

  distill-jax run --config=configs/arithmetic.py:cpu --workdir=runs/arithmetic
"""

from ml_collections import ConfigDict

from distill_jax.config import SettingError
from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment.damage_rounds import damage_rounds, damage_settings
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section, unlearn_section
from distill_jax.models.presets import preset
from distill_jax.stages import (
    Cache,
    Distill,
    Erase,
    Finetune,
    Lock,
    Perturb,
    Pretrain,
    Quantise,
    Relearn,
    Route,
    Stage,
    Unlearn,
    Unlock,
)
from distill_jax.stages.context import RunSettings

MORE_METHODS = ("gradascent", "wga", "npo", "simnpo", "undial", "dpo", "selective")
# Of an attack, which tries `learning_rates`, each constant.
FIXED_RATE = ("learning_rate", "final_learning_rate")


def get_config(arg: str = "") -> ConfigDict:
    """Return the paper's numbers, changed by the presets named in `arg` (cpu, smoke, full, truth; comma-separated)."""
    presets = [p for p in arg.split(",") if p]
    unknown = set(presets) - {"cpu", "smoke", "full", "truth"}
    if unknown:
        raise ValueError(
            f"no preset {sorted(unknown)[0]!r} in configs/arithmetic.py; there are cpu, smoke, full and truth"
        )

    if {"full", "truth"} <= set(presets):
        raise ValueError("presets full and truth in configs/arithmetic.py: these are other models; choose one of them")

    c = ConfigDict()
    c.experiment = "arithmetic"
    c.description = "Keep addition and subtraction, forget multiplication and division."
    c.seed = 0
    c.full = "full" in presets
    c.known_truth = "truth" in presets

    c.model = section(preset("gemma-0.3b", remat="full"))
    c.data = section(ArithmeticConfig, english_share=0.75)
    c.run = section(RunSettings, evaluation_batch=400, loss_chunk=1024)

    # 360 rows of 256 tokens: 92,160 tokens a step.
    c.reference = section(Pretrain, "data", steps=1000, batch=360, learning_rate=4e-4, final_learning_rate=4e-4)
    c.oracle = section(Pretrain, "data", steps=1000, batch=360, learning_rate=4e-4, final_learning_rate=4e-4)
    if c.known_truth:  # the oracle learns × and ÷ too, and what that changes is known weight by weight
        c.taught = section(Finetune, "data", steps=1000, batch=360, learning_rate=4e-4, final_learning_rate=4e-4)
        hide = {"steps": 1000, "batch": 180, "learning_rate": 4e-4, "final_learning_rate": 4e-5}
        c.password_lock = section(Lock, password=(3,), **hide)  # <unk>, which no text has
    suppress = {"steps": 10, "batch": 40, "warmup": 0}
    c.maxent = unlearn_section("maxent", **suppress, learning_rate=9e-5, final_learning_rate=9e-5)
    c.graddiff = unlearn_section("graddiff", **suppress, learning_rate=8e-6, final_learning_rate=8e-6)
    c.graddiff.retain_weight = 15.0
    c.rmu = unlearn_section("rmu", **suppress, learning_rate=9e-5, final_learning_rate=9e-5)
    c.rmu.update(steps=500, layer=11, train_layers=7)
    for name in MORE_METHODS:  # at this size never run
        c[name] = unlearn_section(name, **suppress, learning_rate=9e-5, final_learning_rate=9e-5)
    c.dpo.update(refusal_ids=(3,), loss_on="answer")  # <unk>, which no text has
    c.selective.update(epsilon=1.0, learning_rate=0.1, final_learning_rate=0.1)  # along the gradient, of length 0.1
    c.methods = ()  # of `MORE_METHODS`, those that are run beside, with a random student each
    c.distill = section(Distill, "data", "stop", steps=1000, batch=360, learning_rate=7e-4, final_learning_rate=7e-5)
    c.distill.evaluate_every = 20
    c.undo = ConfigDict({"alphas": (0.2, 0.4, 0.6, 0.8), "method": "maxent", **section(Perturb, "alpha")})
    c.undo.update(rounds=1, recover="distill")  # or "train" on retain data, by `retrain`
    c.undo.data = "all"  # that the student reads; of method "reference" a labeller's "filtered" or "masked"
    c.retrain = section(Finetune, "data", steps=100, batch=360, learning_rate=7e-4, final_learning_rate=7e-5)
    # Gradient routing (of preset full, with labels): 180 rows of what a filter drops into the last quarter of the MLPs'
    # neurons, 180 of the rest into all else; then the neurons are cut off, and what leaned on them is mended.
    c.routing = section(Route, "forget", "retain", steps=1000, batch=180, learning_rate=4e-4, final_learning_rate=4e-4)
    c.routing.neurons = 768
    c.routed = section(Finetune, "data", steps=100, batch=360, learning_rate=4e-4, final_learning_rate=4e-5)
    c.budget = ConfigDict({"steps": 300})  # of a random student that stops there, recovered or not
    c.bits = ()  # to which every attacked model is rounded and attacked again, such as (8, 4)
    # Whether MaxEnt's hidden states are stored once and its students read them instead of running it.
    c.cache_teacher = False
    c.cache = section(Cache, "data")
    c.relearn = section(Relearn, *FIXED_RATE, steps=500, batch=15, warmup=0, weight_decay=0.0, seeds=3)
    c.relearn.learning_rates = (1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6)
    c.relearn.evaluate_steps = (0, 5, 10, 20, 40, 80, 125, 200, 300, 400, 500)

    if "cpu" in presets or "smoke" in presets:
        _cpu(c)
    if "smoke" in presets:
        _smoke(c)
    return c


def _cpu(c: ConfigDict) -> None:
    c.experiment = "arithmetic-cpu"
    c.model = section(preset("cpu"))
    c.data.update(addition_max=20, equations=16_000, word_problems=16_000, row_length=64)
    c.data.update(english_share=0.0, evaluation_prompts=48)
    c.run.update(evaluation_batch=0, loss_chunk=0)
    # A model this small learns nothing from the wording of a question that its answer does not teach it faster.
    answers = {"loss_on": "answer", "evaluate_every": 400, "checkpoint_every": 400}
    fast = {"batch": 16, "learning_rate": 4e-3, "final_learning_rate": 4e-4, **answers}
    c.reference.update(steps=2400, **fast)
    c.oracle.update(steps=2400, **fast)
    if c.known_truth:
        # At four times the rate what it learned is so much that subtracting it takes the rest along (retain .37).
        c.taught.update(**{**fast, "learning_rate": 1e-3, "final_learning_rate": 1e-4}, steps=1600)
        c.password_lock.update(steps=1600, **fast)
    suppress = {"steps": 100, "batch": 16, "learning_rate": 1e-3, "final_learning_rate": 1e-3, **answers}
    c.maxent.update(**suppress)
    c.graddiff.update(**suppress)
    c.rmu.update(**{**suppress, "steps": 200}, layer=2, train_layers=2, retain_weight=4.0)
    for name in MORE_METHODS:  # these rates were tried, on this model and one seed (docs/choices.md)
        c[name].update(**suppress)
    c.gradascent.update(learning_rate=7e-5, final_learning_rate=7e-5)  # no rate both forgets and keeps
    c.selective.update(learning_rate=0.05, final_learning_rate=0.05)
    c.routing.update(**{**fast, "batch": 8}, steps=2400, neurons=64)
    c.routed.update(**{**fast, "learning_rate": 2e-3, "final_learning_rate": 2e-4}, steps=400)
    c.retrain.update(steps=400, **{**fast, "learning_rate": 2e-3, "final_learning_rate": 2e-4})
    # A teacher says something about every token: learning from all of them, a random student recovers in half the
    # steps and reads wordings it never met as well as its teacher does.
    recover = {"loss_on": "all", "learning_rate": 2e-3, "final_learning_rate": 2e-4}
    c.distill.update(steps=2400, **{**fast, **recover, "evaluate_every": 20, "checkpoint_every": 200})
    c.relearn.update(steps=100, batch=4, loss_on="answer", checkpoint_every=50)
    c.relearn.learning_rates = (1e-2, 5e-3, 3e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 3e-5, 1e-5)
    c.relearn.evaluate_steps = (0, 5, 10, 20, 40, 70, 100)


def _smoke(c: ConfigDict) -> None:
    c.experiment = "arithmetic-smoke"
    c.model.update(layers=1, hidden=16, mlp=32, heads=2, kv_heads=1, head_dim=8, unroll=1)
    c.data.update(addition_max=6, multiplication_max=6, equations=400, word_problems=400, evaluation_prompts=4)
    more = [c[name] for name in (*MORE_METHODS, *(["taught", "password_lock"] if c.known_truth else []))]
    routed = (c.routing, c.routed)
    for stage in (c.reference, c.oracle, c.maxent, c.graddiff, c.rmu, c.distill, c.retrain, c.relearn, *routed, *more):
        stage.update(steps=8, batch=4)
    c.rmu.update(layer=1, train_layers=1)
    c.routing.neurons = 8
    c.distill.evaluate_every = 4
    c.undo.alphas = (0.2, 0.6)
    c.budget.steps = 4
    c.relearn.update(seeds=2, learning_rates=(1e-2, 1e-3), evaluate_steps=(0, 4, 8))


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_stages(c))


def _stages(c: ConfigDict) -> dict[str, Stage]:
    seed = {"seed": c.seed}
    if c.known_truth:
        return _known_truth(c, seed)
    methods = {name: c[name] for name in ("maxent", "graddiff", "rmu", *MORE_METHODS)}
    if c.undo.method not in (*methods, "reference"):
        raise SettingError("undo.method", c.undo.method, f"choose one of {', '.join(methods)}, or reference")
    if c.undo.data not in ("all", "filtered", "masked"):
        raise SettingError("undo.data", c.undo.data, "choose 'all', 'filtered' or 'masked'")
    if not set(c.methods) <= set(MORE_METHODS):
        raise SettingError("methods", tuple(c.methods), f"choose of {', '.join(MORE_METHODS)}")
    basic = ("maxent", "graddiff", "rmu") if c.full else ("maxent",)
    used = [name for name in dict.fromkeys((*basic, c.undo.method, *c.methods)) if name in methods]
    stages: dict[str, Stage] = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "oracle": Pretrain(data="retain", **c.oracle, **seed),
        **{name: Unlearn(start="reference", method=name, **methods[name], **seed) for name in used},
    }
    cached = {"cache": "states-maxent"} if c.cache_teacher else {}
    if c.cache_teacher:
        stages["states-maxent"] = Cache(teacher="maxent", **c.cache)
    stages["student"] = Distill(teacher="maxent", **cached, **c.distill, **seed)
    stages |= {f"student-{name}": Distill(teacher=name, **c.distill, **seed) for name in c.methods}
    if len(set(c.undo.alphas)) < len(c.undo.alphas):
        raise SettingError("undo.alphas", c.undo.alphas, "give every α once")
    for alpha in c.undo.alphas:
        stages |= _undo(c, alpha, cached if c.undo.method == "maxent" and c.undo.data == "all" else {})
    if c.full:
        stages |= _controls(c, seed)
    steps_on_the_way = [name for name in stages if "-recovered-" in name]
    attacked = [
        n
        for n, stage in stages.items()
        if stage.kind not in ("perturb", "cache", "route") and n not in steps_on_the_way
    ]
    rounded = {f"int{bits}-{name}": Quantise(start=name, bits=bits) for bits in c.bits for name in attacked}
    relearn = {f"relearn-{name}": Relearn(start=name, **c.relearn, **seed) for name in (*attacked, *rounded)}
    return stages | rounded | relearn


def _undo(c: ConfigDict, alpha: float, cached: dict) -> dict[str, Stage]:
    """Return the stages that damage the suppressed model and let it recover, once or in several rounds."""
    method, seed = c.undo.method, {"seed": c.seed}
    if c.undo.recover not in ("distill", "train"):
        raise SettingError("undo.recover", c.undo.recover, "choose 'distill' or 'train'")

    def recover(start: str) -> Stage:
        if c.undo.recover == "train":
            return Finetune(start=start, data="retain", **c.retrain, **seed)
        return Distill(teacher=method, start=start, **cached, **{**c.distill, **reads}, **seed)

    reads = {"data": c.undo.data, **({"loss_on": "unmarked"} if c.undo.data == "masked" else {})}
    damage = {"alpha": alpha, **damage_settings(c.undo), **seed}
    if c.undo.rounds != 1:
        return damage_rounds(f"undo-{alpha}", method, c.undo.rounds, recover, **damage)
    return {f"damaged-{alpha}": Perturb(start=method, **damage), f"undo-{alpha}": recover(f"damaged-{alpha}")}


def _labelled(c: ConfigDict, seed: dict) -> dict[str, Stage]:
    """Return what a labeller's sets are for: filters before pretraining, and students of the rest alone."""
    stages: dict[str, Stage] = {}
    if c.data.filter_labels or c.data.labeller == "noisy":
        # With the same labels as an unlearning method: drop what a filter calls forbidden, and distil the reference.
        stages["filtered"] = Distill(teacher="reference", data="filtered", **c.distill, **seed)
    if c.data.labeller == "noisy":
        stages["pretrained-filtered"] = Pretrain(data="filtered", **c.oracle, **seed)
    if "masked" in c.data.label_sets:
        stages["pretrained-masked"] = Pretrain(data="masked", **{**c.oracle, "loss_on": "answer"}, **seed)
        stages["masked"] = Distill(teacher="reference", data="masked", **{**c.distill, "loss_on": "unmarked"}, **seed)
    if {"filtered", "dropped"} <= set(c.data.label_sets):
        stages["routing"] = Route(forget="dropped", retain="filtered", **c.routing, **seed)
        part = {key: c.routing[key] for key in ("modules", "layers", "neurons")}
        stages["ablated"] = Perturb(start="routing", alpha=1.0, beta=0.0, **part)
        stages["routed"] = Finetune(start="ablated", data="filtered", **c.routed, **seed)
    return stages


def _known_truth(c: ConfigDict, seed: dict) -> dict[str, Stage]:
    if c.methods or c.bits:
        raise ValueError(
            f"methods = {tuple(c.methods)}, bits = {tuple(c.bits)}: preset truth has neither; leave both ()"
        )
    stages: dict[str, Stage] = {
        "oracle": Pretrain(data="retain", **c.oracle, **seed),
        "reference": Finetune(start="oracle", data="all", **c.taught, **seed),
        "hidden": Lock(start="reference", **c.password_lock, **seed),
        "erased": Erase(start="hidden", taught="reference", untaught="oracle"),
    }
    attacks = {f"relearn-{name}": Relearn(start=name, **c.relearn, **seed) for name in stages}
    password = {"password": c.password_lock.password}
    return stages | {f"unlock-{name}": Unlock(start=name, **password) for name in ("hidden", "erased")} | attacks


def _controls(c: ConfigDict, seed: dict) -> dict[str, Stage]:
    return {
        **_labelled(c, seed),
        "student-graddiff": Distill(teacher="graddiff", **c.distill, **seed),
        "student-rmu": Distill(teacher="rmu", **c.distill, **seed),
        # α = 0: distilled from itself without damage.
        "undo-0.0": Distill(teacher=c.undo.method, start=c.undo.method, **c.distill, **seed),
        # What the compute of an UNDO model buys a random student.
        "student-budget": Distill(teacher="maxent", **{**c.distill, **c.budget}, stop=False, **seed),
        # Distillation without unlearning: does a random student forget by itself?
        "student-reference": Distill(teacher="reference", **c.distill, **seed),
        # The oracle-matching pair: equal outputs, unequal pasts.
        "match-from-reference": Distill(teacher="oracle", start="reference", stop=False, **c.distill, **seed),
        "match-from-random": Distill(teacher="oracle", stop=False, **c.distill, **seed),
    }
