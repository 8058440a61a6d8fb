"""What a stage gets from the run: its nodes, its inputs' weights, the data, the evaluation, and where to write."""

from __future__ import annotations

import dataclasses
import functools
import operator
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import ConfigError, SettingError, identity
from distill_jax.data.data_config import DataConfig
from distill_jax.data.records import MANIFEST
from distill_jax.evals.measure import MEASURES, PARTS, Measure
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.metrics import Progress
from distill_jax.io.node import Node
from distill_jax.io.trackers import TRACKERS, Trackers
from distill_jax.models import attention, lora, transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.clock import Clock
from distill_jax.sharding.mesh import make_mesh, parameter_table, shardings, tracing, with_shardings
from distill_jax.train.population import draw_weights, weights_shape

__all__ = ["PARTS", "Context", "Node", "RunSettings", "seed_for"]


MOST_CPU_DEVICES = 1024  # each has threads of its own; with a million JAX does not come back


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How to execute, without effect on any result but the order of floating-point sums.

    Attributes:
      evaluation_batch: prompts decoded, or rows of text read, at a time; 0 for all of a form or part.
      loss_chunk: tokens whose logits exist at a time; 0 for all.
      progress_seconds: time between two progress lines.
      cpu_devices: devices that JAX makes of the host's cores; members of a population run on them side by side.
      fsdp: devices that each hold a part of every weight; -1 for all that `tensor` leaves.
      tensor: devices that share each layer's heads, MLP columns and vocabulary.
      slices: groups of devices with only a network between them; 0 for those of the TPUs, and elsewhere one.
      checkpoint_every: steps between two saves of whatever trains, which has no effect on identities; 0 for those that
        each stage says.
      profile: first and last step of the part of every stage that is traced into its tensorboard/; () for none.
      compile_cache: directory where compiled programs are kept between runs; "" for none.
      trackers: where metrics, settings and ledgers also go: "wandb", "mlflow"; each node is a run there.
    """

    evaluation_batch: int = 0
    loss_chunk: int = 0
    progress_seconds: float = 5.0
    cpu_devices: int = 2
    fsdp: int = 1
    tensor: int = 1
    slices: int = 0
    checkpoint_every: int = 0
    profile: tuple[int, ...] = ()
    compile_cache: str = ""
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.trackers:
            if name not in TRACKERS:
                raise SettingError("trackers", self.trackers, f"choose of {', '.join(TRACKERS)}, such as ('wandb',)")
        for name in ("evaluation_batch", "loss_chunk"):
            if getattr(self, name) < 0:
                raise SettingError(name, getattr(self, name), "must not be negative; 0 means all at once")
        if not self.progress_seconds >= 0:
            raise SettingError("progress_seconds", self.progress_seconds, "must not be negative; 0 says every step")
        if self.slices < 0:
            raise SettingError("slices", self.slices, "must not be negative; 0 means as the devices are wired")
        if self.checkpoint_every < 0:
            raise SettingError("checkpoint_every", self.checkpoint_every, "must not be negative; 0 as each stage says")
        if self.fsdp != -1 and self.fsdp < 1:
            raise SettingError("fsdp", self.fsdp, "must be at least 1, or -1 for all devices")
        for name in ("tensor", "cpu_devices"):
            if getattr(self, name) < 1:
                raise SettingError(name, getattr(self, name), "must be at least 1")
        if self.cpu_devices > MOST_CPU_DEVICES:
            raise SettingError("cpu_devices", self.cpu_devices, f"at most {MOST_CPU_DEVICES}, or better the cores")
        if self.profile and (len(self.profile) != 2 or not 0 <= self.profile[0] <= self.profile[1]):
            raise SettingError("profile", self.profile, "give the first and the last step, such as (10, 13)")


Evaluator = Callable[..., np.ndarray]  # (params [P, ...], base=None) -> scores [P, n]


@dataclasses.dataclass
class Context:
    """The surroundings of a stage in one run.

    Attributes:
      clock: on which the time of the nodes that are computed now is counted.
      trackers: of these nodes.
    """

    model: TransformerConfig
    nodes: dict[str, Node]
    data: Path
    progress: Progress
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    clock: Clock = dataclasses.field(default_factory=Clock)
    trackers: Trackers | None = None

    def __post_init__(self) -> None:
        self._evaluators: dict[tuple[Mesh, tuple[str, ...]], Evaluator] = {}
        self._described: set[tuple[int, int]] = set()
        self._loaded: dict[str, list[weakref.ref[jax.Array]]] = {}
        self.scores_at_start: dict[tuple[Any, ...], np.ndarray] = {}  # of one start; see `stages.training`
        self.chosen_remat: dict[tuple[Any, ...], Any] = {}  # see `stages.choose_remat`

    @classmethod
    def not_run(cls, model: TransformerConfig, nodes: dict[str, Node], data: Path, run: RunSettings) -> Context:
        """Return the surroundings of stages that are planned or looked at: of what they do nothing is printed."""
        return cls(model, nodes, data, Progress(0, 0.0, 0.0, None), run)

    def mesh(self, members: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Lay out the devices (all of the run's when left out) for so many members.

        Raises:
          ConfigError: if they do not divide as the config wants them to.
        """
        run = self.run
        try:
            return make_mesh(members, fsdp=run.fsdp, tensor=run.tensor, slices=run.slices, devices=devices)
        except ValueError as error:
            mend = "change config.run.fsdp, config.run.tensor or config.run.slices"
            raise ConfigError(f"{error}; {mend}") from error

    def describe(self, mesh: Mesh) -> None:
        """Say once for each way of dividing the weights how rows attend, and where every parameter lies.

        Raises:
          ConfigError: if the config names a way to attend that is none here.
        """
        parts = (mesh.shape["fsdp"], mesh.shape["tensor"])
        if parts in self._described:
            return
        self._described.add(parts)
        if note := self.attention_note(mesh):
            self.progress.say(note)
        if parts == (1, 1):
            return
        rows, notes = parameter_table(mesh, transformer.logical_axes(self.model), self.weights(mesh))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.progress.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for note in notes:
            self.progress.say(f"note: {note}")

    def attention_note(self, mesh: Mesh) -> str:
        """Return how rows attend on the devices of a mesh, as a line; "" where there is nothing to choose."""
        with tracing(mesh):
            choice = attention.choose(self.model, self.row_length)
        platform = mesh.devices.flat[0].platform
        silent = platform == "cpu" and self.model.attention == "auto"
        return "" if silent else f"attention: {choice.implementation} ({choice.reason})"

    def params(self, name: str, mesh: Mesh | None = None, *, frozen: bool = False) -> Params:
        """Return the final weights of a finished node, laid out on the mesh (or whole on one device).

        A node that trained adapters kept only them: they are merged into the weights it started from.

        Args:
          frozen: for use in forward passes only; the weights come in the dtypes they are computed in.
        """
        node = self.nodes[name]
        kept = node.settings.adapters()
        if kept is None:
            return node.checkpoints.restore(FINAL, self.weights(mesh, frozen=frozen))
        adapters = self.adapters(name, mesh)
        dtype = self.model.dtype if frozen else "float32"
        merged = lora.merge(self.params(node.inputs["start"], mesh), adapters, kept.lora_alpha, dtype)
        at = jax.tree.map(operator.attrgetter("sharding"), self.weights(mesh)) if mesh else None
        return jax.device_put(transformer.frozen(self.model, merged) if frozen else merged, at)

    def adapters(self, name: str, mesh: Mesh | None = None) -> lora.Adapters:
        """Return the final adapters of a finished node that kept them, be they to all matrices or to some."""
        checkpoints = self.nodes[name].checkpoints
        shape = checkpoints.shapes(FINAL)
        at = shardings(mesh, lora.logical_axes(self.model, shape), shape) if mesh else None
        return checkpoints.restore(FINAL, with_shardings(shape, at) if mesh else shape)

    def starts(self, nodes: Sequence[Node], mesh: Mesh) -> list[Params]:
        """Return the weights that each node starts from, or one tree for all that start from one."""
        names = [node.inputs["start"] for node in nodes]
        params = {name: self.params(name, mesh) for name in dict.fromkeys(names)}
        self._loaded |= {name: [weakref.ref(leaf) for leaf in jax.tree.leaves(x)] for name, x in params.items()}
        return list(params.values()) if len(params) == 1 else [params[name] for name in names]

    def loaded_from(self, params: Params) -> str:
        """Return the node whose weights, as `starts` loaded them last, these very arrays are; "" for any others."""
        leaves = jax.tree.leaves(params)
        for name, loaded in self._loaded.items():
            if len(leaves) == len(loaded) and all(one() is leaf for one, leaf in zip(loaded, leaves, strict=True)):
                return name
        return ""

    def fresh(self, node: Node, mesh: Mesh) -> Params:
        """Draw a node's fresh weights on the mesh."""
        return draw_weights(self.model, mesh, jax.random.key(seed_for(node.settings.seed, "init", node.stage)))

    def weights(self, mesh: Mesh | None, *, frozen: bool = False) -> Params:
        """Return one model's weights as shapes, laid out on the mesh (or anyhow)."""
        shape = weights_shape(self.model, mesh)
        return transformer.frozen(self.model, shape) if frozen else shape

    @property
    def data_config(self) -> DataConfig:
        """The settings of the experiment's data."""
        prepare = self.nodes["data"].settings
        return prepare.data

    @property
    def row_length(self) -> int:
        """T, the tokens of a packed row."""
        return self.data_config.row_length

    @functools.cached_property
    def measure(self) -> Measure:
        """What is measured of a model on these data."""
        return MEASURES[self.data_config.MEASURE](self.data)

    def evaluator(self, mesh: Mesh, *parts: str) -> Evaluator:
        """Return evaluate(params [P, ...], base=None) -> [P, n] on the parts; compiled once a run."""
        key = (mesh, parts)
        if key not in self._evaluators:
            batch, chunk = self.run.evaluation_batch, self.run.loss_chunk
            self._evaluators[key] = self.measure.evaluator(self.model, mesh, parts, batch, chunk)
        return self._evaluators[key]

    @property
    def prepared(self) -> bool:
        """Whether the data are complete."""
        return (self.data / MANIFEST).exists()

    def evaluation_flops(self, *parts: str) -> float:
        """Return what one member's evaluation on the parts costs; 0 as long as there are no data to count."""
        return self.measure.flops(self.model, parts) if self.prepared else 0.0


def seed_for(*what: object) -> int:
    """Return a 31-bit seed for a purpose, such as seed_for(seed, "pretrain", "rows")."""
    return int(identity(what), 16) & 0x7FFFFFFF
