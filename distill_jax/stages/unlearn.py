"""Unlearn: fine-tune a model so that it no longer shows what the forget data taught it.

Three methods, each a function from a batch to loss terms:
  maxent    KL(uniform ‖ p) on forget + cross-entropy on retain, or KL to what the model said there before
  graddiff  -γ · cross-entropy on forget + α · cross-entropy on retain
  rmu       pull a hidden state on forget towards c·u, u a random unit vector, and hold it on retain; only the MLP's
            down projections of a few layers move
What they suppress comes back under a few steps of fine-tuning: that is what distilling afterwards is for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from distill_jax.config import added
from distill_jax.data.data_config import DataConfig
from distill_jax.losses.chunked import over_tokens
from distill_jax.losses.distillation import Divergence
from distill_jax.losses.unlearning import gradient_ascent, max_entropy, squared_distance
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.perf import flops
from distill_jax.stages.context import Context, Node
from distill_jax.stages.pretrain import language_model
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_stage import TrainStage
from distill_jax.stages.training import Program, enrol, finish_models, train
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.step import Batch, Term, make_step


@dataclasses.dataclass(frozen=True)
class Unlearn(TrainStage):
    """Suppress the forget data in a trained model.

    Attributes:
      start: the node whose model is unlearned.
      method: a key of `METHODS`.
      forget_weight, retain_weight: γ and α, the coefficients of the two terms.
      hold: what the retain term of maxent and graddiff is: "cross_entropy" of the text, or "kl", KL(start ‖ p), which
        holds the model to what it said at the start.
      layer: RMU's layer l; the hidden state steered is the one that enters it.
      steer: RMU's c, the length of the target.
      train_layers: RMU trains the down projections of this many layers before `layer`.
    """

    start: str = stage_input()
    method: str = "maxent"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    hold: str = added("cross_entropy")
    layer: int = 1
    steer: float = 6.5
    train_layers: int = 1

    kind: ClassVar[str] = "unlearn"

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        free = ("learning_rate", "forget_weight", "retain_weight")
        if self.method == "rmu":  # its target is drawn from the seed
            return free
        # Adapters share their base, and what is held to one frozen model shares that.
        return (*free, "seed") if self.lora_rank or self.frozen else (*free, "seed", "start")

    @property
    def frozen(self) -> bool:
        """Whether the model that it starts from is run beside the one that trains."""
        return self.method == "rmu" or self.hold == "kl"

    def __post_init__(self):
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(f"method = {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.hold not in ("cross_entropy", "kl"):
            raise ValueError(f"hold = {self.hold!r}: choose 'cross_entropy' or 'kl'")
        if self.method == "rmu" and self.hold != "cross_entropy":
            raise ValueError(f"hold = {self.hold!r}: RMU holds hidden states; leave it at 'cross_entropy'")
        if self.method == "rmu" and not 0 < self.train_layers <= self.layer:
            raise ValueError(
                f"train_layers = {self.train_layers}: RMU trains between 1 and layer = {self.layer} layers"
            )
        if self.method == "rmu" and self.lora_rank:
            raise ValueError(
                f"lora_rank = {self.lora_rank}: RMU trains chosen weights themselves; use 0, or another method"
            )

    def validate(self, model: Any, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or the model no such layer."""
        super().validate(model, data)
        if self.method == "rmu" and self.layer > model.layers:
            raise ValueError(f"layer = {self.layer}: must be at most model.layers = {model.layers}")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps."""
        return self.steps * sum(self._step_flops(ctx).values()) + self.estimate_evaluation_flops(ctx)

    def _step_flops(self, ctx: Context) -> dict[str, float]:
        rows, length = self.batch, ctx.row_length
        if self.method == "rmu":
            student = 2 * flops.train_step(ctx.model, rows, length, layers=self.layer)
            return {"student": student, "teacher": student / 6}
        student = 2 * flops.train_step(ctx.model, rows, length, lora_rank=self.lora_rank)
        return {"student": student} | ({"teacher": flops.forward(ctx.model, rows, length)} if self.frozen else {})

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> Program:
        """Return what the nodes run as one population."""
        alike = dataclasses.replace(self.alike(self.per_member_fields()), start="")
        return Program(
            **enrol(nodes, "forget", "retain"),
            settings=self,
            build=functools.partial(build, ctx.model, alike, ctx.run.loss_chunk),
            reads={"forget": "forget", "retain": "retain"},
            teacher=nodes[0].inputs["start"] if self.frozen else "",
            base=nodes[0].inputs["start"] if self.lora_rank else "",
            flops=self._step_flops(ctx),
        )

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Unlearn the nodes."""
        job = self.train_job(ctx, nodes)
        outcome = train(
            ctx,
            job,
            lambda mesh: ctx.starts(nodes, mesh),
            evaluate_at=lambda s: s > 0 and s % self.evaluate_every == 0,
            planned_flops=self.estimate_flops(ctx) * len(nodes),
        )
        finish_models(ctx, job, outcome)


Terms = dict[str, Term]
Setup = tuple[TransformerConfig, Unlearn, int]


def _retain(setup: Setup, params: Any, batch: Batch, frozen: Any) -> Term:
    cfg, settings, chunk = setup
    if settings.hold == "cross_entropy":
        term = language_model(cfg, settings, chunk, params, batch["retain"])
        return term._replace(coefficient=settings.retain_weight)
    rows = batch["retain"]
    mask = rows.target_mask(settings.loss_on)
    hidden = transformer.hidden_states(cfg, params, rows.tokens, rows.segments)[:, :-1]
    head, before = transformer.head(params), transformer.head(frozen["head"])

    def loss(mine: jax.Array, theirs: jax.Array, mask: jax.Array) -> Any:
        target = jax.lax.stop_gradient(transformer.unembed(cfg, before, theirs))
        return Divergence()(transformer.unembed(cfg, head, mine), target, mask)

    return Term(settings.retain_weight, *over_tokens(loss, chunk, hidden, frozen["hidden"], mask))


def _on_forget_logits(setup: Setup, params: Any, rows: PackedRows, loss: Callable) -> Any:
    cfg, settings, chunk = setup
    mask = rows.target_mask(settings.loss_on)
    hidden = transformer.hidden_states(cfg, params, rows.tokens, rows.segments)[:, :-1]
    head = transformer.head(params)
    of_hidden = lambda h, targets, m: loss(transformer.unembed(cfg, head, h), targets, m)  # noqa: E731
    return over_tokens(of_hidden, chunk, hidden, rows.tokens[:, 1:], mask)


def maxent(setup: Setup, params: Any, batch: Batch, frozen: Any) -> Terms:
    """MaxEnt: make the model's next-token distribution on forget data uniform."""
    loss = lambda logits, targets, mask: max_entropy(logits, mask)  # noqa: E731
    forget = _on_forget_logits(setup, params, batch["forget"], loss)
    return {"forget": Term(setup[1].forget_weight, *forget), "retain": _retain(setup, params, batch, frozen)}


def graddiff(setup: Setup, params: Any, batch: Batch, frozen: Any) -> Terms:
    """GradDiff: ascend the forget data's cross-entropy while descending the retain data's."""
    forget = _on_forget_logits(setup, params, batch["forget"], gradient_ascent)
    return {"forget": Term(setup[1].forget_weight, *forget), "retain": _retain(setup, params, batch, frozen)}


def rmu(setup: Setup, params: Any, batch: Batch, frozen: Any) -> Terms:
    """RMU: steer the state that enters `layer` to c·u on forget data and to the frozen model's on retain data."""
    cfg, settings, _ = setup
    enter = lambda rows: transformer.residual_at(cfg, params, rows.tokens, rows.segments, settings.layer)  # noqa: E731
    direction = jax.random.uniform(jax.random.key(settings.seed), (cfg.hidden,))
    target = settings.steer * direction / jnp.linalg.norm(direction)
    valid = lambda rows: (rows.segments > 0).astype(jnp.float32)  # noqa: E731
    forget = squared_distance(enter(batch["forget"]), target, valid(batch["forget"]))
    retain = squared_distance(enter(batch["retain"]), frozen, valid(batch["retain"]))
    return {"forget": Term(settings.forget_weight, *forget), "retain": Term(settings.retain_weight, *retain)}


METHODS = {"maxent": maxent, "graddiff": graddiff, "rmu": rmu}


def _only_down_projections(cfg: TransformerConfig, layer: int, count: int) -> Any:
    """Return 0/1 masks like the parameters: 1 on the down projections of the `count` layers before `layer`."""
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    index = jnp.arange(cfg.layers)
    chosen = ((index >= layer - count) & (index < layer)).astype(jnp.float32)

    def mask(path: Any, leaf: Any) -> jax.Array:
        on = path[-1].key == "down"
        return chosen.reshape(-1, *[1] * (leaf.ndim - 1)) if on else jnp.zeros([1] * leaf.ndim)

    return jax.tree_util.tree_map_with_path(mask, shapes)


@functools.cache
def build(cfg: TransformerConfig, settings: Unlearn, chunk: int, mesh: Any) -> Any:
    """Return the compiled step of one method."""

    def frozen(teacher: Any, batch: Batch) -> Any:
        rows = batch["retain"]
        if settings.hold == "kl":
            hidden = transformer.hidden_states(cfg, teacher, rows.tokens, rows.segments)[:, :-1]
            return {"hidden": hidden, "head": transformer.head_of(teacher)}
        if settings.method != "rmu":
            return None
        return transformer.residual_at(cfg, teacher, rows.tokens, rows.segments, settings.layer)

    objective = functools.partial(METHODS[settings.method], (cfg, settings, chunk))
    trainable = None
    if settings.method == "rmu":
        trainable = _only_down_projections(cfg, settings.layer, settings.train_layers)
    return make_step(objective, frozen, settings, ShardedMembers(mesh, cfg), trainable)
