"""What clients and the coordinator send each other often, as bytes.

Ray takes bytes as they are. Anything else it pickles, which takes a quarter of the time of a call.
A message is a list, which Ray does not pickle either: the bytes, and beside them what only Ray can
bring, an ObjectRef.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import ray

from ray_workflows._coordinator.requests import (
    Accepted,
    Finished,
    Stopped,
    Submission,
    Submitted,
    Watched,
)


class Refused(msgspec.Struct, frozen=True, tag=True):
    """An error as the answer to a submission, pickled."""

    error: bytes


class Answers(msgspec.Struct, frozen=True, array_like=True):
    """A `Submitted`, and what a watch saw of the only one of them, if somebody watched."""

    holder_id: str
    answers: Sequence[Accepted | Finished | Stopped | Refused]
    watched: Watched | None


#: What watches of one client have seen, by workflow id.
Seen = list[tuple[str, Watched]]

ENCODER = msgspec.msgpack.Encoder()
SUBMISSIONS = msgspec.msgpack.Decoder(list[Submission])
ANSWERS = msgspec.msgpack.Decoder(Answers)
WATCHED = msgspec.msgpack.Decoder(Watched | None)
SEEN = msgspec.msgpack.Decoder(Seen)

#: Bytes, and an ObjectRef or None.
Message = list[Any]


def encode_submissions(submissions: Sequence[Submission]) -> bytes:
    """Workflows on their way from a driver."""
    return ENCODER.encode(submissions)


def decode_submissions(data: bytes) -> list[Submission]:
    """What `encode_submissions` encoded. Their plans are views of the bytes."""
    return SUBMISSIONS.decode(data)


def encode_submitted(submitted: Submitted, watched: Watched | None = None) -> Message:
    """What became of submissions, and what was seen of the only one of them."""
    answers = [
        Refused(ray.cloudpickle.dumps(answer)) if isinstance(answer, Exception) else answer
        for answer in submitted.answers
    ]
    told, live = without_live(watched)
    return [ENCODER.encode(Answers(submitted.holder_id, answers, told)), live]


def decode_submitted(message: Message) -> tuple[Submitted, Watched | None]:
    """What `encode_submitted` encoded."""
    data, live = message
    told = ANSWERS.decode(data)
    answers: list[Any] = [
        ray.cloudpickle.loads(answer.error) if isinstance(answer, Refused) else answer
        for answer in told.answers
    ]
    return Submitted(told.holder_id, answers), with_live(told.watched, live)


def encode_watched(watched: Watched | None) -> Message:
    """What a watch has seen, if it has seen anything."""
    told, live = without_live(watched)
    return [ENCODER.encode(told), live]


def decode_watched(message: Message) -> Watched | None:
    """What `encode_watched` encoded."""
    data, live = message
    return with_live(WATCHED.decode(data), live)


def encode_seen(seen: Seen) -> bytes:
    """What watches of a client have seen, which have kept no live copies."""
    return ENCODER.encode(seen)


def decode_seen(data: bytes) -> Seen:
    """What `encode_seen` encoded."""
    return SEEN.decode(data)


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
