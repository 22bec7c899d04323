"""What travels between processes as bytes comes out as it went in."""

from __future__ import annotations

import re

import pytest

from ray_workflows._codec.transport import message, opened
from ray_workflows._coordinator.protocol import (
    decode_submitted,
    decode_watched,
    encode_submitted,
    encode_watched,
)
from ray_workflows._coordinator.requests import Submitted, Watched
from ray_workflows._executor.worker.batch import pack_loads, unpack_loads
from ray_workflows._model.answers import Accepted, Finished, Stopped
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Outcome, Value
from ray_workflows.exceptions import WorkflowAlreadyRunningError

ROW = CatalogRow(
    "w", "i", 2, WorkflowStatus.SUCCESSFUL, "h", 1.5, metadata={"a": [1, None, {"b": 2.5}]}
)
WATCHED = Watched(ROW, Outcome(Value(Blob("k", 5, "xxh3:00"))))

#: An ObjectRef, for all that these know of it.
REF = object()


def test_bytes_alone_are_the_message() -> None:
    assert message(b"data") == message(b"data", None) == message(b"data", {}) == b"data"
    assert opened(b"data") == (b"data", None)
    assert opened(message(b"data", {"i": {"k": REF}})) == (b"data", {"i": {"k": REF}})


def test_answers_to_submissions() -> None:
    error = WorkflowAlreadyRunningError("w")
    error.__cause__ = ValueError("why")
    accepted = Accepted("i", created=True, same_plan=False)
    told = Submitted("h", [accepted, Finished("i", same_plan=False), Stopped(), error])
    back, watched = decode_submitted(encode_submitted(told))
    assert watched is None
    assert back.holder_id == "h"
    assert back.answers[:3] == told.answers[:3]
    assert isinstance(back.answers[3], WorkflowAlreadyRunningError)
    assert back.answers[3].args == error.args
    assert repr(back.answers[3].__cause__) == "ValueError('why')"


class Locked(Exception):
    """As the client of somebody's store may raise it."""

    def __init__(self) -> None:
        super().__init__("locked")
        # A lock would do only as long as nobody imports Ray Serve, which lets locks be pickled.
        self.items = (item for item in ())


class OneWay(Exception):
    """Has more arguments than what is pickled of it."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Locked(), "Locked: locked"),
        (OneWay("a", "b"), "An error that can't be read here: .*second"),
    ],
    ids=["no pickle", "no way back"],
)
def test_an_answer_that_does_not_travel_keeps_no_other_back(error: Exception, text: str) -> None:
    told = Submitted("h", [Accepted("i", created=True), error])
    back, _ = decode_submitted(encode_submitted(told))
    assert back.answers[0] == told.answers[0]
    assert re.match(text, str(back.answers[1]))


@pytest.mark.parametrize("live", [None, REF])
def test_what_was_seen(live: object) -> None:
    watched = Watched(WATCHED.row, WATCHED.output, live)
    told = Submitted("h", [Accepted("i", created=True)])
    assert decode_submitted(encode_submitted(told, watched)) == (told, watched)
    assert decode_watched(encode_watched(watched)) == watched
    assert isinstance(encode_watched(watched), bytes) == (live is None)


def test_nothing_was_seen() -> None:
    assert decode_watched(encode_watched(None)) is None
    assert decode_watched(encode_watched(Watched(None))) == Watched(None)


@pytest.mark.parametrize(
    "loads", [None, [], [b"a"], [b"a", b"b"], [[b"a", {"i": {}}]], [b"a", [b"b", {"i": {}}]]]
)
def test_batches_that_answer_a_report(loads: list | None) -> None:
    assert unpack_loads(pack_loads(loads)) == loads
