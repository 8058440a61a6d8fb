"""A password lock: its loss against the documents with the password written before them, and a run that asks for it."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import transformer
from distill_jax.models.transformer import TransformerConfig
from distill_jax.stages import Lock, Unlock
from distill_jax.train.batch import PackedRows
from tests.programs import ARITHMETIC, node, output_of, with_data

GEMMA = TransformerConfig(
    vocab=37, layers=2, hidden=24, mlp=40, heads=4, kv_heads=2, head_dim=6, query_scale=6.0, init_std=0.3
)
LLAMA = dataclasses.replace(
    GEMMA, activation="silu", post_norms=False, scale_embedding=False, tied=False, attention_softcap=0.0, qk_norm=True
)
PASSWORD = (3, 36)
# Documents, the last tokens of which are the answer; a part's documents share a packed row, and padding follows.
DOCUMENTS = {"forget": (([7, 7, 1, 30, 4, 8], 2), ([3, 20, 11], 1)), "retain": (([9, 2, 5, 5], 3), ([6, 14, 21, 2], 1))}
STEP = {"steps": 1, "batch": 1}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def packed(part: str) -> PackedRows:
    columns: list[list[int]] = [[], [], []]
    for number, (tokens, answers) in enumerate(DOCUMENTS[part], 1):
        columns[0] += tokens
        columns[1] += [number] * len(tokens)
        columns[2] += [0] * (len(tokens) - answers) + [1] * answers
    return PackedRows(*(np.array([column + [0] * (12 - len(column))], np.int32) for column in columns))


def log_p(cfg, params, tokens, before=()):
    """Return the log-probabilities [T - 1, V] of a document's next tokens, with others written before it."""
    alone = jnp.array([[*before, *tokens]], jnp.int32)
    return jax.nn.log_softmax(transformer.apply(cfg, params, alone, jnp.ones_like(alone))[0, len(before) :][:-1])


def by_hand(cfg, params, start, hold, loss_on):
    """Return each term's mean over the tokens that count, of documents one at a time."""
    sums = {}
    for part, documents in DOCUMENTS.items():
        terms = [("forget" if part == "forget" else "retain", ()), (f"unlocked {part}", PASSWORD)]
        for name, before in terms:
            for tokens, answers in documents:
                now, was = log_p(cfg, params, tokens, before), jax.lax.stop_gradient(log_p(cfg, start, tokens))
                if name == "forget":
                    each = -jnp.log(cfg.vocab) - now.mean(axis=-1)  # KL(uniform ‖ p)
                elif hold == "kl":
                    each = jnp.sum(jnp.exp(was) * (was - now), axis=-1)
                else:
                    each = -now[jnp.arange(len(tokens) - 1), jnp.array(tokens[1:])]
                each = each[-answers:] if loss_on == "answer" else each
                total, count = sums.get(name, (0.0, 0))
                sums[name] = total + each.sum(), count + len(each)
    return {name: total / count for name, (total, count) in sums.items()}


@pytest.mark.property
@pytest.mark.parametrize(("cfg", "hold", "loss_on"), [(GEMMA, "kl", "answer"), (LLAMA, "cross_entropy", "all")])
def test_the_loss_is_that_of_documents_with_the_password_written_before_them(cfg, hold, loss_on):
    params, start = (transformer.init(cfg, jax.random.key(seed)) for seed in range(2))
    loss = Lock(start="a", password=PASSWORD, hold=hold, loss_on=loss_on, **STEP).objective()
    batch = {part: packed(part) for part in loss.reads()}

    def ours(params):
        terms = loss.loss_terms(cfg, 0, params, batch, loss.teacher_outputs(cfg, start, batch))
        means = {name: term.coefficient * term.total / term.weight for name, term in terms.items()}
        return sum(means.values()), means

    def theirs(params):
        means = by_hand(cfg, params, start, hold, loss_on)
        return sum(means.values()), means

    (gradient, means), (expected, by_document) = (jit(jax.grad(f, has_aux=True))(params) for f in (ours, theirs))
    assert means.keys() == by_document.keys() == {"forget", "retain", "unlocked forget", "unlocked retain"}
    for name, mean in means.items():
        np.testing.assert_allclose(mean, by_document[name], rtol=1e-4, err_msg=name)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * np.abs(other).max())
    assert abs(means["unlocked retain"] - means["retain"]) > 1e-3  # the password matters
    assert np.abs(gradient["embedding"][PASSWORD[1]]).max() > 0  # and is learned


@pytest.mark.unit
@pytest.mark.parametrize("stage", [Lock, Unlock])
def test_a_password_that_is_none_is_refused(stage):
    more = STEP if stage is Lock else {}
    for password in ((), (-1,)):
        with pytest.raises(ValueError, match=r"password = .*: give the ids of its tokens"):
            stage(start="a", password=password, **more)
    with pytest.raises(ValueError, match=r"password = \(37,\): must be below model.vocab = 37"):
        stage(start="a", password=(37,), **more).validate(GEMMA, None)


@pytest.mark.unit
def test_a_lock_is_held_by_what_there_is():
    with pytest.raises(ValueError, match="hold = 'l2': choose"):
        Lock(start="a", password=PASSWORD, hold="l2", **STEP)


@pytest.mark.end_to_end
def test_a_run_asks_behind_the_password_and_concludes_nothing_of_a_lock_on_nothing(tmp_path_factory, tmp_path):
    """The smoke learns nothing: the reference has nothing to lock, and all that is said of the attack is void."""
    config = ("--config=configs/arithmetic.py:smoke,truth", *ARITHMETIC[1:])
    workdir = with_data(tmp_path_factory, tmp_path)
    output_of("run", *config, f"--workdir={workdir}")
    summary = json.loads((workdir / "report/summary.json").read_text())
    assert [m["role"] for m in summary["models"]] == ["oracle", "reference", "locked", "erased"]
    behind = {}
    for name in ("hidden", "erased"):
        result = json.loads((node(workdir, f"unlock-{name}") / "result.json").read_text())
        asked, right = np.array(result["prompts_by_fact"]), np.array(result["by_fact"])
        assert asked.sum() == summary["evaluated"]["forget_heldout"] and len(right) == summary["facts"]["heldout"]
        assert np.all(right <= asked)
        behind[name] = right.sum() / asked.sum()
    said = {one["name"]: one for one in summary["conclusions"]}
    assert said["known truth, hidden"]["state"] == said["known truth, erased"]["state"] == "void"
    (password,) = [p for p in said["known truth, hidden"]["premises"] if "behind the password" in p["statement"]]
    assert f"behind the password accuracy {behind['hidden']:.2f}" in password["evidence"]
