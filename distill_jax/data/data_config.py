"""What an experiment asks of its data's settings, whichever data they are."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from distill_jax.config import SettingError
from distill_jax.io.files import Digests
from distill_jax.types import JsonObject


class DataConfig:
    """Settings of an experiment's data; a frozen dataclass derives from it.

    Attributes:
      PREPARE: the module that makes the data: `python -m PREPARE --config=FILE.json --output=DIR`.
      MEASURE: how models are measured on them, a key of `evals.measure.MEASURES`; "" where the stages have measures of
        their own.
      SETS: names of the sets of packed rows.
      RETAIN_BY_ITEM: whether an attack records each item of what is to be retained.
      vocabulary: of the text; "" where there is none.
      row_length: tokens of a packed row.
    """

    PREPARE: ClassVar[str]
    MEASURE: ClassVar[str] = ""
    SETS: ClassVar[tuple[str, ...]] = ()
    RETAIN_BY_ITEM: ClassVar[bool] = False
    vocabulary: str = ""
    row_length: int = 0

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with what their files hold filled in; ConfigError names a file that is missing."""
        del digests
        return self

    def entries(self) -> int:
        """Return how many entries the vocabulary has; 0 where that is not known before the data are made."""
        return 0

    def set_name(self, name: str) -> str:
        """Return the set that is meant: what an attacker trains on may have another name in some data."""
        return name

    def check_set(self, key: str, name: str) -> None:
        """Raise ConfigError, naming the setting that asks for it, unless there is a set of this name."""
        if name not in self.SETS:
            raise SettingError(key, name, f"these data have no such set; choose one of {', '.join(self.SETS)}")

    def what_is_read(self) -> str:
        """Return how much there is to forget, to hold out and to retain, in lines; "" where that is not counted."""
        return ""

    def how_measured(self) -> str:
        """Return what is measured of what is to be retained, in sentences; "" where nothing is to be said of it."""
        return ""
