"""Google Cloud Storage for `storage`: gcsfs that tries again as often as we say, and whose errors are OSErrors."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import aiohttp
import gcsfs
import google.auth.exceptions
import requests.exceptions
from gcsfs.core import quote
from gcsfs.retry import ChecksumError, HttpError

from distill_jax.io.object_service import TRANSIENT, Fault, Service

NETWORK = (requests.exceptions.RequestException, aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


class Bucket(gcsfs.core.GCSFileSystem):
    """Objects of Google Cloud Storage, none of which is listed from memory: other machines change them too."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings | {"use_listings_cache": False, "consistency": "md5"})

    async def _request(self, method: str, path: str, *arguments: str, **how: object) -> object:
        once = gcsfs.core.GCSFileSystem._request.__wrapped__  # without gcsfs's own tries
        where = f"gs://{'/'.join(arguments[:2])}" if arguments else path.partition("?")[0]
        return await GOOGLE.answer(lambda: once(self, method, path, *arguments, **how), where)

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
        raise OSError(
            errno.EIO, "what arrived is not what was sent, twice", f"gs://{where.removeprefix('gs://')}"
        ) from error


def _fault(error: BaseException) -> Fault:
    code = error.code if isinstance(error, HttpError) else None
    if str(code) == "401" or isinstance(error, google.auth.exceptions.GoogleAuthError):
        return Fault.CREDENTIALS
    if str(code) == "403" or str(error).startswith("Forbidden"):
        return Fault.PERMISSION
    return Fault.TRANSIENT if isinstance(error, NETWORK) or (code and int(code) in TRANSIENT) else Fault.OTHER


GOOGLE = Service(
    "Google Cloud Storage",
    "run `gcloud auth application-default login`, or give the machine a service account",
    "the role Storage Object User",
    _fault,
)
