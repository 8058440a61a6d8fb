"""JSON objects that carry the SHA-256 of their own content, so that a digit that changed on the disk is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from distill_jax.types import JsonObject

KEY = "sha256"


class Unsealed(ValueError):
    """An object is not the one that was sealed."""


def seal(value: Mapping[str, object]) -> JsonObject:
    """Return a JSON object with its digest under "sha256"; NaN and infinities are refused, as JSON has none."""
    plain = json.loads(json.dumps({**value, KEY: ""}, allow_nan=False))
    return {**plain, KEY: _digest(plain)}


def unseal(sealed: object) -> JsonObject:
    """Return a sealed object without its digest.

    Raises:
      Unsealed: if it has none, or that of another content.
    """
    if not isinstance(sealed, dict) or sealed.get(KEY) != _digest({**sealed, KEY: ""}):
        raise Unsealed("it is not what was written, or an earlier version wrote it")
    return {key: value for key, value in sealed.items() if key != KEY}


def _digest(plain: Mapping[str, object]) -> str:
    """Return the SHA-256 of an object's JSON with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
