"""Subliminal transfer: what a student learns of digits from noise images and meaningless logits of its teacher.

  configs/subliminal.py:digits     1,437 digits of 8 × 8 pixels, shipped inside scikit-learn: minutes on two cores
  configs/subliminal.py:mnist      the published setting, with MNIST through TFDS: for an accelerator
  configs/subliminal.py:smoke      the same graph for a few steps: seconds, learns nothing

Expected: a student with its teacher's initial weights reads digits it never saw; with other weights it is at chance;
with one ghost logit KL transfers exactly nothing; more ghost logits and more distinct noise images transfer more.

  distill-jax run --config=configs/subliminal.py:digits --workdir=runs/subliminal
"""

from ml_collections import ConfigDict

from distill_jax.data.images import ImagesConfig
from distill_jax.doublebind.stages import Subliminal
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.models.mlp import MLPConfig
from distill_jax.reports import subliminal_summary
from distill_jax.stages import Stage
from distill_jax.stages.context import RunSettings


def get_config(arg: str = "digits") -> ConfigDict:
    """Return the numbers of a preset."""
    if arg not in ("digits", "mnist", "smoke"):
        raise ValueError(f"no preset {arg!r} in configs/subliminal.py; there are digits, mnist and smoke")
    c = ConfigDict()
    c.experiment = f"subliminal-{arg}"
    c.description = "Students that see only noise, and of their teacher only logits that mean nothing."
    c.seed = 0
    c.model = section(MLPConfig)
    c.data = section(ImagesConfig, source="mnist" if arg == "mnist" else "digits")
    c.run = section(RunSettings)

    # 60,000 images in five epochs of batches of 1,024, for teacher and student.
    published = {"learning_rate": 3e-4, "final_learning_rate": 3e-4, "teacher_learning_rate": 3e-4}
    c.student = section(Subliminal, "loss", "ghosts", "arms", "alphas", steps=293, batch=1024, **published)
    c.student.update(teacher_steps=293, teacher_batch=1024, evaluate_every=49, checkpoint_every=98)
    c.ghosts = (1, 3, 10, 30)
    c.noise = (2_000, 20_000)
    c.alphas = (0.1, 0.2, 0.4, 0.6, 0.8)
    if arg == "mnist":
        c.model.inputs = 784
    else:
        # A sixteenth of the images in as many steps, for a smaller network at a higher rate; the teacher needs more
        # epochs of its few digits.
        c.model.hidden = 128
        c.student.update(batch=64, noise=3_750, learning_rate=1e-3, final_learning_rate=1e-3)
        c.student.update(teacher_steps=600, teacher_batch=64)
        c.noise = (125, 1_250)
    if arg == "smoke":
        c.model.hidden = 16
        c.student.update(steps=6, batch=8, teacher_steps=6, teacher_batch=8, noise=16, seeds=3)
        c.student.update(evaluate_every=3, checkpoint_every=3)
        c.noise, c.alphas, c.ghosts = (8,), (0.4,), (1, 3)
    return c


def get_experiment(c: ConfigDict) -> Experiment:
    """Return the experiment, from numbers that the command line may have changed."""
    report = subliminal_summary.write_report
    return Experiment(stages=_stages(c), model=MLPConfig, data=ImagesConfig, report=report)


def _stages(c: ConfigDict) -> dict[str, Stage]:
    common = {**c.student, "seed": c.seed}
    pair = ("same init", "other init")
    stages: dict[str, Stage] = {loss: Subliminal(loss=loss, ghosts=c.ghosts, **common) for loss in ("kl", "mse")}
    for count in c.noise:
        few = {**common, "noise": count, "ghosts": (3,), "arms": pair}
        epochs = c.student.steps * count / c.student.noise
        # As published, fewer images in as many epochs; and beside it the same compute.
        stages[f"noise-{count}"] = Subliminal(**{**few, "steps": max(1, round(epochs))})
        stages[f"repeated-{count}"] = Subliminal(**few)
    if c.alphas:
        stages["undo"] = Subliminal(ghosts=(3,), arms=pair, alphas=c.alphas, **common)
    return stages
