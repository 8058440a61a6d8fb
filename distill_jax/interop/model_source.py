"""A model of any kind to read: a finished node of a run, a directory in the Hugging Face layout, or a GGUF file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.data.arithmetic import word_vocabulary
from distill_jax.interop import hugging_face, tokenizers
from distill_jax.interop.directory import read_object
from distill_jax.interop.model_files import open_files
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.node import CONFIG, DONE, TOKENIZER, Node, finished
from distill_jax.io.staging import local_input
from distill_jax.models import lora, transformer
from distill_jax.models.lora import Adapters
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import shardings, with_shardings
from distill_jax.types import JsonObject, PyTree


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that can be loaded.

    Attributes:
      cfg: the decoder.
      load: load(mesh, dtype) lays its weights out on a mesh, matrices in the dtype (None: as they are stored); a model
        that trained adapters comes with them merged in.
      facts: what is no part of the decoder but goes with it, as `families.facts_of` has it, of its config.json or the
        imported model it goes back to; or the special tokens of what it trained on.
      tokenizer: directory of its tokenizer's files, or the GGUF file that has it, or the name of a vocabulary, or "".
    """

    cfg: TransformerConfig
    load: Callable[[Mesh, str | None], Params]
    facts: JsonObject
    tokenizer: str


def open_model(path: Path) -> Model:
    """Open a node's directory, a directory in the Hugging Face layout or its only file of weights, or a GGUF file.

    Raises:
      ConfigError: saying what is missing or wrong.
    """
    config = path / "config.json"
    if (path / DONE).is_file() or (config.is_file() and "verb" in read_object(config)):
        return _node(path)
    files = open_files(local_input(path))

    def load(mesh: Mesh, dtype: str | None = None) -> Params:
        return hugging_face.load(files.cfg, files.source, mesh, dtype)

    return Model(files.cfg, load, files.facts, files.tokenizer)


def _read(directory: Path) -> tuple[Node, JsonObject]:
    """Return a finished node and its config."""
    node = finished(directory)
    return node, read_object(node.sealed(CONFIG))


def _node(path: Path) -> Model:
    node, config = _read(path)
    check((path / "checkpoints" / FINAL).is_dir(), f"{path}: a {config['verb']} node leaves no model")
    check("model" in config, f"{path}/config.json: has no model; it was written before nodes kept theirs")
    cfg = TransformerConfig(**config["model"])
    origin, facts = node, config
    while "hugging_face" not in facts and facts["inputs"]:  # it may go back to an imported model
        origin, facts = _read(path.parent / next(iter(facts["inputs"].values())))
    copied = origin.sealed_under(f"{TOKENIZER}/")
    named = config.get("vocabulary") or trained_vocabulary(path.parent, config)
    tokenizer = str(origin.directory / TOKENIZER) if copied else named

    def load(mesh: Mesh, dtype: str | None = None) -> Params:
        rank, checkpoints = config["settings"].get("lora_rank", 0), node.checkpoints
        if not rank:
            return checkpoints.restore(FINAL, _placed(cfg, mesh, _cast(cfg, checkpoints.shapes(FINAL), dtype)))
        adapters = checkpoints.restore(FINAL, _placed(cfg, mesh, checkpoints.shapes(FINAL)))
        start = open_model(path.parent / config["inputs"]["start"]).load(mesh, None)
        merged = lora.merge(start, adapters, config["settings"]["lora_alpha"])
        return _cast(cfg, merged, dtype)

    return Model(cfg, load, facts.get("hugging_face") or _special_tokens(config), tokenizer)


def trained_vocabulary(nodes: Path, config: JsonObject) -> str:
    """Return the vocabulary that was trained on a node's text, which lies with its rows; "" if there is none."""
    path = nodes / config.get("data", "") / "rows" / "vocabulary.model"
    return str(path) if path.is_file() else ""


def _special_tokens(config: JsonObject) -> JsonObject:
    """Return the special tokens of the text that a node trained on, as facts."""
    shipped = {"bos": word_vocabulary.BOS, "eos": word_vocabulary.EOS, "pad": word_vocabulary.PAD}
    tokens = config.get("special_tokens") or (shipped if config.get("vocabulary") == tokenizers.WORDS else {})
    return {f"{name}_token_id": token for name, token in tokens.items()}


def adapters_of(path: Path) -> tuple[TransformerConfig, int, float, Adapters]:
    """Return the (decoder, rank, alpha, adapters) of a finished node that kept adapters.

    Raises:
      ConfigError: if it did not.
    """
    cfg = open_model(path).cfg  # which holds a node's config against its seal
    settings = read_object(path / "config.json").get("settings", {})
    check(settings.get("lora_rank", 0) > 0, f"{path}: has no adapters of its own; export the whole model")
    checkpoints = finished(path).checkpoints
    return cfg, settings["lora_rank"], settings["lora_alpha"], checkpoints.restore(FINAL, checkpoints.shapes(FINAL))


def _cast(cfg: TransformerConfig, params: Params, dtype: str | None) -> Params:
    return transformer.frozen(dataclasses.replace(cfg, dtype=dtype), params) if dtype else params


def _placed(cfg: TransformerConfig, mesh: Mesh, shape: PyTree) -> PyTree:
    return with_shardings(shape, shardings(mesh, lora.logical_axes(cfg, shape), shape))
