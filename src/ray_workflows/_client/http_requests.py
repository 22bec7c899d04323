"""Requests of senders of HTTP events: their contents, and the reasons of refusals."""

from __future__ import annotations

import json
import re

from ray_workflows._client.http_events import Answer
from ray_workflows._model.answers import OtherSignal, Received, TooManySignals
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import SignalRefusedError

#: How long a request waits for the workflow to take its event, in seconds: the default, and the
#: most that a request can ask for.
ANSWER_SECONDS, MAX_ANSWER_SECONDS = 30.0, 300.0

#: The largest request, in bytes.
MAX_BODY_BYTES = 1 << 20


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_event(body: bytes) -> tuple[str, bytes]:
    """The key and payload in a request's body, the payload as canonical JSON.

    Raises:
        Refused: one is missing.
    """
    form = '{"event_key": "a-key", "event_payload": ...}'
    try:
        event = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"The request's body is not JSON ({error}). Send {form}.") from None
    except RecursionError:
        raise Refused(400, f"The request's body nests too deep to be read. Send {form}.") from None
    if not isinstance(event, dict):
        raise Refused(400, f"The request's body is JSON, but no object. Send {form}.")
    for field in ("event_key", "event_payload"):
        if field not in event:
            raise Refused(400, f"'{field}' field is not found in the request JSON. Send {form}.")
    key = event["event_key"]
    if not isinstance(key, str) or not key:
        raise Refused(400, f"event_key must be a text that is not empty, not {key!r}.")
    return key, json.dumps(event["event_payload"], sort_keys=True).encode()


def wait_seconds(prefer: str) -> float:
    """How long a request wants to wait: ``Prefer: wait=10``, as in RFC 7240."""
    wanted = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)", prefer)
    return min(float(wanted[1]), MAX_ANSWER_SECONDS) if wanted else ANSWER_SECONDS


def received(answer: Answer, workflow_id: str, key: str) -> Received:
    """The workflow's answer to an event.

    Raises:
        Refused: the workflow has not received it.
    """
    if isinstance(answer, OtherSignal):
        raise Refused(
            409,
            f"event_key {key!r} was sent with another payload before, which stays. Use another "
            f"key for another event.",
        )
    if isinstance(answer, TooManySignals):
        raise Refused(
            429,
            f"{answer.kept} events and signals are kept for workflow[id={workflow_id}] that no "
            f"task has taken.",
        )
    return answer


def why_refused(error: SignalRefusedError) -> str:
    """The answer to the sender of an event for a workflow that has ended."""
    ended = "has finished without it."
    if error.status == WorkflowStatus.CANCELED:
        ended = "was canceled without it. It takes events again when it is resumed."
    return f"Workflow[id={error.workflow_id}] {ended}"
