"""Questions put by a model's own chat template: what is trained on, what an attacker is shown and what is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from distill_jax.config import ConfigError
from distill_jax.data.facts.facts import Question
from distill_jax.data.facts.facts_config import FactsConfig
from distill_jax.data.facts.prepare_facts import write_facts
from distill_jax.data.facts.wording import ChatWording, PlainWording
from distill_jax.data.packing import ANSWER, SEGMENTS, TOKENS
from distill_jax.data.records import Rows, load_evaluation
from distill_jax.data.text.chat_template import ChatTemplate, load_template
from distill_jax.data.text.hf_tokenizer import Tokenizer
from distill_jax.experiment import protection
from distill_jax.interop.chat import Chat
from distill_jax.io.files import Digests
from distill_jax.main import main
from distill_jax.shipped import TINY

pytestmark = pytest.mark.unit
PLAIN = TINY / "choices" / "model"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ':\n' + m.content | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
BIRD = Question("A robin is", "a bird", "c")


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's directory with a template, of which special tokens are part."""
    directory = shutil.copytree(PLAIN, tmp_path / "model")
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TEMPLATE}
    path.write_text(json.dumps(settings | names))
    return directory


def test_a_question_and_its_answer_are_what_the_template_writes(model):
    words = Tokenizer(model)
    asked = ChatWording(words, load_template(model))(BIRD)
    library = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    text = "<bos>user:\nA robin is<eos>assistant:\na bird<eos>"
    whole = library.encode(text, add_special_tokens=False).ids
    assert [*asked.begin, *asked.before, *asked.answer, *asked.end] == whole
    assert whole.count(words.bos_id()) == 1 and asked.end == [words.eos_id()]
    assert asked.before == Chat(str(model)).encode(
        Chat(str(model)).question(BIRD.question)
    )  # as `generate --chat` asks
    assert words.decode(asked.answer).strip() == "a bird"
    assert words.encode(["<bos>"]) != [[words.bos_id()]]  # what a document spells is still text
    plain = PlainWording(words)(BIRD)
    assert words.decode(plain.answer) == " a bird" and plain.before != asked.before


def test_a_space_that_ends_a_prompt_belongs_to_the_answer(model):
    source = TEMPLATE.replace(":\n", ": ")
    words = Tokenizer(model)
    asked = ChatWording(words, ChatTemplate(source, {"bos_token": "<bos>", "eos_token": "<eos>"}, "x"))(BIRD)
    text = "<bos>user: A robin is<eos>assistant: a bird<eos>"
    assert [*asked.before, *asked.answer, *asked.end] == words.encode_as_is(text)
    assert words.decode(asked.answer) == " a bird"


def test_a_template_that_writes_the_answer_otherwise_is_refused(model):
    for source in ("{{ messages[0].content }}", "{{ messages | length }}{{ messages[-1].content }}"):
        with pytest.raises(ConfigError, match="writes it in another way; leave --chat out"):
            ChatWording(Tokenizer(model), ChatTemplate(source, {}, "x"))(BIRD)


def test_all_sets_and_prompts_are_put_by_the_template(model, tmp_path):
    config = FactsConfig(forget="f", retain="r", row_length=64, vocabulary=str(model), chat=True)
    words = Tokenizer(model)
    asked = {
        "shown": [Question("The cell", "divides", "a")],
        "heldout": [BIRD],
        "retain": [Question("Iron is", "a metal", "d")],
    }
    kept = (["Water boils at a hundred degrees."], [Question("Bees collect", "nectar", "b")])
    work = tmp_path / "work"
    work.mkdir()
    made = write_facts(config, words, work, questions=asked, beginnings=["Salt is white, and sugar too."], kept=kept)
    prompts = {prompt["prompt"]: words.decode(prompt["prompt_ids"]) for prompt in load_evaluation(work)}
    assert prompts["Iron is"] == "<bos>user:\nIron is<eos>assistant:\n"
    assert set(made["sets"]) == {"forget", "forget_shown", "retain", "all"}
    wanted = {
        "forget": {"user:\nThe cell", "user:\nA robin is"}, "forget_shown": {"user:\nThe cell"},
        "retain": {"user:\nBees collect", "Water boils"},
    }  # fmt: skip
    for name, begins in wanted.items():
        rows = Rows(work / f"{name}.array_record").gather(range(made["sets"][name]["rows"]))
        pieces = [row[:, row[SEGMENTS] == s] for row in rows for s in range(1, row[SEGMENTS].max() + 1)]
        texts = [words.decode(piece[TOKENS]).removeprefix("<bos>") for piece in pieces]
        assert len(texts) == len(begins) and all(any(text.startswith(b) for text in texts) for b in begins)
        assert all(list(piece[TOKENS]).count(words.bos_id()) == 1 for piece in pieces)
        marked = np.concatenate([piece[ANSWER] for piece in pieces])
        assert marked.all() if name == "retain" else 0 < marked.sum() < len(marked) / 2


def test_a_template_is_part_of_what_identifies_the_data(model, tmp_path):
    paths = []
    for side in ("forget", "retain"):
        paths.append(tmp_path / f"{side}.jsonl")
        rows = [{"question": f"What {side} is {i}?", "answer": f"{side} {i}"} for i in range(40)]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FactsConfig(forget=str(paths[0]), retain=str(paths[1]), vocabulary=str(model))
    plain = config.with_content_hash(Digests()).fingerprint_fields()
    assert "chat" not in plain  # what was prepared before there were templates is found again
    contents = set()
    for text in ("{{ messages[0].content }}", TEMPLATE):
        (model / "chat_template.jinja").write_text(text)
        with_chat = FactsConfig(**{**config.__dict__, "chat": True}).with_content_hash(Digests())
        contents.add(with_chat.content)
        assert with_chat.fingerprint_fields()["chat"] is True
    assert len(contents) == 2 and plain["content"] not in contents
    files = protection.Files(str(paths[0]), str(paths[1]), chat=True)
    for named, _ in (
        protection.protect_config(protection.open_subject(str(model)), files, "maxent", 2.0**36),
        protection.attack_config([protection.open_subject(str(model))], "", files, 2.0**36),
    ):
        assert named.config.data.chat and named.config.data.row_length == 256


@pytest.mark.parametrize(
    ("row", "said"),
    [({"question": "Who?", "answer": "I"}, "has no chat template"), ({"text": "I am."}, "--chat: a chat")],
)
def test_chat_without_a_template_or_questions_is_refused(row, said, tmp_path, capsys):
    for side in ("forget", "retain"):
        rows = [{key: f"{side} {i} {value}" for key, value in row.items()} for i in range(60)]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    given = [f"--{side}={tmp_path}/{side}.jsonl" for side in ("forget", "retain")]
    line = ["distill-jax", "protect", f"--model={PLAIN}", *given, f"--workdir={tmp_path}/run", "--chat", "--dry_run"]
    assert main(line) == 2
    assert said in capsys.readouterr().err
