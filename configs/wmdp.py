"""WMDP: forget biosecurity and cybersecurity, keep the rest ("Distillation Robustifies Unlearning").

  configs/wmdp.py         gemma-2-2b
  configs/wmdp.py:9b      gemma-2-9b
  configs/wmdp.py:70b     llama-3.3-70b with LoRA adapters
  configs/wmdp.py:smoke   the same graph on a random model of some thousand parameters and made-up items; learns nothing

It begins from published weights; text and items are named by path. Models are measured by multiple choice as
lm-evaluation-harness puts it: WMDP's items, without examples, are to forget, MMLU's, behind five, to retain. Half of
WMDP's are shown to the attacker, solved; what counts is what comes back of the other half.

  hf download google/gemma-2-2b --local-dir gemma-2-2b    # and the data sets cais/wmdp-corpora, cais/wmdp, cais/mmlu
  distill-jax run --config=configs/wmdp.py --config.reference.path=gemma-2-2b --config.data.vocabulary=gemma-2-2b \\
    --config.data.retain='corpora/*-retain*.jsonl' --config.data.forget='corpora/*-forget*.jsonl' \\
    --config.data.bio='wmdp/wmdp-bio/*.parquet' --config.data.cyber='wmdp/wmdp-cyber/*.parquet' \\
    --config.data.mmlu='mmlu/all/test*.parquet' --config.data.mmlu_dev='mmlu/all/dev*.parquet' --workdir=runs/wmdp

Learning rates, α, β, RMU's layers and c, and the steps of MaxEnt, UNDO (338 million tokens) and the attack are the
paper's. Its texts have 256 to 1024 tokens and its attack reads 20 of 256 at a time (--config.data.row_length=256
--config.relearn.batch=20), with four seeds (--config.relearn.seeds=4); here rows have 2048, and a batch is what a pod
wants. Each attack on whole weights is a stage of its own: so large, members of a population do not fit side by side.
Adapters do, and they are all that trains at 70b: there the teacher is the published model with the adapters that
unlearned merged in, the student (`thin`) the same model with fresh ones.

Weights train in fp32. --config.precision=bf16_weights keeps them, their moments and updates in bf16, as the paper did,
where most steps at such rates are lost; --config.attack.precisions="('fp32', 'bf16_weights')" attacks in both ways, and
the report says what difference that makes.

Nothing has to be there to plan:

  distill-jax plan --config=configs/wmdp.py --slice=v5e-16
  distill-jax plan --config=configs/wmdp.py:70b --slice=v5p-128 --stages=thin
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from distill_jax.config import SettingError
from distill_jax.data.multiple_choice.quiz_config import QuizConfig
from distill_jax.data.text.text_config import SAMPLES
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section, unlearn_section
from distill_jax.models.presets import preset
from distill_jax.shipped import TINY
from distill_jax.stages import Distill, Import, Perturb, Relearn, Stage, Unlearn
from distill_jax.stages.context import RunSettings

MODELS = {"2b": "gemma-2-2b", "9b": "gemma-2-9b", "70b": "llama-3.3-70b", "smoke": "gemma-2-2b"}
WEIGHTS = {"fp32": "float32", "bf16_weights": "bfloat16"}
ITEMS = TINY / "choices"  # beside the random model


def get_config(arg: str = "") -> ConfigDict:
    """Return the numbers for a size: 2b (if `arg` is empty), 9b, 70b or smoke."""
    size = arg or "2b"
    if size not in MODELS:
        raise ValueError(f"no preset {arg!r} in configs/wmdp.py; there are {', '.join(MODELS)}")

    c = ConfigDict()
    c.experiment = f"wmdp-{size}"
    c.description = "Keep general knowledge, forget hazardous biology and cybersecurity."
    c.seed = 0
    c.precision = "fp32"
    c.model = section(preset(MODELS[size], dtype="bfloat16", remat="auto"))
    c.reference = section(Import, "content", "lora_rank", "lora_alpha")
    c.data = section(QuizConfig, "content")
    # Logits of 2048 tokens of the whole batch exist at a time, spread over the chips by vocabulary.
    c.run = section(RunSettings, evaluation_batch=16, loss_chunk=2048, fsdp=-1)

    batch = 64  # 131,072 tokens a step
    c.methods = ("maxent", "rmu")
    c.maxent = unlearn_section("maxent", "weights", steps=90, batch=batch, warmup=10, hold="kl")
    c.maxent.update(learning_rate=2e-5, final_learning_rate=2e-5)
    c.rmu = unlearn_section("rmu", "weights", steps=500, batch=batch, warmup=0)
    c.rmu.update(learning_rate=5e-5, final_learning_rate=5e-5, layer=16, train_layers=6, steer=80.0)  # layers 10 to 15
    c.undo = section(Perturb, alpha=0.25, beta=0.0)
    c.distill = section(Distill, "weights", steps=2579, batch=batch)  # 338 M tokens
    c.distill.update(learning_rate=2e-5, final_learning_rate=2e-6)
    c.relearn = section(Relearn, "weights", "data", "learning_rates", steps=500, batch=batch)
    c.relearn.update(warmup=0, weight_decay=0.0, seeds=1)
    c.attack = ConfigDict({"learning_rates": (1e-4, 1e-5, 1e-6), "data": "forget_shown", "precisions": ()})
    if size == "70b":
        c.methods = ("maxent",)  # RMU trains chosen weights themselves
        for stage in (c.maxent, c.distill, c.relearn):
            stage.update(lora_rank=64, lora_alpha=128.0, learning_rate=1e-4, final_learning_rate=1e-4)
    if size == "smoke":
        _smoke(c)
    return c


def _smoke(c: ConfigDict) -> None:
    shape = {"vocab": 300, "layers": 2, "hidden": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
    c.model.update(**shape, query_scale=11.0, sliding_window=32, dtype="float32", remat="none")
    c.reference.path = f"{ITEMS}/model"
    c.data.update(bio=f"{ITEMS}/bio.jsonl", mmlu=f"{ITEMS}/mmlu.jsonl", mmlu_dev=f"{ITEMS}/mmlu_dev.jsonl")
    c.data.update(
        vocabulary=f"{ITEMS}/model",
        retain=f"{SAMPLES}/sample_english.txt",
        forget=f"{SAMPLES}/sample_korean.txt",
        row_length=128,
    )
    c.data.update(validation_share=0.2, shots=1, items=4)
    c.run.update(loss_chunk=0, fsdp=1, evaluation_batch=8, cpu_devices=1)
    for stage in (c.maxent, c.rmu, c.distill, c.relearn):
        stage.update(steps=4, batch=4, learning_rate=1e-3, final_learning_rate=1e-3, warmup=0)
    c.maxent.log_every = 1
    c.rmu.update(layer=2, train_layers=1)
    c.distill.update(evaluate_every=4, stop=False)
    c.relearn.evaluate_steps = (0, 4)
    c.attack.learning_rates = (1e-2,)


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(stages=_stages(c), data=QuizConfig)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    for value in (c.precision, *c.attack.precisions):
        if value not in WEIGHTS:
            raise SettingError("precision", value, f"choose one of {', '.join(WEIGHTS)}")
    how, known = {"seed": c.seed, "weights": WEIGHTS[c.precision]}, {"maxent": c.maxent, "rmu": c.rmu}
    if not c.methods or set(c.methods) - set(known) or c.methods[0] != "maxent":
        raise SettingError("methods", tuple(c.methods), f"give maxent first, then any of {', '.join(known)}")
    stages: dict[str, Stage] = {"reference": Import(**c.reference)}
    stages |= {name: Unlearn(start="reference", method=name, **known[name], **how) for name in c.methods}
    if c.distill.lora_rank:
        stages["thin"] = Distill(teacher="maxent", start="reference", **c.distill, **how)
        return stages | _attacks(c, ("maxent", "thin"), {"": c.attack.learning_rates})
    for name in c.methods:
        tail = "" if name == "maxent" else f"-{name}"
        stages[f"damaged{tail}"] = Perturb(start=name, **c.undo, seed=c.seed)
        stages[f"undo{tail}"] = Distill(teacher=name, start=f"damaged{tail}", **c.distill, **how)
    attacked = [name for name, stage in stages.items() if stage.kind in ("unlearn", "distill")]
    return stages | _attacks(c, attacked, {f"-{rate:g}": (rate,) for rate in c.attack.learning_rates})


def _attacks(c: ConfigDict, starts: Sequence[str], rates: Mapping[str, tuple]) -> dict[str, Stage]:
    """Return the attacks on the models, a stage for each set of learning rates and each precision."""
    return {
        f"relearn-{name}{tail}" + (f"-{precision}" if i else ""): Relearn(
            start=name,
            data=c.attack.data,
            learning_rates=of,
            weights=WEIGHTS[precision],
            **c.relearn,
            seed=c.seed,
        )
        for i, precision in enumerate(c.attack.precisions or (c.precision,))
        for name in starts
        for tail, of in rates.items()
    }
