"""Export: any model becomes a directory in the Hugging Face layout, or its adapters one in PEFT's."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from distill_jax.config import check
from distill_jax.interop import hugging_face, peft, tokenizers
from distill_jax.interop.directory import INDEX, SINGLE
from distill_jax.interop.families import to_json
from distill_jax.interop.finite import check_finite
from distill_jax.interop.model_source import adapters_of, open_model
from distill_jax.io import staging, storage
from distill_jax.io.files import write_json
from distill_jax.models.transformer import Params
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.sharding.mesh import make_mesh

# Left out, they would be those of the family's first model, whatever vocabulary this one has.
TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def export_model(source: Path, to: Path, dtype: str | None = None, shard_bytes: int = 5 * 10**9) -> None:
    """Write a model as transformers loads it; the directory appears when it is whole.

    Args:
      source: whatever `open_model` opens; a node's adapters come merged in, summed in fp32.
      dtype: of all tensors; the widest that a matrix is stored in, when left out.
      shard_bytes: of a file at most, but one tensor at least.
    """
    model = open_model(source)
    config = to_json(model.cfg)  # what no family has is refused before anything is read
    with _appearing(to) as directory:
        params = model.load(make_mesh(1, devices=jax.devices()[:1]), None)
        matrices = [w.dtype for path, w in jax.tree_util.tree_leaves_with_path(params) if path[-1].key != "scale"]
        kind = jnp.dtype(dtype) if dtype else jnp.result_type(*matrices)
        _write_tensors(directory, model.cfg, params, kind, shard_bytes)
        facts = {key: value for key, value in model.facts.items() if value is not None}
        write_json(directory / "config.json", {**config, **TOKENS, **facts, "torch_dtype": kind.name})
        tokenizers.copy(model.tokenizer, directory)
        ends = {key: facts[key] for key in TOKENS if key in facts}
        if ends and not (directory / tokenizers.GENERATION).is_file():
            write_json(directory / tokenizers.GENERATION, ends)


def export_adapter(source: Path, to: Path) -> None:
    """Write the adapters that a node trained, or was imported with, as PEFT loads them."""
    cfg, rank, alpha, adapters = adapters_of(source)
    to_json(cfg)
    with _appearing(to) as directory:
        peft.save(directory, cfg, adapters, rank, alpha)


def _write_tensors(directory: Path, cfg: TransformerConfig, params: Params, kind: np.dtype, limit: int) -> None:
    sizes = {name: math.prod(shape) * kind.itemsize for name, shape in hugging_face.expected(cfg).items()}
    if storage.free_bytes(directory) < sum(sizes.values()):  # the library would say so in its own kind of error
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory.parent))
    shards = _split(sizes, limit)
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    tensors = hugging_face.tensors(cfg, params)
    for file, names in zip(files, shards, strict=True):
        held = {name: _cast(name, w, kind) for name, w in itertools.islice(tensors, len(names))}
        try:
            save_file(held, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # the library's own kind of a disk that refuses
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number), str(directory.parent)) from error
    if len(shards) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})


def _cast(name: str, w: np.ndarray, kind: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # what comes of it is looked at
        out: np.ndarray = np.ascontiguousarray(w, kind)
    check_finite(out, f"{name} as {kind.name}", mend="it trained to this, or is beyond that type: try --dtype=float32")
    return out


def _split(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Cut names into runs of at most this many bytes, in order."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


@contextlib.contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Give a directory to write into that becomes `to` at the end, or vanishes."""
    check(not storage.names(to), f"--to={to}: is there already; name a directory that is not")
    if not storage.is_local(to):
        with staging.uploading(to, last="config.json") as local:
            local.mkdir()
            yield local
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(to)
    finally:
        storage.remove_tree(temporary)
