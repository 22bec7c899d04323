"""Journal entries and value envelopes: what comes back is what went in, and damage is noticed."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from ray_workflows._codec import journal
from ray_workflows._codec.envelope import ALIGNMENT, seal, unseal
from ray_workflows._codec.journal import (
    NO_LINK,
    VERSION,
    Chain,
    decode_entries,
    decode_plan,
    encode_entry,
    encode_events,
    encode_plan,
    events_from,
    link_of,
)
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.steps import CanceledStep, EndedStep, Step, StepKind, StepRecord
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from ray_workflows.exceptions import StorageCorruptError
from tests.unit.plans import plan

PLAN = plan(("a", (), {"metadata": {"k": [1, None]}, "ray": {"num_cpus": 0.5}}), ("b", (0,)))
ERROR = ErrorInfo("ValueError", "boom", "trace", Value(b"pickled"))
BLOB = Blob("task-1", 10, "sha256:00")

EVENTS = [
    ev.WorkflowSubmitted(1.0, PLAN, ("a", "b"), {"owner": "ü"}, "h1", "r1"),
    ev.WorkflowClaimed(1.0, "h2"),
    ev.WorkflowStarted(1.0),
    ev.WorkflowResumed(1.0, "h3"),
    ev.WorkflowCanceled(1.0),
    ev.CancelRequested(1.0),
    ev.WorkflowSucceeded(1.0, Outcome(value=Value(BLOB, (BLOB,)))),
    ev.WorkflowFailed(1.0, ERROR, "a"),
    ev.WorkflowTimedOut(1.0),
    ev.AttemptStarted(1.0, 0, 1, 0.5),
    ev.TasksUnplaceable(1.0, (0, 1), "no node has it"),
    ev.WorkflowReleased(1.0, ERROR),
    ev.AttemptFailed(1.0, 0, 1, ERROR, True, 2.0),
    ev.TaskSucceeded(1.0, 0, 1, Value(b"inline"), 0.5, 0.9),
    ev.TaskContinued(1.0, 0, 1, PLAN, ("a_1", "b_1"), 2),
    ev.TaskFailed(1.0, 0, 1, ERROR),
    ev.ErrorCaught(1.0, 0, None, ERROR),
    ev.ErrorCaught(1.0, 0, 3, ERROR),
    ev.ValuesLost(1.0, (1, 2)),
    ev.TagsSet(1.0, {"team": "vision", "n": 5, "x": 0.5, "on": True}),
    ev.SignalReceived(1.0, "approved", "id-1", Value(BLOB, (BLOB,))),
    ev.SignalTaken(1.0, 3, "approved", "id-1", 0.5),
    ev.SignalAcknowledged(1.0, "approved", "id-1"),
    ev.StateSaved(1.0, 1, b"lifecycle", b"tasks", 0),
    ev.TaskSucceeded(
        1.0, 0, 1, Value(b"v"), messages=(OutboxMessage("i-0", "other", Value(BLOB)),)
    ),
    ev.StepsAsked(
        *(1.0, 0, 1, 0.5, (Step("a", "a", "d", 0, StepKind.PLAN),), PLAN, (2,), ("a", "b"), 3),
        marks=(StepRecord(Step("start", "start", "", 1, StepKind.START), Outcome(Value(b"v"))),),
        canceled=(CanceledStep("a", 1),),
        messages=(OutboxMessage("i-0-start", "other", Value(BLOB)),),
    ),
    ev.StepsEnded(
        *(1.0, 0, 1, 0.5),
        (
            EndedStep(
                Step("1/f#2", "f", "", 0, StepKind.LOCAL),
                *(Outcome(error=ERROR), 0.5, 0.9),
                (OutboxMessage("i-0-1/f#2-0", "other", Value(b"m")),),
            ),
        ),
    ),
    ev.AttemptSuspended(1.0, 0, 1, 2, 0.5, 0.9, "node"),
    ev.WorkflowEnding(1.0, ev.WorkflowSucceeded(1.0, Outcome(value=Value(b"v")))),
    ev.Delivered(1.0, "i-0"),
    ev.Delivered(1.0, "i-0", ERROR),
]


def encoded(events: list[ev.Event] = EVENTS, seq: int = 1, link: bytes = NO_LINK) -> bytes:
    return encode_entry(events, "w", "i-w", seq, link)


def decode(data: bytes, seq: int = 1, workflow_id: str = "w", incarnation: str = "i-w") -> object:
    """The events of an entry that is read alone."""
    return Chain(workflow_id, incarnation, seq - 1).decode(JournalEntry(seq, "c", data))


def test_every_event_survives_the_journal() -> None:
    assert {type(event) for event in EVENTS} == set(ev.AnyEvent.__args__)
    assert decode(encoded()) == EVENTS
    assert events_from(encode_events(EVENTS)) == EVENTS


def test_a_plan_survives_the_wire() -> None:
    assert decode_plan(encode_plan(PLAN)) == PLAN


@pytest.mark.parametrize("position", [0, 2, 4, 12, 20, -1])
def test_a_flipped_bit_is_noticed(position: int) -> None:
    entry = bytearray(encoded(seq=7))
    entry[position] ^= 1
    with pytest.raises(StorageCorruptError, match="entry 7 of workflow 'w'"):
        decode(bytes(entry), seq=7)


@pytest.mark.parametrize("size", [0, 3, 6, 18, 19, 20, -1])
def test_a_truncated_entry_is_noticed(size: int) -> None:
    with pytest.raises(StorageCorruptError):
        decode(encoded()[:size])


def newer_entry() -> bytes:
    """An entry as a later release will write it, with events that this one does not know."""
    payload = msgspec.msgpack.encode([["unheard-of", 1.0]])
    head = journal.MAGIC + bytes((VERSION + 1,)) + NO_LINK
    return head + journal.checksum_of(head, payload, "w", "i-w", 1) + payload


def test_an_entry_of_a_newer_release_says_so() -> None:
    with pytest.raises(StorageCorruptError, match=r"4, newer than the 3.*Upgrade ray-workflows"):
        decode(newer_entry())
    with pytest.raises(StorageCorruptError, match="does not match its checksum"):
        decode(newer_entry()[:-1])


@pytest.mark.parametrize("written", range(1, VERSION + 1))
def test_a_damaged_version_is_not_taken_for_another_release(written: int) -> None:
    entry = encoded(EVENTS[:1])
    if written <= journal.LAST_UNLINKED:
        entry = entry_of(written, msgspec.msgpack.decode(entry[journal.HEADER_SIZE :]))
    assert decode(entry) == EVENTS[:1]
    for version in range(256):
        damaged = entry[:2] + bytes((version,)) + entry[3:]
        if max(version, written) <= journal.LAST_UNLINKED and version:
            # Their checksum does not cover the version, and their events are the same.
            assert decode(damaged) == EVENTS[:1]
        elif version != written:
            with pytest.raises(StorageCorruptError, match="entry 1 of workflow 'w'") as caught:
                decode(damaged)
            assert "newer" not in str(caught.value)


# -- where an entry belongs --------------------------------------------------------------------


def test_an_entry_is_read_only_where_it_belongs() -> None:
    entry = encoded(seq=7)
    assert decode(entry, seq=7) == EVENTS
    for place in (
        {"seq": 8},
        {"seq": 7, "workflow_id": "v"},
        {"seq": 7, "incarnation": "i-v"},
        # What is before the bytes can't be told from a part of the id.
        {"seq": 7, "workflow_id": "w\0i-w", "incarnation": ""},
    ):
        with pytest.raises(StorageCorruptError, match="belong to another workflow or number"):
            decode(entry, **place)


def chained(*contents: list[ev.Event]) -> list[JournalEntry]:
    """A journal of linked entries."""
    entries, link = [], NO_LINK
    for seq, events in enumerate(contents, 1):
        data = encoded(events, seq, link)
        entries.append(JournalEntry(seq, "c", data))
        link = link_of(data)
    return entries


def test_each_entry_follows_the_one_before() -> None:
    entries = chained(EVENTS[:2], EVENTS[2:4], EVENTS[4:6])
    assert decode_entries(entries, "w", "i-w") == EVENTS[:6]
    assert decode_entries(entries[1:], "w", "i-w", after=1) == EVENTS[2:6]
    other = chained(EVENTS[5:6], EVENTS[2:4])
    with pytest.raises(StorageCorruptError, match="entry 2 .* does not follow"):
        decode_entries([other[0], *entries[1:]], "w", "i-w")
    with pytest.raises(StorageCorruptError, match="entry 3 .* does not follow"):
        decode_entries([*other, entries[2]], "w", "i-w")
    with pytest.raises(StorageCorruptError, match="entry 2 .* is missing: entry 3"):
        decode_entries([entries[0], entries[2]], "w", "i-w")
    with pytest.raises(StorageCorruptError, match="entry 1 .* is missing: entry 2"):
        decode_entries(entries[1:], "w", "i-w")


def test_an_entry_whose_writer_could_not_read_the_journal_is_not_linked() -> None:
    entries = chained(EVENTS[:2])
    entries.append(JournalEntry(2, "c", encoded(EVENTS[2:3], 2)))
    entries.append(JournalEntry(3, "c", encoded(EVENTS[3:4], 3, link_of(entries[1].entry))))
    assert decode_entries(entries, "w", "i-w") == EVENTS[:4]


@pytest.mark.parametrize("data", [None, "text", 7, b"", bytes(40), memoryview(b"RW")])
def test_what_is_no_entry_at_all(data: object) -> None:
    with pytest.raises(StorageCorruptError, match="is not a journal entry"):
        decode(data)  # type: ignore[arg-type]


# -- versions ----------------------------------------------------------------------------------


def test_every_older_version_has_an_upcaster() -> None:
    assert set(journal.UPCASTERS) == set(range(1, VERSION))


def first_step(events: journal.PlainEvents) -> journal.PlainEvents:
    """As a release could have it whose version 2 tells who canceled, and says why in an event."""
    found = []
    for tag, *fields in events:
        if tag == "workflow-stopped":
            found += [["cancel-requested", *fields], ["workflow-canceled", *fields]]
        else:
            found.append([tag, *fields])
    return found


def second_step(events: journal.PlainEvents) -> journal.PlainEvents:
    """And its version 3 counts in milliseconds no more."""
    return [[tag, at / 1000.0, *fields] for tag, at, *fields in events]


def entry_of(version: int, events: journal.PlainEvents) -> bytes:
    """An entry as the release of a version wrote it."""
    payload = msgspec.msgpack.encode(events)
    return b"RW" + bytes((version,)) + zlib.crc32(payload).to_bytes(4, "big") + payload


def linked_entry_of(events: journal.PlainEvents) -> bytes:
    """An entry as this release writes it, of events that its records don't know."""
    payload = msgspec.msgpack.encode(events)
    head = journal.PREFIX + NO_LINK
    return head + journal.checksum_of(head, payload, "w", "i-w", 1) + payload


def test_entries_of_older_releases_are_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "VERSION", 3)
    monkeypatch.setattr(journal, "UPCASTERS", {1: first_step, 2: second_step})
    now = [ev.CancelRequested(7.5), ev.WorkflowCanceled(7.5)]
    assert decode(entry_of(1, [["workflow-stopped", 7500.0]])) == now
    two = [["cancel-requested", 7500.0], ["workflow-canceled", 7500.0]]
    assert decode(entry_of(2, two)) == now
    assert decode(encoded(now)) == now
    assert encoded(now)[2] == 3
    with pytest.raises(StorageCorruptError, match="5 of workflow 'w' can't be decoded"):
        decode(entry_of(1, [["unheard-of", 1.0]]), seq=5)
    with pytest.raises(StorageCorruptError, match="no format version"):
        decode(entry_of(0, []))


def test_a_field_more_at_the_end_is_passed_over() -> None:
    """What a later release may add without a new version: it is read by this one."""
    entry = linked_entry_of([["workflow-claimed", 1.0, "h2", {"more": 1}]])
    assert decode(entry) == [ev.WorkflowClaimed(1.0, "h2")]


def test_a_field_less_at_the_end_has_its_default() -> None:
    """What an earlier release wrote, before the field was there."""
    entry = linked_entry_of([["workflow-failed", 1.0, ["ValueError", "boom"]]])
    assert decode(entry) == [ev.WorkflowFailed(1.0, ErrorInfo("ValueError", "boom"))]


# -- envelopes ---------------------------------------------------------------------------------


def test_an_envelope_keeps_buffers_apart_and_aligned() -> None:
    buffers = [memoryview(b"x" * 100), memoryview(b""), memoryview(b"y" * 4097)]
    data = b"".join(seal(b"pickle", buffers, [BLOB]))
    opened = unseal(data, where="x")
    assert bytes(opened.pickle) == b"pickle"
    assert [bytes(b) for b in opened.buffers] == [bytes(b) for b in buffers]
    assert opened.objects == (BLOB,)
    assert data.index(b"x" * 100) % ALIGNMENT == 0
    assert data.index(b"y" * 4097) % ALIGNMENT == 0


def test_an_envelope_without_buffers() -> None:
    assert bytes(unseal(b"".join(seal(b"p", [])), where="x").pickle) == b"p"


@pytest.mark.parametrize("damage", [b"", b"RV", b"XX" + bytes(20), b"RV\x01\x00\x00\x00\x05junk!"])
def test_a_damaged_envelope_is_noticed(damage: bytes) -> None:
    with pytest.raises(StorageCorruptError, match="task 'a'"):
        unseal(damage, where="task 'a'")


def test_a_truncated_envelope_is_noticed() -> None:
    data = b"".join(seal(b"pickle", [memoryview(b"x" * 100)]))
    with pytest.raises(StorageCorruptError):
        unseal(data[:-1], where="x")
