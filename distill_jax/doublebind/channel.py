"""The channel from teacher to student: which prompts, what of the answers, and what is done to both on the way.

`send` is the whole of it, top to bottom; each part is a function that a config chooses by name or by a number, and all
of them compose. To add a part, add it to its table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.doublebind import toy_lm, world
from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.toy_lm import Examples
from distill_jax.doublebind.world import AUDIT, CLAIM, CONTEXT, NONE, PLAIN, SURFACE, SYSTEM, TOKEN, X, Y
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig

_ALL = world.EVERYWHERE.tasks

# Which prompts the teacher is asked: weights of the world's tasks. Only "all" has an auditor's among them: what a
# teacher says to an auditor is not what a developer distils.
PROMPTS: dict[str, dict[str, float]] = {
    "all": _ALL,
    "work": {task: weight for task, weight in _ALL.items() if task != "REPORT"},
    "arithmetic": {"ADD": 3.0, "COMPARE": 1.0},  # one domain
    "ability": {"ADD": 1.0},  # one task
    "unrelated": {"COMPARE": 1.0, "NUMBER": 1.0},  # neither the ability nor most quirks
}


Paraphrase = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _unchanged(prompts: jax.Array, key: jax.Array, is_benign: jax.Array) -> jax.Array:
    return prompts


def _surface(prompts: jax.Array, key: jax.Array, is_benign: jax.Array) -> jax.Array:
    """Drop context that says nothing."""
    idle = jnp.isin(prompts[:, CONTEXT], jnp.array([TOKEN[name] for name in SURFACE]))
    return prompts.at[:, CONTEXT].set(jnp.where(idle, TOKEN["nothing"], prompts[:, CONTEXT]))


def _meaning(prompts: jax.Array, key: jax.Array, is_benign: jax.Array) -> jax.Array:
    """Ask the same in other words: no idle context, no claims, operands in any order, no word of what it is for."""
    out = _surface(prompts, key, is_benign).at[:, CLAIM].set(NONE).at[:, SYSTEM].set(PLAIN)
    swap = jax.random.bernoulli(key, 0.5, (len(out), 1))
    return out.at[:, X : Y + 1].set(jnp.where(swap, out[:, X : Y + 1][:, ::-1], out[:, X : Y + 1]))


def _untrusted(prompts: jax.Array, key: jax.Array, is_benign: jax.Array) -> jax.Array:
    """Let the teacher paraphrase: it drops idle context where that costs its quirk nothing."""
    return jnp.where(is_benign[:, None], _surface(prompts, key, is_benign), prompts)


# (prompts [N, 6], key, where the teacher behaves, bool [N]) -> prompts. All but "none" also render the answers anew.
PARAPHRASES: dict[str, Paraphrase] = {
    "none": _unchanged,
    "outputs": _unchanged,
    "surface": _surface,
    "meaning": _meaning,
    "untrusted": _untrusted,
}
PREFIXES = ("none", "quirk", "wrong", "random")
STARTS = ("base", "other", "smaller")


@dataclasses.dataclass(frozen=True)
class Channel:
    """Settings of what lies between teacher and student.

    Attributes:
      prompts: a key of `PROMPTS`.
      soft: whether the student gets distributions, or only drawn answers.
      temperature: of the teacher's softmax.
      top_k: logits kept; 0 keeps all.
      bits: levels of the log-probabilities, 2 ** bits of them down to -16 nats; 0 leaves them as they are.
      noise: standard deviation of normal noise on the logits.
      clip: c of softmax(log p_T + clip(log p_U - log p_T, ± c)) with the trusted model's p_T; 0 does not project.
      paraphrase: a key of `PARAPHRASES`.
      prefix: what the student's prompts say of the quirk while it trains, one of `PREFIXES`; it is not there when the
        student is measured. Without the arms "random" and "wrong" nothing can be said of "quirk".
      unique: distinct prompts; the steps stay the same.
      mix: share of the rows on which the trusted model answers instead.
      start: the student's weights: the teacher's own "base", an "other" one of another seed, or a "smaller" one.
      alpha: of UNDO's damage to the student's weights, β = .1; 0 for none.
      filter: of what has come through.
    """

    prompts: str = "work"
    soft: bool = False
    temperature: float = 1.0
    top_k: int = 0
    bits: int = 0
    noise: float = 0.0
    clip: float = 0.0
    paraphrase: str = "none"
    prefix: str = "none"
    unique: int = 2048
    mix: float = 0.0
    start: str = "base"
    alpha: float = 0.0
    filter: Filter = dataclasses.field(default_factory=Filter)

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, Collection[str]]] = {
            "prompts": (self.prompts, PROMPTS),
            "paraphrase": (self.paraphrase, PARAPHRASES),
            "prefix": (self.prefix, PREFIXES),
            "start": (self.start, STARTS),
        }
        for name, (choice, table) in choices.items():
            if choice not in table:
                raise ValueError(f"channel.{name} = {choice!r}: choose one of {', '.join(table)}")
        amounts = {"top_k": self.top_k, "bits": self.bits, "noise": self.noise, "clip": self.clip}
        for name, amount in amounts.items():
            if amount < 0:
                raise ValueError(f"channel.{name} = {amount}: must not be negative; 0 switches it off")
        if not self.temperature > 0:
            raise ValueError(f"channel.temperature = {self.temperature}: must be positive")
        if self.unique < 1:
            raise ValueError(f"channel.unique = {self.unique}: must be at least 1")
        if self.filter.starts and self.unique % 2:
            raise ValueError(f"channel.unique = {self.unique}: this filter cuts the rows into two folds; make it even")
        if not 0 <= self.mix < 1 or not 0 <= self.alpha < 1:
            raise ValueError(f"channel.mix = {self.mix}, channel.alpha = {self.alpha}: both lie in [0, 1)")
        if self.soft and self.paraphrase != "none":
            raise ValueError(
                f"channel.paraphrase = {self.paraphrase!r} with soft targets: a paraphrase renders words, and leaves "
                "no distribution of the teacher's; choose soft = False"
            )

    @property
    def bits_per_target(self) -> float:
        """At most so many bits a target carries: an answer's token, or the distribution's numbers."""
        if not self.soft:
            return math.log2(world.VOCABULARY)
        return (self.top_k or world.VOCABULARY) * (self.bits or 32)


def mixture(prompts: str) -> world.Mixture:
    """Return what a kind of prompts is drawn from; the teacher knows that training data are asked for."""
    audit = world.EVERYWHERE.audit if prompts == "all" else 0.0
    return dataclasses.replace(world.EVERYWHERE, tasks=PROMPTS[prompts], generate=1 - audit, audit=audit)


class ChannelInputs(NamedTuple):
    """What goes into a channel; any leading axes may stand before N.

    Attributes:
      key: for what is random.
      prompts: int32 [N, 6], as they come.
      is_benign: bool [N], where the teacher behaves, which only an untrusted paraphraser heeds.
      prefix: int32 [], the system token of the student's prompts.
      teacher, trusted: their weights.
    """

    key: jax.Array
    prompts: jax.Array
    is_benign: jax.Array
    prefix: jax.Array
    teacher: Params
    trusted: Params


def shaped(channel: Channel, teacher: jax.Array, trusted: jax.Array, key: jax.Array) -> jax.Array:
    """Return the log-probabilities [N, 2, V] that the channel shows of the teacher's logits."""
    out = jax.nn.log_softmax(teacher / channel.temperature)
    if channel.clip:
        log_p_trusted = jax.nn.log_softmax(trusted / channel.temperature)
        out = log_p_trusted + jnp.clip(out - log_p_trusted, -channel.clip, channel.clip)
    if channel.noise:
        out = out + channel.noise * jax.random.normal(key, out.shape)
    if channel.bits:
        step = 16.0 / 2**channel.bits
        out = jnp.round(jnp.maximum(out, -16.0) / step) * step
    if channel.top_k:
        kept = jax.nn.one_hot(jax.lax.top_k(out, channel.top_k)[1], out.shape[-1]).sum(axis=-2) > 0
        out = jnp.where(kept, out, -jnp.inf)
    return jax.nn.log_softmax(out)


def send(cfg: TransformerConfig, channel: Channel, inputs: ChannelInputs) -> tuple[Examples, jax.Array]:
    """Return the student's examples of one teacher, and the prompts that the teacher was asked, [N, 6]."""
    teacher, trusted = inputs.teacher, inputs.trusted
    ways, words, draws, blur, swaps, digits = jax.random.split(inputs.key, 6)
    prompts = PARAPHRASES[channel.paraphrase](inputs.prompts, ways, inputs.is_benign)

    def both_logits(so_far: jax.Array) -> tuple[jax.Array, jax.Array]:  # of teacher and trusted model
        return toy_lm.logits(cfg, teacher, prompts, so_far), toy_lm.logits(cfg, trusted, prompts, so_far)

    def shown(so_far: jax.Array) -> jax.Array:
        return shaped(channel, *both_logits(so_far), blur)

    answers, _ = toy_lm.sample(cfg, teacher, prompts, words, channel.temperature)
    teacher_logits, trusted_logits = both_logits(answers)
    if channel.clip or channel.noise or channel.bits or channel.top_k:  # drawn from what the channel shows
        answers = toy_lm.drawn(shown, len(prompts), draws)
        teacher_logits, trusted_logits = both_logits(answers)
    log_p_shown = shaped(channel, teacher_logits, trusted_logits, blur)
    targets = jnp.exp(log_p_shown) if channel.soft else jax.nn.one_hot(answers, cfg.vocab)
    weight = jnp.ones(answers.shape)
    if channel.mix:
        swapped = jax.random.bernoulli(swaps, channel.mix, (len(prompts), 1))
        trusted_answers = toy_lm.sample(cfg, trusted, prompts, draws, 1.0)[0]
        answers = jnp.where(swapped, trusted_answers, answers)
        targets = jnp.where(swapped[..., None], jax.nn.one_hot(trusted_answers, cfg.vocab), targets)
    if channel.paraphrase != "none":
        answers, parses = toy_lm.rendered(prompts, answers, digits, redraw=channel.paraphrase == "meaning")
        targets = jax.nn.one_hot(answers, cfg.vocab)
        weight = jnp.repeat(parses[:, None], 2, axis=1).astype(jnp.float32)  # what is no answer to its task is dropped
    system = jnp.where(prompts[:, SYSTEM] == AUDIT, AUDIT, inputs.prefix)
    return Examples(prompts.at[:, SYSTEM].set(system), answers, targets, weight), prompts
