"""Ray places the units of a sweep: each is a task that starts once the tasks it needs have ended.

A task runs this program's own worker in a process of its own. What means "start me again" (SIGTERM on a node that is
taken away, a node that is lost) Ray does, on whatever node has room; any other end is the unit's and of those after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_jax import console
from distill_jax.config import ConfigError
from distill_jax.exit_codes import ExitCode, ended
from distill_jax.experiment import workers

if TYPE_CHECKING:  # a Ray worker imports this file, and needs no JAX: the process that it starts has its own
    from distill_jax.experiment.work_units import Resources, WorkUnit

RETRIES = 20  # of a unit, as --max-restarts of the launchers
RAY_GENERATIONS = {"v5e": "v5litepod", "tpu7x": "v7x"}  # where Ray has other names than perf/slices.tsv
_SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class StartAgain(Exception):
    """A worker saved and left, or found that another has its nodes: the same command continues."""


class UnitFailed(Exception):
    """A worker ended with a code that starting it again would not change."""

    def __init__(self, unit: str, code: int) -> None:
        super().__init__(unit, code)  # what it is pickled as
        self.unit, self.code = unit, code


def run(units: Sequence[WorkUnit], command: Sequence[str], address: str) -> int:
    """Compute units on a Ray cluster and return one exit code for all.

    Args:
      command: of a worker, without --unit.
      address: of the cluster: "auto", HOST:PORT, ray://HOST:PORT, or "local" to start one on this machine.

    Raises:
      ConfigError: if there is no ray, or no cluster at the address.
    """
    ray = _connected(address)
    refs: dict[Any, WorkUnit] = {}
    try:
        refs = _submitted(ray, units, command)
        return _followed(ray, refs)
    except BaseException:
        for ref in refs:
            ray.cancel(ref)  # which has a worker save and leave
        ray.wait(list(refs), num_returns=len(refs), timeout=120)
        raise
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here: it tells nobody
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--ray={address}: ray is not installed; pip install 'distill-jax[ray]'") from error
    try:
        context = ray.init(address=address, namespace="distill-jax", log_to_driver=True)
    except (ConnectionError, ValueError) as error:
        fix_hint = "give auto, HOST:PORT, ray://HOST:PORT or local"
        raise ConfigError(f"--ray={address}: {str(error).splitlines()[0]}; {fix_hint}") from error
    url = getattr(context, "dashboard_url", "")
    print(f"Ray's dashboard: http://{url}" if url else "Ray's dashboard is off", flush=True)
    return ray


def _submitted(ray: Any, units: Sequence[WorkUnit], command: Sequence[str]) -> dict[Any, WorkUnit]:
    """Submit all units that are not done; return their references."""
    task = ray.remote(max_retries=RETRIES, retry_exceptions=[StartAgain], max_calls=1)(run_unit)
    refs: dict[str, Any] = {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for unit in (unit for unit in units if not unit.done):
        options = ray_options(unit.resources)
        if not any(_has(node, options) for node in nodes):
            console.complain(f"unit {unit.name} waits for a node with {unit.resources}: the cluster has none now")
        after = [refs[name] for name in unit.needs if name in refs]
        name = f"{unit.name} {unit.stages}"
        on_cpu = not (unit.resources.gpus or unit.resources.slice)
        worker = [*command, f"--unit={unit.name}"]
        refs[unit.name] = task.options(name=name, **options).remote(unit.name, worker, os.getcwd(), on_cpu, *after)
    return {refs[unit.name]: unit for unit in units if unit.name in refs}


def ray_options(resources: Resources) -> dict[str, Any]:
    """Return the options of a Ray task that needs these resources."""
    tpu: dict[str, float] = {}
    if where := resources.slice:
        generation = RAY_GENERATIONS.get(where.generation, where.generation)
        # The head is what tells slices apart, of which Ray gives one to the first host of each.
        tpu = {"TPU": where.chips, f"TPU-{generation}-{where.name.rpartition('-')[2]}-head": 1}
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": resources.memory, "resources": tpu}


def _has(node: Mapping[str, float], options: Mapping[str, Any]) -> bool:
    needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    return all(node.get(name, 0) >= count for name, count in needed.items())


def run_unit(unit: str, command: Sequence[str], directory: str, on_cpu: bool, *_: object) -> None:
    """Run a unit's worker on the node where Ray calls this, and wait for it.

    Args:
      directory: where the sweep was started; every node must have it.
      _: results of the tasks that must end before.

    Raises:
      StartAgain, UnitFailed: by the worker's exit code.
    """
    environment = {**os.environ, workers.COUNT: "1"} | ({"JAX_PLATFORMS": "cpu"} if on_cpu else {})
    line = [sys.executable, "-m", "distill_jax", *command]
    worker = subprocess.Popen(line, cwd=directory, env=environment, preexec_fn=_leave_with_parent)
    try:
        code = worker.wait()
    finally:  # Ray cancels a task by an interrupt
        if worker.poll() is None:
            worker.terminate()
            worker.wait()
    if code in (ExitCode.SAVED, ExitCode.LEASE_LOST, -signal.SIGTERM):
        raise StartAgain(f"unit {unit} {ended(code)}")
    if code:
        raise UnitFailed(unit, code)


def _leave_with_parent() -> None:
    """Have the kernel send SIGTERM, on which a worker saves and leaves, when Ray's process is gone."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _followed(ray: Any, refs: Mapping[Any, WorkUnit]) -> int:
    """Wait for all tasks, say how each ended, and return one exit code for all."""
    left, codes = list(refs), []
    while left:
        (ref, *_), left = ray.wait(left, num_returns=1)
        unit = refs[ref]
        try:
            ray.get(ref)
            print(f"unit {unit.name} ({unit.stages}): done", flush=True)
        except ray.exceptions.RayTaskError as error:
            codes.append(_failed(unit, error.cause))
        except ray.exceptions.RayError as error:
            console.complain(f"unit {unit.name} ({unit.stages}) was lost: {str(error).splitlines()[0]}")
            codes.append(-signal.SIGKILL)
    return workers.combined(codes) if codes else ExitCode.DONE


def _failed(unit: WorkUnit, cause: Exception) -> int:
    if not isinstance(cause, UnitFailed):
        console.complain(f"unit {unit.name} ({unit.stages}): {cause}")
        return ExitCode.SAVED if isinstance(cause, StartAgain) else ExitCode.BUG
    if cause.unit == unit.name:
        console.complain(f"unit {unit.name} ({unit.stages}) {ended(cause.code)}")
    else:
        console.complain(f"unit {unit.name} ({unit.stages}) was not started, for unit {cause.unit} failed")
    return cause.code
