"""Google Cloud Storage for `storage`: gcsfs that tries again as often as we say, and whose errors are OSErrors."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Awaitable, Callable

import aiohttp
import gcsfs
import google.auth.exceptions
import requests.exceptions
from gcsfs.core import quote
from gcsfs.retry import ChecksumError, HttpError

from distill_jax import console

TRIES = 8
SAID_AT = 3  # tries that failed, some two seconds: what is over sooner is not worth a line
FIRST_WAIT, LONGEST_WAIT = 1.0, 32.0  # seconds; twice as long each time, 1.5 minutes in all
TRANSIENT = {408, 429, *range(500, 505)}
CREDENTIALS = "run `gcloud auth application-default login`, or give the machine a service account"


class Bucket(gcsfs.core.GCSFileSystem):
    """Objects of Google Cloud Storage, none of which is listed from memory: other machines change them too."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings | {"use_listings_cache": False, "consistency": "md5"})

    async def _request(self, method: str, path: str, *arguments: str, **how: object) -> object:
        """Ask once, and again with back-off and jitter as long as the answer is that of a server in trouble.

        Raises:
          OSError: with the address and the mend.
        """
        once = gcsfs.core.GCSFileSystem._request.__wrapped__  # without gcsfs's own tries
        where = f"gs://{'/'.join(arguments[:2])}" if arguments else path.partition("?")[0]
        attempt = 0
        while True:
            attempt += 1
            try:
                return await once(self, method, path, *arguments, **how)
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from error
            except FileExistsError:  # a precondition failed
                raise
            except Exception as error:
                if not _is_transient(error) or attempt == TRIES:
                    raise as_os_error(error, where) from error
                if attempt == SAID_AT:
                    console.complain(f"{where}: {_reason(error)}; trying again, for up to {_longest_wait():.0f} s")
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))

    async def _put_file(self, *arguments: str, **how: object) -> object:
        return await _arriving(super()._put_file, arguments[1], *arguments, **how)

    async def _pipe_file(self, *arguments: str, **how: object) -> object:
        return await _arriving(super()._pipe_file, arguments[0], *arguments, **how)

    def replace_if(self, path: str, generation: str, data: bytes) -> bool:
        """Replace an object if it is still of this generation."""
        bucket, key, _ = self.split_path(path)
        url = f"{self._location}/upload/storage/v1/b/{quote(bucket)}/o"
        how = {"uploadType": "media", "name": key, "ifGenerationMatch": generation, "data": data}
        try:
            self.call("POST", url, **how)
        except FileExistsError:  # what gcsfs makes of a precondition that failed
            return False
        return True

    def metadata(self, path: str) -> dict[str, object]:
        """Return what the server says of an object, by one request; FileNotFoundError if there is none."""
        bucket, key, _ = self.split_path(path)
        return dict(self.call("GET", "b/{}/o/{}", bucket, key, json_out=True))

    def first_names(self, path: str) -> None:
        """Ask for one name below a path: FileNotFoundError is of the bucket, as a prefix always exists."""
        bucket, key, _ = self.split_path(path)
        self.call("GET", "b/{}/o", bucket, prefix=key, maxResults=1)


def _longest_wait() -> float:
    """Return for how many seconds at most a request is tried again."""
    return sum(min(FIRST_WAIT * 2**i, LONGEST_WAIT) for i in range(TRIES - 1))


async def _arriving(upload: Callable[..., Awaitable[object]], where: str, *arguments: str, **how: object) -> object:
    """Upload what must arrive as it was sent: once more if the server's MD5 is another."""
    try:
        return await upload(*arguments, **how)
    except ChecksumError:
        if how.get("mode") == "create":  # it is there now, and not what it must be
            how["mode"] = "overwrite"
    try:
        return await upload(*arguments, **how)
    except ChecksumError as error:
        raise OSError(errno.EIO, "what arrived is not what was sent, twice", f"gs://{where}") from error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HttpError):
        return error.code is not None and int(error.code) in TRANSIENT
    network = (requests.exceptions.RequestException, aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)
    return isinstance(error, network)


def as_os_error(error: BaseException, where: str) -> OSError:
    """Return what went wrong with a request as an OSError that names the address and the mend."""
    code = error.code if isinstance(error, HttpError) else None
    if str(code) == "401" or isinstance(error, google.auth.exceptions.GoogleAuthError):
        return PermissionError(errno.EACCES, f"no credentials that Google Cloud Storage takes; {CREDENTIALS}", where)
    if str(code) == "403" or str(error).startswith("Forbidden"):
        return PermissionError(errno.EACCES, "no permission; it needs the role Storage Object User", where)
    reason = _reason(error)
    if _is_transient(error):
        return OSError(errno.EIO, f"Google Cloud Storage fails ({reason}), {TRIES} times in a row", where)
    return OSError(errno.EIO, f"Google Cloud Storage refuses: {reason}", where)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
