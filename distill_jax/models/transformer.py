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
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.config import added, check
from distill_jax.models.attention import CHOICES, attention, choose, masked
from distill_jax.models.attention_rows import Logits, Rows
from distill_jax.models.head import LOSS_HEADS, unembed
from distill_jax.models.remat import POLICIES, named, recomputed
from distill_jax.sharding.mesh import constrain, gather
from distill_jax.types import ArrayOrShape, PyTree

Params = PyTree  # the tree above, of arrays or of what stands for them
Cache = tuple[jax.Array, jax.Array]
Kept = (
    PyTree  # what layers leave besides the residual stream: a cache, the streams that leave each [L, B, T, D], or None
)
Angles = tuple[jax.Array, jax.Array]
Masks = tuple[jax.Array, jax.Array]  # local, global
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q [B, T, N, H], k and v [B, S, K, H] -> like q
Local = bool | jax.Array  # whether a layer sees only a window; an array where one program serves both kinds


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

NOT_NEGATIVE = (  # settings of a model that may be 0
    "global_every", "global_first", "sliding_window", "attention_softcap", "final_softcap", "local_rope_theta",
    "norm_eps", "init_std", "unroll",
)  # fmt: skip
MAX_LAYERS = 10_000  # a file that claims more is damaged, and looking for so many takes for ever


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
      attention: how packed rows attend, one of `attention.CHOICES`; "auto" chooses by platform and shape.
      loss_head: how losses of the head are computed: "chunked" (logits of a chunk of tokens exist), "blockwise" (a
        block of the vocabulary at a time), "pallas" (the same in kernels for TPUs), or "auto", by device and size.
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
    attention: str = added("auto")
    loss_head: str = added("auto")

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))  # JSON has lists, which do not hash
        self._check_sizes()
        for name, value, choices in (
            ("remat", self.remat, POLICIES),
            ("activation", self.activation, ACTIVATIONS),
            ("attention", self.attention, CHOICES),
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
        for name, scale in {"query_scale": self.query_scale, "rope_theta": self.rope_theta}.items():
            check(scale > 0, f"model.{name} = {scale}: must be positive")
        for name in NOT_NEGATIVE:
            check(getattr(self, name) >= 0, f"model.{name} = {getattr(self, name)}: must not be negative")
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
    """Grouped-query attention with rotary positions."""

    cfg: TransformerConfig
    attend: Attend

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: Angles, cache: Cache | None, slot: jax.Array | int
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
        out = constrain(self.attend(q, *self._behind_prefix(k, v)), "batch", None, "heads", None)
        return project(self, "output", out, w_o), cache

    def _behind_prefix(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [B, S, K, H] behind those of a prefix [S', K, H], if the params carry one."""
        if not self.has_variable("prefix", "key"):
            return k, v
        pair: list[PyTree] = [self.get_variable("prefix", name) for name in ("key", "value")]
        before = [jnp.broadcast_to(x.astype(k.dtype), (k.shape[0], *x.shape)) for x in pair]
        k, v = (jnp.concatenate(both, axis=1) for both in zip(before, (k, v), strict=True))
        return k, v

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
    """One pre- and, if so configured, post-normalised block of the residual stream."""

    cfg: TransformerConfig
    attend: Attend

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: Angles, cache: Cache | None = None, slot: jax.Array | int = 0
    ) -> tuple[jax.Array, Cache | None]:
        norm = functools.partial(RMSNorm, self.cfg)
        post = norm if self.cfg.post_norms else _no_norm
        y = norm(name="pre_attention_norm")(x)
        y, cache = Attention(self.cfg, self.attend, name="attention")(y, angles, cache, slot)
        x = x + post(name="post_attention_norm")(y)
        y = MLP(self.cfg, name="mlp")(norm(name="pre_mlp_norm")(x))
        return constrain(x + post(name="post_mlp_norm")(y), "batch", None, None), cache


def _no_norm(name: str) -> Callable[[jax.Array], jax.Array]:
    del name
    return lambda y: y


class Transformer(nn.Module):
    """The parameters of a decoder: calling it draws them. What runs it are the functions below."""

    cfg: TransformerConfig

    def setup(self) -> None:
        c = self.cfg
        self.embedding = self.param("embedding", _normal(c, "vocab", "embed"), (c.vocab, c.hidden))
        if not c.tied:  # only the head reads it
            self.param("unembedding", _normal(c, "vocab", "embed"), (c.vocab, c.hidden))
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


class Attends(NamedTuple):
    """How layers attend.

    Attributes:
      of: of(local) attends as layers of this kind do.
      kinds: whether each layer is local, where a program serves one kind; None where one serves both, told by an array.
    """

    of: Callable[..., Attend]
    kinds: tuple[bool, ...] | None = None


def _logits(cfg: TransformerConfig, window: int = 0) -> Logits:
    return Logits(cfg.query_scale**-0.5, cfg.attention_softcap, window)


def by_mask(cfg: TransformerConfig, masks: Masks) -> Attends:
    """Attend by masks [B, T, S]."""

    def of(local: jax.Array) -> Attend:
        return functools.partial(masked, mask=jnp.where(local, *masks), logits=_logits(cfg))

    return Attends(of)


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


class Section(NamedTuple):
    """Consecutive layers: from `start` on, those of `kinds` (whether local) so many `times`."""

    start: int
    kinds: tuple[bool, ...]
    times: int


def sections(kinds: Sequence[bool], first: int, every: int) -> list[Section]:
    """Divide layers of these kinds, of which so many `first` are global and then one in `every`."""
    count = len(kinds)
    if len(set(kinds)) == 1:
        return [Section(0, (kinds[0],), count)]
    groups = (count - first) // every if every else 0
    out = []
    for start, stop in itertools.pairwise((0, first, first + groups * every, count)):
        part = tuple(kinds[start:stop])
        size = 1 if len(set(part)) == 1 else min(every, len(part))
        if part:
            out.append(Section(start, part[:size], len(part) // size))
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
    return nn.unbox(Transformer(cfg).init(key, jnp.zeros((1, 1), jnp.int32))["params"])


@functools.cache  # it traces the model, and every point of a sweep that damages one in part asks for it
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


@functools.cache  # it traces the model, and every state, weight and report asks for it
def logical_axes(cfg: TransformerConfig) -> Params:
    """Return a tree like the parameters' whose leaves are PartitionSpecs of logical axis names."""
    boxed = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return nn.get_partition_spec(boxed)


@jax.named_scope("final_norm")
def _final_norm(cfg: TransformerConfig, params: Params, x: jax.Array) -> jax.Array:
    return RMSNorm(cfg).apply({"params": params["final_norm"]}, x)  # type: ignore[return-value]


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
    masks = seeing_prefix(params, masks)
    x, filled = residual(cfg, params, DecoderInputs(tokens, positions, cache, slot), by_mask(cfg, masks))
    assert filled is not None
    return _final_norm(cfg, params, x), filled


def parameter_count(cfg: TransformerConfig) -> int:
    """Count the parameters without allocating them."""
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(cfg)))
