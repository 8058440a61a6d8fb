"""PEFT's adapters: what is understood has PEFT's logits, and whatever else a setting asks for is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from parity.save_models import ADAPTED, ADAPTERS, MODELS, SHOWN
from safetensors.numpy import load_file, save_file

from distill_jax.config import ConfigError
from distill_jax.interop import adapter_settings
from distill_jax.interop.exporting import export_adapter, export_model
from distill_jax.interop.importing import Published, import_model
from distill_jax.interop.model_source import open_model
from distill_jax.models import transformer
from distill_jax.sharding.mesh import make_mesh

pytestmark = pytest.mark.unit

REFUSED = ("pissa", "olora", "alora")
# Adapters that only merging does right: DoRA, and those to embedding and head.
MERGED_ONLY = ("dora", "dora_head", "dora_embedding", "embedding_and_head", "tied_embedding", "tied_head", "saved_head")
MERGED_ONLY += ("saved_embedding",)

apply = jax.jit(transformer.apply, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def shown(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (tokens, mask, logits) that PEFT's adapters were recorded with."""
    with (
        np.load(MODELS / ADAPTED[name][0] / "expected.npz") as said,
        np.load(ADAPTERS / name / "expected.npz") as after,
    ):
        return said["tokens"][SHOWN], said["mask"][SHOWN], after["logits"]


def check_logits(cfg: Any, params: Any, name: str) -> None:
    tokens, mask, wanted = shown(name)
    ours = np.asarray(apply(cfg, params, tokens, mask)) * mask[..., None]
    np.testing.assert_allclose(ours, wanted, atol=5e-5, rtol=0)


def edited(tmp_path: Path, name: str, **change: Any) -> Path:
    """Return a copy of adapters with some of their settings changed."""
    copy = shutil.copytree(ADAPTERS / name, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **change}))
    return copy


@pytest.mark.parametrize("name", [name for name in ADAPTED if name not in REFUSED])
def test_merged_adapters_have_the_logits_of_peft(name):
    model = Published(MODELS / ADAPTED[name][0], ADAPTERS / name)
    check_logits(model.cfg, model.load(make_mesh(1, devices=jax.devices()[:1])), name)
    with np.load(MODELS / ADAPTED[name][0] / "expected.npz") as said:
        assert np.abs(said["logits"][SHOWN] - shown(name)[2]).max() > 0.5  # the adapters matter


@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("name", ["patterns", "dora", "dora_head", "dora_embedding", "embedding_and_head", "tied_head"])
def test_shards_hold_what_the_whole_holds(name, fsdp):
    """A device reads a part of a matrix; a norm that DoRA divides by is that of all of a row or column."""
    one, two = make_mesh(1, devices=jax.devices()[:1]), make_mesh(1, fsdp=fsdp, tensor=2 // fsdp)
    whole, parts = (Published(MODELS / ADAPTED[name][0], ADAPTERS / name).load(mesh) for mesh in (one, two))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)


def test_a_tied_head_that_is_adapted_is_tied_no_more(tmp_path):
    node = import_model(MODELS / "gemma2", tmp_path, ADAPTERS / "tied_embedding")
    model = open_model(node)
    assert not model.cfg.tied
    params = model.load(make_mesh(1, devices=jax.devices()[:1]), None)
    check_logits(model.cfg, params, "tied_embedding")
    np.testing.assert_array_equal(params["unembedding"], load_embedding(MODELS / "gemma2"))
    export_model(node, tmp_path / "out")
    exported = open_model(tmp_path / "out")
    check_logits(exported.cfg, exported.load(make_mesh(1, devices=jax.devices()[:1]), None), "tied_embedding")


def load_embedding(path: Path) -> np.ndarray:
    held = {name: w for file in path.glob("*.safetensors") for name, w in load_file(file).items()}
    return held["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", ["patterns", "rslora", "biased", "wrapped"])
def test_kept_adapters_have_the_logits_of_peft(tmp_path, name):
    """Of several ranks and scales, too: the smaller are filled up with zeros."""
    base = MODELS / ADAPTED[name][0]
    node = import_model(base, tmp_path, ADAPTERS / name, keep_adapter=True)
    model = open_model(node)
    check_logits(model.cfg, model.load(make_mesh(1, devices=jax.devices()[:1]), None), name)
    export_adapter(node, tmp_path / "out")
    again = Published(base, tmp_path / "out")
    check_logits(again.cfg, again.load(make_mesh(1, devices=jax.devices()[:1])), name)


@pytest.mark.parametrize("name", MERGED_ONLY)
def test_what_only_merging_does_right_is_not_kept(tmp_path, name):
    with pytest.raises(ConfigError, match="can only be merged in"):
        import_model(MODELS / ADAPTED[name][0], tmp_path, ADAPTERS / name, keep_adapter=True)
    assert not (tmp_path / "nodes").exists()


def test_adapters_of_the_wrapper_may_have_the_names_of_older_releases(tmp_path):
    copy = shutil.copytree(ADAPTERS / "wrapped", tmp_path / "adapter")
    tensors = load_file(copy / "adapter_model.safetensors")
    places = (".model.model.language_model.", ".model.language_model.model.")
    older = {name.replace(*places): w for name, w in tensors.items()}
    assert older.keys() != tensors.keys()
    save_file(older, copy / "adapter_model.safetensors")
    model = Published(MODELS / "gemma3_wrapped", copy)
    check_logits(model.cfg, model.load(make_mesh(1, devices=jax.devices()[:1])), "wrapped")


# Settings


def test_every_setting_that_peft_saves_is_decided_on():
    known = {*adapter_settings.HARMLESS, *adapter_settings.UNDERSTOOD, *adapter_settings.VALUES, "init_lora_weights"}
    for name in ADAPTED:
        saved = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
        assert saved.keys() <= known | adapter_settings.REFUSED.keys()
    assert not known & adapter_settings.REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_saved_of_these_is_refused(name):
    setting, value = {"alora": ("alora_invocation_tokens", [1, 2])}.get(name, ("init_lora_weights", name))
    with pytest.raises(ConfigError) as error:
        Published(MODELS / "llama", ADAPTERS / name)
    assert f"{setting} = {value!r}" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"init_lora_weights": init}
            for init in ("pissa_niter_4", "corda", "lora_ga", "OLoRA", "loftq", "yet_another")
        ),
        *({"bias": bias} for bias in ("all", "lora_only")),
        {"task_type": "SEQ_CLS"},
        {"peft_type": "LOHA"},
        {"alora_invocation_tokens": [3]},
        {"arrow_config": {"top_k": 3}},
        {"ensure_weight_tying": True},
        {"fan_in_fan_out": True},
        {"kasa_config": {"beta": 1e-4}},
        {"layer_replication": [[0, 2]]},
        {"lora_bias": True},
        {"megatron_config": {"x": 1}},
        {"monteclora_config": {"num_samples": 8}},
        {"target_parameters": ["experts"]},
        {"trainable_token_indices": [1]},
        {"use_bdlora": {"nblocks": 2}},
        {"use_qalora": True},
        {"velora_config": {"num_groups": 2}},
        {"use_something_of_a_later_release": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": "lm_head"},
        {"r": 0},
        {"r": 1.5},
        {"r": True},
        {"r": "2"},
        {"r": 10**400},
        {"lora_alpha": "3"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"use_rslora": "no"},
        {"rank_pattern": [1]},
        {"rank_pattern": {"v_proj": 0}},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"v_proj": "much"}},
    ],
    ids=str,
)
def test_a_setting_that_is_not_understood_is_refused_by_name(tmp_path, change):
    with pytest.raises(ConfigError) as error:
        Published(MODELS / "llama", edited(tmp_path, "gaussian", **change))
    (key,), text = change, str(error.value)
    named = {"use_dora": "magnitude", "lora_alpha": "adapter_config.json"}  # JSON has no NaN: the file is named
    assert (named.get(key, key) in text) and text.count("\n") == 0 and len(text) < 500, text


@pytest.mark.parametrize("off", [None, False, [], {}, ""], ids=repr)
def test_a_setting_that_is_off_is_no_matter(tmp_path, off):
    later = dict.fromkeys([*adapter_settings.REFUSED, "use_something_of_a_later_release"], off)
    assert Published(MODELS / "llama", edited(tmp_path, "gaussian", **later)).adapter


def test_patterns_name_modules_as_peft_does():
    """The first pattern that fits counts; it has to reach a name's end, and to begin it or follow a dot."""
    settings = adapter_settings.Settings(8, 16.0, {"v_proj": 2, r"layers\.1\..*": 4}, {"mlp.up": 1.0}, False, False, ())
    ranks = {
        name: settings.rank_of(f"model.layers.{name}") for name in ("1.self_attn.v_proj", "1.mlp.up_proj", "0.kv_proj")
    }
    assert ranks == {"1.self_attn.v_proj": 2, "1.mlp.up_proj": 4, "0.kv_proj": 8}
    assert settings.scale_of("model.layers.0.mlp.up_proj") == 2.0 and settings.scale_of("layers.0.mlp.up") == 1 / 8


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (("v_proj.lora", "x_proj.lora"), "adapts no matrix"),
        (("v_proj.lora_B.weight", "v_proj.lora_C"), "adapts nothing that is known"),
        (("layers.1.self_attn.v_proj.lora_B.weight", "layers.1.mlp.up_proj.weight"), "nothing in adapter_config.json"),
        (("layers.1.self_attn.v_proj.lora_B", "layers.1.mlp.up_proj.lora_B"), "but no [ab]"),
        (("base_model.model.model.layers.1", "base_model.model.model.layers.7"), "adapts no matrix"),
        (("v_proj.lora_A.weight", "v_proj.lora_magnitude_vector"), "but no a"),
    ],
    ids=str,
)
def test_tensors_that_fit_nothing_are_named(tmp_path, rename, says):
    copy = shutil.copytree(ADAPTERS / "gaussian", tmp_path / "adapter")
    tensors = load_file(copy / "adapter_model.safetensors")
    save_file({name.replace(*rename): w for name, w in tensors.items()}, copy / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=says):
        Published(MODELS / "llama", copy)


def test_a_factor_that_is_not_finite_is_named(tmp_path):
    copy = shutil.copytree(ADAPTERS / "gaussian", tmp_path / "adapter")
    tensors = load_file(copy / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[name][3, 1] = np.nan
    save_file(tensors, copy / "adapter_model.safetensors")
    for keep in (False, True):
        with pytest.raises(
            ConfigError, match=rf"{name}: 1 of 24 numbers read are not finite, the first nan at \[3, 1\]"
        ):
            import_model(MODELS / "llama", tmp_path, copy, keep)
