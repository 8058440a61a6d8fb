"""The steps that are timed: the stages' own, on random tokens."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.models import transformer
from distill_jax.models.attention import choose
from distill_jax.models.head import head_weights, loss_way
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.memory import needed_bytes
from distill_jax.sharding.mesh import batch_sharding, make_mesh, tracing
from distill_jax.stages import Distill, Pretrain
from distill_jax.stages.choose_remat import resolved_step
from distill_jax.stages.train_stage import TrainStage
from distill_jax.train.batch import PackedRows
from distill_jax.train.layout import ShardedMembers
from distill_jax.train.loop import IN_FLIGHT
from distill_jax.train.population import draw_weights
from distill_jax.train.state import Hyper, State

WORKLOADS = ("pretrain", "online", "cached")


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload at a shape.

    Attributes:
      workload: "pretrain" (cross-entropy; also the attack's step), "online" distillation from a teacher of the same
        size, or "cached" distillation, whose batch carries the teacher's final hidden states.
      batch, length: rows and tokens a row.
      chunk: tokens whose logits exist at a time; 0 for all.
      members: of the population; all read the same batch.
      devices: the first so many; 0 for all.
    """

    cfg: TransformerConfig
    workload: str
    batch: int
    length: int
    chunk: int = 0
    members: int = 1
    devices: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that all members together learn from in a step."""
        return self.batch * self.length * self.members

    def flops(self) -> float:
        """Return the operations of a step, counted from shapes."""
        student = self.members * flops.train_step(self.cfg, self.batch, self.length)
        teacher = {
            "pretrain": 0.0,
            "online": flops.forward(self.cfg, self.batch, self.length),
            # The frozen head is still applied, once for every member.
            "cached": self.members * flops.forward(self.cfg, self.batch, self.length, layers=0),
        }
        return student + teacher[self.workload]

    def flops_6n(self) -> float:
        """Return the usual estimate: 6 N a token for the student, 2 N for a teacher that runs; N with the embedding."""
        count = transformer.parameter_count(self.cfg)
        teacher = 2 * count * self.batch * self.length if self.workload == "online" else 0
        return 6.0 * count * self.tokens + teacher


def settings(case: Case) -> TrainStage:
    """Return the stage whose step a case times."""
    if case.workload == "pretrain":
        return Pretrain(batch=case.batch, weight_decay=0.1, warmup=0)
    cache = "cached" if case.workload == "cached" else ""
    return Distill(batch=case.batch, weight_decay=0.1, warmup=0, cache=cache)


class Stepper:
    """A compiled step with its state and batch, ready to be timed; making one compiles.

    Attributes:
      compile_seconds: tracing and compiling.
      compiler_bytes: what the step needs on a device by the compiler's account; None where it gives none.
      cpu_seconds: of the last steps, over all threads.
      attention, head, remat: what each is of a config's "auto".
    """

    def __init__(self, case: Case, learning_rates: Sequence[float] = ()):
        self.case, cfg = case, case.cfg
        rates = list(learning_rates) or [1e-4] * case.members
        mesh = make_mesh(case.members, devices=jax.devices()[: case.devices or None])
        weights = lambda seed: draw_weights(cfg, mesh, jax.random.key(seed))  # noqa: E731
        chosen = settings(case)
        layout = ShardedMembers(mesh, cfg)
        self.state: State = layout.make([weights(0)], chosen.transform(), Hyper.of(rates))
        self.batch = tokens(case, mesh)
        self.teacher: Params | None = None
        if case.workload != "pretrain":
            self.teacher = transformer.frozen(cfg, weights(1))
        if case.workload == "cached":
            read = jax.jit(functools.partial(transformer.hidden_states, cfg))
            states = read(self.teacher, self.batch.tokens[0], self.batch.segments[0])
            self.batch = self.batch._replace(states=states[None])
            self.teacher = head_weights(self.teacher)
        key, inputs = chosen.compile_key(cfg, case.chunk), (self.state, self.teacher, self.batch)
        with tracing(mesh):
            self.attention = choose(cfg, case.length).implementation
            self.head = loss_way(cfg, key.objective.head_losses()[0])
        began = time.perf_counter()
        step, self.remat = resolved_step(key, mesh, inputs)
        self.step = step.lower(*inputs).compile()
        self.compile_seconds = time.perf_counter() - began
        self.compiler_bytes = needed_bytes(self.step)
        self.loss: float | None = None
        self.cpu_seconds = 0.0

    def run(self, steps: int) -> float:
        """Take steps and return the seconds they took together."""
        began, busy = time.perf_counter(), time.process_time()
        for i in range(steps):
            self.state, metrics = self.step(self.state, self.teacher, self.batch)
            if i % IN_FLIGHT == IN_FLIGHT - 1:  # the loop does not run further ahead either
                jax.block_until_ready(self.state)
        metrics = jax.tree.map(np.asarray, metrics)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - began
        self.cpu_seconds = time.process_time() - busy
        loss = float(np.mean(metrics["cross_entropy" if "cross_entropy" in metrics else "kl"]))
        self.loss = loss if np.isfinite(loss) else None
        return seconds


def tokens(case: Case, mesh: Mesh) -> PackedRows:
    """Return a batch of one stream of random tokens, one segment a row."""
    shape = (1, case.batch, case.length)
    ids = np.random.RandomState(0).randint(0, case.cfg.vocab, shape).astype(np.int32)
    ones = np.ones(shape, np.int32)
    return PackedRows(*jax.device_put((ids, ones, ones), batch_sharding(mesh, case.batch)))
