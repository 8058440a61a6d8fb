"""Models in and out: what transformers and PEFT saved, wrong input, and the way back, beside recorded logits."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill_jax.config import ConfigError
from distill_jax.interop import families, hugging_face
from distill_jax.interop.directory import Directory, SafeTensors
from distill_jax.interop.exporting import export_adapter, export_model
from distill_jax.interop.importing import Published, import_model
from distill_jax.interop.model_source import open_model
from distill_jax.io.files import Digests
from distill_jax.main import main
from distill_jax.models import transformer
from distill_jax.models.presets import PRESETS
from distill_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.unit

MODELS = Path(__file__).parent / "recordings" / "models"
FAMILIES = ("gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3")

apply = jax.jit(transformer.apply, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def logits(path: Path, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return what a model, wherever it lies, says of padded tokens; zero at padding."""
    model = open_model(path)
    params = model.load(make_mesh(1, devices=jax.devices()[:1]), "float32")
    return np.asarray(apply(model.cfg, params, tokens, mask)) * mask[..., None]


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(MODELS / name / "expected.npz") as file:
        return dict(file)


def stored(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a directory, as the library reads them."""
    return {name: w for file in path.glob("*.safetensors") for name, w in load_file(file).items()}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, Path]:
    workdir = tmp_path_factory.mktemp("imported")
    return {name: import_model(MODELS / name, workdir) for name in FAMILIES}


# In


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_model_has_the_logits_of_transformers(imported, name):
    said = expected(name)
    ours = logits(imported[name], said["tokens"], said["mask"])
    np.testing.assert_allclose(ours, said["logits"], atol=1e-4, rtol=0)
    assert np.abs(said["logits"]).max() > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_directory_reads_as_its_import_does(imported, name):
    mesh = make_mesh(1, devices=jax.devices()[:1])
    direct, node = (open_model(path).load(mesh, None) for path in (MODELS / name, imported[name]))
    jax.tree.map(np.testing.assert_array_equal, direct, node)
    assert jax.tree.map(lambda w: w.dtype, direct) == jax.tree.map(lambda w: w.dtype, node)


def test_weights_keep_their_dtype_and_norms_are_fp32():
    params = open_model(MODELS / "qwen3").load(make_mesh(1), None)
    kinds = {path[-1].key: leaf.dtype.name for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert kinds["embedding"] == kinds["query"] == kinds["gate_up"] == "bfloat16" and kinds["scale"] == "float32"


@pytest.mark.parametrize("fsdp", [1, 2])
def test_shards_hold_what_the_whole_holds(fsdp):
    """Two devices, each reading its part only: of the model's width, or of the heads, columns and vocabulary."""
    one, two = make_mesh(1, devices=jax.devices()[:1]), make_mesh(1, fsdp=fsdp, tensor=2 // fsdp)
    for name in ("gemma3", "llama", "qwen2"):
        whole, parts = (open_model(MODELS / name).load(mesh, None) for mesh in (one, two))
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
        assert len(parts["layers"]["mlp"]["down"].sharding.device_set) == 2
        assert not parts["layers"]["mlp"]["down"].sharding.is_fully_replicated


def test_a_device_reads_its_part_and_nothing_twice(monkeypatch):
    """With the width cut in two, every read of a matrix is half of one tensor, and together they are the file."""
    whole, reads, read = stored(MODELS / "gemma3"), [], SafeTensors.read

    def noted(self, name, *index):
        reads.append((name, read(self, name, *index)))
        return reads[-1][1]

    monkeypatch.setattr(SafeTensors, "read", noted)
    open_model(MODELS / "gemma3").load(make_mesh(1, fsdp=2), None)
    matrices = [(name, w) for name, w in reads if w.ndim == 2]
    assert all(w.nbytes * 2 == whole[name].nbytes for name, w in matrices)
    assert sum(w.nbytes for _, w in matrices) == sum(w.nbytes for w in whole.values() if w.ndim == 2)


def test_what_was_imported_is_not_imported_again(imported):
    node = imported["llama"]
    before = (node / "DONE").stat().st_mtime_ns
    assert import_model(MODELS / "llama", node.parents[1]) == node
    assert (node / "DONE").stat().st_mtime_ns == before
    assert all(path.stat().st_mtime_ns <= before for path in node.rglob("*") if path.is_file())  # DONE was last


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "max_position_embeddings", 77),
        ("config.json", "eos_token_id", 5),
        ("generation_config.json", "eos_token_id", [1, 5]),
        ("tokenizer.json", "added", 1),
        ("tokenizer_config.json", "add_bos_token", False),
        ("special_tokens_map.json", "eos_token", "<end>"),
        ("chat_template.jinja", "user", "{{ text }}"),
    ],
)
def test_whatever_is_used_of_a_model_is_part_of_its_identity(tmp_path, file, key, value):
    """Items are tokenised, cut at end-of-text and wrapped by these: another one is another model."""
    copy, digests = shutil.copytree(MODELS / "llama", tmp_path / "llama"), Digests(tmp_path / "digests.json")
    before = Published(copy).contents(digests)
    assert before == Published(MODELS / "llama").contents(Digests())  # wherever it lies
    digests.save()
    found = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps({**found, key: value}))
    assert Published(copy).contents(Digests(tmp_path / "digests.json")) != before


def test_other_weights_are_another_node(imported, tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors")
    assert import_model(copy, tmp_path / "work").name != imported["llama"].name


def test_a_tied_head_may_be_saved_as_well(imported, tmp_path):
    copy = shutil.copytree(MODELS / "qwen3", tmp_path / "qwen3")
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"lm_head.weight": stored(copy)["model.embed_tokens.weight"]}, copy / "head.safetensors")
    mesh = make_mesh(1, devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, *(open_model(p).load(mesh, None) for p in (copy, imported["qwen3"])))


def test_a_single_file_is_a_model(imported, tmp_path):
    assert import_model(MODELS / "llama" / "model.safetensors", tmp_path).name == imported["llama"].name


def test_the_text_part_of_a_multimodal_model(tmp_path):
    """Gemma 3 of 4B and more comes inside another model, under a prefix; an image tower stands beside it."""
    said = expected("gemma3_wrapped")
    np.testing.assert_allclose(
        logits(MODELS / "gemma3_wrapped", said["tokens"], said["mask"]), said["logits"], atol=1e-4
    )
    export_model(import_model(MODELS / "gemma3_wrapped", tmp_path), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "gemma3_text"
    # Of the wrapper's own config the end of text; of its text part the rest.
    assert config["eos_token_id"] == [1, 6] and config["bos_token_id"] == 2 and config["pad_token_id"] == 7
    assert config["max_position_embeddings"] == 131_072


def test_older_releases_put_the_text_part_under_another_prefix(tmp_path):
    config = json.loads((MODELS / "gemma3/config.json").read_text())
    tensors = {f"language_model.{name}": w for name, w in stored(MODELS / "gemma3").items()}
    tensors["vision_tower.weight"] = np.zeros(3, np.float32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    save_file(tensors, tmp_path / "model.safetensors")
    said = expected("gemma3")
    np.testing.assert_allclose(logits(tmp_path, said["tokens"], said["mask"]), said["logits"], atol=1e-4)


# Out


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_imported_comes_out_again(imported, tmp_path, name):
    export_model(imported[name], tmp_path / "out")
    before, after = stored(MODELS / name), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, w in before.items():
        assert w.dtype == after[key].dtype, key
        # 1 + (w - 1) is w up to the last bit of 1.
        np.testing.assert_allclose(
            after[key].astype(np.float32), w.astype(np.float32), atol=1.2e-7, rtol=0, err_msg=key
        )
        if w.ndim == 2 or name.startswith("gemma") or w.dtype != np.float32:
            np.testing.assert_array_equal(after[key], w, err_msg=key)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert families.from_json(config, "") == families.from_json(
        json.loads((MODELS / name / "config.json").read_text()), ""
    )


def test_shards_are_cut_and_indexed(tmp_path):
    export_model(MODELS / "gemma2", tmp_path / "out", "float32", shard_bytes=20_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("out/*.safetensors"))
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    held = {file.name: load_file(file) for file in files}
    assert all(name in held[file] for name, file in index["weight_map"].items())
    sizes = [sum(w.nbytes for w in tensors.values()) for tensors in held.values()]
    assert max(sizes) <= 20_000 and sum(sizes) == index["metadata"]["total_size"]
    said = expected("gemma2")
    np.testing.assert_allclose(logits(tmp_path / "out", said["tokens"], said["mask"]), said["logits"], atol=1e-4)


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(hugging_face, "tensors", fail)
    with pytest.raises(OSError, match="No space"):
        export_model(MODELS / "llama", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Adapters


def test_adapters_merged_or_kept_have_the_logits_of_peft(tmp_path):
    said, adapter = expected("llama"), MODELS / "llama_adapter"
    assert np.abs(said["adapted"] - said["logits"]).max() > 0.1
    for keep in (False, True):
        node = import_model(MODELS / "llama", tmp_path, adapter, keep)
        np.testing.assert_allclose(logits(node, said["tokens"], said["mask"]), said["adapted"], atol=1e-4, rtol=0)
    assert sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "nodes").iterdir()) == [
        *("llama", "llama", "llama_adapter")
    ]


def test_kept_adapters_come_out_again(tmp_path):
    node = import_model(MODELS / "llama", tmp_path, MODELS / "llama_adapter", keep_adapter=True)
    export_adapter(node, tmp_path / "out")
    before, after = stored(MODELS / "llama_adapter"), stored(tmp_path / "out")
    assert before.keys() == after.keys()  # k_proj and gate_proj had none, though they share a tensor here
    for key, w in before.items():
        np.testing.assert_array_equal(after[key], w, err_msg=key)
    config, theirs = (
        json.loads((p / "adapter_config.json").read_text()) for p in (tmp_path / "out", MODELS / "llama_adapter")
    )
    assert all(config[key] == theirs[key] for key in ("peft_type", "r", "lora_alpha", "bias", "task_type"))
    assert sorted(config["target_modules"]) == sorted(theirs["target_modules"])


# Wrong input


def edited(tmp_path: Path, name: str, **change) -> Path:
    """Return a copy of a model with some keys of its config.json changed; None takes one out."""
    copy = shutil.copytree(MODELS / name, tmp_path / name)
    config = {**json.loads((copy / "config.json").read_text()), **change}
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return copy


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("llama", {"model_type": "phi3"}, ["model_type = 'phi3'", "gemma2, gemma3_text, llama, mistral, qwen2, qwen3"]),
        ("llama", {"model_type": "lama"}, ["did you mean 'llama'"]),
        ("llama", {"model_type": None}, ["model_type = 'None'"]),
        ("llama", {"attention_bias": True}, ["attention_bias = True", "only False"]),
        ("llama", {"mlp_bias": True}, ["mlp_bias = True"]),
        ("llama", {"hidden_act": "gelu"}, ["hidden_act = 'gelu'", "'silu'"]),
        ("llama", {"hidden_size": None}, ["hidden_size is missing"]),
        ("llama", {"num_key_value_heads": 3}, ["heads = 4", "kv_heads = 3"]),
        ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["rope_type = 'yarn'", "llama3"]),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, ["low_freq_factor"]),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ("llama", {"num_hidden_layers": 3}, ["num_hidden_layers = 3", "hold 2"]),
        ("llama", {"num_hidden_layers": 1}, ["num_hidden_layers = 1", "hold 2"]),
        ("llama", {"vocab_size": 54}, ["model.embed_tokens.weight", "(53, 24)", "(54, 24)"]),
        ("llama", {"tie_word_embeddings": True}, ["lm_head.weight", "tie_word_embeddings"]),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, ["layer_types"]),
        ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping = 50.0"]),
        ("gemma3", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
    ],
    ids=str,
)
def test_what_this_decoder_does_not_have_is_refused(tmp_path, name, change, says):
    with pytest.raises(ConfigError) as error:
        Directory(edited(tmp_path, name, **change))
    assert all(text in str(error.value) for text in says), str(error.value)


def test_a_pickle_is_refused_by_name(tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for path in (copy, copy / "pytorch_model.bin"):
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin: a pickle runs whatever code"):
            import_model(path, tmp_path)


def test_what_is_missing_is_said_with_what_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="`hf download google/gemma-2-2b --local-dir google/gemma-2-2b`"):
        Directory(Path("google/gemma-2-2b"))
    copy = shutil.copytree(MODELS / "gemma2", tmp_path / "some/model")
    file = sorted(copy.glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(ConfigError, match=rf"{file.name}: no such file.*hf download some/model --local-dir some/model"):
        Directory(Path("some/model"))
    (copy / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        Directory(copy)


def test_a_damaged_file_and_a_foreign_dtype_are_named(tmp_path):
    copy = shutil.copytree(MODELS / "llama", tmp_path / "llama")
    file, whole = copy / "model.safetensors", (MODELS / "llama/model.safetensors").read_bytes()
    for spoiled in (whole[:-7], whole[: len(whole) // 2], b"", struct.pack("<Q", 2**40) + whole[8:]):
        file.write_bytes(spoiled)
        with pytest.raises(ConfigError, match=r"model\.safetensors: no whole safetensors file"):
            Directory(copy)
    tensors = load_file(MODELS / "llama/model.safetensors")
    save_file({**tensors, "model.norm.weight": np.ones(24, np.int8)}, file)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has dtype I8"):
        Directory(copy)


def test_an_index_cannot_reach_outside(tmp_path):
    copy = shutil.copytree(MODELS / "gemma2", tmp_path / "model")
    index = copy / "model.safetensors.index.json"
    holds = json.loads(index.read_text())
    holds["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(holds))
    with pytest.raises(ConfigError, match="outside the directory"):
        Directory(copy)


# config.json as published

LLAMA_3_1_8B = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
 "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
 "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
 "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
 "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
 "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256}"""
GEMMA_2_2B = """{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0,
 "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
 "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
 "initializer_range": 0.02, "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
 "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
 "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
 "vocab_size": 256000}"""
GEMMA_3_1B = """{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null,
 "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256,
 "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
 "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
 "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
 "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
 "sliding_window_pattern": 6, "vocab_size": 262144}"""
GEMMA_3_4B = """{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config":
 {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
 "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}"""
QWEN3_0_6B = """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
 "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
 "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
 "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
 "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}"""

QWEN2_5_0_5B = """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
 "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
 "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
 "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
 "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
 "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}"""
MISTRAL_7B = """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
 "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
 "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
 "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 32000}"""


@pytest.mark.parametrize(
    ("text", "count", "has"),
    [
        (LLAMA_3_1_8B, 8_030_261_248, {"rope_scaling": (8.0, 1.0, 4.0, 8192.0), "query_scale": 128.0, "tied": False}),
        (GEMMA_2_2B, 2_614_341_888, {"tied": True, "global_every": 2, "attention_softcap": 50.0}),
        (GEMMA_3_1B, 999_885_952, {"local_rope_theta": 10_000.0, "global_every": 6, "sliding_window": 512}),
        (GEMMA_3_4B, 3_880_263_168, {"rope_scaling": (8.0,), "heads": 8, "rope_theta": 1e6}),
        (QWEN3_0_6B, 596_049_920, {"qk_norm": True, "sliding_window": 0, "rope_theta": 1e6}),
        (QWEN2_5_0_5B, 494_032_768, {"qkv_bias": True, "sliding_window": 0, "head_dim": 64}),
        (MISTRAL_7B, 7_241_732_096, {"sliding_window": 4096, "global_every": 0, "head_dim": 128}),
    ],
    ids=["llama-3.1-8b", "gemma-2-2b", "gemma-3-1b", "gemma-3-4b", "qwen3-0.6b", "qwen2.5-0.5b", "mistral-7b"],
)
def test_published_configs_have_the_published_parameter_counts(text, count, has):
    cfg = families.from_json(json.loads(text), "config.json")[1]
    assert transformer.parameter_count(cfg) == count
    assert {field: getattr(cfg, field) for field in has} == has
    assert families.from_json(families.to_json(cfg), "")[1] == cfg


def test_presets_are_of_a_family():
    found = {name: families.family_of(cfg) for name, cfg in PRESETS.items()}
    assert found["gemma-2-2b"] == "gemma2" and found["llama-3.3-70b"] == "llama"
    assert PRESETS["gemma-2-2b"] == families.from_json(json.loads(GEMMA_2_2B), "")[1]


def test_a_decoder_of_no_family_is_not_exported():
    for field, value in {"attention_softcap": 9.0, "post_norms": True}.items():
        with pytest.raises(ConfigError, match=rf"model\.{field} = {value}: no family"):
            families.family_of(dataclasses.replace(PRESETS["llama-3.3-70b"], **{field: value}))


# The command line


def test_commands_from_import_to_export(tmp_path, capsys):
    assert main(["distill-jax", "import", f"--from={MODELS / 'llama'}", f"--workdir={tmp_path}"]) == 0
    node = capsys.readouterr().out.split()[-1]
    assert main(["distill-jax", "export", f"--model={node}", f"--to={tmp_path / 'out'}", "--dtype=bfloat16"]) == 0
    assert {w.dtype.name for w in stored(tmp_path / "out").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert main(["distill-jax", "export", f"--model={node}", f"--to={tmp_path / 'out'}"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["import"], ["--from is missing"]),
        (["import", "--from=/no/such", "--workdir=x"], ["/no/such: no such directory", "hf download"]),
        (["import", f"--from={MODELS / 'llama'}", "--workdir=x", "--keep_adapter"], ["--keep_adapter", "--adapter"]),
        (["export", f"--model={MODELS / 'llama'}"], ["--to is missing"]),
        (["export", f"--model={MODELS / 'llama'}", "--to=x", "--dtype=int8"], ["--dtype=int8", "bfloat16"]),
        (["export", f"--model={MODELS / 'llama'}", "--to=x", "--adapter_only"], ["has no adapters"]),
        (["score", "--modle=x"], ["modle", "model"]),
        (["score", "x"], ["unexpected argument"]),
        (["generate", "--model=x", "--input=x", "--output=x", "--new=0"], ["--new=0"]),
    ],
    ids=str,
)
def test_wrong_commands(typed, says, capsys):
    assert main(["distill-jax", *typed]) == 2
    said = capsys.readouterr().err
    assert all(text in said for text in says) and said.count("\n") <= 2, said


def test_an_export_that_the_disk_refuses_is_one_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # as `ulimit -f` does
    try:
        with pytest.raises(OSError, match="File too large"):
            export_model(MODELS / "llama", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
