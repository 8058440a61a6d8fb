"""LoRA adapters as PEFT saves them, checked; as our tree of adapters, and back. `merging` merges them into weights."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from distill_jax.config import check
from distill_jax.interop.adapter_settings import read_settings
from distill_jax.interop.directory import SafeTensors, refuse_pickles, text_name
from distill_jax.interop.hugging_face import WHOLE, expected, leaves, names, sides
from distill_jax.io.files import digest, write_json
from distill_jax.models.lora import Adapters
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.types import PyTree

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING, HEAD = (f"{WHOLE[leaf]}.weight" for leaf in ("embedding", "unembedding"))
# A tensor's name: that of a module, and what of it.
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<what>lora_A\.weight|lora_B\.weight|lora_embedding_[AB]"
    r"|lora_magnitude_vector(\.weight)?|base_layer\.weight|weight)"
)
_WHATS = {
    "lora_A.weight": "a",
    "lora_embedding_A": "a",
    "lora_B.weight": "b",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "base_layer.weight": "base",
    "weight": "saved",
}


def _peft_name(weight: str, which: str) -> str:
    """Return the name of the A [rank, in] or B [out, rank] that adapts a layer's weight [out, in]."""
    return f"base_model.model.{weight.removesuffix('.weight')}.lora_{which}.weight"


@dataclasses.dataclass
class Part:
    """What is done to one weight.

    Attributes:
      module: what PEFT calls its module.
      rank, scale: scale · B A is added to the weight.
      tensors: names in the file, of `a` and `b`; `magnitude` (DoRA); `base`, the weight before adapters; and `saved`,
        the weight where it was trained whole.
    """

    module: str
    rank: int
    scale: float
    tensors: dict[str, str]


class Adapter:
    """A directory of PEFT LoRA adapters to a decoder.

    Attributes:
      path: the directory.
      parts: by the name of the weight.
      rank, alpha: of our tree of them, where B A is multiplied with alpha / rank.

    Raises:
      ConfigError: for what is missing, of the wrong shape, or not understood.
    """

    def __init__(self, path: Path, cfg: TransformerConfig):
        self.path, self.cfg = path, cfg
        config, weights = path / CONFIG, path / WEIGHTS
        if path.is_dir() and not weights.is_file():
            refuse_pickles(sorted(path.iterdir()))
        for file in (config, weights):
            check(file.is_file(), f"{file}: no such file; --adapter names the directory that PEFT saved")
        self.settings = read_settings(config)
        self.tensors = SafeTensors([weights])
        self.parts = self._parts(str(weights))
        self._check_shapes(str(weights))
        self.rank = max(self.settings.rank_of(part.module) for part in self.parts.values())
        self.alpha = self.settings.even_alpha or float(self.rank)

    def _parts(self, where: str) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for name in self.tensors.shapes:
            match = _NAME.fullmatch(name)
            check(match is not None, f"{where}: tensor {name!r} adapts nothing that is known here")
            assert match
            module, weight = match["module"], text_name(f"{match['module']}.weight")
            if weight:  # what sees images is left out of the model as well
                rank, scale = self.settings.rank_of(module), self.settings.scale_of(module)
                part = parts.setdefault(weight, Part(module, rank, scale, {}))
                part.tensors[_WHATS[match["what"]]] = name
        check(bool(parts), f"{where}: holds no tensors of a decoder")
        return parts

    def _check_shapes(self, where: str) -> None:
        weights = {HEAD: expected(self.cfg)[EMBEDDING], **expected(self.cfg)}
        for weight, part in self.parts.items():
            some = next(iter(part.tensors.values()))
            check(weight in weights, f"{where}: tensor {some!r} adapts no matrix of the model")
            wanted = self._wanted(weight, weights[weight], part.rank)
            factors = {"a", "b", "magnitude"} & wanted.keys()
            lacks = sorted(factors - part.tensors.keys()) if factors & part.tensors.keys() else []
            check(not lacks, f"{where}: {part.module} has {some}, but no {', '.join(lacks)}; {CONFIG} asks for it")
            for what, tensor in part.tensors.items():
                shape = self.tensors.shapes[tensor]
                check(what in wanted, f"{where}: tensor {tensor!r}: nothing in {CONFIG} asks for it")
                check(shape == wanted[what], f"{where}: {tensor} has shape {shape}, the model takes {wanted[what]}")
        for name in self.settings.saved:
            held = any("saved" in part.tensors and part.module.endswith(name) for part in self.parts.values())
            check(held, f"{where}: modules_to_save has {name!r}, of which no tensor is there")

    def _wanted(self, weight: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of whatever may be there for a weight."""
        out: dict[str, tuple[int, ...]] = {"base": shape}
        if len(shape) == 2:
            outputs, inputs = reversed(shape) if weight == EMBEDDING else shape
            out |= {"a": (rank, inputs), "b": (outputs, rank)}
            out |= {"magnitude": (outputs,)} if self.settings.dora else {}
        return out | ({"saved": shape} if self.settings.saved else {})

    @functools.cached_property
    def digest(self) -> dict[str, str]:
        """The hashes of the settings' file and the weights'."""
        return {name: digest(self.path / name) for name in (CONFIG, WEIGHTS)}

    @property
    def unties(self) -> bool:
        """Whether a head that was the embedding is not any more, for one of them is adapted and the other is not."""
        return self.cfg.tied and bool({EMBEDDING, HEAD} & self.parts.keys())

    def check_kept(self) -> None:
        """Raise ConfigError unless these can be adapters beside the weights: plain ones, to layers."""
        for part in self.parts.values():
            plain = ".layers." in part.module and part.tensors.keys() == {"a", "b"}
            mend = "DoRA, and adapters to embedding and head, can only be merged in; do not keep them apart"
            check(plain, f"{self.path}: {part.module} has {', '.join(part.tensors.values())}: {mend}")

    def pair(
        self, weight: str, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return in fp32 the factors [rows, rank] and [rank, columns] of what is added to some of a weight."""
        names, every = self.parts[weight].tensors, slice(None)
        if weight == EMBEDDING:  # PEFT's factors are those of its transpose
            left, right = self.tensors.read(names["a"], every, rows).T, self.tensors.read(names["b"], columns, every).T
        else:
            left, right = self.tensors.read(names["b"], rows, every), self.tensors.read(names["a"], every, columns)
        return left.astype(np.float32), right.astype(np.float32)

    def tree(self) -> Adapters:
        """Return our tree of them: zero where a tensor has some but not everywhere, or some have less rank."""
        out: PyTree = {}
        for leaf, shape in leaves(self.cfg).items():
            inputs, outputs = sides(leaf, shape)
            held = {place: name for place, name in names(self.cfg, leaf).items() if name in self.parts}
            if not held:
                continue
            lead = shape[: len(next(iter(held)))]
            a, b = np.zeros((*lead, *inputs, self.rank), np.float32), np.zeros((*lead, self.rank, *outputs), np.float32)
            for place, weight in held.items():
                part, (left, right) = self.parts[weight], self.pair(weight)
                left = left * np.float32(part.scale / (self.alpha / self.rank))
                a[place].reshape(-1, self.rank)[:, : part.rank] = right.T
                b[place].reshape(self.rank, -1)[: part.rank] = left.T
            _, module, name = leaf.split("/")
            out.setdefault(module, {})[name] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        return out


def save(path: Path, cfg: TransformerConfig, adapters: Adapters, rank: int, alpha: float) -> None:
    """Write our adapters into a directory as PEFT reads them."""
    tensors: dict[str, np.ndarray] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        module, name, which = (entry.key for entry in keys)
        stacked = np.asarray(leaf, np.float32)
        for place, weight in names(cfg, f"layers/{module}/{name}").items():
            shape = (-1, rank) if which == "a" else (rank, -1)
            tensors[_peft_name(weight, which.upper())] = np.ascontiguousarray(stacked[place].reshape(shape).T)
    # Two matrices that share a tensor here may have had adapters to one of them only.
    kind = lambda name: name.split(".")[-3]  # noqa: E731
    used = {kind(name) for name, x in tensors.items() if x.any()}
    save_file({name: x for name, x in tensors.items() if kind(name) in used}, path / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none"}
    write_json(path / CONFIG, {**config, "target_modules": sorted(used), "lora_dropout": 0.0, "inference_mode": True})
