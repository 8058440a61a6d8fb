"""Sweeps: points, what they share, who computes what, what it cost, and what is concluded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jax
import pytest

from distill_jax import axis, chain, main, product, select_stages, zipped
from distill_jax.config import ConfigError
from distill_jax.experiment import graph, sweep_graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.io import attempts
from distill_jax.io.files import write_sealed
from distill_jax.io.leases import Leases
from distill_jax.io.metrics import Progress
from distill_jax.perf import memory
from distill_jax.perf.clock import Lap
from distill_jax.perf.ledger import ledger
from distill_jax.reports import sweep_summary
from distill_jax.stages.context import Context

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/arithmetic.py"
SWEEP = ROOT / "configs/sweeps/undo_arithmetic.py"


def load(points: list[dict[str, Any]], workdir: Path = Path("/nowhere"), presets: str = "smoke,full"):
    module = load_module(CONFIG)
    return sweep_graph.load("test", points, module, module.get_config(presets), workdir)


def nodes_of(sweep) -> dict[str, Any]:
    (world,) = sweep.shards
    return world.nodes


def stages(sweep) -> list[str]:
    return [node.stage for node in nodes_of(sweep).values()]


# Points


def test_points_are_put_together():
    a, b = axis("a", 1, 2), axis("b", 3, 4)
    assert product(a, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert zipped(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(a, b) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]
    assert select_stages(select_stages(a, "x"), "y") == [{"a": 1, "stages": ("x", "y")}, {"a": 2, "stages": ("x", "y")}]
    assert product() == [{}] and chain() == []


def test_points_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"axes of \[2, 3\] points"):
        zipped(axis("a", 1, 2), axis("b", 1, 2, 3))
    with pytest.raises(ConfigError, match="a is set by two axes"):
        product(axis("a", 1, 2), axis("a", 3))


def test_one_point_of_very_many_is_looked_at_alone(monkeypatch, tmp_path, capsys):
    """A job of an array says what it would run; the graphs of all others are none of its business."""
    built = []
    build = graph.build
    monkeypatch.setattr(graph, "build", lambda *given: built.append(given) or build(*given))
    points = "product(axis('seed', *range(300)), axis('undo.beta', *range(300)))"
    text = f"def get_sweep(arg):\n    return {str(CONFIG) + ':smoke'!r}, {points}\n"
    (tmp_path / "many.py").write_text(f"from distill_jax import axis, product\n{text}")
    sweep = ["distill-jax", "sweep", f"--sweep={tmp_path}/many.py", f"--workdir={tmp_path}/run"]
    assert main.main([*sweep, "--count"]) == 0 and main.main([*sweep, "--index=89999", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("90000\n") and "1 points" in out and len(built) == 1
    assert main.main([*sweep, "--index=90000", "--dry-run"]) == 2
    assert "--index=90000: the sweep has points 0 to 89999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([], "no points"),
        (axis("undo.bta", 0.1), "undo.bta: no such setting .did you mean 'beta'"),
        (axis("undo.beta.x", 0.1), "undo.beta.x: no such setting"),
        (axis("distill.steps", "many"), "distill.steps = 'many'"),
        (axis("undo.alphas", (1.5,)), r"undo.alphas = \(1.5,\): the damaged fraction"),
        (select_stages(axis("seed", 1), "relearn-undo-0.3"), "'relearn-undo-0.3': no such stage .did you mean"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(points, says):
    with pytest.raises(ConfigError, match=says):
        load(points)


# Sharing


def grid(alphas=4, betas=3, methods=("maxent", "graddiff", "rmu"), seeds=5) -> list[dict[str, Any]]:
    undo = chain(
        *(select_stages(axis("undo.alphas", (a / 10,)), f"relearn-undo-{a / 10}") for a in range(1, alphas + 1))
    )
    beta = axis("undo.beta", *(b / 10 for b in range(betas)))
    return product(axis("seed", *range(seeds)), axis("undo.method", *methods), beta, undo)


def test_equal_nodes_of_a_sweep_are_one():
    sweep = load(grid())
    found = stages(sweep)
    assert len(sweep.points) == 4 * 3 * 3 * 5
    assert found.count("reference") == 5 and found.count("oracle") == 0 and found.count("data") == 1
    assert [found.count(method) for method in ("maxent", "graddiff", "rmu")] == [5, 5, 5]
    undo = [name for name in found if name.startswith("undo-")]
    assert len(undo) == 180 and sum(name.startswith("relearn-") for name in found) == 180
    # Behind one teacher, 4 α × 3 β train as one population.
    assert {len(group) for group in graph.pack([n for n in nodes_of(sweep).values() if n.verb == "distill"])} == {12}
    assert all(node.peers == 12 for node in nodes_of(sweep).values() if node.verb == "distill")
    assert {node.peers for node in nodes_of(sweep).values() if node.stage == "reference"} == {5}


def test_a_sweep_computes_the_very_nodes_that_a_run_would(tmp_path):
    module = load_module(CONFIG)
    run = graph.build(load_experiment(module, module.get_config("smoke,full")), tmp_path)
    swept = nodes_of(load([{}], tmp_path))
    assert {node.directory for node in swept.values()} == {node.directory for node in run.values()}
    assert {n.stage: n.identity for n in swept.values()} == {n.name: n.identity for n in run.values()}
    assert all(source in swept for node in swept.values() for source in node.inputs.values())


def test_a_point_takes_what_it_is_made_from_and_no_more():
    sweep = load(grid(alphas=2, betas=1, seeds=2))
    one = sweep.of_point(3)
    assert stages(one) == ["data", "reference", "graddiff", "damaged-0.2", "undo-0.2", "relearn-undo-0.2"]
    assert one.points == [sweep.points[3]] and set(nodes_of(one)) < set(nodes_of(sweep))
    assert {n.name: n.peers for n in nodes_of(one).values()}.items() <= {
        n.name: n.peers for n in nodes_of(sweep).values()
    }.items()
    with pytest.raises(ConfigError, match="points 0 to 11"):
        sweep.of_point(12)


def test_models_of_several_sizes_do_not_meet():
    sweep = load(product(axis("model.hidden", 16, 32), select_stages(axis("seed", 0, 1), "relearn-reference")))
    assert [world.experiment.model.hidden for world in sweep.shards] == [16, 32]
    assert not set(sweep.shards[0].nodes) & set(sweep.shards[1].nodes) - {"data"}
    assert len(sweep.of_point(2).shards) == 1 and sweep.of_point(2).shards[0].experiment.model.hidden == 32


def test_the_marker_is_of_the_points_and_the_code():
    first, second = load(grid(seeds=1)), load(grid(seeds=2))
    assert first.marker() == load(grid(seeds=1)).marker()
    assert first.marker()["points"] != second.marker()["points"] and first.marker()["code"] == second.marker()["code"]


# The command line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--sweep=FILE.py is missing"),
        (["--sweep=nowhere.py"], "there is no file nowhere.py"),
        ([f"--sweep={SWEEP}:large"], "no preset 'large'"),
        ([f"--sweep={CONFIG}"], "has no get_sweep"),
        ([f"--sweep={SWEEP}", "--config=x.py"], "a sweep says itself"),
        ([f"--sweep={SWEEP}"], "--workdir=DIR is missing"),
        ([f"--sweep={SWEEP}:smoke", "--workdir=/nowhere", "--index=999", "--dry-run"], "--index=999"),
        ([f"--sweep={SWEEP}", "--workdir=/nowhere", "--workers=0"], "workers"),
        ([f"--sweep={SWEEP}", "--workdir=/nowhere", "--config.distil.steps=1"], "did you mean 'distill'"),
    ],
)
def test_a_wrong_command_is_refused_in_a_line(arguments, says, capsys):
    assert main.main(["distill-jax", "sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and len(err.splitlines()) <= 2 and "Traceback" not in err and out == ""


def test_the_default_sweep_is_what_it_says(capsys, tmp_path):
    assert main.main(["distill-jax", "sweep", f"--sweep={SWEEP}", "--count"]) == 0
    assert int(capsys.readouterr().out) == 5 * 2 * 2 * 3 + 7 * 3 + 2 * 3 + 2 * 3 + 2 * 3
    assert main.main(["distill-jax", "sweep", f"--sweep={SWEEP}", "--dry-run", f"--workdir={tmp_path}/new"]) == 0
    table = {line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert table["pretrain"] == ["6", "0", "99"] and table["unlearn"] == ["6", "0", "90"]
    assert not (tmp_path / "new").exists()  # it looks and touches nothing


# Who computes what


def test_workers_take_what_nobody_has_and_wait_for_the_rest(tmp_path):
    sweep = load(select_stages(axis("seed", 0, 1), "reference"), tmp_path)
    nodes, mine, theirs = nodes_of(sweep), Leases(), Leases()
    (data,) = (node for node in nodes.values() if node.stage == "data")
    first, second = (node for node in nodes.values() if node.stage == "reference")
    try:
        groups = sweep_graph.leased(nodes, mine, len, lambda text: None)
        (attempt,) = next(groups)
        assert attempt.name == data.name
        finish(attempt)
        assert theirs.take(attempts.home(first))
        (attempt,) = next(groups)
        assert attempt.name == second.name  # the other one is taken
        assert not theirs.take(attempts.home(second))
        finish(attempt)
        assert not second.done
        finish(first)  # by the other worker
        assert list(groups) == []
        assert mine.holder(attempts.home(second)) == ""
        assert all(node.done and not attempts.leftovers(node) for node in nodes.values())
    finally:
        mine.close()
        theirs.close()


def test_a_group_is_cut_to_what_fits(tmp_path):
    nodes = nodes_of(load(select_stages(axis("seed", 0, 1, 2), "reference"), tmp_path))
    finish(next(node for node in nodes.values() if node.stage == "data"))
    mine = Leases()
    try:
        sizes = []
        for group in sweep_graph.leased(nodes, mine, lambda group: 2, lambda text: None):
            sizes.append(len(group))
            for node in group:
                finish(node)
        assert sizes == [2, 1]
    finally:
        mine.close()


def test_a_population_takes_what_the_device_holds(monkeypatch):
    sweep = load(select_stages(axis("seed", 0, 1, 2, 3), "reference"))
    (world,) = sweep.shards
    ctx = Context(world.experiment.model, world.nodes, Path("/nowhere"), Progress(0, 0.0))
    group = [node for node in world.nodes.values() if node.stage == "reference"]
    needed = {}
    for count in (2, 4):
        program = group[0].settings.train_job(ctx, group[:count])
        mesh = program.mesh(ctx)
        state, teacher, batch, base = program.shapes(ctx, mesh)
        compiled = program.build(mesh).lower(state, teacher, batch, base=base).compile()
        found = compiled.memory_analysis()
        needed[count] = found.argument_size_in_bytes + found.temp_size_in_bytes
        of_state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        needed[count] += 2 * of_state / mesh.size  # to save it: a copy, and what is being written
    between = (needed[2] + needed[4]) / 2 / graph.FILL
    for capacity, fitting in ((10**12, 4), (2 * needed[4], 4), (between, 2), (1000, 1)):
        monkeypatch.setattr(memory, "capacity", lambda device, capacity=capacity: capacity)
        assert graph.fitting(ctx, group) == fitting, capacity


def finish(node) -> None:
    node.directory.mkdir(parents=True, exist_ok=True)
    node.finish({}, {})


# What it cost


@pytest.mark.parametrize("seconds", [{"compile": 3.0, "step": 5.0, "evaluate": 2.0, "data": 1.0}, {"idle": 4.0}])
@pytest.mark.parametrize("flops", [{"student": 3.0, "teacher": 1.0, "evaluation": 5.0}, {"evaluation": 2.0}, {}])
def test_device_seconds_add_up(flops, seconds):
    found = ledger(flops, {}, Lap(seconds), devices=4)
    assert sum(found["device_seconds"].values()) == pytest.approx(4 * sum(seconds.values()))
    if "student" in flops:
        assert found["device_seconds"]["student"] == pytest.approx(3 * found["device_seconds"]["teacher"], abs=2e-3)
    assert found["seconds"] == sum(seconds.values()) and found["peak_bytes"] > 2**20


def made_up(tmp_path: Path, points: list[dict[str, Any]]):
    """Finish a sweep with numbers out of a hat."""
    sweep, chance = load(points, tmp_path), random.Random(0)
    rows = nodes_of(sweep)["data"].directory / "rows"
    rows.mkdir(parents=True)
    write_sealed(rows / "manifest.json", {"evaluation": {"groups": {"add/word/retain": 4}}, "format": 1})
    for node in nodes_of(sweep).values():
        node.directory.mkdir(parents=True, exist_ok=True)
        causes = {
            "prepare": (),
            "relearn": ("attack", "evaluation"),
            "perturb": ("evaluation",),
            "distill": ("student", "teacher", "evaluation"),
        }.get(node.verb, ("student", "evaluation"))
        spent = {"flops": {cause: float(chance.randrange(1, 10**6)) for cause in causes}}
        result = {"retain": 0.9, "forget": 0.1, "steps": 7, "recovered": True, "diverged": False}
        if node.verb == "pretrain":  # which has 95 % of its ability after three quarters of its eight steps
            looks = {0: 0.0, 2: 0.4, 6: 0.86, 8: 0.9}.items()
            rows = [{"kind": "evaluation", "step": step, "member": "", "retain": seen} for step, seen in looks]
            (node.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if node.verb == "relearn":
            members = [one for one in node.settings.attackers() if one.seed == 0]
            result = {"members": 2, "diverged": 1, "diverged_at": {members[0].label: 5}}
            rows = [
                {"kind": "evaluation", "step": s, "member": one.label, "retain": 0.5, "shown": s / 10}
                | {"heldout": chance.random()}
                for s in (0, 8)
                for one in members
            ]
            (node.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        node.finish(result, spent)
    return sweep


def test_what_is_shared_is_counted_once_over_all_points(tmp_path):
    names = ("oracle", "reference", "student", "undo-0.0")
    controls = select_stages(axis("seed", 0, 1), *(f"relearn-{name}" for name in names))
    sweep = made_up(tmp_path, chain(grid(2, 2, ("maxent", "rmu"), 2), controls))
    summary = sweep_summary.summarise(sweep)
    nodes = nodes_of(sweep)
    assert len(summary["runs"]) == 2 * (2 * 2 * 2 + 4)
    spent = {name: node.ledger()["flops"] for name, node in nodes.items()}
    for cause in ("student", "teacher", "evaluation"):
        # A reference is nobody's ancestor, but a model of its own; attacks and data are nobody's.
        billed = [n for n in nodes.values() if n.verb in ("pretrain", "unlearn", "perturb", "distill")]
        # Students that may train together share the passes of their teacher.
        shared = {n.name: n.peers if cause == "teacher" else 1 for n in billed}
        bill = sum(spent[node.name].get(cause, 0) / shared[node.name] for node in billed)
        assert sum(run["compute"]["amortised"][cause] for run in summary["runs"]) == pytest.approx(bill)
    for run in summary["runs"]:
        goal = run["kind"] in ("undo", "alpha 0", "random student")  # the others stop at their last step
        own = {way: share / 0.75 for way, share in run["vs_retraining"].items()} if goal else None
        assert run["vs_first_passage"] == (pytest.approx(own) if goal else None), run["kind"]
    one = next(r for r in summary["runs"] if r["kind"] == "undo" and r["method"] == "rmu" and r["seed"] == 1)
    node = nodes[nodes[one["id"]].inputs["start"]]
    damaged, teacher = nodes[node.inputs["start"]], nodes[node.inputs["teacher"]]
    whole = sum(spent[n.name].get("student", 0) for n in (node, damaged, teacher))
    assert one["compute"]["whole"]["student"] == whole
    assert one["compute"]["own"]["student"] == spent[node.name]["student"]
    assert one["compute"]["amortised"]["student"] == spent[node.name]["student"] + spent[teacher.name]["student"] / 4
    oracle = next(n for n in nodes.values() if n.stage == "oracle" and n.settings.seed == 1)
    retraining = spent[oracle.name]["student"]
    assert one["vs_retraining"]["whole"] == pytest.approx((whole + spent[node.name]["teacher"]) / retraining)
    assert one["attack"]["counted"] == [2, 1] and one["attack"]["diverged"] == 1
    assert summary["points"] == {"total": 18, "finished": 18}


def test_models_are_called_what_they_are(tmp_path):
    names = ("reference", "oracle", "maxent", "student", "undo-0.0", "student-budget", "student-reference", "filtered")
    base = axis("data.filter_labels", 9)
    points = product(base, select_stages([{}], *(f"relearn-{name}" for name in names)))
    both = select_stages(axis("undo.alphas", (0.3,)), "relearn-undo-0.3")
    points += product(base, axis("undo.shrink", True, False), axis("undo.method", "rmu"), both)
    summary = sweep_summary.summarise(made_up(tmp_path, points))
    kinds = {run["kind"]: run for run in summary["runs"]}
    expected = {"reference", "oracle", "suppressed", "random student", "alpha 0", "equal compute", "filtered"}
    assert set(kinds) == expected | {"student of the reference", "undo", "noise only"}
    assert kinds["undo"]["label"] == "UNDO α = 0.3, β = 0.1 of RMU" and kinds["undo"]["alpha"] == 0.3
    assert kinds["noise only"]["label"] == "noise without shrinkage, αβ = 0.03 of RMU"
    assert kinds["filtered"]["method"] is None and kinds["random student"]["method"] == "maxent"
    assert kinds["oracle"]["vs_retraining"]["whole"] == 1


def test_an_unfinished_sweep_is_summarised_as_far_as_it_is(tmp_path):
    sweep = made_up(tmp_path, grid(2, 1, ("maxent",), 2))
    victim = next(node for node in nodes_of(sweep).values() if node.stage == "relearn-undo-0.1")
    (victim.directory / "DONE").unlink()
    summary = sweep_summary.summarise(sweep)
    assert summary["points"] == {"total": 4, "finished": 3} and len(summary["runs"]) == 3
    assert (sweep_summary.write_report(sweep, tmp_path).read_text()).lstrip().lower().startswith("<!doctype html>")
