"""Cache: a teacher's final hidden states on a prepared set, computed once for any number of students.

Final hidden states are a vocabulary's width smaller than logits, and the teacher's frozen head turns them back into
its exact distribution: a student distilled from the cache minimises the very loss it would have met online, without
the teacher's forward passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from distill_jax.config import ConfigError, Interrupted, SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.data.records import Rows, load_manifest
from distill_jax.data.teacher_states import StateWriter
from distill_jax.io.metrics import TrainingSize
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.distributed import is_primary, preempted
from distill_jax.sharding.mesh import batch_sharding, padded_rows, replicated, tracing
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage, stage_input


@dataclasses.dataclass(frozen=True)
class Cache(Stage):
    """Store a teacher's final hidden states.

    Attributes:
      teacher: the node whose model is run.
      data: the prepared set it reads.
      batch: rows at a time.
      shard_rows: rows in one file; a run that was stopped continues with the first file that is missing.
    """

    teacher: str = stage_input()
    data: str = "all"
    batch: int = 64
    shard_rows: int = 4096

    kind: ClassVar[str] = "cache"
    leaves_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("batch", "shard_rows"):
            if getattr(self, name) < 1:
                raise SettingError(name, getattr(self, name), "must be at least 1")

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data have no such set."""
        data.check_set("data", self.data)

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of the whole cache."""
        if not ctx.prepared:
            return 0.0
        try:
            rows = load_manifest(ctx.data)["sets"][self.data]["rows"]
        except (ValueError, KeyError) as error:
            raise ConfigError(str(error)) from error
        return flops.forward(ctx.model, rows, ctx.row_length, head=False)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Run one teacher over one set, and write its states a file at a time."""
        (node,), cfg = nodes, ctx.model
        mesh = ctx.mesh()
        params = ctx.params(node.inputs["teacher"], mesh, frozen=True)

        def forward(params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
            with tracing(mesh):
                states = transformer.hidden_states(cfg, params, tokens[0], segments[0])
            return jax.lax.with_sharding_constraint(states, replicated(mesh))  # so that one host can write them

        forward = jax.jit(forward)
        rows = Rows(ctx.data / f"{self.data}.array_record")
        batch = padded_rows(self.batch, mesh)
        at = batch_sharding(mesh, batch)
        writer = StateWriter(node.directory / "states", len(rows), self.shard_rows)
        size = TrainingSize(len(rows), ctx.row_length, self.estimate_flops(ctx))
        missing = list(writer.missing())
        ctx.clock.continued_from("", missing[0].start if missing else len(rows))
        for shard in missing:
            parts = []
            for first in range(shard.start, shard.stop, batch):
                if preempted():
                    raise Interrupted(f"{node.name}: stopped at row {first}")
                chosen = np.arange(first, min(first + batch, shard.stop))
                # A part of a batch is filled up, so that one program serves all.
                read = rows.gather(np.resize(chosen, batch))
                placed = (_placed(read[:, i], at) for i in (0, 1))
                parts.append(np.asarray(forward(params, *placed))[: len(chosen)])
                ctx.progress.step(first, size, f"row {first} of {len(rows)} to the cache")
            if is_primary():
                with ctx.clock.spent_on("save"):
                    writer.write(shard, np.concatenate(parts))
                ctx.clock.mark("", shard.stop)
        spent = {"teacher": flops.forward(cfg, len(rows), ctx.row_length, head=False)}
        if is_primary():
            source = load_manifest(ctx.data)["sets"][self.data]["sha256"]
            writer.seal({"data": source, "shape": [ctx.row_length, cfg.hidden], "dtype": cfg.dtype})
            tokens = {"teacher": len(rows) * ctx.row_length}
            node.finish({"rows": len(rows)}, ledger(spent, tokens, ctx.clock.lap(), devices=mesh.size))


def _placed(column: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Return a column [B, T] of rows as a batch of one stream, [1, B, T]."""
    stream = column[None]

    def part(index: Any) -> np.ndarray:
        return stream[index]

    return jax.make_array_from_callback(stream.shape, sharding, part)
