"""The header of a GGUF file, llama.cpp's format of one file a model: its metadata, and where each tensor lies.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill_jax.config import ConfigError, check
from distill_jax.io.storage import location, version
from distill_jax.types import JsonObject

SUFFIX = ".gguf"
VERSIONS = (2, 3)
# A value's type -> its NumPy dtype, little-endian.
SCALARS = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
FLOAT32, STRING, ARRAY = 6, 8, 9
ALIGNMENT = 32
MAX_DIMENSIONS = 4


class Block(NamedTuple):
    """A tensor type: its name, and how many numbers so many bytes hold."""

    name: str
    numbers: int
    bytes: int


TYPES = {
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20),
    6: Block("Q5_0", 32, 22),
    7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34),
    12: Block("Q4_K", 256, 144),
    13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210),
    30: Block("BF16", 1, 2),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
      shape: outermost axis first, as NumPy has it; the file lists them the other way round.
      type: how its numbers are stored.
      offset: its first byte in the file.
    """

    shape: tuple[int, ...]
    type: Block
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, the innermost axis."""
        return self.shape[-1] // self.type.numbers * self.type.bytes


@dataclasses.dataclass(frozen=True)
class Header:
    """Metadata by key (arrays as lists), and tensors by name."""

    metadata: JsonObject
    tensors: dict[str, StoredTensor]


def is_gguf(path: str | Path) -> bool:
    """Return whether a path is of a GGUF file, by its ending."""
    return location(path).suffix.lower() == SUFFIX


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file; what was read before and has not changed is not read again.

    Raises:
      ConfigError: if there is no such file, it is damaged, or a tensor is of a type that is not supported.
    """
    check(path.is_file(), f"{path}: no such file")
    return _read(path, version(path))


@functools.lru_cache(maxsize=4)
def _read(path: Path, _version: object) -> Header:
    damaged = f"{path}: no whole GGUF file"
    check(path.stat().st_size >= 24, f"{damaged}; fetch it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise ConfigError(f"{damaged} ({error}); fetch it again") from error


class _Reader:
    """Reads one value after another from a file's bytes."""

    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 0

    def header(self) -> Header:
        magic, version, tensors, keys = self._unpack("<4sIQQ")
        check(magic == b"GGUF", "no GGUF file: it begins with other letters; name another")
        check(version in VERSIONS, f"GGUF version {version}: only {', '.join(map(str, VERSIONS))} are supported")
        metadata = dict(self._entry() for _ in range(keys))
        listed = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment = {alignment!r}")
        start = -(-self._at // alignment) * alignment
        placed = {name: dataclasses.replace(each, offset=start + each.offset) for name, each in listed}
        if len(placed) != len(listed):
            raise ValueError("a tensor is there twice")
        for name, each in placed.items():
            self._check_tensor(name, each)
        return Header(metadata, placed)

    def _check_tensor(self, name: str, tensor: StoredTensor) -> None:
        if tensor.shape[-1] % tensor.type.numbers:
            raise ValueError(f"{name} has rows of {tensor.shape[-1]}, {tensor.type.name} stores {tensor.type.numbers}")
        end = tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes
        if end > len(self._data):
            raise ValueError(f"{name} ends at byte {end:,} and the file at {len(self._data):,}")

    def _unpack(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError(f"it ends in a value of {count:,} bytes")
        self._at += count
        return self._data[self._at - count : self._at]

    def _string(self) -> str:
        return self._take(self._unpack("<Q")[0]).decode("utf-8")

    def _entry(self) -> tuple[str, object]:
        name = self._string()
        return name, self._value(self._unpack("<I")[0])

    def _value(self, kind: int) -> object:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._unpack("<IQ")
            return [self._string() for _ in range(count)] if inner == STRING else self._numbers(inner, count)
        return self._numbers(kind, 1)[0]

    def _numbers(self, kind: int, count: int) -> list[object]:
        if kind not in SCALARS:
            raise ValueError(f"a value of type {kind}")
        dtype = np.dtype(SCALARS[kind])
        values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
        if kind == FLOAT32:  # 1e-5, not the double nearest to the float: 9.99999974e-06
            return [float(str(value)) for value in values]
        return list(values.tolist())

    def _tensor(self) -> tuple[str, StoredTensor]:
        name, (dimensions,) = self._string(), self._unpack("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} axes")
        shape = self._unpack(f"<{dimensions}Q")[::-1]
        kind, offset = self._unpack("<IQ")
        known = ", ".join(block.name for block in TYPES.values())
        check(kind in TYPES, f"tensor {name} is of type {_type_name(kind)}: supported are {known}")
        return name, StoredTensor(shape, TYPES[kind], offset)


def _type_name(kind: int) -> str:
    """Return what a tensor type is called, if the gguf package is there to say it, or its number."""
    try:
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(kind).name)
    except (ImportError, ValueError):
        return str(kind)
