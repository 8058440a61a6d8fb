"""What becomes of a run when one of its processes is lost: the others leave, and ask to be started again.

JAX's coordination service notices within the heartbeat, wherever the others are, and aborts them. Here that abort
becomes a line and the exit code on which launchers start a run again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from typing import Any

from distill_jax import console
from distill_jax.exit_codes import ExitCode

LINE = b"distill-jax: another process of this run was lost; the same command continues from the last checkpoint\n"
_handlers: list[Any] = []  # C calls them, so Python must keep them
_seconds_to_notice = 0.0


def leave_when_one_is_lost(heartbeat: float) -> None:
    """Have the abort that follows the loss of another process end this one with SAVED.

    Args:
      heartbeat: seconds of silence after which JAX takes a process for lost.
    """
    global _seconds_to_notice
    _seconds_to_notice = 2 * heartbeat
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))


def wait_for_a_loss_to_show(error: Exception) -> None:
    """Wait, after an error that nobody foresaw, as long as it may be that of a lost process: then do not return."""
    if _seconds_to_notice:
        message = f"{type(error).__name__}: {str(error)[:200]}"
        console.complain(f"{message}; waiting up to {_seconds_to_notice:.0f} s to hear whether a process was lost")
        time.sleep(_seconds_to_notice)


def _aborted(_: int) -> None:
    if threading.get_native_id() in {thread.native_id for thread in threading.enumerate()}:
        return None  # this process's own fault: that of others comes in a thread that Python did not start
    os.write(2, LINE)
    os._exit(ExitCode.SAVED)
