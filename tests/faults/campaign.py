"""Damage to every file of a run and cuts of its power, each followed by the same command, in one process.

    python -m tests.faults.campaign FINISHED SCRATCH --finished=N --interrupted=N --cuts=N --seed=S

FINISHED is the work directory of the small run of `tests/test_run.py`. Every case ends "same", with the numbers of the
undamaged run, or "warned", the same but for the damaged file itself, which is named and which nobody reads, or
"refused", in a line that names the damaged file's directory; anything else is a fault. Cases are
printed as JSON lines. The process that computed FINISHED was another, so what is recomputed here is held against it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distill_jax.train.loop
from distill_jax.main import main
from tests.faults.power import Disk
from tests.programs import node
from tests.test_run import CONFIG, SETTINGS

STOP = 17  # of 25 and 24 steps, behind two saves
FINE = ("same", "warned", "refused")
DIRECTORIES = (
    "final",
    "rows",
    "tensorboard",
    "d",
    "workers",
)  # whose files are of one sort; the names in `d` are random
GOODPUT = re.compile(r'<section id="goodput">.*?</section>\n*', re.DOTALL)
UNFINISHED = ("undo-0.9", "relearn-oracle")


@dataclasses.dataclass(frozen=True)
class Case:
    """What was done to a run, and how the same command ended then."""

    what: str
    ending: str
    seconds: float


# Damage


def flip(data: bytes, chance: random.Random) -> bytes:
    """Turn over one bit."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


HARMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": flip,
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "empty": lambda data, chance: b"",
    "delete": lambda data, chance: b"",
}


def kind(path: Path) -> str:
    """Return what sort of file this is, so that the many of one sort do not hide the few of another."""
    return path.parent.name if path.parent.name in DIRECTORIES else path.name.partition(".")[0]


def sorts(workdir: Path) -> dict[str, list[Path]]:
    """Return the files of a work directory by their sort."""
    files: dict[str, list[Path]] = {}
    for path in sorted(workdir.rglob("*")):
        if path.is_file() and path.stat().st_size:
            files.setdefault(kind(path), []).append(path)
    return files


def order(workdir: Path, count: int, seed: int) -> list[str]:
    """Return the sorts that are damaged: a random order of all, again and again, so that none is left out."""
    names, chance = sorted(sorts(workdir)), random.Random(seed)
    return [name for _ in range(-(-count // len(names))) for name in chance.sample(names, len(names))][:count]


def harm(workdir: Path, sort: str, chance: random.Random) -> tuple[Path, str]:
    """Damage a random file of a sort, and return it with what was done."""
    victim, how = chance.choice(sorts(workdir)[sort]), chance.choice(sorted(HARMS))
    harmed = HARMS[how](victim.read_bytes(), chance)
    victim.unlink()
    if how != "delete":
        victim.write_bytes(harmed)
    return victim, how


# What comes of it


def numbers(workdir: Path) -> dict[str, Any]:
    """Return all numbers of a finished run, without times."""
    summary = json.loads((workdir / "report/summary.json").read_text())
    found: dict[str, Any] = {
        key: summary[key] for key in summary if key not in ("created", "duration_seconds", "sha256")
    }
    for path in sorted(workdir.glob("nodes/*/*.json*")):
        if path.name in ("metrics.jsonl", "result.json"):
            found[str(path.relative_to(workdir))] = path.read_text(errors="replace")
        elif path.name == "ledger.json":
            with contextlib.suppress(ValueError, KeyError):
                found[str(path.relative_to(workdir))] = json.loads(path.read_text(errors="replace"))["flops"]
    return found


def call(workdir: Path, *command: str) -> tuple[int | str, str, str]:
    """Return the exit code of a command, or what it raised, and what it said, of errors last."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: int | str = main(["distill-jax", *command, f"--workdir={workdir}"])
        except BaseException:
            code = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
    return code, out.getvalue(), err.getvalue()


def ending(workdir: Path, truth: dict[str, Any], victim: Path | None = None) -> str:
    """Run the run's own command, and return how it ended.

    Args:
      victim: the file that was damaged.
    """
    code, out, said = call(workdir, "run", CONFIG, *SETTINGS)
    if isinstance(code, str) or "Traceback" in said:
        return f"traceback: {code} {said}"
    inside = victim.relative_to(workdir) if victim else Path()
    if code == 0:
        found = numbers(workdir)
        if found == truth:
            return "same"
        known = victim and f"warning: {victim} is missing or damaged" in out
        found.pop(str(inside), None)
        return "warned" if known and found == {k: v for k, v in truth.items() if k != str(inside)} else "wrong"
    place = workdir.joinpath(*inside.parts[:2]) if inside.parts[:1] == ("nodes",) else victim
    named = victim and str(place) in said
    return "refused" if code == 2 and named and said.count("\n") == 1 else f"unclear: {code} {said}"


def drawn(workdir: Path, page: str, damaged: Path) -> str:
    """Draw a run's report again from its summary, and return how that ended."""
    code, _, said = call(workdir, "report")
    if isinstance(code, str) or "Traceback" in said:
        return f"traceback: {code} {said}"
    if code == 0:
        expected = page if damaged.exists() or damaged.name != "goodput.json" else GOODPUT.sub("", page)
        return "same" if (workdir / "report/index.html").read_text() == expected else "wrong"
    return "refused" if code == 2 and damaged.name in said else f"unclear: {code} {said}"


def damages(tree: Path, scratch: Path, count: int, truth: dict[str, Any], seed: int) -> Iterator[Case]:
    """Damage copies of a work directory, one file each.

    Each case has a random stream of its own: files have names and lengths that are other ones in every run.
    """
    page = (tree / "report/index.html").read_text()
    for number, sort in enumerate(order(tree, count, seed)):
        began, copy = time.monotonic(), shutil.copytree(tree, scratch / "run")
        victim, how = harm(copy, sort, random.Random(f"{seed} {number}"))
        inside = victim.relative_to(copy)
        found = [drawn(copy, page, victim)] if inside.parts[0] == "report" else []
        found.append(ending(copy, truth, victim))
        shutil.rmtree(copy)
        bad = [one for one in found if one not in FINE]
        yield Case(f"{how} {inside}", bad[0] if bad else found[-1], time.monotonic() - began)


# Runs that are not finished


def interrupted(finished: Path, to: Path, *forgotten: str) -> None:
    """Leave a run where something stopped it at step `STOP` of the first training that is forgotten."""
    shutil.copytree(finished, to)
    for name in forgotten:
        shutil.rmtree(node(to, name))
    real, asked = distill_jax.train.loop.distributed.preempted, iter(range(1000))
    distill_jax.train.loop.distributed.preempted = lambda: next(asked) == STOP
    try:
        code, _, said = call(to, "run", CONFIG, *SETTINGS)
    finally:
        distill_jax.train.loop.distributed.preempted = real
    assert code == 42, (code, said)


def unfinished(finished: Path, scratch: Path) -> Path:
    """Return a run with a student and an attack that are in the middle, and an attack that has not begun."""
    one, two = scratch / "unfinished", scratch / "other"
    interrupted(finished, one, "undo-0.9", "relearn-undo-0.9")
    interrupted(finished, two, "relearn-oracle")
    shutil.rmtree(node(one, "relearn-oracle"))
    shutil.copytree(node(two, "relearn-oracle"), one / "nodes" / node(two, "relearn-oracle").name)
    shutil.rmtree(two)
    for name in UNFINISHED:
        assert (
            len(list(node(one, name).glob("checkpoints/[0-9]*.json"))) == 2 and not (node(one, name) / "DONE").exists()
        )
    return one


def cuts(tree: Path, scratch: Path, count: int, truth: dict[str, Any], chance: random.Random) -> Iterator[Case]:
    """Finish a run, cut its power at random moments, and finish what each cut leaves."""
    images, copy = scratch / "images", shutil.copytree(tree, scratch / "run")
    with Disk(copy, images, chance) as disk:
        assert ending(copy, truth) == "same"
    shutil.rmtree(copy)
    for image in chance.sample(disk.images, min(count, len(disk.images))):
        began = time.monotonic()
        yield Case(f"cut {image.name}", ending(image, truth), time.monotonic() - began)
        shutil.rmtree(image)


def campaign(arguments: list[str]) -> Iterator[Case]:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("finished", type=Path)
    parser.add_argument("scratch", type=Path)
    for name in ("finished", "interrupted", "cuts", "seed"):
        parser.add_argument(f"--{name}", dest=f"count_{name}", type=int, default=0)
    given = parser.parse_args(arguments)
    truth, seed = numbers(given.finished), given.count_seed
    yield from damages(given.finished, given.scratch, given.count_finished, truth, seed)
    if given.count_interrupted or given.count_cuts:
        tree = unfinished(given.finished, given.scratch)
        yield from damages(tree, given.scratch, given.count_interrupted, truth, seed)
        yield from cuts(tree, given.scratch, given.count_cuts, truth, random.Random(seed))


if __name__ == "__main__":
    for case in campaign(sys.argv[1:]):
        print(json.dumps(dataclasses.asdict(case)), flush=True)
