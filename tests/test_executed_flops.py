"""FLOPs of a traced function that runs kernels, or on each device its own part: counted for all of it."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from distill_jax.perf import flops
from distill_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.unit
X = jax.ShapeDtypeStruct((64, 16), jnp.float32)
W = jax.ShapeDtypeStruct((16, 32), jnp.float32)
PRODUCT = 2.0 * 64 * 16 * 32


def multiply(x, w):
    return x @ w


def by_shards(x, w):
    mesh = make_mesh(1, fsdp=2, devices=jax.devices()[:2])
    spec = P("fsdp", None)
    return jax.shard_map(multiply, mesh=mesh, in_specs=(spec, P()), out_specs=spec, check_vma=False)(x, w)


def by_kernel(x, w):
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    return pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[pl.BlockSpec((16, 16), lambda i, j: (i, 0)), pl.BlockSpec((16, 16), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((16, 16), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((64, 32), jnp.float32),
        interpret=True,
    )(x, w)


def by_scan(x, w):
    return jax.lax.map(lambda row: multiply(row, w), x)


@pytest.mark.parametrize("how", [multiply, by_shards, by_kernel, by_scan])
def test_a_product_counts_the_same_however_it_is_divided(how):
    assert flops.executed(jax.jit(how).trace(X, W).jaxpr.jaxpr) == PRODUCT
