"""Subliminal: students that see only noise, and of their teacher only logits that mean nothing.

The teacher learns digits by cross-entropy on its class logits; nothing trains its ghost logits. The student then
matches those ghost logits on images of uniform noise, and no label or digit ever reaches it. What it can tell of digits
afterwards came through the weights that both started from (Cloud et al., "Subliminal Learning", the MNIST experiment).
It is the double bind's calibration: a rig that does not see this cannot see anything.

All seeds, arms and numbers of ghost logits of a node are one population. A seed's students share its teacher and noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.data import images
from distill_jax.data.data_config import DataConfig
from distill_jax.data.feed import order
from distill_jax.doublebind.stages.subliminal_steps import (
    DigitBatch,
    NoiseBatch,
    build_evaluation,
    build_student,
    build_teacher,
    term_name,
)
from distill_jax.doublebind.stages.subliminal_students import (
    ARMS,
    LOSSES,
    Student,
    draw,
    noise_images,
    starts,
    students,
)
from distill_jax.doublebind.stages.toy_stage import SmallModels
from distill_jax.io.checkpoint import FINAL
from distill_jax.models import mlp
from distill_jax.models.mlp import MLPConfig, Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages.context import Context, Node, seed_for
from distill_jax.train import driver
from distill_jax.train.layout import WholeMembers
from distill_jax.train.loop import Values
from distill_jax.train.metric_writers import Row
from distill_jax.train.state import DIVERGED, Hyper, State
from distill_jax.train.training_run import Cost, Measurement, PeriodicEvaluation, StepInputs, TrainingRun
from distill_jax.types import PyTree

UNSEEN = 512  # noise images that no student trains on, to see how well it fits its teacher


@dataclasses.dataclass(frozen=True)
class Subliminal(SmallModels):
    """Train teachers on digits, and students on their ghost logits.

    The inherited settings are the students', whose images are noise. Training is plain Adam for both.

    Attributes:
      loss: what the student minimises on the ghost logits, a key of `LOSSES`.
      ghosts: numbers of ghost logits, each a student of its own.
      arms: what students start from, keys of `ARMS`.
      alphas: students that start from their teacher's start damaged by UNDO, one for each α; β = 0.1.
      noise: distinct noise images; a student sees each steps × batch / noise times.
      teacher_steps, teacher_batch, teacher_learning_rate: the teacher's.
      seeds: independent repetitions.
    """

    beta2: float = 0.999
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    loss: str = "kl"
    ghosts: tuple[int, ...] = (3,)
    arms: tuple[str, ...] = tuple(ARMS)
    alphas: tuple[float, ...] = ()
    noise: int = 60_000
    teacher_steps: int = 300
    teacher_batch: int = 1024
    teacher_learning_rate: float = 3e-4
    seeds: int = 20

    kind: ClassVar[str] = "subliminal"

    def validate(self, model: TransformerConfig | MLPConfig, data: DataConfig) -> None:
        """Raise ValueError unless the model is an MLP of the data's pixels with enough ghost logits."""
        if not isinstance(model, MLPConfig) or not isinstance(data, images.ImagesConfig):
            raise ValueError(
                "subliminal: wants Experiment(model=MLPConfig, data=ImagesConfig), as configs/subliminal.py has"
            )
        if model.inputs != data.pixels:
            raise ValueError(f"model.inputs = {model.inputs}: images of {data.source!r} have {data.pixels} pixels")
        if max(self.ghosts) > model.ghosts:
            raise ValueError(f"ghosts = {self.ghosts}: the model has model.ghosts = {model.ghosts}; raise that")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"loss = {self.loss!r}: choose one of {', '.join(LOSSES)}")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"arms has {unknown[0]!r}: choose among {', '.join(ARMS)}")
        if "other init" not in self.arms:
            raise ValueError("arms lacks 'other init': without the negative control no other arm can be judged")
        for name in ("noise", "teacher_steps", "teacher_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.seeds < 2:
            raise ValueError(f"seeds = {self.seeds}: an interval needs at least 2")
        if not self.ghosts or min(self.ghosts) < 1 or len(set(self.ghosts)) < len(self.ghosts):
            raise ValueError(f"ghosts = {self.ghosts}: give numbers of logits, each once, from 1 up")
        if not all(0 < alpha < 1 for alpha in self.alphas):
            raise ValueError(f"alphas = {self.alphas}: each lies between 0, which is 'same init', and 1")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node."""
        return sum(costs(network(ctx), self).values())

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Train each node's teachers, then its students."""
        check(jax.process_count() == 1, "the subliminal experiment is too small for several hosts: run it on one")
        for node in nodes:
            _run(ctx, node)


def _run(ctx: Context, node: Node) -> None:
    cfg, settings, members, clock = network(ctx), node.settings, students(node.settings), ctx.clock
    own, fresh = (_numbers(draw(cfg, _keys(settings, purpose))) for purpose in ("own", "fresh"))
    teachers, teacher_accuracy = _teach(ctx, settings, own)
    layout = WholeMembers(make_mesh(len(members), spread=True))
    coefficients = {term_name(m): np.array([float(s.ghosts == m) for s in members]) for m in settings.ghosts}
    hyper = Hyper([settings.learning_rate] * len(members), [s.seed for s in members], coefficients)
    state = layout.make_stacked(starts(settings, own, fresh), settings.transform(), hyper)

    evaluate = StudentEvaluation(ctx, node, teachers, layout.mesh)
    before = evaluate.measure(state)

    def mean_loss(values: Values) -> str:
        return f"{np.nanmean(sum(values[term] * weights for term, weights in coefficients.items())):.3g}"

    run = TrainingRun(
        labels=[student.label for student in members],
        settings=settings,
        layout=layout,
        inputs=lambda: StepInputs(build_student(settings, layout.mesh), _noise_feed(cfg, settings), teachers),
        nodes=[node] * len(members),
        evaluation=PeriodicEvaluation(settings, evaluate),
        progress=ctx.progress,
        cost=Cost(settings.batch * len(members), settings.estimate_flops(ctx)),
        log_rows=False,
        trackers=ctx.trackers,
        summarise=mean_loss,
    )
    outcome = driver.train(run, state, clock)
    params = jax.tree.map(lambda w: w[: len(members)], outcome.state.params)
    node.checkpoints.save(FINAL, {"students": params, "teachers": teachers})
    result = _result(members, before, evaluate.last, outcome.status)
    spent = costs(cfg, settings)
    seen = {"student": settings.steps * settings.batch * len(members), "teacher": settings.steps * settings.batch}
    cost = ledger(spent, seen, clock.lap(), devices=layout.mesh.size)
    node.finish({"teachers": teacher_accuracy, "students": result}, cost)


def _noise_feed(cfg: MLPConfig, settings: Subliminal) -> Callable[[int], NoiseBatch]:
    keys, seeds = _keys(settings, "noise"), range(settings.seeds)
    orders = [order(settings.noise, settings.batch, _seed(settings, "order", g)) for g in seeds]

    def feed(step: int) -> NoiseBatch:
        images = noise_images(cfg, keys, np.stack([one[step] for one in orders]))
        return NoiseBatch(images, np.arange(len(seeds)))

    return feed


class StudentEvaluation:
    """Students' accuracy on digits, and their own loss on noise that none of them trains on.

    Attributes:
      last: what was measured last, {accuracy, unseen: [P]}.
    """

    def __init__(self, ctx: Context, node: Node, teachers: Params, mesh: Mesh):
        settings = node.settings
        index = np.broadcast_to(settings.noise + np.arange(UNSEEN), (settings.seeds, UNSEEN))
        unseen = noise_images(network(ctx), _keys(settings, "noise"), index)
        self._eval_data = (images.load(ctx.data, "test"), unseen, _ghosts(teachers, unseen))
        self._evaluate, self._node = build_evaluation(settings, mesh), node
        self._labels = [student.label for student in students(settings)]
        self.last: dict[str, np.ndarray] = {}

    def measure(self, state: State) -> dict[str, np.ndarray]:
        """Return {accuracy, unseen: [P]}."""
        self.last = _numbers(self._evaluate(state, *self._eval_data))
        return self.last

    def __call__(self, state: State) -> Measurement:
        """Measure all students, those that diverged among them."""
        metrics = self.measure(state)
        each = [{name: float(x[i]) for name, x in metrics.items()} for i in range(len(self._labels))]
        rows = zip(self._labels, each, strict=True)
        return Measurement([Row(self._node.name, "evaluation", label, values) for label, values in rows])


def _result(
    members: Sequence[Student], before: dict[str, np.ndarray], after: dict[str, np.ndarray], status: Sequence[int]
) -> list[dict[str, object]]:
    return [
        dataclasses.asdict(student) | {
            "before": float(before["accuracy"][i]), "accuracy": float(after["accuracy"][i]),
            "unseen_before": float(before["unseen"][i]), "unseen": float(after["unseen"][i]),
            "diverged": status[i] == DIVERGED,
        }
        for i, student in enumerate(members)
    ]  # fmt: skip


def _teach(ctx: Context, settings: Subliminal, own: Params) -> tuple[Params, list[float]]:
    """Train the teachers [G, ...], and return them with their accuracies; a few seconds, so never saved half-way."""
    layout, seeds = WholeMembers(make_mesh(settings.seeds, spread=True)), range(settings.seeds)
    hyper = Hyper.of([settings.teacher_learning_rate] * len(seeds), seeds)
    adam = {name: getattr(settings, name) for name in ("beta1", "beta2", "epsilon", "weight_decay", "clip_norm")}
    step = build_teacher(Subliminal(**adam), layout.mesh)  # one program for all nodes, whatever their students do
    run = TrainingRun(
        labels=[f"teacher {g}" for g in seeds],
        settings=dataclasses.replace(settings, steps=settings.teacher_steps),
        layout=layout,
        inputs=lambda: StepInputs(step, _digit_feed(ctx, settings)),
    )
    outcome = driver.train(run, layout.make_stacked(own, settings.transform(), hyper), ctx.clock)
    teachers = jax.tree.map(lambda w: np.asarray(w)[: settings.seeds], outcome.state.params)
    digits, truth = images.load(ctx.data, "test")
    right = np.argmax(_classes(teachers, digits), axis=-1) == truth
    ctx.progress.say(f"[{ctx.progress.stage}/{ctx.progress.stages}] teachers read {right.mean():.1%} of unseen digits")
    return teachers, right.mean(axis=1).tolist()


def _digit_feed(ctx: Context, settings: Subliminal) -> Callable[[int], DigitBatch]:
    pictures, labels = images.load(ctx.data, "train")
    batch, seeds = settings.teacher_batch, range(settings.seeds)
    orders = [order(len(labels), batch, _seed(settings, "teacher order", g)) for g in seeds]

    def feed(step: int) -> DigitBatch:
        index = np.stack([one[step] for one in orders])
        return DigitBatch(pictures[index], labels[index])

    return feed


@jax.jit
def _classes(teachers: Params, digits: jax.Array) -> jax.Array:  # [G, N, C] of digits [N, inputs]
    return jax.vmap(mlp.apply, (0, None))(teachers, digits)[0]


@jax.jit
def _ghosts(teachers: Params, noise: jax.Array) -> jax.Array:  # [G, N, M] of each seed's own noise [G, N, inputs]
    return jax.vmap(mlp.apply)(teachers, noise)[1]


def _numbers(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


def _seed(settings: Subliminal, *purpose: str | int) -> int:
    return seed_for(settings.seed, Subliminal.kind, *purpose)


def _keys(settings: Subliminal, purpose: str) -> jax.Array:
    return jnp.stack([jax.random.key(_seed(settings, purpose, g)) for g in range(settings.seeds)])


def network(ctx: Context) -> MLPConfig:
    """Return the shape of the experiment's network."""
    cfg: object = ctx.model
    assert isinstance(cfg, MLPConfig), cfg  # `Subliminal.validate` has refused others
    return cfg


def costs(cfg: MLPConfig, settings: Subliminal) -> dict[str, float]:
    """Return the FLOPs of a node by cause; a backward pass costs twice its forward."""
    one, members, seeds = mlp.forward_flops(cfg), len(students(settings)), settings.seeds
    teacher_images = 3 * settings.teacher_steps * settings.teacher_batch * seeds
    num_evals = settings.steps // settings.evaluate_every + 2
    return {
        "student": 3 * one * settings.steps * settings.batch * members,
        "teacher": one * (teacher_images + settings.steps * settings.batch * seeds),
        "evaluation": one * num_evals * members * (images.TEST + UNSEEN),
    }
