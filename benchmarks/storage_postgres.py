"""PostgreSQL beside bare inserts: what they are, what an append stores, and where its time goes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from benchmarks.storage_parts import Context, Part, Turns, seconds
from ray_workflows._model.catalog import Append
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres.appends import encode_texts, make_statements
from ray_workflows.testing.builders import OK, make_append

#: What an event of a finished task with a small result takes in the journal, in bytes.
EVENT_BYTES = 200

ROW_COLUMNS = """workflow_id text, incarnation text, seq bigint, status text, holder text,
    submitted_at double precision, started_at double precision, ended_at double precision,
    metadata text, plan_digest text, error text, released boolean"""
JOURNAL = "incarnation text, seq bigint, commit_id text, entry {bytes}"

#: An entry and a row for each append, in the encoding that proved the fastest, and no more: no
#: fence, nothing that could be listed or updated.
INSERT_ALL = """
    WITH wanted AS MATERIALIZED (
        SELECT * FROM ROWS FROM (
            json_to_recordset(%(rows)b::json) AS (
                i text, n text, s bigint, t text, h text, b double precision, a double precision,
                e double precision, m text, p text, x text, r boolean, c text
            ),
            unnest(%(entries)b::bytea[])
        ) AS given (
            workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released, commit_id, entry
        )
    ),
    listed AS (
        INSERT INTO bare_catalog
        SELECT workflow_id, incarnation, seq, status, holder, submitted_at, started_at, ended_at,
            metadata, plan_digest, error, released
        FROM wanted
    )
    INSERT INTO bare_journal SELECT incarnation, seq, commit_id, entry FROM wanted
"""

#: An entry for each append.
INSERT_ENTRIES = """
    INSERT INTO bare_journal
    SELECT * FROM unnest(
        %(incarnations)s::text[], %(seqs)s::bigint[], %(commit_ids)s::text[], %(entries)b::bytea[]
    )
"""


class Row(msgspec.Struct, omit_defaults=True):
    """A catalog row and the commit id of its entry, as `INSERT_ALL` reads them."""

    i: str
    n: str
    s: int
    t: str
    h: str
    b: float
    c: str
    a: float | None = None
    e: float | None = None
    m: str = "{}"
    p: str = ""
    x: str | None = None
    r: bool = False


def encode_rows(appends: Sequence[Append]) -> dict[str, Any]:
    """The parameters of `INSERT_ALL`."""
    rows = []
    for append in appends:
        row = append.catalog
        rows.append(
            Row(
                i=row.workflow_id,
                n=row.incarnation,
                s=row.seq,
                t=row.status.value,
                h=row.holder,
                b=row.submitted_at,
                c=append.commit_id,
                a=row.started_at,
                e=row.ended_at,
                p=row.plan_digest,
                x=row.error,
                r=row.released,
            )
        )
    return {
        "rows": msgspec.json.encode(rows).decode(),
        "entries": [append.entry for append in appends],
    }


def encode_entries(appends: Sequence[Append]) -> dict[str, Any]:
    """The parameters of `INSERT_ENTRIES`."""
    return {
        "incarnations": encode_texts([append.incarnation for append in appends]),
        "seqs": "{" + ",".join([str(append.catalog.seq) for append in appends]) + "}",
        "commit_ids": encode_texts([append.commit_id for append in appends]),
        "entries": [append.entry for append in appends],
    }


class BarePostgres:
    """Batched inserts by a connection that prepares its statements."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        journal = JOURNAL.format(bytes="bytea")
        connection.execute(f"CREATE TABLE bare_catalog ({ROW_COLUMNS})")
        connection.execute(f"CREATE TABLE bare_journal ({journal}, PRIMARY KEY (incarnation, seq))")

    def insert(self, appends: Sequence[Append]) -> None:
        self.connection.execute(INSERT_ALL, encode_rows(appends))

    def insert_entries(self, appends: Sequence[Append]) -> None:
        self.connection.execute(INSERT_ENTRIES, encode_entries(appends))


def make_group(name: str, count: int, seq: int, **fields: Any) -> list[Append]:
    """An append of one event to each of this many workflows."""
    return [
        make_append(f"{name}{number:04d}", seq, entry=os.urandom(EVENT_BYTES), **fields)
        for number in range(count)
    ]


def by_what_is_stored(context: Context) -> Part:
    """Appends that leave their catalog rows as they are, and appends that change them."""
    part = Part(
        "What an append stores on PostgreSQL",
        ["workflows x events", "catalog rows", "ms", "bare entries", "bare entries and rows"],
        before=(
            "An append that leaves its catalog row as it is (but for the number of the entry), as "
            "nearly all do, stores the entry alone; so do those in the table before, beside bare "
            "inserts of an entry and a row each. In brackets: ours, of the bare inserts' rate."
        ),
    )
    for count in (1, 100, 1000):
        for changed in (False, True):
            with context.schema() as (storage, connection):
                bare = BarePostgres(connection)
                entries, rows = Turns(), Turns()
                for seq in range(context.options.rounds + 3):
                    turns = rows if seq % 2 else entries
                    insert = bare.insert if seq % 2 else bare.insert_entries
                    for each in range(2):
                        fields = {"started_at": 2.0 * seq + each} if changed else {}
                        number = 2 * seq + each
                        ours = make_group("w", count, number, **fields)
                        plain = make_group("bare", count, number)
                        turns.add(partial(commit, storage, ours), partial(insert, plain))
                mine = statistics.median(entries.ours[4:] + rows.ours[4:])
                beside = [
                    f"{1e3 * other:.2f} ms ({100 * ratio:.0f} %)"
                    for _, other, ratio in (entries.medians(4), rows.medians(4))
                ]
                kind = "changed" if changed else "as they were"
                part.rows.append([f"{count} x 1", kind, f"{1e3 * mine:.2f}", *beside])
                print(*part.rows[-1], flush=True)
    return part


def commit(storage: PostgresStorage, appends: list[Append]) -> None:
    """A commit in which every append has to succeed."""
    assert storage.commit(appends) == [OK] * len(appends)


def profile(context: Context) -> Part:
    """Where the time of a large group of small appends goes."""
    part = Part(
        "Where a commit of 1000 x 1 goes on PostgreSQL",
        ["step", "ms", "has bare inserts"],
        before=(
            "From EXPLAIN (ANALYZE), medians of 15. The rest is the encoding in Python, the way to "
            "the server and back, and the sync of its log."
        ),
    )
    found: list[dict[str, float]] = []
    with context.schema() as (storage, _):
        commit(storage, make_group("w", 1000, 0))
        for seq in range(1, 32):
            group = make_group("w", 1000, seq)
            if seq % 2:
                whole = 1e3 * seconds(partial(commit, storage, group))
                continue
            (statement,) = make_statements(group, storage.journals.ends)
            query = "EXPLAIN (ANALYZE, BUFFERS OFF, FORMAT JSON) " + "\n".join(
                line
                for line in storage.journals.home.queries[statement.query].splitlines()
                if not line.startswith("--")
            )
            with storage.journals.home.pool.use() as connection:
                ((answer,),) = connection.execute(query, statement.parameters).fetchall()
            storage.journals.ends.learn(group, [OK] * len(group))
            parts = {
                node["Subplan Name"].removeprefix("CTE "): node
                for node in answer[0]["Plan"]["Plans"]
                if "Subplan Name" in node
            }
            ends = {name: node["Actual Total Time"] for name, node in parts.items()}
            sent = parts["locked"]["Plans"][0]["Actual Total Time"]
            times = {"plan": answer[0]["Planning Time"], "all": answer[0]["Execution Time"]}
            found.append({**ends, **times, "sent": sent, "whole": whole})
    middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
    steps = (
        ("plan", middle["plan"], "prepared once"),
        ("read entries from what was sent", middle["sent"], "yes, and rows"),
        ("find and lock the last entries, in order", middle["locked"] - middle["sent"], "no"),
        ("insert the entries, and answer", middle["all"] - middle["locked"], "yes, and rows"),
        ("the rest", middle["whole"] - middle["all"] - middle["plan"], "yes"),
        ("**all**", middle["whole"], ""),
    )
    part.rows = [[name, f"{took:.1f}", bare] for name, took, bare in steps]
    return part
