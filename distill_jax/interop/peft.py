"""LoRA adapters as PEFT saves them: merged into the weights as these are read, or as our tree of adapters, and back."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from distill_jax.config import check
from distill_jax.interop.directory import SafeTensors, read_object, refuse_pickles
from distill_jax.interop.hugging_face import Source, expected, leaves, names, sides
from distill_jax.io.files import digest, write_json
from distill_jax.models.lora import Adapters
from distill_jax.models.transformer import TransformerConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an adapter_config.json may ask for that plain LoRA is not.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def _theirs(weight: str, which: str) -> str:
    """Return the name of the A [rank, in] or B [out, rank] that adapts a weight [out, in]."""
    return f"base_model.model.{weight.removesuffix('.weight')}.lora_{which}.weight"


class Adapter:
    """A directory of PEFT LoRA adapters to a decoder's layers.

    Attributes:
      path: the directory.
      rank, alpha: B A is multiplied with alpha / rank.

    Raises:
      ConfigError: for what is missing, of the wrong shape, or no plain LoRA.
    """

    def __init__(self, path: Path, cfg: TransformerConfig):
        self.path, self.cfg = path, cfg
        config, weights = path / CONFIG, path / WEIGHTS
        if path.is_dir() and not weights.is_file():
            refuse_pickles(sorted(path.iterdir()))
        for file in (config, weights):
            check(file.is_file(), f"{file}: no such file; --adapter names the directory that PEFT saved")
        found = read_object(config)
        for key, value in PLAIN.items():
            given = found.get(key) or value
            check(given == value, f"{config}: {key} = {given!r}: only {value!r} is supported")
        for key in ("r", "lora_alpha"):
            check(key in found, f"{config}: {key} is missing")
        self.rank = int(found["r"])
        self.alpha = float(found["lora_alpha"]) * (math.sqrt(self.rank) if found.get("use_rslora") else 1.0)
        self.tensors = SafeTensors([weights])
        _check_shapes(self.tensors.shapes, cfg, self.rank, str(weights))

    @functools.cached_property
    def digest(self) -> dict[str, str]:
        """The hashes of the settings' file and the weights'."""
        return {name: digest(self.path / name) for name in (CONFIG, WEIGHTS)}

    def has(self, weight: str) -> bool:
        """Return whether there are adapters to one of their weights."""
        return _theirs(weight, "A") in self.tensors.shapes

    def merged(self, source: Source) -> Source:
        """Return the weights with the adapters merged in: W + (alpha / rank) B A, summed in fp32."""
        return _Merged(self, source)

    def pair(
        self, weight: str, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return A [rank, in] and B [out, rank] in fp32, or those of some rows and columns of B A."""
        whole = slice(0, self.rank)
        a = self.tensors.read(_theirs(weight, "A"), whole, columns)
        b = self.tensors.read(_theirs(weight, "B"), rows, whole)
        return a.astype(np.float32), b.astype(np.float32)

    def tree(self) -> Adapters:
        """Return our tree of them; where a matrix has none but shares a tensor with one that has, zeros."""
        out: dict[str, dict[str, Any]] = {}
        for leaf, shape in leaves(self.cfg).items():
            inputs, outputs = sides(leaf, shape)
            held = {place: name for place, name in names(self.cfg, leaf).items() if self.has(name)}
            if not held:
                continue
            lead = shape[: len(next(iter(held)))]
            a, b = np.zeros((*lead, *inputs, self.rank), np.float32), np.zeros((*lead, self.rank, *outputs), np.float32)
            for place, weight in held.items():
                theirs = self.pair(weight)
                a[place], b[place] = (x.T.reshape(mine[place].shape) for x, mine in zip(theirs, (a, b), strict=True))
            _, module, name = leaf.split("/")
            out.setdefault(module, {})[name] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        return out


class _Merged:
    def __init__(self, adapter: Adapter, source: Source):
        self.adapter, self.source = adapter, source

    def dtype(self, name: str) -> Any:
        return np.dtype(np.float32) if self.adapter.has(name) else self.source.dtype(name)

    def read(self, name: str, *index: slice) -> np.ndarray:
        w = self.source.read(name, *index)
        if not self.adapter.has(name):
            return w
        a, b = self.adapter.pair(name, *index)
        return w.astype(np.float32) + (self.adapter.alpha / self.adapter.rank) * (b @ a)


def _check_shapes(found: dict[str, tuple[int, ...]], cfg: TransformerConfig, rank: int, where: str) -> None:
    wanted: dict[str, tuple[int, int]] = {}
    for weight, shape in expected(cfg).items():
        if ".layers." in weight and len(shape) == 2:
            wanted |= {_theirs(weight, "A"): (rank, shape[1]), _theirs(weight, "B"): (shape[0], rank)}
    check(bool(found), f"{where}: holds no tensors")
    for name, shape in found.items():
        check(name in wanted, f"{where}: tensor {name!r} adapts no matrix of the model's layers")
        check(shape == wanted[name], f"{where}: {name} has shape {shape}, the model takes {wanted[name]}")
        other = name.replace(".lora_A.", ".lora_B.") if ".lora_A." in name else name.replace(".lora_B.", ".lora_A.")
        check(other in found, f"{where}: tensor {other!r} is missing")


def save(path: Path, cfg: TransformerConfig, adapters: Adapters, rank: int, alpha: float) -> None:
    """Write our adapters into a directory as PEFT reads them."""
    tensors: dict[str, np.ndarray] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        module, name, which = (entry.key for entry in keys)
        whole = np.asarray(leaf, np.float32)
        for place, weight in names(cfg, f"layers/{module}/{name}").items():
            shape = (-1, rank) if which == "a" else (rank, -1)
            tensors[_theirs(weight, which.upper())] = np.ascontiguousarray(whole[place].reshape(shape).T)
    # Two matrices that share a tensor here may have had adapters to one of them only.
    kind = lambda name: name.split(".")[-3]  # noqa: E731
    used = {kind(name) for name, x in tensors.items() if x.any()}
    save_file({name: x for name, x in tensors.items() if kind(name) in used}, path / WEIGHTS, metadata={"format": "pt"})
    config = {**PLAIN, "r": rank, "lora_alpha": alpha, "target_modules": sorted(used), "task_type": "CAUSAL_LM"}
    write_json(path / CONFIG, {**config, "lora_dropout": 0.0, "inference_mode": True})
