"""What a stranger gives wrong at first: refused in a line that names what was given and what to give instead."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from distill_jax.commands import score
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.text import gguf_tokenizer
from distill_jax.main import main
from distill_jax.shipped import TINY
from tests.gguf_files import convert

MODEL = TINY / "choices" / "model"
SMOKE = {"score": [], "bench": [], "plan": ["--config=arithmetic:smoke"]}  # what each command needs besides


def questions(path: Path, count: int) -> str:
    rows = [{"question": f"Of {path.stem}, what is number {i}?", "answer": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refused(capsys, *words: str) -> str:
    """Return the only line that a command says before it ends in 2."""
    assert main(["distill-jax", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("distill-jax: ")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense=3"], "--nonsense: protect has no such flag; `distill-jax protect --help` shows"),
        (["--froget=x"], "--froget: protect has no such flag (did you mean 'forget'?)"),
        (["--dry_run=maybe"], "--dry_run=maybe: must be true or false"),
        (["--heartbeat=soon"], "--heartbeat=soon: must be a whole number"),
    ],
)
def test_a_flag_that_is_none_or_of_another_type_says_what_it_takes(capsys, words, said):
    assert refused(capsys, "protect", *words).startswith(said)


@pytest.mark.unit
def test_a_number_that_is_none_is_said_to_be_none(capsys):
    assert refused(capsys, "bench", "accelerator", "--minutes=abc") == "--minutes=abc: must be a number"


@pytest.mark.unit
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_refused(capsys, number):
    assert refused(capsys, "bench", "accelerator", f"--minutes={number}") == f"--minutes={number}: must be finite"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "exists and is no file; choose another name"),
        ("file/below", "is a file; name a file below a directory"),
        ("file/far/below", "is a file; name a file below a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for command in (
        ["score", "--input=x", "--model=x", "--output"],
        ["bench", "--json"],
        ["plan", "--slice=v5e-1", "--json"],
    ):
        line = refused(capsys, *command[:-1], *SMOKE[command[0]], f"{command[-1]}={place}")
        assert line.startswith(f"{command[-1]}={place}: ") and line.endswith(message)


@pytest.mark.unit
def test_a_directory_that_cannot_be_made_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    line = refused(capsys, "export", "--model=x", f"--to={tmp_path / 'file'}")
    assert line == f"--to={tmp_path / 'file'}: exists and is no directory; choose another name"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nlong list"),
            "allocating 9",
        ),
        (MemoryError(), "the host has no more"),
    ],
)
def test_no_room_in_memory_is_said_in_a_line(monkeypatch, capsys, error, message):
    monkeypatch.setattr(score, "main", lambda _: (_ for _ in ()).throw(error))
    line = refused(capsys, "score")
    assert line.startswith("out of memory: ") and message in line and "lower --batch" in line


@pytest.mark.unit
def test_devices_that_are_no_number_are_refused_before_xla_reads_them(capsys):
    given = ["attack", "--model=x", "--forget=f", "--retain=r", "--workdir=w"]
    for devices in ("foo", "-1", "9" * 30):
        line = refused(capsys, *given, f"--config.run.cpu_devices={devices}")
        assert line == f"--config.run.cpu_devices={devices}: must be a whole number, at least 1"
    assert refused(capsys, *given, "--config.run.cpu_devices=1000000").startswith("--config.run.cpu_devices = 1000000")
    assert refused(capsys, *given, "--model=gs:/bucket/x").startswith("--model=gs:/bucket/x: this is an address")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.model", "x", "not a SentencePiece model, or a damaged one"),
        ("model/tokenizer.json", "{}", "no tokenizer ("),
        ("model/tokenizer.json", "no JSON", "no tokenizer ("),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, capsys, name, content, message):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    place = file.parent if file.parent != tmp_path else file
    given = ("--config=language:smoke", f"--config.data.vocabulary={place}", f"--workdir={tmp_path / 'run'}")
    assert refused(capsys, "run", *given).startswith(f"data.vocabulary={str(place)!r}: {message}")


@pytest.mark.unit
def test_a_file_that_is_no_model_is_told_from_one_that_is_missing(tmp_path, capsys):
    file = questions(tmp_path / "some.jsonl", 3)
    line = refused(capsys, "protect", f"--model={file}", f"--forget={file}", f"--retain={file}", "--workdir=x")
    assert line.startswith(f"{file}: no model") and "name a directory" in line


@pytest.mark.unit
def test_an_unknown_method_is_named_by_its_flag(tmp_path, capsys):
    file = questions(tmp_path / "some.jsonl", 3)
    given = (f"--model={MODEL}", f"--forget={file}", f"--retain={file}", "--workdir=x")
    line = refused(capsys, "protect", *given, "--method=maxnet")
    assert line.startswith("--method=maxnet: no such method (did you mean 'maxent'?); choose maxent, graddiff, rmu")


@pytest.mark.unit
def test_an_empty_file_is_no_small_one(tmp_path):
    config = FactsConfig(forget=questions(tmp_path / "forget.jsonl", 0), retain="r")
    with pytest.raises(ValueError, match="is empty; name files") as error:
        config.check_heldout(0, "facts", config.heldout)
    assert config.forget in str(error.value) and "held out" not in str(error.value)


@pytest.mark.unit
def test_a_gguf_file_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer, for tokenizer\.ggml\.model is missing"):
        gguf_tokenizer.tokenizer_files(convert(MODEL, tmp_path / "bare.gguf"))


@pytest.mark.unit
def test_a_dry_run_says_what_a_tiny_model_needs_in_columns(tmp_path, capsys):
    forget, retain = (questions(tmp_path / f"{side}.jsonl", 40) for side in ("forget", "retain"))
    given = (f"--model={MODEL}", f"--forget={forget}", f"--retain={retain}", f"--workdir={tmp_path / 'run'}")
    assert main(["distill-jax", "protect", *given, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("  ")]
    assert "MiB" in printed and "0.0 GiB" not in printed
    assert len({line.rindex("  ") for line in rows}) == 1, rows
