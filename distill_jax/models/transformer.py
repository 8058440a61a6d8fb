"""One decoder in Flax Linen: Gemma 2 as it stands; Gemma 3, Llama, Mistral and Qwen by a few fields of its config.

Axis legend used in every einsum of the package:
  B batch, T query length, S key length, D model width, F MLP width, N query heads, K key-value heads,
  G query heads per key-value head (N = K G), H head width, V vocabulary, L layers, P population.

Parameters (layers are stacked on a leading L axis because they run in one `nn.scan`):
  embedding [V, D], and unembedding [V, D] where the head is not tied to it; final_norm/scale [D]; and under layers/
  attention/{query [L,D,N,H], key_value [L,2,D,K,H], output [L,N,H,D]}, and there {query,key}_norm/scale [L,H] with
  qk_norm, and query_bias [L,N,H] and key_value_bias [L,2,K,H] with qkv_bias, mlp/{gate_up [L,2,D,F], down [L,F,D]},
  {pre,post}_{attention,mlp}_norm/scale [L,D], the post norms only where the config has them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.config import added, check
from distill_jax.models.head import LOSS_HEADS, softcap, unembed
from distill_jax.models.remat import POLICIES, named
from distill_jax.sharding.mesh import constrain, gather, gathers
from distill_jax.types import ArrayOrShape, PyTree

Params = PyTree  # the tree above, of arrays or of what stands for them
Cache = tuple[jax.Array, jax.Array]
Angles = tuple[jax.Array, jax.Array]
Masks = tuple[jax.Array, jax.Array]  # local, global


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


# Axes of one matrix (without the stacked L axis) that face its input and its output. In key_value and gate_up two
# matrices share a tensor: axis 0 tells them apart and belongs to neither side.
FANS = {
    "embedding": ((0,), (1,)),
    "unembedding": ((1,), (0,)),
    "query": ((0,), (1, 2)),
    "key_value": ((1,), (2, 3)),
    "output": ((0, 1), (2,)),
    "gate_up": ((1,), (2,)),
    "down": ((0,), (1,)),
}

# Logical axes of a layer's matrices, without the axes that stack them.
MATRIX_AXES = {
    "query": ("embed", "heads", "head_dim"),
    "key_value": ("embed", "kv_heads", "head_dim"),
    "output": ("heads", "head_dim", "embed"),
    "gate_up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}

MAX_LAYERS = 10_000  # a file that claims more is damaged, and looking for so many takes for ever

# A large finite negative: -inf would make a row that may attend to nothing (padding) NaN.
MASKED = -1e30

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of a decoder.

    Attributes:
      vocab: V, rows of the embedding and of the head.
      layers: L.
      hidden: D.
      mlp: F.
      heads: N, a multiple of `kv_heads`.
      kv_heads: K.
      head_dim: H, even (RoPE rotates halves).
      query_scale: attention logits are divided by sqrt(query_scale); Gemma 2 fixes it at 256 whatever H.
      attention_softcap, final_softcap: c in c·tanh(x / c); 0 switches the cap off.
      sliding_window: keys a local layer can see. 0: all layers are global.
      global_every: the last of every so many layers is global, the others are local; with 2 they alternate, with 0 all
        are local.
      global_first: so many of the first layers are global besides.
      rope_theta: base of the rotary frequencies.
      rope_scaling: the scaling to longer contexts: (factor,) of all frequencies, or Llama 3's (factor, low_freq_factor,
        high_freq_factor, original length); () for none.
      local_rope_theta: base of the frequencies of local layers, which are not stretched; 0: as those of global ones.
      qk_norm: whether every head's queries and keys are normalised before they are rotated.
      qkv_bias: whether queries, keys and values have a bias.
      activation: of the gated MLP, a key of `ACTIVATIONS`; "gelu" is its tanh approximation.
      post_norms: whether what a block computed is normalised before it is added to the residual stream.
      scale_embedding: whether embeddings enter the residual stream multiplied with sqrt(D).
      tied: whether the head is the embedding.
      norm_eps: epsilon of RMSNorm.
      init_std: standard deviation of every freshly drawn matrix.
      dtype: dtype of the computation; weights that train stay in fp32 and are cast where they are used.
      unroll: layers the scan inlines at a time; 1 compiles fastest, all of them run fastest on a CPU.
      remat: what the backward pass recomputes, a key of `models.remat.POLICIES`; "auto": as little as fits the devices.
      loss_head: how losses of the head are computed: "chunked" (logits of a chunk of tokens exist), "blockwise" (a
        block of the vocabulary at a time), or "auto", by the device and the size of the vocabulary.
    """

    vocab: int
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    query_scale: float = 256.0
    attention_softcap: float = 50.0
    final_softcap: float = 30.0
    sliding_window: int = 4096
    global_every: int = 2
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    local_rope_theta: float = 0.0
    qk_norm: bool = False
    activation: str = "gelu"
    post_norms: bool = True
    scale_embedding: bool = True
    tied: bool = True
    norm_eps: float = 1e-6
    init_std: float = 0.02
    dtype: str = "float32"
    unroll: int = 1
    remat: str = "none"
    qkv_bias: bool = added(False)
    global_first: int = added(0)
    loss_head: str = added("auto")

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))  # JSON has lists, which do not hash
        self._check_sizes()
        for name, value, choices in (
            ("remat", self.remat, POLICIES),
            ("activation", self.activation, ACTIVATIONS),
            ("loss_head", self.loss_head, LOSS_HEADS),
        ):
            check(value in choices, f"model.{name} = {value!r}: choose one of {', '.join(choices)}")
        scaling = self.rope_scaling
        complete = len(scaling) == 1 or (len(scaling) == 4 and scaling[1] < scaling[2])
        fix_hint = "give (factor,) or (factor, low, high, original length), positive, low < high"
        check(not scaling or (min(scaling) > 0 and complete), f"model.rope_scaling = {scaling}: {fix_hint}")
        known = self.dtype in ("float32", "bfloat16")
        check(known, f"model.dtype = {self.dtype!r}: choose float32 or bfloat16")

    def _check_sizes(self) -> None:
        widths = {"vocab": self.vocab, "layers": self.layers, "hidden": self.hidden, "mlp": self.mlp}
        heads = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        for name, value in (widths | heads).items():
            positive = isinstance(value, int) and value >= 1
            check(positive, f"model.{name} = {value!r}: must be a whole number, at least 1")
        check(self.layers <= MAX_LAYERS, f"model.layers = {self.layers}: must be at most {MAX_LAYERS}")
        for name, value in {"global_every": self.global_every, "global_first": self.global_first}.items():
            check(value >= 0, f"model.{name} = {value}: must not be negative")
        fix_hint = "every key-value head serves the same number of query heads"
        where = f"model.heads = {self.heads} is not a multiple of model.kv_heads = {self.kv_heads}"
        check(self.heads % self.kv_heads == 0, f"{where}: {fix_hint}")
        check(self.head_dim % 2 == 0, f"model.head_dim = {self.head_dim} is odd: rotary embedding rotates pairs")


Initializer = Callable[..., PyTree]  # boxes the array with the names of its axes, until `nn.unbox`


def _normal(cfg: TransformerConfig, *axes: str) -> Initializer:
    return nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), axes)


def _zeros(*axes: str) -> Initializer:
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def rotary(cfg: TransformerConfig, positions: jax.Array, local: bool = False) -> Angles:
    """Return the rotary (cos, sin) of positions [B, T], each fp32 [B, T, 1, H], for all layers of a kind at once.

    Args:
      local: for the local layers of a config that gives them a base of their own.
    """
    theta, scaling = (cfg.local_rope_theta, ()) if local else (cfg.rope_theta, cfg.rope_scaling)
    half = cfg.head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if len(scaling) == 1:
        frequency = frequency / scaling[0]
    elif scaling:
        factor, low, high, length = scaling
        # Slow frequencies turn `factor` times slower, fast ones are kept, and between them lies a ramp.
        turns = length * frequency / (2 * math.pi)
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    angle = (positions[..., None].astype(jnp.float32) * frequency)[:, :, None]
    sin = jnp.sin(angle)
    return jnp.tile(jnp.cos(angle), 2), jnp.concatenate([-sin, sin], axis=-1)


def rope(x: jax.Array, cos_sin: Angles) -> jax.Array:
    """Rotate x [B, T, N, H], the first half of H against the second."""
    cos, sin = cos_sin
    y = x.astype(jnp.float32)
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


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


def dense(x: jax.Array, w: jax.Array, inputs: int = 1) -> jax.Array:
    """Contract the last `inputs` axes of x [B, T, ...] with the first of w.

    As one two-dimensional product: XLA's CPU backend runs its weight gradient twice as fast as the same einsum's.
    """
    rows, shape_in, shape_out = x.shape[:-inputs], w.shape[:inputs], w.shape[inputs:]
    y = x.reshape(math.prod(rows), math.prod(shape_in)) @ w.reshape(math.prod(shape_in), math.prod(shape_out))
    return y.reshape(rows + shape_out)


def project(module: nn.Module, name: str, x: jax.Array, w: jax.Array, index: int | None = None) -> jax.Array:
    """Return x w, in x's dtype, plus x a b where the params carry an adapter to the module's matrix `name`.

    Args:
      name: a key of `FANS`, which tells how many of w's axes face x.
      index: which of two matrices that share a tensor w is.
    """
    inputs, axes = len(FANS[name][0]), MATRIX_AXES[name]
    y = gathered_dense(x, w.astype(x.dtype), axes, inputs)
    if module.has_variable("lora", name):
        pair: PyTree = module.get_variable("lora", name)
        a, b = ((pair[k] if index is None else pair[k][index]).astype(x.dtype) for k in "ab")
        narrow = gathered_dense(x, a, (*axes[:inputs], None), inputs)
        y += gathered_dense(narrow, b, (None, *axes[inputs:]))
    return named(y, name)


def gathered_dense(x: jax.Array, w: jax.Array, axes: Sequence[str | None], inputs: int = 1) -> jax.Array:
    """Return `dense`, with a weight that is divided over `fsdp` put together before the product.

    Not where there are fewer tokens than w has rows, as in a step of decoding: there sums of products are smaller.
    """
    tokens, rows = math.prod(x.shape[:-inputs]), math.prod(w.shape[:inputs])
    return dense(x, gather(w, *axes) if tokens >= rows else w, inputs)


class RMSNorm(nn.Module):
    """x / rms(x) · (1 + scale) over the last axis, computed in fp32."""

    cfg: TransformerConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jnp.asarray(self.param("scale", _zeros(self.axis), x.shape[-1:]))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.cfg.norm_eps)
        return (y * (1.0 + scale)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and a logit softcap."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: Angles, mask: jax.Array, cache: Cache | None, slot: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        shape_q, shape_kv = (c.hidden, c.heads, c.head_dim), (2, c.hidden, c.kv_heads, c.head_dim)
        w_q = self.param("query", _normal(c, *MATRIX_AXES["query"]), shape_q)
        w_kv = self.param("key_value", _normal(c, "two", *MATRIX_AXES["key_value"]), shape_kv)
        w_o = self.param("output", _normal(c, *MATRIX_AXES["output"]), (c.heads, c.head_dim, c.hidden))

        q = project(self, "query", x, w_q)
        k, v = (project(self, "key_value", x, w_kv[i], i) for i in (0, 1))
        if c.qkv_bias:
            q, k, v = (y + b.astype(dtype) for y, b in zip((q, k, v), self._biases(), strict=True))
        if c.qk_norm:
            q, k = (RMSNorm(c, "head_dim", name=f"{n}_norm")(y) for n, y in (("query", q), ("key", k)))
        q, k = rope(q, angles), rope(k, angles)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, slot, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, slot, axis=1)
            cache = (k, v)
        q = q.reshape(*q.shape[:2], c.kv_heads, c.heads // c.kv_heads, c.head_dim)
        logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
        logits = softcap(logits * c.query_scale**-0.5, c.attention_softcap)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, MASKED), axis=-1).astype(dtype)
        out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(*x.shape[:2], c.heads, c.head_dim)
        out = constrain(out, "batch", None, "heads", None)
        return project(self, "output", out, w_o), cache

    def _biases(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what is added to queries [N, H], keys and values [K, H]."""
        c = self.cfg
        query: PyTree = self.param("query_bias", _zeros("heads", "head_dim"), (c.heads, c.head_dim))
        pair: PyTree = self.param("key_value_bias", _zeros("two", "kv_heads", "head_dim"), (2, c.kv_heads, c.head_dim))
        return query, pair[0], pair[1]


class MLP(nn.Module):
    """A gated MLP: down(activation(x gate) · x up)."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.cfg
        w_in = self.param("gate_up", _normal(c, "two", *MATRIX_AXES["gate_up"]), (2, c.hidden, c.mlp))
        w_out = self.param("down", _normal(c, *MATRIX_AXES["down"]), (c.mlp, c.hidden))
        gate, up = (project(self, "gate_up", x, w_in[i], i) for i in (0, 1))
        wide = constrain(ACTIVATIONS[c.activation](gate) * up, "batch", None, "mlp")
        return project(self, "down", wide, w_out)


class Layer(nn.Module):
    """One pre- and, if so configured, post-normalised block; the residual stream is the scan's carry."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        scanned: tuple[jax.Array, Cache | None],
        angles: PyTree,  # `Angles`, or a pair of them: of local layers and of global ones
        masks: Masks,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Cache | None]:
        local, cache = scanned
        mask = jnp.where(local, masks[0], masks[1])
        if self.cfg.local_rope_theta:
            angles = jax.tree.map(functools.partial(jnp.where, local), *angles)
        norm = functools.partial(RMSNorm, self.cfg)
        post = norm if self.cfg.post_norms else _no_norm
        y = norm(name="pre_attention_norm")(x)
        y, cache = Attention(self.cfg, name="attention")(y, angles, mask, cache, slot)
        x = x + post(name="post_attention_norm")(y)
        y = MLP(self.cfg, name="mlp")(norm(name="pre_mlp_norm")(x))
        return constrain(x + post(name="post_mlp_norm")(y), "batch", None, None), cache


def _no_norm(name: str) -> Callable[[jax.Array], jax.Array]:
    del name
    return lambda y: y


class Transformer(nn.Module):
    """Embed, scan the layers, normalise; `unembed` gives logits from the normalised state."""

    cfg: TransformerConfig

    def setup(self) -> None:
        c = self.cfg
        self.embedding = self.param("embedding", _normal(c, "vocab", "embed"), (c.vocab, c.hidden))
        if not c.tied:  # only `unembed` reads it
            self.param("unembedding", _normal(c, "vocab", "embed"), (c.vocab, c.hidden))
        layer = Layer
        if c.remat != "none" or gathers():
            layer = nn.remat(Layer, policy=POLICIES[c.remat], prevent_cse=False)
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = RMSNorm(c)

    def residual(
        self, tokens: jax.Array, positions: jax.Array, masks: Masks, cache: Cache | None, slot: jax.Array | int
    ) -> tuple[jax.Array, Cache | None]:
        """Return the residual stream [B, T, D] that leaves the last layer, and the cache."""
        dtype = jnp.dtype(self.cfg.dtype)
        x = look_up(self.embedding.astype(dtype), tokens)
        if self.cfg.scale_embedding:  # in the compute dtype, as the published Gemma weights expect
            x = x * jnp.asarray(self.cfg.hidden**0.5, dtype)
        x = constrain(x, "batch", None, None)
        local = jnp.array(local_layers(self.cfg))
        angles = rotary(self.cfg, positions)
        kinds = (rotary(self.cfg, positions, local=True), angles) if self.cfg.local_rope_theta else angles
        return self.layers(x, (local, cache), kinds, masks, slot)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        masks: Masks,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache | None]:
        x, cache = self.residual(tokens, positions, masks, cache, slot)
        return self.final_norm(x), cache


def local_layers(cfg: TransformerConfig) -> list[bool]:
    """Return whether each layer sees only a window of keys."""
    shown = cfg.global_every or cfg.layers + 1
    return [cfg.sliding_window > 0 and i >= cfg.global_first and (i + 1) % shown > 0 for i in range(cfg.layers)]


def causal_masks(cfg: TransformerConfig, slots: jax.Array, key_segments: jax.Array, segments: jax.Array) -> Masks:
    """Return the (local, global) attention masks, each [B, T, S].

    A query sees the keys of its own segment that are not after it; segment 0 is padding and sees, and is
    seen by, nothing. `slots` [T] are the queries' places among the S keys.
    """
    distance = slots[:, None] - jnp.arange(key_segments.shape[1])[None, :]
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
    full = same & (distance >= 0)[None]
    return full & (distance < (cfg.sliding_window or distance.shape[1] + 1))[None], full


def segment_positions(segments: jax.Array) -> jax.Array:
    """Return each token's place within its own segment, [B, T] from segment numbers [B, T]."""
    index = jnp.arange(segments.shape[1])[None]
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def init(cfg: TransformerConfig, key: jax.Array) -> Params:
    """Draw fresh fp32 weights: N(0, init_std²) for matrices, zero for norm scales (which act as 1 + scale)."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    masks = (jnp.ones((1, 1, 1), bool),) * 2
    return nn.unbox(Transformer(cfg).init(key, tokens, tokens, masks)["params"])


def shapes(cfg: TransformerConfig) -> Params:
    """Return the shapes of a model's weights, without drawing them."""

    def draw() -> Params:
        return init(cfg, jax.random.key(0))

    weights: Params = jax.eval_shape(draw)
    return weights


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


def logical_axes(cfg: TransformerConfig) -> Params:
    """Return a tree like the parameters' whose leaves are PartitionSpecs of logical axis names."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    masks = (jnp.ones((1, 1, 1), bool),) * 2
    boxed = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), tokens, tokens, masks)["params"]
    return nn.get_partition_spec(boxed)


def _variables(params: Params) -> dict[str, PyTree]:
    """Return params as Flax wants them: the weights, and apart from them the adapters, if there are any."""
    if "lora" not in params:
        return {"params": params}
    return {"params": {k: v for k, v in params.items() if k != "lora"}, "lora": {"layers": params["lora"]}}


def hidden_states(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return the normalised final hidden states [B, T, D] of packed tokens [B, T] with segments [B, T]."""
    masks = causal_masks(cfg, jnp.arange(tokens.shape[1]), segments, segments)
    return Transformer(cfg).apply(_variables(params), tokens, segment_positions(segments), masks)[0]


def residual_at(
    cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array, layer: int
) -> jax.Array:
    """Return the residual stream [B, T, D] that enters `layer` (counted from 0; L is what leaves the last).

    The first layers of a decoder are a decoder: only these are run.
    """
    if not 0 < layer <= cfg.layers:
        raise ValueError(f"layer = {layer}: the model has layers 1 to {cfg.layers} to enter")
    stacked = {name: params[name] for name in ("layers", "lora") if name in params}
    first = dict(params, **jax.tree.map(lambda w: w[:layer], stacked))
    shallow = dataclasses.replace(cfg, layers=layer)
    masks = causal_masks(cfg, jnp.arange(tokens.shape[1]), segments, segments)
    positions = segment_positions(segments)
    return Transformer(shallow).apply(
        _variables(first), tokens, positions, masks, None, 0, method=Transformer.residual
    )[0]


def apply(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return fp32 logits [B, T, V] for packed tokens [B, T]; segment 0 marks padding."""
    return unembed(cfg, params, hidden_states(cfg, params, tokens, segments))


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
    out: PyTree = Transformer(cfg).apply(_variables(params), tokens, positions, masks, cache, slot)
    return out


def parameter_count(cfg: TransformerConfig) -> int:
    """Count the parameters without allocating them."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(cfg)))
