"""Given: a model that somebody unlearned, by whatever tool, to be attacked as it is."""

from __future__ import annotations

import dataclasses

from distill_jax.stages.import_model import Import


@dataclasses.dataclass(frozen=True)
class Given(Import):
    """Import a model that is not the untouched one: the same node, with another role in what is concluded."""
