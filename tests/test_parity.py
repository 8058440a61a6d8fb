"""Live parity with Hugging Face's models: the optional [parity] extra (torch, transformers, peft)."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.record import (
    CASES,
    RECORDINGS,
    draw,
    hugging_face,
    hugging_face_logits,
    lay_out,
    to_hugging_face,
)
from parity.record_choices import CASES as CHOICES
from parity.record_choices import EXPECTED, harness
from parity.save_models import ADAPTED, ADAPTERS, MODELS, SHOWN, logits
from parity.save_models import CASES as SAVED

from distill_jax.interop import adapter_settings
from distill_jax.interop.exporting import export_adapter, export_model
from distill_jax.interop.importing import import_model
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig

torch = pytest.importorskip("torch")
AutoConfig = pytest.importorskip("transformers").AutoConfig
GenerationConfig = pytest.importorskip("transformers").GenerationConfig

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compile fast, run little
apply = jit(transformer.apply, static_argnums=0)


@pytest.mark.unit
@pytest.mark.parametrize("name", CASES)
def test_recordings_are_what_hugging_face_says_today(name):
    cfg, rows = CASES[name]
    with np.load(RECORDINGS / f"{name}.npz") as file, torch.no_grad():
        seed = int(file["seed"])
        tokens, segments = lay_out(rows, cfg.vocab, seed)
        np.testing.assert_array_equal(tokens, file["tokens"])
        np.testing.assert_array_equal(segments, file["segments"])
        logits = hugging_face_logits(hugging_face(cfg, draw(cfg, seed)), tokens, segments)
        np.testing.assert_allclose(logits, file["logits"], atol=5e-5, rtol=0)


def random_case(seed: int):
    """Draw a shape and a batch: one row padded on either side, or two segments and padding."""
    rng = random.Random(seed)
    kv_heads, group, length = rng.randint(1, 3), rng.randint(1, 3), rng.randint(6, 18)
    cfg = TransformerConfig(
        vocab=rng.randint(20, 90),
        layers=rng.randint(1, 5),
        hidden=kv_heads * group * rng.randint(3, 9),
        mlp=rng.randint(10, 90),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=2 * rng.randint(1, 12),
        query_scale=rng.randint(4, 300),
        attention_softcap=rng.choice([5.0, 50.0]),
        final_softcap=rng.choice([5.0, 30.0]),
        sliding_window=rng.randint(1, length),
        rope_theta=rng.choice([100.0, 10_000.0]),
    )
    pad = rng.randint(1, length - 3)
    shapes = [
        [[(0, pad), (1, length - pad)], [(1, length - pad), (0, pad)]],
        [[(1, pad), (2, length - pad)], [(0, 2), (1, length - 3), (0, 1)]],
    ]
    return cfg, *lay_out(rng.choice(shapes), cfg.vocab, seed)


@pytest.mark.unit
@pytest.mark.parametrize("seed", range(6))
def test_logits_at_random_shapes(seed):
    cfg, tokens, segments = random_case(seed)
    params = draw(cfg, seed)
    with torch.no_grad():
        theirs = hugging_face_logits(hugging_face(cfg, params), tokens, segments).numpy()
    ours = np.asarray(apply(cfg, params, tokens, segments))
    np.testing.assert_allclose(ours[segments > 0], theirs[segments > 0], atol=1e-4, rtol=0)


def our_loss(params, cfg, tokens, segments):
    log_p = jax.nn.log_softmax(transformer.apply(cfg, params, tokens, segments)[:, :-1])
    scored = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -jnp.sum(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0] * scored) / scored.sum()


value_and_grad = jit(jax.value_and_grad(our_loss), static_argnums=1)


def their_loss(model, tokens, segments):
    targets = torch.from_numpy(tokens[:, 1:]).clone()
    targets[torch.from_numpy((segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == 0))] = -100
    logits = hugging_face_logits(model, tokens, segments)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.unit
@pytest.mark.parametrize(
    "name",
    [
        *("gemma2_left_padded", "gemma2_packed", "gemma2_grouped_8_4", "llama3_untied", "llama3_tied"),
        *("gemma2_untied", "gemma3_packed", "gemma3_untied", "qwen3_tied", "qwen3_untied"),
        *("qwen2_packed", "qwen2_tied", "qwen2_window", "mistral_padded"),
    ],
)
def test_gradients_of_all_parameters(name):
    cfg, rows = CASES[name]
    tokens, segments = lay_out(rows, cfg.vocab, seed=7)
    params = draw(cfg, seed=7)
    model = hugging_face(cfg, params)
    loss = their_loss(model, tokens, segments)
    loss.backward()
    value, gradients = value_and_grad(params, cfg, tokens, segments)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)

    ours, theirs = to_hugging_face(cfg, gradients, gradients=True), dict(model.named_parameters())
    assert set(ours) == set(theirs)
    for key, parameter in theirs.items():
        g = parameter.grad.numpy()
        scale = np.abs(g).max()
        assert scale > 0, key
        np.testing.assert_allclose(ours[key] / scale, g / scale, atol=1e-4, rtol=0, err_msg=key)


def loaded(path):
    """Return the model that transformers makes of a directory, which must have every tensor and no other."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.unit
@pytest.mark.parametrize("name", SAVED)
def test_transformers_loads_what_was_exported(name, tmp_path):
    export_model(import_model(MODELS / name, tmp_path), tmp_path / "out", shard_bytes=20_000)
    model = loaded(tmp_path / "out")
    with np.load(MODELS / name / "expected.npz") as said:
        ours = logits(model, *(torch.from_numpy(said[key]) for key in ("tokens", "mask")))
        np.testing.assert_allclose(ours, said["logits"], atol=1e-4, rtol=0)
    theirs = AutoConfig.from_pretrained(MODELS / name).get_text_config()
    assert model.config.max_position_embeddings == theirs.max_position_embeddings
    with_end = GenerationConfig.from_model_config(AutoConfig.from_pretrained(MODELS / name))
    assert model.generation_config.eos_token_id == with_end.eos_token_id


@pytest.mark.unit
@pytest.mark.parametrize("name", ["gemma2_unwindowed", "gemma3_unwindowed", "qwen2_window", "mistral_window"])
def test_what_is_exported_generates_with_its_cache(name):
    cfg = CASES[name][0]
    tokens = torch.arange(1, 7)[None]
    said = hugging_face(cfg, draw(cfg, 0)).generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert said.shape == (1, 10)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["tied_embedding", "tied_head", "dora_embedding", "embedding_and_head", "patterns"])
def test_transformers_loads_what_adapters_were_merged_into(name, tmp_path):
    base = MODELS / ADAPTED[name][0]
    export_model(import_model(base, tmp_path, ADAPTERS / name), tmp_path / "out")
    with np.load(base / "expected.npz") as said, np.load(ADAPTERS / name / "expected.npz") as adapted:
        tokens = (torch.from_numpy(said[key][SHOWN]) for key in ("tokens", "mask"))
        np.testing.assert_allclose(logits(loaded(tmp_path / "out"), *tokens), adapted["logits"], atol=1e-4, rtol=0)


@pytest.mark.unit
def test_every_setting_of_todays_peft_is_decided_on():
    peft = pytest.importorskip("peft")
    settings = adapter_settings
    decided = {*settings.HARMLESS, *settings.UNDERSTOOD, *settings.VALUES, *settings.REFUSED, "init_lora_weights"}
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= decided


@pytest.mark.unit
@pytest.mark.parametrize(
    ("init", "changes"),
    [
        *((init, False) for init in (True, False, "gaussian", "orthogonal", "eva", "mica")),
        *((init, True) for init in ("pissa", "pissa_niter_2", "olora")),
    ],
    ids=str,
)
def test_which_ways_to_begin_change_the_models_weights(init, changes):
    peft = pytest.importorskip("peft")
    model = loaded(MODELS / "llama")
    before = {name: w.clone() for name, w in model.named_parameters()}
    settings = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=init)
    after = {name.replace(".base_layer", ""): w for name, w in peft.get_peft_model(model, settings).named_parameters()}
    changed = [name for name, w in before.items() if not torch.equal(w, after[f"base_model.model.{name}"])]
    assert bool(changed) == changes
    assert changes == (init not in adapter_settings.PLAIN_INITS)


@pytest.mark.unit
@pytest.mark.parametrize("keep", [False, True])
def test_peft_loads_what_was_exported(keep, tmp_path):
    peft = pytest.importorskip("peft")
    node = import_model(MODELS / "llama", tmp_path, MODELS / "llama_adapter", keep)
    if keep:
        export_adapter(node, tmp_path / "out")
        model = peft.PeftModel.from_pretrained(loaded(MODELS / "llama"), tmp_path / "out")
    else:
        export_model(node, tmp_path / "out")
        model = loaded(tmp_path / "out")
    with np.load(MODELS / "llama" / "expected.npz") as said:
        ours = logits(model, *(torch.from_numpy(said[key]) for key in ("tokens", "mask")))
        np.testing.assert_allclose(ours, said["adapted"], atol=1e-4, rtol=0)


@pytest.mark.unit
@pytest.mark.parametrize("case", CHOICES)
def test_the_harness_says_today_what_was_recorded(case):
    pytest.importorskip("lm_eval")
    said, recorded = harness(case), json.loads(EXPECTED.read_text())[case]
    assert said["accuracy"] == recorded["accuracy"]
    np.testing.assert_allclose(said["log_likelihoods"], recorded["log_likelihoods"], atol=1e-4, rtol=0)
