"""Conclusions: sentences that the program states, each with its premises, its effects and one of five states.

One place decides. A rule measures effects with intervals and says what must be true for its sentence to mean anything;
`conclude` turns that into a state, and pages and command lines only print it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Literal


class State(enum.StrEnum):
    """What became of a conclusion."""

    HELD = "held"
    FAILED = "failed"  # the opposite is shown
    OPEN = "open"  # the seeds cannot tell
    VOID = "void"  # a premise is not shown: the sentence would mean nothing
    NOT_RUN = "not run"  # what it compares is not there


@dataclasses.dataclass(frozen=True)
class Premise:
    """What must be shown before a conclusion means anything.

    Attributes:
      statement: what is to be true, such as "unlearning suppressed it before the attack".
      shown: whether the numbers show it; "cannot tell" is not shown.
      evidence: the numbers.
      remedy: what to change so that it may be shown, as an imperative sentence without its stop; "" for nothing known.
    """

    statement: str
    shown: bool
    evidence: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Effect:
    """A measured quantity with its interval, and what the conclusion says of it.

    Attributes:
      name: the quantity and its unit.
      estimate, low, high: with the ends of its 95 % interval; NaN ends where nothing can be said of its error.
      claim: "above" or "below" the threshold, or "within" ± threshold of zero (an equivalence test).
      threshold: in the effect's unit; the margin of an equivalence.
      n: independent units (seeds, facts) behind the interval.
    """

    name: str
    estimate: float
    low: float
    high: float
    claim: Literal["above", "below", "within"]
    threshold: float = 0.0
    n: int = 0

    @property
    def state(self) -> State:
        """Return HELD where the whole interval is on the claimed side, FAILED where it is on the other, else OPEN.

        With a 95 % interval a true null is held at most 2.5 % of the time. An equivalence is held where the interval is
        inside ± threshold: two one-sided tests at 2.5 % each.
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return State.OPEN
        bounds = {
            "above": (self.low > self.threshold, self.high < self.threshold),
            "below": (self.high < self.threshold, self.low > self.threshold),
            "within": (
                -self.threshold < self.low and self.high < self.threshold,
                self.low > self.threshold or self.high < -self.threshold,
            ),
        }
        held, failed = bounds[self.claim]
        return State.HELD if held else State.FAILED if failed else State.OPEN

    @property
    def favours(self) -> bool:
        """Return whether the estimate, without its interval, is on the claimed side."""
        sides = {
            "above": self.estimate > self.threshold,
            "below": self.estimate < self.threshold,
            "within": abs(self.estimate) < self.threshold,
        }
        return sides[self.claim]

    def __str__(self) -> str:
        none = math.isnan(self.low) or self.low == self.high  # a number that is taken as measured has no interval
        interval = "" if none else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.name} {self.estimate:+.3f}{interval}"


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """A sentence with all that it rests on.

    Attributes:
      name: short and stable, by which pages and tests refer to it.
      statement: the sentence.
      evidence: the numbers in words; for NOT_RUN what is missing, for VOID which premise is not shown.
    """

    name: str
    statement: str
    state: State
    evidence: str
    premises: tuple[Premise, ...] = ()
    effects: tuple[Effect, ...] = ()


def conclude(
    name: str, statement: str, *, premises: Sequence[Premise], effects: Sequence[Effect], evidence: str = ""
) -> Conclusion:
    """Decide a conclusion: VOID unless every premise is shown; HELD if every effect is, FAILED if any is, else OPEN.

    All effects must hold, so each is tested at the full level (an intersection-union test).
    """
    numbers = " ".join(filter(None, (evidence, "; ".join(map(str, effects)) + "." if effects else "")))
    missing = [premise for premise in premises if not premise.shown]
    if missing:
        state = State.VOID
        numbers = " ".join(f"Not shown: {premise.statement} ({premise.evidence})." for premise in missing)
        remedies = dict.fromkeys(premise.remedy for premise in missing if premise.remedy)
        numbers += f" To decide it: {'; and '.join(remedies)}." if remedies else ""
    else:
        states = {effect.state for effect in effects}
        held = states == {State.HELD}
        state = State.HELD if held else State.FAILED if State.FAILED in states else State.OPEN
        numbers += _leaning(effects) if state is State.OPEN else ""
    return Conclusion(name, statement, state, numbers, tuple(premises), tuple(effects))


def _leaning(effects: Sequence[Effect]) -> str:
    """Return, as a sentence, to which side the estimates of an open conclusion lie; "" where one is not known."""
    if not effects or not all(math.isfinite(number) for e in effects for number in (e.estimate, e.low, e.high)):
        return ""
    side = "for" if all(effect.favours for effect in effects) else "against"
    return f" The estimate speaks {side} it, and the interval reaches to the other side."


def not_run(name: str, statement: str, *missing: str) -> Conclusion:
    """Return a conclusion whose models were not made or not attacked."""
    return Conclusion(name, statement, State.NOT_RUN, f"This run has no {' or '.join(missing)}.")


def count(conclusions: Sequence[Conclusion]) -> Mapping[State, int]:
    """Return how many conclusions are in each state, every state named."""
    return {state: sum(one.state is state for one in conclusions) for state in State}


def to_json(conclusion: Conclusion) -> dict[str, object]:
    """Return a conclusion as a summary holds it; a number that is not finite is null."""
    plain = dataclasses.asdict(conclusion)
    for effect in plain["effects"]:
        effect.update({k: None for k, v in effect.items() if isinstance(v, float) and not math.isfinite(v)})
    effects = [row | {"state": str(one.state)} for row, one in zip(plain["effects"], conclusion.effects, strict=True)]
    return plain | {"state": str(conclusion.state), "effects": effects}


def line(one: Mapping[str, object]) -> str:
    """Return a conclusion, as `to_json` has it, as a line to print."""
    state = "FAILED" if one["state"] == State.FAILED else one["state"]
    return f"{state:8}{one['statement']}  {one['evidence']}"
