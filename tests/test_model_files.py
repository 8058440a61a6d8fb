"""Made-up and damaged models: one line that names the file, the key and its value, before anything is built."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parity.save_models import MODELS
from safetensors.numpy import load_file, save_file

from distill_jax.config import ConfigError, identity
from distill_jax.data.arithmetic.word_vocabulary import EOS
from distill_jax.interop.directory import Directory
from distill_jax.interop.exporting import export_model
from distill_jax.interop.families import facts_of, from_json, to_json
from distill_jax.interop.finite import AT_ONCE, check_finite
from distill_jax.interop.generation import Sampling, generate
from distill_jax.interop.importing import Published, import_model
from distill_jax.interop.rows import Inference
from distill_jax.interop.windows import layer_types
from distill_jax.io.node import Node
from distill_jax.main import main
from distill_jax.models.presets import PRESETS

pytestmark = pytest.mark.unit

INDEX = "model.safetensors.index.json"


def edited(tmp_path: Path, name: str, change: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """Return a copy of a model with some keys of its config.json changed, and some left out."""
    copy = shutil.copytree(MODELS / name, tmp_path / name)
    config = {**json.loads((copy / "config.json").read_text()), **change}
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))
    return copy


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        Directory(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600, text
    return text


# config.json

COUNTS = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size", "head_dim")
NO_COUNTS = (1.5, "2", True, [2], {}, -1, 0, 10**9, 10**30, 10**400, float("nan"), float("inf"))
NO_NUMBERS = ("1e-5", True, [1.0], -1.0, 10**400, float("nan"), float("inf"))


@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: repr(value) if not isinstance(value, int) else "")
def test_counts_are_whole_numbers_that_the_files_bear_out(tmp_path, value):
    for key in COUNTS:
        text = refusal(edited(tmp_path / key, "llama", {key: value}))
        assert key in text or "model." in text or "Infinity" in text or "NaN" in text


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value) if not isinstance(value, int) else "")
def test_numbers_are_finite(tmp_path, value):
    for key in ("rms_norm_eps", "query_pre_attn_scalar", "final_logit_softcapping", "initializer_range"):
        text = refusal(edited(tmp_path / key, "gemma2", {key: value}))
        assert key in text or "Infinity" in text or "NaN" in text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"tie_word_embeddings": "false"}),
        ("llama", {"model_type": ["llama"]}),
        ("llama", {"model_type": "x" * 10_000}),
        ("llama", {"rope_parameters": "default"}),
        ("llama", {"rope_parameters": [1]}),
        ("llama", {"rope_parameters": {"rope_type": ["linear"], "factor": 2}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": -1}}),
        ("llama", {"eos_token_id": "2"}),
        ("llama", {"eos_token_id": [2, None]}),
        ("llama", {"max_position_embeddings": 0}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"text_config": [1]}),
        ("llama", {"text_config": {"model_type": "llama"}}),
        ("gemma2", {"layer_types": "sliding_attention"}),
        ("gemma2", {"layer_types": [1, 2, 3]}),
        ("gemma2", {"layer_types": ["sliding_attention"] * 2}),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention", "chunked_attention"]}),
        ("gemma2", {"sliding_window": 4.5}),
        ("gemma2", {"sliding_window": 0}),
        ("gemma2", {"sliding_window": None}),
        ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0}}),
        ("gemma3", {"rope_parameters": {"full_attention": [], "sliding_attention": [1]}}),
        ("gemma3_wrapped", {"model_type": "paligemma"}),
        ("gemma3_wrapped", {"tie_word_embeddings": False}),
        ("mistral", {"sliding_window": 0}),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("qwen2", {"max_window_layers": -1}),
        ("qwen2", {"use_sliding_window": "yes"}),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_named(tmp_path, name, change):
    assert next(iter(change)) in refusal(edited(tmp_path, name, change))


def test_a_model_of_a_thousand_million_layers_is_refused_before_they_are_counted_out(tmp_path, capsys):
    copy = edited(tmp_path, "gemma2", {"num_hidden_layers": 10**9}, drop=("layer_types",))
    assert main(["distill-jax", "import", f"--from={copy}", f"--workdir={tmp_path / 'work'}"]) == 2
    said = capsys.readouterr().err
    assert "num_hidden_layers = 1000000000, but the files hold 3" in said and said.count("\n") == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", '{"a": NaN}', "[" * 200_000, '{"a": "\ud800"}', "\ufeff{}"], ids=repr
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, text):
    for file in ("config.json", INDEX):
        copy = shutil.copytree(MODELS / "gemma2", tmp_path / file)
        (copy / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        assert f"{copy / file}: " in refusal(copy)


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, float("nan"), float("inf"), 1e-300, 10**9, 2**31, 10**30, 10**400),
    *("", "x" * 300, "\u2028", "full_attention", [], [1], ["a"], [[]], [None] * 3, {}, {"a": 1}, {"factor": []}),
    *({"rope_type": None}, ["full_attention"] * 3, ["sliding_attention"] * 2),
)
MORE_KEYS = ("rope_scaling", "rope_theta", "quantization_config", "text_config", "sliding_window_pattern", "head_dim")


def hostile_values() -> list[tuple[str, tuple[str, ...], Any]]:
    """Return every (model, place in its config.json, value that it may not have thought of)."""
    out = []
    for name in ("llama", "gemma3", "qwen2", "gemma3_wrapped", "mistral"):
        config = json.loads((MODELS / name / "config.json").read_text())
        inner = [(key, part) for key, value in config.items() if isinstance(value, dict) for part in value]
        places = [(key,) for key in (*config, *MORE_KEYS)] + inner
        out += [(name, place, value) for place in places for value in HOSTILE]
    return out


@pytest.mark.parametrize(
    "count", [200, pytest.param(0, marks=pytest.mark.thorough)], ids=["two hundred of them", "all of them"]
)
def test_a_model_with_any_value_is_read_or_refused_in_a_line(tmp_path, count):
    """Whatever stands anywhere in a config.json: no other exception, and no text that is long or of two lines."""
    cases = hostile_values()
    read = 0
    for name, place, value in random.Random(0).sample(cases, count or len(cases)):
        config = part = json.loads((MODELS / name / "config.json").read_text())
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        copy = tmp_path / name
        if not copy.exists():
            shutil.copytree(MODELS / name, copy)
        (copy / "config.json").write_text(json.dumps(config))
        try:
            Directory(copy)
            read += 1
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 700, (name, place, value)
    assert 0 < read < (count or len(cases)) / 2


# The index


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ([], "weight_map"),
        (["model.safetensors"], "weight_map"),
        ({}, "weight_map"),
        (None, "weight_map"),
        ({"model.norm.weight": 1}, "weight_map"),
        ({"model.norm.weight": ["a"]}, "weight_map"),
        ({"model.norm.weight": ""}, "outside the directory"),
        ({"model.norm.weight": "."}, "outside the directory"),
        ({"model.norm.weight": ".."}, "no such file"),
        ({"model.norm.weight": "/etc/passwd"}, "outside the directory"),
        ({"model.norm.weight": "../model.safetensors"}, "outside the directory"),
        ({"model.norm.weight": "missing.safetensors"}, "missing.safetensors: no such file"),
        ({"model.norm.weight": "pytorch_model.bin"}, "a pickle runs"),
        ({"model.norm.weight": "config.json"}, "no whole safetensors file"),
    ],
    ids=str,
)
def test_an_index_that_names_no_files_is_refused(tmp_path, holds, says):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    (copy / INDEX).write_text(json.dumps({"weight_map": holds}))
    text = refusal(copy)
    assert says in text and str(copy) in text


def test_a_tensor_in_two_files_is_named(tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    save_file({"model.norm.weight": np.ones(24, np.float32)}, copy / "more.safetensors")
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}}))
    assert "model.norm.weight is in another file as well" in refusal(copy)


# Weights


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(dtype, value):
    """Held against NumPy's own test at random places, also past the first block that is looked at."""
    rng = np.random.RandomState(0)
    weights = np.zeros((3, AT_ONCE // 2), jnp.dtype(dtype))
    weights[:, ::7] = rng.standard_normal(weights[:, ::7].shape).astype(weights.dtype)
    check_finite(weights, "w")
    for place in zip(rng.randint(0, 3, 5), rng.randint(0, AT_ONCE // 2, 5), strict=True):
        spoiled = weights.copy()
        spoiled[place] = value
        assert np.argwhere(~np.isfinite(spoiled.astype(np.float32))).tolist() == [list(place)]
        with pytest.raises(
            ConfigError, match=rf"w: 1 of .* not finite, the first {value} at \[{place[0]}, {place[1]}\]"
        ):
            check_finite(spoiled, "w")


def test_largest_and_smallest_numbers_are_finite():
    for dtype in (np.float32, np.float16, jnp.bfloat16):
        info = jnp.finfo(dtype)
        check_finite(np.array([info.max, info.min, info.tiny, info.smallest_subnormal, 0, -0.0], dtype), "w")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_model_with_one_number_that_is_not_finite_is_not_imported(tmp_path, name):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    tensors = load_file(copy / "model.safetensors")
    tensors[name].reshape(-1)[5] = np.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{name}: 1 of [0-9,]+ numbers read are not finite, the first nan at"):
        import_model(copy, tmp_path / "work")
    assert not list((tmp_path / "work").glob("nodes/*/DONE"))


def test_what_a_narrower_type_cannot_hold_is_not_exported(tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 1] = 1e5  # float16 ends at 65504
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=r"up_proj.weight as float16: 1 of 960 .* the first inf at \[0, 1\]"):
        export_model(copy, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()
    export_model(copy, tmp_path / "out", "bfloat16")


# What config.json means


def config_of(name: str, **change: Any) -> dict[str, Any]:
    return {**json.loads((MODELS / name / "config.json").read_text()), **change}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 12}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {**LLAMA3, "factor": 4.0}}),
        ("llama", {"rope_scaling": {**LLAMA3, "rope_theta": 1.0}}),
        ("llama", {"rope_theta": 10_000.0}),
        ("llama", {"original_max_position_embeddings": 13}),
        ("gemma3", {"rope_theta": 7.0}),
        ("gemma3", {"rope_local_base_freq": 7.0}),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ],
    ids=str,
)
def test_keys_of_the_rotary_embedding_that_disagree_are_refused(name, change):
    """Which one counts depends on the release of transformers."""
    with pytest.raises(ConfigError, match=r"rotary embedding: .* leave one out"):
        from_json(config_of(name, **change), "config.json")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_scaling": LLAMA3, "rope_theta": 5000.0, "original_max_position_embeddings": 12}),
        ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8}, "rope_theta": 1000, "rope_local_base_freq": 50}),
    ],
    ids=str,
)
def test_keys_of_the_rotary_embedding_may_say_the_same_twice(name, change):
    once, twice = (from_json(config_of(name, **more), "config.json") for more in ({}, change))
    assert once == twice
    older = {**config_of(name, **change), "rope_parameters": None}
    assert from_json(older, "config.json") == once


@pytest.mark.parametrize(
    ("change", "window", "kinds"),
    [
        ({"use_sliding_window": False}, 0, None),
        ({"use_sliding_window": False, "sliding_window": None}, 0, None),
        ({"max_window_layers": 0}, 5, "LLL"),
        ({"max_window_layers": 2}, 5, "GGL"),
        ({"max_window_layers": 28}, 0, None),
        ({"sliding_window": None}, 0, None),
        ({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, 5, "LGL"),
    ],
    ids=str,
)
def test_which_layers_of_qwen_see_a_window(change, window, kinds):
    config = {key: value for key, value in config_of("qwen2").items() if key != "layer_types"}
    cfg = from_json({**config, **change}, "config.json")[1]
    assert cfg.sliding_window == window
    if kinds:
        found = layer_types(3, cfg.global_every, cfg.global_first)
        assert "".join({"sliding_attention": "L", "full_attention": "G"}[kind] for kind in found) == kinds


@pytest.mark.parametrize(
    ("outer", "inner", "eos"),
    [
        ({"eos_token_id": [1, 106]}, {}, [1, 106]),
        ({}, {"eos_token_id": 9}, 9),
        ({}, {}, 1),
        ({"eos_token_id": None}, {}, 1),
    ],
    ids=str,
)
def test_the_end_of_text_of_a_multimodal_model(outer, inner, eos):
    """Its own, before its text part's, before what Gemma 3 has where nothing is said."""
    part = {"model_type": "gemma3_text", **inner}
    facts = facts_of({"model_type": "gemma3", "text_config": part, **outer}, "config.json")
    assert facts == {"eos_token_id": eos, "bos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 131_072}


# What goes along


def test_a_file_in_the_current_directory_does_not_end_generation(tmp_path, monkeypatch):
    """The model has no tokenizer, so no directory of one, and what lies about is no part of it."""
    node = import_model(MODELS / "llama", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("rows").write_text(json.dumps({"tokens": [3, 4]}) + "\n")
    generate(node, Path("rows"), Path("out"), Inference(batch=1), Sampling(new=2))
    before = json.loads(Path("out").read_text())["generated_tokens"]
    Path("generation_config.json").write_text(json.dumps({"eos_token_id": before[0]}))
    (tmp_path / "words").mkdir()
    shutil.copy("generation_config.json", "words")
    generate(node, Path("rows"), Path("out"), Inference(batch=1), Sampling(new=2))
    assert json.loads(Path("out").read_text())["generated_tokens"] == before != []


@pytest.mark.parametrize(
    ("told", "eos"),
    [({"special_tokens": {"bos": 5, "eos": 9, "pad": 0}}, 9), ({"vocabulary": "words"}, EOS), ({}, None)],
    ids=str,
)
def test_a_model_that_trained_here_is_exported_with_the_end_it_trained_on(tmp_path, monkeypatch, told, eos):
    leave = Published.leave

    def as_if_trained(self: Published, node: Node, tree: Any) -> dict[str, Any]:
        """Leave a node without a word of where it was imported from."""
        result, path = leave(self, node, tree), node.directory / "config.json"
        config = json.loads(path.read_text())
        del config["hugging_face"]
        path.write_text(json.dumps({**config, **told}))
        return result

    monkeypatch.setattr(Published, "leave", as_if_trained)
    export_model(import_model(MODELS / "llama", tmp_path), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == eos
    generation = tmp_path / "out/generation_config.json"
    assert generation.is_file() == (eos is not None)
    assert eos is None or json.loads(generation.read_text())["eos_token_id"] == eos


@pytest.mark.parametrize("preset", ["gemma-0.1b", "qwen3-14b"])
def test_a_decoder_without_windows_is_exported_with_none(preset):
    """transformers builds the mask of a window in Gemma even if no layer uses it: a null fails there."""
    cfg = dataclasses.replace(PRESETS[preset], sliding_window=0)
    config = to_json(cfg)
    assert set(config["layer_types"]) == {"full_attention"}
    assert config["sliding_window"] is None if preset == "qwen3-14b" else config["sliding_window"] > 10**6
    assert from_json(config, "")[1].sliding_window == 0


def test_added_fields_leave_identities_alone():
    """These were given before the fields were there."""
    assert identity(PRESETS["gemma-2-2b"]) == "ad0b29f546a6" and identity(PRESETS["qwen3-14b"]) == "1d34c57f8650"
    assert identity(dataclasses.replace(PRESETS["gemma-2-2b"], qkv_bias=True)) != "ad0b29f546a6"
