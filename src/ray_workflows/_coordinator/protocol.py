"""Frequent messages between clients and the coordinator (`_codec.transport`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import ray

from ray_workflows._codec.transport import Message, message, opened
from ray_workflows._coordinator.requests import Submission, Submitted, Watched
from ray_workflows._model.answers import Accepted, Finished, Stopped
from ray_workflows._model.errors import name_of, text_of
from ray_workflows._model.values import Value

#: Answers of a client's watches, by workflow id. Live copies stay with the coordinator.
Answered = list[tuple[str, Watched]]


class Submissions(msgspec.Struct, frozen=True, array_like=True):
    """Submissions from a driver. ``client`` watches the accepted ones, as if it had subscribed to
    them. Plans are views of the encoded bytes."""

    submissions: list[Submission]
    client: str | None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """An error as the answer to a submission, pickled."""

    error: bytes


class Answers(msgspec.Struct, frozen=True, array_like=True):
    """A `Submitted`, and the answer of a watch of its only workflow, if there was a watch."""

    holder_id: str
    answers: Sequence[Accepted | Finished | Stopped | Refused]
    watched: Watched | None


class Poll(msgspec.Struct, frozen=True, array_like=True):
    """A poll of a client's watches, in one life of the client. ``batches``: that of the last answer
    that it got; None from a client of 0.1.0."""

    client: str
    life: str
    batches: int | None = None


class Polled(msgspec.Struct, frozen=True, array_like=True):
    """The coordinator's holder id, and the answers of the watches. ``turned_away``: the limit of
    waiting polls is reached. ``unknown``: the client's watches were removed, and it has to
    subscribe again. ``batches``: the number of non-empty answers to this life of the client."""

    holder_id: str
    seen: Answered
    turned_away: bool
    unknown: bool = False
    batches: int | None = None


class Sent(NamedTuple):
    """A signal for a workflow, as in `messages.Signal`."""

    workflow_id: str
    name: str
    signal_id: str
    value: Value
    incarnation: str


class SentEvent(NamedTuple):
    """An event by HTTP for a workflow: the only signal of its name. ``most``, ``asks``: as in
    `messages.Signal`."""

    signal: Sent
    most: int | None
    asks: bool


class OutputWanted(NamedTuple):
    """A request for a workflow's output, which the coordinator of this holder id watches for the
    waiter."""

    workflow_id: str
    incarnation: str
    holder_id: str


ENCODER = msgspec.msgpack.Encoder()
SUBMISSIONS = msgspec.msgpack.Decoder(Submissions)
ANSWERS = msgspec.msgpack.Decoder(Answers)
WATCHED = msgspec.msgpack.Decoder(Watched | None)
POLL = msgspec.msgpack.Decoder(Poll)
POLLED = msgspec.msgpack.Decoder(Polled)
SENT = msgspec.msgpack.Decoder(Sent)
SENT_EVENT = msgspec.msgpack.Decoder(SentEvent)
OUTPUT_WANTED = msgspec.msgpack.Decoder(OutputWanted)


def encode_submitted(submitted: Submitted, watched: Watched | None = None) -> Message:
    """Encode the answers to submissions, and the answer of a watch of the only one."""
    answers = [
        Refused(packed_error(answer)) if isinstance(answer, Exception) else answer
        for answer in submitted.answers
    ]
    told, live = without_live(watched)
    return message(ENCODER.encode(Answers(submitted.holder_id, answers, told)), live)


def decode_submitted(answer: Message) -> tuple[Submitted, Watched | None]:
    """What `encode_submitted` encoded."""
    data, live = opened(answer)
    told = ANSWERS.decode(data)
    answers: list[Any] = [
        opened_error(answer.error) if isinstance(answer, Refused) else answer
        for answer in told.answers
    ]
    return Submitted(told.holder_id, answers), with_live(told.watched, live)


def packed_error(error: Exception) -> bytes:
    """Pickle an error. If that fails, as it may for an error of a user's storage, its text is sent
    instead, so that the answers beside it arrive."""
    try:
        packed: bytes = ray.cloudpickle.dumps(error)
    except Exception:
        packed = ray.cloudpickle.dumps(RuntimeError(f"{name_of(error)}: {text_of(error)}"))
    return packed


def opened_error(packed: bytes) -> Exception:
    """The error that `packed_error` packed."""
    try:
        error: Exception = ray.cloudpickle.loads(packed)
    except Exception as reason:
        error = RuntimeError(f"An error that can't be read here: {text_of(reason)}")
    return error


def encode_watched(watched: Watched | None) -> Message:
    """Encode the answer of a watch, or None."""
    told, live = without_live(watched)
    return message(ENCODER.encode(told), live)


def decode_watched(answer: Message) -> Watched | None:
    """What `encode_watched` encoded."""
    data, live = opened(answer)
    return with_live(WATCHED.decode(data), live)


def without_live(watched: Watched | None) -> tuple[Watched | None, Any]:
    """The answer of a watch without its live copy, and the live copy."""
    if watched is None or watched.live is None:
        return watched, None
    return msgspec.structs.replace(watched, live=None), watched.live


def with_live(watched: Watched | None, live: Any) -> Watched | None:
    """The reverse of `without_live`."""
    if watched is None or live is None:
        return watched
    return msgspec.structs.replace(watched, live=live)
