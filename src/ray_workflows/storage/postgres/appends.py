"""Composes the statements of a commit to PostgreSQL and their parameters, as small as possible.
Nothing here talks to a server.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows.storage.base import CommitOutcome
from ray_workflows.storage.rows import COLUMNS, DEFAULTS, FIRST_OPTIONAL, STORED, encode_row

#: The most bytes of entries in one statement. A transaction has as many statements as it needs.
STATEMENT_BYTES = 8 * 1024 * 1024

#: How many journals' ends are remembered.
KNOWN_ENDS = 50_000


class Ends:
    """The last append of this process to each journal: the entry's commit id, and its catalog row.

    An entry and its catalog row are stored together. So while a journal ends with that very entry,
    the stored row is this one, and an append that leaves it unchanged need not send it. The server
    compares the commit id of the last entry. Whatever happened since (a rival, a deletion, a
    restored backup), an outdated memory only makes the append stale.

    It has no lock, which a fork could inherit locked: each step is atomic for other threads, and
    the entries stay true in whatever order threads write them.
    """

    def __init__(self) -> None:
        self.ends: OrderedDict[str, tuple[str, CatalogRow]] = OrderedDict()

    def unchanged(self, appends: Iterable[Append]) -> list[str | None]:
        """For each append that changes only ``seq`` of the row, the commit id of the entry that it
        follows; None if the row has to be sent."""
        found: list[str | None] = []
        get = self.ends.get
        for append in appends:
            end = get(append.incarnation)
            same = end is not None and end[1].seq == append.expected_seq
            found.append(end[0] if same and end and alike(end[1], append.catalog) else None)
        return found

    def learn(self, appends: Sequence[Append], outcomes: Sequence[CommitOutcome]) -> None:
        """Remember successful appends, and forget stale ones. The oldest are dropped over the
        limit.
        """
        ends = self.ends
        if outcomes.count(CommitOutcome.OK) == len(appends):
            ends.update({a.incarnation: (a.commit_id, a.catalog) for a in appends})
        else:
            for append, outcome in zip(appends, outcomes, strict=True):
                if outcome is CommitOutcome.OK:
                    ends[append.incarnation] = (append.commit_id, append.catalog)
                else:
                    ends.pop(append.incarnation, None)
        while len(ends) > KNOWN_ENDS:
            ends.popitem(last=False)

    def forget(self, incarnation: str) -> None:
        """Forget a deleted journal."""
        self.ends.pop(incarnation, None)


def alike(one: CatalogRow, other: CatalogRow) -> bool:
    """Whether two rows differ in ``seq`` at most."""
    if msgspec.structs.replace(one, seq=other.seq) != other:
        return False
    # Equal values may be different JSON: 1 and true.
    return (
        not other.metadata
        or one.metadata is other.metadata
        or json.dumps(one.metadata) == json.dumps(other.metadata)
    )


class Statement(NamedTuple):
    """A query, its parameters, and the numbers of the appends in it."""

    query: str
    parameters: dict[str, Any]
    numbers: list[int]


def make_statements(appends: Sequence[Append], ends: Ends) -> list[Statement]:
    """The statements of a commit, in their order."""
    statements = []
    for numbers in statement_numbers(appends):
        chosen = [appends[number] for number in numbers]
        query, parameters = make_query(chosen, ends.unchanged(chosen))
        statements.append(Statement(query, parameters, numbers))
    return statements


def statement_numbers(appends: Sequence[Append]) -> Iterator[list[int]]:
    """Split appends into statements: each workflow once, sorted, up to `STATEMENT_BYTES`.

    Several appends to one workflow go into successive statements. Each statement takes its
    locks in the order of the ids, so that rival transactions can't deadlock.
    """
    rounds: list[list[int]] = []
    ids = {append.workflow_id for append in appends}
    incarnations = {append.incarnation for append in appends}
    if len(ids) == len(incarnations) == len(appends):
        rounds = [list(range(len(appends)))] if appends else []
    else:
        rounds = rounds_of(appends)
    for numbers in rounds:
        # By code points, as the server sorts them.
        numbers.sort(key=lambda number: appends[number].workflow_id)
        part: list[int] = []
        size = 0
        for number in numbers:
            size += len(appends[number].entry)
            if part and size > STATEMENT_BYTES:
                yield part
                part, size = [], len(appends[number].entry)
            part.append(number)
        yield part


def rounds_of(appends: Sequence[Append]) -> list[list[int]]:
    """Split the numbers of appends into rounds that have each workflow once."""
    rounds: list[list[int]] = []
    ends: dict[tuple[str, str], int] = {}
    for number, append in enumerate(appends):
        keys = (("id", append.workflow_id), ("incarnation", append.incarnation))
        place = max(ends.get(key, 0) for key in keys)
        for key in keys:
            ends[key] = place + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(number)
    return rounds


def make_query(
    appends: Sequence[Append], after: Sequence[str | None]
) -> tuple[str, dict[str, Any]]:
    """The query for these appends, each to another workflow, and its parameters.

    ``after``: the commit ids of the entries that they follow, or None if the row has to be sent.
    """
    if len(appends) == 1 and appends[0].expected_seq:
        (append,) = appends
        parameters = {
            "incarnation": append.incarnation,
            "expected_seq": append.expected_seq,
            "seq": append.catalog.seq,
            "commit_id": append.commit_id,
            "entry": append.entry,
        }
        if after[0] is not None:
            return "append_entry", {**parameters, "after": after[0]}
        return "advance_one", {**named_row(append.catalog), **parameters}
    parameters = {
        "incarnations": encode_texts([append.incarnation for append in appends]),
        "seqs": "{" + ",".join([str(append.catalog.seq) for append in appends]) + "}",
        "commit_ids": encode_texts([append.commit_id for append in appends]),
        "after": encode_texts(after),
        "entries": [append.entry for append in appends],
    }
    if None not in after:
        return "append_entries", parameters
    rows = [
        {} if known is not None else encode_sent(append.catalog)
        for append, known in zip(appends, after, strict=True)
    ]
    return "commit_appends", {**parameters, "rows": msgspec.json.encode(rows).decode()}


#: The key of each column in the JSON: short, because the server reads it in each row. Columns that
#: are in the arrays beside the rows are not among them.
SENT = {
    "workflow_id": "i",
    "status": "t",
    "holder": "h",
    "submitted_at": "b",
    "started_at": "a",
    "ended_at": "e",
    "metadata": "m",
    "plan_digest": "p",
    "error": "x",
    "released": "r",
    "kind": "k",
    "name": "n",
    "queue": "q",
    "priority": "y",
    "parent": "o",
    "due_at": "u",
    "tags": "g",
    "snapshot": "s",
    "digest": "d",
}

#: The values that `commit_appends` uses for columns that are not sent.
UNSENT = dict(zip(COLUMNS[FIRST_OPTIONAL:], DEFAULTS[FIRST_OPTIONAL:], strict=True))


def named_row(row: CatalogRow) -> dict[str, Any]:
    """The stored values of a row, by column."""
    return dict(zip(STORED, encode_row(row, clean), strict=True))


def encode_sent(row: CatalogRow) -> dict[str, Any]:
    """The JSON object of a row for ``commit_appends``."""
    encoded = named_row(row)
    return {
        short: encoded[name]
        for name, short in SENT.items()
        if name not in UNSENT or encoded[name] != UNSENT[name]
    }


def encode_texts(texts: Sequence[str | None]) -> str:
    """An array literal of PostgreSQL. psycopg's own encoding takes longer than the server's
    work."""
    if None not in texts:
        joined = '","'.join(texts)  # type: ignore[arg-type]
        # Nearly always there is nothing to escape.
        if "\\" not in joined and joined.count('"') == 2 * (len(texts) - 1):
            return f'{{"{joined}"}}'
    return "{" + ",".join(map(encode_text, texts)) + "}"


def encode_text(text: str | None) -> str:
    """An element of an array."""
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def clean(text: str) -> str:
    """A text that PostgreSQL can store: without lone surrogates and NULs."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
