"""Export: write a stage's model as transformers loads it, as part of the experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.interop.exporting import export_model
from distill_jax.io import storage
from distill_jax.io.files import digest
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.distributed import is_primary
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage, stage_input

MODEL = "model"  # the directory within the node's


@dataclasses.dataclass(frozen=True)
class Export(Stage):
    """Write a model in the Hugging Face layout to `model/` in the node's directory, and record its files' hashes.

    Attributes:
      start: the stage whose model is written; adapters come merged in.
      dtype: of the tensors; "" for the widest that a matrix is stored in.
    """

    start: str = stage_input()
    dtype: str = ""

    kind: ClassVar[str] = "export"
    leaves_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dtype not in ("", "float32", "bfloat16", "float16"):
            raise SettingError("dtype", self.dtype, "choose float32, bfloat16 or float16, or '' as it is stored")

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Write one model."""
        for node in nodes if is_primary() else ():
            to = node.directory / MODEL
            storage.remove_tree(to)  # of a process that was killed before it said what it wrote
            export_model(ctx.nodes[node.inputs["start"]].directory, to, node.settings.dtype or None)
            files = {path.name: digest(path) for path in storage.files(to)}
            node.finish({"files": files}, ledger({}, {}, ctx.clock.lap()))
