"""Processes that cannot come together, and platforms that are not here, end with one line and code 2, and in time."""

from __future__ import annotations

import os
import socket

import jax
import pytest
from test_cli import SMOKE, assert_refused, call

from distill_jax import backend
from distill_jax.config import ConfigError
from distill_jax.sharding import distributed


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.unit
def test_a_coordinator_that_does_not_answer_is_named(tmp_path, capsys):
    port = closed_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process=1", "--join_timeout=1"]
    code = call("run", SMOKE, f"--workdir={tmp_path}/run", *flags)
    out, err = capsys.readouterr()
    assert_refused(code, out, err, f"process 0 does not answer at 127.0.0.1:{port}", "the port is open")
    assert len(err.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.unit
def test_processes_that_do_not_come_are_named(tmp_path, capsys):
    flags = [f"--coordinator=127.0.0.1:{closed_port()}", "--processes=3", "--process=0", "--join_timeout=1"]
    code = call("run", SMOKE, f"--workdir={tmp_path}/run", *flags)
    out, err = capsys.readouterr()
    assert_refused(code, out, err, "of 3 processes these have not reported: 1, 2", "port")


@pytest.mark.unit
def test_a_coordinator_that_answers_and_stays_silent_is_not_waited_for_either():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConfigError, match="does not answer"):
        distributed.roll_call("127.0.0.1", silent.getsockname()[1], 2, 1, timeout=1)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=127.0.0.1:1", "--processes=2", "--process=2"], "--process=2: must be from 0 to"),
        (["--coordinator=127.0.0.1", "--processes=2"], "--coordinator=127.0.0.1: give HOST:PORT"),
        (["--processes=2"], "--processes=2: also give --coordinator"),
        (["--join_timeout=-1"], "--join_timeout=-1: give seconds"),
        (["--distributed"], "--distributed: no cluster was detected here"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, tmp_path, capsys):
    code = call("run", SMOKE, f"--workdir={tmp_path}/run", *flags)
    out, err = capsys.readouterr()
    assert_refused(code, out, err, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize("command", [["run", SMOKE, "--workdir=RUN"], ["bench", "distill"]], ids=lambda c: c[0])
def test_a_tpu_that_is_not_here_is_one_line(command, monkeypatch, capfd, tmp_path):
    def missing() -> None:
        os.write(2, b"E0000 many lines\nof libtpu\n" * 9)
        raise RuntimeError("Unable to initialize backend 'tpu': No device found. (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setattr(jax, "devices", missing)
    monkeypatch.setattr(backend, "has_accelerator", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    code = call(*[word.replace("RUN", f"{tmp_path}/run") for word in command])
    _, err = capfd.readouterr()
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith("distill-jax: JAX_PLATFORMS=tpu: ") and "name one that is here, such as cpu, or none" in err


@pytest.mark.unit
def test_what_a_real_accelerator_says_is_shown(monkeypatch, capfd):
    monkeypatch.setattr(jax, "devices", lambda: os.write(2, b"a warning of the driver\n"))
    monkeypatch.setattr(backend, "has_accelerator", lambda: True)
    backend.find_devices()
    assert "a warning of the driver" in capfd.readouterr().err
