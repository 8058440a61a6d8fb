"""Record what every config's smoke leaves, and say whether another version of the code leaves the same.

  python -m tests.net --record=DIR [NAME …]      before a change
  python -m tests.net --against=DIR [NAME …]     after it, on the same machine; exits 1 if anything differs

Recorded are the names of all nodes' directories (their identities), their files, each leaf of their weights, and the
report's numbers, but for what DROPPED names. Nothing of the package is imported, so it may be turned over altogether.
--all adds what takes minutes: configs/arithmetic.py:cpu.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "arithmetic": ("run", "--config=configs/arithmetic.py:smoke"),
    "arithmetic-full": ("run", "--config=configs/arithmetic.py:smoke,full"),
    "language": ("run", "--config=configs/language.py:smoke"),
    "subliminal": ("run", "--config=configs/subliminal.py:smoke"),
    "double_bind": ("audit", "--config=configs/double_bind.py:smoke"),
    "wmdp": ("run", "--config=configs/wmdp.py:smoke"),
    "organism": ("run", "--config=configs/organism.py:smoke"),
    "auditbench": ("audit", "--config=configs/auditbench.py:smoke"),
    "sweep": ("sweep", "--sweep=tests/faults/tiny_sweep.py"),
}
LONG = {"arithmetic-cpu": ("run", "--config=configs/arithmetic.py:cpu")}
# What differs between two runs of the same code: times, memory, machine, and the seal of a file that holds them.
DROPPED = {
    "ledger.json": ("device_seconds", "seconds", "seconds_by_cause", "goodput", "peak_bytes", "peak_device_bytes"),
    "report": ("created", "device", "duration_seconds", "sha256"),
}
UNREAD = ("checkpoints", "tensorboard", "DONE", "goodput.json")  # weights are read by leaf; the rest holds times
SHOWN = 12  # differences of a name


def environment(scratch: Path) -> dict[str, str]:
    """Return the variables of a run: two CPU devices, and programs that compile fast and are kept for the next run.

    Whatever the caller's environment says to XLA gives way, as both runs that are compared need the same.
    """
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def run(name: str, scratch: Path) -> dict[str, Any]:
    """Run a command in a fresh work directory, and return what it leaves there.

    Raises:
      RuntimeError: if it fails; the message has the end of what it printed.
    """
    workdir = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch))
    line = [sys.executable, "-m", "distill_jax", *(COMMANDS | LONG)[name], f"--workdir={workdir}"]
    done = subprocess.run(line, cwd=ROOT, env=environment(scratch), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return outcome(workdir)


def outcome(workdir: Path) -> dict[str, Any]:
    """Return {"report": {file: content}, "nodes": {directory: {file: content}}} of a finished work directory."""
    nodes = {node.name: files(node) for node in sorted((workdir / "nodes").iterdir()) if not node.name.startswith(".")}
    read = (path for path in sorted((workdir / "report").rglob("*.json")) if path.name not in UNREAD)
    pages = {path.name: content(path) for path in read}
    return {"report": pages, "nodes": nodes}


def files(node: Path) -> dict[str, Any]:
    """Return the content of a node's files by their names, and the digests of its weights' leaves."""
    paths = [path for path in sorted(node.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    found = {path.relative_to(node): path for path in paths}
    read = {str(name): content(path) for name, path in found.items() if name.parts[0] not in UNREAD}
    final = node / "checkpoints" / "final"
    return read | ({"weights": weights(final)} if final.is_dir() else {})


def content(path: Path) -> Any:
    """Return a JSON file's value without what is DROPPED, or any other file's SHA-256."""
    data = path.read_bytes().replace(str(ROOT).encode(), b".")  # configs name shipped files by their whole path
    if path.suffix != ".json":
        return hashlib.sha256(data).hexdigest()
    value = json.loads(data)
    dropped = DROPPED.get(path.name, DROPPED.get(path.parent.name, ()))
    return {key: of for key, of in value.items() if key not in dropped} if isinstance(value, dict) else value


def weights(final: Path) -> dict[str, str]:
    """Return dtype, shape and SHA-256 of every leaf of a checkpoint."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(final).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree, is_leaf=_is_leaf)
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(final, restore_args=whole))
    return {
        jax.tree_util.keystr(where): f"{x.dtype}{list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()}"
        for where, x in leaves
    }


def _is_leaf(node: Any) -> bool:
    return hasattr(node, "shape")


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield what differs between two outcomes, new identities first; nodes are compared under their new names too."""
    renamed = dict(_renamed(set(before["nodes"]), set(now["nodes"])))
    yield from (f"nodes/{old} is now {new}" for old, new in renamed.items())
    kept = {renamed.get(name, name): node for name, node in before["nodes"].items()}
    for name in sorted(kept.keys() | now["nodes"].keys()):
        yield from _compare(f"nodes/{name}", kept.get(name), now["nodes"].get(name))
    yield from _compare("report", before["report"], now["report"])


def _renamed(before: set[str], now: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (old, new) of nodes that have another identity, where their stage's name leaves no doubt."""
    for old in sorted(before - now):
        stage = old.rpartition("-")[0]
        gone, new = ([n for n in some if n.rpartition("-")[0] == stage] for some in (before - now, now - before))
        if len(gone) == len(new) == 1:
            yield old, new[0]


def _compare(where: str, before: Any, now: Any) -> Iterator[str]:
    """Yield a line for each file of a directory that differs, with the keys at which it does."""
    if before is None or now is None:
        yield f"{where}: {'new' if before is None else 'gone'}"
        return
    for file in sorted(before.keys() | now.keys()):
        if found := list(_unequal("", before.get(file), now.get(file))):
            (key, old, new), more = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            yield f"{where}/{file}: {key}{' ' if key else ''}{_short(old)} != {_short(new)}{more}"


def _unequal(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    dot = f"{key}." if key else ""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in sorted(before.keys() | now.keys()):
            yield from _unequal(f"{dot}{part}", before.get(part, "nothing"), now.get(part, "nothing"))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _unequal(f"{dot}{i}", *pair)
    elif json.dumps(before) != json.dumps(now):  # NaN equals itself, and 1 is not 1.0
        yield key, before, now


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check(name: str, record: Path | None, against: Path | None, scratch: Path) -> bool:
    """Run a name, record or compare it, print one line and what differs; return whether all is well."""
    began, before = time.monotonic(), _processor_seconds()
    kept = json.loads((against / f"{name}.json").read_text()) if against else None
    try:
        now = run(name, scratch)
    except RuntimeError as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return False
    if record:
        record.mkdir(parents=True, exist_ok=True)
        (record / f"{name}.json").write_text(json.dumps(now, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    found = list(differences(kept, now)) if kept else []
    verdict = f"{len(found)} differences" if found else "same" if kept else f"recorded, {len(now['nodes'])} nodes"
    spent = f"{time.monotonic() - began:.0f} s, {_processor_seconds() - before:.0f} s of processor time"
    print(f"{name}: {verdict}  ({spent})", flush=True)
    print(*(f"  {line}\n" for line in found[:SHOWN]), sep="", end="", flush=True)
    return not found


def _processor_seconds() -> float:
    """Return what finished child processes have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    """Record or compare the named runs, all short ones if none is named; return 1 if any differs or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="DIR", help="write NAME.json of each run there")
    what.add_argument("--against", type=Path, metavar="DIR", help="compare each run with its NAME.json there")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where runs work; kept (default: a temporary one)")
    parser.add_argument("--all", action="store_true", help="also what takes minutes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(COMMANDS | LONG)}")
    given = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # orbax, which reads weights, brings JAX
    names = given.names or [*COMMANDS, *(LONG if given.all else ())]
    for name in names:
        if name not in COMMANDS | LONG:
            parser.error(f"no run {name!r}; there are {', '.join(COMMANDS | LONG)}")
        if given.against and not (given.against / f"{name}.json").is_file():
            parser.error(f"{given.against}: has no recording {name}.json; make it with --record")
    with tempfile.TemporaryDirectory(prefix="net-") as temporary:
        scratch = (given.scratch or Path(temporary)).absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        return int(not all([check(name, given.record, given.against, scratch) for name in names]))


if __name__ == "__main__":
    sys.exit(main())
