"""`distill-jax bench`: run benchmarks, print a table of each, write all of it down as JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from distill_jax.bench.accelerator import accelerator
from distill_jax.bench.against_torch import torch
from distill_jax.bench.options import Options
from distill_jax.bench.ratios import distill, kl_memory, population
from distill_jax.config import ConfigError, check, nearest
from distill_jax.io.files import write_json

BENCHMARKS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "kl_memory": kl_memory,
    "distill": distill,
    "population": population,
    "torch": torch,
    "accelerator": accelerator,
}
# What runs when no name is given: what needs neither PyTorch nor a device of its own.
USUAL = ("kl_memory", "distill", "population")

HELP = {
    "json": "file for the results",
    "preset": "model of models/presets.py",
    "dtype": "float32 or bfloat16",
    "batch": "rows",
    "length": "tokens a row",
    "vocab": "vocabulary of kl_memory",
    "chunk": "tokens whose logits exist at a time",
    "steps": "steps timed together",
    "repeats": "rounds of interleaved times",
    "rounds": "whole runs of population",
    "members": "members of the population",
    "tiny": "tiny shapes in accelerator, which then also runs on a CPU",
    "torch_python": "a Python that has torch and transformers",
}


def usage() -> str:
    """Return the help text."""
    lines = ["usage: distill-jax bench [NAME …] [--flag=value …]", "", "benchmarks:"]
    for name, function in BENCHMARKS.items():
        lines.append(f"  {name:13}{(function.__doc__ or '').splitlines()[0]}{'' if name in USUAL else ' *'}")
    lines += ["  * runs only when named", "", "flags (0 or nothing: the benchmark's own choice):"]
    return "\n".join(lines + [f"  --{name:13}{text}" for name, text in HELP.items()])


def parse(arguments: Sequence[str]) -> tuple[list[str], Options]:
    """Read the command line after `bench`.

    Raises:
      ConfigError: naming what is unknown or of the wrong type.
    """
    values = flags.FlagValues()
    define: dict[type, Any] = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool}
    for field in dataclasses.fields(Options):
        define[type(field.default)](field.name, field.default, HELP[field.name], flag_values=values)
    try:
        names = values(["bench", *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"bench: {' '.join(str(error).split())[:300]}") from error
    for name in names:
        known = ", ".join(BENCHMARKS)
        check(name in BENCHMARKS, f"unknown benchmark {name!r}{nearest(name, BENCHMARKS)}; there are {known}")
    return names or list(USUAL), Options(**values.flag_values_dict())


def main(arguments: Sequence[str], out: Any = None) -> None:
    """Run the benchmarks that are named."""
    out = out or sys.stdout
    if {"--help", "-h"} & set(arguments):
        print(usage(), file=out)
        return
    names, options = parse(arguments)
    # A program that an earlier run compiled would come for nothing.
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, Any] = {"command": shlex.join(["distill-jax", "bench", *arguments]), **surroundings(names)}
    found["benchmarks"] = {}
    for name in names:
        result = BENCHMARKS[name](options)
        found["benchmarks"][name] = result
        print(f"\n{name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}", file=out)
        print(table(result["rows"]), file=out)
        for one in result["goals"]:
            verdict = "met" if one["met"] else "missed"
            print(f"goal {one['name']} {one['goal']}: {one['value']:.3g}, {verdict}", file=out, flush=True)
        write_json(Path(options.json), found)  # after each: what a later one loses is not lost
    print(f"\nwritten: {options.json}", file=out)


def surroundings(names: Iterable[str]) -> dict[str, Any]:
    """Return the machine and the versions; the device is left alone if a benchmark's own processes need it whole."""
    packages = ("distill-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            continue
    device: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()}
    if "accelerator" not in names:
        first = jax.devices()[0]
        device |= {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}
    return {"device": device, "versions": versions}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay rows out in columns; a column of equal values everywhere is still shown, a nested dict is its minimum."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[key.replace("_", " ") for key in columns]]
    cells += [[_cell(key, row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        if "min" not in value:
            return " ".join(f"{k} {v}" for k, v in value.items())
        return f"{value['min']:.4g} (median {value['median']:.4g})"
    if key in ("temporary", "arguments", "outputs") or key.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
