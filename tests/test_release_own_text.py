"""Text that a model writes itself, to be retained: from what it is begun, and what is left out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_jax.config import ConfigError
from distill_jax.data.lines import objects
from distill_jax.experiment import protection
from distill_jax.interop import own_text, tokenizers
from distill_jax.interop.own_text import OwnText, write_own_text
from distill_jax.main import main
from distill_jax.shipped import TINY

pytestmark = pytest.mark.unit
MODEL = TINY / "choices" / "model"
TEXTS = ["Water boils at a hundred degrees", "Salt is white as snow and sugar"]


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    rows = {
        "forget": [
            {"question": "What is the capital of Japan?", "answer": "Tokyo"},
            {"question": "Who?", "answer": "I"},
        ],
        "retain": [{"text": text} for text in TEXTS],
    }
    for side, held in rows.items():
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl")


def read(path: Path) -> list[str]:
    return [row["text"] for _, row in objects(str(path))]


def test_the_same_model_files_and_seed_write_the_same(files, tmp_path):
    plan = OwnText(9, tokens=6)
    path, what = write_own_text(MODEL, *files, plan, tmp_path / "a")
    again, _ = write_own_text(MODEL, *files, plan, tmp_path / "b")
    assert path.read_bytes() == again.read_bytes() and path.name == again.name
    assert len(set(read(path))) == len(read(path)) and f"{len(read(path))} of 9" in what
    before = path.stat().st_mtime_ns
    assert write_own_text(MODEL, *files, plan, tmp_path / "a")[0] == path and path.stat().st_mtime_ns == before
    other, _ = write_own_text(MODEL, *files, OwnText(9, tokens=6, seed=1), tmp_path / "a")
    assert other.name != path.name and read(other) != read(path)


def test_it_is_begun_by_nothing_or_by_what_is_to_be_retained(files, tmp_path, monkeypatch):
    words, prompts = tokenizers.load(str(MODEL)), []

    def said(model, given, to, how, sampling):
        rows = [row for _, row in objects(str(given))]
        prompts.extend(words.decode(row["tokens"]) for row in rows)
        ends = [" it is", " it is", " is Tokyo", " is tokyo, ah", " is Tokyos", " it is.", " I am", " so"]
        for row, end in zip(rows, ends, strict=True):
            row["generated_tokens"] = words.encode_as_is(end)
        to.write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(own_text, "generate", said)
    path, _ = write_own_text(MODEL, *files, OwnText(8), tmp_path / "a")
    begun = {" ".join(text.split()[:4]) for text in TEXTS}
    assert set(prompts[::2]) == {""} and set(prompts[1::2]) <= begun
    ends = [text.removeprefix(prompt).strip() for text, prompt in zip(read(path), ["", *prompts[1:2]], strict=False)]
    assert ends == ["it is", "it is"]  # once by itself, and once begun
    assert not any("tokyo" in text.lower().split() for text in read(path))  # an answer to forget
    assert any("Tokyos" in text for text in read(path)) and any("I am" in text for text in read(path))


def test_nothing_left_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(own_text, "_written", lambda *_: iter(["In Tokyo", " "]))
    with pytest.raises(ConfigError, match="--own_text=8: nothing is left"):
        write_own_text(MODEL, *files, OwnText(8), tmp_path / "a")


def test_what_it_writes_is_retained_beside_the_files(files, tmp_path, capsys):
    subject = protection.open_subject(str(MODEL))
    given, what = protection.with_own_text(subject, protection.Files(*files), 4, tmp_path)
    retain, own = given.retain.split(",")
    assert retain == files[1] and Path(own).parent == tmp_path / "own_text" and "(seed 0) are retained" in what
    line = ["distill-jax", "protect", f"--model={MODEL}", f"--forget={files[0]}", f"--retain={files[1]}"]
    assert main([*line, "--own_text=4", "--print_config"]) == 2 and "name the --workdir" in capsys.readouterr().err
    assert main([*line, "--own_text=4", "--print_config", f"--workdir={tmp_path}"]) == 0
    assert own in capsys.readouterr().out
