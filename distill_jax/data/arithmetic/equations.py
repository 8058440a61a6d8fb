"""Arithmetic equations and word problems: what is trained on, what is held out, what is asked.

`+` and `-` are the operations to retain, `*` and `/` the ones to forget. The unit of knowledge is a *fact*, an
unordered pair of numbers: 7 * 8, 8 * 7, 56 / 7 and 56 / 8 in any wording are the one fact "mul:7,8", so whoever is
shown it has been shown no other. The forget facts are cut in two: *shown* (to a relearning attacker) and *heldout*.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import ClassVar, Self

import numpy as np

from distill_jax.config import ConfigError, added, described
from distill_jax.data.arithmetic import checks
from distill_jax.data.arithmetic import word_problems as templates
from distill_jax.data.arithmetic import word_vocabulary as vocabulary
from distill_jax.data.data_config import DataConfig
from distill_jax.data.random_stream import random_stream
from distill_jax.io.files import Digests
from distill_jax.types import JsonObject

SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
OPERATIONS = tuple(SYMBOLS)
RETAIN, FORGET = ("add", "sub"), ("mul", "div")
FORMS = ("equation", "word")
ASKED = 2  # counts up whenever other questions are asked of the same settings


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig(DataConfig):
    """Define the data completely; every field is checked at construction.

    Attributes:
      addition_max: operands of + and - are 1..addition_max; a difference is never negative.
      multiplication_max: factors (for /: divisor and quotient) are 1..multiplication_max.
      equations, word_problems: training examples of each form, spread equally over the four operations.
      row_length: tokens in a packed row.
      heldout_facts: share of the forget facts that is held out, rounded down.
      evaluation_prompts: prompts wanted for each operation, form and part; fewer where fewer exist.
      english: UTF-8 text files, one paragraph a line.
      english_share: share of the tokens of `all` that is English.
      filter_labels: documents that an annotator labels as to retain or to forget; a filter that learns from them
        makes the set `filtered` of `all`. 0 makes no such set.
      labeller: whose labels make the sets of `label_sets`: "naive_bayes", which learned from `filter_labels`; or
        "noisy", the truth with errors at random, which needs none.
      false_positive_rate, false_negative_rate: of the noisy labeller: the share of what is to be retained that it takes
        for what is to be forgotten, and the other way round; of documents, or in `masked` of tokens.
      label_sets: what is made of `all`: `filtered` of the documents that pass, `dropped` of those that do not, `masked`
        of all documents with tokens marked (`loss_on` says whether they count).
      vocabulary: "words" for the shipped one, else the path of a SentencePiece model.
      seed: fixes the held-out half, the draws and the order of the documents.

    Raises:
      ValueError: a field is out of range; the message names it as `data.<field>` and says how to fix it.
    """

    addition_max: int = 50
    multiplication_max: int = 20
    equations: int = 1_000_000
    word_problems: int = 1_000_000
    row_length: int = 256
    heldout_facts: float = 0.5
    evaluation_prompts: int = 100
    english: tuple[str, ...] = ()
    english_share: float = 0.0
    filter_labels: int = 0
    vocabulary: str = "words"
    seed: int = 0
    labeller: str = added("naive_bayes")
    false_positive_rate: float = added(0.0)
    false_negative_rate: float = added(0.0)
    label_sets: tuple[str, ...] = added(("filtered",))

    MEASURE: ClassVar[str] = "exact_match"
    PREPARE: ClassVar[str] = "distill_jax.data.arithmetic.prepare_arithmetic"
    SETS: ClassVar[tuple[str, ...]] = ("all", "retain", "forget", "forget_shown", *checks.LABEL_SETS)

    def fingerprint_fields(self) -> JsonObject:
        """Return what identifies the data: the settings, and the order in which facts are asked."""
        return {**described(self), "asked": ASKED}

    def __post_init__(self) -> None:
        for name in ("english", "label_sets"):
            if isinstance(getattr(self, name), list):  # what JSON makes of a tuple
                object.__setattr__(self, name, tuple(getattr(self, name)))
        checks.check_fields(self)
        shown, heldout = split_facts(self)
        fix_hint = f"holds out none of the {len(shown)} forget facts; raise it or data.multiplication_max"
        checks.require(bool(heldout), "heldout_facts", self.heldout_facts, fix_hint)
        fix_hint = "so few that / or * is never trained on shown or on held-out facts; raise it or data.word_problems"
        checks.require(_trains_every_part(self), "equations", self.equations, fix_hint)
        if self.vocabulary == "words":
            longest = longest_document(self)
            fix_hint = f"the longest document has {longest} tokens; raise it at least to that"
            checks.require(self.row_length >= longest, "row_length", self.row_length, fix_hint)

    def with_content_hash(self, digests: Digests) -> Self:
        """Return the settings, once every file that they need is known to be there; they are known by its path."""
        try:
            checks.check_files(self)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return self

    def check_set(self, key: str, name: str) -> None:
        """Raise ValueError, naming the setting that asks for it, unless there is a set of this name."""
        super().check_set(key, name)
        if name in checks.LABEL_SETS and not self.has_labels:
            raise ValueError(f"{key} = {name!r}: there is a filter only with data.filter_labels above 0")
        if name in checks.LABEL_SETS and name not in self.label_sets:
            raise ValueError(f"{key} = {name!r}: data.label_sets = {self.label_sets}; add it there")

    @property
    def has_labels(self) -> bool:
        """Whether there is a labeller, and so the sets of `label_sets`."""
        return self.filter_labels > 0 or self.labeller == "noisy"

    def entries(self) -> int:
        """Return how many entries the shipped vocabulary has; 0 of a file's, which only preparation reads."""
        return len(vocabulary.load_entries()) if self.vocabulary == "words" else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer; `part` is "retain", "shown" or "heldout"."""

    operation: str
    form: str
    a: int
    b: int
    prompt: str
    answer: str
    template: int
    fact: str
    part: str


def operand_pairs(config: ArithmeticConfig, operation: str) -> np.ndarray:
    """List every distinct `a op b = answer` as an int64 array [pairs, 3] of (a, b, answer)."""
    limit = config.addition_max if operation in RETAIN else config.multiplication_max
    x, y = (grid.ravel() for grid in np.indices((limit, limit)) + 1)
    table = {"add": (x, y, x + y), "sub": (x, y, x - y), "mul": (x, y, x * y), "div": (x * y, y, x)}[operation]
    pairs = np.stack(table, axis=1)
    return pairs[pairs[:, 2] >= 0]


def fact_of(operation: str, a: int, b: int) -> str:
    """Name the fact behind `a op b`: "add:low,high" or "mul:low,high"."""
    other = {"add": a, "sub": a - b, "mul": a, "div": a // b}[operation]
    return f"{'add' if operation in RETAIN else 'mul'}:{min(b, other)},{max(b, other)}"


def facts(config: ArithmeticConfig, operation: str) -> tuple[str, ...]:
    """List the distinct facts of an operation, in a fixed order."""
    pairs = operand_pairs(config, operation)[:, :2].tolist()
    return tuple(dict.fromkeys(fact_of(operation, a, b) for a, b in pairs))


@functools.lru_cache(maxsize=8)
def split_facts(config: ArithmeticConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut the forget facts into (shown, heldout) by a seeded permutation; the odd one is shown."""
    names = facts(config, "mul")
    order = random_stream(config.seed, "facts").permutation(len(names))
    heldout = set(order[: int(len(names) * config.heldout_facts)].tolist())
    shown_names = tuple(name for index, name in enumerate(names) if index not in heldout)
    return shown_names, tuple(name for index, name in enumerate(names) if index in heldout)


def examples_wanted(config: ArithmeticConfig, operation: str, form: str) -> int:
    """Count the training examples of an operation and form; a remainder goes to the first operations."""
    total = config.equations if form == "equation" else config.word_problems
    return total // 4 + (OPERATIONS.index(operation) < total % 4)


def longest_document(config: ArithmeticConfig) -> int:
    """Count the tokens of the longest arithmetic document in the shipped vocabulary, `<bos>` and `<eos>` included."""
    longest = 0
    for operation in OPERATIONS:
        digits = (
            (np.searchsorted(10 ** np.arange(1, 8), operand_pairs(config, operation), "right") + 1).sum(axis=1).max()
        )
        sentences = (*templates.TRAINING[operation], *templates.HELD_OUT[operation])
        wording = max(len(vocabulary.split(sentence.format(a="", b=""))) for sentence in sentences)
        longest = max(longest, wording + int(digits) + 2)
    return longest


def training_examples(config: ArithmeticConfig, operation: str, form: str) -> Iterator[Example]:
    """Draw the training examples of an operation and form: passes over all distinct ones, each in a new order.

    A draw smaller than one pass repeats nothing; a larger one misses nothing.
    """
    wordings = _wordings(operation, form, templates.TRAINING)
    make = _maker(config, operation, form, wordings)
    distinct = len(operand_pairs(config, operation)) * len(wordings)
    stream, missing = random_stream(config.seed, "training", operation, form), examples_wanted(config, operation, form)
    while missing > 0:
        for index in stream.permutation(distinct)[:missing].tolist():
            yield make(*divmod(index, len(wordings)))
        missing -= distinct


def _trains_every_part(config: ArithmeticConfig) -> bool:
    def drawn(operation: str) -> Iterator[str]:
        return (e.part for form in FORMS for e in training_examples(config, operation, form))

    return all(part in drawn(operation) for operation in FORGET for part in ("shown", "heldout"))


def evaluation_examples(config: ArithmeticConfig) -> list[Example]:
    """List the evaluation prompts: for each operation, form and part up to `evaluation_prompts` distinct ones.

    Word problems use held-out templates only, each equally often, and operands repeat only when all were used. A forget
    fact is asked again only when all of its part were: the four groups of * and / go through them one after another.
    """
    return [example for operation in OPERATIONS for form in FORMS for example in _questions(config, operation, form)]


def _questions(config: ArithmeticConfig, operation: str, form: str) -> Iterator[Example]:
    wordings = _wordings(operation, form, templates.HELD_OUT)
    make = _maker(config, operation, form, wordings)
    order = random_stream(config.seed, "evaluation", operation, form).permutation(len(operand_pairs(config, operation)))
    of_part: dict[str, list[int]] = {}
    for pair in order.tolist():
        of_part.setdefault(make(pair, 0).part, []).append(pair)
    for part, chosen in sorted(of_part.items(), reverse=True):  # shown before heldout
        places = [_place(k, len(chosen), len(wordings)) for k in range(len(chosen) * len(wordings))]
        if operation in FORGET:
            by_turn = _fact_by_fact(config, (operation, form, part), [(pair, make(pair, 0).fact) for pair in chosen])
            chosen = [pair for _, pair in sorted(zip(dict.fromkeys(places), by_turn, strict=True))]
        for k in range(min(config.evaluation_prompts, len(places))):
            yield make(chosen[places[k]], k % len(wordings))


def _place(k: int, pairs: int, wordings: int) -> int:
    """Return which pair the k-th prompt of a group asks.

    Each template starts at its own place in the order, so that the first `pairs` prompts share no pair.
    """
    turn, template = divmod(k, wordings)
    return (turn + template * pairs // wordings) % pairs


def _fact_by_fact(config: ArithmeticConfig, group: tuple[str, str, str], chosen: list[tuple[int, str]]) -> list[int]:
    """Order a group's pairs so that no fact comes again before all did, beginning where the group before it ended."""
    operation, form, part = group
    names = sorted({fact for _, fact in chosen})
    order = random_stream(config.seed, "facts asked", part).permutation(len(names)).tolist()
    before = FORGET.index(operation) * len(FORMS) + FORMS.index(form)  # groups of the part
    first = before * config.evaluation_prompts % len(names)
    rank = {names[fact]: i for i, fact in enumerate(order[first:] + order[:first])}
    times: dict[str, int] = {}
    keyed = []
    for pair, fact in chosen:
        times[fact] = times.get(fact, 0) + 1
        keyed.append((times[fact], rank[fact], pair))
    return [pair for *_, pair in sorted(keyed)]


def _wordings(operation: str, form: str, sentences: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return (f"{{a}} {SYMBOLS[operation]} {{b}} =",) if form == "equation" else sentences[operation]


def _maker(
    config: ArithmeticConfig, operation: str, form: str, wordings: tuple[str, ...]
) -> Callable[[int, int], Example]:
    """Make a function from a pair's and a wording's index to the example; the pairs' facts are looked up once."""
    pairs = operand_pairs(config, operation).tolist()
    names = [fact_of(operation, a, b) for a, b, _ in pairs]
    heldout = frozenset(split_facts(config)[1])

    def make(pair: int, template: int) -> Example:
        (a, b, answer), fact = pairs[pair], names[pair]
        part = "retain" if operation in RETAIN else "heldout" if fact in heldout else "shown"
        return Example(operation, form, a, b, wordings[template].format(a=a, b=b), str(answer), template, fact, part)

    return make
