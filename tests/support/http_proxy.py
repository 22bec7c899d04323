"""An HTTP proxy in front of a server that answers 500, delays, loses or cuts answers."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

HANG_SECONDS = 60.0

#: What is to happen to a request, by method and path: None lets it pass.
Plan = Callable[[str, str], "str | None"]


class HttpProxy:
    """Forwards requests of 127.0.0.1 to an endpoint there; used as a context.

    ``plan`` is asked about each request and answers None, ``"500"`` or another status, also with
    the code of an error as in ``"503 SlowDown"`` (not forwarded), ``"500 after"`` (forwarded, then
    answered so), ``"lost"`` (forwarded; the connection ends without an answer), ``"refused"`` (not
    forwarded; the connection ends), ``"cut"`` (half of the answer's body comes), ``"hang"`` (no
    answer until the proxy ends). ``delay``: seconds before each is forwarded. ``requests`` are all
    that came.
    """

    def __init__(self, endpoint: str) -> None:
        upstream = urlsplit(endpoint)
        self.plan: Plan = lambda method, path: None
        self.delay = 0.0
        self.requests: list[tuple[str, str]] = []
        self.ended = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Otherwise an answer waits for the acknowledgement of its own head.
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def forward(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                proxy.requests.append((self.command, self.path))
                what = proxy.plan(self.command, self.path) or ""
                if proxy.delay:
                    time.sleep(proxy.delay)
                if what == "hang":
                    proxy.ended.wait(HANG_SECONDS)
                if what in ("hang", "refused"):
                    self.close_connection = True
                    return
                if what[:3].isdigit() and what[3:] != " after":
                    code = what[4:] or "InternalError"
                    self.answer(int(what[:3]), [], f"<Error><Code>{code}</Code></Error>".encode())
                    return
                connection = http.client.HTTPConnection(upstream.netloc, timeout=HANG_SECONDS)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    data = response.read()
                    headers = response.getheaders()
                finally:
                    connection.close()
                if what == "lost":
                    self.close_connection = True
                elif what == "500 after":
                    self.answer(500, [], b"<Error><Code>InternalError</Code></Error>")
                else:
                    self.answer(response.status, headers, data, cut=what == "cut")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
            ) -> None:
                self.send_response_only(status)
                length = str(len(data))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                self.wfile.flush()
                self.close_connection = self.close_connection or cut

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing is printed."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HttpProxy:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(HANG_SECONDS)


class Once:
    """A plan for one request: the first whose method and path it matches."""

    def __init__(self, what: str, method: str, part: str) -> None:
        self.what, self.method, self.part = what, method, part
        self.lock = threading.Lock()
        self.met = False

    def __call__(self, method: str, path: str) -> str | None:
        with self.lock:
            if self.met or method != self.method or self.part not in path:
                return None
            self.met = True
            return self.what
