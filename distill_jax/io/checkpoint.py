"""Checkpoints of pytrees in one directory, through Orbax, each proved whole by a list of its files' hashes."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from distill_jax.config import ConfigError
from distill_jax.io.files import digest, read_json, write_json

FINAL = "final"
# A failed save is raised once; asyncio would log each of its unfinished writes as well, and Orbax each leftover.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
logging.getLogger("absl").setLevel(logging.ERROR)


class Damaged(ConfigError):
    """Name a checkpoint whose files are not those that were written."""


class Checkpoints:
    """Keep the newest `keep` training states by step, and a stage's result as `final`.

    A checkpoint `<tag>/` counts only once `<tag>.json`, the hashes of its files, stands beside it: a save that
    was interrupted leaves no such file and is as if it had never begun.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory, self.keep = directory, keep

    def save(self, tag: int | str, tree: Any) -> None:
        """Write a tree of arrays under a step or a name; older steps beyond `keep` go once it is safe."""
        target, proof = self._paths(tag)
        proof.unlink(missing_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        # Orbax answers a full disk with pages of its threads' tracebacks, so look before it writes.
        needed = 2 * sum(x.nbytes for x in jax.tree.leaves(tree)) + 2**20
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(target.absolute(), tree, force=True)
        except ValueError as error:  # TensorStore's kind of a full disk
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        files = {str(f.relative_to(target)): digest(f) for f in sorted(target.rglob("*")) if f.is_file()}
        write_json(proof, files)
        for step in self.steps()[: -self.keep]:
            self.remove(step)

    def steps(self) -> list[int]:
        """Return the steps saved completely, oldest first."""
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if p.stem.isdigit())

    def restore(self, tag: int | str, like: Any) -> Any:
        """Read a checkpoint back, on the host, into the structure and shapes of `like` (arrays or shape structs).

        Raises:
          Damaged: if a file is missing, was cut short or has other contents than were written.
        """
        target, proof = self._paths(tag)
        wrong = self._damage(target, proof)
        if wrong:
            raise Damaged(f"{target}: {wrong}; remove {self.directory.parent} and run again to compute it anew")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        with ocp.StandardCheckpointer() as checkpointer:
            return jax.tree.map(np.asarray, checkpointer.restore(target.absolute(), like))

    def remove(self, tag: int | str) -> None:
        """Forget a checkpoint: first its proof, so that a removal cut short leaves nothing that counts."""
        target, proof = self._paths(tag)
        proof.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)

    def _paths(self, tag: int | str) -> tuple[Path, Path]:
        return self.directory / str(tag), self.directory / f"{tag}.json"

    def _damage(self, target: Path, proof: Path) -> str | None:
        if not proof.exists():
            return "no complete checkpoint"
        try:
            files = read_json(proof)
        except ValueError:
            return f"its list of files {proof.name} is damaged"
        for name, expected in files.items():
            if not (target / name).is_file():
                return f"file {name} is missing"
            if digest(target / name) != expected:
                return f"file {name} is damaged"
        return None
