"""What of a user's environment reaches JAX: nothing that determines numbers, and all that only looks for faults."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import SMOKE, assert_refused, call

from distill_jax import backend
from distill_jax.config import ConfigError, identity
from tests.programs import ROOT

HOSTILE = {
    "jax_enable_x64": True,
    "jax_explicit_x64_dtypes": "allow",
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_high_dynamic_range_gumbel": True,
    "jax_softmax_custom_jvp": True,
    "jax_default_matmul_precision": "bfloat16",
}
# The others change numbers on accelerators, or let a computation fail.
SEEN_HERE = set(HOSTILE) - {"jax_numpy_dtype_promotion", "jax_softmax_custom_jvp", "jax_default_matmul_precision"}


@pytest.fixture
def settings_back(monkeypatch):
    """Take back what a test does to JAX and to the environment."""
    for name in backend.NUMERICS:
        monkeypatch.setenv(name.upper(), "")
        monkeypatch.delenv(name.upper())
    before = {name: getattr(jax.config, name) for name in backend.NUMERICS}
    yield
    for name, value in before.items():
        jax.config.update(name, getattr(value, "name", value).lower() if hasattr(value, "name") else value)


pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype")


def numbers() -> str:
    """Return the hash of draws and sums of every kind that the program makes."""
    key = jax.random.key(3)
    drawn = [
        jax.random.bits(key, (3, 5)),
        jax.random.categorical(key, jnp.zeros((50, 9), jnp.float32)),
        jnp.asarray(np.float64(1) / 3),
        jnp.zeros(1, "float64"),
        jax.grad(lambda x: (jax.nn.softmax(x) ** 2).sum())(jnp.linspace(0, 3, 1001, dtype=jnp.float32)),
    ]
    return identity([np.asarray(x).tobytes().hex() for x in drawn])


@pytest.mark.unit
@pytest.mark.parametrize("name", HOSTILE)
def test_no_setting_of_a_users_changes_a_number(name, settings_back, capsys, monkeypatch):
    expected = numbers()
    jax.config.update(name, HOSTILE[name])
    monkeypatch.setenv(name.upper(), str(HOSTILE[name]))
    if name in SEEN_HERE:
        assert numbers() != expected
    backend.pin_numerics()
    assert numbers() == expected
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and f"{name.upper()}={HOSTILE[name]}" in said and "not heeded" in said


@pytest.mark.unit
def test_all_that_determines_numbers_is_tried():
    assert set(HOSTILE) == set(backend.NUMERICS)


@pytest.mark.unit
def test_what_a_user_sets_to_the_same_is_not_worth_a_word(settings_back, capsys, monkeypatch):
    for name, value in {
        "JAX_ENABLE_X64": "off",
        "JAX_THREEFRY_PARTITIONABLE": "Yes",
        "JAX_RANDOM_SEED_OFFSET": "0",
    }.items():
        monkeypatch.setenv(name, value)
    backend.pin_numerics()
    assert capsys.readouterr().err == ""
    assert os.environ["JAX_ENABLE_X64"] == "False"  # for the workers that are started from here


@pytest.mark.unit
def test_a_run_pins_them_before_it_does_anything(settings_back, capsys, tmp_path):
    jax.config.update("jax_enable_x64", True)
    assert call("run", SMOKE, "--config.relearn.steps=0", f"--workdir={tmp_path}/run") == 2
    assert not jax.config.jax_enable_x64
    assert "jax_enable_x64=True" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_the_program_pins_them_where_jax_reads_its_environment(capsys):
    """In a process of its own: a setting that JAX itself could not even read, and the same bits as here."""
    program = (
        "import sys; sys.path[:0] = ['tests']; from distill_jax.main import main; main(['', 'plan', '--slice=no']); "
    )
    program += "import test_backend; print(test_backend.numbers())"
    hostile = {name.upper(): str(value) for name, value in HOSTILE.items()} | {"JAX_RANDOM_SEED_OFFSET": "perhaps"}
    env = os.environ | hostile | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [numbers()]


@pytest.mark.unit
def test_a_platform_that_is_not_here(monkeypatch, capsys, tmp_path):
    def missing() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no such thing (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setattr(jax, "devices", missing)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    code = call("run", SMOKE, f"--workdir={tmp_path}/run")
    out, err = capsys.readouterr()
    assert_refused(code, out, err, "JAX_PLATFORMS=cuda", "'cuda'", "name one that is here")
    assert len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.unit
def test_a_variable_that_jax_cannot_read(monkeypatch):
    def refuse(name: str, *rest: Any) -> Any:
        if name == "jax":
            raise ValueError("invalid truth value 'perhaps' for environment 'JAX_DEBUG_NANS'")
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr("builtins.__import__", refuse)
    with pytest.raises(ConfigError, match="JAX_DEBUG_NANS'; unset"):
        backend.import_jax()


@pytest.mark.unit
@pytest.mark.parametrize(
    "device", ["dev/nvidia0", "dev/kfd", "dev/accel0", "dev/vfio/0", "sys/bus/pci/devices/0/vendor"]
)
def test_an_accelerator_is_seen_by_its_device(device, tmp_path):
    for name, text in (("dev/vfio/vfio", ""), ("dev/null", ""), ("sys/bus/pci/devices/1/vendor", "0x8086\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert not backend.has_accelerator(tmp_path)
    (tmp_path / device).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / device).write_text("0x1ae0\n")
    assert backend.has_accelerator(tmp_path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("said", "libtpu", "accelerator", "expected"),
    [
        (None, True, False, "cpu"),
        (None, True, True, None),
        (None, False, False, None),  # without libtpu nothing asks
        ("", True, False, ""),  # the user's own word
        ("tpu", True, False, "tpu"),
    ],
)
def test_the_cpu_is_named_only_where_nothing_else_can_be_meant(said, libtpu, accelerator, expected, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.delenv("JAX_PLATFORMS")
    if said is not None:
        monkeypatch.setenv("JAX_PLATFORMS", said)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: libtpu or None)
    monkeypatch.setattr(backend, "has_accelerator", lambda: accelerator)
    backend.settle_for_cpu()
    assert os.environ.get("JAX_PLATFORMS") == expected
