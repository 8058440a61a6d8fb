"""GGUF files: the models and tokenizers that were converted, beside recorded logits and the gguf package."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers as library
from gguf_files import GEMMA, QuantType, add, convert, llama3_factors, put, unpermuted, written
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_interop import MODELS, expected, logits

from distill_jax.config import ConfigError
from distill_jax.data.text import gguf_tokenizer, sentencepiece_vocab
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.interop import tokenizers
from distill_jax.interop.exporting import export_model
from distill_jax.interop.gguf_config import llama3_scaling
from distill_jax.interop.gguf_model import GgufFile
from distill_jax.interop.importing import Published, import_model
from distill_jax.interop.model_source import open_model
from distill_jax.io.gguf_header import TYPES, read_header
from distill_jax.main import main
from distill_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.unit

RECORDED = ("gemma2", "gemma3", "llama", "qwen3")


def without_window(tmp_path: Path) -> Path:
    """Return the recorded model of Qwen 2 without the window, which a GGUF file has no key for."""
    copy = shutil.copytree(MODELS / "qwen2", tmp_path / "qwen2")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "use_sliding_window": False, "layer_types": None}))
    return copy


# Weights


@pytest.mark.parametrize("name", RECORDED)
def test_a_converted_model_has_the_logits_of_transformers(tmp_path, name):
    said = expected(name)
    ours = logits(convert(MODELS / name, tmp_path / "x.gguf"), said["tokens"], said["mask"])
    np.testing.assert_allclose(ours, said["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", [*RECORDED, "qwen2"])
def test_a_file_reads_as_the_directory_it_was_converted_from(tmp_path, name):
    source = without_window(tmp_path) if name == "qwen2" else MODELS / name
    mesh, models = make_mesh(1), (open_model(source), open_model(convert(source, tmp_path / "x.gguf")))
    same = {"query_scale": 8.0, "init_std": 0.02} if name in GEMMA else {"init_std": 0.02}
    wanted, got = (dataclasses.replace(model.cfg, **same) for model in models)
    assert got == wanted
    directory, file = (model.load(mesh, "float32") for model in models)
    if name in GEMMA:  # their queries are scaled otherwise, and 1 + w is rounded
        for tree in (directory, file):
            del tree["layers"]["attention"]["query" if name == "gemma2" else "query_norm"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), directory, file)
    else:
        jax.tree.map(np.testing.assert_array_equal, directory, file)


def wide_llama(tmp_path: Path) -> Path:
    """Write a Llama whose rows are as long as a block of any type."""
    heads, kv_heads, width, mlp, vocab = 4, 2, 256, 256, 20
    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    shapes = {f"self_attn.{name}_proj": (n * width // heads, width) for name, n in rows.items()}
    shapes |= {"self_attn.o_proj": (width, width), "mlp.down_proj": (width, mlp)}
    shapes |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width)}
    shapes |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    tensors = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    rng = np.random.default_rng(1)
    path = tmp_path / "wide"
    path.mkdir()
    save_file({k: rng.normal(size=s).astype(np.float32) for k, s in tensors.items()}, path / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": width, "intermediate_size": mlp}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width // heads}
    config |= {"rms_norm_eps": 1e-5, "vocab_size": vocab, "tie_word_embeddings": True, "max_position_embeddings": 64}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("kind", [block.name for block in TYPES.values()])
def test_every_type_reads_as_the_package_dequantises_it(tmp_path, kind):
    """In full, and in part: rows that are permuted, columns within a block."""
    path = convert(wide_llama(tmp_path), tmp_path / "x.gguf", QuantType[kind])
    theirs = {t.name: gguf.dequantize(np.asarray(t.data), t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    model = GgufFile(path)
    for name, heads in (("q", 4), ("k", 2), ("v", 0), ("output", 0)):
        w = theirs[f"blk.0.attn_{name}.weight"].astype(np.float32)
        w = unpermuted(w, heads) if heads else w
        hf = f"model.layers.0.self_attn.{name[0]}_proj.weight"
        np.testing.assert_array_equal(model.source.read(hf).astype(np.float32), w)
        rows, columns = slice(3, 97), slice(40, 41)
        np.testing.assert_array_equal(model.source.read(hf, rows, columns).astype(np.float32), w[rows, columns])
    floats = {"F16": "float16", "BF16": "bfloat16"}
    assert model.source.dtype("model.embed_tokens.weight").name == floats.get(kind, "float32")
    params = open_model(path).load(make_mesh(1, devices=jax.devices()[:1]), None)
    np.testing.assert_array_equal(params["embedding"].astype(np.float32), theirs["token_embd.weight"])
    np.testing.assert_array_equal(params["layers"]["mlp"]["down"][0], theirs["blk.0.ffn_down.weight"].T)
    assert np.abs(theirs["blk.0.attn_q.weight"]).std() > 0


def test_block_sizes_are_the_packages():
    assert {gguf.GGMLQuantizationType(number).name for number in TYPES} == {block.name for block in TYPES.values()}
    assert {n: (b.numbers, b.bytes) for n, b in TYPES.items()} == {n: gguf.GGML_QUANT_SIZES[n] for n in TYPES}


def test_the_header_is_the_packages(tmp_path):
    given = {"a__text": "ä", "a__list": ["x", ""], "a__numbers": [1, -2], "a__floats": [0.5, 0.25], "a__flag": True}
    path = convert(MODELS / "gemma2", tmp_path / "x.gguf", **given)
    theirs, ours = gguf.GGUFReader(path), read_header(path)
    wanted = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert {k: pytest.approx(v) if isinstance(v, float) else v for k, v in wanted.items()} == ours.metadata
    assert ours.metadata["gemma2.attention.layer_norm_rms_epsilon"] == 1e-6  # not the float nearest to it
    assert {t.name: (tuple(reversed(t.shape.tolist())), t.data_offset) for t in theirs.tensors} == {
        name: (tensor.shape, tensor.offset) for name, tensor in ours.tensors.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    factor=st.sampled_from([2.0, 8.0, 32.0]),
    original=st.integers(16, 16384),
    width=st.sampled_from([8, 64, 128]),
    theta=st.sampled_from([10_000.0, 500_000.0]),
)
def test_scaled_frequencies_are_those_of_the_settings_that_are_recovered(factor, original, width, theta):
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {"head_dim": width, "rope_parameters": {**rope, "original_max_position_embeddings": original}}
    factors = llama3_factors(config)
    if factors.max() < factor or (factors > 1).sum() < 2:  # the longest wave of all is shorter than the context
        return
    back = llama3_scaling(factors, theta, "x")
    again = llama3_factors({**config, "rope_parameters": {**back, "rope_theta": theta}})
    np.testing.assert_allclose(again, factors, rtol=1e-3)


# In and out


def test_the_command_imports_it_and_what_comes_out_is_the_same_model(tmp_path, capsys):
    path = convert(MODELS / "llama", tmp_path / "small.gguf", **vocabulary("smollm"))
    assert main(["distill-jax", "import", f"--from={path}", f"--workdir={tmp_path / 'work'}"]) == 0
    node = Path(capsys.readouterr().out.removeprefix("import: ").strip())
    assert node.name.startswith("small-") and (node / "DONE").is_file()
    export_model(node, tmp_path / "out")
    said = expected("llama")
    for where in (node, tmp_path / "out"):
        np.testing.assert_allclose(logits(where, said["tokens"], said["mask"]), said["logits"], atol=1e-4)
    ids = [tokenizers.load(str(at)).encode("12 ab") for at in (path, node / "tokenizer", tmp_path / "out")]
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) > 2
    assert import_model(path, tmp_path / "work") == node


def test_an_adapter_is_merged_into_a_file_as_into_the_directory(tmp_path):
    path = convert(MODELS / "llama", tmp_path / "x.gguf")
    one, two = (Published(where, MODELS / "llama_adapter").load(make_mesh(1)) for where in (MODELS / "llama", path))
    jax.tree.map(np.testing.assert_array_equal, one, two)


# Refused


def test_a_directory_of_a_gguf_file_says_to_name_the_file(tmp_path):
    convert(MODELS / "llama", tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match=r"name the GGUF file itself, .*x\.gguf"):
        open_model(tmp_path)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        GgufFile(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text, text
    return text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": None}, "'None': unknown architecture"),
        ({"llama__expert_count": 8}, "llama.expert_count = 8: only 0"),
        ({"split__count": 3}, "split.count = 3: only 1"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": 10**9}, "num_hidden_layers = 1000000000, but the files hold 2"),
        ({"llama__attention__head_count_kv": [2, 1]}, "num_key_value_heads = [2, 1]"),
        ({"llama__embedding_length": "24"}, "hidden_size = '24'"),
        ({"llama__feed_forward_length": 48}, "has shape (24, 40)"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(tmp_path, changes, said):
    path = convert(MODELS / "llama", tmp_path / "x.gguf", **changes)
    if "general__architecture" in changes:
        path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectur_"))
    assert said in refusal(path)


@pytest.mark.parametrize(("name", "kind", "said"), [("mamba", "F32", "'mamba'"), ("llama", "Q2_K", "is of type Q2_K")])
def test_an_unknown_architecture_and_an_unknown_type_are_named(tmp_path, name, kind, said):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", name)
    put(writer, "token_embd.weight", np.zeros((4, 256), np.float32), QuantType[kind])
    assert said in refusal(written(writer))


def test_without_the_package_only_quantised_tensors_are_refused(tmp_path, monkeypatch):
    model = wide_llama(tmp_path)
    plain, quantised = (convert(model, tmp_path / f"{k}.gguf", QuantType[k]) for k in ("F16", "Q4_K"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert GgufFile(plain).cfg.layers == 1
    assert "Q4_K need the package gguf; run `pip install 'distill-jax[gguf]'`" in refusal(quantised)


def test_a_weight_that_is_no_number_is_named(tmp_path):
    path = convert(MODELS / "llama", tmp_path / "x.gguf")
    where = read_header(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[where.offset + 4 * 25 : where.offset + 4 * 26] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight.*\[1, 1\]"):
        open_model(path).load(make_mesh(1, devices=jax.devices()[:1]), None)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> Path:
    return convert(MODELS / "llama", tmp_path_factory.mktemp("small") / "x.gguf", **vocabulary("smollm"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_in_one_line_or_read(small_file, tmp_path_factory, data):
    """Cut anywhere, or with some bytes of its header changed."""
    whole = small_file.read_bytes()
    start = min(tensor.offset for tensor in read_header(small_file).tensors.values())
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(damaged)
    try:
        model = GgufFile(path)
        tokenizers.load(model.tokenizer)
    except ConfigError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# Tokenizers

TEXTS = st.text(st.sampled_from("abcdeABC .,'s'll123\n\t äß▁日本語 \u00a0🙂"), max_size=40) | st.text(max_size=12)
CONTROL = ["<|end|>", "<|im_start|>"]
PATTERN = (  # of Llama 3's and Qwen's tokenizer.json; the one reads three digits at a time, the other one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pre: str) -> library.Tokenizer:
    """Train a tokenizer on bytes, as models with this way of cutting have it."""
    cut = library.pre_tokenizers
    regex = PATTERN.replace("{1,3}", "" if pre == "qwen2" else "{1,3}")
    split = [cut.Split(library.Regex(regex), "isolated"), cut.ByteLevel(add_prefix_space=False, use_regex=False)]
    gpt2 = cut.ByteLevel(add_prefix_space=False)
    ways = {"gpt-2": [gpt2], "smollm": [cut.Digits(individual_digits=True), gpt2]}
    out = library.Tokenizer(library.models.BPE(ignore_merges=pre == "llama-bpe"))
    out.pre_tokenizer = cut.Sequence(ways.get(pre, split))
    out.decoder = library.decoders.ByteLevel()
    if pre == "qwen2":
        out.normalizer = library.normalizers.NFC()
    alphabet = cut.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    out.train_from_iterator((SAMPLES / "sample_english.txt").read_text().splitlines()[:300], trainer)
    return out


def vocabulary(way: str, **changes: Any) -> dict[str, Any]:
    """Return the metadata of a byte-level tokenizer."""
    definition = json.loads(byte_level(way).to_str())
    ids = sorted(definition["model"]["vocab"].items(), key=lambda entry: entry[1])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    out = {"model": "gpt2", "pre": way, "tokens": [token for token, _ in ids], "merges": merges}
    out |= {"token_type": [3 if token in CONTROL else 1 for token, _ in ids]}
    out |= {"bos_token_id": 0, "eos_token_id": 0, "eot_token_id": 1, "add_bos_token": False}
    return {f"tokenizer__ggml__{key}": value for key, value in {**out, **changes}.items()}


def tokenizer_file(path: Path, metadata: dict[str, Any]) -> Path:
    """Write a file of nothing but a tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add(writer, key.replace("__", "."), value)
    return written(writer)


@pytest.fixture(scope="module", params=list(gguf_tokenizer.CUTS))
def rebuilt(request, tmp_path_factory) -> tuple[library.Tokenizer, tokenizers.Tokenizer]:
    path = tokenizer_file(tmp_path_factory.mktemp("words") / "x.gguf", vocabulary(request.param))
    return byte_level(request.param), tokenizers.load(str(path))


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_a_byte_level_tokenizer_is_the_one_that_was_trained(rebuilt, text):
    original, ours = rebuilt
    assert ours.encode(text) == original.encode(text).ids
    assert ours.decode(ours.encode(text)) == original.decode(original.encode(text).ids)


OWN = ["\n\n", "▁▁▁"]


def pieces(prefix: bool) -> bytes:
    """Train a SentencePiece model with special tokens and, where texts get no prefix, some of a user's own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((SAMPLES / "sample_english.txt").read_text().splitlines()[:300]), model_writer=model,
        vocab_size=600, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=prefix, split_digits=True, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, control_symbols=["<turn>"],
        user_defined_symbols=[] if prefix else OWN,
    )  # fmt: skip
    return model.getvalue()


def described(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter makes of a SentencePiece model."""
    ids = range(model.get_piece_size())

    def kind(i: int) -> int:
        if model.is_unknown(i):
            return 2
        return 3 if model.is_control(i) else 6 if model.is_byte(i) else 4 if model.id_to_piece(i) in OWN else 1

    out = {"model": "llama", "tokens": [model.id_to_piece(i) for i in ids], "token_type": [kind(i) for i in ids]}
    out |= {"scores": [float(model.get_score(i)) for i in ids], "add_space_prefix": prefix}
    out |= {"bos_token_id": 2, "eos_token_id": 1, "padding_token_id": 0, "unknown_token_id": 3}
    return {f"tokenizer__ggml__{key}": value for key, value in out.items()}


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "bare"])
def spelled(request, tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, tokenizers.Tokenizer]:
    model = sentencepiece.SentencePieceProcessor(model_proto=pieces(request.param))
    path = tokenizer_file(tmp_path_factory.mktemp("pieces") / "x.gguf", described(model, request.param))
    return model, tokenizers.load(str(path))


@settings(max_examples=200, deadline=None)
@given(text=TEXTS.filter(lambda text: "\0" not in text))
def test_a_sentencepiece_tokenizer_is_the_one_that_was_trained(spelled, text):
    model, ours = spelled
    assert ours.encode(text) == [2, *model.encode(text)]


def test_text_of_a_run_is_read_with_the_tokenizer_of_a_file(tmp_path):
    metadata = {**vocabulary("smollm"), "tokenizer__chat_template": "{{ messages }}"}
    path = tokenizer_file(tmp_path / "x.gguf", metadata)
    words = sentencepiece_vocab.load(path)
    original = byte_level("smollm")
    assert words.get_piece_size() == original.get_vocab_size()
    assert words.encode(["ab 12"]) == [original.encode("ab 12").ids]
    assert (words.bos_id(), words.eos_id()) == (0, 0)
    assert TextConfig(vocabulary=str(path), retain="x").entries() == original.get_vocab_size()
    files = gguf_tokenizer.tokenizer_files(path)
    assert files["tokenizer_config.json"]["chat_template"] == "{{ messages }}"
    assert files["generation_config.json"]["eos_token_id"] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model = 'bert': only gpt2, llama"),
        ({"pre": "deepseek-v3"}, "tokenizer.ggml.pre = 'deepseek-v3': only gpt-2, smollm"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"model": "llama"}, "tokenizer.ggml.scores: one a token"),
        ({"bos_token_id": 10**6}, "bos_token_id = 1000000"),
        ({"token_type": [1]}, "token_type: one a token"),
    ],
    ids=str,
)
def test_a_tokenizer_that_is_not_supported_is_named(tmp_path, changes, said):
    path = tokenizer_file(tmp_path / "x.gguf", vocabulary("smollm", **changes))
    with pytest.raises(ConfigError) as error:
        tokenizers.load(str(path))
    assert said in str(error.value) and str(path) in str(error.value)
