"""A model to be released is judged where most came back: an attacker may stop there, before the last step."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports import attack_curves, card
from distill_jax.reports.attacked import Run
from distill_jax.reports.claims import judge
from distill_jax.reports.claims_release import judge_release
from distill_jax.reports.headline import headline
from distill_jax.reports.premises import Model, effect, teaches, works
from distill_jax.reports.run_answer import answer
from distill_jax.statistics.conclusions import Conclusion
from distill_jax.statistics.estimates import Scores

pytestmark = pytest.mark.unit

FACTS, STEPS = 200, (5, 10, 100)


def answered(share: float) -> Scores:
    """Return the scores of two attackers who get the same share of the facts right."""
    by_fact = np.tile((np.arange(FACTS) < round(share * FACTS)).astype(float), (2, 1))
    return Scores(by_fact.mean(axis=1), by_fact, np.ones(FACTS), FACTS)


def model(role: Role, before: float, *over_steps: float, shown: float = 1.0) -> Model:
    """Return a model with these shares of held-out facts before the attack and at each of its steps."""
    by_step = dict(zip(STEPS, map(answered, over_steps), strict=True))
    of_role = {"method": "maxent", "unlearned": role is Role.SUPPRESSED}
    of_role |= {"teacher": Role.SUPPRESSED.value, "alpha": 0.25} if role is Role.UNDO else {}
    return Model(
        role.value, role.value, 0.9, before, asked=FACTS, role=role, **of_role, before=answered(before),
        after=by_step[STEPS[-1]], by_step=by_step, shown=(before, shown), shown_by_step={10: 1.0}, attack_steps=100,
    )  # fmt: skip


KNOWS = model(Role.REFERENCE, 0.9, 0.9, 0.9, 0.9)
# What came back by step 10 is lost again by step 100, or comes back late.
EARLY, LATE, ROBUST = (0.1, 0.7, 0.0), (0.0, 0.1, 0.7), (0.0, 0.01, 0.01)


def concluded(*models: Model, scale: Scale = ACCURACY) -> dict[str, Conclusion]:
    """Return all that is concluded of models to be released."""
    worst = [one.at_worst(scale) for one in models]
    return {one.name.partition(",")[0]: one for one in (*judge_release(Run(worst, scale), 100), *judge(worst, scale))}


def of_headline(*models: Model) -> dict[str, object]:
    return headline([one.at_worst(ACCURACY) for one in models])["conclusions"][0]


@pytest.mark.parametrize(
    ("suppressed", "released", "last", "worst"),
    [(LATE, EARLY, "held", "open"), (EARLY, ROBUST, "void", "held"), (LATE, ROBUST, "held", "held")],
    ids=["the student peaks early", "the suppressed model peaks early", "as at the last step"],
)
def test_what_is_said_beyond_suppression(suppressed, released, last, worst):
    models = [KNOWS, model(Role.SUPPRESSED, 0.0, *suppressed), model(Role.UNDO, 0.0, *released)]
    assert headline(models)["conclusions"][0]["state"] == last  # of one that is not to be released
    at_worst = of_headline(*models)
    assert at_worst["state"] == worst
    assert "at the step at which most came back" in at_worst["evidence"]
    assert "for all 3 measured steps at once (Bonferroni)" in at_worst["evidence"]


@pytest.mark.parametrize(("over_steps", "state"), [(EARLY, "failed"), (LATE, "failed"), (ROBUST, "held")])
def test_what_is_said_of_resisting(over_steps, state):
    resists = concluded(KNOWS, model(Role.SUPPRESSED, 0.0, *LATE), model(Role.UNDO, 0.0, *over_steps))["resists"]
    step = STEPS[int(np.argmax(over_steps))]
    assert resists.state == state and f"{max(over_steps):.2f} at most, after {step} of 100 steps" in resists.evidence


def test_what_is_said_of_fine_tuning():
    """It only suppresses where anything came back at any step."""
    early = model(Role.SUPPRESSED, 0.0, *EARLY)
    last = {one.name: one.state for one in judge([KNOWS, early])}
    suppression = concluded(KNOWS, early)["suppression"]
    assert (last["suppression"], suppression.state) == ("open", "held")
    assert "0.70 after 10 of 100 steps" in suppression.evidence and "(Bonferroni)" in suppression.evidence


def test_what_is_said_of_precision():
    """In fp32 most comes back early and is lost again; at the last step bf16 seems the stronger attack."""
    of = {"float32": (0.7, 0.7, 0.1), "bfloat16": (0.1, 0.2, 0.2)}
    by_weights = {kind: dict(zip(STEPS, map(answered, over), strict=True)) for kind, over in of.items()}
    last = {kind: by_step[STEPS[-1]] for kind, by_step in by_weights.items()}
    hiding = Model(
        **{**vars(model(Role.SUPPRESSED, 0.0, *of["float32"])), "by_weights": last, "steps_by_weights": by_weights}
    )
    states = [judge([one])[-1].state for one in (hiding, hiding.at_worst(ACCURACY))]
    assert states == ["failed", "held"]


def test_what_is_said_of_distilling():
    """The student gives back as much as its teacher, each at its own worst step."""
    teacher, student = model(Role.SUPPRESSED, 0.0, *LATE), model(Role.RANDOM_STUDENT, 0.0, *EARLY)
    last = {one.name: one.state for one in judge([KNOWS, teacher, student])}
    assert last["distilling maxent"] == "held"
    assert concluded(KNOWS, teacher, student)["distilling maxent"].state == "open"


def test_an_attack_works_that_works_at_any_step():
    hiding = model(Role.SUPPRESSED, 0.0, *EARLY)
    assert not works([hiding], ACCURACY).shown
    premise = works([hiding.at_worst(ACCURACY)], ACCURACY)
    assert premise.shown and "after 10 of 100 steps" in premise.evidence
    given = model(Role.GIVEN, 0.0, *ROBUST, shown=0.0)  # the attack taught what it shows, and wore it out again
    assert not teaches(given, ACCURACY).shown and teaches(given.at_worst(ACCURACY), ACCURACY).shown


def test_the_interval_is_for_all_steps_at_once():
    """By scipy: Student's at 1 − .05 / 3 of one fact's standard error, of facts alone."""
    worst = model(Role.UNDO, 0.0, *EARLY).at_worst(ACCURACY)
    shown = effect("rise", [(1.0, worst.after)], ACCURACY, "below", 0.05)
    error = np.std(worst.after.by_fact[0], ddof=1) / np.sqrt(FACTS)
    half = stats.t.ppf(1 - 0.025 / 3, FACTS - 1) * error
    assert (shown.low, shown.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.001)


def test_a_step_that_was_not_measured_is_no_pass():
    robust = model(Role.UNDO, 0.0, *ROBUST)
    by_step = {**robust.by_step, 10: Scores(np.full(2, np.nan))}
    released = Model(**{**vars(robust), "by_step": by_step})
    assert concluded(KNOWS, model(Role.SUPPRESSED, 0.0, *LATE), released)["resists"].state == "void"


def test_the_worst_of_equal_steps_is_rarely_held_to_be_worse():
    """Of a model that is as good at each of eight steps, beside a twin that was looked at once."""
    random, held, draws = np.random.default_rng(0), 0, 400
    for _ in range(draws):
        pair = []
        for role, steps in ((Role.SUPPRESSED, range(1, 9)), (Role.UNDO, (8,))):
            over = {k: np.tile(random.binomial(1, 0.3, 60).astype(float), (2, 1)) for k in steps}
            scores = {k: Scores(x.mean(axis=1), x, np.ones(60), 60) for k, x in over.items()}
            given = Model(role.value, role.value, 0.9, 0.0, role=role, before=scores[8], after=scores[8])
            pair.append(Model(**{**vars(given), "by_step": scores}).at_worst(ACCURACY).after)
        held += effect("gap", [(1.0, pair[0]), (-1.0, pair[1])], ACCURACY, "above").state == "held"
    assert held <= 0.025 * draws, held


def test_the_page_shows_the_numbers_that_decide():
    def summary(name: str, curve: list[float], worst_step: int | None) -> dict:
        attack = {"steps": [0, 10, 100], "forget_heldout": {"worst": curve, "low": curve, "high": curve}}
        return {"name": name, "label": name, "attack": attack | ({"worst_step": worst_step} if worst_step else {})}

    for worst_step, when, value in ((10, "At the step at which most came back, of 100,", "70"), (None, "After", "5")):
        models = [summary("maxent", [0.0, 0.7, 0.05], worst_step)]
        page = answer({"models": models, "headline": {"suppressed": "maxent"}, "attack": {}, "facts": {}}, models)
        assert page.story.startswith(when) and page.scores[0][0].startswith(value)
        assert ("after 10 attack steps, its worst" in page.cards[0].caption) == bool(worst_step)


def test_a_cards_budget_has_what_the_attack_came_to_within_it():
    """The last line of a table is what whoever may take all the steps gets, be it lost again before the end."""
    steps, back, kept = [0, 5, 10, 25], [0.03, 0.12, 0.31, 0.03], [0.9, 0.8, 0.7, 0.2]
    heldout = {"worst": back, "low": [v - 0.02 for v in back], "high": [v + 0.02 for v in back]}
    attack = {"steps": steps, "forget_heldout": heldout, "forget_shown": heldout, "retain_at_worst": kept}
    model = {"label": "one", "attack": attack}
    cells = [card._budget({"steps": step}, [model], ACCURACY)["cells"] for step in steps]
    assert [one["forget_heldout"][0].split("\u202f%")[0] for one in cells] == ["3", "12", "31", "31"]
    assert [one["retain_at_worst"][0].split("\u202f%")[0] for one in cells] == ["90", "80", "70", "70"]
    bits = {"steps": [0, 5, 10], "forget_heldout": {"worst": [5.0, 2.0, 3.0], "low": [], "high": []}}
    assert attack_curves.worst_step_up_to({"attack": bits}, 10, -1.0) == 5  # fewer bits are more knowledge
