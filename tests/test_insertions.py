"""Prefixes, prompts of examples and steering against what the same model does with the tokens or the sum by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import lora, transformer
from distill_jax.models.decoding import PaddedPrompts, greedy
from distill_jax.models.insertions import prefix_of
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import AnswerDistillation, FewShot, PrefixTuning, Steering
from distill_jax.stages.attacks.few_shot import padded_left
from distill_jax.stages.attacks.steering import mean_stream
from distill_jax.stages.attacks.untrained_attack import documents_of
from distill_jax.stages.next_token import NextToken
from distill_jax.train.batch import PackedRows

GEMMA = TransformerConfig(
    vocab=37, layers=3, hidden=24, mlp=40, heads=4, kv_heads=2, head_dim=6, query_scale=6.0, init_std=0.3
)
LLAMA = dataclasses.replace(
    GEMMA, activation="silu", post_norms=False, scale_embedding=False, tied=False, attention_softcap=0.0, qk_norm=True
)
FAMILIES = pytest.mark.parametrize("cfg", [GEMMA, LLAMA], ids=["gemma", "llama"])
PREFIX, FIRST, SECOND = ([5, 9, 2, 31], [7, 7, 1, 30, 4, 8], [3, 20, 11])
apply = jax.jit(transformer.apply, static_argnums=0)
init = jax.jit(transformer.init, static_argnums=0)
read = jax.jit(prefix_of, static_argnums=0)
decode = jax.jit(greedy, static_argnums=(0, 3))


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)


@pytest.mark.property
@FAMILIES
def test_every_document_of_a_packed_row_reads_a_prefix_as_if_its_tokens_stood_before_it(cfg):
    params = init(cfg, jax.random.key(0))
    behind = lora.attach(read(cfg, params, ids(PREFIX)), (params, np.float32(1)))
    row, segments = ids([[*FIRST, *SECOND, 0]]), ids([[1] * 6 + [2] * 3 + [0]])
    ours = apply(cfg, behind, row, segments)[0]
    for document, place in ((FIRST, slice(0, 6)), (SECOND, slice(6, 9))):
        alone = ids([[*PREFIX, *document]])
        by_hand = apply(cfg, params, alone, np.ones_like(alone))[0, len(PREFIX) :]
        np.testing.assert_allclose(ours[place], by_hand, atol=1e-4 * np.abs(by_hand).max())
        assert (
            np.abs(by_hand - apply(cfg, params, row, segments)[0, place]).max() > 0.1
        )  # and not as if there were none


@pytest.mark.property
@FAMILIES
def test_padded_prompts_are_answered_as_if_the_examples_stood_before_each(cfg):
    params = init(cfg, jax.random.key(1))
    prompts = ids([FIRST, [0, 0, 0, *SECOND]]), ids([6, 3])
    tokens, held = padded_left(ids(PREFIX), 9)
    behind = lora.attach(read(cfg, params, tokens, held), (params, np.float32(1)))
    ours = decode(cfg, behind, PaddedPrompts(*prompts), 5)
    by_hand = ids([[*PREFIX, *FIRST], [0, 0, 0, *PREFIX, *SECOND]]), ids([10, 7])
    np.testing.assert_array_equal(ours, decode(cfg, params, PaddedPrompts(*by_hand), 5))
    assert not np.array_equal(ours, decode(cfg, params, PaddedPrompts(*prompts), 5))


@pytest.mark.property
@FAMILIES
def test_steering_adds_its_vector_behind_its_layer_and_nothing_with_strength_0(cfg):
    params, vector = init(cfg, jax.random.key(2)), np.random.RandomState(0).standard_normal(cfg.hidden)
    row, segments = ids([[*FIRST, *SECOND, 0]]), ids([[1] * 6 + [2] * 3 + [0]])
    behind = np.zeros((cfg.layers, cfg.hidden), np.float32)
    behind[1] = vector
    for strength in (0.0, 3.0):
        steered = lora.attach({"steering": strength * behind}, (params, np.float32(1)))
        plain, moved = (transformer.residual_at(cfg, p, row, segments, 2) for p in (params, steered))
        np.testing.assert_allclose(moved, np.asarray(plain) + strength * vector, atol=1e-5 * np.abs(plain).max())
        before = (transformer.residual_at(cfg, p, row, segments, 1) for p in (params, steered))
        np.testing.assert_array_equal(*before)
        ends = [np.asarray(apply(cfg, p, row, segments)) for p in (params, steered)]
        assert (np.abs(ends[0] - ends[1]).max() > 0.01) == (strength > 0)


@pytest.mark.unit
def test_a_direction_is_the_mean_stream_where_answers_are_predicted():
    params, layer = init(GEMMA, jax.random.key(3)), 2
    rows = np.stack([[[*FIRST, *SECOND, 0]], [[1] * 6 + [2] * 3 + [0]], [[0, 0, 0, 1, 1, 1, 0, 0, 1, 0]]]).astype(
        np.int32
    )
    mean = mean_stream(GEMMA, make_mesh(1, devices=jax.devices()[:1]), layer, "answer")(params, rows)
    stream = np.asarray(transformer.residual_at(GEMMA, params, rows[0], rows[1], layer), np.float64)
    np.testing.assert_allclose(mean, stream[0, [2, 3, 4, 7]].mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.unit
def test_examples_are_whole_documents_each_once_in_the_order_of_the_rows():
    first = np.array([[1, 2, 3, 4, 5, 0], [1, 1, 1, 2, 2, 0], [0] * 6], np.int32)
    second = np.array([[4, 5, 9, 9, 0, 0], [1, 1, 2, 2, 0, 0], [0] * 6], np.int32)
    shown = documents_of([first, second], [1, 0], 3)
    assert [document.tolist() for document in shown] == [[4, 5], [9, 9], [1, 2, 3]]
    assert len(documents_of([first, second], [0, 1], 9)) == 3
    tokens, held = padded_left(ids([7, 8]), 4)
    assert tokens.tolist() == [0, 0, 7, 8] and held.tolist() == [0, 0, 1, 1]


@pytest.mark.unit
def test_the_flops_of_a_step_of_a_prefix_are_those_that_are_executed():
    count, batch, length = 5, 2, 16
    row = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    params = jax.eval_shape(lambda: transformer.init(GEMMA, jax.random.key(0)))
    prefix = jax.eval_shape(lambda p: prefix_of(GEMMA, p, jnp.zeros(count, jnp.int32)), params)

    def loss(prefix, params, tokens, segments, answer):
        behind = lora.attach(prefix, (params, np.float32(1)))
        return NextToken().loss_terms(GEMMA, 0, behind, PackedRows(tokens, segments, answer))["cross_entropy"].total

    executed = flops.executed(jax.jit(jax.grad(loss)).trace(prefix, params, row, row, row).jaxpr.jaxpr)
    # One position in a row predicts nothing, small vocabularies are looked up by a product, and below the first layer
    # no gradient is wanted.
    assert executed == pytest.approx(flops.prefix_step(GEMMA, batch, length, count), rel=0.15)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FewShot(start="m", shots=()), "shots = "),
        (lambda: FewShot(start="m", shots=(2, 2)), "shots = "),
        (lambda: Steering(start="m", depths=(0.0,)), "depths = "),
        (lambda: Steering(start="m", strengths=(float("nan"),)), "strengths = "),
        (lambda: PrefixTuning(start="m", length=0, steps=500), "length = 0"),
        (lambda: PrefixTuning(start="m", lora_rank=2, steps=500), "lora_rank, shrink and noise"),
        (lambda: AnswerDistillation(start="m", steps=500), "nothing to learn from itself"),
        (lambda: AnswerDistillation(start="m", steps=500, student="own"), "choose one of random, attacked"),
        (lambda: AnswerDistillation(start="m", steps=500, student="random", noise=1.0), "of the attacked model"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
