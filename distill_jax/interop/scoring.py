"""Score: the log-likelihood of every token of given texts."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.interop.model_source import Model, open_model
from distill_jax.interop.rows import DEFAULT, Inference, Rows, batches, check_finite, padded_length, write
from distill_jax.models import transformer
from distill_jax.models.decoding import in_parts, part_length
from distill_jax.models.head import by_vocabulary
from distill_jax.models.likelihood import token_log_likelihoods
from distill_jax.models.transformer import CachedInputs, Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh, tracing
from distill_jax.types import JsonObject


def score(source: Path, given: Path, to: Path, how: Inference = DEFAULT) -> None:
    """Add `log_likelihoods` to rows of JSON lines, one a token, and their sum, `log_likelihood`.

    The first token has none (null). A row that was `text` or `messages` also gets its `tokens`.

    Args:
      source: a model, as `open_model` opens it.
      given, to: the files.

    Raises:
      ConfigError: naming a row that is none, that is longer than the model reads, or whose logits are not finite.
    """
    model = open_model(source)
    write(to, score_rows(model, Rows.read(given, model, how.tokenizer, how.chat), how))


def score_rows(model: Model, rows: Rows, how: Inference = DEFAULT) -> list[JsonObject]:
    """Return the rows with `tokens`, `log_likelihoods` and `log_likelihood`, as `score` writes them."""
    cfg, mesh = dataclasses.replace(model.cfg, dtype=how.dtype), make_mesh(1, fsdp=-1)
    params = model.load(mesh, how.dtype)
    out = [dict(row) for row in rows.rows]
    for chosen in batches(rows.tokens, how.batch):
        tokens = np.zeros((how.batch, padded_length(max(len(rows.tokens[i]) for i in chosen))), np.int32)
        segments = np.zeros_like(tokens)
        for place, i in enumerate(chosen):
            tokens[place, : len(rows.tokens[i])], segments[place, : len(rows.tokens[i])] = rows.tokens[i], 1
        scores = np.asarray(_run(cfg, mesh, params, tokens, segments))
        for place, i in enumerate(chosen):
            each = scores[place, : len(rows.tokens[i]) - 1]
            check_finite(np.isfinite(each), rows.places[i], how.dtype)
            total = float(each.sum(dtype=np.float64))
            out[i] |= {"tokens": rows.tokens[i], "log_likelihoods": [None, *each.tolist()], "log_likelihood": total}
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(cfg: TransformerConfig, mesh: Mesh, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    with tracing(mesh):
        return log_likelihoods(cfg, params, tokens, segments)


def log_likelihoods(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return log p(token t + 1 | tokens up to t), fp32 [B, T - 1], of tokens [B, T] padded on the right.

    Logits exist for a few positions of all rows at a time; of long rows hidden states and attention do, too.
    """
    head = by_vocabulary(params)
    following = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
    look = functools.partial(token_log_likelihoods, cfg, head)
    rows, width = tokens.shape
    part = part_length(cfg, rows, width, width)
    if part == width:
        hidden = transformer.hidden_states(cfg, params, tokens, segments)
        return look(hidden[:, :-1], following[:, :-1]).T
    places = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    of_part = lambda hidden, slot: look(hidden, jax.lax.dynamic_slice_in_dim(following, slot, part, axis=1))  # noqa: E731
    scores = in_parts(cfg, params, CachedInputs(tokens, places, segments), part, of_part)[1]
    return scores.reshape(width, rows)[:-1].T
