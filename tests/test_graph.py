"""The graph of an experiment: what a setting changes, what runs together, in which order, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.config import ConfigError
from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment
from distill_jax.io.metrics import Progress
from distill_jax.models.presets import preset
from distill_jax.perf import memory
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn, Unlearn
from distill_jax.stages.context import Context, RunSettings

CONFIG = Path(__file__).parent.parent / "configs/arithmetic.py"
WORKDIR = Path("/nowhere")

# The experiment `:smoke,full`, written down by hand: name -> what it is made from.
MADE_FROM: dict[str, tuple[str, ...]] = {
    "data": (),
    "reference": ("data",),
    "oracle": ("data",),
    "maxent": ("reference",),
    "student": ("maxent",),
    "damaged-0.2": ("maxent",),
    "damaged-0.6": ("maxent",),
    "undo-0.2": ("maxent", "damaged-0.2"),
    "undo-0.6": ("maxent", "damaged-0.6"),
    "graddiff": ("reference",),
    "student-graddiff": ("graddiff",),
    "rmu": ("reference",),
    "student-rmu": ("rmu",),
    "undo-0.0": ("maxent",),
    "student-budget": ("maxent",),
    "student-reference": ("reference",),
    "match-from-reference": ("oracle", "reference"),
    "match-from-random": ("oracle",),
}
MODELS = [name for name in MADE_FROM if name != "data" and not name.startswith("damaged")]
MADE_FROM |= {f"relearn-{name}": (name,) for name in MODELS}
RELEARN = {f"relearn-{name}" for name in MODELS}
DISTILLED = {n for n in MODELS if n.startswith(("student", "undo", "match")) and n != "student-budget"}
OF_MAXENT = {"student", "undo-0.0", "undo-0.2", "undo-0.6"}  # that stop when they have recovered


def with_attacks(names: set[str]) -> set[str]:
    return names | {f"relearn-{name}" for name in names if name in MODELS}


EVERYTHING = set(MADE_FROM) - {"data"}
# A setting, and the nodes whose results it may change: those, and no others, get a new identity.
CHANGES: list[tuple[str, Any, set[str]]] = [
    ("relearn.steps", 9, RELEARN),
    ("relearn.learning_rates", (1e-2,), RELEARN),
    ("relearn.seeds", 3, RELEARN),
    ("undo.beta", 0.2, {"damaged-0.2", "damaged-0.6"} | with_attacks({"undo-0.2", "undo-0.6"})),
    ("undo.shrink", False, {"damaged-0.2", "damaged-0.6"} | with_attacks({"undo-0.2", "undo-0.6"})),
    ("undo.method", "rmu", {"damaged-0.2", "damaged-0.6"} | with_attacks({"undo-0.0", "undo-0.2", "undo-0.6"})),
    ("budget.steps", 3, with_attacks({"student-budget"})),
    ("maxent.steps", 9, with_attacks({"maxent", "student-budget"} | OF_MAXENT) | {"damaged-0.2", "damaged-0.6"}),
    ("graddiff.retain_weight", 14.0, with_attacks({"graddiff", "student-graddiff"})),
    ("rmu.steer", 7.0, with_attacks({"rmu", "student-rmu"})),
    ("oracle.steps", 9, with_attacks({"oracle", "match-from-reference", "match-from-random"})),
    ("reference.steps", 9, EVERYTHING - with_attacks({"oracle", "match-from-random"})),
    ("distill.steps", 9, with_attacks(DISTILLED)),
    ("model.hidden", 32, EVERYTHING),
    ("data.equations", 404, set(MADE_FROM)),
    ("data.seed", 1, set(MADE_FROM)),
    ("seed", 1, EVERYTHING),  # the data has a seed of its own
    ("run.progress_seconds", 1.0, set()),
    ("run.evaluation_batch", 2, set()),
    ("run.cpu_devices", 1, set()),
    ("run.checkpoint_every", 3, set()),
    ("description", "words", set()),
]


def smoke(
    change: Callable[[Any], None] = lambda config: None, presets: str = "smoke,full", workdir: Path = WORKDIR
) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("arithmetic_config", CONFIG)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(presets)
    change(config)
    return graph.build(load_experiment(module, config), workdir)


def experiment(**stages: Any) -> SimpleNamespace:
    return SimpleNamespace(model=preset("cpu"), data=ArithmeticConfig(), precision="fp32", stages=stages)


def build(**stages: Any) -> dict[str, Any]:
    return graph.build(experiment(**stages), WORKDIR)


def identities(nodes: dict[str, Any]) -> dict[str, str]:
    return {name: node.identity for name, node in nodes.items()}


@pytest.mark.unit
def test_the_experiment_is_the_one_written_down():
    nodes = smoke()
    assert set(nodes) == set(MADE_FROM)
    for name, node in nodes.items():
        assert set(node.inputs.values()) == set(MADE_FROM[name]) - {"data"}, name


@pytest.mark.unit
@pytest.mark.parametrize(("key", "value", "expected"), CHANGES, ids=[key for key, _, _ in CHANGES])
def test_a_setting_changes_the_identities_of_what_depends_on_it(key, value, expected):
    def change(config):
        with config.unlocked():
            config.update_from_flattened_dict({key: value})

    before, after = identities(smoke()), identities(smoke(change))
    assert set(before) == set(after)
    assert {name for name in before if before[name] != after[name]} == expected


@pytest.mark.unit
@pytest.mark.parametrize(
    "name",
    ["../../escape", "/tmp/absolute", "a/b", "..", ".hidden", "", " ", "a b", "é", "a\0b", "a\n", "x" * 201, 7, None],
)
def test_a_name_that_would_leave_its_directory_is_refused(name):
    with pytest.raises(ConfigError, match=r"stages = .*it names a directory; a name has letters"):
        graph.build(SimpleNamespace(**{**vars(experiment()), "stages": {name: Pretrain()}}), WORKDIR)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["reference", "undo-0.2", "relearn-rmu-1e-05", "A_b+c=d.e", "0", "x" * 200])
def test_every_node_lies_in_the_directory_of_nodes(name):
    (node,) = (n for n in build(**{name: Pretrain()}).values() if n.verb == "pretrain")
    assert node.directory.resolve().parent == (WORKDIR / "nodes").resolve()


def alone(**settings: Any) -> Context:
    """Return the surroundings of an experiment of one stage, and no device memory but the host's."""
    nodes = build(reference=Pretrain(**settings))
    return Context(preset("cpu"), nodes, WORKDIR, Progress(0, 0.0, 0.0, None))


@pytest.mark.unit
@pytest.mark.parametrize("settings", [{"batch": 10**12}, {"batch": 2**40, "microbatches": 2}])
def test_what_no_memory_holds_is_refused(settings):
    ctx = alone(**settings)
    with pytest.raises(ConfigError, match=r"stages\.reference: a step needs at least [\d,.]+ GiB.* lower batch"):
        graph.check_memory(ctx, list(ctx.nodes.values()))
    model = dataclasses.replace(ctx.model, hidden=10**7)
    with pytest.raises(ConfigError, match="smaller model"):
        graph.check_memory(dataclasses.replace(ctx, model=model), list(ctx.nodes.values()))
    graph.check_memory(alone(), list(alone().nodes.values()))


@pytest.mark.unit
def test_the_least_that_training_takes_is_less_than_the_compiler_says():
    ctx = alone(batch=64)
    program = ctx.nodes["reference"].settings.train_job(ctx, [ctx.nodes["reference"]])
    mesh = program.mesh(ctx, jax.devices()[:1])
    compiled = program.build(mesh).lower(*program.shapes(ctx, mesh)).compile()
    tokens = 64 * ctx.row_length
    least = memory.least_training(ctx.model, memory.TrainingShape(tokens, 1, logits=tokens))
    assert least < memory.needed_bytes(compiled) < 100 * least


@pytest.mark.unit
def test_another_alpha_leaves_the_others_as_they_are():
    def change(config):
        config.undo.alphas = (0.2, 0.4)

    before, after = identities(smoke()), identities(smoke(change))
    assert set(before) - set(after) == {"damaged-0.6", "undo-0.6", "relearn-undo-0.6"}
    assert set(after) - set(before) == {"damaged-0.4", "undo-0.4", "relearn-undo-0.4"}
    assert all(before[name] == after[name] for name in set(before) & set(after))


@pytest.mark.unit
def test_identities_are_of_the_whole_past_and_not_of_names_of_inputs():
    """Renaming an input keeps the settings but changes the input's own identity, and so its dependants'."""
    a = build(base=Pretrain(), cut=Unlearn(start="base"))
    b = build(other=Pretrain(), cut=Unlearn(start="other"))
    assert a["base"].identity != b["other"].identity
    assert a["cut"].identity != b["cut"].identity
    assert a["cut"].directory == WORKDIR / "nodes" / f"cut-{a['cut'].identity}"


@pytest.mark.unit
def test_all_identities_differ_and_the_experiments_follows_any_of_them():
    nodes = smoke()
    assert len(set(identities(nodes).values())) == len(nodes)
    whole = graph.experiment_identity(nodes)
    for name, node in nodes.items():
        changed = nodes | {name: dataclasses.replace(node, identity="0" * 12)}
        assert graph.experiment_identity(changed) != whole


@pytest.mark.unit
def test_presets_share_what_they_have_in_common():
    """`full` adds nodes and changes none, so a finished `:smoke` run is continued by `:smoke,full`."""
    small, large = identities(smoke(presets="smoke")), identities(smoke())
    assert set(small) < set(large)
    assert all(large[name] == identity for name, identity in small.items())


def groups_of(nodes: dict[str, Any]) -> list[set[str]]:
    return [{node.name for node in group} for group in graph.pack(list(nodes.values()))]


@pytest.mark.unit
def test_students_of_one_teacher_train_together_and_never_with_another_teachers():
    groups = groups_of(smoke())
    assert OF_MAXENT in groups
    # Both imitate the oracle to the end: one population. Everything else that trains is alone.
    assert {"match-from-reference", "match-from-random"} in groups
    alone = [group for group in groups if len(group) == 1]
    assert len(alone) == len(groups) - 2
    assert sorted(name for group in groups for name in group) == sorted(MADE_FROM)


@pytest.mark.unit
@pytest.mark.parametrize(
    "changed",
    [
        {"teacher": "oracle"},
        {"steps": 9},
        {"batch": 8},
        {"learning_rate": 1e-3},  # the schedule ends at another share of its peak
        {"data": "retain"},
        {"temperature": 2.0},
        {"stop": False},
        {"evaluate_every": 7},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_students_that_differ_in_more_than_their_start_train_apart(changed):
    base = {"teacher": "reference", "data": "all"}
    nodes = build(
        reference=Pretrain(),
        oracle=Pretrain(data="retain"),
        one=Distill(**base),
        two=Distill(**base | changed),
        three=Distill(start="oracle", **base),
    )
    assert {"one", "three"} in groups_of(nodes)
    assert {"two"} in groups_of(nodes)


@pytest.mark.unit
@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"tolerance": 0.1},
        {"learning_rate": 1e-3, "final_learning_rate": 1e-3},
        {"learning_rate": 8e-4, "final_learning_rate": 8e-4, "seed": 3},
    ],
)
def test_students_that_differ_in_what_is_a_members_own_train_together(changed):
    nodes = build(reference=Pretrain(), one=Distill(teacher="reference"), two=Distill(teacher="reference", **changed))
    assert {"one", "two"} in groups_of(nodes)
    assert nodes["one"].peers == nodes["two"].peers == 2 and nodes["reference"].peers == 1


@pytest.mark.unit
def test_models_of_several_seeds_weights_and_rates_train_together():
    nodes = build(
        first=Pretrain(),
        second=Pretrain(seed=1, learning_rate=1e-3, final_learning_rate=1e-3),
        longer=Pretrain(steps=1001),
        soft=Unlearn(start="first"),
        hard=Unlearn(start="second", seed=1, forget_weight=2.0, retain_weight=0.5),
        steered=Unlearn(start="first", method="rmu"),
        steered_harder=Unlearn(start="first", method="rmu", forget_weight=2.0),
        steered_elsewhere=Unlearn(start="second", method="rmu"),
        adapted=Unlearn(start="first", lora_rank=2),
        adapted_elsewhere=Unlearn(start="second", lora_rank=2),
    )
    together = [group for group in groups_of(nodes) if len(group) > 1]
    assert together == [{"first", "second"}, {"soft", "hard"}, {"steered", "steered_harder"}]


def run_order(nodes: dict[str, Any]) -> list[list[str]]:
    return [[node.name for node in group] for group in graph.schedule(nodes)]


def check_order(order: list[list[str]], made_from: dict[str, tuple[str, ...]], done: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    seen = set(done)
    for group in order:
        for name in group:
            assert set(made_from[name]) <= seen, f"{name} before {set(made_from[name]) - seen}"
            assert name not in seen, f"{name} twice"
        seen |= set(group)
    assert seen == set(made_from)


@pytest.mark.unit
def test_a_group_of_which_not_all_fit_runs_in_parts():
    nodes = build(first=Pretrain(), second=Pretrain(seed=1), third=Pretrain(seed=2), soft=Unlearn(start="third"))
    order = [[node.name for node in group] for group in graph.schedule(nodes, lambda group: min(2, len(group)))]
    assert order == [["data"], ["first", "second"], ["third"], ["soft"]]


@pytest.mark.unit
def test_every_node_runs_once_after_its_inputs():
    order = run_order(smoke())
    check_order(order, MADE_FROM)
    assert order[0] == ["data"]


@pytest.mark.unit
def test_a_group_waits_until_it_is_whole():
    """The undamaged student could start at once; one forward pass of the teacher serves all only if it waits."""
    order = [set(group) for group in run_order(smoke())]
    assert OF_MAXENT in order


@pytest.mark.unit
def test_a_group_that_can_never_be_whole_still_runs():
    # `late` starts from a student of the very group that it would belong to.
    nodes = build(
        reference=Pretrain(), early=Distill(teacher="reference"), late=Distill(teacher="reference", start="early")
    )
    assert groups_of(nodes)[-1] == {"early", "late"}
    assert run_order(nodes) == [["data"], ["reference"], ["early"], ["late"]]


@pytest.mark.unit
def test_another_attack_leaves_only_attacks_to_run(tmp_path):
    """In a work directory where all else is finished, nothing that was finished is run again or changed."""
    before = smoke(workdir=tmp_path)
    for node in before.values():
        node.directory.mkdir(parents=True)
        node.finish({"steps": 8}, {})
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert list(graph.schedule(before)) == []

    def change(config):
        config.relearn.steps = 9

    after = smoke(change, workdir=tmp_path)
    assert {node.name for group in graph.schedule(after) for node in group} == RELEARN
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.unit
def test_what_is_done_does_not_run_again(tmp_path):
    nodes = {name: dataclasses.replace(node, directory=tmp_path / name) for name, node in smoke().items()}
    done = {"data", "reference", "maxent", "undo-0.2", "relearn-reference"}
    for name in done:
        (tmp_path / name).mkdir()
        nodes[name].finish({}, {})
    # Neither files nor checkpoints mark completion, only DONE does.
    (tmp_path / "oracle/checkpoints").mkdir(parents=True)
    (tmp_path / "oracle/result.json").write_text("{}")
    order = run_order(nodes)
    check_order(order, MADE_FROM, done)
    assert not done & {name for group in order for name in group}


def test_what_a_process_left_that_was_killed_after_done_goes_with_the_next_run(tmp_path):
    node = build()["data"]
    node = dataclasses.replace(node, directory=tmp_path / "nodes/data-0")
    (node.directory / "rows").mkdir(parents=True)
    (node.directory / "rows/manifest.json").write_text("{}")
    node.finish({}, {})
    finished = sorted(node.directory.rglob("*"))
    for left in ("checkpoints/4/a", "checkpoints/6.orbax-checkpoint-tmp/a", "checkpoints/4.json", ".result.json.0.tmp"):
        (node.directory / left).parent.mkdir(parents=True, exist_ok=True)
        (node.directory / left).write_text("{}")
    graph.execute({"data": node}, None, RunSettings(), io.StringIO(), lambda ctx: iter(()))
    (node.directory / "checkpoints").rmdir()
    assert sorted(node.directory.rglob("*")) == finished


@st.composite
def random_stages(draw) -> dict[str, Any]:
    """Draw a graph of stages in which any stage may come from any earlier one that leaves a model."""
    stages: dict[str, Any] = {"n0": Pretrain()}
    sources = ["n0"]
    for i in range(1, draw(st.integers(1, 12))):
        name, verb = f"n{i}", draw(st.sampled_from(["pretrain", "unlearn", "perturb", "distill", "relearn"]))
        source, start = draw(st.sampled_from(sources)), draw(st.sampled_from(["", *sources]))
        stages[name] = {
            "pretrain": Pretrain(seed=i),
            "unlearn": Unlearn(start=source),
            "perturb": Perturb(start=source),
            "distill": Distill(teacher=source, start=start),
            "relearn": Relearn(start=source, steps=500),
        }[verb]
        if verb != "relearn":
            sources.append(name)
    order = draw(st.permutations(list(stages)))
    return {name: stages[name] for name in order}


@pytest.mark.property
@settings(max_examples=100, deadline=None, database=None)
@given(random_stages())
def test_any_graph_runs_every_node_once_after_its_inputs(stages):
    nodes = build(**stages)
    sources = {
        name: {getattr(stage, role) for role in ("start", "teacher") if getattr(stage, role, "")}
        for name, stage in stages.items()
    }
    made_from = {"data": (), **{name: ("data", *sources[name]) for name in stages}}
    check_order(run_order(nodes), made_from)
    listed = list(nodes)
    assert all(listed.index(source) < listed.index(name) for name in stages for source in made_from[name])


@pytest.mark.property
@settings(max_examples=50, deadline=None, database=None)
@given(random_stages(), st.data())
def test_identities_do_not_depend_on_the_order_of_declaration(stages, data):
    order = data.draw(st.permutations(list(stages)))
    assert identities(build(**stages)) == identities(build(**{name: stages[name] for name in order}))


@pytest.mark.property
@settings(max_examples=50, deadline=None, database=None)
@given(random_stages(), st.data())
def test_a_stage_comes_when_it_is_declared_or_as_soon_as_its_inputs_have_come(stages, data):
    """So that a config which checks its damage before it declares attacks has attacked nothing when that is refused."""
    listed = [name for name in build(**stages) if name != "data"]
    again = build(**{name: stages[name] for name in listed})
    assert [name for name in again if name != "data"] == listed  # inputs first already: nothing moves
    order = data.draw(st.permutations(listed))
    moved = [name for name in build(**{name: stages[name] for name in order}) if name != "data"]
    last = {name: max(order.index(one) for one in {name, *made_from(name, stages)}) for name in order}
    assert [last[name] for name in moved] == sorted(last.values())


def made_from(name: str, stages: dict) -> set[str]:
    """Return all that a stage is made from, however far back."""
    inputs = set(stages[name].inputs().values())
    return inputs.union(*(made_from(source, stages) for source in inputs))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            {"reference": Pretrain(), "maxent": Unlearn(start="refrence")},
            ["stages.maxent.start", "'refrence'", "did you mean 'reference'?"],
        ),
        (
            {"reference": Pretrain(), "student": Distill(teacher="xyz")},
            ["stages.student.teacher", "'xyz'", "no such stage"],
        ),
        ({"reference": Pretrain(), "attack": Relearn()}, ["stages.attack.start", "empty"]),
        ({"reference": Pretrain(), "student": Distill(start="reference")}, ["stages.student.teacher", "empty"]),
        (
            {"a": Unlearn(start="c"), "b": Unlearn(start="a"), "c": Unlearn(start="b")},
            ["circle", "a", "b", "c", "start from an earlier one"],
        ),
        ({"a": Unlearn(start="a")}, ["circle: a <- a"]),
        (
            {"reference": Pretrain(), "attack": Relearn(start="reference"), "worse": Unlearn(start="attack")},
            ["stages.worse.start", "'attack'", "relearn stage", "leaves no model"],
        ),
        (
            {"reference": Pretrain(), "attack": Relearn(start="reference"), "student": Distill(teacher="attack")},
            ["stages.student.teacher", "'attack'", "relearn stage"],
        ),
    ],
    ids=["misspelt", "missing", "no start", "no teacher", "circle", "itself", "start of attack", "teacher of attack"],
)
def test_a_wrong_input_is_named(stages, words):
    with pytest.raises(ConfigError) as caught:
        build(**stages)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.unit
def test_a_stage_may_not_take_the_name_of_the_data():
    with pytest.raises(ConfigError, match="data"):
        build(data=Pretrain())
