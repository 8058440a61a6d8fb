"""The metrics of a population: every node has its own file, with rows of its own members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from distill_jax.io.journal import Prefix
from distill_jax.io.metrics import rounded
from distill_jax.io.node import Node
from distill_jax.io.trackers import Trackers
from distill_jax.sharding.distributed import is_primary


class Row(NamedTuple):
    """One row of a node's metrics.

    Attributes:
      node: its name.
      kind: "train", "evaluation", "facts" or "kept".
      label: the member's, or of whatever the numbers are of.
      values: numbers by name.
      counts: lists of counts or sums by name, a row each.
    """

    node: str
    kind: str
    label: str
    values: Mapping[str, float] = {}
    counts: Mapping[str, Sequence[float]] = {}


class MetricWriters:
    """Write rows to the metrics of nodes that continue from a step; only the primary process does.

    Args:
      trackers: where they also go, if anywhere.
    """

    def __init__(self, nodes: Iterable[Node], step: int, trackers: Trackers | None = None):
        self._trackers = trackers
        unique = {node.name: node for node in nodes} if is_primary() else {}
        self._writers = {name: node.continued_metrics(step) for name, node in unique.items()}

    def write(self, step: int, rows: Iterable[Row]) -> None:
        """Write the rows of a step."""
        for row in rows if self._writers else ():
            writer = self._writers[row.node]
            if row.values:
                writer.write(row.kind, step, row.label, dict(row.values))
                if self._trackers:
                    self._trackers.log(row.node, row.kind, step, row.label, rounded(row.values))
            for name, counts in row.counts.items():
                writer.write_counts(row.kind, step, row.label, name, counts)

    def flush(self) -> None:
        """Push everything written so far out to the files."""
        for writer in self._writers.values():
            writer.flush()

    def sync(self) -> dict[str, Prefix]:
        """Put everything on the disk, and return by node what a checkpoint of this moment must know of it."""
        return {name: writer.sync() for name, writer in self._writers.items()}

    def close(self) -> None:
        """Put everything on the disk and close."""
        for writer in self._writers.values():
            writer.close()
