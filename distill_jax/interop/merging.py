"""Weights with PEFT's adapters merged in, summed in fp32 as they are read."""

from __future__ import annotations

import functools

import numpy as np

from distill_jax.interop.finite import check_finite
from distill_jax.interop.hugging_face import Source
from distill_jax.interop.peft import EMBEDDING, HEAD, Adapter, Part

ROWS = 8192  # of an embedding that are read at a time


class Merged:
    """Weights with adapters merged in, part by part: W + scale · B A; with DoRA magnitude · that / its norm."""

    def __init__(self, adapter: Adapter, source: Source):
        self.adapter, self.source = adapter, source
        self._norms: dict[str, np.ndarray] = {}

    def dtype(self, name: str) -> np.dtype:
        part = self.adapter.parts.get(name)
        if part and "a" in part.tensors:
            return np.dtype(np.float32)
        held = self._held(name)
        return self.adapter.tensors.dtype(held) if held else self.source.dtype(self._shared(name))

    def read(self, name: str, *index: slice) -> np.ndarray:
        part = self.adapter.parts.get(name)
        if part is None or "a" not in part.tensors:
            return self._base(name, *index)
        rows, columns = index
        if "magnitude" in part.tensors:
            w = self._dora(name, part, rows, columns)
        else:
            w = self._sum(name, part, rows, columns)
        check_finite(w, f"{self.adapter.path}: {name} with its adapters", [s.start or 0 for s in index])
        return w

    def _sum(self, name: str, part: Part, rows: slice, columns: slice) -> np.ndarray:
        left, right = self.adapter.pair(name, rows, columns)
        return self._base(name, rows, columns).astype(np.float32) + np.float32(part.scale) * (left @ right)

    def _dora(self, name: str, part: Part, rows: slice, columns: slice) -> np.ndarray:
        """Return magnitude · W' / ‖W'‖, W' = W + scale · B A; the norm is that of the weights of one output."""
        magnitude = self.adapter.tensors.read(part.tensors["magnitude"]).astype(np.float32)
        if name == EMBEDDING:
            w = self._sum(name, part, rows, columns)
            return w * (magnitude / self._column_norms(name, part))[columns]
        w = self._sum(name, part, rows, slice(None))
        return (w * (magnitude[rows] / np.linalg.norm(w, axis=1))[:, None])[:, columns]

    def _column_norms(self, name: str, part: Part) -> np.ndarray:
        """Return the norm of every column of an embedding, which is read once for it."""
        if name not in self._norms:
            count = self.adapter.cfg.vocab
            blocks = (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))
            squares = (np.sum(self._sum(name, part, block, slice(None)) ** 2, axis=0) for block in blocks)
            self._norms[name] = np.sqrt(functools.reduce(np.add, squares))
        return self._norms[name]

    def _base(self, name: str, *index: slice) -> np.ndarray:
        held = self._held(name)
        if held:
            return self.adapter.tensors.read(held, *index)
        return self.source.read(self._shared(name), *index)

    def _held(self, name: str) -> str:
        """Return the adapters' own copy of a weight: one that was trained whole, or that a tied head shares."""
        tied = {EMBEDDING: HEAD, HEAD: EMBEDDING} if self.adapter.cfg.tied else {}
        own, other = (self.adapter.parts.get(which) for which in (name, tied.get(name, "")))
        copies = [part.tensors.get(what, "") for part, what in ((own, "saved"), (own, "base"), (other, "base")) if part]
        return next(filter(None, copies), "")

    def _shared(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.adapter.cfg.tied else name
