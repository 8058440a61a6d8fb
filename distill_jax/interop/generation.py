"""Generate: what a model writes after given prompts."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.interop import tokenizers
from distill_jax.interop.directory import read_object
from distill_jax.interop.model_source import Model, open_model
from distill_jax.interop.rows import DEFAULT, Inference, Rows, batches, check_finite, padded_length, write
from distill_jax.interop.values import IDS, check_values
from distill_jax.models.decoding import NONE, PaddedPrompts, decode, marked
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh, tracing


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      new: tokens at most.
      temperature: 0 takes the likeliest token.
      seed: what a row gets depends on it, the row's number and its prompt, and not on the batch.
    """

    new: int = 64
    temperature: float = 0.0
    seed: int = 0


GREEDY = Sampling()


def generate(source: Path, given: Path, to: Path, how: Inference = DEFAULT, sampling: Sampling = GREEDY) -> None:
    """Add `generated_tokens` to rows of JSON lines, and to one of `text` or `messages` also `generated`.

    A row ends before the model's end-of-text token, where its generation_config.json or config.json has one.

    Args:
      source: a model, as `open_model` opens it.
      given, to: the files.

    Raises:
      ConfigError: naming a row that is none, that is longer than the model reads, or whose logits are not finite.
    """
    model = open_model(source)
    rows = Rows.read(given, model, how.tokenizer, how.chat)
    cfg, mesh = dataclasses.replace(model.cfg, dtype=how.dtype), make_mesh(1, fsdp=-1)
    params = model.load(mesh, how.dtype)
    stop = _ends(model)
    out = [dict(row) for row in rows.rows]
    for chosen in batches(rows.tokens, how.batch):
        width = padded_length(max(len(rows.tokens[i]) for i in chosen))
        prompts, lengths = np.zeros((how.batch, width), np.int32), np.ones(how.batch, np.int32)
        for place, i in enumerate(chosen):
            lengths[place] = len(rows.tokens[i])
            prompts[place, width - lengths[place] :] = rows.tokens[i]
        numbers = np.array([*chosen, *[0] * (how.batch - len(chosen))])
        padded = PaddedPrompts(jnp.asarray(prompts), jnp.asarray(lengths))
        drawing = Drawing(numbers, np.float32(sampling.temperature), sampling.seed)
        generated = np.asarray(_run(cfg, mesh, sampling.new, params, padded, drawing))
        for place, i in enumerate(chosen):
            end = next((k for k, token in enumerate(generated[place]) if int(token) in stop), sampling.new)
            check_finite(generated[place, :end] != NONE, rows.places[i], how.dtype)
            out[i]["generated_tokens"] = generated[place, :end].tolist()
            if "text" in out[i] or "messages" in out[i]:
                out[i]["generated"] = rows.tokenizer.decode(out[i]["generated_tokens"])
    write(to, out)


def _ends(model: Model) -> set[int]:
    settings = tokenizers.beside(model.tokenizer, tokenizers.GENERATION)
    values = read_object(settings) if settings else model.facts
    check_values(values, str(settings), {"eos_token_id": IDS}, nullable=True)
    ends = values.get("eos_token_id")
    return set(ends if isinstance(ends, list) else [] if ends is None else [ends])


class Drawing(NamedTuple):
    """What tokens are drawn by: the rows' numbers [B], and a temperature and a seed for all."""

    numbers: np.ndarray
    temperature: np.float32
    seed: int


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    cfg: TransformerConfig, mesh: Mesh, new: int, params: Params, prompts: PaddedPrompts, drawing: Drawing
) -> jax.Array:
    def draw(logits: jax.Array, slot: jax.Array | int) -> jax.Array:
        # A key for every row and every place in it, counted from the prompt's end.
        key = jax.random.fold_in(jax.random.key(drawing.seed), slot - prompts.tokens.shape[1] + 1)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(drawing.numbers)
        drawn = jax.vmap(jax.random.categorical)(keys, logits / jnp.maximum(drawing.temperature, 1e-6))
        return marked(logits, jnp.where(drawing.temperature > 0, drawn, jnp.argmax(logits, axis=-1)))

    with tracing(mesh):
        return decode(cfg, params, prompts, new, draw)
