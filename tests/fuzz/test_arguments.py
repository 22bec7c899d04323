"""Whatever a user passes to a verb is taken, or refused with an error that says what to pass."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from functools import partial
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ray_workflows as workflow
from ray_workflows._arguments import parse_age, parse_status_filter
from ray_workflows._codec.journal import decode_entries, encode_entry
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import JournalEntry
from ray_workflows._model.ids import validate_signal_text, validate_workflow_id
from ray_workflows.cli.parameters import parse_duration
from ray_workflows.exceptions import StorageConfigError
from ray_workflows.options import validate_metadata, validate_timeout
from ray_workflows.storage import MemoryStorage, Storage
from ray_workflows.storage.urls import LOADERS, storage_from_url
from ray_workflows.testing.builders import OK, make_append
from tests.fuzz import attempt, fuzz

#: Text with what breaks things: controls, surrogates, quotes, slashes, NUL, right-to-left.
TEXTS = st.text(max_size=40) | st.text(st.characters(), max_size=600)

ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.timedeltas(),
    TEXTS,
    st.binary(max_size=20),
    st.lists(st.integers(), max_size=3),
)

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.integers() | st.floats() | st.none(), inner, max_size=4)
    ),
    max_leaves=20,
)


@fuzz
@given(ANYTHING)
def test_a_workflow_id_that_is_taken_comes_back_from_storage(given_id: Any) -> None:
    workflow_id, refusal = attempt(
        lambda: validate_workflow_id(given_id), TypeError, workflow.InvalidWorkflowIdError
    )
    if workflow_id is None:
        assert "workflow_id" in str(refusal)
        return
    storage = MemoryStorage()
    assert storage.commit([make_append(workflow_id, 0, incarnation="i")]) == [OK]
    row = storage.read_catalog(workflow_id)
    assert row is not None
    assert row.workflow_id == given_id


@fuzz
@given(ANYTHING)
def test_a_signal_name_that_is_taken_comes_back_from_the_journal(name: Any) -> None:
    text, refusal = attempt(lambda: validate_signal_text("name", name), TypeError, ValueError)
    if text is None:
        assert str(refusal).startswith("name ")
        return
    event = ev.CancelRequested(at=1.0)
    signal = ev.SignalReceived(1.0, text, text, ev.Value(b""))
    entry = JournalEntry(1, "c", encode_entry([event, signal], "w", "i", 1))
    assert decode_entries([entry], "w", "i") == [event, signal]


@fuzz
@given(st.floats() | st.integers() | st.timedeltas() | ANYTHING)
def test_a_timeout_is_a_finite_number_of_seconds(timeout: Any) -> None:
    seconds, refusal = attempt(lambda: validate_timeout(timeout), TypeError, ValueError)
    assert refusal is None or "timeout" in refusal
    assert seconds is None or 0 < seconds < math.inf


@fuzz
@given(st.floats() | st.integers() | ANYTHING)
def test_sleep_and_waiting_take_a_time_or_refuse_it(duration: Any) -> None:
    verbs = (workflow.sleep, lambda timeout: workflow.wait_for_signal("s", timeout=timeout))
    for verb in verbs:
        _, refusal = attempt(partial(verb, duration), TypeError, ValueError)
        assert refusal is None or "seconds" in refusal


@fuzz
@given(ANYTHING, st.floats() | ANYTHING, st.floats() | ANYTHING, st.floats() | ANYTHING)
def test_a_retry_policy_is_checked_where_it_is_made(
    attempts: Any, backoff: Any, longest: Any, jitter: Any
) -> None:
    policy, _ = attempt(
        lambda: workflow.RetryPolicy(attempts, backoff, longest, jitter), TypeError, ValueError
    )
    if policy is None:
        return
    label = json.loads(json.dumps(policy.to_label(), allow_nan=False))
    assert (label["backoff"], label["max_backoff"]) == (backoff, longest)


@fuzz
@given(JSON)
def test_metadata_that_is_taken_is_stored_as_json_has_it(metadata: Any) -> None:
    stored, refusal = attempt(lambda: validate_metadata(metadata), ValueError)
    if stored is None:
        assert "metadata must be" in str(refusal)
        return
    event = ev.WorkflowSubmitted(1.0, ev.Plan((), (), ()), (), stored, "h")
    entry = JournalEntry(1, "c", encode_entry([event], "w", "i", 1))
    (found,) = decode_entries([entry], "w", "i")
    assert isinstance(found, ev.WorkflowSubmitted)
    assert found.metadata == stored == json.loads(json.dumps(metadata or {}))


@fuzz
@given(ANYTHING | st.lists(TEXTS).map(set))
def test_a_filter_of_statuses(given_filter: Any) -> None:
    statuses, _ = attempt(lambda: parse_status_filter(given_filter), TypeError, ValueError)
    assert all(isinstance(status, workflow.WorkflowStatus) for status in statuses or ())


@fuzz
@given(ANYTHING)
def test_an_age(age: Any) -> None:
    seconds, refusal = attempt(lambda: parse_age(age), TypeError, ValueError)
    assert refusal is None or "older_than" in refusal
    assert seconds is None or 0 <= seconds < math.inf


@fuzz
@given(TEXTS | st.from_regex(r"[0-9.e+-]{1,400}[smhdw]?", fullmatch=True))
def test_a_duration_of_the_command_line(text: str) -> None:
    seconds, refusal = attempt(lambda: parse_duration(text), click.BadParameter)
    assert refusal is None or "is not a duration" in refusal
    assert seconds is None or 0 <= seconds < math.inf


SCHEMES = st.sampled_from(["file", "shared", "http", "S3", *LOADERS])

URLS = st.one_of(
    TEXTS,
    st.builds("{}:{}".format, SCHEMES, TEXTS),
    st.builds("{}://{}".format, SCHEMES, TEXTS),
    st.builds("{}://{}@{}:{}/{}?{}={}".format, SCHEMES, *[TEXTS] * 6),
)


@fuzz
@given(URLS | ANYTHING)
def test_a_storage_url_names_a_storage_or_says_what_is_wrong(url: Any) -> None:
    storage, refusal = attempt(lambda: storage_from_url(url), TypeError, StorageConfigError)
    if storage is None:
        assert refusal
        return
    assert isinstance(storage, Storage)
    # Its own name leads to the same one.
    assert storage_from_url(storage.url).url == storage.url


@pytest.mark.parametrize("timeout", [timedelta.max, 1e300, 5e-324])
def test_the_longest_and_the_shortest_time(timeout: Any) -> None:
    seconds = validate_timeout(timeout)
    assert seconds is not None
    assert 0 < seconds < math.inf
