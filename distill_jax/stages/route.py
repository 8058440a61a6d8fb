"""Route: pretrain with the gradients of forget data in a part of the network, which can be cut off afterwards.

Gradient routing (Cloud et al., arXiv:2410.04332). A step reads rows of a set to retain and rows of a set to forget, and
takes the gradient of each set's own loss, over the whole global batch: forget data move the part alone, retain data
all but the part. Both run through the whole network forwards, so that what unlabelled forget data among the retain data
would teach is in the part already (absorption). `Perturb` with alpha 1 and beta 0 cuts the part off, and a `Finetune`
on retain data mends what leaned on it.

Ours: the weights' gradients are masked, by data set, where the authors stop gradients at activations, token by token.
Nothing of forget data then reaches a weight outside of the part, through attention neither, whatever shares a packed
row or a microbatch with it, but for the one number by which `clip_norm` scales the gradients of both; and labels are of
documents.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from distill_jax.config import SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.losses.head_loss import HeadLoss
from distill_jax.models.transformer import Params, shapes
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import FANS
from distill_jax.models.weight_selection import WeightSelection
from distill_jax.perf import flops
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import Context
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.train_stage import TrainStage
from distill_jax.train.gradient_rules import GradientRule, Routed
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class RoutedNextToken(Objective):
    """The next token's cross-entropy on forget and on retain data, each with weights of its own to move.

    Attributes:
      part: the weights that forget data move.
      loss_on: "all" or "answer".
    """

    part: WeightSelection
    loss_on: str = "all"

    def head_losses(self) -> tuple[HeadLoss, ...]:
        """Return cross-entropy."""
        return NextToken(self.loss_on).head_losses()

    def gradient_rule(self) -> GradientRule:
        """Return how the gradient is made of those of the terms."""
        return Routed(self.part)

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree = None
    ) -> dict[str, Term]:
        """Return the terms "forget" and "retain"."""
        learn = NextToken(self.loss_on)
        return {name: learn.loss_terms(cfg, chunk, params, batch[name])["cross_entropy"] for name in batch}


@dataclasses.dataclass(frozen=True)
class Route(TrainStage):
    """Train a fresh model on two sets, of which one moves a part of its weights and the other the rest.

    Attributes:
      forget: the set that moves the part, such as "forget", or the documents "dropped" by a labeller's filter.
      retain: the set that moves all else, such as "retain", or the "filtered" documents. A step reads `batch` rows of
        each.
      modules, layers, neurons: the part, see `WeightSelection`.
    """

    forget: str = "forget"
    retain: str = "retain"
    modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    neurons: int = 0

    kind: ClassVar[str] = "route"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("modules", "layers"):  # lists, of JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.part.check()
        if self.part == WeightSelection():
            raise SettingError(
                "neurons", 0, "the part that forget data move is the whole network; name neurons or layers"
            )
        if self.loss_on == "unmarked":
            raise SettingError("loss_on", "unmarked", "documents are routed, not tokens; choose 'all' or 'answer'")

    @property
    def part(self) -> WeightSelection:
        """The weights that forget data move."""
        return WeightSelection(self.modules, self.layers, neurons=self.neurons)

    def objective(self) -> RoutedNextToken:
        """Return the next token's cross-entropy on both sets."""
        return RoutedNextToken(self.part, self.loss_on)

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        return ("seed", "learning_rate")

    def reads(self) -> dict[str, str]:
        """Return the data sets of the batch's parts."""
        return {"forget": self.forget, "retain": self.retain}

    def data_sets(self) -> dict[str, str]:
        """Return {setting: name} of the data sets that the settings choose."""
        return self.reads()

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the model has none of the weights that are named, or the data not the sets."""
        super().validate(model, data)
        self.part.check_model(model)

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member, which reads two batches.

        Of tensors that have nothing of the part no gradient is made on forget data.
        """
        cfg, part = ctx.model, self.part
        products = {*FANS} - ({"embedding"} if not cfg.tied else set())
        tensors = jax.tree_util.tree_leaves_with_path(shapes(cfg))
        unmoved = sum(w.size for path, w in tensors if path[-1].key in products and not part.means(path))
        both = 2 * flops.train_step(cfg, self.batch, ctx.row_length)
        return {"student": both - 2.0 * self.batch * ctx.row_length * unmoved}
