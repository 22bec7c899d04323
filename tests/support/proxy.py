"""A TCP proxy that cuts connections, swallows packets and loses answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType


class Proxy:
    """Forwards connections of 127.0.0.1 to a port there; used as a context.

    ``delay``: seconds that each piece takes, either way. ``trips``: how often a client sent
    something after it had got an answer.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.delay = 0.0
        self.trips = 0
        self.swallows = False
        self.loses_answer = False
        self.asked = threading.Event()
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A listener that is only closed goes on waiting.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
        for thread in self.threads:
            thread.join(10.0)
            assert not thread.is_alive()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                client.close()
                continue
            self.pairs.append((client, server))
            answered = threading.Event()
            for source, target, answers in ((client, server, False), (server, client, True)):
                thread = threading.Thread(
                    target=self.forward, args=(source, target, answers, answered), daemon=True
                )
                thread.start()
                self.threads.append(thread)

    def forward(
        self,
        source: socket.socket,
        target: socket.socket,
        answers: bool,
        answered: threading.Event,
    ) -> None:
        while True:
            try:
                data = source.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                break
            time.sleep(self.delay)
            if answers:
                if self.loses_answer:
                    break
                answered.set()
            elif answered.is_set():
                answered.clear()
                self.trips += 1
            if not answers:
                self.asked.set()
            if self.swallows:
                continue
            try:
                target.sendall(data)
            except OSError:
                break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections, as a rebooting router does."""
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
