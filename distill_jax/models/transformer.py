"""One decoder in Flax Linen: Gemma 2 as it stands; Gemma 3, Llama, Mistral and Qwen by a few fields of its config.

Axis legend used in every einsum of the package:
  B batch, T query length, S key length, D model width, F MLP width, N query heads, K key-value heads,
  G query heads per key-value head (N = K G), H head width, V vocabulary, L layers, P population.

Parameters (layers are stacked on a leading L axis because they run in one `nn.scan`):
  embedding [V, D], and unembedding [V, D] where the head is not tied to it; final_norm/scale [D]; and under layers/
  attention/{query [L,D,N,H], key_value [L,2,D,K,H], output [L,N,H,D]}, and there {query,key}_norm/scale [L,H] with
  qk_norm, and query_bias [L,N,H] and key_value_bias [L,2,K,H] with qkv_bias, mlp/{gate_up [L,2,D,F], down [L,F,D]},
  {pre,post}_{attention,mlp}_norm/scale [L,D], the post norms only where the config has them.

Beside them may stand what acts on a forward pass and is no weight: lora (`models.lora`), prefix and steering
(`models.insertions`).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.attention import attention, choose, masked
from distill_jax.models.attention_rows import Logits, Rows
from distill_jax.models.head import unembed
from distill_jax.models.remat import recomputed
from distill_jax.models.transformer_config import Section, TransformerConfig, local_layers, sections
from distill_jax.models.transformer_layers import Angles, Attend, Cache, Layer, RMSNorm, normal, rotary
from distill_jax.sharding.mesh import constrain
from distill_jax.types import ArrayOrShape, PyTree

Params = PyTree  # the tree above, of arrays or of what stands for them
# What layers leave besides the residual stream: a cache, the streams that leave each [L, B, T, D], or None.
Kept = PyTree
Masks = tuple[jax.Array, jax.Array]  # local, global
Local = bool | jax.Array  # whether a layer sees only a window; an array where one program serves both kinds


# ----------------------------------------------------------------------------------------------------- the weights


class Transformer(nn.Module):
    """The parameters of a decoder: calling it draws them. What runs it are the functions below."""

    cfg: TransformerConfig

    def setup(self) -> None:
        c = self.cfg
        self.embedding = self.param("embedding", normal(c, "vocab", "embed"), (c.vocab, c.hidden))
        if not c.tied:  # only the head reads it
            self.param("unembedding", normal(c, "vocab", "embed"), (c.vocab, c.hidden))
        self.layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, _first_values)
        self.final_norm = RMSNorm(c)

    def __call__(self, positions: jax.Array) -> jax.Array:
        x = jnp.zeros((*positions.shape, self.cfg.hidden), self.cfg.dtype)
        return self.final_norm(self.layers(x, rotary(self.cfg, positions))[0])


def _first_values(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attend to the only key there is."""
    del k
    return jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)


def init(cfg: TransformerConfig, key: jax.Array) -> Params:
    """Draw fresh fp32 weights: N(0, init_std²) for matrices, zero for norm scales (which act as 1 + scale)."""
    return nn.unbox(Transformer(cfg).init(key, jnp.zeros((1, 1), jnp.int32))["params"])


@functools.cache  # it traces the model, and every point of a sweep that damages one in part asks for it
def shapes(cfg: TransformerConfig) -> Params:
    """Return the shapes of a model's weights, without drawing them."""

    def draw() -> Params:
        return init(cfg, jax.random.key(0))

    weights: Params = jax.eval_shape(draw)
    return weights


def parameter_count(cfg: TransformerConfig) -> int:
    """Count the parameters without allocating them."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(cfg)))


def frozen(cfg: TransformerConfig, params: Params) -> Params:
    """Return params (or their shapes) that only forward passes read: matrices in the dtype they are computed in.

    The passes would cast them there at each use, so the numbers are the same and the memory is half with bfloat16.
    """

    def cast(path: tuple[jax.tree_util.DictKey, ...], w: ArrayOrShape) -> ArrayOrShape:
        if path[-1].key == "scale" or w.dtype == cfg.dtype:  # norms are computed in fp32
            return w
        if isinstance(w, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(w.shape, jnp.dtype(cfg.dtype), sharding=w.sharding)
        return w.astype(cfg.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


@functools.cache  # it traces the model, and every state, weight and report asks for it
def logical_axes(cfg: TransformerConfig) -> Params:
    """Return a tree like the parameters' whose leaves are PartitionSpecs of logical axis names."""
    boxed = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return nn.get_partition_spec(boxed)


# ----------------------------------------------------------------------------------------------- what a query sees


def segment_positions(segments: jax.Array) -> jax.Array:
    """Return each token's place within its own segment, [B, T] from segment numbers [B, T]."""
    index = jnp.arange(segments.shape[1])[None]
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def causal_masks(cfg: TransformerConfig, slots: jax.Array, key_segments: jax.Array, segments: jax.Array) -> Masks:
    """Return the (local, global) attention masks, each [B, T, S].

    A query sees the keys of its own segment that are not after it; segment 0 is padding and sees, and is
    seen by, nothing. `slots` [T] are the queries' places among the S keys.
    """
    distance = slots[:, None] - jnp.arange(key_segments.shape[1])[None, :]
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
    full = same & (distance >= 0)[None]
    return full & (distance < (cfg.sliding_window or distance.shape[1] + 1))[None], full


def seeing_prefix(params: Params, masks: Masks) -> Masks:
    """Return masks [B, T, S] that also show every query the keys of the params' prefix, which stand before all others.

    A window does not hide them. Of a prefix that `held` says is filled up with padding, the padding is hidden.
    """
    if "prefix" not in params:
        return masks
    prefix = params["prefix"]
    count = prefix["key"].shape[1]
    held = prefix["held"] > 0 if "held" in prefix else jnp.ones(count, bool)
    local, full = (jnp.concatenate([jnp.broadcast_to(held, (*m.shape[:2], count)), m], axis=2) for m in masks)
    return local, full


class Attends(NamedTuple):
    """How layers attend.

    Attributes:
      of: of(local) attends as layers of this kind do.
      kinds: whether each layer is local, where a program serves one kind; None where one serves both, told by an array.
    """

    of: Callable[..., Attend]
    kinds: tuple[bool, ...] | None = None


def by_segments(cfg: TransformerConfig, segments: jax.Array, params: Params) -> Attends:
    """Attend within the segments [B, T] of packed rows, by the implementation that is chosen for them.

    Each segment also sees the params' prefix, if there is one; of the implementations only the plain one can show it.
    """
    length = segments.shape[1]
    chosen = choose(cfg, length).implementation
    if chosen == "plain" or "prefix" in params:
        return by_mask(cfg, seeing_prefix(params, causal_masks(cfg, jnp.arange(length), segments, segments)))
    window = cfg.sliding_window if cfg.sliding_window < length else 0

    def of(local: bool) -> Attend:
        logits = _logits(cfg, window if local else 0)
        return lambda q, k, v: attention(chosen, Rows(q, k, v, segments), logits)

    differ = window or cfg.local_rope_theta
    return Attends(of, tuple(local_layers(cfg)) if differ else (False,) * cfg.layers)


def by_mask(cfg: TransformerConfig, masks: Masks) -> Attends:
    """Attend by masks [B, T, S]."""

    def of(local: jax.Array) -> Attend:
        return functools.partial(masked, mask=jnp.where(local, *masks), logits=_logits(cfg))

    return Attends(of)


def _logits(cfg: TransformerConfig, window: int = 0) -> Logits:
    return Logits(cfg.query_scale**-0.5, cfg.attention_softcap, window)


# ------------------------------------------------------------------------------------------------ the forward pass


def hidden_states(
    cfg: TransformerConfig,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array,
    disturbance: jax.Array | None = None,
) -> jax.Array:
    """Return the normalised final hidden states [B, T, D] of packed tokens [B, T] with segments [B, T]."""
    inputs = DecoderInputs(tokens, segment_positions(segments), disturbance=disturbance)
    return _final_norm(cfg, params, residual(cfg, params, inputs, by_segments(cfg, segments, params))[0])


def apply(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return fp32 logits [B, T, V] for packed tokens [B, T]; segment 0 marks padding."""
    return unembed(cfg, params, hidden_states(cfg, params, tokens, segments))


def residual_at(
    cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array, layer: int
) -> jax.Array:
    """Return the residual stream [B, T, D] that enters `layer` (counted from 0; L is what leaves the last).

    The first layers of a decoder are a decoder: only these are run.
    """
    if not 0 < layer <= cfg.layers:
        raise ValueError(f"layer = {layer}: the model has layers 1 to {cfg.layers} to enter")
    stacked = {name: params[name] for name in ("layers", "lora", "steering") if name in params}
    first = dict(params, **jax.tree.map(lambda w: w[:layer], stacked))
    if "prefix" in params:
        first["prefix"] = {k: x if k == "held" else x[:layer] for k, x in params["prefix"].items()}
    shallow = dataclasses.replace(cfg, layers=layer)
    inputs = DecoderInputs(tokens, segment_positions(segments))
    return residual(shallow, first, inputs, by_segments(shallow, segments, first))[0]


def residuals(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return the residual stream that leaves each layer, [L, B, T, D], of packed tokens [B, T]."""
    inputs, attends = DecoderInputs(tokens, segment_positions(segments)), by_segments(cfg, segments, params)
    states: jax.Array = residual(cfg, params, inputs, attends, every_layer=True)[1]
    return states


class CachedInputs(NamedTuple):
    """What a decoder with a cache reads.

    Attributes:
      tokens, positions: int32 [B, T].
      held: int32 [B, S], 1 for each of the cache's slots that holds a token and 0 for padding; slots after the tokens
        are hidden by causality, whatever it says of them.
    """

    tokens: jax.Array
    positions: jax.Array
    held: jax.Array


def empty_cache(cfg: TransformerConfig, batch: int, length: int) -> Cache:
    """Return zeroed keys and values, each [L, B, S, K, H]."""
    shape = (cfg.layers, batch, length, cfg.kv_heads, cfg.head_dim)
    keys, values = (constrain(jnp.zeros(shape, cfg.dtype), None, "batch", None, "kv_heads", None) for _ in range(2))
    return keys, values


def decode_step(
    cfg: TransformerConfig, params: Params, cache: Cache, slot: jax.Array | int, inputs: CachedInputs
) -> tuple[jax.Array, Cache]:
    """Run tokens that take the cache's slots slot..slot+T-1, and return (hidden [B, T, D], cache)."""
    tokens, positions, held = inputs
    masks = causal_masks(cfg, slot + jnp.arange(tokens.shape[1]), held, jnp.ones_like(tokens))
    masks = seeing_prefix(params, masks)
    x, filled = residual(cfg, params, DecoderInputs(tokens, positions, cache, slot), by_mask(cfg, masks))
    assert filled is not None
    return _final_norm(cfg, params, x), filled


class DecoderInputs(NamedTuple):
    """What a decoder reads: tokens and positions, int32 [B, T]; with a cache also the slot of the first.

    Attributes:
      disturbance: what is added to the residual stream that enters the first layer [B, T, D], or None.
    """

    tokens: jax.Array
    positions: jax.Array
    cache: Cache | None = None
    slot: jax.Array | int = 0
    disturbance: jax.Array | None = None


@jax.named_scope("Transformer")  # as the plan reads, which says what part of a model costs what
def residual(
    cfg: TransformerConfig, params: Params, inputs: DecoderInputs, attends: Attends, *, every_layer: bool = False
) -> tuple[jax.Array, Kept]:
    """Return the residual stream [B, T, D] that leaves the last layer, and the cache.

    Args:
      every_layer: return the streams that leave each layer [L, B, T, D] in place of the cache.
    """
    dtype = jnp.dtype(cfg.dtype)
    x = look_up(params["embedding"].astype(dtype), inputs.tokens)
    if cfg.scale_embedding:  # in the compute dtype, as the published Gemma weights expect
        x = x * jnp.asarray(cfg.hidden**0.5, dtype)
    x = constrain(x, "batch", None, None)
    if inputs.disturbance is not None:
        x = x + inputs.disturbance.astype(dtype)
    angles = rotary(cfg, inputs.positions)
    local_angles = rotary(cfg, inputs.positions, local=True) if cfg.local_rope_theta else angles

    def layer(x: jax.Array, weights: PyTree, cache: Cache | None, local: Local) -> tuple[jax.Array, Kept]:
        chosen = _either(local, local_angles, angles) if cfg.local_rope_theta else angles
        read = {name: weights[name] for name in weights if name != "steering"}
        out: PyTree = Layer(cfg, attends.of(local)).apply(read, x, chosen, cache, inputs.slot)
        out = (out[0] + weights["steering"].astype(dtype), out[1]) if "steering" in weights else out
        return (out[0], out[0]) if every_layer else out

    stacked = _stacked(params)
    if attends.kinds is None:
        return _scan_layers(cfg, layer, x, (stacked, inputs.cache, jnp.array(local_layers(cfg))))
    kept = []
    for section in sections(attends.kinds, cfg.global_first, cfg.global_every):
        x, of_section = _scan_section(cfg, layer, x, stacked, section)
        kept.append(of_section)
    return x, jnp.concatenate(kept) if every_layer else None


def look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Return the rows of table [V, D] at index [B, T].

    A gather's gradient is a scatter, which XLA runs row by row on CPU and which gathers a sharded table whole.
    For a small vocabulary the product with a one-hot matrix is the same to the bit and far cheaper.
    """
    if table.shape[0] > 1024:
        return table[index]
    one_hot = jax.nn.one_hot(index, table.shape[0], dtype=table.dtype)
    # The default precision would round fp32 weights, to bf16 on a TPU and to TF32 on a GPU.
    return jnp.matmul(one_hot, table, precision="highest")


@jax.named_scope("final_norm")
def _final_norm(cfg: TransformerConfig, params: Params, x: jax.Array) -> jax.Array:
    return RMSNorm(cfg).apply({"params": params["final_norm"]}, x)  # type: ignore[return-value]


def _stacked(params: Params) -> PyTree:
    """Return what each layer reads of the params, {"params": weights, …}, every leaf [L, ...]."""
    stacked = {"params": params["layers"]} | {name: params[name] for name in ("lora", "steering") if name in params}
    if "prefix" in params:
        stacked["prefix"] = {"attention": {name: params["prefix"][name] for name in ("key", "value")}}
    return stacked


def _either(local: Local, yes: Angles, no: Angles) -> Angles:
    if isinstance(local, bool):
        return yes if local else no
    cos, sin = (jnp.where(local, a, b) for a, b in zip(yes, no, strict=True))
    return cos, sin


LayerFunction = Callable[..., tuple[jax.Array, Kept]]  # (x, weights, cache, local) -> (x, cache)


def _scan_layers(
    cfg: TransformerConfig, layer: LayerFunction, x: jax.Array, stacked: tuple[PyTree, Cache | None, jax.Array]
) -> tuple[jax.Array, Kept]:
    """Run all layers, each told by an array of which kind it is."""

    def one(x: jax.Array, scanned: tuple[PyTree, Cache | None, jax.Array]) -> tuple[jax.Array, Kept]:
        return recomputed(layer, cfg.remat)(x, *scanned)

    out: tuple[jax.Array, Kept] = jax.lax.scan(one, x, stacked, unroll=cfg.unroll)
    return out


def _scan_section(
    cfg: TransformerConfig, layer: LayerFunction, x: jax.Array, stacked: PyTree, section: Section
) -> tuple[jax.Array, Kept]:
    """Run a section's layers, compiled once for all times that its kinds recur; return also what each keeps."""
    size = len(section.kinds)
    stop = section.start + size * section.times

    def groups(w: jax.Array) -> jax.Array:
        return w[section.start : stop].reshape(section.times, size, *w.shape[1:])

    def group(x: jax.Array, weights: PyTree) -> tuple[jax.Array, Kept]:
        kept = []
        for i, local in enumerate(section.kinds):
            one = recomputed(functools.partial(layer, local=local), cfg.remat)
            x, of_layer = one(x, jax.tree.map(operator.itemgetter(i), weights), None)
            kept.append(of_layer)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *kept)

    x, kept = jax.lax.scan(group, x, jax.tree.map(groups, stacked), unroll=max(1, cfg.unroll // size))
    return x, jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), kept)
