"""Score: the log-likelihood of every token of given texts."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.interop.models import open_model
from distill_jax.interop.rows import Rows, batches, padded_length, write
from distill_jax.models import transformer
from distill_jax.models.transformer import Params, TransformerConfig
from distill_jax.sharding.mesh import make_mesh, tracing

LOGITS = 2**26  # that exist at a time: 256 MiB


def score(source: Path, given: Path, to: Path, dtype: str = "float32", batch: int = 8, tokenizer: str = "") -> None:
    """Add `log_likelihoods` to rows of JSON lines, one a token, and their sum, `log_likelihood`.

    The first token has none (null). A row that was `text` also gets its `tokens`.

    Args:
      source: a model, as `open_model` opens it.
      given, to: the files.
      dtype: of the computation.
      batch: rows at a time.
      tokenizer: of `text`, as `tokenizers.load` takes it; the model's own, when left out.
    """
    model = open_model(source)
    rows = Rows(given, model.cfg.vocab, tokenizer or model.tokenizer)
    cfg, mesh = dataclasses.replace(model.cfg, dtype=dtype), make_mesh(1, fsdp=-1)
    params = model.load(mesh, dtype)
    out = [dict(row) for row in rows.rows]
    for chosen in batches(rows.tokens, batch):
        tokens = np.zeros((batch, padded_length(max(len(rows.tokens[i]) for i in chosen))), np.int32)
        segments = np.zeros_like(tokens)
        for place, i in enumerate(chosen):
            tokens[place, : len(rows.tokens[i])], segments[place, : len(rows.tokens[i])] = rows.tokens[i], 1
        found = np.asarray(_run(cfg, mesh, params, tokens, segments))
        for place, i in enumerate(chosen):
            each = found[place, : len(rows.tokens[i]) - 1]
            total = float(each.sum(dtype=np.float64))
            out[i] |= {"tokens": rows.tokens[i], "log_likelihoods": [None, *each.tolist()], "log_likelihood": total}
    write(to, out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(cfg: TransformerConfig, mesh: Mesh, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    with tracing(mesh):
        return log_likelihoods(cfg, params, tokens, segments)


def log_likelihoods(cfg: TransformerConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Return log p(token t + 1 | tokens up to t), fp32 [B, T - 1], of tokens [B, T].

    Logits exist for a few positions of all rows at a time.
    """
    hidden = transformer.hidden_states(cfg, params, tokens, segments)
    head = transformer.head(params)

    def one(position: tuple[jax.Array, jax.Array]) -> jax.Array:  # hidden [B, D] and its targets [B]
        state, target = position
        logits = transformer.unembed(cfg, head, state)
        return jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)

    at_once = max(1, LOGITS // (tokens.shape[0] * cfg.vocab))
    positions = (jnp.moveaxis(hidden[:, :-1], 1, 0), tokens[:, 1:].T)
    return jax.lax.map(one, positions, batch_size=min(at_once, tokens.shape[1] - 1)).T
