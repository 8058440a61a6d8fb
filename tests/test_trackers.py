"""Trackers: what W&B and MLflow got, offline, is what metrics.jsonl has; and none of them ever stops a run."""

from __future__ import annotations

import json
import struct
import threading
import time

import pytest

from distill_jax.config import ConfigError, Interrupted
from distill_jax.experiment import graph
from distill_jax.io import trackers
from distill_jax.io.files import write_json
from distill_jax.io.trackers import TrackedNode, check_trackers, tracking
from distill_jax.stages.context import RunSettings
from tests.test_driver import Say, nodes, stop_at, train

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, no telemetry, nobody's keys."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HOME": str(tmp_path),
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_X_DISABLE_META": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def records(path):
    """Yield the records of a run that W&B wrote offline: a LevelDB log of protocol buffers behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, block, whole = path.read_bytes(), 32768, b""
    assert data[:4] == b":W&B"
    at = 7
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def of_wandb(workdir):
    """Return {run id: ({config}, {(name, step): value}, {summary})} and the groups of all runs."""
    import wandb

    wandb.teardown()  # as a process does at its end: what is finished is written by another one
    runs, groups = {}, set()
    for path in sorted((workdir / "trackers/wandb").glob("offline-run-*/*.wandb")):
        config, rows, summary = runs.setdefault(path.stem.removeprefix("run-"), ({}, {}, {}))
        for record in records(path):
            if record.HasField("run"):
                groups.add((record.run.project, record.run.run_group, record.run.display_name))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                rows |= {(k, values["step"]): v for k, v in values.items() if not k.startswith("_") and k != "step"}
            if record.HasField("summary"):
                summary |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    return runs, groups


def of_mlflow(workdir):
    """Return {run name: ({parameters}, {(name, step): value}, status)} of all runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(workdir / "trackers/mlflow").as_uri())
    found = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            names = [name for name in run.data.metrics if not name.startswith("ledger/")]
            history = [one for name in names for one in client.get_metric_history(run.info.run_id, name)]
            rows = {(one.key, one.step): one.value for one in history}
            assert run.info.run_name not in found, "a run that continues is one run"
            found[run.info.run_name] = (run.data.params, rows, run.info.status, run.data.metrics)
    return found


def rows_of(node):
    """Return {(name, step): value} of a node's metrics, named as TensorBoard has them."""
    rows = [json.loads(line) for line in (node.directory / "metrics.jsonl").read_text().splitlines()]
    named = [(f"{r['kind']}/{k}/{r['member']}", r["step"], v) for r in rows for k, v in r.items()]
    return {(name, step): v for name, step, v in named if isinstance(v, float)}


def tracked(owners, workdir):
    unique = {node.name: node for node in owners}.values()
    return [TrackedNode(node.name, f"{node.name}-0123", workdir, node.directory) for node in unique]


def compute(owners, workdir, names, say):
    with tracking(names, tracked(owners, workdir), say) as there:
        train(owners, trackers=there)
        for node in {node.name: node for node in owners}.values():
            write_json(node.directory / "ledger.json", {"flops": {"student": 3.5}, "seconds": 2, "peak": None})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_the_metrics_of_a_run_that_was_stopped_and_went_on(tmp_path, monkeypatch, name):
    """Two nodes in one population, each a run; settings and ledger beside the rows."""
    owners, said, workdir = nodes(tmp_path / "run"), Say(), tmp_path / "run"
    for node in owners:
        write_json(node.directory / "config.json", {"verb": "v", "settings": {"steps": 8}})
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 4)
        compute(owners, workdir, [name], said.say)
    time.sleep(1.1)  # W&B names what is offline by the second
    compute(owners, workdir, [name], said.say)
    assert not said
    by_name = {node.name: node for node in owners}
    if name == "wandb":
        runs, groups = of_wandb(workdir)
        assert groups == {("distill-jax", "run", "a-0123"), ("distill-jax", "run", "b-0123")}
        for one in tracked(owners, workdir):
            config, rows, summary = runs[one.identity]
            assert rows == rows_of(by_name[one.name]) and config["settings"] == {"steps": 8}
            assert summary["ledger/flops/student"] == 3.5 and summary["ledger/seconds"] == 2
        assert len(runs) == 2
    else:
        found = of_mlflow(workdir)
        assert found.keys() == {"a-0123", "b-0123"}
        for one in tracked(owners, workdir):
            params, rows, status, metrics = found[one.run]
            assert rows == rows_of(by_name[one.name]) and params["settings.steps"] == "8"
            assert status == "FINISHED" and metrics["ledger/flops/student"] == 3.5


@pytest.mark.parametrize(
    ("name", "environment", "why"),
    [
        ("wandb", {"WANDB_MODE": "online"}, "there is no API key"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, "127.0.0.1"),
    ],
)
def test_a_tracker_that_fails_says_so_in_a_line_and_the_run_goes_on(tmp_path, monkeypatch, name, environment, why):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    owners, said = nodes(tmp_path / "run", ("a", "a", "a")), Say()
    compute(owners, tmp_path / "run", [name], said.say)
    assert len(said) == 1 and said[0].startswith(f"warning: {name}: ") and why in said[0]
    assert len(rows_of(owners[0])) == 3 * (3 + 4)


def test_a_tracker_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    never, said = threading.Event(), Say()
    module = type("", (), {"open_run": staticmethod(lambda node: never.wait())})
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.1)
    compute(nodes(tmp_path, ("a", "a", "a")), tmp_path, ["wandb"], said.say)
    never.set()
    assert said[0] == "warning: wandb: no answer for 0 s; the run goes on without it"


def test_trackers_that_there_are_not_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"trackers = \('comet',\): choose of wandb, mlflow"):
        RunSettings(trackers=("comet",))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'distill-jax\[wandb\]'"):
        check_trackers(("wandb",))


def test_trackers_change_no_identity(tmp_path):
    from distill_jax.experiment.config_file import load_experiment
    from distill_jax.experiment.named_config import change, open_config

    def names(settings):
        named = open_config("arithmetic:smoke")
        change(named.config, settings)
        return [n.directory for n in graph.build(load_experiment(named.module, named.config), tmp_path).values()]

    assert names({"run.trackers": ("wandb", "mlflow")}) == names({})
