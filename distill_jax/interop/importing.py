"""Import: a model in the Hugging Face layout becomes a finished node, which stages and commands can start from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from distill_jax.config import check, identity
from distill_jax.interop import hugging_face, tokenizers
from distill_jax.interop.directory import Directory
from distill_jax.interop.models import CARRIED, DONE, TOKENIZER
from distill_jax.interop.peft import Adapter
from distill_jax.io.checkpoint import FINAL, Checkpoints
from distill_jax.io.files import digest, write_json
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.mesh import make_mesh


def import_model(source: Path, workdir: Path, adapter: Path | None = None, keep_adapter: bool = False) -> Path:
    """Make a finished node of a model, `workdir/nodes/<name>-<identity>`, and return its directory.

    The identity is that of the files' contents: what was imported before is not imported again. Weights stay in the
    dtype they have, norms come in fp32. Adapters are merged into them, summed in fp32; or kept, as a second node that
    starts from the model's.

    Args:
      source: the model's directory, or its only file of weights.
      adapter: directory of PEFT LoRA adapters to it.
      keep_adapter: whether they are kept as adapters.
    """
    check(adapter is not None or not keep_adapter, "--keep_adapter: there is none; name its directory with --adapter")
    directory = Directory(source)
    pairs = Adapter(adapter, directory.cfg) if adapter else None
    settings: dict[str, Any] = {"files": {file.name: digest(file) for file in directory.files}}
    weights: hugging_face.Source = directory.source
    if pairs and not keep_adapter:
        weights, settings = pairs.merged(weights), {**settings, "adapter": pairs.digest}

    def load() -> Any:
        return hugging_face.load(directory.cfg, weights, make_mesh(1, fsdp=-1))

    base = _node(directory, directory.path, settings, {}, workdir, load)
    if not pairs or not keep_adapter:
        return base
    settings = {"adapter": pairs.digest, "lora_rank": pairs.rank, "lora_alpha": pairs.alpha}
    return _node(directory, pairs.path, settings, {"start": base.name}, workdir, pairs.tree)


def _node(
    directory: Directory, source: Path, settings: Any, inputs: Any, workdir: Path, load: Callable[[], Any]
) -> Path:
    """Write a node as runs do, DONE last, unless it is there already; return its directory."""
    began, name = time.monotonic(), source.resolve().name
    basis = {"verb": "import", "settings": settings, "inputs": inputs, "model": dataclasses.asdict(directory.cfg)}
    known_by = identity(basis)
    path = workdir / "nodes" / f"{name}-{known_by}"
    if (path / DONE).is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    carried = {key: directory.json.get(key) for key in CARRIED}
    write_json(path / "config.json", {"name": name, "identity": known_by, **basis, "hugging_face": carried})
    tokenizers.copy(str(directory.path), path / TOKENIZER)
    tree = load()
    Checkpoints(path / "checkpoints").save(FINAL, tree, lean=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    write_json(path / "ledger.json", ledger({}, {}, {"other": time.monotonic() - began}))
    write_json(path / "result.json", {"source": str(source.resolve()), "parameters": count, "steps": 0})
    write_json(path / DONE, {"identity": known_by, "sha256": {}})
    return path
