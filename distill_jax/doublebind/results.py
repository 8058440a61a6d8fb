"""What the double bind's nodes keep in result.json, and what of it a page shows; the keys are the files'."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, cast

from distill_jax.doublebind.seed_statistics import Estimate
from distill_jax.io.node import Node

SeedRates = dict[str, list[float]]  # audit -> one rate a seed
OrganismRates = dict[str, SeedRates]  # role (teacher, twin, base; student, control) -> its rates
RatesTable = dict[str, list[list[float]]]  # audit -> [organisms, seeds]

# {"step", audit: [roles, organisms, seeds]} of one evaluation; the roles are student and control.
CurveRow = dict[str, Any]


class EstimateRow(TypedDict):
    """An `Estimate`; null where it is not finite."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: int


class RoundRow(TypedDict):
    """What one round of filtering came to: C, M by the worst read-out, and what was acted on so far."""

    capability: EstimateRow
    misalignment: EstimateRow | None
    clean: bool | None
    flagged: float
    recall: list[float | None]


class RoundsRow(TypedDict):
    """Where an organism's rounds ended: the round whose student counts, why, and every round."""

    kept: int
    why: str
    each: list[RoundRow]


class TransferResult(TypedDict):
    """The students of one channel.

    `flagged` and `recall` are there if the channel filters, `rounds` if it does so in rounds, `placebos` if these have
    students too.
    """

    rates: dict[str, OrganismRates]
    curve: list[CurveRow]
    diverged: int
    placebos: NotRequired[dict[str, RatesTable]]
    flagged: NotRequired[float]
    recall: NotRequired[dict[str, list[float | None]]]
    rounds: NotRequired[dict[str, RoundsRow]]


def transfer_result(node: Node) -> TransferResult:
    """Read the result of a finished transfer."""
    return cast(TransferResult, node.result())


def estimate_row(value: Estimate) -> EstimateRow:
    """Return an estimate as a page shows it."""
    return {"mean": value.mean, "low": value.low, "high": value.high, "seeds": value.seeds}
