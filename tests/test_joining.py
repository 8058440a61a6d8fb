"""Processes that cannot come together, and platforms that are not here, end with one line and code 2, and in time."""

from __future__ import annotations

import os
import socket

import jax
import pytest
from test_cli import SMOKE, assert_refused, call

from distill_jax import backend


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("process", "message"), [(0, "of 3 processes these have not reported: 1, 2"), (1, "for process 0 at 127.0.0.1:")]
)
def test_who_waits_in_vain_says_for_whom_and_asks_to_be_started_again(process, message, tmp_path, capsys):
    address = f"127.0.0.1:{closed_port()}"
    flags = [f"--coordinator={address}", "--processes=3", f"--process={process}", "--patience=1"]
    assert call("run", SMOKE, f"--workdir={tmp_path}/run", *flags) == 42
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and message in err and (process == 0 or address in err)
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=127.0.0.1:1", "--processes=2", "--process=2"], "--process=2: must be from 0 to"),
        (["--coordinator=127.0.0.1", "--processes=2"], "--coordinator=127.0.0.1: give HOST:PORT"),
        (["--processes=2"], "--processes=2: also give --coordinator"),
        (["--patience=0"], "patience"),
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
