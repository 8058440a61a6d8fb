"""Two CPU devices for every test, and programs that compile fast; it must be said before JAX is first imported."""

import gc
import os

import pytest

from tests.fast_xla import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(2)}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


# Files of half a minute or more, the dearest first. Those that wait for the same run are apart.
DEAREST = ["test_sweep_faults", "test_run", "test_hosts", "test_auditbench", "test_double_bind", "test_buckets"]
DEAREST += ["test_attention", "test_damage", "test_filtering", "test_sharding", "test_attacks", "test_protect"]


def pytest_addoption(parser):
    """Let the whole matrix of meshes, kills and damages be asked for; a part of each always runs."""
    parser.addoption("--thorough", action="store_true", help="every mesh, more kills and damage (half an hour more)")


def pytest_collection_finish(session):
    """Let the garbage collector pass over what was imported, which stays: tracing makes it look again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(config, items):
    """Whole programs first, of these the dearest: a long file that comes last would leave the other process waiting."""
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="asked for with --thorough"))
    long = {item.path for item in items if item.get_closest_marker("end_to_end") or item.get_closest_marker("kill")}
    rank = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: (item.path not in long, rank.get(item.path.stem, len(rank))))
