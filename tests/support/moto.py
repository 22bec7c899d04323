"""An S3 over HTTP of our own: moto's server in a process of its own, on the loopback interface."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote_to_bytes

from tests.support.http_server import Answer, serve

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count(1)

#: What moto takes as credentials: anything.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


def answering(application: Callable[..., Iterable[bytes]]) -> Answer:
    """What a WSGI application answers, to one request after the other.

    moto looks whether an object is there and then writes it, with no lock between the two, so that
    of several conditional writes at once more than one would succeed. S3 does not do that.
    """

    def answer(
        method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "RAW_URI": target,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": headers.get("content-type", ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in headers.items():
            if name not in ("content-length", "content-type"):
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        started: list[tuple[int, dict[str, str]]] = []

        def start_response(status: str, told: list[tuple[str, str]], *rest: object) -> None:
            started.append((int(status.split(maxsplit=1)[0]), dict(told)))

        data = b"".join(application(environ, start_response))
        return (*started[-1], data)

    return answer


def run() -> None:
    """Serve until standard input ends."""
    from moto.core import serialize
    from moto.server import create_backend_app

    # Called for every object that is listed: reading a time takes longer than all else of it.
    serialize.parse_to_aware_datetime = lru_cache(serialize.parse_to_aware_datetime)
    # S3 alone: choosing among all services takes moto longer than the answer itself.
    asyncio.run(serve(answering(create_backend_app("s3"))))


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.moto"],
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
    run()
