"""A model's directory in the Hugging Face layout: config.json and safetensors, read tensor by tensor."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from distill_jax.config import ConfigError, check
from distill_jax.interop import families, tokenizers
from distill_jax.interop.finite import check_finite
from distill_jax.interop.hugging_face import check_shapes
from distill_jax.interop.values import brief
from distill_jax.types import JsonObject

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(jnp.bfloat16)}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# A multimodal model's names -> those of its text part; the rest of it is left out.
TEXT = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class _Slice(Protocol):
    """A tensor of an open file, as safetensors has it."""

    def get_dtype(self) -> str:
        """Return the dtype's name."""

    def get_shape(self) -> list[int]:
        """Return the shape."""

    def __getitem__(self, index: tuple[slice, ...] | EllipsisType) -> np.ndarray:
        """Read a part."""


class SafeTensors:
    """Tensors of several safetensors files, read in part. Memory holds what is asked for and no more.

    Raises:
      ConfigError: for a file that is damaged, or a tensor that is in two files, of a dtype that is no weight's or, when
        it is read, not finite, naming it.
    """

    def __init__(self, files: Sequence[Path]):
        self._slices: dict[str, _Slice] = {}
        self._where = files[0] if len(files) == 1 else files[0].parent
        for path in files:
            try:
                # Pages of a mapped file would count as this process's memory until all of it is read.
                file = safe_open(path, framework="np", backend="pread")
            except SafetensorError as error:
                raise ConfigError(f"{path}: no whole safetensors file ({error}); fetch it again") from error
            for name in file.keys():  # noqa: SIM118
                check(name not in self._slices, f"{path}: {name} is in another file as well; leave one out")
                self._slices[name] = file.get_slice(name)
        for name, tensor in self._slices.items():
            kind, known = tensor.get_dtype(), ", ".join(DTYPES)
            check(kind in DTYPES, f"{files[0].parent}: {name} has dtype {kind}; weights may be {known}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.get_shape()) for name, tensor in self._slices.items()}

    def rename(self, names: Mapping[str, str]) -> None:
        """Keep only these tensors, under new names: {old: new}."""
        self._slices = {new: self._slices[old] for old, new in names.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of a tensor."""
        return DTYPES[self._slices[name].get_dtype()]

    def read(self, name: str, *index: slice) -> np.ndarray:
        """Return a part of a tensor, a slice an axis."""
        part: np.ndarray = self._slices[name][index or ...]
        check_finite(part, f"{self._where}: {name}", [s.start or 0 for s in index])
        return part


class Directory:
    """A model in the Hugging Face layout, checked.

    Attributes:
      path: the directory.
      files: its files of weights.
      json: its config.json.
      family: a key of FAMILIES.
      facts: what of config.json is no part of the decoder but goes with it.
      cfg: the decoder.
      source: its tensors.

    Args:
      path: the directory, or its only file of weights.

    Raises:
      ConfigError: for whatever is missing, unknown or of the wrong shape, naming it.
    """

    def __init__(self, path: Path):
        self.path = path.parent if path.is_file() else path
        if path.is_file():
            refuse_pickles([path])
        config = self.path / "config.json"
        check(config.is_file(), _missing(path, "config.json"))
        self.json = read_object(config)
        self.files = [path] if path.is_file() else _weights(self.path)
        self.source = SafeTensors(self.files)
        # Before anything of the size that config.json claims is built.
        check_layers(families.text_part(self.json, str(config)), self.source.shapes, str(config))
        self.family, self.cfg = families.from_json(self.json, str(config))
        self.facts = families.facts_of(self.json, str(config))
        self.source.rename(self._names())
        check_shapes(self.cfg, self.source.shapes, str(self.path))

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: beside it."""
        return str(self.path)

    def known_files(self) -> list[Path]:
        """Return the files that the model is known by: all that are read or copied."""
        beside = [self.path / name for name in ("config.json", *tokenizers.FILES)]
        return [*self.files, *(path for path in beside if path.is_file())]

    def _names(self) -> dict[str, str]:
        """Return {their name: ours} of the tensors that count."""
        names = {}
        for name in self.source.shapes:
            ours = text_name(name) if self.json.get("text_config") is not None else name
            if ours and not name.endswith(".rotary_emb.inv_freq"):
                names[name] = ours
        tied = [old for old, new in names.items() if new == "lm_head.weight" and self.cfg.tied]
        embedding = next((old for old, new in names.items() if new == "model.embed_tokens.weight"), "")
        for old in tied:  # some save the head although it is the embedding
            check(not embedding or self._equal(old, embedding), f"{self.path}: {old} differs from {embedding}, {_TIED}")
            del names[old]
        return names

    def _equal(self, a: str, b: str, rows: int = 8192) -> bool:
        if self.source.shapes[a] != self.source.shapes[b]:
            return False
        count = self.source.shapes[a][0]
        here = (slice(start, min(start + rows, count)) for start in range(0, count, rows))
        return all(np.array_equal(self.source.read(a, s), self.source.read(b, s)) for s in here)


def text_name(name: str) -> str:
    """Return what a multimodal model's tensor or module is called in its text part; "" where it is no part of it."""
    prefix = next((old for old in TEXT if name.startswith(old)), "")
    return "" if name.startswith(NOT_TEXT) else TEXT.get(prefix, "") + name.removeprefix(prefix)


def check_layers(config: JsonObject, names: Iterable[str], where: str) -> None:
    """Hold the number of layers that is claimed against those that the files hold."""
    held = {match[1] for name in names if (match := _LAYER.match(text_name(name)))}
    claimed = config.get("num_hidden_layers")
    if type(claimed) is int and claimed > 0:
        counted = f"but the files hold {len(held)} (tensors model.layers.N.)"
        check(claimed == len(held), f"{where}: num_hidden_layers = {brief(claimed)}, {counted}")


_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_TIED = "but config.json has tie_word_embeddings = true; set it to false"


def _weights(path: Path) -> list[Path]:
    """Return the files of weights that a directory consists of."""
    index = path / INDEX
    if index.is_file():
        holds = read_object(index).get("weight_map")
        named = isinstance(holds, dict) and holds and all(isinstance(name, str) for name in holds.values())
        check(bool(named), f"{index}: has no weight_map of tensors' names to files'; fetch it again")
        assert isinstance(holds, dict)
        files = [path / name for name in sorted(set(holds.values()))]
        count = collections.Counter(holds.values())
        refuse_pickles(files)
        for file in files:
            check(file.parent == path, f"{index}: {file.name} lies outside the directory")
            check(file.is_file(), f"{_missing(path, file.name)} ({count[file.name]} tensors are in it)")
        return files
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    refuse_pickles(sorted(path.iterdir()))
    raise ConfigError(_missing(path, SINGLE))


def refuse_pickles(files: Sequence[Path]) -> None:
    """Refuse the first of the files that is a pickle."""
    pickles = [file for file in files if file.suffix in PICKLES]
    mend = "a pickle runs whatever code it holds; save the model as safetensors"
    check(not pickles, f"{pickles[:1] and pickles[0]}: {mend}")


def _missing(path: Path, name: str) -> str:
    """Say that a file is missing, what would fetch it, and where to."""
    if path.is_file():
        return f"{path}: no model, for there is no {name} beside it; name a directory that has one, or a .gguf file"
    single = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if single:
        return f"{path / name}: no such file; name the GGUF file itself, {single[0]}"
    hub = f"{path}" if not path.is_absolute() and len(path.parts) == 2 else "OWNER/NAME"
    what = f"{path / name}: no such file" if path.is_dir() else f"{path}: no such directory"
    return f"{what}; fetch it with `hf download {hub} --local-dir {path}`"


def read_object(path: Path) -> JsonObject:
    """Read a JSON object."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep; fetch it again") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON ({error}); fetch it again") from error
    check(isinstance(value, dict), f"{path}: no JSON object; fetch it again")
    return value
