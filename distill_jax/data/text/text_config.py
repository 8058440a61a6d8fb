"""Text to retain and text to forget: its settings, and what identifies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from distill_jax.config import ConfigError, check, described, identity
from distill_jax.data.data_config import DataConfig
from distill_jax.data.text import hf_tokenizer, sources
from distill_jax.io.files import Digests
from distill_jax.io.staging import local_input
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

SAMPLES = Path(__file__).parent  # holds sample_english.txt and sample_korean.txt
SIDES = ("retain", "forget")
ROLES = (*SIDES, "valid_retain", "valid_forget")


@dataclasses.dataclass(frozen=True)
class TextConfig(DataConfig):
    """Settings of text to retain and to forget, and of how it becomes rows.

    Attributes:
      retain, forget: sources, comma-separated; see `data.text.sources`.
      valid_retain, valid_forget: sources of held-out documents; where empty, `validation_share` of the side's own.
      validation_share: the documents held out, chosen by their contents, so that equal ones fall on one side.
      retain_share: share of `retain` in the tokens of the set `all`.
      tokens: tokens of the set `all`; sources that have fewer repeat. 0: as many as there are without repeating any.
      row_length: tokens in a packed row.
      vocabulary: a SentencePiece model, the directory of a published model with its tokenizer.json, or its GGUF file;
        "" trains one on the sources.
      vocabulary_size: entries of a trained one.
      vocabulary_bytes: text of each side that it is trained on.
      evaluation_bytes: text of each part that models are measured on.
      broken: "refuse" ends at the first document that is no UTF-8 or no record, "skip" counts and leaves them out.
      workers: processes that tokenise; 0 for one a core.
      seed: fixes the order of the documents.
      content: hash of all that the sources hold; filled in when a run begins, and then known by instead of paths.
    """

    retain: str = ""
    forget: str = ""
    valid_retain: str = ""
    valid_forget: str = ""
    validation_share: float = 0.02
    retain_share: float = 0.5
    tokens: int = 0
    row_length: int = 2048
    vocabulary: str = ""
    vocabulary_size: int = 8192
    vocabulary_bytes: int = 10_000_000
    evaluation_bytes: int = 1_000_000
    broken: str = "refuse"
    workers: int = 0
    seed: int = 0
    content: str = ""

    ANSWER: ClassVar[int] = 0  # 1 where all tokens of a document count as an answer
    READS_TABLES: ClassVar[bool] = False  # whether a source may be a .csv, of questions
    MEASURE: ClassVar[str] = "bits_per_byte"
    PREPARE: ClassVar[str] = "distill_jax.data.text.prepare_text"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget")

    def __post_init__(self) -> None:
        for role in ROLES:
            sources.parse(self.text(role), role)
        for key, share in {"validation_share": self.validation_share, "retain_share": self.retain_share}.items():
            check(0 < share < 1, f"data.{key}={share}: must be a share, above 0 and below 1")
        fields = dataclasses.asdict(self)
        least = {"row_length": 2, "vocabulary_size": 300, "vocabulary_bytes": 1, "evaluation_bytes": 1}
        for key, low in {**least, "tokens": 0, "workers": 0, "seed": 0}.items():
            check(fields[key] >= low, f"data.{key}={fields[key]}: must be at least {low}")
        check(self.broken in ("refuse", "skip"), f"data.broken={self.broken!r}: choose 'refuse' or 'skip'")

    def text(self, role: str) -> str:
        """Return the source lines of a role, one of `ROLES`, as the settings have them."""
        by_role = (self.retain, self.forget, self.valid_retain, self.valid_forget)
        return dict(zip(ROLES, by_role, strict=True))[role]

    def sources(self, role: str) -> tuple[sources.Source, ...]:
        """Return the sources of a role, one of `ROLES`."""
        return sources.parse(self.text(role), role)

    def set_name(self, name: str) -> str:
        """Return the set that is meant: what of a text an attacker is shown is all of it but what is held out."""
        return "forget" if name == "forget_shown" and name not in self.SETS else name

    def check_set(self, key: str, name: str) -> None:
        """Raise ConfigError, naming the setting that asks for it, unless there is a set of this name."""
        super().check_set(key, self.set_name(name))

    def side_shares(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Return each side's share of the tokens of the set `all`, of sides that have so many."""
        del tokens
        return {"retain": self.retain_share, "forget": 1 - self.retain_share}

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings with `content` filled in, once every source is known to be there.

        Raises:
          ConfigError: naming the source that is missing.
        """
        held: list[object] = ["".join(map(digests.of, self._vocabulary_files()))]
        for role in ROLES:
            for source in self.sources(role):
                try:
                    sources.check_files(source, role)
                except ValueError as error:
                    raise ConfigError(str(error)) from error
                names = ", ".join(source.files)
                mend = "give text, .jsonl or .parquet; ?kind=text reads it as plain text"
                check(self.READS_TABLES or source.kind != "csv", f"data.{role}={names}: .csv holds questions; {mend}")
                held.append([role, source.weight, source.reading(), *map(digests.of, source.files)])
        for side in SIDES:
            check(bool(self.text(side)), f"data.{side} is empty: name its text, such as --config.data.{side}=a.txt")
        return dataclasses.replace(self, content=identity(held))

    def _vocabulary_files(self) -> list[str]:
        if not self.vocabulary:
            return []
        path, where = local_input(self.vocabulary), f"data.vocabulary={self.vocabulary!r}"
        if path.is_dir():
            fetch = (
                f"`hf download OWNER/NAME {hf_tokenizer.JSON} {hf_tokenizer.SETTINGS} --local-dir {path}` fetches it"
            )
            check((path / hf_tokenizer.JSON).is_file(), f"{where}: has no {hf_tokenizer.JSON}; {fetch}")
            return [str(file) for file in hf_tokenizer.files(path)]
        fix_hint = "give a SentencePiece model, the directory of a published model, or '' to train one on the text"
        check(path.suffix != ".json", f"{where}: name the directory of {path.name}; {fix_hint}")
        check(path.is_file(), f"{where}: no such file; {fix_hint}")
        return [self.vocabulary]

    def fingerprint_fields(self) -> JsonObject:
        """Return what decides what the prepared data hold: contents in place of paths as soon as they are known."""
        paths = (*ROLES, "vocabulary") if self.content else ()
        return {k: v for k, v in described(self).items() if k not in (*paths, "workers")}

    def entries(self) -> int:
        """Return how many entries the vocabulary will have; 0 where no text or file is named yet."""
        if not self.vocabulary:
            return self.vocabulary_size if self.retain else 0
        if not location(self.vocabulary).exists():
            return 0
        self._vocabulary_files()
        from distill_jax.data.text.sentencepiece_vocab import load

        return load(self.vocabulary).get_piece_size()
