"""What all preparation of data shares: it is done once, under a lock, and appears whole or not at all."""

from __future__ import annotations

import argparse
import concurrent.futures.process
import contextlib
import dataclasses
import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from distill_jax.config import check, identity
from distill_jax.data import import_tf, records
from distill_jax.io import staging, storage
from distill_jax.io.files import read_json, write_sealed
from distill_jax.io.storage import sync
from distill_jax.types import JsonObject

Config = TypeVar("Config")


def make_once(
    directory: str | os.PathLike[str],
    wanted: Mapping[str, object],
    build: Callable[[Path], Mapping[str, object]],
    *,
    resumes: bool = False,
) -> JsonObject:
    """Return a directory's manifest; make its files first unless they are there.

    Args:
      wanted: what identifies the data; it begins the manifest.
      build: build(work) writes every file into the folder `work`, and returns what else the manifest says of them.
      resumes: whether `build` goes on with what a killed process left in `work`.

    Raises:
      ValueError: the directory holds data of another identity.
    """
    wanted = json.loads(json.dumps(wanted))
    if not storage.is_local(storage.location(directory)):
        return _make_and_upload(storage.location(directory), wanted, build, resumes=resumes)
    os.makedirs(directory, exist_ok=True)
    with _locked(directory), import_tf.errors_only():
        if os.path.exists(os.path.join(directory, records.MANIFEST)):
            for left in Path(directory).glob("preparing*"):  # by a process that was killed at the very end
                shutil.rmtree(left, ignore_errors=True)
            return _check_finished(os.fspath(directory), wanted)
        work = Path(directory, f"preparing-{identity(wanted)}" if resumes else "preparing")
        if not resumes:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        manifest = dict(wanted) | dict(build(work))
        _publish(manifest, work, directory)
    return manifest


def _make_and_upload(
    target: Path, wanted: Mapping[str, object], build: Callable[[Path], Mapping[str, object]], *, resumes: bool
) -> JsonObject:
    """Make the files on this machine, where a process that was killed is gone on from, and upload the manifest last."""
    if (target / records.MANIFEST).exists():
        return _check_finished(os.fspath(target), wanted)
    with staging.building(target) as work:
        manifest = make_once(work, wanted, build, resumes=resumes)
        for path in work.glob(".*"):
            path.unlink()
        staging.upload(work, target, last=records.MANIFEST)
    return manifest


def log(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def load_config(path: str | os.PathLike[str], cls: type[Config]) -> Config:
    """Read settings of a class from a JSON object of its fields; ValueError for one that does not exist or fit."""
    settings = read_json(storage.location(path))
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    _check_names(settings, [field.name for field in fields])
    return cls(**settings)


def _check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError for a key that does not exist, naming the nearest one that does."""
    known = tuple(known)
    for name in given:
        near = difflib.get_close_matches(name, known, n=1) or [", ".join(known)]
        check(name in known, f"data.{name}: no such setting; did you mean {near[0]}?")


def run_command_line(
    module: str, cls: type[Config], prepare: Callable[[Config, str], object], arguments: list[str] | None
) -> None:
    """Prepare what the command line names; a mistake in the settings ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Prepare data.")
    parser.add_argument("--config", required=True, help=f"JSON file with the fields of {cls.__name__}")
    parser.add_argument("--output", required=True, help="directory for the prepared data")
    options = parser.parse_args(arguments)
    try:
        prepare(load_config(options.config, cls), options.output)
    except concurrent.futures.process.BrokenProcessPool:
        parser.exit(2, f"{parser.prog}: one of its processes was killed (out of memory?); run again\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


@contextlib.contextmanager
def _locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time prepare a directory; the lock of a killed process is free."""
    with staging.locked(Path(directory, ".lock")):
        yield


def _check_finished(directory: str, wanted: Mapping[str, object]) -> JsonObject:
    """Return the manifest of a finished directory; ValueError unless it is of the settings wanted."""
    manifest = records.load_manifest(directory)
    if different := " and ".join(key for key, value in wanted.items() if manifest.get(key) != value):
        raise ValueError(f"{directory}: holds data of another {different}; choose another directory or delete it")
    log(f"{directory}: already prepared")
    return manifest


def _publish(manifest: JsonObject, work: Path, directory: str | os.PathLike[str]) -> None:
    """Move the finished files into place, the manifest last, each on the disk before it gets its name."""
    write_sealed(work / records.MANIFEST, manifest)
    for name in dict.fromkeys([*(entry["file"] for entry in records.entries(manifest)), records.MANIFEST]):
        with open(work / name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(work / name, os.path.join(directory, name))
    sync(Path(directory))
    shutil.rmtree(work)
