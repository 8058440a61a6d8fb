"""The program's exit codes, all of them; `docs/launching.md` has the same table."""

from __future__ import annotations

import enum
import signal


class ExitCode(enum.IntEnum):
    """Say how the program ended; launchers restart on SAVED and on nothing else."""

    DONE = 0
    """Everything that was asked for is complete."""
    BUG = 1
    """An error that nobody foresaw, with its traceback."""
    REFUSED = 2
    """The input is wrong or the machine refuses (a full disk, a port in use): a line or two say what to mend."""
    SAVED = 42
    """Start the same command again: SIGTERM came and all is saved, or another process of the run was lost."""
    WORKERS_DIED = 71
    """Nodes of a sweep are missing because its workers were killed; the same command takes them up."""
    LEASE_LOST = 75
    """This worker was silent for so long that another one has its nodes now; that one goes on."""
    INTERRUPTED = 130
    """Ctrl-C: the same command continues from the last checkpoint. A second Ctrl-C ends the program at once."""
    BROKEN_PIPE = 141
    """Nobody reads the standard output any more, as with `distill-jax data … | head`."""


def ended(code: int) -> str:
    """Say how a process ended, of which this is the return code; a negative one is a signal's."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
