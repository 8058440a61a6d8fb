"""What a person may mistake before protecting a model: each is said in a line or two, in the words that were typed."""

from __future__ import annotations

import collections
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill_jax import api
from distill_jax.config import ConfigError
from distill_jax.data.facts import facts
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.text import sources
from distill_jax.experiment import protection, sweep_graph
from distill_jax.experiment.config_file import load_experiment
from distill_jax.experiment.named_config import change, open_config
from distill_jax.io.files import write_json
from distill_jax.main import main
from distill_jax.reports import formats
from distill_jax.sharding.mesh import split_slices
from distill_jax.shipped import TINY

pytestmark = pytest.mark.unit
MODEL = TINY / "choices" / "model"


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, topic: str, count: int) -> str:
    return lines(path, [{"text": f"{topic} number {i} is {i * i}"} for i in range(count)])


def refused(capsys, *arguments: str) -> str:
    """Return what a command is refused with: a line or two, and exit code 2."""
    assert main(["distill-jax", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) <= 2 and "Traceback" not in said
    return said


def test_errors_name_the_flags_that_were_typed(tmp_path, capsys):
    forget, retain = texts(tmp_path / "f.jsonl", "fish", 60), texts(tmp_path / "r.jsonl", "bird", 60)
    line = ("protect", f"--model={MODEL}", f"--workdir={tmp_path}/run", "--dry_run")
    missing = refused(capsys, *line, f"--forget={tmp_path}/none.jsonl", f"--retain={retain}")
    assert "--forget" in missing and "no such file" in missing and "data.forget" not in missing
    (tmp_path / "empty.jsonl").write_text("")
    assert "--retain" in refused(capsys, *line, f"--forget={forget}", f"--retain={tmp_path}/empty.jsonl")
    asked = lines(tmp_path / "q.jsonl", [{"question": f"What is {i}?", "answer": f"it {i}"} for i in range(40)])
    empty = refused(capsys, *line, f"--forget={asked}", f"--retain={tmp_path}/empty.jsonl")
    assert empty.startswith(f"distill-jax: --retain='{tmp_path}/empty.jsonl': is empty; name files")
    few = texts(tmp_path / "few.jsonl", "fish", 7)
    for command in ("protect", "attack"):
        said = refused(capsys, command, *line[1:], f"--forget={few}", f"--retain={retain}")
        assert said.count("--forget=") == 1 and "has 7 documents, of which 1 would be held out" in said
        assert "±0.3 214, ±0.5 77 are needed" in said and "%" not in said.split("intervals of")[1]


def test_texts_on_both_sides_and_rows_beyond_the_context_are_refused_before_anything_runs(tmp_path, capsys):
    forget = texts(tmp_path / "f.jsonl", "fish", 60)
    both = lines(tmp_path / "b.jsonl", [{"text": "a bird"}, {"text": "Fish, number 3 is 9"}])
    line = ("protect", f"--model={MODEL}", f"--forget={forget}", f"--workdir={tmp_path}/run", "--dry_run")
    assert "--forget and --retain overlap: 1 texts" in refused(capsys, *line, f"--retain={both}")
    retain = texts(tmp_path / "r.jsonl", "bird", 60)
    said = refused(capsys, *line, f"--retain={retain}", "--config.data.row_length=5000")
    assert said.startswith("distill-jax: data.row_length = 5000: ") and "lower it" in said
    assert not (tmp_path / "run" / "nodes").exists()


def opened(model: Path, forget: str, retain: str, workdir: Path) -> dict:
    named, _ = protection.protect_config(
        protection.open_subject(str(model)), protection.Files(forget, retain), "maxent", 2.0**36
    )
    return api.open_run(named, workdir).nodes


def test_a_work_directory_is_of_one_model_and_the_same_files(tmp_path, monkeypatch):
    forget, retain = texts(tmp_path / "f.jsonl", "fish", 60), texts(tmp_path / "r.jsonl", "bird", 60)
    nodes = opened(MODEL, forget, retain, tmp_path / "run")
    for name in ("data", "reference"):
        nodes[name].directory.mkdir(parents=True)
        write_json(nodes[name].directory / "config.json", {"settings": nodes[name].settings.as_dict()})
    where = str(tmp_path / "run")
    protection.check_same_files(opened(MODEL, forget, retain, tmp_path / "run"), where)  # the same goes on
    moved = shutil.copytree(MODEL, tmp_path / "moved")
    protection.check_same_files(opened(moved, forget, retain, tmp_path / "run"), where)  # so does it elsewhere
    other = texts(tmp_path / "g.jsonl", "frog", 60)
    with pytest.raises(ConfigError, match=r"holds a run of --forget=.*f\.jsonl; name another --workdir"):
        protection.check_same_files(opened(MODEL, other, retain, tmp_path / "run"), where)
    texts(tmp_path / "r.jsonl", "bear", 60)
    with pytest.raises(ConfigError, match="as it was before it changed"):
        protection.check_same_files(opened(MODEL, forget, retain, tmp_path / "run"), where)
    texts(tmp_path / "r.jsonl", "bird", 60)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    with pytest.raises(ConfigError, match="holds a run of --model="):
        nodes = opened(moved, forget, retain, tmp_path / "run")
        protection.check_same_files({"reference": nodes["reference"]}, where)


def test_a_printed_config_is_the_same_run_and_can_be_swept(tmp_path):
    """Its nodes have the same identities, and a sweep over the damage shares all that comes before it."""
    given = []
    for side in ("forget", "retain"):
        rows = [{"question": f"What {side} is {i}?", "answer": f"{side} {i}"} for i in range(40)]
        given.append(lines(tmp_path / f"{side}.jsonl", rows))
    files = protection.Files(*given)
    named, decisions = protection.protect_config(protection.open_subject(str(MODEL)), files, "rmu", 2.0**36)
    path = tmp_path / "mine.py"
    path.write_text(protection.config_text(named, decisions))
    nodes = [api.open_run(source, tmp_path / "run").nodes for source in (named, str(path))]
    assert nodes[0] and {n: x.identity for n, x in nodes[0].items()} == {n: x.identity for n, x in nodes[1].items()}
    again = open_config(str(path))
    points = api.axis("damage.alpha", 0.2, 0.4)
    swept = sweep_graph.load("alphas", points, again.module, again.config, tmp_path / "sweep")
    counts = collections.Counter(node.stage for shard in swept.shards for node in shard.nodes.values())
    assert counts["suppressed"] == counts["relearn-suppressed"] == 1
    assert counts["damaged"] == counts["protected"] == counts["export"] == counts["relearn-protected"] == 2


def test_items_without_documents_are_asked_in_words(tmp_path):
    rows = [
        {"question": "Which is a fish?", "choices": ["owl", "cod"], "answer": 1},
        {"question": "Which flies?", "A": "owl", "B": "cod", "answer": "A"},
        {"question": "Which swims?", "choices": {"text": ["cod", "cat"], "label": ["1", "2"]}, "answerKey": "1"},
    ]
    path = lines(tmp_path / "items.jsonl", rows)
    (source,) = sources.parse(path, "forget")
    assert [(q.question, q.answer) for q in facts.read([source])] == [
        ("Which is a fish?", "cod"), ("Which flies?", "owl"), ("Which swims?", "cod"),
    ]  # fmt: skip
    many = lines(tmp_path / "many.jsonl", [{**rows[0], "question": f"Which is fish {i}?"} for i in range(40)])
    kept = texts(tmp_path / "r.jsonl", "bird", 60)
    subject = protection.open_subject(str(MODEL))
    named, decisions = protection.protect_config(subject, protection.Files(many, f"{kept},{path}"), "maxent", 2.0**36)
    assert named.config.kind == "questions" and any("asked in words" in line for line in decisions)
    config = FactsConfig(forget=many, retain=f"{kept},{path}")
    assert [len(side) for side in config.forget_split()] == [20, 20] and len(config.retain_sources()[0]) == 1


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (9.1e8, "9.1 × 10⁸"), (3.34e19, "3.3 × 10¹⁹"), (None, "–")])
def test_flops_are_written_as_numbers_of_a_sentence(value, text):
    assert formats.flops(value) == text


def test_devices_of_a_topology_that_is_one_slice_name_none():
    devices = [SimpleNamespace(platform="tpu", id=i) for i in range(4)]
    assert split_slices(devices) == [devices] and split_slices(devices, 2) == [devices[:2], devices[2:]]
    two = [SimpleNamespace(platform="tpu", slice_index=i // 2) for i in range(4)]
    assert split_slices(two) == [two[:2], two[2:]]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("damage.alpha", 1.5, r"^damage\.alpha = 1\.5: the damaged fraction"),
        ("distill.tolerance", 2.0, r"^distill\.tolerance = 2\.0: "),
        ("suppress.steps", -1, r"^suppress\.steps = -1: "),
    ],
)
def test_a_setting_of_a_stage_is_named_by_its_section(key, value, said):
    named = open_config("protect:questions")
    change(named.config, {key: value})
    with pytest.raises(ConfigError, match=said):
        load_experiment(named.module, named.config)


def test_a_token_that_begins_texts_and_is_not_put_is_named(tmp_path, capsys):
    """Of a tokenizer that names <bos>, whose own file puts it before every text, and whose does not."""
    forget = lines(tmp_path / "f.jsonl", [{"question": f"Who is {i}?", "answer": f"A {i}"} for i in range(60)])
    retain = lines(tmp_path / "r.jsonl", [{"question": f"What is {i}?", "answer": f"B {i}"} for i in range(60)])
    for begins in (True, False):
        model = shutil.copytree(MODEL, tmp_path / f"model-{begins}")
        tokenizer = json.loads((model / "tokenizer.json").read_text("utf-8"))
        if not begins:
            tokenizer["post_processor"] = None
        (model / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
        files = (f"--forget={forget}", f"--retain={retain}", f"--workdir={tmp_path}/run-{begins}", "--dry_run")
        assert main(["distill-jax", "protect", f"--model={model}", *files]) == 0
        said = capsys.readouterr().out
        assert ("names <bos> as what begins a text and puts none" in said) is not begins
        assert "to forget: 60 facts; attackers are shown 30 facts, 30 facts are held out\n" in said
