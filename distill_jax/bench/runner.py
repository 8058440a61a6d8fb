"""Run benchmarks, print a table of each, write all of it down as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

import jax

from distill_jax.bench.accelerator import accelerator
from distill_jax.bench.against_torch import torch
from distill_jax.bench.bench_results import Result, Row
from distill_jax.bench.options import Options
from distill_jax.bench.ratios import distill, kl_memory, population
from distill_jax.io.files import write_json
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

# Each yields what it has measured so far, as often as it likes, and at last everything.
BENCHMARKS: dict[str, Callable[[Options], Iterator[Result]]] = {
    "kl_memory": kl_memory,
    "distill": distill,
    "population": population,
    "torch": torch,
    "accelerator": accelerator,
}
# What runs when no name is given: what needs neither PyTorch nor a device of its own.
USUAL = ("kl_memory", "distill", "population")


def run(names: Sequence[str], options: Options, line: str, out: TextIO) -> None:
    """Run benchmarks, and write all results after each measurement.

    Args:
      names: of BENCHMARKS.
      line: the command, as it was typed.
      out: where tables are printed.
    """
    # A program that an earlier run compiled would come for nothing.
    jax.config.update("jax_enable_compilation_cache", False)
    results: JsonObject = {"command": line, **surroundings(names), "benchmarks": {}}
    for name in names:
        result: Result = {}
        for result in BENCHMARKS[name](options):
            results["benchmarks"][name] = result
            write_json(location(options.json), results)  # at once: what a later one loses is not lost
        print(f"\n{name}: {summary_line(name)}", file=out)
        print(table(result["rows"]), file=out)
        for one in result["goals"]:
            verdict = "met" if one["met"] else "missed"
            print(f"goal {one['name']} {one['goal']}: {one['value']:.3g}, {verdict}", file=out, flush=True)
    print(f"\nwritten: {options.json}", file=out)


def summary_line(name: str) -> str:
    """Return what a benchmark measures, the first line of its docstring."""
    return (BENCHMARKS[name].__doc__ or "").splitlines()[0]


def surroundings(names: Iterable[str]) -> JsonObject:
    """Return the machine and the versions; the device is left alone if a benchmark's own processes need it whole."""
    packages = ("distill-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            continue
    device: JsonObject = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()}
    if "accelerator" not in names:
        first = jax.devices()[0]
        device |= {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}
    return {"device": device, "versions": versions}


def table(rows: Sequence[Row]) -> str:
    """Lay rows out in columns; a column of equal values everywhere is still shown, a nested dict is its minimum."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[key.replace("_", " ") for key in columns]]
    cells += [[_cell(key, row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        if "min" not in value:
            return " ".join(f"{k} {v}" for k, v in value.items())
        return f"{value['min']:.4g} (median {value['median']:.4g})"
    is_bytes = key in ("temporary", "arguments", "outputs") or key.endswith("_bytes")
    if is_bytes and isinstance(value, int | float):
        return f"{value / 2**20:,.1f} MiB"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
