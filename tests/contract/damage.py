"""A storage whose bytes are swapped, cut, duplicated and removed, and what is read of it then.

`Layout` says what a kind of storage consists of: named pieces, which can be read and written behind
the storage's back. `damages` lists what can happen to them.
"""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_metadata, get_status, get_tasks, stored_output
from ray_workflows._codec.envelope import seal
from ray_workflows._codec.journal import NO_LINK, encode_entry, link_of
from ray_workflows._coordinator.recovery import recover
from ray_workflows._engine.replay import replay
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage import Storage
from ray_workflows.testing.builders import OK
from tests.unit.driver import Driver
from tests.unit.plans import plan

PLAN = plan(("fetch", ()), ("total", (0,)))

#: The workflows that are damaged. Each has a journal of several entries.
IDS = ("one", "two", "large", "failed", "running", "canceled")

ALL = set(WorkflowStatus) - {WorkflowStatus.NONE}

#: What a read gives that found nothing.
NOT_FOUND = "not found"

#: A piece: what kind of thing it is, and where it is.
Piece = tuple[str, Any]


class Layout(Protocol):
    """The pieces of a storage of a kind."""

    #: Pieces that nothing else tells of: if they disappear, they were never there.
    unknown_to_others: tuple[Piece, ...]

    def storage(self) -> Storage:
        """The storage, as a process sees it that has read nothing yet. Not opened."""

    def pieces(self) -> list[Piece]:
        """All pieces, in order."""

    def read(self, piece: Piece) -> Any:
        """What is there."""

    def write(self, piece: Piece, data: Any) -> None:
        """Put something in its place."""

    def remove(self, piece: Piece) -> None:
        """Take it away."""


# -- what is there -------------------------------------------------------------------------


def fill(storage: Storage) -> None:
    """Store the workflows."""
    for number, name in enumerate(IDS):
        story = Driver(PLAN, workflow_id=name, incarnation=f"i-{name}", now=1000.0 + number)
        finish(storage, name, story)
        save(storage, story)


def finish(storage: Storage, name: str, story: Driver) -> None:
    """Bring a workflow to where its name says."""
    text = f"value of {name} "
    story.succeed("fetch", inline(text))
    if name == "running":
        return
    if name == "failed":
        story.fail("total")
    elif name == "canceled":
        story.send(msg.Cancel())
    elif name == "large":
        writer = ValueWriter(storage, f"i-{name}")
        value = writer.write(text * 10_000, key="result", where=name)
        story.report(msg.AttemptReturned, "total", value=value)
    else:
        story.succeed("total", inline(text))


def inline(text: str) -> bytes:
    """The envelope of a value that fits into the journal."""
    return b"".join(seal(pickle.dumps(text), []))


def save(storage: Storage, story: Driver) -> None:
    """Store a workflow as a coordinator does: an entry for each event, and the row after it."""
    link = NO_LINK
    name, incarnation = story.state.workflow_id, story.state.incarnation
    for seq, event in enumerate(story.journal, 1):
        entry = encode_entry([event], name, incarnation, seq, link)
        link = link_of(entry)
        row = catalog_row(replay(name, incarnation, story.journal[:seq]), seq)
        append = Append(name, incarnation, seq - 1, f"c-{name}-{seq}", entry, row)
        assert storage.commit([append]) == [OK]


# -- what can happen to it -----------------------------------------------------------------


#: An accident: what it is, and what is in the place of pieces by it; None for nothing.
Accident = tuple[str, dict[Piece, Any]]


def damages(layout: Layout, seed: int) -> Iterator[Accident]:
    """Accidents, to happen one at a time."""
    chance = random.Random(seed)
    pieces = layout.pieces()
    while True:
        piece = chance.choice(pieces)
        other = chance.choice([each for each in pieces if each[0] == piece[0]])
        data, of_other = layout.read(piece), layout.read(other)
        if data == of_other and piece != other:
            continue
        kind = chance.choice(("exchange", "together", "copy", "remove", "flip", "cut", "foreign"))
        if kind == "exchange" and piece != other:
            yield f"{piece} and {other} exchanged", {piece: of_other, other: data}
        elif kind == "together" and owner(piece) != owner(other):
            contents = {}
            for mine, theirs in ((piece, other), (other, piece)):
                found = {name_in(each): each for each in pieces if owner(each) == owner(theirs)}
                for each in pieces:
                    if owner(each) == owner(mine):
                        taken = found.get(name_in(each))
                        contents[each] = None if taken is None else layout.read(taken)
            yield f"all of {owner(piece)} and {owner(other)} exchanged, some removed", contents
        elif kind == "copy" and piece != other:
            yield f"{other} copied to {piece}", {piece: of_other}
        elif kind == "remove" and piece not in layout.unknown_to_others:
            yield f"{piece} removed", {piece: None}
        elif kind in ("flip", "cut", "foreign"):
            changed = disturbed(kind, data, chance)
            if changed != data:
                yield f"{piece}: {kind}", {piece: changed}


def owner(piece: Piece) -> tuple[str, str]:
    """What a piece is a part of: a journal, a catalog, the blobs of a workflow."""
    kind, where = piece
    return kind, where.rpartition("/")[0] if isinstance(where, str) else str(where[:-1])


def name_in(piece: Piece) -> Any:
    """The name of a piece among those of its owner."""
    where = piece[1]
    return where.rpartition("/")[2] if isinstance(where, str) else where[-1]


def put(layout: Layout, contents: dict[Piece, Any]) -> None:
    """Let pieces be these; all are removed before one is written, as rows may exclude others."""
    for piece in contents:
        layout.remove(piece)
    for piece, data in contents.items():
        if data is not None:
            layout.write(piece, data)


def disturbed(kind: str, data: Any, chance: random.Random) -> Any:
    """A piece with a changed bit, with its end cut off, or with something else in its place."""
    if isinstance(data, tuple):
        # The columns of a row: one of them.
        index = chance.randrange(len(data))
        changed = list(data)
        changed[index] = disturbed(kind, data[index], chance)
        return tuple(changed)
    if kind == "foreign":
        return chance.choice([b"", b"\0", b"{}", b"not ours at all " * 20])
    if isinstance(data, str):
        # What is no UTF-8 any more is a text with surrogates.
        return disturbed(kind, data.encode(), chance).decode("utf-8", "surrogateescape")
    if isinstance(data, float):
        return data + chance.choice((1.0, -1.0, 1e9)) if kind == "flip" else 0.0
    if isinstance(data, int):
        return data ^ (1 << chance.randrange(8)) if kind == "flip" else 0
    if not isinstance(data, bytes) or not data:
        return data
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    place = chance.randrange(len(data))
    return data[:place] + bytes((data[place] ^ 1 << chance.randrange(8),)) + data[place + 1 :]


# -- what is read of it --------------------------------------------------------------------


def reads(storage: Storage) -> dict[str, Callable[[], Any]]:
    """All that users and coordinators read, by name."""
    reader = Reader(storage)
    found: dict[str, Callable[[], Any]] = {"list": lambda: listed(reader)}
    for name in IDS:
        found[f"status of {name}"] = lambda name=name: get_status(reader, name).value
        found[f"metadata of {name}"] = lambda name=name: get_metadata(reader, name, None)
        found[f"tasks of {name}"] = lambda name=name: msgspec.to_builtins(get_tasks(reader, name))
        found[f"output of {name}"] = lambda name=name: output(reader, name, None)
        found[f"task of {name}"] = lambda name=name: output(reader, name, "fetch")
        found[f"recovery of {name}"] = lambda name=name: recovered(storage, name)
    return found


def listed(reader: Reader) -> dict[str, str]:
    return {row.workflow_id: status.value for row, status in reader.rows(ALL)}


def output(reader: Reader, name: str, task: str | None) -> str:
    try:
        return repr(stored_output(reader, name, task))
    except WorkflowNotFoundError:
        raise
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def recovered(storage: Storage, name: str) -> Any:
    found = recover(storage, name)
    return NOT_FOUND if found is None else msgspec.to_builtins(found.row)


def result(read: Callable[[], Any]) -> Any:
    """What a read gives; damage as the error itself. Whatever else it raises is raised here."""
    try:
        return read()
    except WorkflowNotFoundError:
        return NOT_FOUND
    except StorageCorruptError as error:
        return error


def judge(accident: Accident, name: str, right: Any, found: Any) -> None:
    """Raise unless it is the right value, damage, or nothing where something was removed."""
    what, contents = accident
    if found == right:
        return
    if name == "list":
        # The others are listed, and nothing wrong.
        assert isinstance(found, dict), (what, name, found)
        wrong = {key: value for key, value in found.items() if right.get(key) != value}
        assert not wrong, (what, name, wrong)
        assert len(found) >= len(right) - len(contents), (what, name, found)
        return
    if isinstance(found, StorageCorruptError):
        check_message(accident, name, str(found))
        return
    assert None in contents.values(), (what, name, right, found)
    assert found == NOT_FOUND, (what, name, right, found)


#: What a message names beside the workflow, unless it names the key of a damaged piece.
PLACE = re.compile(r"[Jj]ournal entry \d+|ends with entry \d+|[Cc]atalog row|[Bb]lob '|/\d{10}\b")


def check_message(accident: Accident, read: str, message: str) -> None:
    """Raise unless the message of damage says where it is, and blames no other release."""
    what, contents = accident
    workflow = read.rpartition(" ")[2]
    keys = [where for _, where in contents if isinstance(where, str)]
    named = re.search(rf"'{workflow}'|\bi-{workflow}\b", message) and PLACE.search(message)
    assert named or any(key in message for key in keys), (what, read, message)
    assert "newer" not in message, (what, read, message)
