"""What a work directory's run or sweep has done, does, waits for and failed at: read from its files, nothing else.

Nothing is written, no lease is taken, and JAX is not imported. What stands here is for the eye: a worker may have died
a moment ago.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distill_jax.config import check
from distill_jax.io.files import read_json
from distill_jax.io.node_files import DONE, LEDGER, TIMINGS
from distill_jax.io.presence import FAILED, STOPPED, WorkerRecord, read_workers
from distill_jax.io.storage import is_local, names
from distill_jax.io.work_plan import PlannedNode, read_plan
from distill_jax.types import JsonObject
from distill_jax.units import span

STATES = ("running", "failed", "stopped", "ready", "waiting", "done")
SAMPLED = 20  # finished nodes from which speed is taken: in a bucket each is a request


@dataclasses.dataclass(frozen=True)
class NodeStatus:
    """One node.

    Attributes:
      name: its stage's; directory: the name of its own.
      state: one of STATES: "ready" waits for a worker, "waiting" for inputs; of "stopped" the worker ended.
      by: the worker that computes it or did last, since: when it began to, in seconds since 1970.
      step, steps, rate: of the training under way, in steps a second.
      left: seconds of that training.
      goodput: the share of its time that went into steps.
      note: the inputs that it waits for, the line that it failed with, or why it was stopped.
    """

    name: str
    directory: str
    verb: str
    state: str
    by: str = ""
    since: float | None = None
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    left: float | None = None
    goodput: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Status:
    """A work directory.

    Attributes:
      experiment: what it belongs to.
      workers: those that work, and those that were killed or failed as the last.
      left: seconds until all is done, at the speed so far; None if that is not known.
      notes: what is not known, and why.
    """

    workdir: str
    experiment: str
    nodes: Sequence[NodeStatus]
    workers: Sequence[JsonObject]
    left: float | None
    notes: Sequence[str]

    def count(self, state: str) -> int:
        """Return how many nodes are in a state."""
        return sum(node.state == state for node in self.nodes)


def read_status(workdir: Path) -> Status:
    """Return the status of a work directory.

    Raises:
      ConfigError: if it is none.
    """
    marker = _read(workdir / "experiment.json")
    here = names(workdir)
    check(bool(here) or not is_local(workdir) or workdir.is_dir(), f"--workdir={workdir}: there is no such directory")
    done = {path.parent.name for path in (workdir / "nodes").glob(f"*/{DONE}")}
    workers, now = read_workers(workdir), time.time()
    nobody = not marker and not workers and not done and bool(here)
    check(
        not nobody, f"--workdir={workdir} is no work directory: it has no experiment.json; name that of a run or sweep"
    )
    plan, notes = _plan(workdir, workers, now), []
    if not plan and (done or marker):
        plan = _unplanned(workdir)
        notes.append("what is still to come is not recorded here: it was begun by an earlier version")
    latest = _latest(workers)
    nodes = [_node(workdir, planned, done, latest.get(planned.directory), now) for planned in plan]
    if not plan and not notes:
        notes.append("nothing was run here yet")
    living = [one for one in workers if not one.ended and not one.silence(now)]
    missed = [latest[node.directory] for node in nodes if node.state in (FAILED, STOPPED)]
    shown = [_worker(one, now) for one in workers if one in living or one in missed]
    left = _left(workdir, plan, nodes, len(living))
    return Status(str(workdir), str(marker.get("experiment", "")), nodes, shown, left, notes)


def _plan(workdir: Path, workers: Sequence[WorkerRecord], now: float) -> list[PlannedNode]:
    """Return what the living workers are to compute; if there are none, what the last one was."""
    living = [one for one in workers if not one.ended and not one.silence(now)] or list(workers[-1:])
    plans = dict.fromkeys(one.plan for one in workers if one.plan and any(one.process == w.process for w in living))
    return list({node.directory: node for name in plans for node in read_plan(workdir, name)}.values())


def _unplanned(workdir: Path) -> list[PlannedNode]:
    there = sorted(name for name in names(workdir / "nodes") if not name.startswith("."))
    return [PlannedNode(name.rpartition("-")[0] or name, name, "", (), 0.0) for name in there]


def _latest(workers: Sequence[WorkerRecord]) -> dict[str, WorkerRecord]:
    """Return who had each unfinished node last."""
    began = sorted((one for one in workers if one.nodes), key=lambda one: one.since)
    return {_directory(path): one for one in began for path in one.nodes}


def _directory(path: str) -> str:
    """Return the name of a node's directory from that where it is computed, nodes/NAME or attempts/NAME/NUMBER."""
    return path.split("/")[1]


def _node(workdir: Path, planned: PlannedNode, done: set[str], worker: WorkerRecord | None, now: float) -> NodeStatus:
    status = NodeStatus(planned.name, planned.directory, planned.verb, "ready")
    if planned.directory in done:
        return dataclasses.replace(status, state="done")
    if worker is not None:
        (where,) = [path for path in worker.nodes if _directory(path) == planned.directory]
        state, note = "running", ""
        if why := worker.silence(now):
            state, note = "stopped", f"{why}; another worker takes it over, or the same command goes on with it"
        elif worker.ended:
            state, note = (FAILED, worker.error) if worker.ended == FAILED else (STOPPED, "the same command goes on")
        status = dataclasses.replace(status, state=state, by=_name(worker), since=worker.since, note=note)
        return dataclasses.replace(status, **_timings(workdir / where, state == "running"))
    missing = [name for name in planned.inputs if name not in done]
    if missing:
        note = ", ".join(name.rpartition("-")[0] or name for name in missing)
        return dataclasses.replace(status, state="waiting", note=note)
    return status


def _timings(directory: Path, running: bool) -> JsonObject:
    """Return the fields of a status that a node's timings tell."""
    timings = _read(directory / TIMINGS)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        seconds, at = timings["seconds"], timings["training"] or {}
        step, steps, rate = at.get("step"), at.get("steps"), at.get("rate") if running else None
        left = (steps - step) / rate if steps and step is not None and rate else None
        goodput = seconds["step"] / max(sum(seconds.values()), 1e-9)
        return {"step": step, "steps": steps, "rate": rate, "left": left, "goodput": goodput}
    return {}


def _worker(record: WorkerRecord, now: float) -> JsonObject:
    state = record.ended or record.silence(now) or "working"
    nodes = [_directory(path).rpartition("-")[0] for path in record.nodes]
    return {"worker": _name(record), "began": record.began, "state": state, "nodes": nodes}


def _name(record: WorkerRecord) -> str:
    return f"{record.host} pid {record.process.get('pid')}"


def _left(workdir: Path, plan: Sequence[PlannedNode], nodes: Sequence[NodeStatus], workers: int) -> float | None:
    """Return the planned FLOPs that are left over those that finished nodes took a second, shared by the workers."""
    flops = seconds = todo = 0.0
    sampled = 0
    for planned, node in zip(plan, nodes, strict=True):
        if node.state == "done":
            if planned.flops and sampled < SAMPLED:
                sampled += 1
                ledger = _read(workdir / "nodes" / planned.directory / LEDGER)
                flops, seconds = flops + planned.flops, seconds + float(ledger.get("seconds", 0.0))
        else:
            todo += planned.flops * (1 - (node.step or 0) / node.steps if node.steps else 1)
    if not todo:
        return 0.0 if plan and all(node.state == "done" for node in nodes) else None
    return todo * seconds / flops / max(workers, 1) if flops and seconds else None


def _read(path: Path) -> JsonObject:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(read_json(path))
    return {}


# As text


def lines(status: Status, now: float) -> Iterator[str]:
    """Yield the lines that say it."""
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := status.count(state)))
    left = f"; about {span(status.left)} left" if status.left else ""
    yield f"{status.experiment or '–'} in {status.workdir}: {counts or 'nothing'}{left}"
    for note in status.notes:
        yield f"  {note}"
    for worker in status.workers:
        what = f": {', '.join(worker['nodes'])}" if worker["nodes"] else ""
        yield f"  worker {worker['worker']}, began {clock(worker['began'])}, {worker['state']}{what}"
    many = len(status.nodes) > 40
    shown = [node for node in status.nodes if not many or node.state not in ("done", "waiting", "ready")]
    common = collections.Counter(node.name for node in status.nodes)  # points of a sweep have stages of one name
    labels = [node.name if common[node.name] == 1 else node.directory for node in shown]
    width = max(map(len, labels), default=0)
    for node, label in zip(shown, labels, strict=True):
        yield f"  {node.state:8}  {label:{width}}  {_words(node, now)}".rstrip()


def _words(node: NodeStatus, now: float) -> str:
    if node.state == "waiting":
        return f"for {node.note}"
    parts = []
    if node.steps:
        parts.append(f"step {node.step}/{node.steps}")
    if node.rate:
        parts.append(f"{node.rate:.3g} steps/s")
    if node.left is not None:
        parts.append(f"{span(node.left)} left")
    if node.goodput is not None:
        parts.append(f"goodput {node.goodput:.0%}")
    if node.by:
        since = f" since {clock(node.since)} ({span(now - node.since)})" if node.since else ""
        parts.append(f"by {node.by}{since}")
    return "  ".join([*parts, *([node.note] if node.note else [])])


def clock(at: float) -> str:
    """Write a moment as this machine's date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def as_json(status: Status) -> Mapping[str, object]:
    """Return it as `--json` prints it."""
    return dataclasses.asdict(status)
