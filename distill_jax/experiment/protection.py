"""What a model decides of its own protection: from a directory and two sets of files to the config `protect`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.config import ConfigError, check
from distill_jax.data.facts import facts
from distill_jax.experiment.config_file import settings_by_key
from distill_jax.experiment.named_config import NamedConfig, change, open_config
from distill_jax.io.files import read_json
from distill_jax.io.leases import OWN_TEXT
from distill_jax.io.node import CONFIG, Node
from distill_jax.io.storage import absolute, location
from distill_jax.types import JsonObject
from distill_jax.units import size_text

RANK = 16  # of adapters, where weights do not fit
CONTEXT = {"documents": 512, "questions": 128, "choices": 512}  # tokens of a row at most
# The learning rate of WMDP's recipe at its size; smaller models take larger ones, about as 1 / sqrt(parameters).
RATE, RATE_PARAMETERS, FASTEST = 2e-5, 2.6e9, 2e-3
ADAPTER_RATE = 10  # times that, for adapters
FLAGS = {"forget": "--forget", "retain": "--retain", "path": "--model"}  # by the settings that they fill


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is to be protected or attacked, as its directory describes it.

    Attributes:
      cfg: the decoder; context: tokens that it reads at most, 0 if that is not known.
      vocabulary: as `data.vocabulary` takes it.
    """

    path: str
    cfg: Any
    context: int
    vocabulary: str

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        from distill_jax.models import transformer

        return transformer.parameter_count(self.cfg)


def open_subject(path: str) -> Subject:
    """Open a model's directory.

    Raises:
      ConfigError: if it is no model, or has no tokenizer.
    """
    from distill_jax.data.text import hf_tokenizer
    from distill_jax.interop import tokenizers
    from distill_jax.interop.model_source import open_model

    model = open_model(location(path))
    names = (tokenizers.JSON, tokenizers.SENTENCEPIECE)
    if hf_tokenizer.is_published(model.tokenizer) and not location(model.tokenizer).is_dir():  # a GGUF file has its own
        return Subject(path, model.cfg, int(model.facts.get("max_position_embeddings") or 0), model.tokenizer)
    tokenizer_file = next((name for name in names if tokenizers.beside(model.tokenizer, name)), "")
    mend = (
        f"it cannot read text; copy those of its original there (`hf download OWNER/NAME {names[0]} --local-dir DIR`)"
    )
    check(bool(tokenizer_file), f"--model={path}: has no tokenizer, neither {' nor '.join(names)}: {mend}")
    is_json = tokenizer_file == tokenizers.JSON
    vocabulary = model.tokenizer if is_json else str(location(model.tokenizer) / tokenizer_file)
    return Subject(path, model.cfg, int(model.facts.get("max_position_embeddings") or 0), vocabulary)


@dataclasses.dataclass(frozen=True)
class Files:
    """What is to be forgotten and retained: sources, and whether questions are put by the model's chat template."""

    forget: str
    retain: str
    chat: bool = False


def with_own_text(subject: Subject, files: Files, count: int, workdir: Path) -> tuple[Files, str]:
    """Return the files with text beside them that the model writes into a work directory, and what that is in words."""
    from distill_jax.interop.own_text import OwnText, write_own_text

    tokens = min(OwnText.tokens, max(1, (subject.context or CONTEXT["documents"]) // 2))
    plan = OwnText(count, tokens)
    path, what = write_own_text(location(subject.path), files.forget, files.retain, plan, workdir / OWN_TEXT)
    return dataclasses.replace(files, retain=f"{files.retain},{path}"), what


def protect_config(subject: Subject, files: Files, method: str, memory: float) -> tuple[NamedConfig, list[str]]:
    """Return the config that protects a model, and what was decided for it, in sentences.

    Args:
      memory: bytes that all devices together have.
    """
    named = open_config(f"protect:{_kind(files.forget)},{method}")
    change(named.config, {"reference.path": subject.path, "experiment": f"protect-{_name(subject.path)}"})
    return named, _decide(named, subject, files, memory)


def attack_config(
    subjects: Sequence[Subject], baseline: str, files: Files, memory: float
) -> tuple[NamedConfig, list[str]]:
    """Return the config that attacks models, and what was decided for them, in sentences."""
    named = open_config(f"attack:{_kind(files.forget)}")
    paths = [absolute(location(subject.path)) for subject in subjects]
    for path, subject in zip(paths, subjects, strict=True):
        check(paths.count(path) == 1, f"--model={subject.path} is named twice; name each model once")
        itself = baseline and absolute(location(baseline)) == path
        check(not itself, f"--baseline={baseline} is what --model names; leave one out, the baseline is attacked too")
    plain = [_name(subject.path) for subject in subjects]
    taken = {*(name for name in plain if plain.count(name) > 1), "reference", "knowledge", "data"}
    names = [f"{name}-{i}" if name in taken else name for i, name in enumerate(plain, 1)]
    settings = {"names": tuple(names), "paths": tuple(subject.path for subject in subjects), "baseline": baseline}
    change(named.config, settings)
    return named, _decide(named, subjects[0], files, memory)


def check_same_files(nodes: Mapping[str, Node], workdir: str) -> None:
    """Refuse a work directory with a run on other files or another model, whose card would be drawn over.

    Settings may change: what they change is computed anew, and the card is of the last ones.

    Raises:
      ConfigError: naming what differs.
    """
    for node in nodes.values():
        settings = node.settings.data if node.verb == "prepare" else node.settings
        for before in _settings_before(node) if node.verb in ("prepare", "import") else ():
            if before["content"] != settings.content:
                keys = ("forget", "retain") if node.verb == "prepare" else ("path",)
                names = [key for key in keys if before[key] != getattr(settings, key)]
                changed = ", ".join(f"{FLAGS[key]}={before[key]}" for key in names)
                what = f"a run of {changed}" if names else f"a run of {FLAGS[keys[0]]} as it was before it changed"
                mend = "name another --workdir for these, or remove it"
                raise ConfigError(f"--workdir={workdir} holds {what}; {mend}")


def _settings_before(node: Node) -> list[JsonObject]:
    """Return the settings of a node's namesakes of other identities, which an earlier run left beside it."""
    folder = node.directory.parent
    named = re.compile(rf"{re.escape(node.name)}-\w{{12}}")
    namesakes = [path for path in sorted(folder.iterdir()) if named.fullmatch(path.name)] if folder.is_dir() else []
    others = [path / CONFIG for path in namesakes if path != node.directory]
    return [read_json(path)["settings"] for path in others if path.is_file()]


def _kind(forget: str) -> str:
    """Return the config's preset for what is to be forgotten; items without documents are questions."""
    kind = facts.kind_of("forget", forget)
    return "questions" if set(facts.sources_by_kind("forget", forget)) == {"choices"} else kind


def _sources(kind: str, forget: str, retain: str) -> dict[str, str]:
    """Return the settings that name the files; of multiple choice, documents and items apart."""
    if kind != "choices":
        return {"data.forget": forget, "data.retain": retain}
    settings: dict[str, str] = {}
    for side, text in (("forget", forget), ("retain", retain)):
        by_kind = facts.sources_by_kind(side, text)
        mend = "give text as well, which is what is trained on, and items, which are what is measured"
        check({"choices", "documents"} <= set(by_kind), f"--{side}={text}: has only {', '.join(by_kind)}; {mend}")
        settings |= {f"data.{side}": by_kind["documents"], f"data.{side}_items": by_kind["choices"]}
    return settings


def _name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]", "-", location(path).resolve().name).lstrip("._=+-") or "model"


def _decide(named: NamedConfig, subject: Subject, files: Files, memory: float) -> list[str]:
    """Fill in what a model decides, and return it in sentences."""
    c = named.config
    change(c, {**_sources(c.kind, files.forget, files.retain), "data.vocabulary": subject.vocabulary})
    if files.chat:
        mend = f"--forget={files.forget} holds {c.kind}; leave it out, and text is read as it is"
        check(c.kind == "questions", f"--chat: a chat template puts questions, and {mend}")
        c.data.chat = True
    longest = CONTEXT[c.kind] * (2 if files.chat else 1)  # for what a template writes beside a question
    c.data.row_length = min(longest, subject.context or longest)
    what = f"{c.kind} to forget, rows of {c.data.row_length} tokens"
    decisions = [f"{subject.path}: {subject.parameters:,} parameters; {what}"]
    decisions += _begins(subject)
    if c.kind == "questions" and facts.kind_of("forget", files.forget) == "choices":
        decisions.append(
            "multiple choice without documents: each is asked in words, and its right option is the answer"
        )
    rate = min(FASTEST, RATE * math.sqrt(RATE_PARAMETERS / subject.parameters))
    return decisions + _fit(named, subject, rate, memory)


def _begins(subject: Subject) -> list[str]:
    """Say where a tokenizer names a token that begins texts and puts none: rows have it, prompts do not."""
    from distill_jax.data.text import hf_tokenizer, sentencepiece_vocab

    words = sentencepiece_vocab.load(subject.vocabulary)
    if not isinstance(words, hf_tokenizer.Tokenizer) or words.begin():
        return []
    token = words.decode([words.bos_id()])
    return [
        f"its tokenizer names {token} as what begins a text and puts none: prompts begin without it, training rows "
        "have it before each document"
    ]


def _fit(named: NamedConfig, subject: Subject, rate: float, memory: float) -> list[str]:
    """Let adapters train where weights do not fit, and attackers one after another where they do not fit together."""
    from distill_jax.experiment.graph import FILL

    c, room, decisions = named.config, FILL * memory, []
    all_weights = least_bytes(c, subject, members=1)
    if all_weights > room:
        for stage in (c[name] for name in ("suppress", "distill", "attack") if name in c):
            stage.update(lora_rank=RANK, lora_alpha=2.0 * RANK)
        rate *= ADAPTER_RATE
        need = f"training all weights needs at least {size_text(all_weights)}, and there are {size_text(memory)}"
        decisions.append(f"{need}: LoRA adapters of rank {RANK} train in their place")
    named.module.set_rate(c, float(f"{rate:.2g}"))
    if least_bytes(c, subject, members=len(c.attack.learning_rates) * c.attack.seeds) > room:
        c.attack_apart = True
        if least_bytes(c, subject, members=c.attack.seeds) > room:
            c.attack.seeds = 1
        decisions.append(
            f"attackers do not fit side by side: {c.attack.seeds} at a time, one learning rate after another"
        )
    return decisions


def least_bytes(c: Any, subject: Subject, members: int) -> int:
    """Return bytes without which a distillation step of so many members cannot run, the frozen teacher among them."""
    from distill_jax.perf.memory import TrainingShape, least_training

    tokens = c.attack.batch // c.attack.microbatches * c.data.row_length
    logits = min(tokens, c.run.loss_chunk or tokens)
    shape = TrainingShape(tokens, members, rank=c.attack.lora_rank, logits=logits)
    teacher = subject.parameters * (2 if c.model.dtype == "bfloat16" else 4)
    return least_training(subject.cfg, shape) + teacher


def config_text(named: NamedConfig, decisions: list[str]) -> str:
    """Return a config file that says the same, to be edited, run and swept."""
    before, after = (settings_by_key(config) for config in (open_config(named.source).config, named.config))
    changed = {key: value for key, value in after.items() if value != before.get(key)}
    settings = "\n".join(f"        {key!r}: {value!r}," for key, value in changed.items())
    about = "\n".join(decisions)
    return f'''"""Protect a model: `distill-jax run --config=THIS_FILE --workdir=DIR`.

{about}
"""

from distill_jax.experiment.named_config import change, open_config

BASE = {named.source!r}


def get_config(arg=""):
    config = open_config(BASE).config
    settings = {{
{settings}
    }}
    change(config, settings)
    return config


def get_experiment(config):
    return open_config(BASE).module.get_experiment(config)
'''
