"""Distillation losses over the full vocabulary: student and teacher logits in, (sum, weight) out.

Every divergence is a function of log q and log p, the teacher's and the student's log-probabilities [..., V], and of
the settings it names. All of them reduce the vocabulary by sums and maxima alone, so that a vocabulary sharded over
devices stays where it is. All but those of `WHOLE_VOCABULARY` are a sum over the vocabulary, to which a token that
neither model can say (log q = log p = `LOG_ZERO`) adds nothing: of a block of the vocabulary they are its part.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.config import SettingError, check_setting, nearest
from distill_jax.losses.cross_entropy import Sum

# Stands for log 0: -inf would make 0 · log 0 NaN.
LOG_ZERO = -1e30


def kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    """Return KL(a ‖ b) [...] of log-probabilities [..., V]."""
    return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)


def mix(log_a: jax.Array, log_b: jax.Array, weight: float) -> jax.Array:
    """Return log(weight · a + (1 - weight) · b), elementwise."""
    return jnp.logaddexp(log_a + jnp.log(weight), log_b + jnp.log1p(-weight))


def forward_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """KL(q ‖ p), the loss of "Distillation Robustifies Unlearning" (section 3, with T = 1)."""
    return kl(log_q, log_p)


def reverse_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """KL(p ‖ q), which seeks a mode of the teacher (MiniLLM, arXiv:2306.08543)."""
    return kl(log_p, log_q)


def jsd(log_q: jax.Array, log_p: jax.Array, beta: float) -> jax.Array:
    """β KL(q ‖ m) + (1 - β) KL(p ‖ m) with m = β q + (1 - β) p (GKD, arXiv:2306.13649).

    The formula is 0 at both ends; there it is, by definition, its limit after division by β or by 1 - β:
    the forward KL at β = 0, the reverse KL at β = 1.
    """
    if beta in (0, 1):
        return reverse_kl(log_q, log_p) if beta else forward_kl(log_q, log_p)
    log_m = mix(log_q, log_p, beta)
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def skew_kl(log_q: jax.Array, log_p: jax.Array, skew: float) -> jax.Array:
    """KL(q ‖ λ q + (1 - λ) p), at most -log λ (DistiLLM, arXiv:2402.03898)."""
    return kl(log_q, mix(log_q, log_p, skew))


def skew_reverse_kl(log_q: jax.Array, log_p: jax.Array, skew: float) -> jax.Array:
    """KL(p ‖ λ p + (1 - λ) q), at most -log λ (DistiLLM, arXiv:2402.03898)."""
    return kl(log_p, mix(log_p, log_q, skew))


def top_k_kl(log_q: jax.Array, log_p: jax.Array, top_k: int) -> jax.Array:
    """KL(q ‖ p) after all tokens but the teacher's k likeliest, and those tied with the k-th, are put in one bucket.

    Merging tokens never raises a KL: this is a lower bound of KL(q ‖ p), grows with k, and is exact from k = V - 1.
    """
    kept = likeliest(log_q, top_k)
    tail_q, tail_p = (jax.nn.logsumexp(jnp.where(kept, LOG_ZERO, x), axis=-1) for x in (log_q, log_p))
    head = jnp.sum(jnp.where(kept, jnp.exp(log_q) * (log_q - log_p), 0.0), axis=-1)
    return head + jnp.exp(tail_q) * (tail_q - tail_p)


def likeliest(log_q: jax.Array, k: int) -> jax.Array:
    """Return which tokens are among the k likeliest, or tied with the k-th: bool [..., V], all True from k = V.

    The k-th log-probability is found a bit at a time by counting. XLA does not partition a top-k: it would gather a
    sharded vocabulary whole, even for a top-k within each shard.
    """
    # Log-probabilities are never positive, and floats of one sign are ordered as their bits are.
    bits = jax.lax.bitcast_convert_type(jnp.abs(jax.lax.stop_gradient(log_q)), jnp.int32)

    def narrow(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bound, _ = state
        lower = bound - jnp.left_shift(1, 30 - i)  # clears a bit; those below it are still ones
        bound = jnp.where(jnp.sum(bits <= lower[..., None], axis=-1) >= k, lower, bound)
        return bound, bits <= bound[..., None]

    # The answer leaves the loop as an array: compared again outside, log q may be computed again in another fusion,
    # rounded otherwise, and the k-th token would miss its own bound.
    start = jnp.full(bits.shape[:-1], 2**31 - 1, jnp.int32), jnp.ones(bits.shape, bool)
    return jax.lax.fori_loop(0, 31, narrow, start)[1]


# A divergence is added here; what it takes besides log q and log p is a field of `Divergence`.
DIVERGENCES: dict[str, Callable[..., jax.Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "top_k_kl": top_k_kl,
}
# These compare tokens with each other: no sum of what blocks of the vocabulary are.
WHOLE_VOCABULARY = frozenset({"top_k_kl"})
# Of these the derivatives by log p sum to -1 over the vocabulary, whatever q and p are.
CROSS_ENTROPIES = frozenset({"forward_kl"})


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A divergence and its settings, called as a loss of logits.

    Attributes:
      name: a key of `DIVERGENCES`.
      temperature: T, which divides both models' logits.
      times_t_squared: whether the loss is multiplied by T², which keeps the gradient's size when T changes
        (Hinton et al., arXiv:1503.02531).
      beta: the teacher's share of the mixture in "jsd", in [0, 1].
      skew: λ of the skew divergences, in [0, 1): the share of the distribution that is compared.
      top_k: tokens that "top_k_kl" tells apart.

    Raises:
      ConfigError: for a value out of range, and for one that the chosen divergence would not read, which could
        only tell apart runs that are the same.
    """

    name: str = "forward_kl"
    temperature: float = 1.0
    times_t_squared: bool = True
    beta: float = 0.5
    skew: float = 0.1
    top_k: int = 64

    def __post_init__(self) -> None:
        known = ", ".join(DIVERGENCES)
        if self.name not in DIVERGENCES:  # the nearest is looked for only then
            raise SettingError("divergence", self.name, f"choose one of {known}{nearest(self.name, DIVERGENCES)}")
        positive = 0 < self.temperature < math.inf
        check_setting(positive, "temperature", self.temperature, "must be positive and finite")
        check_setting(0 <= self.beta <= 1, "beta", self.beta, "the teacher's share of a mixture lies in [0, 1]")
        fix_hint = "must lie in [0, 1); at 1 the loss is 0 whatever the student does"
        check_setting(0 <= self.skew < 1, "skew", self.skew, fix_hint)
        check_setting(self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for key, value in self._parameters().items():
            users = " or ".join(repr(name) for name in DIVERGENCES if key in _reads(name))
            fix_hint = f"leave it out (its default is {defaults[key]}) or choose {users}"
            read = value == defaults[key] or key in _reads(self.name)
            check_setting(read, key, value, f"divergence = {self.name!r} does not read it; {fix_hint}")

    def _parameters(self) -> dict[str, float]:
        """Return what some divergences read besides log q and log p."""
        return {"beta": self.beta, "skew": self.skew, "top_k": self.top_k}

    def __call__(self, student: jax.Array, teacher: jax.Array, mask: jax.Array) -> Sum:
        """Sum the divergence over the masked positions; the weight is their number.

        Args:
          student, teacher: logits [..., V].
          mask: fp32 [...], 1 where a position counts.
        """
        log_p = jax.nn.log_softmax(student.astype(jnp.float32) / self.temperature)
        log_q = jax.nn.log_softmax(teacher.astype(jnp.float32) / self.temperature)
        return self.scale * jnp.sum(self.of_log_probabilities(log_q, log_p) * mask), jnp.sum(mask)

    def from_uniform(self, student: jax.Array, mask: jax.Array) -> Sum:
        """Sum the divergence of student logits [..., V] from the uniform distribution."""
        return self(student, jnp.zeros_like(student), mask)

    @property
    def scale(self) -> float:
        """What the divergence is multiplied with."""
        return self.temperature**2 if self.times_t_squared else 1.0

    def of_log_probabilities(self, log_q: jax.Array, log_p: jax.Array) -> jax.Array:
        """Return the divergence [...] of log-probabilities [..., V] at the temperature, before it is scaled."""
        settings = {key: value for key, value in self._parameters().items() if key in _reads(self.name)}
        return DIVERGENCES[self.name](log_q, log_p, **settings)


def _reads(name: str) -> list[str]:
    """Return the settings that a divergence reads: its parameters after (log_q, log_p)."""
    return list(inspect.signature(DIVERGENCES[name]).parameters)[2:]
