"""Ray places the units of a sweep: each is a task that starts once the tasks it needs have ended.

A task runs this program's own worker in a process of its own. What means "start me again" (SIGTERM on a node that is
taken away, a node that is lost) Ray does, on whatever node has room; any other end is the unit's and of those after it.

A unit on a TPU slice of several hosts is a task that holds the slice's head, a resource of which Ray gives one to the
first host of each slice. It starts one more task on every host that Ray labels with the slice's name, and their
processes find each other as those of `distill-jax run` do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_jax import console
from distill_jax.config import ConfigError
from distill_jax.exit_codes import ExitCode, ended
from distill_jax.experiment import workers
from distill_jax.perf.gpus import ray_name

if TYPE_CHECKING:  # a Ray worker imports this file, and needs no JAX: the process that it starts has its own
    from distill_jax.experiment.work_units import Resources, WorkUnit

RETRIES = 20  # of a unit, as --max-restarts of the launchers
RAY_GENERATIONS = {"v5e": "v5litepod", "tpu7x": "v7x"}  # where Ray has other names than perf/slices.tsv
SLICE_NAME, WORKER_ID = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id"  # Ray's labels of a TPU's host
HOST_SECONDS = 30.0  # until it is looked again whether all hosts of a slice are there
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
    again = {"max_retries": RETRIES, "retry_exceptions": [StartAgain], "max_calls": 1}
    on_host, on_slice = ray.remote(**again)(run_unit), ray.remote(**again)(run_on_slice)
    refs: dict[str, Any] = {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for unit in (unit for unit in units if not unit.done):
        needed = unit.resources
        options, each = ray_options(needed), host_options(needed)
        if not (any(_has(node, options) for node in nodes) and sum(_has(node, each) for node in nodes) >= needed.hosts):
            console.complain(f"unit {unit.name} waits for a node with {needed}: the cluster has none now")
        after = [refs[name] for name in unit.needs if name in refs]
        worker = [*command, f"--unit={unit.name}"]
        place: tuple[Any, ...] = (needed.hosts, each) if needed.hosts > 1 else (not (needed.gpus or needed.slice),)
        task = (on_slice if needed.hosts > 1 else on_host).options(name=f"{unit.name} {unit.stages}", **options)
        refs[unit.name] = task.remote(unit.name, worker, os.getcwd(), *place, *after)
    return {refs[unit.name]: unit for unit in units if unit.name in refs}


def ray_options(resources: Resources) -> dict[str, Any]:
    """Return the options of the Ray task of a unit; of one on several hosts, it holds the slice's head alone."""
    head: dict[str, float] = {}
    if where := resources.slice:
        generation = RAY_GENERATIONS.get(where.generation, where.generation)
        head = {f"TPU-{generation}-{where.name.rpartition('-')[2]}-head": 1}
    if resources.hosts > 1:
        return {"num_cpus": 0, "num_gpus": 0, "memory": 0, "resources": head}
    each = host_options(resources)
    return {**each, "resources": {**each["resources"], **head}}


def host_options(resources: Resources) -> dict[str, Any]:
    """Return the options of a Ray task that runs a unit's process on one host."""
    hosts = resources.hosts
    tpu = {"TPU": resources.slice.chips // hosts} if resources.slice else {}
    memory = -(-resources.memory // hosts)
    kind = {"accelerator_type": ray_name(resources.gpu)} if resources.gpus and resources.gpu else {}
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": memory, "resources": tpu, **kind}


def _has(node: Mapping[str, float], options: Mapping[str, Any]) -> bool:
    needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    needed |= {f"accelerator_type:{options[name]}": 0.001 for name in ("accelerator_type",) if name in options}
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


def run_on_slice(
    unit: str, command: Sequence[str], directory: str, hosts: int, options: Mapping[str, Any], *_: object
) -> None:
    """Run a unit's processes, one on every host of the slice whose head Ray gave this task, and wait for them.

    Args:
      hosts: that the slice has.
      options: of the Ray task on each host.

    Raises:
      StartAgain, UnitFailed: by the workers' exit codes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = _hosts_of_slice(ray, hosts)
    with socket.create_server(("", 0)) as free:
        coordinator = f"{nodes[0]['NodeManagerAddress']}:{free.getsockname()[1]}"
    task = ray.remote(max_retries=0, max_calls=1)(run_unit)
    refs = []
    for i, node in enumerate(nodes):
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        placed = task.options(name=f"{unit} host {i}", scheduling_strategy=place, **options)
        joining = [f"--coordinator={coordinator}", f"--processes={hosts}", f"--process={i}"]
        refs.append(placed.remote(unit, [*command, *joining], directory, False))
    _wait_together(ray, unit, refs)


def _hosts_of_slice(ray: Any, count: int) -> list[dict[str, Any]]:
    """Return the nodes of the slice that this one is of, this one first, and then by their numbers.

    Raises:
      StartAgain: if not all of them are there.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    (own,) = (node for node in alive if node["NodeID"] == ray.get_runtime_context().get_node_id())
    name = own["Labels"].get(SLICE_NAME)
    hosts = [node for node in alive if node is own or (name and node["Labels"].get(SLICE_NAME) == name)]
    if len(hosts) != count:
        time.sleep(HOST_SECONDS)
        raise StartAgain(f"the slice {name} has {len(hosts)} of its {count} hosts")
    return sorted(hosts, key=lambda node: (node is not own, int(node["Labels"].get(WORKER_ID, 0))))


def _wait_together(ray: Any, unit: str, refs: Sequence[Any]) -> None:
    """Wait for the processes of a unit; one that fails for good stops the others.

    Raises:
      StartAgain, UnitFailed: the latter if starting all of them again would not help.
    """
    left, failed, lost = list(refs), list[UnitFailed](), ""
    while left:
        (ref, *_), left = ray.wait(left, num_returns=1)
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UnitFailed) and error.cause.code > 0:  # and not by a signal
                failed.append(error.cause)
                for other in left:
                    ray.cancel(other)
            lost = lost or str(error.cause)
        except ray.exceptions.RayError as error:
            lost = lost or str(error).splitlines()[0]
    if failed:
        raise failed[0]
    if lost:
        raise StartAgain(f"unit {unit} lost one of its processes: {lost}")


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
