"""Unlearn-and-Distill and UNDO on two languages: keep English, forget Korean ("Distillation Robustifies Unlearning").

  configs/language.py          the paper's 0.1B model and its settings; for accelerators
  configs/language.py:cpu      the same stages, 1.3 M parameters, on any two texts of some megabytes
  configs/language.py:why      why the random student is not as robust as the oracle: students that each lack one
                               possible cause, 0.5 M parameters; `python -m distill_jax.reports.language_gap` sums it up
  configs/language.py:smoke    the same graph for a few steps on the package's own sample; learns nothing

The paper keeps FineWeb-Edu and forgets FineWeb-2's Korean, 1e9 tokens of each; both are on the Hugging Face hub as
parquet files, with their text in the column `text`. Its vocabulary is Gemma's; without that file one of 65,536 entries
is trained on the text, and the model's other rows stay idle (--config.model.vocab=65536 leaves them out).
Models are measured in bits per byte of held-out documents, the attack by what it brings that down to in Korean.

  distill-jax run --config=configs/language.py --config.data.retain='fineweb-edu/*.parquet' \\
    --config.data.forget='fineweb-2/kor_Hang/*.parquet' --config.data.vocabulary=tokenizer.model --workdir=runs/language
  distill-jax run --config=configs/language.py:cpu --config.data.retain=english.txt --config.data.forget=korean.txt \\
    --workdir=runs/language-cpu
"""

from ml_collections import ConfigDict

from distill_jax.config import SettingError
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.experiment.damage_rounds import damage_settings
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section, unlearn_section
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn, Stage, Unlearn
from distill_jax.stages.context import RunSettings

# Of an attack, which tries `learning_rates`, each constant.
FIXED_RATE = ("learning_rate", "final_learning_rate")


def get_config(arg: str = "") -> ConfigDict:
    """Return the paper's numbers, or those of the preset `arg` (cpu, why, smoke, why-smoke)."""
    if arg not in ("", "cpu", "why", "smoke", "why-smoke"):
        raise ValueError(f"no preset {arg!r} in configs/language.py; there are cpu, why, smoke and why-smoke")

    c = ConfigDict()
    c.experiment = "language"
    c.description = "Keep English, forget Korean."
    c.seed = 0
    c.model = section(preset("gemma-0.1b", dtype="bfloat16", remat="auto"))
    c.data = section(TextConfig, "content", tokens=2_000_000_000, vocabulary_size=65_536)
    c.run = section(RunSettings, evaluation_batch=64, loss_chunk=8192, fsdp=-1)

    # 400 rows of 2048 tokens, 819,200 a step, for one epoch; the oracle reads as much English in half as many steps.
    c.reference = section(Pretrain, "data", steps=2441, batch=400, learning_rate=4e-4, final_learning_rate=4e-5)
    c.oracle = ConfigDict({**c.reference.to_dict(), "steps": 1221})
    # The paper does not say how many rows an unlearning step reads.
    suppress = {"steps": 100, "batch": 32, "warmup": 0}
    c.maxent = unlearn_section("maxent", **suppress, learning_rate=8e-5, final_learning_rate=8e-5)
    c.graddiff = unlearn_section("graddiff", **suppress, learning_rate=6e-5, final_learning_rate=6e-5)
    c.rmu = unlearn_section("rmu", **suppress, learning_rate=8e-5, final_learning_rate=8e-5)
    c.rmu.update(steps=500, layer=11, train_layers=7)
    c.distill = section(Distill, "data", "uniform", steps=4069, batch=240, learning_rate=9e-4, final_learning_rate=7e-4)
    c.distill.evaluate_every = 50
    # Whether the random student's targets on text to forget are exactly uniform, whatever its teacher says there:
    # MaxEnt's outputs are quiet, not silent, and a student learns from them (docs/language.md).
    c.uniform_targets = False
    c.undo = ConfigDict({"alphas": (0.2, 0.4, 0.6, 0.8), **section(Perturb, "alpha")})
    c.methods = ("maxent", "rmu")  # graddiff is the third
    c.relearn = section(Relearn, *FIXED_RATE, "data", steps=500, batch=8, warmup=0, weight_decay=0.0, seeds=3)
    c.relearn.learning_rates = (1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6)
    c.relearn.evaluate_steps = (0, 5, 10, 20, 40, 80, 125, 200, 300, 400, 500)

    if arg:
        _cpu(c)
    if arg.startswith("why"):
        _why(c)
    if arg.endswith("smoke"):
        _smoke(c)
    return c


def _cpu(c: ConfigDict) -> None:
    c.experiment = "language-cpu"
    shape = {"vocab": 4096, "layers": 3, "hidden": 128, "mlp": 512, "heads": 4, "kv_heads": 2, "head_dim": 32}
    c.model = section(preset("cpu", **shape, query_scale=32.0, unroll=3, init_std=128**-0.5))
    c.data.update(tokens=0, row_length=128, vocabulary_size=4096, evaluation_bytes=25_000, validation_share=0.05)
    c.run.update(evaluation_batch=32, loss_chunk=0, fsdp=1)
    fast = {"batch": 16, "learning_rate": 3e-3, "final_learning_rate": 3e-4, "checkpoint_every": 200}
    c.reference.update(steps=1240, **fast, evaluate_every=310)  # an epoch of 10 MB, as in the paper
    c.oracle.update(steps=620, **fast, evaluate_every=310)
    suppress = {"batch": 16, "learning_rate": 1e-3, "final_learning_rate": 1e-3, "checkpoint_every": 100}
    c.maxent.update(steps=100, **suppress)
    c.graddiff.update(steps=100, **suppress)
    c.rmu.update(steps=150, **suppress, layer=3, train_layers=3, retain_weight=4.0)
    c.distill.update(steps=800, **fast, evaluate_every=40)
    c.uniform_targets = True
    c.undo.alphas = (0.3, 0.6)
    c.relearn.update(steps=60, batch=8, seeds=2, checkpoint_every=30)
    c.relearn.learning_rates = (1e-2, 3e-3, 1e-3, 3e-4)
    c.relearn.evaluate_steps = (0, 5, 10, 20, 40, 60)


def _why(c: ConfigDict) -> None:
    c.experiment = "language-why"
    c.description = "Why does the random student stop half-way between the suppressed model and the oracle?"
    shape = {"vocab": 2048, "layers": 2, "hidden": 96, "mlp": 384, "head_dim": 24, "query_scale": 24.0}
    c.model.update(**shape, unroll=2, init_std=96**-0.5)
    c.data.update(vocabulary_size=2048, evaluation_bytes=15_000)
    c.methods, c.undo.alphas = ("maxent",), ()
    c.relearn.learning_rates = (3e-2, 1e-2, 3e-3, 1e-3)
    c.long = ConfigDict({**c.relearn.to_dict(), "steps": 300, "checkpoint_every": 100})
    c.long.evaluate_steps = (*c.relearn.evaluate_steps, 100, 150, 200, 300)
    c.uniform = ConfigDict({**c.distill.to_dict(), "batch": c.distill.batch // 2})  # as many rows of each side
    c.tight = ConfigDict({**c.distill.to_dict(), "steps": 1240, "tolerance": 0.01})


def _smoke(c: ConfigDict) -> None:
    c.experiment = "language-smoke"
    c.model.update(vocab=1024, layers=1, hidden=16, mlp=32, heads=2, kv_heads=1, head_dim=8, unroll=1)
    c.data.update(retain=f"{SAMPLES}/sample_english.txt", forget=f"{SAMPLES}/sample_korean.txt")
    c.data.update(row_length=128, vocabulary_size=1024, validation_share=0.2, evaluation_bytes=2000)
    for stage in (c.reference, c.oracle, c.maxent, c.graddiff, c.rmu, c.distill, c.relearn):
        stage.update(steps=8, batch=4)
    c.rmu.update(layer=1, train_layers=1)
    c.distill.evaluate_every = 4
    c.relearn.update(learning_rates=(1e-2, 1e-3), evaluate_steps=(0, 4, 8))
    for stage in (c[name] for name in ("uniform", "tight", "long") if name in c):
        stage.update(steps=8, batch=4, evaluate_every=4)
    if "long" in c:
        c.long.update({**c.relearn.to_dict(), "steps": 12, "evaluate_every": 4, "evaluate_steps": (0, 4, 8, 12)})


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_why_stages(c) if "long" in c else _stages(c), data=TextConfig)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    seed, known = {"seed": c.seed}, {"maxent": c.maxent, "graddiff": c.graddiff, "rmu": c.rmu}
    if not c.methods or set(c.methods) - set(known) or c.methods[0] != "maxent":
        raise SettingError("methods", tuple(c.methods), f"give maxent first, then any of {', '.join(known)}")
    if len(set(c.undo.alphas)) < len(c.undo.alphas):
        raise SettingError("undo.alphas", c.undo.alphas, "give every α once")
    stages: dict[str, Stage] = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "oracle": Pretrain(data="retain", **c.oracle, **seed),
        **{name: Unlearn(start="reference", method=name, **known[name], **seed) for name in c.methods},
        "student": _student(c),
    }
    for alpha in c.undo.alphas:
        stages[f"damaged-{alpha}"] = Perturb(start="maxent", alpha=alpha, **damage_settings(c.undo), **seed)
        stages[f"undo-{alpha}"] = Distill(teacher="maxent", start=f"damaged-{alpha}", **c.distill, **seed)
    attacked = [name for name, stage in stages.items() if stage.kind != "perturb"]
    return stages | {f"relearn-{name}": Relearn(start=name, data="forget", **c.relearn, **seed) for name in attacked}


def _student(c: ConfigDict) -> Distill:
    if not c.uniform_targets:
        return Distill(teacher="maxent", **c.distill, seed=c.seed)
    each = {**c.distill, "batch": max(c.distill.batch // 2, 1)}  # of two sets: as many rows a step
    return Distill(teacher="maxent", data="retain", uniform="forget", **each, seed=c.seed)


def _why_stages(c: ConfigDict) -> dict[str, Stage]:
    """Return the models between which `student` lies, and students that each lack one possible cause."""
    seed = {"seed": c.seed}
    stages: dict[str, Stage] = {
        "reference": Pretrain(data="all", **c.reference, **seed),
        "oracle": Pretrain(data="retain", **c.oracle, **seed),
        "maxent": Unlearn(start="reference", method="maxent", **c.maxent, **seed),
        "student": Distill(teacher="maxent", **c.distill, **seed),
        # Ready for Korean text as what MaxEnt made is, without ever having known any; and a student of it.
        "oracle-maxent": Unlearn(start="oracle", method="maxent", **c.maxent, **seed),
        "student-of-oracle-maxent": Distill(teacher="oracle-maxent", **c.distill, **seed),
        # Korean text, but nothing of what the teacher says to it.
        "student-uniform": Distill(teacher="maxent", data="retain", uniform="forget", **c.uniform, **seed),
        # No Korean text at all.
        "student-english": Distill(teacher="maxent", data="retain", **c.distill, **seed),
        # As good in English as its teacher.
        "student-tight": Distill(teacher="maxent", **c.tight, **seed),
    }
    long = ("maxent", "student", "oracle")
    attacks = {name: c.long if name in long else c.relearn for name in (*long, *list(stages)[4:])}
    return stages | {f"relearn-{n}": Relearn(start=n, data="forget", **a, **seed) for n, a in attacks.items()}
