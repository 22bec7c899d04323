"""What clients and the coordinator tell each other often, as `messages`."""

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

#: What watches of one client have seen, by workflow id. Live copies stay with the coordinator.
Answered = list[tuple[str, Watched]]


class Submissions(msgspec.Struct, frozen=True, array_like=True):
    """Workflows on their way from a driver. ``client`` watches those that are accepted, as if it
    had subscribed to them. Plans are views of the encoded bytes."""

    submissions: list[Submission]
    client: str | None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """An error as the answer to a submission, pickled."""

    error: bytes


class Answers(msgspec.Struct, frozen=True, array_like=True):
    """A `Submitted`, and what a watch saw of the only one of them, if somebody watched."""

    holder_id: str
    answers: Sequence[Accepted | Finished | Stopped | Refused]
    watched: Watched | None


class Poll(msgspec.Struct, frozen=True, array_like=True):
    """A client waits for what its watches see, in this life of it. ``batches``: those of the last
    answer that came; None: the client is of 0.1.0, and does not say."""

    client: str
    life: str
    batches: int | None = None


class Polled(msgspec.Struct, frozen=True, array_like=True):
    """The coordinator's holder id, and what the watches have seen. ``turned_away``: too many wait
    already. ``unknown``: watches of the client are forgotten, and it has to subscribe again.
    ``batches``: how many answers this life of the client was given in which there was something."""

    holder_id: str
    seen: Answered
    turned_away: bool
    unknown: bool = False
    batches: int | None = None


class Sent(NamedTuple):
    """A signal on its way to a workflow, as in `messages.Signal`."""

    workflow_id: str
    name: str
    signal_id: str
    value: Value
    incarnation: str


class SentEvent(NamedTuple):
    """An event by HTTP on its way to a workflow: the only signal of its name. ``most``, ``asks``:
    as in `messages.Signal`."""

    signal: Sent
    most: int | None
    asks: bool


class OutputWanted(NamedTuple):
    """The output of a workflow that the coordinator of this holder id watches for the waiter."""

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
    """What became of submissions, and what was seen of the only one of them."""
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
    """An error, pickled. One of a user's storage may not let itself be: its text travels, so that
    the answers beside it arrive."""
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
    """What a watch has seen, if it has seen anything."""
    told, live = without_live(watched)
    return message(ENCODER.encode(told), live)


def decode_watched(answer: Message) -> Watched | None:
    """What `encode_watched` encoded."""
    data, live = opened(answer)
    return with_live(WATCHED.decode(data), live)


def without_live(watched: Watched | None) -> tuple[Watched | None, Any]:
    """What a watch saw without the live copy, and that."""
    if watched is None or watched.live is None:
        return watched, None
    return msgspec.structs.replace(watched, live=None), watched.live


def with_live(watched: Watched | None, live: Any) -> Watched | None:
    """What `without_live` took apart."""
    if watched is None or live is None:
        return watched
    return msgspec.structs.replace(watched, live=live)
