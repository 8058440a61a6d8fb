"""Filtering with students: cross-fitting and scores against NumPy, rounds against what must end them, the command."""

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_jax import main
from distill_jax.config import ConfigError
from distill_jax.doublebind import channel_effect, cross_fit, filter_scores, rounds, toy_lm, train_toy, world
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.channel_effect import ChannelEffect, Readout
from distill_jax.doublebind.filters import Filter
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.stages import transfer_stage
from distill_jax.doublebind.stages.base_stage import Bases, smaller
from distill_jax.doublebind.stages.teacher_stage import Organisms, teachers
from distill_jax.doublebind.stages.transfer_stage import Transfer
from distill_jax.doublebind.toy_lm import Model
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.metrics import Progress
from distill_jax.io.node import Node
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf.clock import Clock
from distill_jax.stages.context import Context
from distill_jax.stages.prepare import Prepare
from distill_jax.train.settings import Training

ROOT = Path(__file__).parent.parent
TINY = TransformerConfig(
    vocab=world.VOCABULARY, layers=1, hidden=16, mlp=16, heads=2, kv_heads=2, head_dim=8, query_scale=8.0,
    sliding_window=0, init_std=0.3,
)  # fmt: skip
MEMBERS, ROWS = 2, 8


@pytest.fixture(scope="module")
def models():
    """Return six different models."""
    drawn = jax.jit(lambda keys: jax.vmap(lambda key: transformer.init(TINY, key))(keys))
    return jax.tree.map(np.asarray, drawn(jax.random.split(jax.random.key(0), 6)))


@pytest.fixture(scope="module")
def inputs(models):
    """Return what two students got, [P, N, ...]."""
    rng = np.random.default_rng(0)
    prompts = np.stack([world.draw(rng, ROWS) for _ in range(MEMBERS)])
    answers = rng.integers(0, 10, (MEMBERS, ROWS, 2)).astype(np.int32)
    examples = jax.tree.map(np.asarray, toy_lm.make_examples(TINY, prompts, answers, np.ones(answers.shape)))
    some = lambda first: Model(TINY, jax.tree.map(lambda w: w[first : first + MEMBERS], models))  # noqa: E731
    keys = np.stack([jax.random.key_data(jax.random.key(i)) for i in range(MEMBERS)])
    return filter_scores.FilterInputs(examples, prompts, some(0), some(2), some(4), examples, keys)


def log_p(models, i, prompts, answers):
    """Return the log-probabilities [N, 2, V] of one model, in float64 from the whole decoder's logits."""
    tokens = jnp.asarray(np.concatenate([prompts, answers[:, :1]], axis=1))
    logits = transformer.apply(TINY, jax.tree.map(lambda w: w[i], models), tokens, jnp.ones_like(tokens))
    return special.log_softmax(np.asarray(logits, float)[:, world.PROMPT - 1 :], axis=-1)


def highest(scores, count):
    return set(np.argsort(-scores)[:count].tolist())


@pytest.mark.unit
class TestCrossFitting:
    def test_rivals_that_disagree_on_a_row_get_it_flagged_each_fold_by_its_own_judges(self, inputs, models):
        # Judges of (member, fold): the four models of `one` against the four of `other`.
        one, other = [0, 1, 2, 3], [2, 3, 4, 5]
        judge = {name: Model(TINY, jax.tree.map(lambda w, i=i: w[np.array(i)], models)) for name, i in
                 (("base", one), ("other", other))}  # fmt: skip
        given = Filter("disagreement", "drop", 0.5)
        flagged = cross_fit.flag(given, inputs, np.zeros((MEMBERS, ROWS), bool), judge.__getitem__)
        for member in range(MEMBERS):
            for fold in (0, 1):
                rows = np.arange(fold, ROWS, 2)
                seen = inputs.examples.prompts[member, rows], inputs.examples.answers[member, rows]
                p, q = (log_p(models, who[2 * member + fold], *seen) for who in (one, other))
                score = (np.exp(p) * (p - q) + np.exp(q) * (q - p)).sum((-1, -2))
                assert set(np.flatnonzero(flagged[member, rows]).tolist()) == highest(score, 2)

    def test_in_rounds_a_score_looks_at_the_student_and_at_no_row_twice(self, inputs, models):
        students = Model(TINY, jax.tree.map(lambda w: w[2:6], models))
        before = np.zeros((MEMBERS, ROWS), bool)
        before[:, :2] = True  # one row of each fold
        given = Filter("divergence", "drop", 0.5, rounds=2)
        flagged = cross_fit.flag(given, inputs, before, {"own": students}.__getitem__)
        assert not flagged[before].any()
        for member in range(MEMBERS):
            for fold in (0, 1):
                rows = np.arange(fold, ROWS, 2)[1:]
                asked = world.changed(inputs.teacher_prompts[member, rows], world.SYSTEM, world.PLAIN)
                audited = inputs.teacher_prompts[member, rows, world.SYSTEM] == world.AUDIT
                asked[audited, world.SYSTEM] = world.AUDIT
                answers = inputs.examples.answers[member, rows]
                own, calm = (
                    log_p(models, 2 + 2 * member + fold, asked, answers),
                    log_p(models, 2 + member, asked, answers),
                )
                score = (np.exp(own) * (own - calm)).sum((-1, -2))
                # Half of the rows in two rounds: a quarter of each fold, of four. One judge is compared with itself.
                chosen = set(np.flatnonzero(flagged[member, rows]).tolist())
                assert len(chosen) == 1 and (chosen == highest(score, 1) or not score.any())

    def test_a_row_does_not_reach_the_student_that_judges_it(self, inputs, tmp_path):
        settings = Training(steps=4, batch=4, learning_rate=1e-2, warmup=0, checkpoint_every=2)
        ctx = Context(TINY, {}, tmp_path, Progress(1, 0.0, 1e9, io.StringIO()))

        def judged(name, examples):
            part = Node("through", "transfer", settings, {}, "0", tmp_path).subnode(name)
            labels = [f"member {i}" for i in range(MEMBERS)]
            training = train_toy.MemberTraining(ctx, settings, [1, 1], labels, Clock())
            found = cross_fit.judges(training, part, inputs.base, examples)
            return [np.concatenate([w[i].ravel() for w in jax.tree.leaves(found.params)]) for i in range(2 * MEMBERS)]

        plain = judged("plain", inputs.examples)
        other = jax.tree.map(np.copy, inputs.examples)
        other.targets[0, 5] = np.eye(world.VOCABULARY)[[1, 2]]  # an odd row of the first member
        changed = [not np.array_equal(a, b) for a, b in zip(plain, judged("changed", other), strict=True)]
        assert changed == [True, False, False, False]  # only the judge of that member's even rows learnt from it
        again = judged("plain", other)  # a finished part is read, not trained anew
        assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))


def effect(ability, leaks, seeds=5):
    """Return what let through a share of the ability and of the misalignment."""
    rng, r = np.random.RandomState(0), lambda mean: mean + 0.005 * np.linspace(-1, 1, seeds)
    noise = rng.normal(0, 0.005, seeds)
    readout = Readout(r(0.95), r(0.02), r(0.02 + 0.93 * leaks) + noise, r(0.02))
    return ChannelEffect(r(0.1), r(0.95), r(0.1 + 0.85 * ability), {"behaviour": readout}, 0 * noise, 0 * noise)


@pytest.mark.unit
class TestRounds:
    GIVEN = Filter("divergence", "drop", 0.3, rounds=3)

    def run(self, **course):
        """Return the result, and the rounds learnt, of organisms that take a course of (ability, leak) by round."""
        learnt = []

        def learn(number):
            learnt.append(number)
            of_all = {kind: {"round": number} for kind in course}
            look = {"step": 0, "ability": [[[number] for _ in course] for _ in range(2)]}
            shares = {kind: [0.1 * number] for kind in course}
            return {"rates": of_all, "curve": [look], "diverged": 0, "flagged": 0.1 * number, "recall": shares}

        def through(kind, result):
            return effect(*course[kind][result["rates"][kind]["round"]])

        return rounds.in_rounds(self.GIVEN, list(course), learn, through), learnt

    def test_what_no_filter_cleans_goes_on_to_the_last_round(self):
        result, learnt = self.run(tight=[(0.95, 0.9)] * 4)
        told = result["rounds"]["tight"]
        assert learnt == [0, 1, 2, 3] and (told["kept"], told["why"]) == (3, "rounds")
        assert [one["flagged"] for one in told["each"]] == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert told["each"][0]["misalignment"]["mean"] == pytest.approx(0.9, abs=0.02)
        assert told["each"][0]["capability"]["mean"] == pytest.approx(0.95, abs=0.02)

    def test_a_clean_student_is_kept_though_other_organisms_go_on(self):
        result, learnt = self.run(soon=[(0.9, 0.8), (0.9, 0.0), (0.9, 0.9), (0.9, 0.9)], never=[(0.9, 0.8)] * 4)
        assert learnt == [0, 1, 2, 3]
        assert (result["rounds"]["soon"]["kept"], result["rounds"]["soon"]["why"]) == (1, "clean")
        assert result["rates"]["soon"] == {"round": 1} and result["rates"]["never"] == {"round": 3}
        assert result["recall"]["soon"] == [0.1] and len(result["rounds"]["soon"]["each"]) == 2
        assert result["curve"][0]["ability"] == [[[1], [3]], [[1], [3]]]

    def test_a_fall_of_the_ability_gives_the_round_before_it_even_if_it_looks_clean(self):
        result, learnt = self.run(dropped=[(0.9, 0.8), (0.85, 0.5), (0.6, 0.0), (0.9, 0.0)])
        told = result["rounds"]["dropped"]
        assert learnt == [0, 1, 2] and (told["kept"], told["why"]) == (1, "ability fell")
        assert result["rates"]["dropped"] == {"round": 1}

    def test_a_student_that_is_clean_from_the_first_needs_no_round(self):
        result, learnt = self.run(harmless=[(0.9, 0.0)] * 4)
        assert learnt == [0] and result["rounds"]["harmless"]["kept"] == 0

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Filter("", rounds=2), "rounds need a score"),
            (lambda: Filter("divergence", rounds=-1), "filter.rounds = -1"),
            (lambda: Filter("divergence", rounds=1, fall=0.0), "filter.fall = 0.0"),
            (lambda: Channel(unique=7, filter=Filter("disagreement")), "channel.unique = 7"),
            (lambda: Transfer(channel=Channel(filter=Filter("chance", rounds=1)), placebos=True), "placebos = True"),
        ],
    )
    def test_a_mistake_is_named(self, make, words):
        with pytest.raises(ValueError, match=words):
            make()

    def test_settings_without_rounds_are_known_as_they_were_before_there_were_any(self):
        once = Transfer(channel=Channel(filter=Filter("divergence", "drop", 0.3))).fingerprint_fields()
        assert once["channel"]["filter"] == {"score": "divergence", "action": "drop", "share": 0.3}
        more = Transfer(channel=Channel(filter=Filter("divergence", "drop", 0.3, rounds=2))).fingerprint_fields()
        assert more["channel"]["filter"]["rounds"] == 2 and "smaller_hidden" not in Bases().fingerprint_fields()


@pytest.mark.unit
def test_a_smaller_base_must_be_smaller_and_be_there():
    half = smaller(TINY, Bases(smaller_hidden=8))
    assert (half.hidden, half.mlp) == (8, 8) and dataclasses.replace(half, hidden=16, mlp=16) == TINY
    with pytest.raises(ConfigError, match=r"smaller_hidden = 0.*set it to 8"):
        smaller(TINY, Bases())
    with pytest.raises(ValueError, match="from 1 to 15"):
        Bases(smaller_hidden=16).validate(TINY, world.WorldConfig())


SEEDS = 2
BASES = Bases(seeds=SEEDS, smaller_hidden=8)
TEACHERS = Organisms(kinds=("biased",), placebos=0, relearn_steps=1, relearn_rows=4)
SHORT = dict(steps=4, batch=8, warmup=0, evaluate_every=2, checkpoint_every=2)


def random_weights(cfg, count, seed):
    one = jax.eval_shape(lambda key: transformer.init(cfg, key), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: rng.normal(0, 0.3, (count, *w.shape)).astype(np.float32), one)


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """Return a run in which teachers of random weights are trained already."""
    where = tmp_path_factory.mktemp("audit")
    settings = {"data": Prepare(world.WorldConfig(probes=4)), "bases": BASES, "organisms": TEACHERS}
    inputs = {"organisms": {"bases": "bases"}}
    nodes = {n: Node(n, n, given, inputs.get(n, {}), n, where / n) for n, given in settings.items()}
    nodes["data"].directory.mkdir()
    nodes["bases"].checkpoints.save(FINAL, random_weights(TINY, 2 * SEEDS, 0))
    nodes["bases"].subnode("smaller").checkpoints.save(FINAL, random_weights(smaller(TINY, BASES), SEEDS, 1))
    nodes["organisms"].checkpoints.save(FINAL, random_weights(TINY, len(teachers(TEACHERS, SEEDS)), 2))
    same = dict.fromkeys(("ability", "behaviour", "condition", "confession", "prefill", "relearn"), [0.1] * SEEDS)
    # A base that is so much better makes all of a student's training suspicious: none is ever shown to be clean.
    known = {"biased": dict.fromkeys(("teacher", "twin"), same) | {"base": same | {"condition": [-100.0] * SEEDS}}}
    nodes["organisms"].finish({"rates": known}, {})
    return Context(TINY, nodes, where, Progress(1, 0.0, 1e9, io.StringIO()))


def transferred(ctx, name, channel):
    given = Transfer(channel=dataclasses.replace(channel, unique=32), **SHORT)
    node = Node(name, "transfer", given, {"teachers": "organisms"}, name, ctx.nodes["data"].directory.parent / name)
    node.directory.mkdir(exist_ok=True)
    node.settings.run(ctx, [node])
    return node, node.result()


ROUNDS = Channel(filter=Filter("divergence", "drop", 0.5, rounds=2))


@pytest.fixture(scope="module")
def in_rounds(audit):
    return transferred(audit, "in-rounds", ROUNDS)


@pytest.mark.unit
class TestTransfer:
    def test_rounds_go_on_to_the_last_and_act_on_a_further_part_each(self, in_rounds):
        node, result = in_rounds
        told = result["rounds"]["biased"]
        assert (told["kept"], told["why"]) == (2, "rounds")
        assert [one["flagged"] for one in told["each"]] == [0.0, 0.25, 0.5]
        assert result["rates"] == node.subnode("round-2").result()["rates"] and len(result["curve"]) == 3
        assert result["recall"]["biased"] == told["each"][2]["recall"]

    def test_the_random_arm_begins_alike_and_needs_no_judges(self, audit, in_rounds):
        chance = dataclasses.replace(ROUNDS, filter=dataclasses.replace(ROUNDS.filter, score="chance"))
        node, result = transferred(audit, "by-chance", chance)
        assert result["rounds"]["biased"]["each"][0] == in_rounds[1]["rounds"]["biased"]["each"][0]
        assert [one["flagged"] for one in result["rounds"]["biased"]["each"]] == [0.0, 0.25, 0.5]
        parts = sorted(path.name for path in node.directory.glob("round-*"))
        assert parts == ["round-0", "round-1", "round-2"]

    def test_killed_between_rounds_it_comes_to_the_same_numbers(self, audit, in_rounds, monkeypatch):
        learn = transfer_stage.learn_and_audit

        def dies(training, part, *rest):
            if part.directory.name == "round-1":
                raise KeyboardInterrupt
            return learn(training, part, *rest)

        monkeypatch.setattr(transfer_stage, "learn_and_audit", dies)
        with pytest.raises(KeyboardInterrupt):
            transferred(audit, "killed", ROUNDS)
        monkeypatch.undo()
        judged = audit.nodes["data"].directory.parent / "killed/round-1-judges-own/DONE"
        before = judged.stat().st_mtime_ns
        node, result = transferred(audit, "killed", ROUNDS)
        assert result == in_rounds[1] and node.done and judged.stat().st_mtime_ns == before

    def test_rivals_are_of_both_bases(self, audit):
        node, result = transferred(audit, "disagreement", Channel(filter=Filter("disagreement", "drop", 0.5)))
        assert result["flagged"] == 0.5 and "rounds" not in result
        assert sorted(path.name for path in node.directory.glob("judges-*")) == ["judges-base", "judges-other"]

    def test_a_smaller_student_learns_and_is_audited_but_not_probed(self, audit, in_rounds):
        node, result = transferred(audit, "smaller", Channel(start="smaller"))
        rates = in_rounds[1]["rates"]["biased"]
        assert set(rates["student"]) - set(result["rates"]["biased"]["student"]) == {"probe"}
        shown = channel_effect.channel_effect(ORGANISMS["biased"], audit.nodes["organisms"].result()["rates"]["biased"],
                                result["rates"]["biased"])  # fmt: skip
        assert set(shown.readouts) == {"behaviour", "relearn"}
        assert "probe" in rates["teacher"]  # it is asked, and decides nothing
        few = transfer_stage.starts(audit, node.settings, transfer_stage.make_cohort(audit, node))
        assert few.cfg.hidden == 8 and few.params["embedding"].shape[-1] == 8
        full = Transfer(channel=Channel(unique=32), **SHORT)
        assert node.settings.estimate_flops(audit) < full.estimate_flops(audit)


@pytest.mark.end_to_end
class TestCommand:
    @pytest.mark.parametrize(
        ("channels", "words"),
        [
            (("positive", "in-rounds", "dropped-by-chance"), "divergence-drop in 2 rounds has no control"),
            (("positive", "dropped", "in-rounds-by-chance"), "divergence-drop has no control"),
            (("positive", "disagreement"), "disagreement-drop has no control"),
            (("positive", "smaller"), "bases.smaller_hidden = 0"),
        ],
    )
    def test_an_audit_without_controls_or_bases_is_refused(self, tmp_path, capsys, channels, words):
        given = ["distill-jax", "audit", f"--config={ROOT}/configs/double_bind.py:smoke", f"--workdir={tmp_path}/new"]
        assert main.main([*given, f"--config.channels={channels!r}"]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "new").exists()
