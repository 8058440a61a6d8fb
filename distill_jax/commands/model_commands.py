"""`distill-jax import | export | score | generate`: their flags, and what each calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from distill_jax.backend import find_devices
from distill_jax.config import ConfigError, check, check_local
from distill_jax.interop import choice_scoring, exporting, generation, importing, scoring

# flag: (its value when left out, what it is for); a None must be given.
READ: dict[str, tuple[Any, str]] = {
    "model": (None, "DIR: a finished node, an imported model, or one in the Hugging Face layout"),
    "input": (None, "FILE.jsonl: rows with `text` or `tokens`"),
    "output": (None, "FILE.jsonl: the same rows and what came out"),
    "tokenizer": ("", "FILE or DIR of the tokenizer that `text` needs, or words; the model's own when left out"),
    "dtype": ("float32", "of the computation, float32 or bfloat16"),
    "batch": (8, "rows at a time"),
}


PATHS = {"model", "input", "items", "examples", "output", "from", "adapter", "to", "workdir"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what it does, what it calls, and its flags."""

    summary: str
    call: Callable[[Any], str]
    flags: dict[str, tuple[Any, str]]


def _import(given: Any) -> str:
    adapter = Path(given.adapter) if given.adapter else None
    return str(importing.import_model(Path(given["from"].value), Path(given.workdir), adapter, given.keep_adapter))


def _export(given: Any) -> str:
    known = ("", "float32", "bfloat16", "float16")
    check(given.dtype in known, f"--dtype={given.dtype}: choose float32, bfloat16 or float16, or leave it out")
    check(given.shard_gb > 0, f"--shard_gb={given.shard_gb}: must be above 0")
    if given.adapter_only:
        exporting.export_adapter(Path(given.model), Path(given.to))
    else:
        size = int(given.shard_gb * 10**9)
        exporting.export_model(Path(given.model), Path(given.to), given.dtype or None, size)
    return str(given.to)


def _score(given: Any) -> str:
    check(bool(given.input) != bool(given.items), "score: give --input=FILE.jsonl, or --items=FILE of multiple choice")
    model, rows, to = _paths(given)
    if not given.items:
        unused = [flag for flag in ("shots", "examples", "subject") if getattr(given, flag)]
        check(not unused, f"--{unused[:1] and unused[0]}: only --items has a use for it")
        scoring.score(model, rows, to, given.dtype, given.batch, given.tokenizer)
        return str(given.output)
    check(given.shots >= 0, f"--shots={given.shots}: must not be negative")
    mend = "name the file they are taken from with --examples=FILE (MMLU's is that of its split `dev`)"
    check(not given.shots or bool(given.examples), f"--shots={given.shots}: no examples are named; {mend}")
    check(bool(given.shots) or not given.examples, f"--examples={given.examples}: none is shown; give --shots=5, say")
    settings = (given.dtype, given.batch, given.tokenizer)
    told = choice_scoring.choose(model, given.items, to, *settings, given.shots, given.examples, given.subject)
    return f"{given.output}\n{told}"


def _generate(given: Any) -> str:
    check(given.new >= 1, f"--new={given.new}: must be at least 1")
    check(given.temperature >= 0, f"--temperature={given.temperature}: must not be negative")
    sampling = (given.new, given.temperature, given.seed)
    generation.generate(*_paths(given), given.dtype, given.batch, given.tokenizer, *sampling)
    return str(given.output)


def _paths(given: Any) -> tuple[Path, Path, Path]:
    check(given.dtype in ("float32", "bfloat16"), f"--dtype={given.dtype}: choose float32 or bfloat16")
    check(given.batch >= 1, f"--batch={given.batch}: must be at least 1")
    return Path(given.model), Path(given.input), Path(given.output)


COMMANDS = {
    "import": Command(
        "make a node, which stages and commands start from, of a model in the Hugging Face layout",
        _import,
        {
            "from": (None, "DIR or FILE: config.json and safetensors"),
            "workdir": (None, "DIR: the node goes to its nodes/"),
            "adapter": ("", "DIR: PEFT LoRA adapters, merged in"),
            "keep_adapter": (False, "keep them as adapters, in a node of their own"),
        },
    ),
    "export": Command(
        "write a model as transformers loads it",
        _export,
        {
            "model": READ["model"],
            "to": (None, "DIR: what is written"),
            "dtype": ("", "float32, bfloat16 or float16; as it is stored when left out"),
            "shard_gb": (5.0, "10⁹ bytes of a file of weights at most"),
            "adapter_only": (False, "write the node's LoRA adapters as PEFT loads them"),
        },
    ),
    "score": Command(
        "per-token log-likelihoods of given text or tokens, or which answers a model gives to multiple-choice items",
        _score,
        {
            **READ,
            "input": ("", READ["input"][1]),
            "items": ("", "FILE or pattern, in place of --input: WMDP's or MMLU's items (JSONL, CSV, parquet)"),
            "shots": (0, "solved examples before each item"),
            "examples": ("", "FILE or pattern of the items they are taken from, the first of the item's subject"),
            "subject": ("", "what items are about that do not say so, such as biology"),
        },
    ),
    "generate": Command(
        "what a model writes after given text or tokens",
        _generate,
        {
            **READ,
            "new": (64, "tokens at most"),
            "temperature": (0.0, "of sampling; 0: always the likeliest token"),
            "seed": (0, "of sampling"),
        },
    ),
}


def usage(name: str) -> str:
    """Return a command's help text."""
    command = COMMANDS[name]
    needed = " ".join(f"--{flag}=…" for flag, (value, _) in command.flags.items() if value is None)
    lines = [f"usage: distill-jax {name} {needed} [--flag=value …]", "", command.summary, "", "flags:"]
    for flag, (value, text) in command.flags.items():
        lines.append(f"  --{flag:13}{text}{f' (default {value})' if value not in (None, '', False) else ''}")
    return "\n".join(lines)


def parse(name: str, arguments: Sequence[str]) -> Any:
    """Read the command line after the command's name.

    Raises:
      ConfigError: naming what is unknown, missing or of the wrong type.
    """
    values = flags.FlagValues()
    define: dict[type, Any] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        type(None): flags.DEFINE_string,
    }
    for flag, (value, text) in COMMANDS[name].flags.items():
        define[type(value)](flag, value, text, flag_values=values)
    try:
        rest = values([name, *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())[:300]}") from error
    check(not rest, f"{name}: unexpected argument {rest[:1]}; settings are given as --flag=value")
    for flag, (value, text) in COMMANDS[name].flags.items():
        check(value is not None or bool(values[flag].value), f"{name}: --{flag} is missing: {text}")
    return values


def main(name: str, arguments: Sequence[str]) -> None:
    """Run a command and print what it wrote."""
    if {"--help", "-h"} & set(arguments):
        print(usage(name))
        return
    given = parse(name, arguments)
    for flag in PATHS & set(COMMANDS[name].flags):
        check_local(f"--{flag}", given[flag].value or "")
    find_devices()
    print(f"{name}: {COMMANDS[name].call(given)}")
