"""Knowledge: whether a model knows what it is to forget, asked before anything is unlearned.

What a model does not know cannot be unlearned, and a robustness that is measured on it means nothing. One that knows
nothing answers no question, chooses an option by chance, and of a document knows how often each token stands in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from distill_jax.config import check
from distill_jax.data.records import load_manifest
from distill_jax.evals.bits_per_byte import BitsPerByte, unigram_nats
from distill_jax.evals.scale import Scale, wilson
from distill_jax.interop.scoring import log_likelihoods
from distill_jax.models.transformer import Params
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import tracing
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.stage import Stage, stage_input
from distill_jax.statistics import student_t
from distill_jax.types import JsonObject

ROWS = 8  # read at a time
FORGET = PARTS[1:]


@dataclasses.dataclass(frozen=True)
class Knowledge(Stage):
    """Measure what a model knows of the forget set, and end the run if that is not shown to be anything.

    Attributes:
      start: the stage whose model is asked.
      required: whether a model that is not shown to know anything ends the run.
    """

    start: str = stage_input()
    required: bool = True

    kind: ClassVar[str] = "knowledge"
    leaves_model: ClassVar[bool] = False

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Ask one model.

        Raises:
          ConfigError: if it is not shown to know what it is to forget.
        """
        for node in nodes:
            measure, scale = ctx.measure, ctx.measure.scale
            known = of_text(ctx, node, measure) if isinstance(measure, BitsPerByte) else of_items(ctx, node)
            bar = known.chance_level + scale.sign * 2 * scale.margin  # as `reports.premises.able` has it
            least = known.low if scale.sign > 0 else known.high
            shown = scale.ability(least) > scale.ability(bar)
            check(shown or not node.settings.required, _refusal(node, known, scale, bar))
            result = known.to_json() | {"shown": bool(shown)}
            if isinstance(measure, BitsPerByte):
                result |= {"nothing_by_fact": measure.chance_level_by_fact(FORGET)}
            node.finish(result, ledger({}, {}, ctx.clock.lap()))


@dataclasses.dataclass(frozen=True)
class Known:
    """What a model knows of the forget set.

    Attributes:
      score, low, high: on the experiment's scale, with its 95 % interval.
      chance_level: the score of one that knows nothing of it.
      count: facts or pieces of documents that were asked.
    """

    score: float
    low: float
    high: float
    chance_level: float
    count: int

    def to_json(self) -> JsonObject:
        """Return it as a result holds it, where the chance level is called "nothing"."""
        score = {"score": self.score, "low": self.low, "high": self.high}
        return score | {"nothing": self.chance_level, "count": self.count}


def of_items(ctx: Context, node: Node) -> Known:
    """Return the share of facts that the model answers, with Wilson's interval."""
    result = ctx.nodes[node.inputs["start"]].result()
    count = sum(ctx.measure.described(load_manifest(ctx.data))["facts"].values())
    score = result["forget"]
    check(score is not None, f"{node.inputs['start']}: its logits are not finite, so that nothing can be asked of it")
    low, high = wilson(round(score * count), count)
    return Known(score, low, high, ctx.measure.chance_level(FORGET), count)


def of_text(ctx: Context, node: Node, measure: BitsPerByte) -> Known:
    """Return the bits per byte of the documents, beside those of their tokens' frequencies alone.

    The interval is of the difference between the two, over documents (or the pieces that a row holds of one).
    """
    nats, tokens = _nats(ctx, node, measure.rows(FORGET))
    unigram = unigram_nats(np.concatenate(tokens))
    simple = np.array([unigram[piece].sum() for piece in tokens])
    lengths = np.array([len(piece) for piece in tokens])
    unit = 1 / (math.log(2) * measure.bytes(FORGET))
    gap, count = float((nats - simple).sum()) * unit, len(tokens)
    residuals = (nats - simple) * unit - gap * lengths / lengths.sum()
    error = math.sqrt(count / max(count - 1, 1) * float(residuals @ residuals))
    low, high = student_t.interval(gap, error, count - 1)
    chance = float(simple.sum()) * unit
    return Known(float(nats.sum()) * unit, chance + low, chance + high, chance, count)


def _nats(ctx: Context, node: Node, rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the nats of each piece of a document in rows [n, 3, T], and its tokens but the first."""
    mesh = ctx.mesh()
    params = ctx.params(node.inputs["start"], mesh)

    @jax.jit
    def score(params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        with tracing(mesh):
            return log_likelihoods(ctx.model, params, tokens, segments)

    filled = np.concatenate([rows, np.zeros((-len(rows) % ROWS, *rows.shape[1:]), rows.dtype)])
    nats, pieces = [], []
    for start in range(0, len(rows), ROWS):
        tokens, segments = filled[start : start + ROWS, 0], filled[start : start + ROWS, 1]
        scores = np.asarray(score(params, tokens, segments), np.float64)
        for i, row in enumerate(segments):
            for piece in range(1, row.max() + 1):
                at = np.flatnonzero(row == piece)[1:]
                if len(at):
                    nats.append(-scores[i, at - 1].sum())
                    pieces.append(tokens[i, at])
    return np.array(nats), pieces


def _refusal(node: Node, known: Known, scale: Scale, bar: float) -> str:
    start, interval = node.inputs["start"], f"[{known.low:.2f}, {known.high:.2f}]"
    what = f"{known.count:,} {scale.item}s to forget: {scale.name} {known.score:.2f} {interval}"
    chance = f"one that knows nothing of them has {known.chance_level:.2f}"
    mend = f"give {scale.item}s that it knows, or more of them; --config.knowledge.required=False goes on all the same"
    return f"nothing to forget: {start} is not shown to know the {what}, {chance}; wanted beyond {bar:.2f}; {mend}"
