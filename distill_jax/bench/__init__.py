"""Benchmarks on synthetic batches: what is timed is the stages' own steps."""
