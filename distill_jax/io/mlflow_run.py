"""A node as a run of MLflow: on the server that MLFLOW_TRACKING_URI names, or in files below the work directory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from distill_jax.io.storage import is_local
from distill_jax.io.trackers import DIRECTORY, TrackedNode
from distill_jax.types import JsonObject

ENVIRONMENT = {  # unless it says otherwise
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of seven, for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
TAG = "distill_jax.identity"
LONGEST = 500  # of a parameter's value
MOST = 100  # parameters in a request, and metrics held back
SECONDS = 5.0  # until what is held back is sent


class MlflowRun:
    """A run of MLflow."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._held: list[Metric] = []
        self._sent = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""
        now = int(time.time() * 1000)
        self._held += [Metric(key(name), value, now, step) for name, value in values.items()]
        if len(self._held) >= MOST or time.monotonic() - self._sent > SECONDS:
            self._send()

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        """Write what the node cost, and end."""
        self.log(0, summary)
        self._send()
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _send(self) -> None:
        while self._held:
            self._client.log_batch(self._run_id, metrics=self._held[:MOST])
            del self._held[:MOST]
        self._sent = time.monotonic()


def key(name: str) -> str:
    """Return a name as MLflow takes it: lr=0.1,seed=0 is lr:0.1 seed:0."""
    return name.replace("=", ":").replace(",", " ").replace("+", "")


def open_run(node: TrackedNode) -> MlflowRun:
    """Begin a node's run, or go on with it.

    Raises:
      Exception: of MLflow, if it cannot.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri and not is_local(node.workdir):
        raise RuntimeError("it writes to no bucket: name a server by MLFLOW_TRACKING_URI")
    uri = uri or (node.workdir.absolute() / DIRECTORY / "mlflow").as_uri()
    client, group = MlflowClient(tracking_uri=uri), f"distill-jax {node.workdir}"
    experiment = client.get_experiment_by_name(group)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(group)
    found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{node.identity}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return MlflowRun(client, found[0].info.run_id)
    run_id = client.create_run(experiment_id, tags={TAG: node.identity}, run_name=node.run).info.run_id
    params = [Param(name[:250], value[:LONGEST]) for name, value in _parameters(node.config()).items()]
    for first in range(0, len(params), MOST):
        client.log_batch(run_id, params=params[first : first + MOST])
    return MlflowRun(client, run_id)


def _parameters(config: JsonObject, prefix: str = "") -> dict[str, str]:
    """Return the settings by their names, those of sections as SECTION.NAME."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _parameters(dict(value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
