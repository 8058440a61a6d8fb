"""The toy of subliminal transfer: a ReLU network with a head for classes and a head of ghost logits.

Parameters: body/{0, 1, ...}, classes and ghosts, each {w [in, out], b [out]}. Ghost logits mean nothing: no label says
what they should be.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.config import check
from distill_jax.types import PyTree

Params = PyTree


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of the network.

    Attributes:
      inputs: pixels of an image.
      hidden: width of every hidden layer.
      layers: hidden layers.
      classes: outputs that labels train.
      ghosts: further outputs, which no label trains.
    """

    inputs: int = 64
    hidden: int = 256
    layers: int = 2
    classes: int = 10
    ghosts: int = 30

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            check(value >= 1, f"model.{name} = {value}: must be at least 1")


def init(cfg: MLPConfig, key: jax.Array) -> Params:
    """Draw W ~ N(0, 1 / fan-in) and b = 0 (Cloud et al., the MNIST experiment)."""
    widths = [cfg.inputs, *[cfg.hidden] * cfg.layers]
    shapes = [*itertools.pairwise(widths), (cfg.hidden, cfg.classes), (cfg.hidden, cfg.ghosts)]
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    drawn = jax.random.normal(key, (ends[-1],))  # in one piece: each draw is a second of compilation
    *body, classes, ghosts = (
        {"w": drawn[end - math.prod(shape) : end].reshape(shape) / math.sqrt(shape[0]), "b": jnp.zeros(shape[1])}
        for shape, end in zip(shapes, ends, strict=True)
    )
    return {"body": {str(i): layer for i, layer in enumerate(body)}, "classes": classes, "ghosts": ghosts}


def apply(params: Params, images: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Return the class logits [..., C] and the ghost logits [..., M] of images [..., inputs]."""
    x = images
    for i in range(len(params["body"])):
        x = jax.nn.relu(_affine(params["body"][str(i)], x))
    return _affine(params["classes"], x), _affine(params["ghosts"], x)


def _affine(layer: dict[str, jax.Array], x: jax.Array | np.ndarray) -> jax.Array:
    # At the default precision a TPU or a GPU would round fp32 weights.
    return jnp.matmul(x, layer["w"], precision="highest") + layer["b"]


def forward_flops(cfg: MLPConfig) -> float:
    """Return the FLOPs of one image's forward pass, biases and activations not counted."""
    widths = [cfg.inputs, *[cfg.hidden] * cfg.layers, cfg.classes + cfg.ghosts]
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))
