"""Units of a sweep: what they hold, wait for and need, and what becomes of one by its worker's exit code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from distill_jax import axis, main, product, select_stages
from distill_jax.config import ConfigError
from distill_jax.experiment import sweep_graph, work_units
from distill_jax.experiment.config_file import load_module
from distill_jax.experiment.engines import ray_engine
from distill_jax.experiment.work_units import Resources
from distill_jax.perf import slices

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/arithmetic.py"


@pytest.fixture(scope="module")
def sweep():
    """A sweep over seeds and sizes of models, of UNDO and its control."""
    return load(grid())


def load(points, workdir: Path = Path("/nowhere")):
    module = load_module(CONFIG)
    return sweep_graph.load("test", points, module, module.get_config("smoke,full"), workdir)


def grid():
    undo = select_stages(axis("undo.alphas", (0.2, 0.9)), "relearn-undo-0.2", "relearn-undo-0.9", "relearn-student")
    return product(axis("seed", 0, 1), axis("model.hidden", 16, 32), undo)


@pytest.mark.parametrize("max_nodes", [0, 1, 2])
def test_every_node_is_in_one_unit_that_waits_for_all_it_starts_from(sweep, max_nodes):
    units = work_units.work_units(sweep, max_nodes=max_nodes)
    owner = {node: unit.name for unit in units for node in unit.nodes}
    directories = {node.directory.name for shard in sweep.shards for node in shard.nodes.values()}
    assert owner.keys() == directories and sum(len(unit.nodes) for unit in units) == len(directories)
    assert len(units) == len({unit.name for unit in units})
    by_name = {unit.name: unit for unit in units}
    for shard in sweep.shards:
        data = shard.nodes["data"].directory.name
        for node in shard.nodes.values():
            unit = by_name[owner[node.directory.name]]
            assert max_nodes == 0 or len(unit.nodes) <= max_nodes
            sources = {shard.nodes[name].directory.name for name in node.inputs.values()}
            sources |= {data} - {node.directory.name}
            assert {owner[source] for source in sources} <= set(unit.needs)
    assert all(by_name[name].level < unit.level for unit in units for name in unit.needs)
    assert [u.name for u in units if not u.needs] == ["0.0"]  # one data set for both sizes of models


def test_populations_stay_together_and_packs_cut_them(sweep):
    students = [unit.stages for unit in work_units.work_units(sweep) if "undo-0.2" in unit.stages.split(", ")]
    assert len(students) == 4 and all("undo-0.9" in stages for stages in students)  # of two seeds and two sizes
    alone = work_units.work_units(sweep, max_nodes=1)
    assert all(len(unit.nodes) == 1 for unit in alone)


def test_a_unit_needs_what_was_asked_and_the_memory_of_a_step(sweep):
    where = slices.find("v5e-4")
    data, *rest = work_units.work_units(sweep, Resources(4, 0, where))
    assert data.resources == Resources(4)
    assert {unit.resources.slice for unit in rest} == {where}
    two = sorted(unit.resources.memory for unit in rest if unit.stages == "reference × 2")
    alone = sorted(u.resources.memory for u in work_units.work_units(sweep, max_nodes=1) if u.stages == "reference")
    assert len(two) == 2 and len(alone) == 4 and two[0] > alone[0] and two[1] > alone[-1]
    large = select_stages(axis("model.mlp", 2**25), "reference")
    with pytest.raises(ConfigError, match=r"stages\.reference: a step needs at least .* v5e-1 has .*larger --slice"):
        work_units.work_units(load(large), Resources(slice=slices.find("v5e-1")))


@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v6e-4", "v5p-8", "v4-8", "tpu7x-8"])
def test_rays_own_name_of_a_slice_is_asked_for(name):
    tpu = pytest.importorskip("ray._private.accelerators.tpu")
    where = slices.find(name)
    generation = {"v5e": "v5litepod", "tpu7x": "v7x"}.get(where.generation, where.generation)
    pod = tpu.infer_tpu_pod_type_from_topology("x".join(map(str, where.shape)), generation)
    asked = ray_engine.ray_options(Resources(2, 1, where, 10))
    assert asked == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": 10,
        "resources": {"TPU": where.chips, f"TPU-{pod}-head": 1},
    }


def test_a_unit_that_starts_from_what_is_not_there_is_refused(tmp_path):
    sweep = load(select_stages(axis("seed", 0), "reference"), tmp_path)
    with pytest.raises(ConfigError, match=r"--unit=1\.0: \['data'\] is not finished in the work directory"):
        work_units.of_unit(sweep, "1.0")
    with pytest.raises(ConfigError, match=r"--unit=9\.9: the sweep has no such unit"):
        work_units.of_unit(sweep, "9.9")
    (shard,) = work_units.of_unit(sweep, "0.0").shards
    assert list(shard.nodes) == ["data"]


@pytest.mark.parametrize(("code", "again"), [(42, True), (75, True), (2, False), (1, False)])
def test_only_what_asks_for_it_is_started_again(tmp_path, monkeypatch, code, again):
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" $JAX_PLATFORMS >said\nexit {code}\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ray_engine.StartAgain if again else ray_engine.UnitFailed) as raised:
        ray_engine.run_unit("1.0", ["sweep", "--sweep=x", "--unit=1.0"], str(tmp_path), True)
    assert (tmp_path / "said").read_text() == "-m distill_jax sweep --sweep=x --unit=1.0 cpu\n"
    assert again or raised.value.code == code


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ray=local", "--slice=2xv5e-16"], "--slice=2xv5e-16: a population takes one slice"),
        (["--ray=local", "--slice=auto"], "--slice=auto: a population takes one slice"),
        (["--coordinator=h:1", "--processes=2"], "give the --unit that these compute together"),
        (["--ray=local", "--slice=v5e-3"], "--slice=v5e-3: no such slice"),
        (["--ray=local", "--workers=2"], "give one of them"),
        (["--ray=local", "--slurm="], "give one of them"),
        (["--slice=v5e-8"], "--slice=v5e-8: only --ray and --jobset read it"),
        (["--slurm=", "--slice=v5e-8"], "--slice=v5e-8: only --ray and --jobset read it"),
        (["--workers=2", "--cpus=4"], "--cpus=4: only --ray and --slurm read it"),
        (["--jobset=", "--gpus=1"], "--gpus=1: only --ray and --slurm read it"),
        (["--ray=local", "--gpus=h100-81gb"], "--gpus=h100-81gb: no such type; give a number, or one of t4, v100,"),
        (["--ray=local", "--gpus=h100", "--slice=v5e"], "--gpus=h100 --slice=v5e: a population is on one kind"),
        (["--unit=7.7"], "--unit=7.7: the sweep has no such unit"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_a_line(tmp_path, capsys, flags, says):
    sweep = f"--sweep={ROOT}/configs/sweeps/undo_arithmetic.py:smoke"
    assert main.main(["distill-jax", "sweep", sweep, f"--workdir={tmp_path}/x", *flags]) == 2
    out, err = capsys.readouterr()
    assert says in err and len(err.splitlines()) <= 2 and out == ""
    assert not (tmp_path / "x").exists()


def test_a_dry_run_lists_the_units(tmp_path, capsys):
    sweep = f"--sweep={ROOT}/configs/sweeps/undo_arithmetic.py:smoke"
    flags = [sweep, f"--workdir={tmp_path}/x", "--ray=auto", "--slice=v6e-8", "--dry-run"]
    assert main.main(["distill-jax", "sweep", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.0    data: 1 CPU"
    assert any(re.fullmatch(r"1\.0    reference × 2: 1 CPU, v6e-8, 0\.[1-9] MiB, after 0\.0", line) for line in lines)
    assert not (tmp_path / "x").exists()
