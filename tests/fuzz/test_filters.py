"""Filters of any text: each means something, or says which word is wrong and where."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from ray_workflows._model.catalog import KINDS, TAGS, Condition, Operator
from ray_workflows._model.filters import TAG_NAME, TEXTS, TIMES, Filter, parse_filter
from ray_workflows._model.status import WORKFLOWS
from ray_workflows.exceptions import InvalidFilterError
from tests.fuzz import fuzz

#: What filters are made of, and what is near to it.
PIECES = st.sampled_from(
    [*TEXTS, *TIMES, "status", "tag.", "tag.team", "=", "<", ">=", ">", "*", '"', "\\", " ", "\t"]
    + ["FAILED", ",", "2026-01-31", "1e9", "5", "dag", "a", "ü", "\0", "\ud800", "\x1c", "."]
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


@fuzz
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=15).map("".join)))
def test_any_text_is_read_or_named(text: str) -> None:
    try:
        found = parse_filter(text)
    except InvalidFilterError as raised:
        found, error = None, raised
    if found is None:
        assert error.word
        assert text[error.position :].startswith(error.word)
        assert not error.word[0].isspace()
        assert f"position {error.position}, {error.word!r}: " in str(error)
    else:
        assert isinstance(found, Filter)
        # What was read can be stored and compared.
        for condition in found.conditions:
            assert "\0" not in condition.text
            condition.text.encode()
            assert condition.number is None or condition.number * 0 == 0


def quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


VALUES = st.one_of(
    TEXT.filter(bool).map(lambda text: (quoted(text), Operator.IS, text)),
    TEXT.filter(bool).map(lambda text: (quoted(text) + "*", Operator.BEGINS, text)),
    st.from_regex(r"[a-z/#.,:-]{1,8}", fullmatch=True).map(lambda t: (t, Operator.IS, t)),
    st.from_regex(r"[a-z]{1,8}", fullmatch=True).map(lambda t: (t + "*", Operator.BEGINS, t)),
    st.just(("*", Operator.THERE, "")),
)


@st.composite
def written(draw: st.DrawFn) -> tuple[list[str], Filter]:
    """The words of a filter, and what they mean."""
    words: list[str] = []
    conditions: list[Condition] = []
    statuses = ()
    for name, column in TEXTS.items():
        if not draw(st.booleans()):
            continue
        if name == "kind":
            kind = draw(st.sampled_from(KINDS))
            words.append(f"kind={kind}")
            conditions.append(Condition("kind", Operator.IS, kind))
            continue
        value, operator, text = draw(VALUES)
        words.append(f"{name}={value}")
        conditions.append(Condition(column, operator, text))
    compare = st.sampled_from((Operator.LESS, Operator.AT_MOST, Operator.MORE, Operator.AT_LEAST))
    for name, column in TIMES.items():
        for _ in range(draw(st.integers(0, 2))):
            operator, number = draw(compare), draw(st.integers(10_000, 10**10))
            words.append(f"{name}{operator.value}{number}")
            conditions.append(Condition(column, operator, number=float(number)))
    tags = st.sets(st.from_regex(TAG_NAME, fullmatch=True), max_size=3)
    for tag in sorted(draw(tags)):
        if draw(st.booleans()):
            value, operator, text = draw(VALUES)
            words.append(f"tag.{tag}={value}")
            conditions.append(Condition(TAGS, operator, text, tag=tag))
        else:
            operator = draw(compare | st.just(Operator.IS))
            text = str(draw(st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9)))
            words.append(f"tag.{tag}{operator.value}{text}")
            conditions.append(Condition(TAGS, operator, text, float(text), tag=tag))
    if draw(st.booleans()):
        statuses = tuple(draw(st.lists(st.sampled_from(WORKFLOWS), min_size=1, unique=True)))
        words.append("status=" + ",".join(status.value for status in statuses))
    return words, Filter(statuses, tuple(conditions))


@fuzz
@given(written(), st.lists(st.sampled_from([" ", "\t", "\n", "  "]), min_size=2, max_size=4))
def test_what_is_written_is_what_is_read(case: tuple[list[str], Filter], spaces: list[str]) -> None:
    words, meant = case
    assert parse_filter(" ".join(words)) == meant
    assert parse_filter(spaces[0] + spaces[1].join(words) + spaces[-1]) == meant
