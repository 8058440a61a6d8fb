"""Import: begin from published weights, a model in the Hugging Face layout.

The node is what `distill-jax import` makes, and beside that measured on the experiment's data. LoRA adapters are merged
in; or, where another node keeps the weights that they adapt, they are all that this one keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from distill_jax.config import ConfigError, SettingError, check, check_setting, identity
from distill_jax.data.data_config import DataConfig
from distill_jax.interop.importing import Published
from distill_jax.io.files import Digests
from distill_jax.io.storage import location, resolved
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.stages.untrained import finish_untrained
from distill_jax.train.settings import Lora

# Of a decoder's description, how it is run and not what it computes.
EXECUTION_FIELDS = ("init_std", "dtype", "unroll", "remat")


@dataclasses.dataclass(frozen=True)
class Import(Stage):
    """Begin from published weights.

    Attributes:
      path: the model's directory: config.json, safetensors, and its tokenizer's files. It may stay empty to plan.
      adapter: directory of PEFT LoRA adapters to it; "" for none.
      start: the import of the same path that keeps the weights: then this node is the adapters alone, and a student of
        the same base is distilled from them beside it; "" merges them in.
      lora_rank, lora_alpha: of adapters that are kept; read from their files when a run begins.
      content: hash of the files; filled in when a run begins, and then known by instead of paths.
    """

    path: str = ""
    adapter: str = ""
    start: str = stage_input(optional=True)
    lora_rank: int = 0
    lora_alpha: float = 0.0
    content: str = ""

    kind: ClassVar[str] = "import"

    def __post_init__(self) -> None:
        if self.adapter and not self.path:
            raise SettingError("adapter", self.adapter, "there is no path of the model that it adapts")
        if self.lora_rank and not self.start:
            raise SettingError("lora_rank", self.lora_rank, "only adapters that are kept beside a start have a rank")

    def check_inputs(self, sources: Mapping[str, Stage]) -> None:
        """Raise ValueError unless the start is an import of the same path."""
        super().check_inputs(sources)
        start = sources.get("start")
        if start is not None and (not isinstance(start, Import) or start.path != self.path):
            path = start.path if isinstance(start, Import) else None
            fix_hint = "adapters are kept beside the weights they adapt; give both one path"
            raise ValueError(f"start = {self.start!r} imports {path!r}, not {self.path!r}: {fix_hint}")

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError unless the files hold the experiment's model; to plan, they need not be there."""
        if not self.path:
            return
        fix_hint = f"a published model reads its own tokens; set it to {str(location(self.path))!r}"
        check(bool(data.vocabulary), f"data.vocabulary is empty: {fix_hint}")
        if not location(self.path).exists():
            return
        directory = Published(self.path, self.adapter)
        limit = int(directory.files.facts.get("max_position_embeddings") or 0)
        mend = f"{self.path} reads {limit:,} tokens (max_position_embeddings); lower it to that"
        check_setting(not limit or data.row_length <= limit, "data.row_length", data.row_length, mend)
        published = directory.cfg
        for field in dataclasses.fields(published):
            wanted, value = getattr(model, field.name), getattr(published, field.name)
            if field.name not in EXECUTION_FIELDS and wanted != value:
                fix_hint = "models of one experiment have one shape"
                other = f"{self.path} is another model: it has model.{field.name} = {value}, not {wanted}"
                raise ConfigError(f"{other}; {fix_hint}")

    def with_content_hash(self, where: str, digests: Digests) -> Self:
        """Return the settings with `content` filled in.

        Raises:
          ConfigError: naming what is missing.
        """
        fix_hint = "name the directory that `hf download OWNER/NAME --local-dir DIR` filled"
        check(bool(self.path), f"{where}.path is empty: {fix_hint}")
        published = Published(self.path, self.adapter)
        known = dataclasses.replace(self, content=identity(published.contents(digests)))
        if not self.start:
            return known
        if published.adapter is None:
            raise ConfigError(f"{where}.adapter is empty: name the directory that PEFT saved")
        published.adapter.check_kept()
        return dataclasses.replace(known, lora_rank=published.adapter.rank, lora_alpha=published.adapter.alpha)

    def adapters(self) -> Lora | None:
        """Return the adapters that it keeps beside the weights of its start."""
        return Lora(self.lora_rank, self.lora_alpha) if self.lora_rank else None

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies the weights: contents in place of paths as soon as they are known."""
        return {"content": self.content} if self.content else super().fingerprint_fields()

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node: only its evaluation."""
        return ctx.evaluation_flops(*PARTS)

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Read the weights, and measure what they can do."""
        mesh = ctx.mesh()
        for node in nodes:
            model = Published(node.settings.path, node.settings.adapter)
            imported = model.leave(node, model.adapters(mesh) if node.settings.start else model.load(mesh))
            # What the stages after this one will read.
            params = ctx.params(node.name, mesh)
            source = {"source": str(resolved(location(node.settings.path)))}
            finish_untrained(ctx, node, mesh, params, {**imported, **source})
