"""An S3 over HTTP of our own: moto's server in a process of its own, on the loopback interface."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUMBERS = itertools.count(1)

#: How many may wait to be taken: more than there are requests at once.
CONNECTIONS = 2048

#: What moto takes as credentials: anything.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


class Serialized:
    """A WSGI application whose writes happen one after the other.

    moto looks whether an object is there and then writes it, with no lock between the two, so that
    of several conditional writes at once more than one succeeds. S3 does not do that.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.application(environ, start_response)
        # Read before the lock is taken: a client that sends slowly holds up nobody.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length and "HTTP_TRANSFER_ENCODING" not in environ:
            import io

            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self.lock:
            return list(self.application(environ, start_response))


def serve() -> None:
    """Serve until standard input ends."""
    from moto.core import serialize
    from moto.server import create_backend_app
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # Called for every object that is listed: reading a time takes longer than all else of it.
    serialize.parse_to_aware_datetime = lru_cache(serialize.parse_to_aware_datetime)
    # S3 alone: finding out which service of all is meant takes longer than the answer of this one.
    application = Serialized(create_backend_app("s3"))
    # There is a connection for each request. What finds no place among those that wait to be taken
    # is tried again by the system after a second, then two and four, and then the client gives up.
    ThreadedWSGIServer.request_queue_size = CONNECTIONS
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.moto"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            line = process.stdout.readline()
            assert line, "the S3 server did not start; is moto[server] installed?"
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            process.kill()
            process.wait()


def create_bucket(endpoint: str, name: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def storage_url(endpoint: str, bucket: str = "") -> str:
    """The URL of a storage that nobody else uses, in a bucket of its own unless one is named.

    To list a prefix, moto looks at all objects of the bucket.
    """
    if not bucket:
        bucket = f"workflows-{os.getpid()}-{next(NUMBERS)}"
        create_bucket(endpoint, bucket)
    return f"s3://{bucket}/test?endpoint={endpoint}&allow_http=true&region=us-east-1"


if __name__ == "__main__":
    serve()
