"""`ObjectStorage` keeps the contract, on S3 over HTTP."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
    is_transient,
)
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.objects import ObjectStorage
from ray_workflows.storage.objects import bucket_client as remote
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.support.http_proxy import HttpProxy, Once
from tests.support.moto import CREDENTIALS, s3_server, storage_url

# Children come from a server: a real process, without forking this one and its threads.
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


class TestObjectStorage(StorageContract):
    @pytest.fixture
    def storage(self, s3: str) -> Iterator[Storage]:
        storage = ObjectStorage(storage_url(s3))
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def storage(s3: str) -> Iterator[ObjectStorage]:
    storage = ObjectStorage(storage_url(s3))
    storage.open()
    yield storage
    storage.close()


@pytest.fixture
def proxy(s3: str) -> Iterator[HttpProxy]:
    with HttpProxy(s3) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: HttpProxy) -> Iterator[ObjectStorage]:
    """A storage behind the proxy."""
    storage = ObjectStorage(storage_url(proxy.endpoint))
    storage.open()
    yield storage
    proxy.plan = lambda method, path: None
    storage.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs out sooner than in earnest."""
    monkeypatch.setattr(remote, "READ_SECONDS", 1)
    monkeypatch.setattr(remote, "RETRY_SECONDS", 1)


def test_the_server_of_these_tests_keeps_its_word(storage: ObjectStorage) -> None:
    """Of several conditional writes at once, one succeeds."""
    for number in range(30):
        key = f"race/{number}"
        made = in_threads(
            [partial(storage.journals.home.operations.create, key, b"%d" % i) for i in range(8)]
        )
        assert sorted(made) == [False] * 7 + [True]


# -- trouble on the way -----------------------------------------------------------------------

TROUBLE = ["500", "503", "500 after", "lost", "refused"]


@pytest.mark.parametrize("what", TROUBLE)
@pytest.mark.parametrize("part", ["/journal/", "/ids/", "/index/"])
def test_one_trouble_in_a_creation(
    behind: ObjectStorage, proxy: HttpProxy, what: str, part: str
) -> None:
    """It is repeated within the call, or the outcome is unknown and can be settled by reading; a
    write whose first try had succeeded is known as our own."""
    once = proxy.plan = Once(what, "PUT", part)
    append = make_append("w", 0, commit_id="mine")
    try:
        outcomes = behind.commit([append])
    except StorageUnavailableError:
        outcomes = [CommitOutcome.AMBIGUOUS]
    assert once.met
    assert outcomes[0] is not STALE
    if what in ("500", "503", "500 after"):
        # obstore repeats these itself.
        assert outcomes == [OK]
    if outcomes == [CommitOutcome.AMBIGUOUS] and not behind.read_journal(append.incarnation):
        outcomes = behind.commit([append])
        assert outcomes == [OK]
    row, journal = state(behind, "w")
    assert row == append.catalog
    assert [entry.commit_id for entry in journal] == ["mine"]
    assert list_ids(behind) == ["w"]


@pytest.mark.parametrize("what", TROUBLE)
@pytest.mark.parametrize("part", ["/journal/", "/index/"])
def test_one_trouble_in_an_append(
    behind: ObjectStorage, proxy: HttpProxy, what: str, part: str
) -> None:
    fill(behind, "w", 2)
    proxy.plan = Once(what, "PUT", part)
    append = make_append("w", 2, commit_id="mine", status=WorkflowStatus.SUCCESSFUL)
    try:
        outcomes = behind.commit([append])
    except StorageUnavailableError:
        outcomes = [CommitOutcome.AMBIGUOUS]
    if outcomes == [CommitOutcome.AMBIGUOUS] and not behind.read_journal(append.incarnation, 2):
        outcomes = behind.commit([append])
        assert outcomes == [OK]
    assert outcomes[0] is not STALE
    assert [entry.commit_id for entry in behind.read_journal(append.incarnation, 2)] == ["mine"]
    assert list_ids(behind, statuses=(WorkflowStatus.SUCCESSFUL,)) == ["w"]
    assert list_ids(behind, statuses=(WorkflowStatus.RUNNING,)) == []


def test_a_lost_answer_is_not_taken_for_a_rival(behind: ObjectStorage, proxy: HttpProxy) -> None:
    """The object exists when it is put again: by our first try, or by somebody else's."""
    fill(behind, "w", 1)
    proxy.plan = Once("500 after", "PUT", "/journal/")
    assert behind.commit([make_append("w", 1, commit_id="mine")]) == [OK]
    proxy.plan = Once("500 after", "PUT", "/journal/")
    rival = pickle.loads(pickle.dumps(behind))
    assert rival.commit([make_append("w", 1, commit_id="other")]) == [STALE]
    rival.close()
    assert [e.commit_id for e in behind.read_journal(incarnation_of("w"))] == ["commit-1", "mine"]


@pytest.mark.parametrize("what", ["500", "503", "hang", "refused"])
def test_a_store_that_does_not_answer(
    impatient: None, s3: str, proxy: HttpProxy, what: str
) -> None:
    """All say so within seconds; what was committed is there when it answers again."""
    storage = ObjectStorage(storage_url(proxy.endpoint))
    storage.open()
    row = fill(storage, "w", 2)
    blob = storage.write_blob(row.incarnation, "k", [b"x"])
    storage.close()
    proxy.plan = lambda method, path: what
    calls = [
        lambda: storage.commit([make_append("w", 2)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.read_journal(row.incarnation),
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.renew_holder(make_holder("h"), 15.0),
        storage.read_holders,
        storage.now,
        lambda: storage.write_blob("i", "k", [b"x"]),
        lambda: storage.read_blob(row.incarnation, blob),
        lambda: storage.sweep(0.0),
        storage.open,
    ]

    def ask(call: Callable[[], object]) -> None:
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="s3://"):
            call()
        assert time.monotonic() - began < 30

    # At once: each takes all the time that it is given.
    in_threads([partial(ask, call) for call in calls])
    proxy.plan = lambda method, path: None
    assert len(state(storage, "w")[1]) in (2, 3)
    assert bytes(storage.read_blob(row.incarnation, blob)) == b"x"
    storage.close()


def test_an_answer_that_is_cut_is_read_again(behind: ObjectStorage, proxy: HttpProxy) -> None:
    """Or it is an error: never less than what was written."""
    append = make_append("w", 0, entry=b"x" * 500_000)
    assert behind.commit([append]) == [OK]
    reader = pickle.loads(pickle.dumps(behind))
    proxy.plan = Once("cut", "GET", "/journal/")
    try:
        (entry,) = reader.read_journal(append.incarnation)
    except StorageUnavailableError:
        (entry,) = reader.read_journal(append.incarnation)
    assert entry.entry == b"x" * 500_000
    reader.close()


def test_a_commit_of_many_fails_for_those_in_trouble_alone(
    behind: ObjectStorage, proxy: HttpProxy
) -> None:
    names = [f"w{number}" for number in range(12)]
    for name in names:
        fill(behind, name)
    broken = f"/journal/{incarnation_of('w7')}/"
    proxy.plan = lambda method, path: "refused" if broken in path else None
    outcomes = behind.commit([make_append(name, 1) for name in names])
    assert outcomes == [CommitOutcome.AMBIGUOUS if name == "w7" else OK for name in names]


# -- latency ----------------------------------------------------------------------------------


def test_requests_of_a_commit_go_at_once(behind: ObjectStorage, proxy: HttpProxy) -> None:
    appends = [make_append(f"w{number}", 0) for number in range(200)]
    proxy.delay = 0.05
    began = time.monotonic()
    assert behind.commit(appends) == [OK] * 200
    # One after the other would take 200 * 4 * 0.05 s.
    assert time.monotonic() - began < 15


# -- blobs ------------------------------------------------------------------------------------


def test_a_blob_in_parts(storage: ObjectStorage) -> None:
    """Streamed: more than one part, and no more in memory than some parts."""
    piece = bytes(range(256)) * 4096

    def chunks() -> Iterator[bytes]:
        for number in range(70):
            yield number.to_bytes(4, "big") + piece

    blob = storage.write_blob("i", "k", chunks())
    assert blob.size == 70 * (len(piece) + 4)
    view = storage.read_blob("i", blob)
    assert view.readonly
    assert bytes(view) == b"".join(chunks())
    assert storage.find_blob("i", "k") == blob
    assert storage.write_blob("i", "k", [b"other"]) == blob
    storage.delete_blobs("i")
    assert list(storage.journals.home.operations.list("parts/i")) == []


def test_interrupted_upload_leaves_nothing(storage: ObjectStorage) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 20_000_000
        raise OSError("the producer failed")

    with pytest.raises(OSError, match="the producer failed"):
        storage.write_blob("i", "k", chunks())
    assert storage.find_blob("i", "k") is None
    assert list(storage.journals.home.operations.list("parts/i")) == []


def test_rival_writers_of_a_large_blob(storage: ObjectStorage) -> None:
    contents = [bytes([65 + i]) * (9_000_000 + i) for i in range(4)]
    blobs = in_threads([partial(storage.write_blob, "i", "k", [c]) for c in contents])
    assert len(set(blobs)) == 1
    assert bytes(storage.read_blob("i", blobs[0])) in contents
    assert len(list(storage.journals.home.operations.list("parts/i"))) == 1


@pytest.mark.parametrize("size", [1000, 9_000_000])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_blob_is_named(storage: ObjectStorage, size: int, damage: str) -> None:
    blob = storage.write_blob("inc-1", "key-1", [b"x" * size])
    prefix = "parts/inc-1" if size > 8_000_000 else "blobs/inc-1"
    (listed,) = storage.journals.home.operations.list(prefix)
    key = f"{prefix}/{listed.name}"
    data = storage.journals.home.operations.get(key).data
    if damage == "gone":
        storage.journals.home.operations.delete([key])
    else:
        storage.journals.home.operations.put(
            key, data[:-1] if damage == "cut" else data[:-1] + b"y"
        )
    with pytest.raises(StorageCorruptError, match=r"'key-1'.*'inc-1'"):
        storage.read_blob("inc-1", blob)


# -- opening ----------------------------------------------------------------------------------


def test_missing_bucket(s3: str) -> None:
    storage = ObjectStorage(storage_url(s3, bucket="absent"))
    for call in (storage.open, storage.open_existing):
        with pytest.raises(StorageConfigError, match=r"s3://absent/.*no such bucket"):
            call()


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on this machine answers for them: the variables are named."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StorageConfigError, match=r"AWS_ACCESS_KEY_ID"):
        ObjectStorage(storage_url(s3)).open()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "InvalidAccessKeyId", "credentials"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (403, "AccessDenied", "access is denied"),
        (400, "AuthorizationHeaderMalformed", "region"),
        (301, "PermanentRedirect", "region"),
        (501, "NotImplemented", "conditional writes"),
    ],
)
def test_what_a_store_refuses(s3: str, status: int, code: str, message: str) -> None:
    """The message says what to do, and shows nobody's secrets."""
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()

    class Refusing(HttpProxy):
        pass

    with Refusing(s3) as proxy:
        url = storage_url(proxy.endpoint)
        handler = proxy.server.RequestHandlerClass

        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.answer(status, [], body)

        handler.do_PUT = handler.do_GET = refuse  # type: ignore[attr-defined]
        with pytest.raises(StorageConfigError, match=message) as caught:
            ObjectStorage(url).open()
    for secret in CREDENTIALS.values():
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (507, "XMinioStorageFull", "Free some space"),
        (507, "InsufficientStorage", "Free some space"),
        (403, "QuotaExceeded", "Free some space"),
        (503, "SlowDown", "can be repeated"),
        (503, "ServiceUnavailable", "can be repeated"),
        (429, "TooManyRequests", "can be repeated"),
    ],
)
def test_a_store_that_is_full_or_busy_is_waited_for(
    impatient: None,
    behind: ObjectStorage,
    proxy: HttpProxy,
    status: int,
    code: str,
    message: str,
) -> None:
    """Nobody is charged for it; reading goes on, and writing when there is space."""
    blob = behind.write_blob("i", "kept", [b"kept"])
    proxy.plan = lambda method, path: f"{status} {code}" if method == "PUT" else None
    calls = [
        lambda: behind.write_blob("i", "k", [b"x"]),
        lambda: behind.commit([make_append("w", 0)]),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailableError, match=message) as caught:
            call()
        assert is_transient(caught.value)
        assert not isinstance(caught.value, StorageConfigError)
    assert bytes(behind.read_blob("i", blob)) == b"kept"
    proxy.plan = lambda method, path: None
    assert behind.commit([make_append("w", 0)]) == [OK]
    assert bytes(behind.read_blob("i", behind.write_blob("i", "k", [b"x"]))) == b"x"


def test_a_store_that_ignores_conditions_is_refused(s3: str) -> None:
    """As some S3-compatible stores do: the header is dropped on the way."""
    with HttpProxy(s3) as proxy:
        handler = proxy.server.RequestHandlerClass
        forward = handler.do_PUT  # type: ignore[attr-defined]

        def careless(self) -> None:
            del self.headers["If-None-Match"]
            forward(self)

        handler.do_PUT = careless  # type: ignore[attr-defined]
        with pytest.raises(StorageConfigError, match="conditional writes"):
            ObjectStorage(storage_url(proxy.endpoint)).open()


def test_plain_http_has_to_be_allowed(s3: str) -> None:
    url = storage_url(s3).replace("&allow_http=true", "")
    with pytest.raises(StorageConfigError, match="allow_http"):
        ObjectStorage(url).open()


# -- several processes ------------------------------------------------------------------------


def append_as_rival(pipe, url, name, until):
    os.environ.update(CREDENTIALS)
    storage = ObjectStorage(url)
    pipe.recv()
    mine = []
    while (row := storage.read_catalog("w")).seq < until:
        commit_id = f"{name}-{row.seq}"
        if storage.commit([make_append("w", row.seq, commit_id=commit_id)]) == [OK]:
            mine.append((row.seq + 1, commit_id))
    storage.close()
    pipe.send(mine)


def test_rival_processes(s3: str, storage: ObjectStorage) -> None:
    """Each entry belongs to the one who was told so."""
    fill(storage, "w", 1)
    url = pickle.loads(pickle.dumps(storage)).full_url
    with contextlib.ExitStack() as stack:
        pipes = []
        for name in ("a", "b", "c"):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(
                target=append_as_rival, args=(theirs, url, name, 40), daemon=True
            )
            process.start()
            stack.callback(process.join, 60)
            stack.callback(process.kill)
            pipes.append(ours)
        for pipe in pipes:
            pipe.send("go")
        parts = []
        for pipe in pipes:
            assert pipe.poll(120)
            parts += pipe.recv()
            pipe.close()
    journal = storage.read_journal(incarnation_of("w"))
    assert [(entry.seq, entry.commit_id) for entry in journal[1:]] == sorted(parts)
    assert len(journal) >= 40
