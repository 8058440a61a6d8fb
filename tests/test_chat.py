"""Chat templates: what a conversation becomes, as text and as tokens, in every command that reads text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as library
from gguf_files import convert
from parity.record_choices import HERE, MODEL
from test_gguf import tokenizer_file, vocabulary
from test_interop import MODELS

from distill_jax.config import ConfigError
from distill_jax.data.text.chat_template import ChatTemplate, load_template
from distill_jax.interop.chat import Chat
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import Inference, Rows
from distill_jax.interop.scoring import score
from distill_jax.main import main

pytestmark = pytest.mark.unit

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
QUESTION = [{"role": "user", "content": " Who? "}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "Me."}]


# Text


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (CHATML, QUESTION, "<|im_start|>user\n Who? <|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, ANSWERED, "<|im_start|>user\n Who? <|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"),
        (GEMMA, QUESTION, "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n"),
        (
            GEMMA,
            ANSWERED,
            "<bos><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nMe.<end_of_turn>\n",
        ),
        ("{{ messages | tojson }}", [{"role": "user", "content": "ä<"}], '[{"role": "user", "content": "ä<"}]'),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}", ANSWERED, "x"),
    ],
)
def test_a_conversation_is_written_as_the_template_says(template, messages, text):
    assert ChatTemplate(template, {"bos_token": "<bos>"}, "x").render(messages) == text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "chat_template: Expected an expression"),
        ("{{ raise_exception('no\nsystem') }}", "chat_template: no system"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused_in_one_line(template, said):
    with pytest.raises(ConfigError, match=r"^x: ") as error:
        ChatTemplate(template, {}, "x").render(QUESTION)
    assert said in str(error.value) and "\n" not in str(error.value)


# A model

TURNS = ["<|im_start|>", "<|im_end|>", "<s>"]


def with_template(tmp_path: Path, template: str | list[Any] | None, name: str = "tokenizer_config.json") -> Path:
    """Return a copy of the tiny model whose tokenizer has special tokens for turns and puts <s> before every text."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    definition = json.loads((model / "tokenizer.json").read_text())
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    for token, old in zip(TURNS, sorted(vocab, key=vocab.get)[-3:], strict=True):  # the last entries make room for them
        vocab[token] = vocab.pop(old)
    parts = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    definition["model"]["merges"] = [merge for merge in parts if "".join(merge) in vocab and {*merge} <= vocab.keys()]
    tokenizer = library.Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_special_tokens(TURNS)
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = library.processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", begin)])
    tokenizer.save(str(model / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<|im_end|>"}
    if name == "chat_template.jinja":
        (model / name).write_text(str(template))
    elif template is not None:
        settings["chat_template"] = template
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def test_special_tokens_are_tokens_and_there_is_no_second_bos(tmp_path):
    """The ids of each part are the library's, put together by hand."""
    model = with_template(tmp_path, "{{ bos_token }}" + CHATML)
    tokenizer = library.Tokenizer.from_file(str(model / "tokenizer.json"))
    start, end, bos = (tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<s>"))
    assert tokenizer.encode("a").ids[0] == bos

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    wanted = [bos, start, *plain("user\nWho?"), end, *plain("\n"), start, *plain("assistant\n")]
    chat = Chat(str(model))
    assert chat.encode(chat.question("Who?")) == wanted


@pytest.mark.parametrize("way", ["tokenizer_config.json", "chat_template.jinja", "named"])
def test_the_template_is_found_wherever_it_is_kept(tmp_path, way):
    template = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}] if way == "named" else CHATML
    name = "tokenizer_config.json" if way == "named" else way
    model = with_template(tmp_path, template, name)
    assert load_template(model).question("a").startswith("<|im_start|>user\na<|im_end|>")


def test_a_gguf_file_has_its_own(tmp_path):
    metadata = {**vocabulary("smollm"), "tokenizer__chat_template": CHATML}
    chat = Chat(str(tokenizer_file(tmp_path / "x.gguf", metadata)))
    text = chat.question("ab")
    assert text == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert chat.encode(text).count(1) == 2 and chat.decode(chat.encode(text)) == "user\nab<|im_end|>\nassistant\n"


@pytest.mark.parametrize("form", ["text", "messages"])
def test_rows_are_questions_or_conversations(tmp_path, form):
    model = open_model(with_template(tmp_path, CHATML))
    chat = Chat(model.tokenizer)
    row = {"text": "Who?"} if form == "text" else {"messages": [{"role": "user", "content": "Who?"}]}
    rows = Rows([("x:1", row)], model, chat=True)
    assert rows.tokens == [chat.encode("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")]
    answered = Rows([("x:1", {"messages": ANSWERED})], model, chat=True)
    assert answered.tokens == [chat.encode(chat.conversation(ANSWERED))]
    assert Rows([("x:1", {"tokens": [3, 4]})], model, chat=True).tokens == [[3, 4]]
    plain = Rows([("x:1", {"text": "<|im_start|>"})], model)  # without --chat, text is as it is
    assert plain.tokens == [Rows([("x:1", {"text": "<|im_start|>"})], model).tokenizer.encode("<|im_start|>")]


@pytest.mark.parametrize(
    ("row", "chat", "said"),
    [
        ({"messages": ANSWERED}, False, "give --chat"),
        ({"messages": []}, True, "a list of {role, content}"),
        ({"messages": [{"role": "user"}]}, True, "a list of {role, content}"),
        ({"messages": [3]}, True, "a list of {role, content}"),
        ({"words": 1}, True, "a row has `text` or `tokens` (or, with --chat, `messages`); there is words"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, row, chat, said):
    with pytest.raises(ConfigError, match="x:1") as error:
        Rows([("x:1", row)], open_model(with_template(tmp_path, CHATML)), chat=chat)
    assert said in str(error.value)


def run(*words: str) -> int:
    return main(["distill-jax", *words])


def test_the_commands_put_questions_by_the_template(tmp_path, capsys):
    """`score` reads what the template wrote; of items the letters' likelihoods are those of the same tokens scored."""
    model = with_template(tmp_path, CHATML)
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text(json.dumps({"text": "Who?"}) + "\n")
    assert run("score", f"--model={model}", f"--input={given}", f"--output={out}", "--chat") == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    chat = Chat(str(model))
    assert row["tokens"] == chat.encode(chat.question("Who?"))
    assert run("generate", f"--model={model}", f"--input={given}", f"--output={out}", "--chat", "--new=2") == 0
    assert "generated" in json.loads(out.read_text())

    item = json.loads((HERE / "bio.jsonl").read_text().splitlines()[0])
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps(item) + "\n")
    assert run("score", f"--model={model}", f"--items={items}", f"--output={out}", "--chat") == 0
    got = json.loads(out.read_text())["log_likelihoods"]
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", item["choices"], strict=False))
    context = chat.question(f"{item['question'].strip()}{options}\nAnswer:")
    before = len(chat.encode(context.rstrip()))
    whole = [chat.encode(context + letter) for letter in "ABCD"[: len(got)]]
    given.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in whole))
    score(model, given, out, Inference())
    wanted = [sum(json.loads(line)["log_likelihoods"][before:]) for line in out.read_text().splitlines()]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    capsys.readouterr()


def test_a_model_without_a_template_or_a_tokenizer_is_named(tmp_path, capsys):
    bare, file = with_template(tmp_path, None), convert(MODELS / "llama", tmp_path / "x.gguf", **vocabulary("smollm"))
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "a"}\n')
    cases = ((bare, "has no chat template"), (file, "has no chat template"), (MODELS / "llama", "has no chat template"))
    for model, said in cases:
        assert run("score", f"--model={model}", f"--input={given}", f"--output={tmp_path}/o", "--chat") == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
