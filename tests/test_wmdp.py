"""The WMDP experiment from published weights to its report, on a random model and made-up items; what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from parity.record_choices import HERE, MODEL
from safetensors.numpy import load_file, save_file
from test_cli import assert_refused, call

from distill_jax.config import ConfigError
from distill_jax.data import records
from distill_jax.data.multiple_choice.prepare_quiz import write_quiz
from distill_jax.data.multiple_choice.quiz_config import QuizConfig
from distill_jax.data.packing import SEGMENTS, TOKENS
from distill_jax.data.text import sentencepiece_vocab
from distill_jax.data.text.text_config import SAMPLES
from distill_jax.evals.multiple_choice import MultipleChoice
from distill_jax.evals.scale import CHOICE
from distill_jax.experiment import graph
from distill_jax.experiment.config_file import load_experiment, load_module, with_content_hashes
from distill_jax.interop import importing
from distill_jax.interop.choice_scoring import FewShot, score_choices
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import Inference
from distill_jax.io.files import Digests
from distill_jax.models import transformer
from distill_jax.reports import run_summary
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Import, Relearn, Unlearn
from tests.programs import finished_once, node, output_of

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/wmdp.py:smoke"
FEW = ("--config.methods=('maxent',)",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    return finished_once(tmp_path_factory, "wmdp", "run", SMOKE, *FEW)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# The whole


@pytest.mark.end_to_end
@pytest.mark.thorough
def test_a_model_without_finite_logits_is_marked_wherever_it_goes(tmp_path):
    """Of weights that are finite, each: their sums are not."""
    copy = shutil.copytree(MODEL, tmp_path / "model")
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = 3e38
    save_file(weights, copy / "model.safetensors")
    path = f"--config.reference.path={copy}"
    output_of("run", SMOKE, *FEW, path, f"--workdir={tmp_path}/run")
    for name in ("reference", "maxent", "damaged", "undo"):
        result = json.loads((node(tmp_path / "run", name) / "result.json").read_text())
        assert result["diverged"] is True and result["retain"] is result["forget"] is None
    attack = json.loads((node(tmp_path / "run", "relearn-undo-0.01") / "result.json").read_text())
    assert attack == {"members": 1, "diverged": 1, "diverged_at": {"lr=0.01,seed=0": 0}}
    for file in [*(tmp_path / "run").rglob("*.json"), *(tmp_path / "run").rglob("*.jsonl")]:
        assert not {"NaN", "Infinity"} & set(re.findall(r"[A-Za-z]+", file.read_text())), file


@pytest.mark.end_to_end
def test_it_runs_to_its_report(finished):
    workdir, said = finished
    assert "report:" in said
    told = json.loads((workdir / "report/summary.json").read_text())
    assert told["measure"] == "multiple_choice"
    assert told["evaluated"] == {"retain": 4, "forget_shown": 4, "forget_heldout": 4}
    assert [model["name"] for model in told["models"]] == ["reference", "maxent", "undo"]
    for model in told["models"]:
        assert set(model["by_group"]) == {"mmlu", "bio"}
        assert 0 <= model["retain"] <= 1 and 0 <= model["forget"] <= 1
        if model["name"] != "reference":
            assert model["attack"]["members"] == 1 and model["attack"]["steps"] == [0, 4]
    assert [told["headline"][role] for role in ("suppressed", "undo", "oracle")] == ["maxent", "undo", None]
    states = {one["name"]: one["state"] for one in told["conclusions"]}
    assert states["suppression"] == "void" and states["alpha"] == "not run"  # a random model; one α
    page = (workdir / "report/index.html").read_text()
    assert "Held-out questions" in page and "a quarter is chance" in page


@pytest.mark.unit
def test_an_attack_may_be_several_stages():
    """Learning rates count together, kinds of weights apart; the kind that comes first is the attack."""

    def stage(rate: float, weights: str, last: float) -> SimpleNamespace:
        scores = {step: {"heldout": x, "shown": x, "retain": 0.5} for step, x in ((0, 0.25), (4, last))}
        rows = [{"kind": "evaluation", "step": k, "member": f"lr={rate:g},seed=0", **v} for k, v in scores.items()]
        settings = Relearn(start="model", weights=weights, learning_rates=(rate,), seeds=1)
        result, spent = {"members": 1, "diverged": 0}, {"flops": {"attack": 2.0}}
        return SimpleNamespace(settings=settings, rows=lambda: rows, result=lambda: result, ledger=lambda: spent)

    full = [stage(0.01, "float32", 0.3), stage(0.001, "float32", 0.75)]
    half = [stage(0.01, "bfloat16", 0.5), stage(0.001, "bfloat16", 0.25)]
    facts = {"heldout": 4, "shown": 4}
    said = run_summary._attack([*full, *half], run_summary._attacks([*full, *half], CHOICE, facts), CHOICE)
    assert said["weights"] == "float32" and said["members"] == 2 and said["flops"] == {"attack": 4.0}
    assert said["forget_heldout"]["worst"] == [0.25, 0.75] and said["best_learning_rate"][1] == 0.001
    assert said["other_weights"]["bfloat16"]["forget_heldout"]["worst"] == [0.25, 0.5]
    assert "other_weights" not in run_summary._attack(full, run_summary._attacks(full, CHOICE, facts), CHOICE)


@pytest.mark.end_to_end
def test_the_imported_node_is_that_of_the_command(finished, tmp_path):
    """Same weights, same files beside them, and the same answers as the directory gives."""
    here, there = node(finished[0], "reference"), importing.import_model(MODEL, tmp_path)
    mesh = make_mesh(1, devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, *(open_model(path).load(mesh, None) for path in (here, there)))
    files = [{str(f.relative_to(path)) for f in path.rglob("*") if "ocdbt" not in str(f)} for path in (here, there)]
    beside = {name for name in files[1] if not name.startswith("checkpoints/final/")}
    assert beside <= files[0] and {"DONE", "tokenizer/tokenizer.json", "checkpoints/final.json"} <= beside
    config = json.loads((here / "config.json").read_text())
    assert config["hugging_face"] == json.loads((there / "config.json").read_text())["hugging_face"]
    how, few_shot = Inference(batch=16), FewShot(subject="biology")
    said = [score_choices(path, str(HERE / "bio.jsonl"), tmp_path / path.name, how, few_shot) for path in (here, MODEL)]
    assert said[0] == said[1] and (tmp_path / here.name).read_text() == (tmp_path / MODEL.name).read_text()


@pytest.mark.end_to_end
def test_a_model_is_measured_as_the_command_measures_it(finished, tmp_path):
    """In the run four of MMLU's items are, chosen by a hash; the command reads all of them."""
    workdir, _ = finished
    rows = node(workdir, "data") / "rows"
    words = sentencepiece_vocab.load(MODEL)
    asked = "".join(words.decode(r["tokens"]) for r in records.load_evaluation(rows))
    shown = {"shots": 1, "examples": str(HERE / "mmlu_dev.jsonl")}
    where = node(workdir, "undo")
    result = json.loads((where / "result.json").read_text())
    for group, flags in {"mmlu": shown, "bio": {}}.items():
        few_shot = FewShot(subject="biology", **flags)
        score_choices(where, str(HERE / f"{group}.jsonl"), tmp_path / group, Inference(batch=16), few_shot)
        right = [row["correct"] for row in rows_of(tmp_path / group) if row["question"].strip() in asked]
        assert len(right) == {"mmlu": 4, "bio": 8}[group]
        assert result["by_group"][group] == {"multiple_choice": sum(right) / len(right), "prompts": len(right)}
    assert result["retain"] == result["by_group"]["mmlu"]["multiple_choice"]
    assert result["forget"] == result["by_group"]["bio"]["multiple_choice"]


@pytest.mark.end_to_end
def test_halves_of_the_items_are_shown_and_held_out(finished):
    """What an attacker reads are the solved items of one half, in the model's own tokens; none of the other's."""
    rows = node(finished[0], "data") / "rows"
    parts = {part: [r for r in records.load_evaluation(rows) if r["part"] == part] for part in ("shown", "heldout")}
    packed = records.Rows(rows / "forget_shown.array_record")
    words = sentencepiece_vocab.load(MODEL)
    text = "".join(words.decode(row[TOKENS][row[SEGMENTS] > 0]) for row in packed.gather(np.arange(len(packed))))
    for part, found in parts.items():
        questions = {words.decode(r["tokens"]).split("biology.\n\n")[1].split("\nA.")[0] for r in found}
        assert len(questions) == 4 and all((q in text) == (part == "shown") for q in questions)
    answers = [row["answer"] for row in rows_of(HERE / "bio.jsonl")]
    assert text.count("<bos>") == text.count("<eos>") == 4 and text.count("Answer: ") == 4
    assert sum(text.count(f"Answer: {letter}<eos>") for letter in {"ABCD"[a] for a in answers}) == 4


@pytest.mark.end_to_end
def test_text_comes_in_the_tokens_of_the_model(finished):
    """The rows of the retained text hold what the tokenizer's own library makes of its documents, between marks."""
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    lines = [line for line in (SAMPLES / "sample_english.txt").read_text().splitlines() if line.strip()]
    wanted = {tuple([0, *library.encode(line, add_special_tokens=False).ids, 1]) for line in lines}
    rows = records.Rows(node(finished[0], "data") / "rows/retain.array_record")
    found, whole = set(), 0
    for row in rows.gather(np.arange(len(rows))):
        for segment in range(1, row[SEGMENTS].max() + 1):
            ids = tuple(row[TOKENS][row[SEGMENTS] == segment].tolist())
            if ids[0] == 0 and ids[-1] == 1:  # neither cut at its end nor at its beginning
                found.add(ids)
            whole += ids[0] == 0
    assert found <= wanted and whole > len(lines) // 2
    assert all(library.decode(ids, skip_special_tokens=True) in lines for ids in found)


@pytest.mark.end_to_end
def test_held_to_its_start_a_model_begins_at_a_divergence_of_zero(finished):
    rows = [row for row in rows_of(node(finished[0], "maxent") / "metrics.jsonl") if row["kind"] == "train"]
    held = [row["retain"] for row in rows]
    assert abs(held[0]) < 1e-5 < 1e-3 < max(held)


# Identity


def nodes_of(**reference: str) -> dict[str, graph.Node]:
    module = load_module(ROOT / "configs/wmdp.py")
    config = module.get_config("smoke")
    config.reference.update(reference)
    return graph.build(with_content_hashes(load_experiment(module, config), Digests()), Path("x"))


@pytest.mark.unit
def test_a_model_is_known_by_its_contents(tmp_path):
    here = nodes_of()
    copy = shutil.copytree(MODEL, tmp_path / "elsewhere")
    moved = nodes_of(path=str(copy))
    assert {name: n.identity for name, n in moved.items()} == {name: n.identity for name, n in here.items()}
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors")
    changed = nodes_of(path=str(copy))
    assert changed["data"].identity == here["data"].identity
    assert all(changed[name].identity != here[name].identity for name in here if name != "data")


@pytest.mark.unit
def test_imports_of_one_model_at_a_time(tmp_path, monkeypatch):
    """The second waits for the first, and finds what it made."""
    loaded, began, go, load = [], threading.Event(), threading.Event(), importing.Published.load

    def slow(self, mesh):
        loaded.append(threading.get_ident())
        began.set()
        assert go.wait(30)
        return load(self, mesh)

    monkeypatch.setattr(importing.Published, "load", slow)
    monkeypatch.setattr(importing, "PATIENCE", 0.05)
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(importing.import_model(MODEL, tmp_path))) for _ in range(2)]
    both[0].start()
    assert began.wait(30)
    both[1].start()
    both[1].join(0.3)
    assert both[1].is_alive()
    go.set()
    for thread in both:
        thread.join(30)
    assert len(loaded) == 1 and found[0] == found[1] and (found[0] / "DONE").exists()


# What is refused


REFUSED = {
    "no model": (["--config.reference.path="], ["stages.reference.path is empty", "hf download"]),
    "no such model": (["--config.reference.path=google/x"], ["google/x: no such directory", "hf download google/x"]),
    "no tokens": (["--config.data.vocabulary="], ["data.vocabulary is empty", "set it to '", "choices/model'"]),
    "another model": (["--config.model.layers=3"], ["is another model: it has model.layers = 2, not 3"]),
    "no items": (["--config.data.bio="], ["data.bio and data.cyber are empty"]),
    "no MMLU": (["--config.data.mmlu="], ["data.mmlu is empty"]),
    "no examples": (["--config.data.mmlu_dev="], ["data.mmlu_dev is empty", "data.shots=1"]),
    "no such items": (["--config.data.bio=x/y.csv"], ["data.bio=x/y.csv: no such file", "hf download cais/wmdp"]),
    "preset": (["--config=configs/wmdp.py:3b"], ["no preset '3b'", "2b, 9b, 70b, smoke"]),
    "methods": (["--config.methods=('rmu',)"], ["give maxent first"]),
    "precision": (["--config.precision=bf16"], ["precision = 'bf16'", "fp32, bf16_weights"]),
    "hold": (["--config.maxent.hold=l2"], ["hold = 'l2'", "'cross_entropy' or 'kl'"]),
}


@pytest.mark.unit
@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_before_anything_runs(case, tmp_path, capsys):
    given, words = REFUSED[case]
    config = [] if given[0].startswith("--config=") else [SMOKE]
    code = call("run", *config, *given, f"--workdir={tmp_path}/run")
    assert_refused(code, *capsys.readouterr(), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="RMU does not read it"):
        Unlearn(start="a", method="rmu", hold="kl")
    with pytest.raises(ValueError, match="there is no path of the model"):
        Import(adapter="x")


@pytest.mark.unit
def test_a_vocabulary_that_is_none_is_refused(tmp_path):
    copy = shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "bos_token"}))
    assert sentencepiece_vocab.load(copy).bos_id() == 0  # config.json says it too
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="nothing says what <bos> is"):
        sentencepiece_vocab.load(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer"):
        sentencepiece_vocab.load(copy)


# The measure


@pytest.mark.unit
def test_the_cost_of_a_measurement_counts_what_is_read(finished):
    rows = node(finished[0], "data") / "rows"
    measure, cfg = MultipleChoice(rows), open_model(node(finished[0], "reference")).cfg
    lengths = [len(r["tokens"]) for r in records.load_evaluation(rows) if r["part"] == "heldout"]
    assert measure.tokens(("heldout",)) == sum(128 * math.ceil(n / 128) for n in lengths)
    wide = dataclasses.replace(cfg, vocab=2 * cfg.vocab)
    heads = measure.flops(wide, ("heldout",)) - measure.flops(cfg, ("heldout",))
    assert heads == pytest.approx(len(lengths) * 2 * cfg.hidden * cfg.vocab * 2)  # of two places: ' C' has two tokens


@pytest.mark.unit
def test_a_population_is_measured_by_the_likelihood_of_letters(tmp_path):
    """Two members on two devices, against plain logits of each whole answer, in float64."""
    files = {"bio": f"{HERE}/bio.jsonl", "mmlu": f"{HERE}/mmlu.jsonl"}
    told = write_quiz(QuizConfig(**files, shots=0, items=3), sentencepiece_vocab.load(MODEL), tmp_path)
    assert told["evaluation"]["parts"]["heldout"] == {"items": 3, "readings": 6, "cut": 0}
    model, measure, mesh = open_model(MODEL), MultipleChoice(tmp_path), make_mesh(2)
    params = model.load(make_mesh(1, devices=jax.devices()[:1]), "float32")
    other = jax.tree.map(lambda w: w + 0.3 * np.random.RandomState(w.size).randn(*w.shape).astype(np.float32), params)
    stack = jax.tree.map(lambda *w: np.stack([np.asarray(x) for x in w]), params, other)
    seen = measure.evaluator(model.cfg, mesh, ("retain", "heldout"), 4, 0)(stack)
    apply = jax.jit(transformer.apply, static_argnums=0)
    for member, weights in enumerate((params, other)):
        said: dict[tuple[str, int], dict[int, float]] = {}
        for r in records.load_evaluation(tmp_path):
            for choice, last in zip(r["choices"], r["last"], strict=True) if r["part"] != "shown" else ():
                row, length = np.zeros((1, 192), np.int32), len(r["tokens"]) + 1
                row[0, :length] = [*r["tokens"], last]
                z = np.asarray(apply(model.cfg, weights, row, (row > -1) * (np.arange(192) < length)), np.float64)[0]
                z -= z.max(-1, keepdims=True)
                log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
                mine = sum(log_p[t - 1, row[0, t]] for t in range(length - 1 - r["own"], length))
                said.setdefault((r["part"], r["item"]), {})[choice] = mine
        answers = {(r["part"], r["item"]): r["answer"] for r in records.load_evaluation(tmp_path)}
        right = {key: max(found, key=found.get) == answers[key] for key, found in said.items()}
        assert seen[member].tolist() == list(right.values())
        assert all(sorted(found) == [0, 1, 2, 3] for found in said.values())
    bad = jax.tree.map(np.copy, stack)
    bad["final_norm"]["scale"][1, 0] = np.nan  # argmax of NaN is A, which some answers are
    broken = measure.evaluator(model.cfg, mesh, ("retain", "heldout"), 4, 0)(bad)
    assert broken[0].tolist() == seen[0].tolist() and np.isnan(broken[1]).all() and np.isfinite(seen).all()
    result = measure.result(broken[1], ("retain", "heldout"))
    assert result["retain"] is result["forget"] is None
    assert {group["multiple_choice"] for group in result["by_group"].values()} == {None}
    scores = measure.series(seen, ("retain", "heldout"))
    assert scores["heldout"].tolist() == scores["heldout_bio"].tolist() == seen[:, 3:].mean(axis=1).tolist()


@pytest.mark.unit
def test_items_are_given_two_halves(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"question": "Q", "choices": ["a", "b"], "answer": 0}\n')
    config = QuizConfig(bio=f"{tmp_path}/one.jsonl", mmlu=f"{tmp_path}/one.jsonl", shots=0)
    with pytest.raises(ConfigError, match="have no two items"):
        config.eval_splits()
    few = QuizConfig(bio=f"{HERE}/bio.jsonl", mmlu=f"{HERE}/mmlu.jsonl", shots=0, items=3)
    whole = QuizConfig(bio=f"{HERE}/bio.jsonl", mmlu=f"{HERE}/mmlu.jsonl", shots=0, items=0)
    for part, found in few.eval_splits().items():
        assert len(found) == 3 and found == whole.eval_splits()[part][:3]  # fewer are the first of more
