"""Events that wait in a storage are what was sent, or are said to be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows._client.mailbox import DONE, PAYLOAD, TAKER, Mailbox
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import SqliteStorage

PAYLOADS = {"a": b'{"paid": 10}', "b": b'{"paid": 99}'}


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    storage = SqliteStorage(tmp_path)
    storage.open()
    mailbox = Mailbox(storage, "i")
    for key, payload in PAYLOADS.items():
        assert mailbox.put(key, payload) == payload
        assert mailbox.take(key, "t") == "t"
        mailbox.finish(key)
    yield mailbox
    storage.close()


def file_of(mailbox: Mailbox, key: str, part: str = PAYLOAD) -> Path:
    (found,) = Path(mailbox.storage.directory).rglob(mailbox.name(key, part))  # type: ignore
    return found


def replace(file: Path, content: bytes) -> None:
    """Others than root can't write into a blob."""
    file.unlink()
    file.write_bytes(content)


def test_the_first_of_a_name_stays(mailbox: Mailbox) -> None:
    assert mailbox.put("a", b"2") == mailbox.payload("a") == PAYLOADS["a"]
    assert mailbox.take("a", "another") == "t"
    assert mailbox.payload("c") is None
    assert mailbox.is_done("a")


@pytest.mark.parametrize("part", [PAYLOAD, TAKER, DONE])
def test_each_changed_byte_is_seen(mailbox: Mailbox, part: str) -> None:
    file = file_of(mailbox, "a", part)
    right = file.read_bytes()
    for place in range(1, len(right)):
        replace(file, right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        with pytest.raises(StorageCorruptError, match="send the event again"):
            mailbox.read("a", part)
    replace(file, right[:-1])
    with pytest.raises(StorageCorruptError):
        mailbox.read("a", part)


def test_events_that_are_exchanged_are_seen(mailbox: Mailbox) -> None:
    files = [file_of(mailbox, key) for key in PAYLOADS]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        replace(file, content)
    for key in PAYLOADS:
        with pytest.raises(StorageCorruptError):
            mailbox.payload(key)


def test_events_of_0_1_0_are_read(mailbox: Mailbox) -> None:
    mailbox.storage.write_blob("i", mailbox.name("old", PAYLOAD), [b"[1]"])
    assert mailbox.payload("old") == mailbox.put("old", b"2") == b"[1]"
