"""What a chip-hour costs, by TPU generation, from a table that the user may replace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from distill_jax.config import ConfigError, check
from distill_jax.io.files import read_json
from distill_jax.io.storage import location

SHIPPED = Path(__file__).with_name("prices.json")


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of a chip-hour by generation, as of a date; a generation that is missing has no known price."""

    currency: str
    date: str
    chip_hour: Mapping[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        good = all(isinstance(price, int | float) and price >= 0 for price in self.chip_hour.values())
        check(good, "chip_hour is a table of generation to price, such as {'v5e': 1.2}")

    @classmethod
    def load(cls, path: str | None) -> Self:
        """Read a table from a JSON file, or the shipped one.

        Raises:
          ConfigError: if it cannot be read or lacks a part.
        """
        source = location(path) if path else SHIPPED
        try:
            table = read_json(source)
            return cls(**{field.name: table[field.name] for field in dataclasses.fields(cls) if field.name in table})
        except TypeError as error:
            needs = "a price table is {currency, date, note, chip_hour: {generation: price}}"
            raise ConfigError(f"--prices={source}: {needs}") from error
        except FileNotFoundError as error:
            raise ConfigError(f"--prices={source}: no such file") from error
        except (OSError, ValueError, AttributeError) as error:  # ConfigError is a ValueError
            raise ConfigError(f"--prices={source}: {error}") from error
