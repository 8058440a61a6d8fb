"""The architecture of a decoder: `TransformerConfig`, and which of its layers see only a window."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from distill_jax.config import added, check
from distill_jax.models.attention import CHOICES
from distill_jax.models.head import LOSS_HEADS
from distill_jax.models.remat import POLICIES

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


def local_layers(cfg: TransformerConfig) -> list[bool]:
    """Return whether each layer sees only a window of keys."""
    shown = cfg.global_every or cfg.layers + 1
    return [cfg.sliding_window > 0 and i >= cfg.global_first and (i + 1) % shown > 0 for i in range(cfg.layers)]


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
