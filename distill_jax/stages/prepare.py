"""Prepare: make the experiment's data, in a process of its own, the only one that imports TensorFlow."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from distill_jax.config import ConfigError, Interrupted
from distill_jax.data.data_config import DataConfig
from distill_jax.data.records import load_manifest, verify
from distill_jax.exit_codes import ended
from distill_jax.io.files import Digests, write_json
from distill_jax.io.storage import location
from distill_jax.perf.ledger import ledger
from distill_jax.sharding.distributed import is_primary
from distill_jax.stages.context import Context, Node
from distill_jax.stages.stage import Stage


@dataclasses.dataclass(frozen=True)
class Prepare(Stage):
    """Make the experiment's data: every experiment has this one stage beside those that it declares.

    Attributes:
      data: their settings.
    """

    data: DataConfig

    kind: ClassVar[str] = "prepare"
    leaves_model: ClassVar[bool] = False

    def as_dict(self) -> dict[str, Any]:
        """Return the data's settings."""
        return dataclasses.asdict(self.data)  # type: ignore[call-overload]

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return what decides what the data hold."""
        return self.data.fingerprint_fields()

    def with_content_hash(self, where: str, digests: Digests) -> Self:
        """Return the settings with what their files hold filled in; ConfigError names a file that is missing."""
        return dataclasses.replace(self, data=self.data.with_content_hash(digests))

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Generate, tokenise and pack every data set of the experiment."""
        (node,) = nodes
        if is_primary():
            _prepare(ctx, node, self.data)


def _prepare(ctx: Context, node: Node, data: DataConfig) -> None:
    rows = node.directory / "rows"
    where = f"[{ctx.progress.stage}/{ctx.progress.stages}] {node.name}"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        write_json(location(file.name), node.settings.as_dict())
        command = [sys.executable, "-m", data.PREPARE, f"--config={file.name}", f"--output={rows}"]
        code, error = _run(command, lambda line: ctx.progress.say(f"{where}  {line}"))
    if code == -signal.SIGTERM:  # the signal went to the whole group
        raise Interrupted("stopped while preparing the data")
    if code and "No space left on device" in error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(rows))
    if code < 0 or (code and not error):
        raise ConfigError(f"preparing the data: its process {ended(code)}; run again once that is mended")
    if code:
        raise ConfigError(f"preparing the data failed: {error}")
    verify(rows)
    tokens = sum(entry["tokens"] for entry in load_manifest(rows)["sets"].values())
    node.finish({}, ledger({}, {"data": tokens}, ctx.clock.lap()))


def _run(command: Sequence[str], say: Callable[[str], None]) -> tuple[int, str]:
    """Run a command, pass on what it prints, and return its return code and the error it ended with."""
    # Whatever the locale, pipes between processes are UTF-8.
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:replace"}
    with (
        tempfile.TemporaryFile() as noise,  # no pipe, which could be full while nobody reads it
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, env=environment, encoding="utf-8", errors="replace"
        ) as process,
    ):
        assert process.stdout
        try:
            for line in process.stdout:
                say(line.rstrip())
        except BaseException:
            process.kill()  # or it goes on alone
            raise
        code = process.wait()
        noise.seek(0)
        return code, _error(noise.read().decode("utf-8", "replace"))


def _error(printed: str) -> str:
    """Find the error among what libraries printed on standard error: one that it printed, or that of a traceback."""
    printed_errors = re.findall(r"^python -m \S+: (.+)", printed, re.MULTILINE)
    raised = re.findall(r"^Traceback .*\n(?:[ \t].*\n)*(.+)", printed, re.MULTILINE)
    return (printed_errors or raised or [""])[-1]
