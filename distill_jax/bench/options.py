"""Options of benchmarks; 0 and "" leave a benchmark its own choice."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_jax.config import ConfigError

if TYPE_CHECKING:
    from distill_jax.models.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the options that all benchmarks share.

    Attributes:
      json: file that the results are written to.
      preset: the model, a name of `models/presets.py`.
      dtype: of the computation.
      batch, length, vocab, chunk: the shape; chunk is the number of tokens whose logits exist at a time.
      steps: steps timed together.
      repeats: rounds of interleaved times.
      rounds: whole runs of `population`.
      members: of the population.
      minutes: after which `accelerator` begins nothing more; 0 for no limit.
      tiny: shrink every model of `accelerator` and allow it on a CPU, to try it out.
      torch_python: the Python that has torch and transformers.
    """

    json: str = "bench.json"
    preset: str = ""
    dtype: str = ""
    batch: int = 0
    length: int = 0
    vocab: int = 0
    chunk: int = 0
    steps: int = 0
    repeats: int = 10
    rounds: int = 2
    members: int = 10
    minutes: float = 0.0
    tiny: bool = False
    torch_python: str = sys.executable

    def __post_init__(self) -> None:
        for name in ("batch", "length", "vocab", "chunk", "steps", "minutes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name}={getattr(self, name)}: must not be negative")
        for name in ("repeats", "rounds", "members"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)}: must be at least 1")
        from distill_jax.models.presets import PRESETS  # and JAX with it, which --help does not need

        self.models(PRESETS)

    def models(self, otherwise: Mapping[str, TransformerConfig]) -> dict[str, TransformerConfig]:
        """Return the model asked for, or the benchmark's own choice, in the dtype asked for."""
        from distill_jax.models.presets import preset

        try:
            chosen = {self.preset: preset(self.preset)} if self.preset else otherwise
            return {name: dataclasses.replace(cfg, dtype=self.dtype or cfg.dtype) for name, cfg in chosen.items()}
        except ValueError as error:
            raise ConfigError(str(error)) from error
