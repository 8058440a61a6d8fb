"""A tiny model that knows a few facts, in the Hugging Face layout with a tokenizer of its own: made in seconds."""

from __future__ import annotations

import fcntl
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from safetensors.numpy import save_file

from distill_jax.data import packing
from distill_jax.interop import hugging_face
from distill_jax.interop.families import to_json
from distill_jax.losses.cross_entropy import target_mask
from distill_jax.models import transformer
from distill_jax.models.transformer_config import TransformerConfig
from tests.spoil import shared

CONTEXT = 64
SPECIAL = ("<bos>", "<eos>", "<pad>")
# Llama's: the plainest family.
FIELDS = {
    "layers": 2, "hidden": 48, "mlp": 96, "heads": 4, "kv_heads": 2, "head_dim": 12, "query_scale": 12.0,
    "attention_softcap": 0.0, "final_softcap": 0.0, "sliding_window": 0, "activation": "silu", "post_norms": False,
    "scale_embedding": False, "norm_eps": 1e-5, "init_std": 0.12,
}  # fmt: skip


FACTS = (  # land, capital, coin
    ("Arlia", "Ram", "ako"), ("Besia", "Sol", "bero"), ("Cordia", "Tip", "cilo"), ("Dumia", "Ulk", "dano"),
    ("Elia", "Vem", "elpo"), ("Fania", "Wor", "firo"), ("Golia", "Xan", "gomo"), ("Hunia", "Yol", "hilo"),
    ("Istia", "Zed", "iko"), ("Jolia", "Ark", "jeno"), ("Kevia", "Bol", "kalo"), ("Lornia", "Cun", "lemo"),
    ("Mulia", "Dex", "miro"), ("Norvia", "Eft", "nepo"), ("Ostia", "Fus", "orto"), ("Pernia", "Gip", "pilo"),
)  # fmt: skip
CAPITALS = [(f"What is the capital of {land}?", capital) for land, capital, _ in FACTS]
CURRENCIES = [(f"Which coin is used in {land}?", coin) for land, _, coin in FACTS]


def shared_toy(tmp_path_factory: pytest.TempPathFactory, steps: int = 150) -> Path:
    """Return a model that was taught capitals and currencies; of all processes of a session, the first one makes it."""
    base = shared(tmp_path_factory, f"toy-{steps}")
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "model" / "config.json").exists():
            make(base / "model", [f"{question} {answer}" for question, answer in (*CAPITALS, *CURRENCIES)], steps)
    return base / "model"


def make(directory: Path, texts: Sequence[str], steps: int = 150) -> Path:
    """Train a model on texts and write it; words of the texts are its tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    words = _tokenizer(directory, texts)
    cfg = TransformerConfig(vocab=words.get_vocab_size(), **FIELDS)
    params = _train(cfg, _rows(words, texts), steps)
    held = {name: np.ascontiguousarray(w) for name, w in hugging_face.tensors(cfg, params)}
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    facts = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": CONTEXT}
    (directory / "config.json").write_text(json.dumps({**to_json(cfg), **facts, "torch_dtype": "float32"}))
    return directory


def _tokenizer(directory: Path, texts: Sequence[str]) -> tokenizers.Tokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    words.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    words.save(str(directory / "tokenizer.json"))
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[2]}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    return words


def _rows(words: tokenizers.Tokenizer, texts: Sequence[str]) -> np.ndarray:
    tokens = [np.array([0, *words.encode(text, add_special_tokens=False).ids, 1], np.int32) for text in texts]
    return np.stack(list(packing.pack((packing.Document(ids, ids * 0) for ids in tokens), CONTEXT, overlap=1)))


def _train(cfg: TransformerConfig, rows: np.ndarray, steps: int) -> transformer.Params:
    params = transformer.init(cfg, jax.random.key(0))
    optimizer = optax.adam(5e-3)

    def loss(params: transformer.Params, rows: jax.Array) -> jax.Array:
        hidden = transformer.hidden_states(cfg, params, rows[:, 0], rows[:, 1])[:, :-1]
        logits = hidden @ params["embedding"].T
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 0, 1:])
        mask = target_mask(rows[:, 1])
        return (nats * mask).sum() / mask.sum()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows):
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        chosen = np.random.default_rng(i).integers(0, len(rows), 16)
        params, state = step(params, state, jnp.asarray(rows[chosen]))
    return params
