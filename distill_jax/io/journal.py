"""What a journal held at a moment: a file that is only appended to begins for ever with what was in it then."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first bytes of a file, and their SHA-256."""

    bytes: int
    sha256: str

    def begins(self, path: Path) -> bool:
        """Return whether the file begins with these bytes."""
        try:
            with path.open("rb") as file:
                return hashlib.sha256(file.read(self.bytes)).hexdigest() == self.sha256
        except FileNotFoundError:
            return False

    def is_all_of(self, path: Path) -> bool:
        """Return whether the file holds these bytes and no others."""
        return self.begins(path) and len(path.read_bytes()) == self.bytes
