"""Ask a model every fact of the tables, greedy and in every wording, and write down which it answers.

python -m distill_jax.interop.known_facts FILE.gguf [TO.tsv]    # made data/capitals/known.tsv
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distill_jax.data.capitals.fact_table import INVENTED, KNOWN, WORDINGS, Fact, facts
from distill_jax.data.text.hf_tokenizer import Tokenizer
from distill_jax.interop.generation import Sampling, generate
from distill_jax.interop.rows import Inference
from distill_jax.io.storage import location, write_atomic

NEW = 6  # tokens, as many as the longest answer has


def answered(model: Path, asked: Sequence[Fact]) -> dict[Fact, str]:
    """Return for each fact a digit a wording, 1 where the answer's tokens come first."""
    words = Tokenizer(model)
    prompts = [(fact, prompt) for fact in asked for prompt in fact.prompts()]
    out = dict.fromkeys(asked, "")
    with tempfile.TemporaryDirectory() as directory:
        given, to = (location(directory) / name for name in ("prompts", "answers"))
        given.write_text("".join(json.dumps({"text": prompt}) + "\n" for _, prompt in prompts), "utf-8")
        generate(model, given, to, Inference(batch=32), Sampling(new=NEW))
        rows = [json.loads(line) for line in to.read_text("utf-8").splitlines()]
    for (fact, _), row in zip(prompts, rows, strict=True):
        (wanted,) = words.encode([f" {fact.answer}"])
        out[fact] += str(int(row["generated_tokens"][: len(wanted)] == wanted))
    return out


def main(model: str, to: str = str(KNOWN)) -> None:
    """Write the facts that the model answers in any wording."""
    asked = [fact for kind in WORDINGS if kind != INVENTED for fact in facts(kind)]
    known = {fact: digits for fact, digits in answered(location(model), asked).items() if "1" in digits}
    lines = [f"{fact.kind}\t{fact.subject}\t{fact.answer}\t{digits}\n" for fact, digits in known.items()]
    write_atomic(location(to), ("kind\tsubject\tanswer\tanswered\n" + "".join(lines)).encode())
    print(f"{to}: {len(known):,} of {len(asked):,} facts are answered in some wording")


if __name__ == "__main__":
    main(*sys.argv[1:])
