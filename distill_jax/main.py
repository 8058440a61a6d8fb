"""The only entry point: `distill-jax COMMAND` runs a file of commands/. It ends in one of `exit_codes`."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Sequence

from distill_jax import backend, console
from distill_jax.commands import COMMANDS, module_name
from distill_jax.config import ConfigError, Interrupted, check, nearest
from distill_jax.exit_codes import ExitCode
from distill_jax.sharding import lost_process

HELP = ("--help", "-h", "help")


def usage() -> str:
    """Return the help of the program."""
    lines = [
        "usage: distill-jax COMMAND --config=NAME|FILE.py[:preset] --workdir=DIR [--config.key=value …]",
        "       distill-jax COMMAND --help",
        "       distill-jax --version",
        "",
        "commands:",
        *(f"  {name:9} {summary}" for name, summary in COMMANDS.items()),
        "",
        "such as: distill-jax run --config=arithmetic:cpu --workdir=runs/arithmetic",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    console.show_anything()
    console.quiet_libraries()
    return console.flush(_guarded(list(sys.argv if argv is None else argv)))


def _guarded(argv: list[str]) -> int:
    """Run the program, and say in a line or two what it ends on."""
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        return _stopped_by_hand()
    except Exception as error:
        if console.interrupted():  # it comes of an interrupt that native code or another process had first
            return _stopped_by_hand()
        return _explained(error)


def _stopped_by_hand() -> int:
    console.complain("stopped; the same command continues from the last checkpoint")
    return ExitCode.INTERRUPTED


def _explained(error: Exception) -> int:
    """Say what an error means to the user; raise it again if it means a bug."""
    if isinstance(error, ConfigError):
        console.complain(str(error))
        return ExitCode.REFUSED
    if isinstance(error, Interrupted):
        console.complain(f"{error}; the same command continues")
        return ExitCode.SAVED
    if isinstance(error, BrokenPipeError):
        return ExitCode.BROKEN_PIPE
    if isinstance(error, OSError):
        # Writers that are still open fail once more as the interpreter closes them; the user has been told.
        sys.unraisablehook = lambda _: None
        threading.excepthook = lambda _: None
        where = f": {error.filename}" if error.filename else ""
        mend = "what was finished is kept, and the same command continues once this is mended"
        console.complain(f"{error.strerror or error}{where}; {mend}")
        return ExitCode.REFUSED
    if _out_of_memory(error):
        mend = "train in more microbatches, lower --batch of score and generate, or take more devices"
        console.complain(f"out of memory: {(str(error) or 'the host has no more').splitlines()[0]}; {mend}")
        return ExitCode.REFUSED
    lost_process.wait_for_a_loss_to_show(error)
    raise error


def _out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no room; told by the name, as most commands never bring JAX."""
    on_device = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    return on_device or isinstance(error, MemoryError)


def _dispatch(argv: Sequence[str]) -> int:
    """Run the command that is named."""
    check(len(argv) > 1, usage())
    command, *arguments = argv[1:]
    if command in HELP and arguments[:1] and arguments[0] in COMMANDS:  # help run
        command, arguments = arguments[0], [*arguments[1:], "--help"]
    if command in HELP:
        print(usage())
        return ExitCode.DONE
    if command == "--version":
        print(f"distill-jax {_version()}")
        return ExitCode.DONE
    mend = f"{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}"
    check(command in COMMANDS, f"unknown command {command!r}{mend}")
    backend.pin_numerics()  # before anything that may bring JAX, which reads its environment once
    backend.settle_for_cpu()
    module = importlib.import_module(module_name(command))
    if set(HELP[:2]) & set(arguments):
        print(module.usage([argument for argument in arguments if argument not in HELP]))
        return ExitCode.DONE
    return int(module.main(arguments))


def _version() -> str:
    try:
        return importlib.metadata.version("distill-jax")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


if __name__ == "__main__":
    sys.exit(main())
