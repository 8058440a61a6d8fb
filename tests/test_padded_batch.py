"""A batch that does not divide over the devices is filled up with rows that count nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from distill_jax.data.feed import padded
from distill_jax.sharding.mesh import batch_devices, make_mesh, padded_rows
from tests import mesh_worker
from tests.fast_xla import xla_flags

ROOT = Path(__file__).parent.parent
# (stage, microbatches, devices, fsdp, tensor), of 15 rows: no power of two divides them, nor a third of them.
JOBS = [("pretrain", 3, 8, 8, 1), ("relearn", 1, 8, 2, 1)]
THOROUGH = [("rmu", 1, 8, 2, 2)]
RAGGED = "from tests import mesh_worker as w; w.COMMON['batch'] = 15; w.main()"
TOLERANCE = 2e-5  # as in test_sharding: sums in another order


@pytest.mark.unit
def test_rows_past_the_end_are_padding():
    rows = np.arange(1, 31).reshape(10, 3).astype(ml_dtypes.bfloat16)
    rows.flags.writeable = False
    indices = np.array([7, 2, 9, 4, 4])
    whole = padded(rows.__getitem__, indices, slice(0, 8))
    assert whole.dtype == rows.dtype
    np.testing.assert_array_equal(whole[:5], rows[indices])
    assert not whole[5:].any()
    parts = [padded(rows.__getitem__, indices, slice(i, i + 2)) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.unit
def test_what_divides_is_not_padded():
    two, one = make_mesh(1), make_mesh(1, devices=jax.devices()[:1])
    assert (batch_devices(two), batch_devices(one)) == (2, 1)
    assert [padded_rows(n, two) for n in (1, 2, 15, 16)] == [2, 2, 16, 16]
    assert [padded_rows(n, one) for n in (1, 15)] == [1, 15]


def wanted(config) -> list:
    return JOBS + (THOROUGH if config.getoption("--thorough") else [])


def pytest_generate_tests(metafunc):
    if "job" in metafunc.fixturenames:
        metafunc.parametrize("job", wanted(metafunc.config), ids=lambda job: job[0])


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    directory = tmp_path_factory.mktemp("rows")
    mesh_worker.write_data(directory)
    jobs = wanted(request.config)
    jobs += [(verb, 1, 1, 1, 1) for verb, *_ in jobs]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(8), "PYTHONPATH": str(ROOT)}
    arguments = [f"--data={directory}", f"--jobs={json.dumps(jobs)}", f"--out={directory / 'out.json'}"]
    done = subprocess.run([sys.executable, "-c", RAGGED, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(jobs, json.loads((directory / "out.json").read_text()), strict=True))


@pytest.mark.end_to_end
def test_padding_changes_no_number(results, job):
    """Neither the losses, nor the weights, nor what is measured of prompts that do not divide either."""
    ours, alone = results[job], results[(job[0], 1, 1, 1, 1)]
    for name in ("losses", "weights"):
        for a, b in zip(ours[name], alone[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=1e-7)
    assert np.all(np.isfinite(alone["losses"]))
    assert ours["correct"] == alone["correct"]
