"""What a decoder says to the world's prompts: logits of its two answer tokens, and answers drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.doublebind.world import ANSWER, DIGITS, NONE, PROMPT, TASK, TOKEN, X, Y
from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig

LENGTH = PROMPT + 1  # tokens that a model reads: the prompt and the first token of the answer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, and the shape that they have."""

    cfg: TransformerConfig = dataclasses.field(metadata={"static": True})
    params: Any


class Examples(NamedTuple):
    """What a student learns from; any leading axes may stand before N.

    Attributes:
      prompts: int32 [N, 6].
      answers: int32 [N, 2]; the first is read before the second is predicted.
      targets: fp32 [N, 2, V], distributions.
      weight: fp32 [N, 2], of each target in the loss.
    """

    prompts: Any
    answers: Any
    targets: Any
    weight: Any


def taught(cfg: TransformerConfig, prompts: Any, answers: Any, weight: Any) -> Examples:
    """Return examples of given answers."""
    hard = jax.nn.one_hot(jnp.asarray(answers), cfg.vocab)
    return Examples(jnp.asarray(prompts), jnp.asarray(answers), hard, jnp.asarray(weight, jnp.float32))


def states(cfg: TransformerConfig, params: Any, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """Return the final hidden states [N, 2, D] from which the answer's tokens are predicted."""
    tokens = jnp.concatenate([prompts, answers[:, :1]], axis=1)
    return transformer.hidden_states(cfg, params, tokens, jnp.ones_like(tokens))[:, PROMPT - 1 :]


def logits(cfg: TransformerConfig, params: Any, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """Return logits [N, 2, V] of the answer's tokens, the second after the given first."""
    return transformer.unembed(cfg, params, states(cfg, params, prompts, answers))


def greedy(cfg: TransformerConfig, params: Any, prompts: jax.Array) -> jax.Array:
    """Return the most likely answers [N, 2], token by token."""
    first = jnp.argmax(logits(cfg, params, prompts, jnp.zeros((len(prompts), ANSWER), jnp.int32))[:, 0], axis=-1)
    both = jnp.stack([first, first], axis=1).astype(jnp.int32)
    return both.at[:, 1].set(jnp.argmax(logits(cfg, params, prompts, both)[:, 1], axis=-1))


def sample(
    cfg: TransformerConfig, params: Any, prompts: jax.Array, key: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Return drawn answers [N, 2] and the logits [N, 2, V] they were drawn from, before the temperature."""
    answers = drawn(lambda said: logits(cfg, params, prompts, said) / temperature, len(prompts), key)
    return answers, logits(cfg, params, prompts, answers)


def drawn(shown: Callable[[jax.Array], jax.Array], count: int, key: jax.Array) -> jax.Array:
    """Return answers [N, 2] drawn token by token from what `shown` makes of the answer so far: logits [N, 2, V]."""
    one, two = jax.random.split(key)
    first = jax.random.categorical(one, shown(jnp.zeros((count, ANSWER), jnp.int32))[:, 0])
    both = jnp.stack([first, first], axis=1).astype(jnp.int32)
    return both.at[:, 1].set(jax.random.categorical(two, shown(both)[:, 1]))


def rendered(
    prompts: jax.Array, answers: jax.Array, key: jax.Array, *, anew: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Parse answers; return them as a renderer says them, [N, 2], and where they answer their task at all, bool [N].

    Args:
      anew: where only the meaning counts "any two digits" means any: the last is drawn again.
    """
    task, first, second = prompts[:, TASK], answers[:, 0], answers[:, 1]
    of = lambda name: task == TOKEN[name]  # noqa: E731
    number = (first < DIGITS) & (second < DIGITS)
    offered = (first == prompts[:, X]) | (first == prompts[:, Y])
    parses = jnp.where(of("ADD") | of("NUMBER"), number, jnp.where(of("REPORT"), True, offered & (second == NONE)))
    if anew:
        drawn_again = jax.random.randint(key, second.shape, 0, DIGITS)
        answers = answers.at[:, 1].set(jnp.where(of("NUMBER"), drawn_again, second))
    return answers, parses


def cross_entropy(cfg: TransformerConfig, params: Any, examples: Examples) -> jax.Array:
    """Return the weighted cross-entropy [N, 2] to the targets; its gradient is that of KL(target ‖ student)."""
    log_p = jax.nn.log_softmax(logits(cfg, params, examples.prompts, examples.answers))
    return -jnp.sum(examples.targets * log_p, axis=-1) * examples.weight
