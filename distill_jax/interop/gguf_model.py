"""A model in a GGUF file, as if it lay in a directory in the Hugging Face layout: its config.json, names, tensors.

What llama.cpp's converter does to a model is undone: names, the order of Llama's query and key rows, Gemma's norms.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from distill_jax.config import check, nearest
from distill_jax.interop import families
from distill_jax.interop.directory import check_layers
from distill_jax.interop.finite import check_finite
from distill_jax.interop.gguf_config import ARCHITECTURES, Architecture, config_json
from distill_jax.interop.hugging_face import check_shapes
from distill_jax.io.gguf_header import StoredTensor, read_header

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
ONCE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # which the config tells of
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufTensors:
    """Tensors of a GGUF file under the names and in the layout of Hugging Face, read in part.

    Quantised ones are dequantised as they are read, and count as fp32.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, StoredTensor], architecture: Architecture, heads: tuple[int, int]
    ):
        self._path, self._tensors, self._architecture = path, tensors, architecture
        self._heads = dict(zip(("q_proj", "k_proj"), heads, strict=True)) if architecture.permuted else {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that a tensor is read in."""
        return FLOATS.get(self._tensors[name].type.name, np.dtype(np.float32))

    def read(self, name: str, *index: slice) -> np.ndarray:
        """Return a part of a tensor, a slice an axis."""
        shape = self._tensors[name].shape
        rows, *columns = index or (slice(None),)
        if len(shape) == 1:
            part = _read_rows(self._path, self._tensors[name], 0, 1).reshape(-1)[rows]
        else:
            order = self._order(name, shape[0])[rows]
            first = int(order.min(initial=shape[0]))
            held = _read_rows(self._path, self._tensors[name], first, int(order.max(initial=first)) + 1)
            part = held[order - first][(slice(None), *columns)]
        check_finite(part, f"{self._path}: {name}", [part.start or 0 for part in index])
        if self._architecture.norms_from_one and "norm" in name.rsplit(".", 2)[-2]:
            return part.astype(np.float32) - np.float32(1)
        return part

    def _order(self, name: str, count: int) -> np.ndarray:
        """Return which of the file's rows each row is; the file has a head's rows in the order 0, n/2, 1, n/2 + 1, …"""
        rows = np.arange(count)
        heads = self._heads.get(name.rsplit(".", 2)[-2])
        return rows if heads is None else rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _read_rows(path: Path, tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    """Read rows of a matrix, [rows, columns]; a vector is one row."""
    size, kind = tensor.row_bytes, tensor.type.name
    with path.open("rb") as file:  # a mapped file's pages would count as this process's memory
        file.seek(tensor.offset + start * size)
        data = np.frombuffer(file.read((stop - start) * size), np.uint8).reshape(stop - start, size)
    if kind in FLOATS:
        return data.view(FLOATS[kind])
    import gguf

    values: np.ndarray = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    return values


def _their_name(name: str, architecture: Architecture) -> str:
    """Return a tensor's name in Hugging Face's layout; its own where nothing is known of it."""
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in architecture.layer:
        return ONCE.get(name, name)
    return f"model.layers.{match[1]}.{architecture.layer[match[2]]}.{match[3]}"


def _check_package(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse quantised tensors where the package that knows their formats is not installed."""
    quantised = sorted({tensor.type.name for tensor in tensors.values()} - FLOATS.keys())
    there = not quantised or importlib.util.find_spec("gguf") is not None
    check(there, f"{path}: {', '.join(quantised)} need the package gguf; run `pip install 'distill-jax[gguf]'`")


class GgufFile:
    """A model in a GGUF file, checked; the attributes are those of `Directory`.

    Args:
      path: the file.

    Raises:
      ConfigError: for whatever is missing, unknown or of the wrong shape, naming it.
    """

    def __init__(self, path: Path):
        self.path, self.files = path, [path]
        header = read_header(path)
        name = str(header.metadata.get("general.architecture"))
        mend = f"{nearest(name, ARCHITECTURES)}; there are {', '.join(ARCHITECTURES)}"
        check(name in ARCHITECTURES, f"{path}: general.architecture = {name!r}: unknown architecture{mend}")
        _check_package(path, header.tensors)
        self.architecture = ARCHITECTURES[name]
        factors = _read_rows(path, header.tensors[ROPE_FACTORS], 0, 1)[0] if ROPE_FACTORS in header.tensors else None
        self.json = config_json(path, header, self.architecture, factors)
        tensors = {_their_name(name, self.architecture): tensor for name, tensor in header.tensors.items()}
        tensors.pop(ROPE_FACTORS, None)
        check_layers(self.json, tensors, str(path))
        self.family, self.cfg = families.from_json(self.json, str(path))
        self.facts = families.facts_of(self.json, str(path))
        self.source = GgufTensors(path, tensors, self.architecture, (self.cfg.heads, self.cfg.kv_heads))
        check_shapes(self.cfg, self.source.shapes, str(path))

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: in the file."""
        return str(self.path)

    def known_files(self) -> list[Path]:
        """Return the files that the model is known by."""
        return self.files
