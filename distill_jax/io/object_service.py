"""Requests to object storage: tried again while the server is in trouble, and refused with a line that has the mend."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import errno
import random
from collections.abc import Awaitable, Callable

from distill_jax import console

TRIES = 8
SAID_AT = 3  # tries that failed, some two seconds: what is over sooner is not worth a line
FIRST_WAIT, LONGEST_WAIT = 1.0, 32.0  # seconds; twice as long each time, 1.5 minutes in all
TRANSIENT = {408, 429, *range(500, 505)}  # statuses of a server in trouble


class Fault(enum.Enum):
    """Why a request failed."""

    TRANSIENT = "transient"
    CREDENTIALS = "credentials"
    PERMISSION = "permission"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Service:
    """A kind of object storage, for what is said of it.

    Attributes:
      login: how a machine gets credentials.
      role: what an account must be allowed.
      fault: why a request failed, by its exception.
    """

    name: str
    login: str
    role: str
    fault: Callable[[BaseException], Fault]

    async def answer(self, request: Callable[[], Awaitable[object]], where: str) -> object:
        """Ask once, and again with back-off and jitter as long as the answer is that of a server in trouble.

        Raises:
          FileNotFoundError, FileExistsError: as the request does; the latter if a precondition failed.
          OSError: with the address and the mend.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await request()
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", where) from error
            except FileExistsError:
                raise
            except Exception as error:
                if self.fault(error) is not Fault.TRANSIENT or attempt == TRIES:
                    raise self.as_os_error(error, where) from error
                if attempt == SAID_AT:
                    console.complain(f"{where}: {reason(error)}; trying again, for up to {_longest_wait():.0f} s")
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))

    def as_os_error(self, error: BaseException, where: str) -> OSError:
        """Return what went wrong with a request as an OSError that names the address and the mend."""
        fault = self.fault(error)
        if fault is Fault.CREDENTIALS:
            return PermissionError(errno.EACCES, f"no credentials that {self.name} takes; {self.login}", where)
        if fault is Fault.PERMISSION:
            return PermissionError(errno.EACCES, f"no permission; it needs {self.role}", where)
        if fault is Fault.TRANSIENT:
            return OSError(errno.EIO, f"{self.name} fails ({reason(error)}), {TRIES} times in a row", where)
        return OSError(errno.EIO, f"{self.name} refuses: {reason(error)}", where)


def reason(error: BaseException) -> str:
    """Return what an exception says, in a line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _longest_wait() -> float:
    """Return for how many seconds at most a request is tried again."""
    return sum(min(FIRST_WAIT * 2**i, LONGEST_WAIT) for i in range(TRIES - 1))
