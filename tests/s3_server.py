"""An S3 bucket on this machine: moto, which heeds If-None-Match and If-Match, and able to fail on purpose."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

NAME = "bucket"


class Bucket:
    """The server of one bucket.

    Attributes:
      log: method and path of each request that came.
      refuse: refuse(method, path) -> the status to answer with, or 0; called before anything else.
      lose: lose(method, path) -> whether to do what is asked and answer as if it had not been done.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.recover()
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def recover(self) -> None:
        """Answer everything from now on."""
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.lose: Callable[[str, str], bool] = lambda method, path: False

    def client(self) -> Any:
        """Return Amazon's own client of this server."""
        return boto3.client("s3")

    def names(self) -> list[str]:
        """Return the names of all objects."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))

    def flip(self, name: str) -> None:
        """Turn over one bit in the middle of an object."""
        data = bytearray(self.client().get_object(Bucket=NAME, Key=name)["Body"].read())
        data[len(data) // 2] ^= 1
        self.client().put_object(Bucket=NAME, Key=name, Body=bytes(data))

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What sends Amazon's libraries here."""
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", **keys}

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.log.append((method, path))
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        status = self.refuse(method, path)
        if not status and self.lose(method, path):
            list(self._application(environ, lambda *_: None))
            status = 503
        if not status:
            return self._application(environ, start)
        start(f"{status} on purpose", [("Content-Type", "application/xml")])
        return [b"<Error><Code>OnPurpose</Code><Message>on purpose</Message></Error>"]


class _Silent(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """Serve a bucket, and send this process and those it starts to it."""
    bucket = Bucket()
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    try:
        bucket.client().create_bucket(Bucket=NAME)
        yield bucket
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        bucket.close()
