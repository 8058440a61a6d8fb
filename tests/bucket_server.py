"""A bucket on this machine: gcp-storage-emulator, made strict about preconditions, and able to fail on purpose.

The emulator keeps objects and their generations, but heeds no `ifGenerationMatch` and says of no download which
generation it is of. Here one request at a time is looked at before the emulator sees it, and answered as Google does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, quote, unquote, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from distill_jax.io import storage

NAME = "bucket"


class Bucket:
    """The server of one bucket.

    Attributes:
      requests: how many came.
      refuse: refuse(method, path) -> the status to answer with, or 0; called before anything else.
      lose: lose(method, path) -> whether to do what is asked and answer as if it had not been done.
    """

    def __init__(self) -> None:
        self.storage = Storage(use_memory_fs=True)
        create_bucket(NAME, self.storage)
        self.requests, self.log = 0, [("", "")]
        self.recover()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def recover(self) -> None:
        """Answer everything from now on."""
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.lose: Callable[[str, str], bool] = lambda method, path: False

    def flip(self, name: str) -> None:
        """Turn over one bit in the middle of an object, behind everybody's back."""
        data = bytearray(self.storage.get_file(NAME, name))
        data[len(data) // 2] ^= 1
        storage.location(f"gs://{NAME}/{name}").write_bytes(bytes(data))

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
        no_credentials = {"NO_GCE_CHECK": "true", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
        return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url, **no_credentials}


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
        body = self._plain(self.rfile.read(length))
        self.rfile, connection = BytesIO(body), self.rfile
        try:
            with self.bucket.lock:
                self.bucket.requests += 1
                self.bucket.log.append((self.command, self.path))
                status = self.bucket.refuse(self.command, self.path) or self._precondition()
                if not status and self.bucket.lose(self.command, self.path):
                    status = self._unheard(call)
                elif not status:
                    call()
            if status:
                self._answer(status)
        except (BrokenPipeError, ConnectionResetError):  # the client did not wait
            self.close_connection = True
        finally:
            self.rfile = connection

    def _unheard(self, call: Callable[[], None]) -> int:
        """Do what is asked, and return the status of a server that did not."""
        self.wfile, connection = BytesIO(), self.wfile
        try:
            call()
        finally:
            self.wfile = connection
        return 503

    def _plain(self, body: bytes) -> bytes:
        """Return what a multipart upload holds, as the body of a plain one: the emulator's parser loses bytes."""
        if "uploadType=multipart" not in self.path:
            return body
        boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        _, metadata, content, _ = re.split(rb"\n?--" + re.escape(boundary), body)  # an object may end with \r
        about, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (metadata, content))
        self.path = self.path.replace(
            "uploadType=multipart", f"uploadType=media&name={quote(json.loads(about)['name'])}"
        )
        del self.headers["Content-Length"], self.headers["Content-Type"]
        self.headers["Content-Length"], self.headers["Content-Type"] = str(len(content)), "application/octet-stream"
        return content

    def _precondition(self) -> int:
        """Return 412 or 304 if a request is on condition of another generation."""
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        conditions = {"ifGenerationMatch", "ifGenerationNotMatch"} & set(query)
        if not conditions or query.get("upload_id"):
            return 0
        name = query.get("name") or unquote(url.path.partition("/o/")[2])
        present = self.bucket.generation(name)
        if present == query.get("ifGenerationNotMatch"):
            return 304
        return 412 if present != query.get("ifGenerationMatch", present) else 0

    def end_headers(self) -> None:
        """Say of which generation an object is that is downloaded, as the emulator does not."""
        url = urlparse(self.path)
        if self.command == "GET" and "alt=media" in url.query:
            self.send_header("x-goog-generation", self.bucket.generation(unquote(url.path.partition("/o/")[2])))
        super().end_headers()

    def _answer(self, status: int) -> None:
        message = b"" if status == 304 else json.dumps({"error": {"code": status, "message": "on purpose"}}).encode()
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
