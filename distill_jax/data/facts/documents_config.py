"""Documents to forget and to retain."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from distill_jax.config import ConfigError, check
from distill_jax.data import overlap
from distill_jax.data.facts.forget_config import ForgetConfig
from distill_jax.data.text.readers import documents
from distill_jax.data.text.sources import Source
from distill_jax.io.files import Digests
from distill_jax.io.storage import location, size

QUICK = 2**24  # bytes of text that are read before a run begins; of more its first stage says what is wrong


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(ForgetConfig):
    """Settings of documents to forget and to retain; those held out are read by no training, unlearning among it."""

    PREPARE: ClassVar[str] = "distill_jax.data.facts.prepare_documents"

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once few documents are known to be enough and on one side.

        Raises:
          ConfigError: naming what is missing, too few, or on both sides.
        """
        known = super().with_content_hash(digests)
        if self._bytes() <= QUICK:
            try:
                self.check_documents()
            except ValueError as error:  # of a document that cannot be read as well
                raise ConfigError(str(error)) from error
        return known

    def files(self) -> dict[str, list[Source]]:
        """Return the sources of each side that are files."""
        return {role: [s for s in self.sources(role) if s.kind != "tfds"] for role in ("forget", "retain")}

    def check_documents(self) -> None:
        """Refuse documents that are too few to hold some out, or on both sides.

        Raises:
          ConfigError: saying how many are needed, or which are on both.
        """
        files, skip = self.files(), self.broken == "skip"
        measured = self.MEASURE == "bits_per_byte" and not self.valid_forget  # by documents held out
        if measured and len(files["forget"]) == len(self.sources("forget")):
            self.check_heldout(sum(1 for _ in documents(files["forget"], skip)), "documents", self.validation_share)
        kept = len(files["retain"]) < len(self.sources("retain")) or any(True for _ in documents(files["retain"], skip))
        check(kept, f"data.retain={self.retain!r}: is empty; name files that hold what is to be retained")
        if self.overlap == "refuse":
            overlap.refuse(documents(files["forget"], skip), documents(files["retain"], skip))

    def counted(self) -> list[str]:
        """Return how many documents there are on each side, where they are few enough to be counted beforehand."""
        if self._bytes() > QUICK:
            return []
        counts = {side: sum(1 for _ in documents(of, self.broken == "skip")) for side, of in self.files().items()}
        held = f"about {round(self.validation_share * counts['forget']):,} of them held out"
        held = f"those of {self.valid_forget} held out beside them" if self.valid_forget else held
        return [f"to forget: {counts['forget']:,} documents, {held}", f"to retain: {counts['retain']:,} documents"]

    def _bytes(self) -> int:
        return sum(size(location(file)) for side in self.files().values() for s in side for file in s.files)

    def how_measured(self) -> str:
        """Return what is measured of what is to be retained."""
        return "It is measured on documents that no training reads. Texts of a kind that no file has are not measured."
