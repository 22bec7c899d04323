"""`RemoteOperations`: named objects in S3, Google Cloud Storage or Azure, through obstore.
Every request ends in bounded time; errors of the store become errors of this library.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any

from ray_workflows.exceptions import StorageError, StorageUnavailableError
from ray_workflows.storage.access import StorageAccessError
from ray_workflows.storage.objects.client import Found, Listed, Operations

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Small requests: how long to wait for a connection, for any byte of an answer, and for all of it.
CONNECT_SECONDS = 5
READ_SECONDS = 10
SMALL_SECONDS = 60
#: Large uploads send for a long time before an answer begins, so only the whole time is bounded.
LARGE_SECONDS = 180
LARGE_BYTES = 1024 * 1024
#: Seconds during which a request that got a 5xx answer, or could not be sent, is sent again.
RETRY_SECONDS = 10
RETRIES = 4

#: The store's answers that no retry fixes, what they mean, and what to do.
CONFIG_ERRORS = (
    (
        r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist",
        "there is no such bucket. Create it, or correct its name",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|redirect without LOCATION|IllegalLocation",
        "the bucket is in another region. Set $AWS_REGION, or add ?region=... to the URL",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|"
        r"AuthenticationFailed|401 Unauthorized|Unauthenticated",
        "the credentials are wrong or expired. Set the variables of the provider (for S3 "
        "$AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY) on every node, or give the nodes a role",
    ),
    (
        r"AccessDenied|403 Forbidden|PermissionDenied|AuthorizationFailure",
        "access is denied. The credentials need the right to list, read, write and delete objects "
        "of this bucket below this prefix",
    ),
    (
        r"RequestTimeTooSkewed",
        "this machine's clock differs from the store's by more than it tolerates. Set the clock",
    ),
    (
        r"InstanceCredentials|metadata/identity|latest/api/token|"
        r"169\.254\.169\.254|computeMetadata|metadata\.google|missing credential|No credential",
        "there are no credentials. Set the variables of the provider (for S3 $AWS_ACCESS_KEY_ID "
        "and $AWS_SECRET_ACCESS_KEY) on every node, or give the nodes a role",
    ),
    (
        r"NotImplemented|not implemented|501 Not Implemented",
        "the store does not support conditional writes, without which nothing keeps two "
        "coordinators apart. Use a store that honours If-None-Match on PUT",
    ),
)


#: The store's answers when it is full or a quota is used up. They are transient: somebody can free
#: some space. Some stores answer 403 then.
FULL = r"XMinioStorageFull|InsufficientStorage|507 Insufficient|QuotaExceeded"


class RemoteOperations(Operations):
    """Objects of a bucket below a prefix.

    Args:
        url: how messages name it.
        make: makes the obstore store with these client options and retry settings. Called on
            first use, once per process.
    """

    def __init__(self, url: str, make: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
        self.url = url
        self.make = make
        self.lock = Lock()
        self.stores: dict[str, ObjectStore] = {}
        self.pid = os.getpid()

    def store(self, size: int = 0) -> ObjectStore:
        """The obstore store for a request that sends ``size`` bytes."""
        kind = "large" if size > LARGE_BYTES else "small"
        with self.lock:
            if self.pid != os.getpid():
                self.stores, self.pid = {}, os.getpid()
            if kind not in self.stores:
                with self.errors("connect"):
                    self.stores[kind] = self.make(*client_settings(kind))
            return self.stores[kind]

    @contextlib.contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turn errors of obstore into ours. `FileNotFoundError` of a missing object passes."""
        import obstore.exceptions

        try:
            yield
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise
            if isinstance(
                error,
                (obstore.exceptions.AlreadyExistsError, obstore.exceptions.NotModifiedError),
            ):
                raise
            raise self.translated(error, key) from None

    def translated(self, error: Exception, key: str) -> StorageError:
        """Our error for one of the store's. Its text has only the first line of the store's error:
        later lines show internals of the client."""
        text = str(error)
        if re.search(FULL, text):
            return StorageUnavailableError(
                f"{self.url} is full: {key!r} could not be written. Free some space, or raise its "
                f"quota; the operation can then be repeated."
            )
        for pattern, meaning in CONFIG_ERRORS:
            if re.search(pattern, text):
                return StorageAccessError(f"{self.url} can't be used: {meaning}.")
        first = re.sub(r"\s+", " ", text.split("\n\nDebug source", maxsplit=1)[0]).strip()[:400]
        return StorageUnavailableError(
            f"{self.url} does not answer as it should at {key!r}: {first} The operation can be "
            f"repeated."
        )

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists."""
        import obstore

        try:
            with self.errors(key):
                obstore.put(self.store(len(data)), key, data, mode="create", use_multipart=False)
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object; replaces an existing one."""
        import obstore

        with self.errors(key):
            obstore.put(self.store(len(data)), key, data, use_multipart=False)

    def get(self, key: str) -> Found | None:
        """An object, or None if there is none."""
        import obstore

        try:
            with self.errors(key):
                result = obstore.get(self.store(), key)
                data = bytes(result.bytes())
                meta = result.meta
        except FileNotFoundError:
            return None
        if len(data) != meta["size"]:
            raise StorageUnavailableError(
                f"{self.url} sent {len(data)} of {meta['size']} bytes of {key!r}. The operation "
                f"can be repeated."
            )
        return Found(data, meta["last_modified"].timestamp())

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """The objects directly below a prefix, by name; page by page as they are asked for."""
        import obstore

        with self.errors(prefix):
            offset = f"{prefix}/{after}" if after else None
            pages = obstore.list(self.store(), prefix, offset=offset, chunk_size=1000)
            while True:
                page = next(pages, None)
                if page is None:
                    return
                for meta in page:
                    name = meta["path"][len(prefix) + 1 :]
                    if "/" not in name:
                        yield Listed(name, meta["last_modified"].timestamp())

    def list_prefixes(self, prefix: str) -> Sequence[str]:
        """The names directly below a prefix that have objects below them, in order."""
        import obstore

        with self.errors(prefix):
            found = obstore.list_with_delimiter(self.store(), prefix)["common_prefixes"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        import obstore

        wanted = list(keys)
        if not wanted:
            return
        try:
            with self.errors(wanted[0]):
                obstore.delete(self.store(), wanted)
        except FileNotFoundError:
            # Some stores stop at the first missing key: then delete the others one by one.
            if len(wanted) > 1:
                for key in wanted:
                    self.delete([key])

    def close(self) -> None:
        """Close the connections."""
        with self.lock:
            self.stores = {}


def client_settings(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Client options and retry settings of obstore for a kind of requests."""
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=CONNECT_SECONDS)}
    if kind == "small":
        client["timeout"] = timedelta(seconds=SMALL_SECONDS)
        client["read_timeout"] = timedelta(seconds=READ_SECONDS)
    else:
        client["timeout"] = timedelta(seconds=LARGE_SECONDS)
    retry = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(milliseconds=50),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    return client, retry
