"""Parses filters: texts such as ``status=FAILED id=order-* tag.team=vision submitted>2026-01-01``
that select workflows.

A word is a column, an operator and a value. All words have to hold. A value ends at a space, unless
it stands in double quotes; a ``*`` after it matches any rest. The words of the language are read in
any case: columns, statuses, kinds, and ``true`` and ``false`` without quotes.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import NamedTuple

import msgspec

from ray_workflows._model.catalog import KINDS, TAGS, Condition, Operator
from ray_workflows._model.status import WORKFLOWS, WorkflowStatus
from ray_workflows._model.tags import TAG_NAME
from ray_workflows.exceptions import InvalidFilterError

#: The names of columns in filters, and the fields of a row.
TEXTS = {"id": "workflow_id", "kind": "kind", "name": "name", "queue": "queue", "parent": "parent"}
TIMES = {"submitted": "submitted_at", "ended": "ended_at"}

#: How `Condition` writes the values of boolean tags.
BOOLEANS = ("true", "false")

WORD = re.compile(
    r"""
    (?P<column> [^\s="<>*]* ) (?P<operator> >=|<=|=|>|< )?
    (?: "(?P<quoted> (?:[^"\\]|\\.)* )" | (?P<bare> [^\s"*]* ) )
    (?P<star> \*? ) (?P<rest> \S* )
    """,
    re.VERBOSE | re.DOTALL,
)

COLUMNS = ", ".join(("status", *TEXTS, *TIMES, "tag.<name>"))


class Filter(msgspec.Struct, frozen=True):
    """A parsed filter.

    Attributes:
        statuses: the allowed statuses, as users see them; empty: any.
        conditions: further conditions.
    """

    statuses: tuple[WorkflowStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Word(NamedTuple):
    """A parsed word of a filter. ``star``: whether the value is a prefix."""

    text: str
    position: int
    column: str
    operator: Operator
    value: str
    quoted: bool
    star: bool

    def wrong(self, reason: str) -> InvalidFilterError:
        """The error for this word."""
        return InvalidFilterError(self.text, self.position, reason)


def parse_filter(text: str) -> Filter:
    """Parse a filter.

    Raises:
        TypeError: it is not a string.
        InvalidFilterError: it is malformed; names the word and its position.
    """
    if not isinstance(text, str):
        raise TypeError(f"A filter is a text such as 'status=FAILED', not {type(text).__name__}.")
    statuses: tuple[WorkflowStatus, ...] = ()
    conditions: list[Condition] = []
    seen: set[str] = set()
    for word in words(text):
        if word.operator is Operator.IS:
            if word.column in seen:
                raise word.wrong(
                    f"{word.column}= is there twice, and a workflow has one of it. Leave one out."
                )
            seen.add(word.column)
        if word.column == "status":
            statuses = read_statuses(word)
        else:
            conditions.append(read_condition(word))
    return Filter(statuses, tuple(conditions))


def words(text: str) -> list[Word]:
    """The words of a filter."""
    found: list[Word] = []
    position = 0
    while True:
        position += len(text[position:]) - len(text[position:].lstrip())
        if position == len(text):
            return found
        match = WORD.match(text, position)
        assert match is not None  # It can be empty.
        found.append(read_word(match))
        position = match.end()


def read_word(match: re.Match[str]) -> Word:
    """Parse a word; raises if a part is missing."""
    text, position = match[0], match.start()
    quoted, column = match["quoted"] is not None, read_column(match["column"])

    def wrong(reason: str) -> InvalidFilterError:
        return InvalidFilterError(text, position, reason)

    if match["operator"] is None or not column:
        raise wrong(
            f"a word has a column, an operator (=, <, <=, > or >=) and a value, as status=FAILED. "
            f"Columns are {COLUMNS}."
        )
    if match["rest"].startswith('"') or (match["rest"] and quoted):
        raise wrong(
            'quotes stand around a whole value, as in name="my task". Write \\" for one in it.'
        )
    if match["rest"]:
        raise wrong('a * stands at the end. Put the value into double quotes if it has one: "a*b".')
    unusual = re.search(r"[\0\ud800-\udfff]", text)
    if unusual is not None:
        raise wrong(f"no workflow has the character {unusual[0]!r}. Leave it out.")
    value = re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL) if quoted else match["bare"]
    star = bool(match["star"])
    if not value and not star and not (quoted and column.startswith("tag.")):
        raise wrong(f"the value is missing. {column}=* stands for any.")
    operator = Operator(match["operator"])
    if star and operator is not Operator.IS:
        raise wrong("a * can't be compared so. Use it with =.")
    return Word(text, position, column, operator, value, quoted, star)


def read_column(text: str) -> str:
    """The column that a word names, in lower case. The name of a tag stays as it is."""
    head, dot, tag = text.partition(".")
    return head.lower() + dot + tag


def read_statuses(word: Word) -> tuple[WorkflowStatus, ...]:
    """The statuses that a word names, with commas between them."""
    if word.operator is not Operator.IS or word.star:
        raise word.wrong("a status is compared with =, without *. Put commas between several.")
    found = []
    for name in word.value.split(","):
        if name.upper() not in (status.value for status in WORKFLOWS):
            names = ", ".join(status.value for status in WORKFLOWS)
            raise word.wrong(f"{name!r} is not a status. Statuses are {names}.")
        found.append(WorkflowStatus(name.upper()))
    return tuple(dict.fromkeys(found))


def read_condition(word: Word) -> Condition:
    """The condition of a word about a column other than status."""
    if word.column in TIMES:
        if word.operator is Operator.IS:
            raise word.wrong(f"write a time with <, <=, > or >=, as {word.column}>2026-01-31.")
        return Condition(TIMES[word.column], word.operator, number=read_time(word))
    if word.column.startswith("tag."):
        return read_tag(word)
    if word.column not in TEXTS:
        raise word.wrong(f"there is no column {word.column!r}. Columns are {COLUMNS}.")
    if word.operator is not Operator.IS:
        raise word.wrong(f"{word.column} is a text, and compared with = alone.")
    if word.column == "kind":
        return read_kind(word)
    return Condition(TEXTS[word.column], text_operator(word), word.value)


def read_kind(word: Word) -> Condition:
    """The condition of a word about the kind."""
    kind = word.value.lower()
    if word.star or kind not in KINDS:
        raise word.wrong(f"{word.value!r} is not a kind. Kinds are {', '.join(KINDS)}.")
    return Condition("kind", Operator.IS, kind)


def text_operator(word: Word) -> Operator:
    """The operator of a word about a text."""
    if not word.star:
        return Operator.IS
    return Operator.BEGINS if word.value else Operator.THERE


def read_tag(word: Word) -> Condition:
    """The condition of a word about a tag."""
    name = word.column.removeprefix("tag.")
    if re.fullmatch(TAG_NAME, name) is None:
        no_such = " There is no !=." if name.endswith("!") else ""
        raise word.wrong(f"{name!r} can't name a tag. Write tag.<name>=<value>.{no_such}")
    number = None if word.star or word.quoted else read_number(word.value)
    if word.operator is Operator.IS:
        return Condition(TAGS, text_operator(word), tag_text(word), number, tag=name)
    if number is None:
        raise word.wrong(f"{word.value!r} is not a number, and only numbers are more or less.")
    return Condition(TAGS, word.operator, word.value, number, tag=name)


def tag_text(word: Word) -> str:
    """The text that a tag is compared with: a boolean in lower case, as rows have it. In quotes it
    is a text like any other."""
    lowered = word.value.lower()
    if lowered in BOOLEANS and not word.star and not word.quoted:
        return lowered
    return word.value


def read_number(text: str) -> float | None:
    """Parse a number; None if the text is not one."""
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def read_time(word: Word) -> float:
    """The time of a word, in seconds since 1970. Without a time zone it is that of this machine."""
    seconds = read_number(word.value)
    # Four digits are a year.
    if seconds is not None and len(word.value) > 4:
        return seconds
    text = word.value[:-1] + "+00:00" if word.value[-1:] in "Zz" else word.value
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise word.wrong(
            f"{word.value!r} is not a time. Write 2026-01-31, 2026-01-31T12:00, with a time zone "
            f"2026-01-31T12:00+01:00 or 2026-01-31T12:00Z, or the seconds since 1970."
        ) from None
