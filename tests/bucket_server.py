"""A bucket on this machine: gcp-storage-emulator, made strict about preconditions, and able to fail on purpose.

The emulator keeps objects and their generations, and heeds no `ifGenerationMatch`; here one request at a time is looked
at before the emulator sees it, so that what holds of Google Cloud Storage holds of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from functools import partial
from http.server import ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

NAME = "bucket"


class Bucket:
    """The server of one bucket.

    Attributes:
      requests: how many came.
      refuse: refuse(method, path) -> the status to answer with, or 0; called before anything else.
    """

    def __init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        create_bucket(NAME, self.storage)
        self.requests, self.log = 0, [("", "")]
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return sorted(self.storage.objects.get(NAME, {}))

    def generation(self, name: str) -> str:
        """Return an object's generation; "0" if there is none."""
        try:
            return str(self.storage.get_file_obj(NAME, name)["generation"])
        except NotFound:
            return "0"

    @property
    def environment(self) -> dict[str, str]:
        """What sends gcsfs and TensorStore here."""
        return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        """Print nothing of clients that went away."""


class _Handler(RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement of its headers

    def __init__(self, bucket: Bucket, *arguments: object) -> None:
        self.bucket = bucket
        super().__init__(bucket.storage, *arguments)

    def _handle(self, call: Callable[[], None]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.rfile, connection = BytesIO(body), self.rfile
        try:
            with self.bucket.lock:
                self.bucket.requests += 1
                self.bucket.log.append((self.command, self.path))
                status = self.bucket.refuse(self.command, self.path) or self._precondition(body)
                if not status:
                    call()
            if status:
                self._answer(status)
        except (BrokenPipeError, ConnectionResetError):  # the client did not wait
            self.close_connection = True
        finally:
            self.rfile = connection

    def _precondition(self, body: bytes) -> int:
        """Return 412 if a request is on condition of another generation."""
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if "ifGenerationMatch" not in query or query.get("upload_id"):
            return 0
        name = query.get("name") or unquote(url.path.partition("/o/")[2])
        if not name:  # in the metadata of a multipart upload
            head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            first = BytesParser().parsebytes(head + body).get_payload()[0]
            name = json.loads(first.get_payload())["name"]
        return 0 if self.bucket.generation(name) == query["ifGenerationMatch"] else 412

    def _answer(self, status: int) -> None:
        message = json.dumps({"error": {"code": status, "message": f"status {status}, on purpose"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(message)))
        self.end_headers()
        self.wfile.write(message)

    def do_GET(self) -> None:
        self._handle(super().do_GET)

    def do_POST(self) -> None:
        self._handle(super().do_POST)

    def do_PUT(self) -> None:
        self._handle(super().do_PUT)

    def do_DELETE(self) -> None:
        self._handle(super().do_DELETE)


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """Serve a bucket, and send this process and those it starts to it."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    bucket = Bucket()
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    try:
        yield bucket
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        bucket.close()
