"""A stage that a user writes in a config file, outside the package, is as good as any other."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from distill_jax.config import ConfigError, Interrupted
from distill_jax.experiment import graph, sweep_graph
from distill_jax.experiment.compile_process import Request, pickled
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.lowered_group import Lowering
from distill_jax.experiment.sweep_points import axis
from distill_jax.io.metrics import Progress
from distill_jax.sharding import distributed
from distill_jax.stages.context import Context
from tests.programs import with_data

ROOT = Path(__file__).parents[1]
CONFIG = f'''
"""Fine-tuning that keeps the embedding small."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from distill_jax.experiment.compile_process import Request, pickled
from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.experiment import Experiment
from distill_jax.experiment.section import section
from distill_jax.perf import flops
from distill_jax.stages import Pretrain, stage_input
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.train_stage import AdaptingStage
from distill_jax.train.step import Term

arithmetic = load_module("{ROOT}/configs/arithmetic.py")


@dataclasses.dataclass(frozen=True)
class Small(NextToken):
    pull: float = 0.1

    def loss_terms(self, cfg, chunk, params, batch, teacher_outputs=None):
        terms = super().loss_terms(cfg, chunk, params, batch)
        return terms | {{"size": Term(self.pull, jnp.sum(params["embedding"] ** 2), jnp.float32(1))}}


@dataclasses.dataclass(frozen=True)
class Polish(AdaptingStage):
    start: str = stage_input()
    data: str = "retain"
    pull: float = 0.1

    kind: ClassVar[str] = "polish"

    def objective(self):
        return Small(self.loss_on, self.pull)

    def per_member_fields(self):
        return ("seed", "learning_rate")

    def reads(self):
        return self.data

    def step_flops(self, ctx):
        return {{"student": flops.train_step(ctx.model, self.batch, ctx.row_length)}}


def get_config(arg=""):
    c = arithmetic.get_config("smoke")
    c.data.multiplication_max = 3
    c.polish = section(Polish, steps=6, batch=4, warmup=0, checkpoint_every=2, evaluate_every=3, log_every=1)
    return c


def get_experiment(c):
    polished = {{f"polished-{{i}}": Polish(start="reference", **c.polish, seed=i) for i in range(2)}}
    return Experiment(stages={{"reference": Pretrain(**c.reference, seed=c.seed), **polished}})
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Any:
    """Return the module of a config with a stage of its own."""
    path = tmp_path_factory.mktemp("own") / "polish.py"
    path.write_text(CONFIG)
    return load_module(path)


@pytest.mark.unit
def test_it_packs_plans_and_sweeps(own, tmp_path):
    config = own.get_config()
    experiment = load_experiment(own, config)
    nodes = graph.build(experiment, tmp_path)
    group = [nodes["polished-0"], nodes["polished-1"]]
    assert group in graph.pack(list(nodes.values())) and group[0].peers == 2
    ctx = Context(experiment.model, nodes, Path(), Progress(0, 0.0, 0.0, None), experiment.run)
    (work,) = Lowering(ctx, jax.devices()[:1])(group)
    assert work.members == 2 and work.flops == 2 * group[0].settings.step_flops(ctx)["student"]
    swept = sweep_graph.load("pulls", axis("polish.pull", 0.0, 0.1), own, config, tmp_path)
    polished = [n for n in swept.shards[0].nodes.values() if n.verb == "polish"]
    assert len({n.identity for n in polished}) == 4 and {n.peers for n in polished} == {2}
    assert "polish" in sweep_graph.preview(swept)


LOWER = """
import pickle, sys, jax
from pathlib import Path
from distill_jax.experiment.lowered_group import group_step
from distill_jax.io.metrics import Progress
from distill_jax.stages.context import Context
request = pickle.loads(Path(sys.argv[1]).read_bytes())
ctx = Context(request.model, request.nodes, Path(), Progress(0, 0.0, 0.0, None), request.run)
step = group_step(ctx, [ctx.nodes[name] for name in request.stages], jax.devices()[:1]).with_remat(request.remat)
print(step.trace().lower().as_text())
"""


@pytest.mark.unit
def test_a_process_that_compiles_it_for_a_plan_lowers_the_same_program(own, tmp_path):
    experiment = load_experiment(own, own.get_config())
    nodes = graph.build(experiment, tmp_path)
    ctx = Context(experiment.model, nodes, Path(), Progress(0, 0.0, 0.0, None), experiment.run)
    (work,) = Lowering(ctx, jax.devices()[:1])([nodes["polished-0"], nodes["polished-1"]])
    stages = [node.name for node in work.nodes]
    request = Request(experiment.model, nodes, experiment.run, stages, work.remat, "v5e-4", "")
    (tmp_path / "request").write_bytes(pickled(request))
    line = [sys.executable, "-c", LOWER, str(tmp_path / "request")]
    apart = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert apart.stdout.strip() == work.lowered.as_text().strip()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("data", "korean", "polish.data = 'korean': these data have no such set"),
        ("batch", 0, "stages.*batch = 0: must be at least 1|batch = 0: must be at least 1"),
        ("pull", float("nan"), "stages.polished-0.pull = nan: must be finite"),
    ],
)
def test_its_settings_are_checked(own, setting, value, says):
    config = own.get_config()
    config.polish[setting] = value
    with pytest.raises(ConfigError, match=says):
        load_experiment(own, config)


@pytest.mark.unit
def test_a_difference_that_no_member_heeds_is_refused(own, tmp_path, monkeypatch):
    """Each would train as the first one does, under an identity of its own."""
    monkeypatch.setattr(own.Polish, "per_member_fields", lambda self: ("seed", "learning_rate", "pull"))
    experiment = load_experiment(own, own.get_config())
    other = dataclasses.replace(experiment.stages["polished-1"], pull=10.0)
    differing = dataclasses.replace(experiment, stages={**experiment.stages, "polished-1": other})
    nodes = graph.build(differing, tmp_path)
    ctx = Context(differing.model, nodes, Path(), Progress(0, 0.0, 0.0, None), differing.run)
    with pytest.raises(ConfigError, match=r"stages.polished-0.pull: members differ in it and not in member_coeff"):
        other.train_job(ctx, [nodes["polished-0"], nodes["polished-1"]])


@pytest.mark.unit
def test_a_stage_that_is_called_nothing_is_refused(own, monkeypatch):
    monkeypatch.setattr(own.Polish, "kind", "")
    with pytest.raises(ConfigError, match="Polish has no kind"):
        load_experiment(own, own.get_config())


def metrics(nodes: dict[str, Any]) -> list[list[str]]:
    """Return each node's rows in a fixed order: a step's losses are written when the next step is under way."""
    return [sorted((nodes[f"polished-{i}"].directory / "metrics.jsonl").read_text().splitlines()) for i in range(2)]


@pytest.mark.end_to_end
def test_it_trains_and_resumes(own, tmp_path, monkeypatch, tmp_path_factory):
    """Stopped between two steps and continued, it leaves the very numbers of a run that nobody stopped."""
    experiment = load_experiment(own, own.get_config())

    def run(workdir: Path, *names: str) -> dict[str, Any]:
        nodes = graph.build(experiment, workdir)
        wanted = graph.lineage(names, nodes) if names else nodes
        graph.execute(wanted, experiment.model, experiment.run, io.StringIO())
        return nodes

    run(with_data(tmp_path_factory, tmp_path / "whole"), "reference")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    whole = run(tmp_path / "whole")
    asked = iter([False] * 3 + [True] * 100)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(distributed, "preempted", lambda: next(asked))
        run(tmp_path / "stopped")
    stopped = run(tmp_path / "stopped")
    assert metrics(whole) == metrics(stopped)
    rows = map(json.loads, metrics(whole)[0])
    sizes = [size for _, size in sorted((row["step"], row["size"]) for row in rows if row["kind"] == "train")]
    assert len(sizes) == 6 and sizes[-1] < sizes[0]  # the pull is the objective's
