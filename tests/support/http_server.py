"""An HTTP server that answers one request after the other, in one thread, and keeps connections:
most of what a server with a thread for each request does is no answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

#: Takes method, target, headers by their names in lower case, and body; gives status, headers and
#: body. Headers of an answer to HEAD have the length of the body that does not come.
Answer = Callable[
    [str, str, "dict[str, str]", bytes], "tuple[int, dict[str, str], bytes | memoryview]"
]

#: How many connections may wait to be taken: more than there are requests at once. What finds no
#: place among them is tried again by the system after a second, then two and four.
BACKLOG = 2048

LENGTH = "content-length"


async def converse(
    answer: Answer, delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer the requests of a connection."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            method, target, _ = first.split(" ")
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get(LENGTH, 0)))
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        if delay:
            await asyncio.sleep(delay)
        status, told, data = answer(method, target, headers, body)
        if method != "HEAD":
            told = {name: value for name, value in told.items() if name.lower() != LENGTH}
            told[LENGTH] = str(len(data))
        rows = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        writer.write(f"HTTP/1.1 {status} OK\r\n{rows}\r\n".encode("latin-1"))
        if method != "HEAD":
            writer.write(data)
        try:
            await writer.drain()
        except ConnectionError:
            break
    writer.close()


async def serve(answer: Answer, delay: float = 0.0) -> None:
    """Print the port, and answer until standard input ends. `delay`: seconds before each answer."""
    server = await asyncio.start_server(
        lambda reader, writer: converse(answer, delay, reader, writer),
        "127.0.0.1",
        0,
        limit=1 << 20,
        backlog=BACKLOG,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
