"""Which weights of a model are meant: by name, by layer, by neuron, by magnitude."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError
from distill_jax.models.transformer import Params, shapes
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import FANS

Path = tuple[jax.tree_util.DictKey, ...]
NEURON_AXES = {"gate_up": -1, "down": -2}  # which axis of a tensor tells the neurons of an MLP apart
ORDERS = ("smallest", "largest")


@dataclasses.dataclass(frozen=True)
class WeightSelection:
    """A part of a model's weights.

    Attributes:
      modules: patterns of names such as "layers/mlp/down", "*/attention/*" or "embedding", of which one must match; ()
        for all.
      layers: which layers, from 0; negative ones count from the top. With any, nothing outside of the layers is meant;
        () for all and what lies outside.
      neurons: so many of the last neurons of every MLP, what leads to them and from them; with any, nothing else is
        meant. 0 for all weights.
      share: the fraction of every matrix that is meant; below 1 no vector is.
      order: whose weights: those "smallest" or "largest" in magnitude.
    """

    modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    share: float = 1.0
    order: str = ORDERS[0]
    neurons: int = 0

    def check(self) -> None:
        """Raise ValueError, beginning with the setting, for a value that cannot be."""
        if not 0 < self.share <= 1:
            raise SettingError("share", self.share, "the fraction of a matrix's weights lies in (0, 1]")
        if self.order not in ORDERS:
            raise SettingError("order", self.order, f"choose one of {', '.join(ORDERS)}")
        if self.neurons < 0:
            raise SettingError("neurons", self.neurons, "must not be negative; 0 for all weights")
        if self.neurons and self.share < 1:
            raise SettingError("share", self.share, "neurons are meant as a whole; leave it at 1.0")

    def check_model(self, cfg: TransformerConfig) -> None:
        """Raise ValueError if a model has no such layer, or no weights of such a name."""
        for layer in self.layers:
            if not -cfg.layers <= layer < cfg.layers:
                raise SettingError("layers", self.layers, f"the model has layers 0 to {cfg.layers - 1}")
        if self.neurons > cfg.mlp:
            raise SettingError("neurons", self.neurons, f"an MLP of the model has model.mlp = {cfg.mlp}")
        names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes(cfg))]
        for pattern in self.modules:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"modules: no weights match {pattern!r}; there are {', '.join(names)}")
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes(cfg))]
        if not any(self.means(path) for path in paths):
            raise ValueError(
                f"modules = {self.modules}, layers = {self.layers}, neurons = {self.neurons}, share = {self.share}: "
                "together they mean no weight; layers leave out what lies outside of them, neurons what is of no MLP, "
                "and a share below 1 all vectors"
            )

    def means(self, path: Path) -> bool:
        """Return whether any weights of the tensor at a path are meant."""
        named = not self.modules or any(fnmatch.fnmatchcase(name_of(path), pattern) for pattern in self.modules)
        of_neurons = path[-1].key in NEURON_AXES or not self.neurons
        in_layers = path[0].key == "layers" or not self.layers
        return named and of_neurons and in_layers and (self.share == 1 or path[-1].key in FANS)

    def merge(self, start: Params, changed: Params) -> Params:
        """Return the changed weights where they are meant, and those of the start elsewhere."""
        if self == WeightSelection():
            return changed
        return jax.tree_util.tree_map_with_path(self._merge, start, changed)

    def _merge(self, path: Path, w: jax.Array, changed: jax.Array) -> jax.Array:
        stacked = path[0].key == "layers"
        if not self.means(path):
            return w
        if self.layers:
            chosen = jnp.zeros(w.shape[0], bool).at[jnp.asarray(self.layers)].set(True)
            changed = jnp.where(chosen.reshape(-1, *[1] * (w.ndim - 1)), changed, w)
        if self.neurons:
            axis = NEURON_AXES[path[-1].key]
            last = jnp.arange(w.shape[axis]) >= w.shape[axis] - self.neurons
            changed = jnp.where(jnp.expand_dims(last, tuple(range(1, -axis))), changed, w)
        if self.share == 1:
            return changed
        return jnp.where(self._by_magnitude(w, stacked), changed, w)

    def _by_magnitude(self, w: jax.Array, stacked: bool) -> jax.Array:
        """Return whether each weight is among the share of its own layer's tensor, bool like w."""
        size = jnp.abs(w)
        share = self.share if self.order == "smallest" else 1 - self.share
        axes = tuple(range(1 if stacked else 0, w.ndim))
        bound = jnp.quantile(size, share, axis=axes, keepdims=True)
        return size <= bound if self.order == "smallest" else size > bound


def name_of(path: Sequence[jax.tree_util.DictKey]) -> str:
    """Return the name of a weight, "layers/mlp/down"."""
    return "/".join(str(entry.key) for entry in path)
