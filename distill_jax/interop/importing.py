"""Import: a published model becomes a finished node, which stages and commands can start from."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.config import check, identity
from distill_jax.interop import hugging_face, tokenizers
from distill_jax.interop.directory import read_object
from distill_jax.interop.merging import Merged
from distill_jax.interop.model_files import open_files
from distill_jax.interop.peft import Adapter
from distill_jax.io import attempts
from distill_jax.io.checkpoint import FINAL
from distill_jax.io.files import Digests, write_json
from distill_jax.io.gguf_header import is_gguf
from distill_jax.io.leases import Leases
from distill_jax.io.node import TOKENIZER, Node
from distill_jax.io.staging import local_input
from distill_jax.io.storage import resolved
from distill_jax.models import lora
from distill_jax.models.lora import Adapters
from distill_jax.models.transformer import Params
from distill_jax.perf.clock import Lap
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.distributed import is_primary
from distill_jax.sharding.mesh import make_mesh, shardings
from distill_jax.types import JsonObject

PATIENCE = 5.0  # seconds between two looks at what another process imports


class Published:
    """A model as it was published, checked, perhaps with LoRA adapters to merge in.

    Weights stay in the dtype they have, norms come in fp32; merged weights are summed in fp32.

    Attributes:
      files: its files.
      adapter: the adapters.
      cfg: the decoder with the adapters merged in: what adapts an embedding or its head alone unties them.

    Args:
      source: the model's directory, its only file of weights, or a GGUF file.
      adapter: directory of PEFT LoRA adapters to it; "" for none.

    Raises:
      ConfigError: for whatever is missing or not supported, naming it and its mend.
    """

    def __init__(self, source: str | Path, adapter: str | Path = ""):
        self.files = open_files(local_input(source))
        self.adapter = Adapter(local_input(adapter), self.files.cfg) if adapter else None
        untied = self.adapter is not None and self.adapter.unties
        self.cfg = dataclasses.replace(self.files.cfg, tied=False) if untied else self.files.cfg

    def contents(self, digests: Digests) -> JsonObject:
        """Return what the model is known by: the hashes of all its files that are read or copied."""
        return {"files": {file.name: digests.of(str(file)) for file in self.files.known_files()}} | (
            {"adapter": self.adapter.digest} if self.adapter else {}
        )

    def load(self, mesh: Mesh) -> Params:
        """Read the weights straight to their shards."""
        source: hugging_face.Source = self.files.source
        merged = Merged(self.adapter, source) if self.adapter else source
        return hugging_face.load(self.cfg, merged, mesh)

    def adapters(self, mesh: Mesh) -> Adapters:
        """Read the adapters alone to their shards."""
        assert self.adapter
        tree = self.adapter.tree()
        at = shardings(mesh, lora.logical_axes(self.files.cfg, tree), tree)
        shards = lambda x, where: jax.make_array_from_callback(x.shape, where, lambda index: np.asarray(x)[index])  # noqa: E731
        return jax.tree.map(shards, tree, at)

    def leave(self, node: Node, tree: Params | Adapters) -> JsonObject:
        """Write what an imported node has beside its records: weights, tokenizer, facts; return what to say of them."""
        node.checkpoints.save(FINAL, tree, lean=True)
        if is_primary():
            config = node.directory / "config.json"
            write_json(config, {**read_object(config), "hugging_face": self.files.facts})
            tokenizers.copy(self.files.tokenizer, node.directory / TOKENIZER)
        return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(tree)), "steps": 0}


def import_model(source: Path, workdir: Path, adapter: Path | None = None, keep_adapter: bool = False) -> Path:
    """Make a finished node of a model, `workdir/nodes/<name>-<identity>`, and return its directory.

    The identity is that of the files' contents: what was imported before is not imported again. Adapters are merged
    into the weights; or kept, as a second node that starts from the model's.

    Args:
      source: the model's directory, its only file of weights, or a GGUF file.
      adapter: directory of PEFT LoRA adapters to it.
      keep_adapter: whether they are kept as adapters.
    """
    check(adapter is not None or not keep_adapter, "--keep_adapter: there is none; name its directory with --adapter")
    model, digests = Published(source, adapter or ""), Digests(workdir / "digests.json")
    pairs = model.adapter
    if pairs and keep_adapter:
        pairs.check_kept()
        model = Published(source)
    path = model.files.path
    base = _node(
        model, path, resolved(source), model.contents(digests), {}, workdir, lambda: model.load(make_mesh(1, fsdp=-1))
    )
    digests.save()
    if not pairs or not keep_adapter:
        return base
    settings = {"adapter": pairs.digest, "lora_rank": pairs.rank, "lora_alpha": pairs.alpha}
    return _node(
        model, pairs.path, resolved(adapter or pairs.path), settings, {"start": base.name}, workdir, pairs.tree
    )


def _node(
    model: Published,
    source: Path,
    where: Path,
    settings: JsonObject,
    inputs: dict[str, str],
    workdir: Path,
    load: Callable[[], Params | Adapters],
) -> Path:
    """Write a node as runs do, unless it is there already; return its directory."""
    began = time.monotonic()
    name = source.resolve().stem if is_gguf(source) else source.resolve().name
    basis = {"verb": "import", "settings": settings, "inputs": inputs, "model": model.cfg}
    known_by = identity(basis)
    basis["model"] = dataclasses.asdict(model.cfg)
    node = Node(name, "import", settings, inputs, known_by, workdir / "nodes" / f"{name}-{known_by}")
    if node.done:
        return node.directory
    with _attempt(node) as attempt:
        if not attempt.done:
            write_json(attempt.directory / "config.json", {"name": name, "identity": known_by, **basis})
            result = {"source": str(where), **model.leave(attempt, load())}
            attempt.finish(result, ledger({}, {}, Lap({"step": time.monotonic() - began})))
    return node.directory


@contextlib.contextmanager
def _attempt(node: Node) -> Iterator[Node]:
    """Yield an attempt at a node, which becomes the node; wait for another process that imports the same model."""
    leases, home = Leases(), attempts.home(node)
    try:
        while not leases.take(home):
            print(f"waiting for {leases.holder(home)}, which imports it too", file=sys.stderr, flush=True)
            time.sleep(PATIENCE)
        attempt = node if node.done else attempts.begin(node, leases.token(home))
        yield attempt
        if not node.done:
            attempts.publish(attempt, node)
    finally:
        leases.close()
