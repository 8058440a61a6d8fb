"""The double bind's rules before a referee: what must not be said of noise, and what must be seen where it is there."""

import numpy as np
import pytest
from scipy import stats

from distill_jax.doublebind import audit_claims, referee
from distill_jax.doublebind.channel_effect import ChannelEffect, Readout
from distill_jax.doublebind.stages import Subliminal
from distill_jax.reports import subliminal_summary
from distill_jax.statistics.conclusions import State

pytestmark = pytest.mark.unit
SIZES = ((3, 0.05), (5, 0.02), (5, 0.15), (10, 0.05))  # seeds and run-to-run spread


def allowed(draws: int, rate: float = 0.05) -> float:
    """Return how often an error of this rate may be seen in so many draws, by less than one chance in a thousand."""
    return stats.binom.ppf(0.999, draws, rate) / draws


@pytest.mark.parametrize("case", referee.NULLS, ids=lambda case: case.name)
def test_a_verdict_is_wrong_at_most_one_time_in_twenty(case):
    draws = 100 if case.channels == 1 else 30
    for seeds, spread in SIZES:
        assert referee.verdict_rate(case, seeds, spread, draws) <= allowed(draws), (seeds, spread)


@pytest.mark.thorough
@pytest.mark.parametrize("spread", referee.SPREADS)
@pytest.mark.parametrize("case", referee.NULLS, ids=lambda case: case.name)
def test_a_verdict_is_wrong_at_most_one_time_in_twenty_at_every_size(case, spread):
    for seeds in (2, 3, 5, 10, 20):
        assert referee.verdict_rate(case, seeds, spread, 600) <= allowed(600), seeds


@pytest.mark.parametrize("case", referee.POWERS, ids=lambda case: case.name)
def test_what_is_there_is_seen_with_seeds_enough(case):
    draws = 60 if case.channels < 6 else 10
    assert referee.verdict_rate(case, 20, 0.02, draws) >= 0.85


def test_a_transfer_in_every_other_training_is_called_clean_as_seldom_as_promised():
    """By chance alone five seeds of one channel are all clean in 1 / 32 of runs: more would be an error."""
    (case,) = (one for one in referee.NULLS if one.name == "all of it moves, in half of all trainings")
    found = referee.verdict_rate(case, 5, 0.02, 800)
    assert found <= allowed(800, 1 / 32) and found > 0


# ------------------------------------------------------------------------------------------------------------- claims

CHANNELS = (
    *("positive", "samples", "surface", "unrelated", "unrelated-other", "dropped", "swapped", "rewritten"),
    *("dropped-by-chance", "swapped-by-chance", "in-rounds", "inoculated", "random-prefix", "wrong-prefix"),
)
KINDS = ("token-backdoor", "semantic-backdoor", "sycophant")


def concluded(rng, leaks, abilities=None, seeds=5, spread=0.05):
    """Return {name: state}, of students that have shares of quirk and ability by channel; others have all of both."""
    draw = lambda mean: mean + rng.normal(0, spread / 2**0.5, seeds)  # noqa: E731

    def effect(kind, channel):
        leak, able = leaks.get(channel, 1.0), (abilities or {}).get(channel, 1.0)
        readout = Readout(draw(0.95), draw(0.05), draw(0.05 + 0.9 * leak), draw(0.05))
        names = ("behaviour", "trigger") if kind == "token-backdoor" else ("behaviour",)
        return ChannelEffect(
            draw(0.1), draw(0.95), draw(0.1 + 0.85 * able), dict.fromkeys(names, readout), draw(0), draw(0)
        )

    effects = {kind: {channel: effect(kind, channel) for channel in CHANNELS} for kind in KINDS}
    return {one.name: one.state for one in audit_claims.conclusions(effects, KINDS)}


def held(rng, draws, names, *given, **more):
    """Return how often each of the named conclusions held."""
    found = [concluded(rng, *given, **more) for _ in range(draws)]
    return {name: np.mean([one[name] is State.HELD for one in found]) for name in names}


SURFACE, UNRELATED = (
    ("surface-token-backdoor", "surface-semantic-backdoor"),
    ("unrelated-same-base", "unrelated-other-base"),
)
COMPARED = ("dropping-or-swapped", "dropping-or-rewritten", "in-rounds-or-at-once", "dropped-or-by-chance",
            "swapped-or-by-chance", "inoculation", "random-prefix", "naming-or-random", "naming-or-wrong")  # fmt: skip


class TestClaims:
    def test_every_claim_is_stated_of_these_channels(self):
        found = concluded(np.random.default_rng(0), {})
        assert set(found) == {*SURFACE, *UNRELATED, *COMPARED, "unrelated-base-matters"}

    def test_where_nothing_came_through_undefended_no_defence_is_praised(self):
        found = concluded(np.random.default_rng(0), dict.fromkeys(CHANNELS[1:], 0.0))
        assert {found[name] for name in (*SURFACE, *COMPARED)} == {State.VOID}

    def test_where_nothing_transfers_at_all_no_base_is_compared(self):
        found = concluded(np.random.default_rng(0), dict.fromkeys(CHANNELS, 0.0))
        assert set(found.values()) == {State.VOID}

    def test_of_students_that_learnt_nothing_nothing_is_said(self):
        defended = [name for name in CHANNELS if name not in ("positive", "samples")]
        none = dict.fromkeys(defended, 0.0)
        found = concluded(np.random.default_rng(0), none, none)
        assert {found[name] for name in (*SURFACE, *COMPARED)} == {State.VOID}

    def test_arms_of_unlike_ability_are_not_compared(self):
        found = concluded(np.random.default_rng(0), {"swapped": 0.1}, {"swapped": 0.6})
        assert found["swapped-or-by-chance"] == found["dropping-or-swapped"] == State.VOID
        found = concluded(np.random.default_rng(0), {"swapped": 0.1})
        assert found["swapped-or-by-chance"] == found["dropping-or-swapped"] == State.HELD

    @pytest.mark.parametrize("seeds", [2, 3, 5, 10])
    def test_a_base_that_carries_and_another_that_does_not_cannot_both_be_said_of_equal_shares(self, seeds):
        rng, both = np.random.default_rng(seeds), 0
        for _ in range(60):
            found = concluded(rng, {"unrelated": 0.048, "unrelated-other": 0.048}, seeds=seeds, spread=0.03)
            both += found["unrelated-same-base"] is found["unrelated-other-base"] is State.HELD
            assert found["unrelated-same-base"] is not State.HELD
        assert both == 0

    @pytest.mark.parametrize(("seeds", "spread"), SIZES)
    def test_equal_arms_differ_at_most_one_time_in_twenty(self, seeds, spread):
        rates = held(np.random.default_rng(seeds), 60, COMPARED, {}, seeds=seeds, spread=spread)
        assert max(rates.values()) <= allowed(60)

    @pytest.mark.parametrize(("seeds", "spread"), SIZES)
    def test_a_leak_of_the_margin_is_neither_stopped_nor_carried(self, seeds, spread):
        leaks = dict.fromkeys(("surface", "unrelated"), audit_claims.MARGIN)
        rates = held(np.random.default_rng(seeds), 60, (*SURFACE, *UNRELATED[:1]), leaks, seeds=seeds, spread=spread)
        assert max(rates.values()) <= allowed(60)
        leaks = {"unrelated-other": audit_claims.MARGIN}
        (rate,) = held(np.random.default_rng(seeds), 60, UNRELATED[1:], leaks, seeds=seeds, spread=spread).values()
        assert rate <= allowed(60)

    def test_what_is_there_is_held(self):
        leaks = {"surface": 0.0, "unrelated": 0.5, "unrelated-other": 0.0, "swapped": 0.2, "rewritten": 0.2}
        leaks |= {"dropped": 0.6, "in-rounds": 0.3, "inoculated": 0.2, "random-prefix": 0.6, "wrong-prefix": 0.6}
        rates = held(np.random.default_rng(0), 20, (*SURFACE[:1], *UNRELATED, *COMPARED), leaks, spread=0.03)
        assert min(rates.values()) >= 0.9


# --------------------------------------------------------------------------------------------------------- subliminal


def sublime(rng, gain, seeds, *, spread=0.05, teacher=0.95, alphas=(0.2, 0.4, 0.6)):
    """Return {name: state} of made-up tables: each (arm, ghosts) has a gain, and no other."""
    arms = ("same init", "other init", "same heads", "same body")

    def tables(keys):
        base = {key: 0.1 + rng.normal(0, spread / 2**0.5, seeds) for key in keys}
        accuracy = {key: base[key] + gain.get(key, 0.0) for key in keys}
        before = {key: 0.1 + rng.normal(0, spread / 2**0.5, seeds) for key in keys}
        return {"accuracy": accuracy, "before": before, "unseen": base, "unseen_before": base}

    found = {
        "kl": tables([(arm, m) for arm in arms for m in (3, 10, 30)]),
        "mse": tables([(arm, 1) for arm in arms]),
        "noise-8": tables([(arm, 3) for arm in arms]),
        "undo": tables([(arm, 3) for arm in (*arms[:2], *(f"damaged {alpha:g}" for alpha in alphas))]),
    }
    settings = {"kl": Subliminal(noise=80), "noise-8": Subliminal(noise=8), "undo": Subliminal(alphas=alphas)}
    teachers = teacher + rng.normal(0, 0.01, seeds)
    return {one.name: one.state for one in subliminal_summary.conclusions(found, settings, teachers)}


TRANSFERS = {("same init", m): 0.5 for m in (3, 10, 30)}
NAMES = ("transfer", "other-init-nothing", "heads", "more-ghosts", "one-logit-mse", "damage-narrows", "damage-closes")


class TestSubliminal:
    @pytest.mark.parametrize("seeds", [2, 3, 5, 20])
    def test_teachers_at_chance_void_everything_but_what_was_not_run(self, seeds):
        found = sublime(np.random.default_rng(seeds), TRANSFERS, seeds, teacher=0.11)
        assert set(found.values()) <= {State.VOID, State.NOT_RUN}

    @pytest.mark.parametrize("seeds", [2, 3, 5, 20])
    def test_pure_noise_is_called_a_finding_at_most_one_time_in_twenty(self, seeds):
        rng = np.random.default_rng(seeds)
        found = [sublime(rng, {}, seeds) for _ in range(60)]
        rates = {name: np.mean([one[name] is State.HELD for one in found]) for name in NAMES}
        assert max(rates.values()) <= allowed(60)

    @pytest.mark.parametrize("seeds", [2, 3, 5, 20])
    def test_arms_that_transfer_alike_have_no_trend_and_no_better_part(self, seeds):
        """The gain is .5 whatever the number of ghost logits and the damage, and of heads and body alike."""
        alike = TRANSFERS | {(arm, 30): 0.3 for arm in ("same heads", "same body")}
        alike |= {(f"damaged {alpha:g}", 3): 0.5 for alpha in (0.2, 0.4, 0.6)}
        rng = np.random.default_rng(seeds)
        found = [sublime(rng, alike, seeds) for _ in range(60)]
        names = ("heads", "more-ghosts", "damage-narrows", "damage-closes")
        rates = {name: np.mean([one[name] is State.HELD for one in found]) for name in names}
        assert max(rates.values()) <= allowed(60)
        if seeds == 2:
            assert {one[name] for one in found for name in names[1:3]} <= {State.OPEN, State.VOID}

    def test_damage_closes_nothing_if_nothing_came_through_undamaged(self):
        found = sublime(np.random.default_rng(0), {("same init", 30): 0.5, ("same init", 10): 0.5}, 20, spread=0.01)
        assert found["damage-closes"] == found["damage-narrows"] == State.VOID

    def test_what_is_there_is_held(self):
        gain = {("same init", 3): 0.3, ("same init", 10): 0.5, ("same init", 30): 0.7, ("same heads", 30): 0.3}
        gain |= {("damaged 0.2", 3): 0.25, ("damaged 0.4", 3): 0.1, ("same init", 1): 0.2}
        rng = np.random.default_rng(0)
        found = [sublime(rng, gain, 20, spread=0.04) for _ in range(20)]
        assert min(np.mean([one[name] is State.HELD for one in found]) for name in NAMES) >= 0.9
