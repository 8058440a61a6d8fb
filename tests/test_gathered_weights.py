"""Weights that are divided over devices are put together for a layer's products, and for no longer than that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import lora, transformer
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh, tracing
from distill_jax.train.population import draw_weights, weights_shape

CFG = TransformerConfig(vocab=64, layers=2, hidden=32, mlp=48, heads=4, kv_heads=2, head_dim=8, init_std=0.2)
WIDE = dataclasses.replace(CFG, hidden=64, mlp=512)
ROWS, LENGTH = 2, 64


def loss(cfg, mesh, base, trained, tokens):
    with tracing(mesh):
        states = transformer.hidden_states(cfg, lora.attach(trained, base), tokens, jnp.ones_like(tokens))
    return jnp.sum(states.astype(jnp.float32) ** 2)


def gradient(cfg, mesh):
    return jax.jit(jax.grad(functools.partial(loss, cfg, mesh), argnums=1))


def compiled(cfg, mesh):
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32", sharding=jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    return gradient(cfg, mesh).lower(None, weights_shape(cfg, mesh), tokens).compile()


@pytest.mark.property
@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.thorough), "full"])
def test_gradients_are_those_of_one_device(remat):
    cfg = dataclasses.replace(CFG, remat=remat)
    tokens = np.random.default_rng(0).integers(0, 64, (4, LENGTH)).astype(np.int32)

    def gradients(mesh):
        base = lora.base(draw_weights(cfg, mesh, jax.random.key(0)), 4, 8.0)
        both = [(None, base[0]), (base, draw_weights(cfg, mesh, jax.random.key(1), 4))]
        return [
            leaf for frozen, trained in both for leaf in jax.tree.leaves(gradient(cfg, mesh)(frozen, trained, tokens))
        ]

    two, one = (gradients(make_mesh(1, fsdp=n, devices=jax.devices()[:n])) for n in (2, 1))
    for ours, alone in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=2e-5, atol=1e-5 * np.abs(alone).max())


@pytest.mark.property
def test_what_was_put_together_is_not_kept():
    """A layer more costs each of two devices half of what it costs one alone, though nothing is computed again."""

    def growth(n):
        mesh = make_mesh(1, fsdp=n, devices=jax.devices()[:n])
        few, many = (
            compiled(dataclasses.replace(WIDE, layers=layers), mesh).memory_analysis().temp_size_in_bytes
            for layers in (2, 6)
        )
        return (many - few) / 4

    matrices = 4 * (2 * 64 * 8 * (4 + 2) + 3 * 64 * 512)
    assert growth(2) < growth(1) / 2 + matrices / 16
