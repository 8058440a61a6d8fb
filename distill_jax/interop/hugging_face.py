"""Weights in the Hugging Face layout <-> our tree, one tensor at a time.

Their matrices are [out, in], a tensor a layer; ours are [in, out] with the axes of heads apart, stacked over layers
(and in key_value and gate_up, over two matrices). Their norms multiply with w, or as ours with 1 + w.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.interop.families import FAMILIES, family_of
from distill_jax.models import transformer
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.models.transformer_layers import FANS
from distill_jax.sharding.mesh import shardings, with_shardings

# Our leaf -> their tensors: in every layer, and once in a model.
LAYER: dict[str, tuple[str, ...]] = {
    "attention/query": ("self_attn.q_proj",),
    "attention/key_value": ("self_attn.k_proj", "self_attn.v_proj"),
    "attention/query_bias": ("self_attn.q_proj",),
    "attention/key_value_bias": ("self_attn.k_proj", "self_attn.v_proj"),
    "attention/output": ("self_attn.o_proj",),
    "attention/query_norm/scale": ("self_attn.q_norm",),
    "attention/key_norm/scale": ("self_attn.k_norm",),
    "mlp/gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp/down": ("mlp.down_proj",),
    "pre_attention_norm/scale": ("input_layernorm",),
    "post_attention_norm/scale": ("post_attention_layernorm",),
    "pre_mlp_norm/scale": ("pre_feedforward_layernorm",),
    "post_mlp_norm/scale": ("post_feedforward_layernorm",),
}
WHOLE = {"embedding": "model.embed_tokens", "final_norm/scale": "model.norm", "unembedding": "lm_head"}
# Without post norms, theirs is called after what it follows, not after what it precedes.
LAYER_WITHOUT_POST_NORMS = {**LAYER, "pre_mlp_norm/scale": ("post_attention_layernorm",)}

Names = dict[tuple[int, ...], str]


class Source(Protocol):
    """Tensors that can be read in part."""

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of a tensor."""

    def read(self, name: str, *index: slice) -> np.ndarray:
        """Return a part of a tensor."""


def names(cfg: TransformerConfig, leaf: str) -> Names:
    """Return which of their tensors a leaf of our tree is made of, by its place on the leaf's leading axes."""
    if leaf in WHOLE:
        return {(): f"{WHOLE[leaf]}.weight"}
    parts = (LAYER if cfg.post_norms else LAYER_WITHOUT_POST_NORMS)[leaf.removeprefix("layers/")]
    at = lambda i, part: (i, part) if len(parts) > 1 else (i,)  # noqa: E731
    kind = "bias" if leaf.endswith("_bias") else "weight"
    return {at(i, p): f"model.layers.{i}.{name}.{kind}" for i in range(cfg.layers) for p, name in enumerate(parts)}


@functools.cache
def leaves(cfg: TransformerConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every leaf of our tree, by its path with slashes."""
    tree = transformer.shapes(cfg)
    return {_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def expected(cfg: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a model has in their layout."""
    out = {}
    for leaf, shape in leaves(cfg).items():
        for place, name in names(cfg, leaf).items():
            inputs, outputs = sides(leaf, shape)
            flat = tuple(math.prod(side) for side in (outputs, inputs) if side)
            out[name] = flat or shape[len(place) :]
    return out


def load(cfg: TransformerConfig, source: Source, mesh: Mesh, dtype: str | None = None) -> Params:
    """Read a model straight to its shards, the largest leaf first.

    Args:
      dtype: of the matrices; as they are stored, when left out. Norms are fp32 always.
    """
    tree = transformer.shapes(cfg)
    tree = with_shardings(tree, shardings(mesh, transformer.logical_axes(cfg), tree))
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    out: dict[int, jax.Array] = {}
    # A leaf's parts are put together on the host: the largest while there is most room.
    for i in sorted(range(len(paths)), key=lambda i: -math.prod(paths[i][1].shape)):
        leaf, shape = _path(paths[i][0]), paths[i][1]
        kind = jnp.dtype(dtype) if dtype else _dtype(source, list(names(cfg, leaf).values()))
        reader = _Leaf(cfg, leaf, shape.shape, source, jnp.dtype("float32") if leaf.endswith("scale") else kind)
        out[i] = jax.make_array_from_callback(shape.shape, shape.sharding, reader)
        out[i].block_until_ready()
    return jax.tree_util.tree_unflatten(treedef, [out[i] for i in range(len(paths))])


def _dtype(source: Source, wanted: Sequence[str]) -> np.dtype:
    return jnp.result_type(*{source.dtype(name) for name in wanted})


class _Leaf:
    """Read any part of one leaf of our tree."""

    def __init__(self, cfg: TransformerConfig, leaf: str, shape: tuple[int, ...], source: Source, dtype: np.dtype):
        self.names, self.leaf, self.shape, self.source, self.dtype = names(cfg, leaf), leaf, shape, source, dtype
        self.offset = FAMILIES[family_of(cfg)].norm_offset

    def __call__(self, index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        spans = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        lead = len(next(iter(self.names)))
        out = np.empty([len(span) for span in spans], self.dtype)
        for place in np.ndindex(*(len(span) for span in spans[:lead])):
            name = self.names[tuple(span[k] for span, k in zip(spans, place, strict=False))]
            out[place] = self._part(name, [slice(s.start, s.stop) for s in spans[lead:]])
        return out

    def _part(self, name: str, index: Sequence[slice]) -> np.ndarray:
        inputs, outputs = sides(self.leaf, self.shape)
        if not outputs:
            w = self.source.read(name, *index)
            return w.astype(np.float32) - self.offset if self.leaf.endswith("scale") else w
        faces_in, faces_out = index[: len(inputs)], index[len(inputs) :]
        if not inputs:
            w = self.source.read(name, _rows(faces_out, outputs))
            return w.reshape(-1, *outputs[1:])[(slice(None), *faces_out[1:])]
        w = self.source.read(name, _rows(faces_out, outputs), _rows(faces_in, inputs))
        w = w.T.reshape(-1, *inputs[1:], w.shape[0] // math.prod(outputs[1:]), *outputs[1:])
        # Of the first axis of either side only the wanted part was read, of the others all.
        return w[(slice(None), *faces_in[1:], slice(None), *faces_out[1:])]


def _rows(index: Sequence[slice], shape: Sequence[int]) -> slice:
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner)


def tensors(cfg: TransformerConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yield their tensors, name by name, from our tree of weights."""
    offset = FAMILIES[family_of(cfg)].norm_offset
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        stacked = np.asarray(leaf)
        inputs, outputs = sides(_path(path), stacked.shape)
        for place, name in names(cfg, _path(path)).items():
            w = stacked[place]
            if outputs:
                w = w.reshape(math.prod(inputs), math.prod(outputs)).T if inputs else w.ravel()
            yield name, w + offset if _path(path).endswith("scale") else w


def sides(leaf: str, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of a layer's tensor that face its input and its output.

    A bias has no input, and what is laid out as theirs has neither.
    """
    name = leaf.rsplit("/", 1)[-1]
    if name.endswith("_bias"):
        return (), tuple(shape[-2:])
    if not leaf.startswith("layers/") or name not in FANS:
        return (), ()
    faces_in, faces_out = FANS[name]
    return tuple(shape[1 + i] for i in faces_in), tuple(shape[1 + i] for i in faces_out)


def _path(path: Sequence[jax.tree_util.DictKey]) -> str:
    return "/".join(str(entry.key) for entry in path)


def check_shapes(cfg: TransformerConfig, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Hold the tensors that are there against those that the model has.

    Raises:
      ConfigError: naming a tensor that is missing, of another shape, or unknown.
    """
    wanted = expected(cfg)
    missing = [name for name in wanted if name not in shapes]
    unknown = [name for name in shapes if name not in wanted]
    for what, several in (("is missing", missing), ("is no part of this architecture", unknown)):
        more = f" (and {len(several) - 1} more)" if several[1:] else ""
        check(not several, f"{where}: tensor {several[:1]} {what}{more}")
    for name, shape in wanted.items():
        check(
            tuple(shapes[name]) == shape, f"{where}: {name} has shape {tuple(shapes[name])}, config.json says {shape}"
        )
