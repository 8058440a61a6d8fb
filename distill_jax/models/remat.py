"""What the backward pass of a layer computes again, and what is kept of the forward pass instead.

The results of a layer's products are named where they are made (`named`); a policy keeps some of these names:

  none      all that the backward pass reads
  products  the result of each product and of attention; norms and activations are computed again
  narrow    those that are about as wide as the model; what is as wide as the MLP is computed again
  dots      the results of matrix products, each of an adapter's among them, without attention
  full      nothing but the layer's input
  auto      the first of AUTO that fits, as `stages.choose_remat` finds out; full where nobody asked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

from distill_jax.sharding.mesh import gathers

T = TypeVar("T")

AUTO = ("none", "products", "narrow", "full")  # the later, the less is kept
NARROW = ("query", "key_value", "attention", "output", "down")


def _all_but_gathered(primitive: Primitive, *_: object, **__: object) -> bool:
    """Keep all but what a constraint gave, as a weight put together: constraints of activations are free to repeat."""
    return primitive.name != "sharding_constraint"


POLICIES: dict[str, Callable[..., bool]] = {
    "none": _all_but_gathered,
    "products": jax.checkpoint_policies.save_only_these_names(*NARROW, "gate_up"),
    "narrow": jax.checkpoint_policies.save_only_these_names(*NARROW),
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
    "auto": jax.checkpoint_policies.nothing_saveable,
}


def policies(policy: str) -> tuple[str, ...]:
    """Return the policies that a config's may be, the one with the least recomputation first."""
    return AUTO if policy == "auto" else (policy,)


def named(x: jax.Array, name: str) -> jax.Array:
    """Name a product's result, so that policies can keep it; the numbers are the same."""
    return checkpoint_name(x, name)


def recomputed(layer: Callable[..., T], policy: str) -> Callable[..., T]:
    """Return a layer whose backward pass computes again what a policy, a key of POLICIES, does not keep."""
    if policy == "none" and not gathers():
        return layer
    again: Callable[..., T] = jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=False)
    return again
