"""Let `distill-jax` and `python -m distill_jax` be the program."""

import signal
import sys

from distill_jax import console
from distill_jax.exit_codes import ExitCode


def main() -> int:
    """Run the program and return its exit code; Ctrl-C is heeded before the imports, which take a second."""
    console.end_at_interrupts()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which is held back where a worker is started
    from distill_jax.main import main as program

    try:
        code = program()
    except KeyboardInterrupt:  # as it returned
        code = ExitCode.INTERRUPTED
    return console.leave(code)


if __name__ == "__main__":
    sys.exit(main())
