"""An S3 for measurements: in memory, over HTTP, with a latency, and not the limit itself.

    python -m tests.support.fast_s3 0.05        # prints its port; ends with its standard input

moto answers some hundred requests a second, copies an object for every range of it, and shares its
interpreter with nobody's measurement in mind. This one speaks as much of S3 as the storage uses,
checks no signatures, and takes thousands of requests a second. Tests use moto.
"""

from __future__ import annotations

import asyncio
import bisect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from tests.support.http_server import serve

ROOT = Path(__file__).parents[2]
PAGE = 1000


class Bucket:
    """Objects by key, and their keys in order."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes | bytearray, str]] = {}
        self.keys: list[str] = []
        self.uploads: dict[str, dict[int, bytes]] = {}

    def put(self, key: str, data: bytes | bytearray) -> None:
        if key not in self.objects:
            bisect.insort(self.keys, key)
        self.objects[key] = (data, formatdate(usegmt=True))

    def delete(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            del self.keys[bisect.bisect_left(self.keys, key)]

    def list(self, prefix: str, after: str, delimiter: str) -> str:
        entries: list[str] = []
        prefixes: list[str] = []
        place = bisect.bisect_left(self.keys, prefix)
        if after:
            place = max(place, bisect.bisect_right(self.keys, after))
        last, more = "", False
        while place < len(self.keys) and self.keys[place].startswith(prefix):
            key = self.keys[place]
            if len(entries) + len(prefixes) == PAGE:
                more = True
                break
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                last = key[: cut + 1]
                prefixes.append(last)
                # No key is between what this prefix begins and the last that could.
                last += "\U0010ffff"
                place = bisect.bisect_right(self.keys, last)
                continue
            data, modified = self.objects[key]
            entries.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{iso(modified)}</LastModified>"
                f"<ETag>&quot;e&quot;</ETag><Size>{len(data)}</Size></Contents>"
            )
            last = key
            place += 1
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in prefixes
        )
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(entries)}{common}</ListBucketResult>"
        )


def iso(modified: str) -> str:
    """A date of HTTP as XML has it."""
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(modified).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def answer(
    bucket: Bucket, method: str, target: str, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes | memoryview]:
    """What S3 says to a request."""
    parts = urlsplit(target)
    # The first part of the path is the bucket.
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    query = {name: values[0] for name, values in parse_qs(parts.query, True).items()}
    if method == "GET" and not key:
        after = query.get("continuation-token") or query.get("start-after", "")
        text = bucket.list(query.get("prefix", ""), after, query.get("delimiter", ""))
        return 200, {"Content-Type": "application/xml"}, text.encode()
    if method == "POST" and "delete" in query:
        gone = [part.partition("</Key>")[0] for part in body.decode().split("<Key>")[1:]]
        for name in gone:
            bucket.delete(unescape(name))
        said = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in gone)
        return 200, {}, f"<DeleteResult>{said}</DeleteResult>".encode()
    if method == "POST" and "uploads" in query:
        upload = f"upload-{len(bucket.uploads)}"
        bucket.uploads[upload] = {}
        text = (
            f"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        )
        return 200, {}, text.encode()
    if method == "PUT" and "partNumber" in query:
        bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
        return 200, {"ETag": '"e"'}, b""
    if method == "POST" and "uploadId" in query:
        pieces = bucket.uploads.pop(query["uploadId"])
        whole = bytearray()
        for number in sorted(pieces):
            whole += pieces.pop(number)
        bucket.put(key, whole)
        text = (
            f"<CompleteMultipartUploadResult><Location>l</Location><Bucket>b</Bucket>"
            f"<Key>{escape(key)}</Key><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
        )
        return 200, {}, text.encode()
    if method == "PUT":
        if headers.get("if-none-match") == "*" and key in bucket.objects:
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        bucket.put(key, body)
        return 200, {"ETag": '"e"'}, b""
    if method == "DELETE":
        bucket.delete(key)
        return 204, {}, b""
    if key not in bucket.objects:
        return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
    data, modified = bucket.objects[key]
    told = {"Last-Modified": modified, "ETag": '"e"', "Content-Length": str(len(data))}
    if "range" not in headers:
        return 200, told, memoryview(data)
    first, _, last = headers["range"].removeprefix("bytes=").partition("-")
    end = min(int(last) + 1, len(data))
    told["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
    return 206, told, memoryview(data)[int(first) : end]


@contextmanager
def fast_s3(delay: float = 0.0) -> Iterator[str]:
    """A server in a process of its own; its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fast_s3", str(delay)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    asyncio.run(serve(partial(answer, Bucket()), delay))
