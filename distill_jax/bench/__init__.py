"""Benchmarks on synthetic batches: what is timed is the verbs' own steps."""
