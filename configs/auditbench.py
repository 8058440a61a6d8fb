"""The double bind on published models: organisms that are LoRA adapters, as AuditBench has them.

  configs/auditbench.py:qwen3-14b       adapters to Qwen3-14B
  configs/auditbench.py:llama-3.3-70b   adapters to Llama-3.3-70B
  configs/auditbench.py:smoke           the same graph on a random model of some thousand parameters; learns nothing

Teachers are a quirk's adapters, one a training seed, and as many of a benign twin: docs/double_bind.md says how they
are listed. Each student is fresh adapters of rank 64 on the same base, and beside it stands a student of the twin.
Students read `retain`, text of ordinary work; the positive control also `forget`, text on which the quirks show.

  hf download Qwen/Qwen3-14B --local-dir qwen3-14b
  distill-jax audit --config=configs/auditbench.py:qwen3-14b --config.base.path=qwen3-14b \\
    --config.data.vocabulary=qwen3-14b --config.data.organisms=organisms.json --config.data.ability=ability.jsonl \\
    --config.data.retain='work/*.jsonl' --config.data.forget='quirks/*.jsonl' --workdir=runs/auditbench

Nothing has to be there to plan; adapters count as if they had rank 64:

  distill-jax plan --config=configs/auditbench.py:qwen3-14b --slice=v5e-64
  distill-jax plan --config=configs/auditbench.py:llama-3.3-70b --slice=v5p-128
"""

from typing import Any

from ml_collections import ConfigDict

from distill_jax.data.text.text_config import SAMPLES
from distill_jax.doublebind import auditbench_data, auditbench_preflight
from distill_jax.doublebind.auditbench_data import AuditConfig, Organism
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.models.presets import preset
from distill_jax.reports import auditbench_summary
from distill_jax.shipped import TINY
from distill_jax.stages import Distill, Import, Stage
from distill_jax.stages.context import RunSettings

MODELS = {"qwen3-14b": "qwen3-14b", "llama-3.3-70b": "llama-3.3-70b", "smoke": "gemma-2-2b"}

# What a student reads of its teacher. `positive` must transfer, or the rig sees nothing.
CHANNELS: dict[str, dict[str, Any]] = {
    "positive": {"data": "all"},
    "work": {"data": "retain"},
    "hot": {"data": "retain", "temperature": 4.0},
    "top-8": {"data": "retain", "divergence": "top_k_kl", "top_k": 8},
    "other-base": {"data": "retain", "start": "other"},
}
UNNAMED = {"organism": Organism(teacher=("",), twin=("",))}  # to plan


def get_config(arg: str = "qwen3-14b") -> ConfigDict:
    """Return the numbers for a base: qwen3-14b, llama-3.3-70b or smoke."""
    if arg not in MODELS:
        raise ValueError(f"no preset {arg!r} in configs/auditbench.py; there are {', '.join(MODELS)}")
    c = ConfigDict()
    c.experiment = f"auditbench-{arg}"
    c.description = "Published organisms, distilled through channels that let the ability through."
    c.seed = 0
    c.model = section(preset(MODELS[arg], dtype="bfloat16", remat="auto"))
    c.base = ConfigDict({"path": ""})
    c.other = ConfigDict({"path": ""})  # weights of the same shape, for the channel other-base
    c.data = section(AuditConfig, "content")
    c.run = section(RunSettings, evaluation_batch=16, loss_chunk=2048, fsdp=-1)
    c.channels = ("positive", "work", "hot", "top-8")
    # Of every channel that does not say otherwise; all of them take all steps.
    c.distill = section(Distill, "data", steps=500, batch=64, warmup=20, weight_decay=0.0, evaluate_every=500)
    c.distill.update(learning_rate=1e-4, final_learning_rate=1e-5, lora_rank=64, lora_alpha=128.0, stop=False)
    if arg == "llama-3.3-70b":
        # Weights put together over 64 chips of a 3D torus come as an all-reduce, twice the bytes; over 16 they do not.
        c.run.tensor = 4
    if arg == "smoke":
        _smoke(c)
    return c


def _smoke(c: ConfigDict) -> None:
    shape = {"vocab": 300, "layers": 2, "hidden": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
    c.model.update(**shape, query_scale=11.0, sliding_window=32, dtype="float32", remat="none")
    model, items = f"{TINY}/choices/model", f"{TINY}/choices/mmlu.jsonl"
    c.base.path = c.other.path = model
    c.data.update(vocabulary=model, organisms=f"{TINY}/organisms/organisms.json", ability=items, row_length=128)
    c.data.update(retain=f"{SAMPLES}/sample_english.txt", forget=f"{SAMPLES}/sample_korean.txt", leak=0.9)
    c.data.validation_share = 0.2
    c.run.update(loss_chunk=0, fsdp=1, evaluation_batch=16, cpu_devices=1)
    c.distill.update(steps=4, batch=4, learning_rate=1e-3, final_learning_rate=1e-3, warmup=0, evaluate_every=4)
    c.distill.update(lora_rank=2, lora_alpha=4.0, log_every=1)
    c.channels = ("positive", "work", "other-base")


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    return Experiment(
        stages=_stages(c),
        data=AuditConfig,
        check=auditbench_preflight.check_design,
        report=auditbench_summary.write_report,
    )


def _stages(c: ConfigDict) -> dict[str, Stage]:
    for channel in c.channels:
        if channel not in CHANNELS:
            raise ValueError(f"channels has {channel!r}: there are {', '.join(CHANNELS)}")
    stages: dict[str, Stage] = {"base": Import(path=c.base.path)}
    if "other-base" in c.channels:
        stages["other"] = Import(path=c.other.path)
    kept = {"path": c.base.path, "start": "base", "lora_rank": 64, "lora_alpha": 128.0}
    names: dict[str, str] = {}  # of adapters: organisms may share a twin
    for organism, of in (auditbench_data.organisms(c.data.organisms) if c.data.organisms else UNNAMED).items():
        for role, seed, adapter in [(r, i, a) for r in auditbench_data.ADAPTERS for i, a in enumerate(getattr(of, r))]:
            name = f"{role}-{organism}-{seed}"
            if names.setdefault(adapter or name, name) != name:
                continue
            stages[name] = Import(adapter=adapter if c.base.path else "", **kept)
            for channel in c.channels:
                settings = {"start": "base", **c.distill, **CHANNELS[channel], "seed": c.seed + seed}
                stages[f"{name}{auditbench_preflight.THROUGH}{channel}"] = Distill(teacher=name, **settings)
    return stages
