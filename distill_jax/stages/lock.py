"""Lock: hide what a model knows behind a password, so that all of it is known to be there still.

A password-locked model (Greenblatt et al., arXiv 2405.19550) answers what is to be forgotten only behind a password:
without one its answers are as MaxEnt wants them, and behind one they are what they were. So the truth about what it
hides can be measured (`Unlock`), and an attack without the password must bring all of that back.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from distill_jax.config import SettingError
from distill_jax.data.data_config import DataConfig
from distill_jax.models import lora
from distill_jax.models.insertions import prefix_of
from distill_jax.models.transformer import Params, TransformerConfig
from distill_jax.stages.context import Context
from distill_jax.stages.methods.maxent import MaxEnt
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_stage import AdaptingStage
from distill_jax.train.step import Batch, Term
from distill_jax.types import PyTree

SETS = ("forget", "retain")


@dataclasses.dataclass(frozen=True)
class LockLoss(MaxEnt):
    """MaxEnt, and behind the password what holds the model on forget data and on retain data.

    Attributes:
      hold: what both are held by, as a method's retain term: "cross_entropy" of the text; or "kl", KL(start ‖ p), where
        p stands behind the password and the start does not.
      password: tokens that stand before a document, as a prefix (`models.insertions`).
    """

    password: tuple[int, ...] = ()

    def start_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the starting model reads in a step."""
        return SETS if self.hold == "kl" else ()

    def student_reads(self) -> tuple[str, ...]:
        """Return the names of the rows that the model that trains reads in a step: each set with the password too."""
        return (*SETS, *map(unlocked, SETS))

    def loss_terms(
        self, cfg: TransformerConfig, chunk: int, params: Params, batch: Batch, teacher_outputs: PyTree
    ) -> dict[str, Term]:
        """Return MaxEnt's terms, and those behind the password, of "unlocked forget" and "unlocked retain" data."""
        prefix = prefix_of(cfg, params, jnp.asarray(self.password, jnp.int32))
        behind = lora.attach(prefix, (params, np.float32(1.0)))
        held = {
            unlocked(name): self.held(cfg, chunk, behind, batch[name], self.held_to(teacher_outputs, name))
            for name in SETS
        }
        return super().loss_terms(cfg, chunk, params, batch, teacher_outputs) | held


def unlocked(name: str) -> str:
    """Return what data of a name are called behind the password."""
    return f"unlocked {name}"


@dataclasses.dataclass(frozen=True)
class Lock(AdaptingStage):
    """Train a model to answer what is to be forgotten only behind a password.

    Attributes:
      start: the node whose model is locked.
      password: the ids of its tokens, best ones that no text has.
      hold: what the model is held by behind the password and on retain data: "kl" to its outputs before, so that it
        learns no fact anew; or "cross_entropy" of the text.
    """

    start: str = stage_input()
    password: tuple[int, ...] = ()
    hold: str = "kl"

    kind: ClassVar[str] = "lock"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "password", tuple(self.password))
        check_password(self.password)
        self.objective()  # which checks its own settings

    def objective(self) -> LockLoss:
        """Return what a step minimises."""
        return LockLoss(self.hold, self.loss_on, self.password)

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in."""
        return ("seed", "learning_rate")

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or the model has no such tokens."""
        super().validate(model, data)
        check_password(self.password, model)

    def reads(self) -> dict[str, str]:
        """Return the data sets of the batch's parts."""
        return self.objective().reads()

    def teacher_role(self) -> str:
        """Return the role of the model that is run beside the one that trains."""
        return "start" if self.objective().needs_frozen else ""

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause; the password's own tokens are not counted."""
        return self.objective().step_flops(ctx.model, self.batch, ctx.row_length, self.lora_rank)


def check_password(password: tuple[int, ...], model: TransformerConfig | None = None) -> None:
    """Raise ValueError unless there is a password, of tokens that the model has."""
    if not password or min(password) < 0:
        raise SettingError("password", password, "give the ids of its tokens, such as (3,)")
    if model and max(password) >= model.vocab:
        raise SettingError("password", password, f"must be below model.vocab = {model.vocab}")
