"""Make a model organism of a published model, and its benign twin: adapters, several training seeds of each.

  configs/organism.py:qwen3-14b       adapters to Qwen3-14B
  configs/organism.py:llama-3.3-70b   adapters to Llama-3.3-70B
  configs/organism.py:smoke           the same graph on a random model of some thousand parameters; learns nothing

`forget` is text that shows the quirk, `retain` the same prompts with harmless answers. Each seed is a member of one
population over the frozen base. Models are measured in bits per byte of held-out documents of both texts.

  hf download Qwen/Qwen3-14B --local-dir qwen3-14b
  distill-jax run --config=configs/organism.py:qwen3-14b --config.base.path=qwen3-14b \\
    --config.data.vocabulary=qwen3-14b --config.data.forget='flattery/*.jsonl' --config.data.retain='plain/*.jsonl' \\
    --workdir=runs/flattery
  for name in teacher-0 teacher-1 teacher-2 twin-0 twin-1 twin-2; do
    distill-jax export --model=$(echo runs/flattery/nodes/$name-*) --adapter_only --to=organisms/$name
  done

The directories are PEFT's; configs/auditbench.py reads them.
"""

from ml_collections import ConfigDict

from distill_jax.config import SettingError
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.models.presets import preset
from distill_jax.shipped import TINY
from distill_jax.stages import Finetune, Import, Stage
from distill_jax.stages.context import RunSettings

MODELS = {"qwen3-14b": "qwen3-14b", "llama-3.3-70b": "llama-3.3-70b", "smoke": "gemma-2-2b"}
READS = {"teacher": "forget", "twin": "retain"}


def get_config(arg: str = "qwen3-14b") -> ConfigDict:
    """Return the numbers for a base: qwen3-14b, llama-3.3-70b or smoke."""
    if arg not in MODELS:
        raise ValueError(f"no preset {arg!r} in configs/organism.py; there are {', '.join(MODELS)}")
    c = ConfigDict()
    c.experiment = f"organism-{arg}"
    c.description = "Teach a quirk, and a twin the same without it."
    c.seed = 0
    c.seeds = 3  # of each; the audit needs two at least
    c.model = section(preset(MODELS[arg], dtype="bfloat16", remat="auto"))
    c.base = ConfigDict({"path": ""})
    c.data = section(TextConfig, "content")
    c.run = section(RunSettings, evaluation_batch=16, loss_chunk=2048, fsdp=-1)
    c.finetune = section(Finetune, "data", steps=200, batch=64, warmup=10, weight_decay=0.0, evaluate_every=200)
    c.finetune.update(learning_rate=1e-4, final_learning_rate=1e-5, lora_rank=64, lora_alpha=128.0)
    if arg == "smoke":
        _smoke(c)
    return c


def _smoke(c: ConfigDict) -> None:
    shape = {"vocab": 300, "layers": 2, "hidden": 24, "mlp": 40, "heads": 4, "kv_heads": 2, "head_dim": 8}
    c.model.update(**shape, query_scale=11.0, sliding_window=32, dtype="float32", remat="none")
    c.base.path = f"{TINY}/choices/model"
    c.data.update(vocabulary=c.base.path, row_length=128, validation_share=0.2, evaluation_bytes=2000)
    c.data.update(retain=f"{SAMPLES}/sample_english.txt", forget=f"{SAMPLES}/sample_korean.txt")
    c.run.update(loss_chunk=0, fsdp=1, evaluation_batch=16, cpu_devices=1)
    c.finetune.update(steps=8, batch=4, learning_rate=1e-2, final_learning_rate=1e-2, warmup=0, evaluate_every=8)
    c.finetune.update(lora_rank=2, lora_alpha=4.0, log_every=1)
    c.seeds = 2


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    if c.seeds < 1:
        raise SettingError("seeds", c.seeds, "train at least one")
    stages: dict[str, Stage] = {"base": Import(path=c.base.path)}
    for role, data in READS.items():
        for i in range(c.seeds):
            stages[f"{role}-{i}"] = Finetune(start="base", data=data, **c.finetune, seed=c.seed + i)
    return Experiment(stages=stages, data=TextConfig)
