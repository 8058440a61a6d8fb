"""The program and its terminal: Ctrl-C at any moment, pipes that nobody reads, characters that cannot be shown.

Ctrl-C ends the process at once: what it writes is whole or not there whenever it is killed. Once nodes are computed,
the first one raises KeyboardInterrupt, so that a save under way comes to its end, and the second ends the process. None
shows a traceback, also not where Python cannot raise, as in a destructor, or must not, as while native modules load.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, TextIO

from distill_jax.exit_codes import ExitCode

_interrupted = False


def end_at_interrupts() -> None:
    """Let Ctrl-C end the process at once."""
    signal.signal(signal.SIGINT, _end)


def raise_at_interrupts() -> None:
    """Let the first Ctrl-C from now on raise KeyboardInterrupt, and the second end the process at once."""
    global _interrupted
    _interrupted = False
    if signal.getsignal(signal.SIGINT) is not _raise:
        signal.signal(signal.SIGINT, _raise)
        unraisable = sys.unraisablehook
        sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else unraisable(lost)


def interrupted() -> bool:
    """Whether Ctrl-C came; its exception may have been lost."""
    return _interrupted


def leave(code: int) -> int:
    """Return an exit code at the end of the process, from where Ctrl-C can change nothing; do not return after one."""
    if code == ExitCode.INTERRUPTED:  # nobody waits for threads and caches to be put away
        os._exit(code)
    signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    return code


def show_anything() -> None:
    """Replace the characters that the terminal or file behind standard output and standard error cannot hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """Let an error be said once: of a save that fails asyncio would log each unfinished write, Orbax each traceback."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("asyncio", "absl", "gcsfs", "google.auth", "s3fs", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def complain(text: str) -> None:
    """Print a line to standard error, if anybody reads it."""
    try:
        if sys.stderr:
            sys.stderr.write(f"distill-jax: {text}\n")  # at once: print would let another thread between text and end
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


@contextlib.contextmanager
def patience(text: str, seconds: float) -> Iterator[None]:
    """Print a line to standard error if the block takes longer than some seconds."""
    timer = threading.Timer(seconds, complain, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def flush(code: int) -> int:
    """Write out what was printed, and return the exit code: the given one, or that of output that cannot be written."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return code or ExitCode.BROKEN_PIPE
    except OSError as error:
        _discard(sys.stdout)
        complain(f"standard output: {error.strerror}")
        return code or ExitCode.REFUSED
    return code


def _end(_: int, __: FrameType | None) -> NoReturn:
    with contextlib.suppress(OSError):  # and no print, which may have been interrupted in the middle
        os.write(2, b"distill-jax: stopped; the same command continues with what was finished\n")
    os._exit(ExitCode.INTERRUPTED)


def _raise(_: int, __: FrameType | None) -> NoReturn:
    global _interrupted
    if _interrupted:
        os._exit(ExitCode.INTERRUPTED)
    _interrupted = True
    raise KeyboardInterrupt


def _discard(stream: TextIO | None) -> None:
    """Let what a stream still holds go nowhere, or the interpreter complains of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if stream is not None:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Yield a list that holds, once the block has ended, the lines that this process wrote to file descriptor 2.

    libtpu looks for a TPU and says at length that there is none; XLA's partitioner has no other way to warn.
    """
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()
