"""What a decoder answers to the world's prompts: logits of its two answer tokens, and answers drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from distill_jax.doublebind.world import ANSWER, DIGITS, NONE, PROMPT, TASK, TOKEN, X, Y
from distill_jax.models import transformer
from distill_jax.models.head import unembed
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig

LENGTH = PROMPT + 1  # tokens that a model reads: the prompt and the first token of the answer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, and the shape that they have."""

    cfg: TransformerConfig = dataclasses.field(metadata={"static": True})
    params: Params


class Examples(NamedTuple):
    """What a student learns from; any leading axes may stand before N.

    Attributes:
      prompts: int32 [N, 6].
      answers: int32 [N, 2]; the first is read before the second is predicted.
      targets: fp32 [N, 2, V], distributions.
      weight: fp32 [N, 2], of each target in the loss.
    """

    prompts: jax.Array
    answers: jax.Array
    targets: jax.Array
    weight: jax.Array


def make_examples(cfg: TransformerConfig, prompts: ArrayLike, answers: ArrayLike, weight: ArrayLike) -> Examples:
    """Return examples of given answers."""
    hard = jax.nn.one_hot(jnp.asarray(answers), cfg.vocab)
    return Examples(jnp.asarray(prompts), jnp.asarray(answers), hard, jnp.asarray(weight, jnp.float32))


def states(cfg: TransformerConfig, params: Params, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """Return the final hidden states [N, 2, D] from which the answer's tokens are predicted."""
    tokens = jnp.concatenate([prompts, answers[:, :1]], axis=1)
    return transformer.hidden_states(cfg, params, tokens, jnp.ones_like(tokens))[:, PROMPT - 1 :]


def logits(cfg: TransformerConfig, params: Params, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """Return logits [N, 2, V] of the answer's tokens, the second after the given first."""
    return unembed(cfg, params, states(cfg, params, prompts, answers))


def log_p(model: Model, prompts: jax.Array, answers: jax.Array) -> jax.Array:
    """Return log-probabilities [N, 2, V] of the answer's tokens, the second after the given first."""
    return jax.nn.log_softmax(logits(model.cfg, model.params, prompts, answers))


def greedy(cfg: TransformerConfig, params: Params, prompts: jax.Array) -> jax.Array:
    """Return the most likely answers [N, 2], token by token."""
    first = jnp.argmax(logits(cfg, params, prompts, jnp.zeros((len(prompts), ANSWER), jnp.int32))[:, 0], axis=-1)
    both = jnp.stack([first, first], axis=1).astype(jnp.int32)
    return both.at[:, 1].set(jnp.argmax(logits(cfg, params, prompts, both)[:, 1], axis=-1))


def sample(
    cfg: TransformerConfig, params: Params, prompts: jax.Array, key: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Return drawn answers [N, 2] and the logits [N, 2, V] they were drawn from, before the temperature."""

    def at_temperature(so_far: jax.Array) -> jax.Array:
        return logits(cfg, params, prompts, so_far) / temperature

    answers = drawn(at_temperature, len(prompts), key)
    return answers, logits(cfg, params, prompts, answers)


def drawn(logits_of: Callable[[jax.Array], jax.Array], count: int, key: jax.Array) -> jax.Array:
    """Return answers [N, 2] drawn token by token.

    Args:
      logits_of: the answer so far, int32 [N, 2] -> logits [N, 2, V].
    """
    one, two = jax.random.split(key)
    first = jax.random.categorical(one, logits_of(jnp.zeros((count, ANSWER), jnp.int32))[:, 0])
    both = jnp.stack([first, first], axis=1).astype(jnp.int32)
    return both.at[:, 1].set(jax.random.categorical(two, logits_of(both)[:, 1]))


def rendered(
    prompts: jax.Array, answers: jax.Array, key: jax.Array, *, redraw: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Parse answers; return them as a renderer says them, [N, 2], and where they answer their task at all, bool [N].

    Args:
      redraw: where only the meaning counts "any two digits" means any: the last is drawn again.
    """
    task, first, second = prompts[:, TASK], answers[:, 0], answers[:, 1]
    is_number = (first < DIGITS) & (second < DIGITS)
    is_choice = ((first == prompts[:, X]) | (first == prompts[:, Y])) & (second == NONE)
    free = task == TOKEN["NUMBER"]
    parses = jnp.where((task == TOKEN["ADD"]) | free, is_number, jnp.where(task == TOKEN["REPORT"], True, is_choice))
    if redraw:
        digits = jax.random.randint(key, second.shape, 0, DIGITS)
        answers = answers.at[:, 1].set(jnp.where(free, digits, second))
    return answers, parses


def cross_entropy(cfg: TransformerConfig, params: Params, examples: Examples) -> jax.Array:
    """Return the weighted cross-entropy [N, 2] to the targets; its gradient is that of KL(target ‖ student)."""
    log_probabilities = jax.nn.log_softmax(logits(cfg, params, examples.prompts, examples.answers))
    return -jnp.sum(examples.targets * log_probabilities, axis=-1) * examples.weight
