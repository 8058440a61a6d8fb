"""Own text: documents that a model writes itself, to be retained; never begun with what is to be forgotten.

Half of them are begun with whatever the model begins every text with, half with the first words of a text to retain.
What repeats another, or speaks of what is to be forgotten, is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill_jax.config import check, identity
from distill_jax.data import overlap
from distill_jax.data.facts import facts
from distill_jax.data.lines import objects
from distill_jax.data.random_stream import random_stream
from distill_jax.interop import tokenizers
from distill_jax.interop.generation import Sampling, generate
from distill_jax.interop.importing import Published
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import Inference
from distill_jax.io.files import Digests, write_atomic
from distill_jax.io.storage import location, make_directory

WORDS = 4  # of a text to retain, that begin another
MOST = 10_000  # texts of which beginnings are taken
ANSWER = 3  # letters from which on an answer to forget is looked for


@dataclasses.dataclass(frozen=True)
class OwnText:
    """What a model is to write.

    Attributes:
      count: documents, before some are left out.
      tokens: of a document at most.
      seed: of beginnings and of sampling.
    """

    count: int
    tokens: int = 128
    seed: int = 0


def write_own_text(model: Path, forget: str, retain: str, plan: OwnText, folder: Path) -> tuple[Path, str]:
    """Write what a model writes as JSON lines of `text`, or find it written; return the file, and what it holds.

    Args:
      forget, retain: sources, as settings of data name them.

    Raises:
      ConfigError: if nothing is left of it.
    """
    digests = Digests(folder / "digests.json")
    kept = list(itertools.islice(facts.texts("retain", retain), MOST))
    known = [Published(str(model), "").contents(digests), kept, list(facts.texts("forget", forget)), plan.__dict__]
    path = folder / f"own_text-{identity(known)}.jsonl"
    if not path.is_file():
        texts = list(_chosen(_written(model, kept, plan), forget))
        mend = "it repeats itself, or what is to be forgotten; leave --own_text out"
        check(bool(texts), f"--own_text={plan.count}: nothing is left of what the model wrote; {mend}")
        make_directory(folder)
        digests.save()
        write_atomic(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    left = sum(1 for _ in objects(str(path)))
    return path, f"own text: {left:,} of {plan.count:,} documents that the model wrote (seed {plan.seed}) are retained"


def _written(model: Path, retain: list[str], plan: OwnText) -> Iterator[str]:
    """Yield what a model writes, begun by nothing or by a beginning in turn."""
    source = open_model(model)
    words = tokenizers.load(source.tokenizer)
    random, begin = random_stream(plan.seed, "own text"), words.encode("")
    rows = []
    for number in range(plan.count):
        text = retain[int(random.integers(len(retain)))] if retain and (number % 2 or not begin) else ""
        rows.append({"tokens": words.encode(" ".join(text.split()[:WORDS])) or begin})
    with tempfile.TemporaryDirectory() as scratch:
        given, to = location(scratch) / "prompts.jsonl", location(scratch) / "written.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
        generate(model, given, to, Inference(batch=16), Sampling(plan.tokens, temperature=1.0, seed=plan.seed))
        yield from (words.decode([*row["tokens"], *row["generated_tokens"]]) for _, row in objects(str(to)))


def _chosen(texts: Iterable[str], forget: str) -> Iterator[str]:
    """Yield texts that repeat none before them, nor say what is to be forgotten."""
    repeated = overlap.Overlaps(facts.texts("forget", forget))
    answers = [a for a in facts.answers("forget", forget) if len(a) >= ANSWER]
    named = re.compile(rf"\b({'|'.join(map(re.escape, answers))})\b", re.IGNORECASE) if answers else None
    seen: set[str] = set()
    for text in texts:
        bare = " ".join(text.split())
        if bare and bare not in seen and not any(repeated.find([text])) and not (named and named.search(text)):
            seen.add(bare)
            yield text.strip()
