"""Names of the files in a node's directory."""

from __future__ import annotations

DONE = "DONE"
RESULT, LEDGER, METRICS, CONFIG = "result.json", "ledger.json", "metrics.jsonl", "config.json"
TIMINGS = "timings.json"  # what an unfinished node has taken so far: `perf.timings_file`
