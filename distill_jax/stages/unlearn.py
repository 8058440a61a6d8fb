"""Unlearn: fine-tune a model so that it no longer shows what the forget data taught it.

How is the method's matter (`stages/methods`, one file each). What they suppress comes back under a few steps of
fine-tuning: that is what distilling afterwards is for.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distill_jax.config import SettingError, added, check_setting
from distill_jax.data.data_config import DataConfig
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.stages.context import Context
from distill_jax.stages.methods import METHODS, UnlearningMethod
from distill_jax.stages.robust import ROBUSTIFIERS
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_stage import AdaptingStage

DESCENT = 0.1  # an epsilon from which on AdamW's step is nearly along the gradient, whose entries are far smaller


@dataclasses.dataclass(frozen=True)
class Unlearn(AdaptingStage):
    """Suppress the forget data in a trained model.

    Attributes:
      start: the node whose model is unlearned.
      method: a key of `METHODS`.
      forget_weight, retain_weight: γ and α, the coefficients of the two terms.
      hold, layer, steer, train_layers, beta, length_beta, margin, lowering, confidence_power: of the methods that have
        them, see there; one that the chosen method does not read must keep its default, and changes no identity.
      refusal_ids, selective_rank: of the methods that have them, as above.
      robust: a key of `ROBUSTIFIERS`, what makes the method robust in training; "" for nothing.
      sam_radius, tar_steps, tar_length, latent_radius, latent_steps: of the robustifiers, as of methods.
      repnoise_weight, repnoise_scale: of RepNoise, what its distance to noise is multiplied with, and the noise's
        standard deviation.
    """

    start: str = stage_input()
    method: str = "maxent"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    hold: str = added("cross_entropy")
    layer: int = 1
    steer: float = 6.5
    train_layers: int = 1
    beta: float = added(0.1)
    length_beta: float = added(4.5)
    margin: float = added(0.0)
    lowering: float = added(10.0)
    confidence_power: float = added(1.0)
    refusal_ids: tuple[int, ...] = added(())
    selective_rank: int = added(8)
    robust: str = added("")
    sam_radius: float = added(0.01)
    tar_steps: int = added(4)
    tar_length: float = added(0.1)
    latent_radius: float = added(0.5)
    latent_steps: int = added(4)
    repnoise_weight: float = added(10.0)
    repnoise_scale: float = added(1.0)

    kind: ClassVar[str] = "unlearn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise SettingError("method", self.method, f"choose one of {', '.join(METHODS)}")
        if self.robust and self.robust not in ROBUSTIFIERS:
            raise SettingError("robust", self.robust, f"choose one of {', '.join(ROBUSTIFIERS)}, or ''")
        for name, weight in (("forget_weight", self.forget_weight), ("retain_weight", self.retain_weight)):
            check_setting(weight >= 0, name, weight, "must not be negative; the method itself turns the forget term")
        label = METHODS[self.method].label
        for name in unread_settings(self.method, self.robust):
            default = getattr(Unlearn, name)
            if getattr(self, name) != default:
                raise SettingError(name, getattr(self, name), f"{label} does not read it; leave it at {default!r}")
        objective = self.objective()  # which checks its own settings
        if self.lora_rank and not (METHODS[self.method].takes_adapters and objective.takes_adapters):
            label = objective.label if METHODS[self.method].takes_adapters else label
            raise SettingError(
                "lora_rank", self.lora_rank, f"{label} trains weights themselves; use 0, or another method"
            )
        if METHODS[self.method].needs_descent and self.optimizer not in ("adamw", "sgd"):
            fix_hint = f"{label} takes steps along the gradient; set it to 'sgd', or to 'adamw' with epsilon = 1.0"
            raise SettingError("optimizer", self.optimizer, f"{fix_hint}")
        if METHODS[self.method].needs_descent and self.optimizer == "adamw" and self.epsilon < DESCENT:
            fix_hint = f"{label} takes steps along the gradient; set it to 1.0, and a learning rate of plain descent"
            raise SettingError("epsilon", self.epsilon, f"{fix_hint}")

    def objective(self) -> UnlearningMethod:
        """Return the method with these settings, made robust if that is asked."""
        method = METHODS[self.method].of(self)
        return ROBUSTIFIERS[self.robust].around(method, self) if self.robust else method

    def per_member_fields(self) -> tuple[str, ...]:
        """Return what members of one population may differ in: not what the method reads, nor a start they share."""
        shares_start = self.lora_rank or self.objective().needs_frozen
        free = ("learning_rate", "forget_weight", "retain_weight", "seed", *(() if shares_start else ("start",)))
        return tuple(name for name in free if name not in self.objective().read_settings())

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError if the data have no answers to train on, or the method cannot be applied to the model."""
        super().validate(model, data)
        self.objective().check_model(model)

    def reads(self) -> dict[str, str]:
        """Return the data sets of the batch's parts."""
        return self.objective().reads()

    def teacher_role(self) -> str:
        """Return the role of the model that is run beside the one that trains."""
        return "start" if self.objective().needs_frozen else ""

    def member_coefficients(self) -> dict[str, float]:
        """Return {loss term: what multiplies it}."""
        return {"forget": self.forget_weight, "retain": self.retain_weight}

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one member by cause."""
        return self.objective().step_flops(ctx.model, self.batch, ctx.row_length, self.lora_rank)


def unread_settings(method: str, robust: str | None = None) -> tuple[str, ...]:
    """Return the settings that are there for other methods than this, and for other robustifiers if one is said."""
    own = {field.name for field in dataclasses.fields(Unlearn)} - {
        field.name for field in dataclasses.fields(AdaptingStage)
    }
    others = {name for other in METHODS.values() for name in other.settings()} & own
    others |= set() if "retain" in METHODS[method].parts else {"retain_weight"}
    unread = others - {*METHODS[method].settings()}
    if robust is not None:
        robust_settings = {name for other in ROBUSTIFIERS.values() for name in other.own_settings()}
        unread |= robust_settings - {*(ROBUSTIFIERS[robust].own_settings() if robust else ())}
    return tuple(sorted(unread))
