"""Cross-entropy on held-out documents, in bits per byte of their text: the same unit whatever the vocabulary.

Where the prepared data say which documents there are, each is measured: its bits over its bytes, so that an interval
can be one over documents.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.data import packing
from distill_jax.data.packing import SEGMENTS, TOKENS
from distill_jax.data.records import EVALUATION_ROWS, Path, Rows, load_manifest
from distill_jax.evals.scale import BITS_PER_BYTE, Scale, finite
from distill_jax.losses.cross_entropy import target_mask
from distill_jax.losses.head_loss import CROSS_ENTROPY, HeadInputs
from distill_jax.models import lora, transformer
from distill_jax.models.head import by_vocabulary, head_loss, head_of
from distill_jax.models.likelihood import token_log_likelihoods
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import constrain, over_members, padded_rows, replicated, tracing
from distill_jax.types import JsonObject, PyTree


class BitsPerByte:
    """Measure -log2 p(text) / bytes(text) on documents to retain, to forget, and those shown to an attacker.

    A document counts from its first token to its `<eos>`, each token given those before it in its row.
    """

    scale: ClassVar[Scale] = BITS_PER_BYTE
    counted: ClassVar[str] = "bits"

    def __init__(self, data: Path) -> None:
        rows, entries = Rows(f"{data}/{EVALUATION_ROWS}"), load_manifest(data)["evaluation"]["parts"]
        ends = dict(zip(entries, np.cumsum([entry["rows"] for entry in entries.values()]).tolist(), strict=True))
        self._rows = {name: rows.gather(np.arange(end - entries[name]["rows"], end)) for name, end in ends.items()}
        self._bytes = {name: entry["bytes"] for name, entry in entries.items()}
        # Tokens and bytes of each document, int [n, 2]; data that were prepared before they were recorded have none.
        self._sizes = {name: np.array(e["sizes"], np.int64) for name, e in entries.items() if "sizes" in e}

    @staticmethod
    def described(manifest: JsonObject) -> JsonObject:
        """Return how many documents are evaluated in each part, and how many an attacker is shown."""
        counts = {name: entry["documents"] for name, entry in manifest["evaluation"]["parts"].items()}
        names = {"retain": "retain", "forget_shown": "shown", "forget_heldout": "heldout"}
        facts = {"shown": manifest["sets"]["forget"]["documents"], "heldout": counts["heldout"]}
        return {"evaluated": {name: counts[part] for name, part in names.items()}, "facts": facts}

    def rows(self, parts: Sequence[str]) -> np.ndarray:
        """Return the packed rows of the parts, int32 [n, 3, T]."""
        return np.concatenate([self._rows[part] for part in parts])

    def bytes(self, parts: Sequence[str]) -> int:
        """Return the bytes of the parts' text."""
        return sum(self._bytes[part] for part in parts)

    def evaluator(
        self, cfg: TransformerConfig, mesh: Mesh, parts: Sequence[str], batch: int, chunk: int
    ) -> Callable[..., np.ndarray]:
        """Build evaluate(params [P, ...], base=None) -> nats of each part's documents, fp64 [P, n].

        A part whose documents are not recorded has one column, their sum.
        """
        run, token_run = _program(cfg, mesh, chunk), _token_program(cfg, mesh, chunk)
        size = padded_rows(min(batch or 2**31, max(map(len, self._rows.values()))), mesh)
        batches = [_batches(self._rows[part], size) for part in parts]

        def evaluate(params: PyTree, base: PyTree = None) -> np.ndarray:
            programs = [token_run if part in self._sizes else run for part in parts]
            queued = [
                [program(params, base, rows) for rows in part] for program, part in zip(programs, batches, strict=True)
            ]
            return np.concatenate([self._columns(part, one) for part, one in zip(parts, queued, strict=True)], axis=1)

        return evaluate

    def _columns(self, part: str, queued: Sequence[jax.Array]) -> np.ndarray:
        """Return [P, documents] of batches of tokens' nats [P, B, T - 1]; [P, 1] of batches of their sums [P]."""
        if part not in self._sizes:
            return np.sum([np.asarray(x, np.float64) for x in queued], axis=0)[:, None]
        nats = np.concatenate([np.asarray(x, np.float64) for x in queued], axis=1)
        places, count = self._documents(part)[:, 1:].ravel(), len(self._sizes[part])
        each = nats[:, : len(self._rows[part])].reshape(len(nats), -1)
        return np.stack([np.bincount(places, member, count) for member in each])

    def _documents(self, part: str) -> np.ndarray:
        """Return which document each token of the part's rows is of, int [rows, T]; of padding 0, which has no nats.

        Documents are packed by their lengths alone: packed again, each as its own number, they lie where they lie.
        """
        lengths = self._sizes[part][:, 0]
        marks = (packing.Document(np.full(n, i), np.zeros(n, int)) for i, n in enumerate(lengths.tolist()))
        packed = np.stack(list(packing.pack(marks, self._rows[part].shape[2], overlap=1)))
        assert np.array_equal(packed[:, SEGMENTS], self._rows[part][:, SEGMENTS])
        return packed[:, TOKENS]

    def _slice(self, parts: Sequence[str], part: str) -> slice:
        widths = [len(self._sizes[name]) if name in self._sizes else 1 for name in parts]
        start = sum(widths[: list(parts).index(part)])
        return slice(start, start + widths[list(parts).index(part)])

    def series(self, nats: np.ndarray, parts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the bits per byte of each part, fp64 [P]."""
        unit = {part: math.log(2) * self._bytes[part] for part in parts}
        return {part: nats[:, self._slice(parts, part)].sum(axis=1) / unit[part] for part in parts}

    def result(self, nats: np.ndarray, parts: Sequence[str]) -> JsonObject:
        """Return one model's bits per byte; `forget` is that of the documents nobody was shown."""
        bits = {part: finite(value[0]) for part, value in self.series(nats[None], parts).items()}
        groups = {
            f"forget/{part}": {self.scale.key: bits[part], "bytes": self._bytes[part]}
            for part in parts
            if part != "retain"
        }
        return {"retain": bits.get("retain"), "forget": bits.get("heldout"), "by_group": groups}

    def chance_level(self, parts: Sequence[str]) -> float:
        """Return the bits per byte of one that knows of the parts how often each token stands in them, and no more."""
        tokens = self._targets(parts)
        return float(unigram_nats(tokens)[tokens].sum()) / (math.log(2) * self.bytes(parts))

    def _targets(self, parts: Sequence[str]) -> np.ndarray:
        rows = self.rows(parts)
        return rows[:, TOKENS, 1:][np.asarray(target_mask(jnp.asarray(rows[:, SEGMENTS]))) > 0]

    def chance_level_by_fact(self, parts: Sequence[str], part: str = "heldout") -> list[float]:
        """Return the same of each document of a part, the frequencies being those of all parts."""
        if part not in self._sizes:
            return []
        unigram = unigram_nats(self._targets(parts))
        places, own = self._documents(part)[:, 1:], self._rows[part]
        nats = unigram[own[:, TOKENS, 1:]] * np.asarray(target_mask(jnp.asarray(own[:, SEGMENTS])))
        sizes = self._sizes[part]
        return (np.bincount(places.ravel(), nats.ravel(), len(sizes)) / (math.log(2) * sizes[:, 1])).tolist()

    def prompts_by_fact(self, parts: Sequence[str], part: str = "heldout") -> list[int]:
        """Return the bytes of each document of a part; nothing where documents are not recorded."""
        return self._sizes[part][:, 1].tolist() if part in self._sizes and part in parts else []

    def by_fact(self, nats: np.ndarray, parts: Sequence[str], part: str = "heldout") -> np.ndarray:
        """Return the bits of each document of a part, fp64 [P, F]."""
        return nats[:, self._slice(parts, part)] / math.log(2)

    def flops(self, cfg: TransformerConfig, parts: Sequence[str]) -> float:
        """Return the forward passes over the parts' rows."""
        return sum(flops.forward(cfg, len(self._rows[part]), self._rows[part].shape[2]) for part in parts)

    def tokens(self, parts: Sequence[str]) -> int:
        """Return the tokens of the parts' rows, padding included."""
        return sum(self._rows[part][:, TOKENS].size for part in parts)


def unigram_nats(tokens: np.ndarray) -> np.ndarray:
    """Return −log of each token's frequency among these, fp64 [largest + 1]; 0 of a token that is not among them."""
    counts = np.bincount(tokens)
    return -np.log(np.where(counts, counts, counts.sum()) / counts.sum())


def _batches(rows: np.ndarray, size: int) -> np.ndarray:
    """Cut rows into batches, [n, size, 3, T]; the last is filled up with padding, which counts nothing."""
    fill = np.zeros((-len(rows) % size, *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, fill]).reshape(-1, size, *rows.shape[1:])


@functools.cache
def _program(cfg: TransformerConfig, mesh: Mesh, chunk: int) -> Callable[..., jax.Array]:
    """Return run(params [P, ...], base, rows [B, 3, T]) -> nats of the rows' targets, [P]: one program for all."""

    def nats(params: PyTree, rows: jax.Array) -> jax.Array:
        tokens, segments = (constrain(rows[:, i], "batch", None) for i in (TOKENS, SEGMENTS))
        hidden = transformer.hidden_states(cfg, params, tokens, segments)[:, :-1]
        head, mask = head_of(params, hidden), target_mask(segments)
        return head_loss(cfg, chunk, CROSS_ENTROPY, HeadInputs(head, tokens[:, 1:], mask))[0]

    return _over_members(nats, mesh)


@functools.cache
def _token_program(cfg: TransformerConfig, mesh: Mesh, chunk: int) -> Callable[..., jax.Array]:
    """Return run(params [P, ...], base, rows [B, 3, T]) -> nats of each row's targets, [P, B, T - 1]."""

    def nats(params: PyTree, rows: jax.Array) -> jax.Array:
        tokens, segments = (constrain(rows[:, i], "batch", None) for i in (TOKENS, SEGMENTS))
        hidden = transformer.hidden_states(cfg, params, tokens, segments)[:, :-1]
        scores = token_log_likelihoods(cfg, by_vocabulary(params), hidden, tokens[:, 1:], chunk)
        return -scores.T * target_mask(segments)

    return _over_members(nats, mesh)


def _over_members(nats: Callable[[PyTree, jax.Array], jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    def member(trained: PyTree, shared: PyTree) -> jax.Array:
        base, rows = shared
        return nats(lora.attach(trained, base), rows)

    def run(params: PyTree, base: PyTree, rows: PyTree) -> jax.Array:
        with tracing(mesh):
            out = over_members(member, mesh)(params, (base, rows))
        return jax.lax.with_sharding_constraint(out, replicated(mesh))  # every host reads all of it

    return jax.jit(run)
