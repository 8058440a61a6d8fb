"""The contract of a stage: what one node of an experiment is made from, what it does and what it costs.

A stage is a frozen dataclass of settings that derives from `Stage`. Nothing registers it: a config imports the stages
it uses, and may define one of its own. `Pretrain` is the shortest that trains, `Perturb` one that does not.
"""

from __future__ import annotations

import abc
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from distill_jax.config import ConfigError, SettingError, Settings, described
from distill_jax.data.data_config import DataConfig
from distill_jax.io.files import Digests
from distill_jax.stages.context import Context, Node
from distill_jax.train.settings import Lora

if TYPE_CHECKING:
    from distill_jax.models.transformer_config import TransformerConfig
    from distill_jax.stages.train_job import TrainJob

ROLE = "input"  # the metadata of a field that names a stage


def stage_input(default: str = "", *, optional: bool = False) -> Any:
    """Declare a field that names the stage to start from; the field's name is the role that it plays."""
    return dataclasses.field(default=default, metadata={ROLE: "optional" if optional else "required"})


@dataclasses.dataclass(frozen=True)
class Stage(Settings, abc.ABC):
    """Settings of one kind of node, and what it does with them.

    Only `kind` and `run` must be defined. A stage that trains also has `train_job`, by which it is packed into
    populations, planned for a slice and held against the memory there is.

    Attributes:
      kind: what it is called in identities, in config.json and in reports.
      leaves_model: whether others can start from the model that it leaves.
      retired: settings that the kind once had and never used, at the values by which kept results are identified.
    """

    kind: ClassVar[str] = ""
    leaves_model: ClassVar[bool] = True
    retired: ClassVar[Mapping[str, object]] = types.MappingProxyType({})

    @classmethod
    def roles(cls) -> dict[str, str]:
        """Return the fields that name stages: {role: "required" or "optional"}."""
        return {f.name: f.metadata[ROLE] for f in dataclasses.fields(cls) if ROLE in f.metadata}

    def inputs(self) -> dict[str, str]:
        """Return {role: name of the stage that it starts from}, without optional ones that are left empty.

        Raises:
          ValueError: beginning with the role, if one that is needed is empty.
        """
        named = {role: getattr(self, role) for role in self.roles()}
        for role, need in self.roles().items():
            if not named[role] and need == "required":
                raise ValueError(f"{role} is empty: name the stage it is")
        return {role: name for role, name in named.items() if name}

    def check_inputs(self, sources: Mapping[str, Stage]) -> None:
        """Refuse stages, {role: stage}, that cannot play the role they are given.

        Raises:
          ValueError: beginning with the role and the stage's name.
        """
        for role, source in sources.items():
            if not source.leaves_model:
                name = self.inputs()[role]
                raise ValueError(f"{role} = {name!r}: a {source.kind} stage leaves no model to start from")

    def validate(self, model: TransformerConfig, data: DataConfig) -> None:
        """Raise ValueError, beginning with the key, if the settings do not fit the experiment's model and data."""
        del model, data

    @classmethod
    def refusal(cls, name: str, error: ValueError) -> ConfigError:
        """Return an error of the stage of this name: what begins with a setting is about `stages.<name>.<setting>`."""
        if isinstance(error, SettingError):
            return error if "." in error.key else error.within(f"stages.{name}")  # such as data.row_length
        setting = str(error).split(" ")[0] in {field.name for field in dataclasses.fields(cls)}
        return ConfigError(f"stages.{name}{'.' if setting else ': '}{error}")

    def with_content_hash(self, where: str, digests: Digests) -> Self:
        """Return the settings with the hash of the files that they name filled in.

        Args:
          where: how errors name the stage.

        Raises:
          ConfigError: naming what is missing.
        """
        del where, digests
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return every setting by its name, as config.json and reports hold them."""
        return {**self.retired, **dataclasses.asdict(self)}

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what identifies a node of these settings, without `config.added` fields at their default."""
        return {**self.retired, **described(self)}

    def adapters(self) -> Lora | None:
        """Return which adapters to its start's model it leaves in place of weights; None if it leaves whole weights."""
        return None

    def per_member_fields(self) -> tuple[str, ...] | None:
        """Return what members of one population may differ in; None if nodes never train together."""
        return None

    def shared_fields(self) -> dict[str, Any]:
        """Return what the members of one population have in common."""
        own = {*(self.per_member_fields() or ()), *self.roles()}
        return {key: value for key, value in self.as_dict().items() if key not in own}

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of one node at its most steps; those of evaluation only once there are data to count."""
        del ctx
        return 0.0

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob | None:
        """Return what the nodes, which share `shared_fields`, compile and run together; None if it compiles no step."""
        del ctx, nodes
        return None

    @abc.abstractmethod
    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Compute the nodes, of which this is the first one's stage, and finish each (`Node.finish`)."""
