"""Amazon S3, and servers that speak as it does, for `storage`: s3fs that lists nothing from memory.

Where and as whom it asks is found as Amazon's libraries find it: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, a machine's
role. Conditional writes (If-None-Match, If-Match) are what S3 has since 2024, and MinIO, R2 and Ceph, too.
"""

from __future__ import annotations

import asyncio
from typing import cast

import aiohttp
import botocore.exceptions
import botocore.handlers
import s3fs
from aiobotocore.client import AioBaseClient
from fsspec.asyn import sync
from s3fs.errors import translate_boto_error

from distill_jax.io.object_service import TRANSIENT, Fault, Service

CREDENTIALS = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken"),
    *("SignatureDoesNotMatch", "RequestTimeTooSkewed"),
}
TRIED_AGAIN = {
    *("ConditionalRequestConflict", "OperationAborted"),  # another write to the same object is under way
    *("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "XAmzContentSHA256Mismatch"),
}
WITHOUT_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.SSOError,
)
NETWORK = (
    botocore.exceptions.HTTPClientError,  # of connections and of time
    botocore.exceptions.ConnectionError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
)


class Bucket(s3fs.S3FileSystem):
    """Objects of S3, none of which is listed from memory: other machines change them too."""

    def __init__(self, **settings: object) -> None:
        once = {"retries": {"total_max_attempts": 1}}  # the tries are ours
        super().__init__(**settings | {"use_listings_cache": False, "config_kwargs": once})

    async def get_s3(self, bucket: str | None = None) -> AioBaseClient:
        """Return the client of a bucket: one that awaits no leave to upload, which a silent server never gives."""
        client = await super().get_s3(bucket)
        client.meta.events.unregister("before-call.s3", botocore.handlers.add_expect_header)
        return client

    async def _call_s3(self, method: str, *arguments: dict[str, object], **how: object) -> object:
        where = "s3://" + "/".join(str(how[name]) for name in ("Bucket", "Key") if how.get(name))
        return await S3.answer(lambda: self._ask(method, *arguments, **how), where)

    async def _ask(self, method: str, *arguments: dict[str, object], **how: object) -> object:
        """Ask once; FileNotFoundError if it is not there, FileExistsError if a precondition failed."""
        try:
            await self.set_session()
            call = getattr(await self.get_s3(cast(str | None, how.get("Bucket"))), method)
            return await call(**self._get_s3_method_kwargs(call, *arguments, **how))
        except botocore.exceptions.ClientError as error:
            if _status(error) == 412:
                raise FileExistsError(str(error)) from error
            translated = translate_boto_error(error)
            if _status(error) == 404 or isinstance(translated, FileNotFoundError):
                raise FileNotFoundError(str(error)) from error
            raise

    def replace_if(self, path: str, tag: str, data: bytes) -> bool:
        """Replace an object if it still has this entity tag."""
        bucket, key, _ = self.split_path(path)
        try:
            sync(self.loop, self._call_s3, "put_object", Bucket=bucket, Key=key, Body=data, IfMatch=tag)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def metadata(self, path: str) -> dict[str, object]:
        """Return what the server says of an object, by one request; FileNotFoundError if there is none."""
        bucket, key, _ = self.split_path(path)
        head = sync(self.loop, self._call_s3, "head_object", Bucket=bucket, Key=key)
        return {"ETag": head["ETag"], "LastModified": head["LastModified"], "size": head["ContentLength"]}

    def first_names(self, path: str) -> None:
        """Ask for one name below a path: FileNotFoundError is of the bucket, as a prefix always exists."""
        bucket, key, _ = self.split_path(path)
        sync(self.loop, self._call_s3, "list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)


def _status(error: BaseException) -> int:
    """Return the HTTP status of a server's answer; 0 of anything else."""
    if not isinstance(error, botocore.exceptions.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _fault(error: BaseException) -> Fault:
    code = error.response.get("Error", {}).get("Code") if isinstance(error, botocore.exceptions.ClientError) else ""
    if isinstance(error, WITHOUT_CREDENTIALS) or _status(error) == 401 or code in CREDENTIALS:
        return Fault.CREDENTIALS
    if _status(error) in TRANSIENT or code in TRIED_AGAIN or isinstance(error, NETWORK):
        return Fault.TRANSIENT
    return Fault.PERMISSION if _status(error) == 403 else Fault.OTHER


S3 = Service(
    "S3",
    "run `aws configure` or `aws sso login`, or give the machine a role",
    "s3:ListBucket of the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject of what is in it",
    _fault,
)
