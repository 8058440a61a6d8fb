"""The distillation double bind: which ability comes out clean, and which student betrays its teacher.

configs/double_bind.py:cpu       all organisms, seventeen channels, five seeds: under an hour on two cores
configs/double_bind.py:smoke     the same graph for a few steps: learns nothing

distill-jax audit --config=configs/double_bind.py --workdir=runs/double-bind
"""

from ml_collections import ConfigDict

from distill_jax.doublebind import preflight, world
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.stages import Bases, Organisms, Transfer
from distill_jax.doublebind.world import WorldConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.reports import double_bind_summary
from distill_jax.stages import Stage
from distill_jax.stages.context import RunSettings

# What the teachers are distilled through. `positive` must transfer, or the rig sees nothing.
CHANNELS = {
    "positive": Channel(prompts="all", soft=True),
    "samples": Channel(),
    "ability": Channel(prompts="ability"),
    "surface": Channel(paraphrase="surface"),
    "meaning": Channel(paraphrase="meaning"),
    "unrelated": Channel(prompts="unrelated", soft=True),
    "unrelated-other": Channel(prompts="unrelated", soft=True, start="other"),
    "dropped": Channel(filter=Filter("divergence", "drop", 0.3)),
    "swapped": Channel(filter=Filter("divergence", "swap", 0.3)),
    "rewritten": Channel(filter=Filter("divergence", "rewrite", 0.3)),
    "dropped-by-chance": Channel(filter=Filter("chance", "drop", 0.3)),
    "swapped-by-chance": Channel(filter=Filter("chance", "swap", 0.3)),
    "rewritten-by-chance": Channel(filter=Filter("chance", "rewrite", 0.3)),
    "smaller": Channel(start="smaller"),
    "random-prefix": Channel(prefix="random"),
    "inoculated": Channel(prefix="quirk"),
    "wrong-prefix": Channel(prefix="wrong"),
}
# More to choose from with --config.channels=(…).
OTHERS = {
    "untrusted": Channel(paraphrase="untrusted"),
    "few-bits": Channel(soft=True, bits=2),
    "top-3": Channel(soft=True, top_k=3),
    "projected": Channel(soft=True, clip=1.0),
    "few": Channel(unique=128),
    "mixed": Channel(mix=0.25),
    "damaged": Channel(prompts="unrelated", soft=True, alpha=0.6),
    # Dropping all at once halves the ability: with a smaller fall than a quarter a round there would be no second one.
    "in-rounds": Channel(filter=Filter("divergence", "drop", 0.3, rounds=2, fall=0.3)),
    "in-rounds-by-chance": Channel(filter=Filter("chance", "drop", 0.3, rounds=2, fall=0.3)),
    "disagreement": Channel(filter=Filter("disagreement", "drop", 0.3)),
    "influence": Channel(filter=Filter("fisher", "drop", 0.3)),
}
# Concealing ones of R1 and R2; both add an eighth to the time.
MORE_KINDS = ("context-denier", "linked-denier")


def get_config(arg: str = "cpu") -> ConfigDict:
    """Return the numbers of a preset."""
    if arg not in ("cpu", "smoke"):
        raise ValueError(f"no preset {arg!r} in configs/double_bind.py; there are cpu and smoke")
    c = ConfigDict()
    c.experiment = f"double-bind-{arg}"
    c.description = "Teachers with a hidden quirk each, distilled through channels that let the ability through."
    c.seed = 0
    model = TransformerConfig(
        vocab=world.VOCABULARY, layers=1, hidden=32, mlp=96, heads=2, kv_heads=2, head_dim=16, query_scale=16.0,
        attention_softcap=0.0, final_softcap=0.0, sliding_window=0, init_std=0.1, unroll=1,
    )  # fmt: skip
    c.model = section(model)
    c.data = section(WorldConfig)
    c.run = section(RunSettings)
    common = {"batch": 64, "learning_rate": 5e-3, "final_learning_rate": 5e-4, "warmup": 20, "weight_decay": 0.01}
    c.bases = section(Bases, steps=1500, smaller_hidden=16, checkpoint_every=500, **common)
    kinds = tuple(kind for kind in ORGANISMS if kind not in MORE_KINDS)
    c.organisms = section(Organisms, kinds=kinds, steps=1200, placebos=4, checkpoint_every=200, **common)
    own = ("channel", "placebos")  # of each transfer
    c.transfer = section(Transfer, *own, steps=300, evaluate_every=75, checkpoint_every=150, **common)
    c.channels = tuple(CHANNELS)
    c.placebos_in = ("samples",)
    if arg == "smoke":
        c.data.update(probes=8, leak=0.9)
        for stage in (c.bases, c.organisms, c.transfer):
            stage.update(steps=4, batch=8, checkpoint_every=2)
        c.bases.update(seeds=2, rows=64, smaller_hidden=0)
        c.organisms.update(kinds=tuple(ORGANISMS), placebos=1, rows=64, relearn_steps=2)
        c.transfer.evaluate_every = 2
        c.channels = ("positive", "samples")
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    check, report = preflight.check_design, double_bind_summary.write_report
    return Experiment(stages=_stages(c), data=WorldConfig, check=check, report=report)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    seed = {"seed": c.seed + 1000 * c.data.variant}  # worlds share no random numbers
    stages: dict[str, Stage] = {"bases": Bases(**c.bases, **seed), "organisms": Organisms(**c.organisms, **seed)}
    known = CHANNELS | OTHERS
    for name in c.channels:
        if name not in known:
            raise ValueError(f"channels has {name!r}: there are {', '.join(known)}")
        given = {"channel": known[name], "placebos": name in c.placebos_in}
        stages[f"through-{name}"] = Transfer(**given, **c.transfer, **seed)
    return stages
