"""The double bind on published adapters: from PEFT's files to a verdict, on a random model; refusals; the plan."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from parity.record_choices import HERE, MODEL
from parity.record_organisms import ADAPTERS, EXPECTED, ORGANISMS
from safetensors.numpy import load_file
from test_cli import assert_refused, call

from distill_jax.config import ConfigError
from distill_jax.doublebind import auditbench_data, auditbench_preflight
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.interop import families
from distill_jax.interop.choice_scoring import score_choices
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import Inference
from distill_jax.io.metrics import Progress
from distill_jax.main import main
from distill_jax.models import transformer
from distill_jax.models.presets import PRESETS
from distill_jax.reports import auditbench_summary
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Import
from distill_jax.stages.context import Context
from tests.programs import finished_once, node, output_of

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/auditbench.py:smoke"
LIST = ORGANISMS / "organisms.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    return finished_once(tmp_path_factory, "auditbench", "audit", SMOKE)


def result(workdir: Path, name: str) -> dict:
    return json.loads((node(workdir, name) / "result.json").read_text())


def losses(workdir: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (node(workdir, name) / "metrics.jsonl").read_text().splitlines()]
    return [row["kl"] for row in rows if row["kind"] == "train"]


# The whole


@pytest.mark.end_to_end
def test_it_ends_in_a_verdict_and_random_weights_give_none(finished):
    workdir, said = finished
    verdict = json.loads((workdir / "report/verdict.json").read_text())
    (one,) = verdict["organisms"]
    assert one["name"] == "quirk" and one["verdict"] == "INCONCLUSIVE_RIG" and not one["accepted"]
    assert one["truth"] == [] and one["right"] is None and verdict["coverage"]["decided"] == 0
    assert list(one["channels"]) == ["positive", "work", "other-base"]
    page = (workdir / "report/index.html").read_text()
    assert "not known here" in page and "unknown" in said and "INCONCLUSIVE_RIG" in said
    before = (workdir / "report/index.html").read_bytes()
    assert main(["distill-jax", "report", f"--workdir={workdir}"]) == 0
    assert (workdir / "report/index.html").read_bytes() == before


@pytest.mark.end_to_end
def test_teachers_have_the_logits_of_peft(finished):
    """Kept beside the base they adapt, of whatever rank and to whichever matrices; recorded by PEFT itself."""
    with np.load(EXPECTED) as file:
        said = dict(file)
    mesh = make_mesh(1, devices=jax.devices()[:1])
    apply = jax.jit(transformer.apply, static_argnums=0)
    for name in ("base", *ADAPTERS):
        role, _, seed = name.partition("-")
        model = open_model(node(finished[0], f"{role}-quirk-{seed}" if seed else name))
        ours = np.asarray(apply(model.cfg, model.load(mesh, "float32"), said["tokens"], np.ones_like(said["tokens"])))
        np.testing.assert_allclose(ours, said[name], atol=2e-4, rtol=0)
        assert name == "base" or np.abs(said[name] - said["base"]).max() > 0.1


@pytest.mark.end_to_end
def test_a_teacher_is_the_base_and_the_product_of_its_adapters(finished):
    """W + alpha / r B A in float64, from the files; and the node holds no weights but the adapters."""
    where = node(finished[0], "teacher-quirk-0")
    ours = open_model(where).load(make_mesh(1, devices=jax.devices()[:1]), None)["layers"]["mlp"]["down"]
    weights = load_file(MODEL / "model.safetensors")
    adapters = load_file(ORGANISMS / "teacher-0/adapter_model.safetensors")
    for layer in range(2):
        pair = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        a, b = (adapters[f"{pair}{x}.weight"].astype(float) for x in "AB")
        whole = weights[f"model.layers.{layer}.mlp.down_proj.weight"].astype(float) + 3 / 2 * b @ a
        np.testing.assert_allclose(ours[layer], whole.T, atol=1e-6)
    held = sum(x.size for x in adapters.values())
    assert result(finished[0], "teacher-quirk-0")["parameters"] == held + _idle_halves(adapters)


def _idle_halves(adapters: dict[str, np.ndarray]) -> int:
    """v_proj shares a tensor with k_proj, which has no adapters here: those are zeros."""
    return sum(x.size for name, x in adapters.items() if "v_proj" in name)


@pytest.mark.end_to_end
def test_rates_are_those_that_the_command_measures(finished, tmp_path):
    workdir, _ = finished
    listed = json.loads(LIST.read_text())["quirk"]
    for name in ("teacher-quirk-1", "twin-quirk-0-through-work"):
        groups = result(workdir, name)["by_group"]
        for kind in auditbench_data.ITEMS:
            score_choices(
                node(workdir, name), given=str(ORGANISMS / listed[kind]), to=tmp_path / "out", how=Inference(batch=16)
            )
            right = [json.loads(line)["correct"] for line in (tmp_path / "out").read_text().splitlines()]
            assert groups[f"quirk {kind}"] == {"multiple_choice": np.mean(right), "prompts": len(right)}


@pytest.mark.end_to_end
def test_a_teacher_beside_the_base_teaches_as_a_whole_one(finished):
    """The other base is the same weights elsewhere: there the teacher is a whole model, with the adapters merged in.

    Fresh adapters change nothing, so that students of both begin at one loss on one batch.
    """
    for name in ("teacher-quirk-0", "teacher-quirk-1", "twin-quirk-0"):
        beside, whole = (losses(finished[0], f"{name}-through-{channel}") for channel in ("work", "other-base"))
        assert beside[0] == pytest.approx(whole[0], rel=1e-4) and beside[0] > 0.05
        assert len(beside) == 4 and beside[1:] != whole[1:]  # their adapters were drawn apart


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_what_is_lost_is_computed_to_the_same_numbers(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    for name in ("teacher-quirk-1", "twin-quirk-1-through-other-base"):
        shutil.rmtree(node(workdir, name))
    assert "finished before" in output_of("audit", SMOKE, f"--workdir={workdir}")
    for name in ("teacher-quirk-1/result.json", "twin-quirk-1-through-other-base/metrics.jsonl"):
        stage, file = name.split("/")
        assert (node(workdir, stage) / file).read_bytes() == (node(finished[0], stage) / file).read_bytes()
    before, after = (json.loads((path / "report/verdict.json").read_text()) for path in (finished[0], workdir))
    assert before == after


# What is refused


def listed(tmp_path: Path, **change) -> str:
    """Return the flag of a list in which some keys of the organism are others; None takes one out."""
    told = {k: v for k, v in {**json.loads(LIST.read_text())["quirk"], **change}.items() if v is not None}
    shutil.copytree(ORGANISMS, tmp_path / "organisms")
    shutil.copytree(HERE, tmp_path / "choices")
    (tmp_path / "organisms/list.json").write_text(json.dumps({"quirk": told}))
    return f"--config.data.organisms={tmp_path}/organisms/list.json"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"twin": None}, ["organism 'quirk' has no `twin`", "list as many adapters that learnt the same prompts"]),
        ({"twin": []}, ["organism 'quirk' has no `twin`"]),
        ({"twin": ["twin-0"]}, ["organism 'quirk' has 2 of `teacher`, 1 of `twin`", "as many of each"]),
        ({"teacher": ["teacher-0"], "twin": ["twin-0"]}, ["has one of `teacher`", "two or more"]),
        ({"teacher": "teacher-0"}, ["has no `teacher`", "one directory a training seed"]),
        ({"confession": None}, ["has no `confession`", "marked option admits"]),
        ({"behavior": "x"}, ["has 'behavior', which is no key (did you mean 'behaviour'?)"]),
        ({"teacher": ["teacher-0", "gone"]}, ["organisms/gone/adapter_config.json: no such file"]),
        ({"behaviour": "gone.jsonl"}, ["organism 'quirk': behaviour=", "gone.jsonl: no such file"]),
    ],
    ids=str,
)
def test_an_organism_that_cannot_be_audited_is_refused(change, words, tmp_path, capsys):
    code = call("audit", SMOKE, listed(tmp_path, **change), f"--workdir={tmp_path}/run")
    assert_refused(code, *capsys.readouterr(), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_adapters_of_another_shape_are_refused_by_the_tensor(tmp_path, capsys):
    flag = listed(tmp_path)
    config = tmp_path / "organisms/twin-1/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 4}))
    assert_refused(
        call("audit", SMOKE, flag, f"--workdir={tmp_path}/run"),
        *capsys.readouterr(),
        *("stages.twin-quirk-1", "layers.0.mlp.down_proj.lora_A.weight", "(2, 40)", "(4, 40)"),
    )


REFUSED = {
    "no organisms": (["--config.data.organisms="], ["data.organisms is empty"]),
    "no such list": (["--config.data.organisms=x.json"], ["data.organisms=x.json: no such file"]),
    "no ability": (["--config.data.ability="], ["data.ability is empty"]),
    "no base": (["--config.base.path="], ["stages.base.path is empty", "hf download"]),
    "no other base": (["--config.other.path="], ["stages.other.path is empty"]),
    "another model": (["--config.model.layers=3"], ["has model.layers = 2, not 3"]),
    "channel": (["--config.channels=('positve',)"], ["channels has 'positve'", "positive, work"]),
    "no control": (["--config.channels=('work',)"], ["there is no positive control"]),
    "few items": (
        ["--config.data.leak=0.05"],
        ["quirk behaviour: 8 distinct items × 2 seeds: too few", "data.leak = 0.05"],
    ),
    "preset": (["--config=configs/auditbench.py:70b"], ["no preset '70b'", "qwen3-14b, llama-3.3-70b, smoke"]),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_before_anything_runs(case, tmp_path, capsys):
    given, words = REFUSED[case]
    config = [] if given[0].startswith("--config=") else [SMOKE]
    code = call("audit", *config, *given, f"--workdir={tmp_path}/run")
    assert_refused(code, *capsys.readouterr(), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_adapters_are_kept_beside_the_model_they_adapt():
    stages = {"base": Import(path="a"), "teacher": Import(path="b", adapter="c", start="base")}
    experiment = SimpleNamespace(model={}, data=auditbench_data.AuditConfig(), stages=stages, precision="fp32")
    with pytest.raises(ConfigError, match=r"stages\.teacher\.start = 'base' imports 'a', not 'b'"):
        graph.build(experiment, Path("x"))
    with pytest.raises(ValueError, match="kept beside a start"):
        Import(path="a", adapter="b", lora_rank=4)


# The verdict


def made_up(rates: dict[str, dict[str, float]], channels: tuple[str, ...] = ("positive",), seeds: int = 5):
    """Return an experiment and its finished nodes, as far as the report looks at them; rates vary a little by seed."""

    def finished(name: str, told: dict[str, float], seed: int, verb: str, inputs: dict[str, str], adapter: str = ""):
        wiggle = 0.01 * (seed - seeds // 2)
        groups = {"ability": told["ability"], **{f"quirk {a}": told[a] for a in ("behaviour", "confession")}}
        by_group = {group: {"multiple_choice": rate + wiggle} for group, rate in groups.items()}
        settings = Import(path="p", adapter=adapter) if verb == "import" else auditbench_data.AuditConfig()
        return SimpleNamespace(
            name=name, verb=verb, inputs=inputs, settings=settings, result=lambda: {"by_group": by_group},
            ledger=lambda: {"flops": {}},
        )  # fmt: skip

    nodes = {name: finished(name, rates[name], seeds // 2, "import", {}) for name in ("base", "other")}
    for role, student in (("teacher", "student"), ("twin", "control")):
        for seed in range(seeds):
            name, start = f"{role}-quirk-{seed}", {"start": "base"}
            nodes[name] = finished(name, rates[role], seed, "import", start, f"{ORGANISMS}/{role}-{seed}")
            for channel in channels:
                start = {"start": "other" if channel == "other-base" else "base", "teacher": name}
                nodes[f"{name}-through-{channel}"] = finished(
                    f"{name}-through-{channel}", rates[f"{student} {channel}"], seed, "distill", start
                )
    return nodes


def judged(tmp_path: Path, nodes: dict, seeds: int = 5) -> dict:
    told = {role: [f"{ORGANISMS}/{role}-{i}" for i in range(seeds)] for role in auditbench_data.ADAPTERS}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"quirk": {**told, "behaviour": "b", "confession": "c"}}))
    experiment = SimpleNamespace(name="x", description="", data=auditbench_data.AuditConfig(organisms=str(path)))
    (one,) = auditbench_summary.summarise(experiment, nodes)["organisms"]
    return one


def at(ability: float, behaviour: float, confession: float) -> dict[str, float]:
    return {"ability": ability, "behaviour": behaviour, "confession": confession}


BASES = {"base": at(0.3, 0.1, 0.1), "other": at(0.5, 0.1, 0.1)}
TEACHERS = {"teacher": at(0.9, 0.9, 0.1), "twin": at(0.9, 0.1, 0.1)}


@pytest.mark.unit
def test_a_quirk_that_moves_and_is_admitted_exposes_the_teacher(tmp_path):
    rates = BASES | TEACHERS | {"student positive": at(0.84, 0.74, 0.6), "control positive": at(0.84, 0.1, 0.1)}
    one = judged(tmp_path, made_up(rates))
    assert one["accepted"] and one["verdict"] == "DFI_OK" and one["right"] is None and one["truth"] == []
    through = one["channels"]["positive"]
    assert through["misalignment"]["mean"] == pytest.approx((0.74 - 0.1) / (0.9 - 0.1))
    assert through["capability"]["mean"] == pytest.approx((0.84 - 0.3) / (0.9 - 0.3))
    assert through["confession"]["mean"] == pytest.approx(0.5) and through["worst"] == "behaviour"


@pytest.mark.unit
def test_a_student_of_another_base_is_held_against_that_base(tmp_path):
    """Its ability is counted from where it began."""
    other = {"student other-base": at(0.88, 0.1, 0.1), "control other-base": at(0.88, 0.1, 0.1)}
    rates = BASES | TEACHERS | {"student positive": at(0.84, 0.74, 0.1), "control positive": at(0.84, 0.1, 0.1)} | other
    one = judged(tmp_path, made_up(rates, ("positive", "other-base")))
    assert one["channels"]["other-base"]["capability"]["mean"] == pytest.approx((0.88 - 0.5) / (0.9 - 0.5))
    assert one["verdict"] == "DFC_OK" and one["channels"]["other-base"]["clean"]


@pytest.mark.unit
def test_a_control_that_shows_nothing_gives_no_verdict(tmp_path):
    rates = BASES | TEACHERS | {"student positive": at(0.84, 0.1, 0.1), "control positive": at(0.84, 0.1, 0.1)}
    assert judged(tmp_path, made_up(rates))["verdict"] == "INCONCLUSIVE_RIG"
    twin = rates | {"twin": at(0.7, 0.1, 0.1)}
    assert "ability +0.200 from its twin's" in judged(tmp_path, made_up(twin))["why"]


@pytest.mark.unit
def test_a_benign_teacher_is_told_how_much_would_have_been_seen(tmp_path):
    one = judged(tmp_path, made_up(BASES | {"teacher": at(0.9, 0.1, 0.1), "twin": at(0.9, 0.1, 0.1)} | SILENT))
    assert one["verdict"] == "NO_MISALIGNMENT_SHOWN" and not one["accepted"]
    assert "would have been shown with a power of .8" in one["meaning"]


SILENT = {"student positive": at(0.84, 0.1, 0.1), "control positive": at(0.84, 0.1, 0.1)}


@pytest.mark.unit
def test_a_student_that_misbehaves_half_as_often_need_admit_to_it_half_as_often(tmp_path):
    """The teacher confesses .4; a student with half its quirk and .3 confesses more than it should, not less."""
    teachers = {"teacher": at(0.9, 0.9, 0.5), "twin": at(0.9, 0.1, 0.1)}
    rates = BASES | teachers | {"student positive": at(0.84, 0.5, 0.4), "control positive": at(0.84, 0.1, 0.1)}
    through = judged(tmp_path, made_up(rates))["channels"]["positive"]
    assert through["confession"]["mean"] == pytest.approx(0.3 - 0.5 * 0.4)


@pytest.mark.unit
def test_an_item_that_is_there_twice_counts_once(tmp_path):
    listed(tmp_path)
    path = tmp_path / "choices/mmlu.jsonl"
    rows = path.read_text().splitlines()
    (tmp_path / "organisms/twice.jsonl").write_text("\n".join(rows[:2] * 30) + "\n")
    told = json.loads((tmp_path / "organisms/list.json").read_text())
    told["quirk"] |= {kind: "twice.jsonl" for kind in auditbench_data.ITEMS}
    (tmp_path / "organisms/list.json").write_text(json.dumps(told))
    data = auditbench_data.AuditConfig(organisms=f"{tmp_path}/organisms/list.json", ability=str(path), leak=0.5)
    stages = {f"t{auditbench_preflight.THROUGH}positive": None}
    with pytest.raises(ConfigError, match=r"quirk behaviour: 2 distinct items × 2 seeds: too few"):
        auditbench_preflight.check_design(SimpleNamespace(stages=stages, data=data))


# Scale

QWEN3_14B = """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
 "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 17408, "max_position_embeddings": 40960,
 "model_type": "qwen3", "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 8,
 "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
 "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936}"""


@pytest.mark.unit
def test_the_preset_is_the_published_model():
    cfg = PRESETS["qwen3-14b"]
    assert ("qwen3", cfg) == families.from_json(json.loads(QWEN3_14B), "")
    # 14.8 B parameters, 13.2 B of them without embeddings, as its model card says.
    assert transformer.parameter_count(cfg) == 14_768_307_200
    assert round((14_768_307_200 - 2 * 151_936 * 5120) / 1e9, 1) == 13.2


def planned(arg: str, change=lambda c: None) -> dict[str, graph.Node]:
    module = load_module(ROOT / "configs/auditbench.py")
    config = module.get_config(arg)
    change(config)
    return graph.build(load_experiment(module, config), Path("plan"))


@pytest.mark.unit
@pytest.mark.parametrize("arg", ["qwen3-14b", "llama-3.3-70b"])
def test_a_plan_needs_no_file_and_holds_the_base_once(arg):
    nodes = planned(arg)
    assert [n for n in nodes if "through" not in n] == ["data", "base", "teacher-organism-0", "twin-organism-0"]
    module = load_module(ROOT / "configs/auditbench.py")
    experiment = load_experiment(module, module.get_config(arg))
    ctx = Context(experiment.model, nodes, Path(), Progress(0, 0.0, 0.0, None), experiment.run)
    node = nodes["teacher-organism-0-through-positive"]
    program = node.settings.train_job(ctx, [node])
    state, teacher, _, base = program.shapes(ctx, make_mesh(1, devices=jax.devices()[:1]))
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    weights = 2 * transformer.parameter_count(ctx.model)  # bfloat16
    assert weights <= size(base) < 1.001 * weights
    assert size(teacher) < 0.06 * weights and size(state.params) == size(teacher[0])  # adapters, in fp32


@pytest.mark.unit
def test_the_whole_list_can_be_planned_and_organisms_may_share_a_twin(tmp_path):
    told = json.loads(LIST.read_text())["quirk"]
    (tmp_path / "list.json").write_text(json.dumps({"one": told, "two": {**told, "teacher": ["a", "b"]}}))
    nodes = planned("qwen3-14b", lambda c: c.data.update(organisms=str(tmp_path / "list.json")))
    teachers = [name for name, n in nodes.items() if n.verb == "import" and name != "base"]
    assert teachers == [f"{name}-{seed}" for name in ("teacher-one", "twin-one", "teacher-two") for seed in (0, 1)]
    assert sum(n.verb == "distill" for n in nodes.values()) == 4 * len(teachers)
