"""How much of one model's knowledge another model's logits show on text that both should not know."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data.packing import SEGMENTS, TOKENS
from distill_jax.losses.cross_entropy import target_mask
from distill_jax.models import transformer
from distill_jax.models.head import by_vocabulary, unembed
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig

SCALES = np.geomspace(0.25, 64.0, 81)
RESAMPLES = 400


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits on packed rows, each position's centred on its mean: 0 everywhere is the uniform distribution.

    Attributes:
      values: [N, V] of the N positions whose target counts.
      targets: int [N], the token that came.
      rows: int [N], the row that a position lies in.
    """

    values: np.ndarray
    targets: np.ndarray
    rows: np.ndarray


def centred_logits(cfg: TransformerConfig, params: Params, rows: np.ndarray, batch: int = 8) -> Logits:
    """Run a model over packed rows [R, 3, T] and return the logits of the targets that count."""

    @jax.jit
    def logits(rows: jax.Array) -> jax.Array:
        hidden = transformer.hidden_states(cfg, params, rows[:, TOKENS], rows[:, SEGMENTS])[:, :-1]
        return unembed(cfg, by_vocabulary(params), hidden)

    mask = np.asarray(target_mask(jnp.asarray(rows[:, SEGMENTS]))) > 0
    padded = np.concatenate([rows, np.zeros((-len(rows) % batch, *rows.shape[1:]), rows.dtype)])
    batches = [np.asarray(logits(each)) for each in np.split(padded, len(padded) // batch)]
    values = np.concatenate(batches)[: len(rows)][mask]
    return Logits(values - values.mean(axis=-1, keepdims=True), rows[:, TOKENS, 1:][mask], np.nonzero(mask)[0])


def explained(y: Logits, regressors: Sequence[Logits], *, of_context: bool = True) -> tuple[float, float, float]:
    """Return R² of the least-squares fit of y's logits by the regressors', and its 95 % interval.

    All positions and tokens are fitted together, one slope a regressor. The interval is a bootstrap's over rows.

    Args:
      of_context: take each token's mean over the positions out of every model first: what is left is what a model says
        of a context, beyond how frequent it holds the tokens to be.
    """
    columns = [x.values.astype(np.float64) for x in (*regressors, y)]
    if of_context:
        columns = [x - x.mean(axis=0) for x in columns]
    _, row = np.unique(y.rows, return_inverse=True)
    by_row = [[np.bincount(row, np.einsum("nv,nv->n", a, b)) for a in columns] for b in columns]
    products = np.array(by_row)  # [k, k, R]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(products.shape[-1], np.full(products.shape[-1], 1 / products.shape[-1]), RESAMPLES)
    low, high = np.quantile([_r_squared(products @ count) for count in counts], (0.025, 0.975))
    return _r_squared(products.sum(axis=-1)), float(low), float(high)


def _r_squared(products: np.ndarray) -> float:
    """Return R² from the sums of products of (regressors, y), y last."""
    xx, xy, yy = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    return float(xy @ np.linalg.lstsq(xx, xy, rcond=None)[0] / yy) if yy > 0 else 0.0


def best_scaled(logits: Logits) -> tuple[float, float]:
    """Return (nats a token, scale) of the softmax of the logits times the scale that suits the targets best.

    Logits that only say quietly what is right give it away here: they need no gradient, only to be made louder.
    """

    def nats(scale: float) -> float:
        z = scale * logits.values.astype(np.float64)
        log_total = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
        return float(np.mean(log_total - z[np.arange(len(z)), logits.targets]))

    return min((nats(scale), float(scale)) for scale in SCALES)


def table(models: Mapping[str, Logits], known: str, naive: str, nats_to_bits: float) -> list[dict[str, float | str]]:
    """Return for each model what its logits on the text show of what `known` knows and `naive` does not.

    Args:
      models: by name, `known` (the reference) and `naive` (the oracle) among them.
      nats_to_bits: makes bits per byte of nats a token.
    """
    reference, oracle = models[known], models[naive]
    out: list[dict[str, float | str]] = []
    for name, logits in models.items():
        nats, scale = best_scaled(logits)
        r2, low, high = explained(logits, [reference])
        generic = explained(logits, [oracle])[0]
        out.append(
            {
                "model": name,
                "sd": math.sqrt(float(np.mean(logits.values.astype(np.float64) ** 2))),
                "r2": r2,
                "low": low,
                "high": high,
                "r2_total": explained(logits, [reference], of_context=False)[0],
                "r2_naive": generic,
                "r2_beyond_naive": explained(logits, [oracle, reference])[0] - generic,
                "bits_scaled": nats * nats_to_bits,
                "scale": scale,
            }
        )
    return out
