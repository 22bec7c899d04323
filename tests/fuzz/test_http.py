"""Whatever is sent to the provider of events by HTTP is an event, or is refused with a reason."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from ray_workflows._client.http_requests import Refused, read_event, wait_seconds
from tests.fuzz import attempt, fuzz
from tests.fuzz.test_arguments import JSON, TEXTS

EVENTS = st.fixed_dictionaries(
    {}, optional={"event_key": TEXTS | JSON, "event_payload": JSON, "more": JSON}
)

BODIES = st.binary() | (EVENTS | JSON).map(lambda value: json.dumps(value).encode())


@fuzz
@given(BODIES)
def test_a_body(body: bytes) -> None:
    event, refusal = attempt(lambda: read_event(body), Refused)
    if event is None:
        assert refusal
        return
    key, payload = event
    assert key == json.loads(body)["event_key"]
    # The same payload again is the same bytes.
    assert read_event(body)[1] == payload
    json.loads(payload)


@fuzz
@given(st.text() | st.from_regex(r"(wait|respond-async)[ =;,0-9\"]*"))
def test_a_preference(header: str) -> None:
    assert 0 <= wait_seconds(header) < math.inf


def test_a_body_that_nests_too_deep() -> None:
    body = b'{"event_key": "k", "event_payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    _, refusal = attempt(lambda: read_event(body), Refused)
    assert "nests" in str(refusal)
