"""Tags: what can be one, and how they change."""

from __future__ import annotations

import enum

import pytest

from ray_workflows._client import reads
from ray_workflows._client.reader import Reader
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.filters import parse_filter
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows._model.tags import MAX_TAGS, validate_tags
from ray_workflows.exceptions import InvalidFilterError, WorkflowNotFoundError
from ray_workflows.storage import MemoryStorage
from ray_workflows.testing.builders import fill, make_holder
from tests.unit.driver import Driver
from tests.unit.plans import plan

RUNNING, RESUMABLE = WorkflowStatus.RUNNING, WorkflowStatus.RESUMABLE
FAILED, PENDING = WorkflowStatus.FAILED, WorkflowStatus.PENDING


class Color(str, enum.Enum):
    RED = "red"


def test_what_can_be_a_tag() -> None:
    given = {"a": "text", "b.c/d:e-f": 2**53, "_": -0.5, "on": True, "color": Color.RED, "none": ""}
    found = validate_tags(given)
    assert found == {**given, "color": "red"}
    assert [type(value) for value in found.values()] == [str, int, float, bool, str, str]
    assert validate_tags(None) == {}
    assert validate_tags({"a": None, "b": 1}, removes=True) == {"a": None, "b": 1}


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        (["a"], TypeError, "must be a dict"),
        ({1: "a"}, TypeError, "name of a tag is a string, not 1"),
        ({"a b": 1}, ValueError, "'a b' can't name a tag"),
        ({"": 1}, ValueError, "can't name a tag"),
        ({"a\n": 1}, ValueError, "can't name a tag"),
        ({"-a": 1}, ValueError, "can't name a tag"),
        ({"a" * 101: 1}, ValueError, "can't name a tag"),
        ({"a": None}, TypeError, "tag 'a' must be a string, a number, True or False, not None"),
        ({"a": [1]}, TypeError, "not list"),
        ({"a": 2**53 + 1}, ValueError, "above 2"),
        ({"a": float("nan")}, ValueError, "nan is not a number"),
        ({"a": "x\0"}, ValueError, "control character"),
        ({"a": "\ud800"}, ValueError, "surrogate"),
        ({"a": "x" * 513}, ValueError, "512"),
        ({f"a{number}": 1 for number in range(MAX_TAGS + 1)}, ValueError, "51 tags are too many"),
    ],
)
def test_what_can_be_none(tags: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        validate_tags(tags)


# -- the rule ----------------------------------------------------------------------------------


def test_tags_are_laid_over_those_that_are_there() -> None:
    driver = Driver(plan(("f", ())), tags={"team": "vision", "n": 5})
    assert driver.state.tags == {"team": "vision", "n": 5}
    events = driver.send(msg.SetTags({"n": None, "x": 0.5}))
    assert [type(event) for event in events] == [ev.TagsSet]
    assert driver.state.tags == {"team": "vision", "x": 0.5}
    assert catalog_row(driver.state, 2).tags == {"team": "vision", "x": 0.5}
    # Asked again, because the answer was lost.
    assert driver.send(msg.SetTags({"n": None, "x": 0.5})) == []
    assert driver.send(msg.SetTags({"gone": None})) == []


def test_tags_of_one_that_has_ended_or_is_driven_elsewhere() -> None:
    driver = Driver(plan(("f", ())))
    driver.send(msg.SetTags({"a": 1}), "h2", driven_elsewhere=True)
    assert driver.state.tags == {"a": 1}
    assert driver.state.holder == "h1"
    driver.send(msg.Cancel())
    driver.send(msg.SetTags({"b": 2}))
    assert driver.state.tags == {"a": 1, "b": 2}
    assert driver.state.status is WorkflowStatus.CANCELED


def test_tags_of_another_workflow_of_the_id_and_too_many() -> None:
    driver = Driver(plan(("f", ())), incarnation="i2")
    assert driver.send(msg.SetTags({"a": 1}, "i1")) == []
    assert isinstance(driver.answer, WorkflowNotFoundError)
    driver.send(msg.SetTags({f"a{number}": number for number in range(MAX_TAGS)}, "i2"))
    assert driver.answer is None
    assert driver.send(msg.SetTags({"one more": 1})) == []
    assert isinstance(driver.answer, ValueError)
    assert driver.send(msg.SetTags({"one more": 1, "a0": None})) != []


# -- listings ----------------------------------------------------------------------------------


def crowded() -> Reader:
    """Running ones of a holder that lives and of one that does not, and others."""
    storage = MemoryStorage(clock=lambda: 0.0)
    storage.renew_holder(make_holder("h-live"), 15.0)
    for number in range(40):
        status = (RUNNING, RUNNING, PENDING, FAILED)[number % 4]
        holder = "h-live" if number % 8 < 4 or status is FAILED else "h-dead"
        fill(
            storage,
            f"w{number:02}",
            status=status,
            holder=holder,
            submitted_at=float(number),
            tags={"odd": number % 2 == 1},
        )
    return Reader(storage)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    "text",
    ["", "status=RUNNING", "status=RESUMABLE", "status=RESUMABLE,FAILED", "status=PENDING"]
    + ["status=RUNNING,PENDING,RESUMABLE", "status=FAILED", "status=RESUMABLE tag.odd=true"],
)
def test_pages_and_counts_are_those_of_who_lives(
    monkeypatch: pytest.MonkeyPatch, text: str, limit: int, newest_first: bool
) -> None:
    """Whether the holder of a workflow lives is in no row: pages are exact nevertheless."""
    monkeypatch.setattr("ray_workflows._client.reader.LEAST_ROWS", 5)
    reader = crowded()
    meant = parse_filter(text)
    expected = [
        (row.workflow_id, status)
        for row, status in reader.rows(WORKFLOWS, newest_first=newest_first)
        if (not meant.statuses or status in meant.statuses)
        and ("odd" not in text or row.tags["odd"])
    ]
    assert expected
    found, after = [], None
    while True:
        page = reads.list_workflows(reader, meant, newest_first, limit, after)
        found += [(each.workflow_id, each.status) for each in page]
        assert len(page) <= limit
        if page.next is None:
            break
        assert len(page) == limit
        after = page.next
    assert found == expected
    assert reads.count_workflows(reader, meant) == len(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tag.round!=1", r"There is no !=\."),
        ("tag.x>many", "'many' is not a number"),
        ("status=OK", "'OK' is not a status"),
        ("kind=job", "'job' is not a kind"),
        ("ended<soon", "'soon' is not a time"),
    ],
)
def test_filters_say_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InvalidFilterError, match=said):
        parse_filter(text)


def test_words_of_the_language_are_read_in_any_case() -> None:
    assert parse_filter("Status=failed,Canceled KIND=DAG Id=Order-5 SUBMITTED>5000000") == (
        parse_filter("status=FAILED,CANCELED kind=dag id=Order-5 submitted>5000000")
    )
    for text, found in [("True", "true"), ("FALSE", "false"), ("true", "true"), ("Truer", "Truer")]:
        (condition,) = parse_filter(f"Tag.Draft={text}").conditions
        assert (condition.tag, condition.text) == ("Draft", found)
    # In quotes, or before a wildcard, it is a text.
    for text in ('"True"', "True*"):
        assert parse_filter(f"tag.draft={text}").conditions[0].text == "True"
    with pytest.raises(InvalidFilterError, match="id= is there twice"):
        parse_filter("id=a ID=b")


def test_booleans_are_found_in_any_case() -> None:
    reader = crowded()
    odd = reads.count_workflows(reader, parse_filter("tag.odd=true"))
    assert odd == reads.count_workflows(reader, parse_filter("tag.odd=True")) == 20
    assert reads.count_workflows(reader, parse_filter("tag.odd=FALSE")) == 20
