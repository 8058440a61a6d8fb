"""Types that every room shares, where neither Python nor JAX has a static one. Imports no JAX: data need none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import jax

PyTree = Any  # nested dicts, tuples and dataclasses whose leaves are arrays, or what stands for them: shapes, shardings
JsonObject = dict[str, Any]  # as `json` reads and writes it; whoever reads a file checks what it holds
ArrayOrShape: TypeAlias = "jax.Array | jax.ShapeDtypeStruct"
