"""score and generate: held against recorded logits of transformers; tokenizers, and rows that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_interop import FAMILIES, MODELS, expected, logits

from distill_jax.config import ConfigError
from distill_jax.data.lines import objects
from distill_jax.interop import tokenizers
from distill_jax.interop.generation import Sampling, generate
from distill_jax.interop.model_source import open_model
from distill_jax.interop.rows import Inference, padded_length
from distill_jax.interop.rows import write as write_rows
from distill_jax.interop.scoring import score
from distill_jax.main import main
from distill_jax.models import decoding, likelihood

pytestmark = pytest.mark.unit


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(name: str) -> list[dict]:
    """Return the recorded rows without their padding."""
    said = expected(name)
    return [
        {"tokens": t[m > 0].tolist(), "id": i}
        for i, (t, m) in enumerate(zip(said["tokens"], said["mask"], strict=True))
    ]


def reference(name: str) -> list[np.ndarray]:
    """Return what the recorded logits say of each token but the first, in float64."""
    said, out = expected(name), []
    for tokens, mask, row in zip(said["tokens"], said["mask"], said["logits"].astype(np.float64), strict=True):
        tokens, row = tokens[mask > 0], row[mask > 0]
        log_p = row - np.log(np.exp(row).sum(axis=-1, keepdims=True))
        out.append(log_p[np.arange(len(tokens) - 1), tokens[1:]])
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_transformers(tmp_path, name, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", 2 * 2 * 53)  # two positions of two rows at a time
    score(MODELS / name, write(tmp_path / "in", prompts(name)), tmp_path / "out", Inference(batch=2))
    for row, said, asked in zip(read(tmp_path / "out"), reference(name), prompts(name), strict=True):
        assert row["id"] == asked["id"] and row["tokens"] == asked["tokens"]
        assert row["log_likelihoods"][0] is None
        np.testing.assert_allclose(row["log_likelihoods"][1:], said, atol=2e-4)
        assert row["log_likelihood"] == pytest.approx(said.sum(), abs=2e-3)


def test_bfloat16_scores_are_near(tmp_path):
    score(MODELS / "llama", write(tmp_path / "in", prompts("llama")), tmp_path / "out", Inference(dtype="bfloat16"))
    error = [
        np.subtract(r["log_likelihoods"][1:], said)
        for r, said in zip(read(tmp_path / "out"), reference("llama"), strict=True)
    ]
    assert 1e-3 < np.abs(np.concatenate(error)).mean() < 0.2


def test_a_row_of_one_token_has_no_likelihood(tmp_path):
    score(MODELS / "llama", write(tmp_path / "in", [{"tokens": [3]}]), tmp_path / "out", Inference(batch=3))
    assert read(tmp_path / "out") == [{"tokens": [3], "log_likelihoods": [None], "log_likelihood": 0.0}]


def test_greedy_generation_follows_the_recorded_logits(tmp_path):
    """The first token by transformers' logits, all of them by those of one pass over what was generated."""
    said, rows = expected("gemma3"), prompts("gemma3")
    generate(MODELS / "gemma3", write(tmp_path / "in", rows), tmp_path / "out", Inference(batch=2), Sampling(new=3))
    whole, mask = np.zeros((2, len(rows), 17), int)
    found = read(tmp_path / "out")
    for place, row in enumerate(found):
        tokens = row["tokens"] + row["generated_tokens"]
        whole[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
    follows = logits(MODELS / "gemma3", whole, mask).argmax(axis=-1)
    for place, row in enumerate(found):
        last, length = np.flatnonzero(said["mask"][place])[-1], len(row["tokens"])
        assert row["generated_tokens"][0] == said["logits"][place, last].argmax()
        np.testing.assert_array_equal(row["generated_tokens"], follows[place, length - 1 : length + 2])


def test_generation_ends_before_the_end_token(tmp_path):
    given = write(tmp_path / "in", prompts("llama")[:1])
    generate(MODELS / "llama", given, tmp_path / "all", Inference(batch=3), Sampling(new=6))
    (whole,) = (row["generated_tokens"] for row in read(tmp_path / "all"))
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    config = json.loads((copy / "config.json").read_text())
    end = next(i for i in range(1, 6) if whole[i] not in whole[:i])
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": [99, whole[end]]}))
    generate(copy, given, tmp_path / "cut", Inference(batch=3), Sampling(new=6))
    assert read(tmp_path / "cut")[0]["generated_tokens"] == whole[:end]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": whole[0]}))
    generate(copy, given, tmp_path / "cut", Inference(batch=3), Sampling(new=6))
    assert read(tmp_path / "cut")[0]["generated_tokens"] == []


def test_sampling_depends_on_seed_and_row_alone(tmp_path):
    given = write(tmp_path / "in", prompts("llama"))

    def draw(batch: int, seed: int, temperature: float) -> list[list[int]]:
        generate(MODELS / "llama", given, tmp_path / "out", Inference(batch=batch), Sampling(6, temperature, seed))
        return [row["generated_tokens"] for row in read(tmp_path / "out")]

    assert draw(3, 0, 2.0) == draw(2, 0, 2.0) != draw(3, 1, 2.0)
    assert draw(3, 0, 1e-4) == draw(3, 1, 0.0)


@pytest.fixture
def short_parts(monkeypatch):
    """Attention of few tokens at a time, as for rows of many thousands."""
    monkeypatch.setattr(decoding, "ATTENTION", 2**10)
    monkeypatch.setattr(decoding, "OF_PARTS", 2**9)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_row_is_read_in_parts_and_scored_as_transformers_does(tmp_path, name, short_parts):
    cfg = open_model(MODELS / name).cfg
    assert decoding.part_length(cfg, 2, 16, 16) == 4
    score(MODELS / name, write(tmp_path / "in", prompts(name)), tmp_path / "out", Inference(batch=2))
    for row, said in zip(read(tmp_path / "out"), reference(name), strict=True):
        np.testing.assert_allclose(row["log_likelihoods"][1:], said, atol=2e-4)


def test_a_long_prompt_is_read_in_parts_and_continued_the_same(tmp_path, request):
    given = write(tmp_path / "in", prompts("gemma3"))
    generate(MODELS / "gemma3", given, tmp_path / "whole", Inference(batch=2), Sampling(new=5))
    request.getfixturevalue("short_parts")
    generate(MODELS / "gemma3", given, tmp_path / "parts", Inference(batch=2), Sampling(new=5))
    assert read(tmp_path / "parts") == read(tmp_path / "whole")


def test_attention_of_long_rows_stays_within_its_bound():
    cfg = open_model(MODELS / "llama").cfg
    for rows, width in ((8, 20_480), (1, 20_480), (64, 16_384), (8, 1_048_576)):
        part = decoding.part_length(cfg, rows, width, width)
        assert width % part == 0 and rows * cfg.heads * part * width <= decoding.ATTENTION
    assert decoding.part_length(cfg, 8, 4096, 4096) == 4096


def test_a_row_longer_than_the_model_reads_is_refused_with_both_lengths(tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    given = write(tmp_path / "in", [{"tokens": [3] * 30}, {"tokens": [3] * 31}])
    for run in (score, generate):
        with pytest.raises(ConfigError, match=r"in:2: has 31 tokens; the model reads 30"):
            run(copy, given, tmp_path / "out")


def test_logits_that_are_not_finite_are_no_answer(tmp_path, capsys):
    """Of weights that are finite, each: their products are not."""
    copy = shutil.copytree(MODELS / "llama", tmp_path / "bad")
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    weights["lm_head.weight"][:] = 3e38
    save_file(weights, file)
    given = write(tmp_path / "in", [{"tokens": [3]}, {"tokens": [3, 7, 5]}])
    for command, line in (("score", 2), ("generate", 1)):  # a single token has no likelihood
        flags = [f"--model={copy}", f"--input={given}", f"--output={tmp_path / 'out'}"]
        assert main(["distill-jax", command, *flags]) == 2
        said = capsys.readouterr().err
        assert f"{given}:{line}: the model's logits are not finite" in said and said.count("\n") == 1
        assert not (tmp_path / "out").exists()


# Text

WORDS = ["<bos>", "<eos>", "<unk>", "a", "cat", "sat", "on", "the", "mat", "dog"]


def with_tokenizer(tmp_path: Path) -> Path:
    """Return a copy of a model with a tokenizer.json: words, behind <bos>."""
    import tokenizers as library

    made = library.Tokenizer(library.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<bos>", "<eos>"])
    made.post_processor = library.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    made.enable_truncation(3)  # files on the hub come with such settings, which are no part of the text
    made.enable_padding(length=20)
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    made.save(str(copy / "tokenizer.json"))
    return copy


def test_text_is_scored_as_its_tokens_are(tmp_path):
    model = with_tokenizer(tmp_path)
    rows = [{"text": "the cat sat on a mat"}, {"tokens": [0, 7, 4, 5, 6, 3, 8]}, {"text": "zebra"}]
    score(model, write(tmp_path / "in", rows), tmp_path / "out", Inference(batch=3))
    text, tokens, unknown = read(tmp_path / "out")
    assert text["text"] == rows[0]["text"] and text["tokens"] == tokens["tokens"]
    assert text["log_likelihoods"] == tokens["log_likelihoods"]
    assert unknown["tokens"] == [0, 2]


def test_the_tokenizer_goes_where_the_model_goes(tmp_path, capsys):
    model = with_tokenizer(tmp_path)
    (model / "generation_config.json").write_text("{}")
    assert main(["distill-jax", "import", f"--from={model}", f"--workdir={tmp_path}"]) == 0
    node = capsys.readouterr().out.split()[-1]
    given = write(tmp_path / "in", [{"text": "the dog"}])
    assert main(["distill-jax", "export", f"--model={node}", f"--to={tmp_path / 'exported'}"]) == 0
    found = []
    for where in (model, node, tmp_path / "exported"):
        flags = [f"--model={where}", f"--input={given}", f"--output={tmp_path / 'out'}"]
        assert main(["distill-jax", "generate", *flags, "--batch=3", "--new=6"]) == 0
        found += read(tmp_path / "out")
    assert found[0] == found[1] == found[2] and found[0]["generated_tokens"]
    assert set(found[0]["generated"].split()) <= set(WORDS[2:])
    assert (tmp_path / "exported/generation_config.json").is_file()


def test_sentencepiece(tmp_path):
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("the cat sat on a mat\nthe dog sat on the cat\n" * 20)
    for name, bos in (("with", 1), ("without", -1)):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(tmp_path / name),
            vocab_size=30,
            hard_vocab_limit=False,
            bos_id=bos,
            minloglevel=2,
        )
    library, bare = (
        sentencepiece.SentencePieceProcessor(model_file=f"{tmp_path}/{n}.model") for n in ("with", "without")
    )
    ours = tokenizers.load(str(tmp_path / "with.model"))
    assert ours.encode("the cat") == [1, *library.encode("the cat")]
    assert ours.decode(ours.encode("the cat")) == "the cat"
    assert tokenizers.load(str(tmp_path / "without.model")).encode("the") == bare.encode("the")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert tokenizers.load(str(tmp_path / "with.model")).encode("the cat") == library.encode("the cat")


def test_a_text_that_spells_bos_begins_with_one(tmp_path):
    """As the same text without it, and as transformers reads it with add_special_tokens=False."""
    model = with_tokenizer(tmp_path)
    rows = [{"text": text} for text in ("<bos>the cat", "the cat", "<bos> <bos>the cat", "<eos>the", "the <bos> cat")]
    score(model, write(tmp_path / "in", rows), tmp_path / "out", Inference(batch=5))
    heads = [[0, 7, 4], [0, 7, 4], [0, 0, 7, 4], [0, 1, 7], [0, 7, 0, 4]]
    assert [row["tokens"] for row in read(tmp_path / "out")] == heads


def test_what_score_and_generate_write_can_be_scored_again(tmp_path):
    model = with_tokenizer(tmp_path)
    given = write(tmp_path / "0", [{"text": "the\u2028cat", "id": 1}, {"text": "a \x85 mat"}])
    for number, run in enumerate((score, generate, score)):
        run(model, tmp_path / str(number), tmp_path / str(number + 1))
    assert [row["text"] for row in read(tmp_path / "3")] == [row["text"] for row in read(given)]
    (tmp_path / "3").write_text((tmp_path / "3").read_text().replace('"tokens": [0, 7', '"tokens": [0, 3'))
    with pytest.raises(ConfigError, match=r"3:1: `tokens` are not those of `text`"):
        score(model, tmp_path / "3", tmp_path / "4")


VALUES = st.text() | st.integers() | st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=5))
def test_any_row_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "out"
    write_rows(path, rows)
    assert [row for _, row in objects(str(path))] == rows
    assert len(path.read_text().splitlines()) == len(rows)  # for readers that cut at more than line feeds


def test_the_shipped_words():
    words = tokenizers.load("words")
    assert words.decode(words.encode("7 * 8 = 56")) == "7 * 8 = 56"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"tokens": [1]}', "{tokens: 1}"], [":2", "no JSON"]),
        (["[1, 2]"], [":1", "a JSON list instead of an object"]),
        (["{}"], [":1", "a row has `text` or `tokens` (or, with --chat, `messages`)"]),
        (['{"tokens": []}'], [":1", "tokens", "at least one"]),
        (['{"tokens": [1.5]}'], ["whole number"]),
        (['{"tokens": [true]}'], ["whole number"]),
        (['{"tokens": [1, 53]}'], [":1", "0 .. 52"]),
        (['{"tokens": [-1]}'], ["0 .. 52"]),
        (['{"text": 5}'], ["text: a string"]),
        (['{"text": "a"}'], ["tokenizer.json", "tokenizer.model", "--tokenizer=FILE", "hf download"]),
        ([""], ["holds no rows"]),
    ],
    ids=str,
)
def test_rows_that_are_none(tmp_path, lines, says):
    (tmp_path / "in").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as error:
        score(MODELS / "llama", tmp_path / "in", tmp_path / "out")
    assert all(text in str(error.value) for text in says), str(error.value)
    assert not (tmp_path / "out").exists()


def test_lengths_are_few_and_near():
    lengths = {n: padded_length(n) for n in range(1, 4097)}
    assert all(n <= padded <= max(n + 15, 1.25 * n) for n, padded in lengths.items())
    assert len(set(lengths.values())) < 40
