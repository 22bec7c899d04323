"""The part of `JournalStoreContract` about commits, journals and deletion.
Uses the public methods of a journal store only.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import msgspec
import pytest

from ray_workflows._model.catalog import Append, CatalogQuery, CatalogRow
from ray_workflows.storage.parts import CommitOutcome, JournalStore
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    state,
)

#: Ids that a storage may take for paths, patterns, numbers or SQL. Control characters are refused
#: elsewhere.
ODD_IDS = [
    " ",
    ".",
    "..",
    "../..",
    "/",
    "/etc/passwd",
    "a/b//c/",
    "a\\b",
    "it's",
    'say "hi"',
    "`; DROP TABLE catalog; --",
    "%",
    "%2F%2e%2e",
    "_",
    "a?b#c&d=e",
    "*[x]{y}",
    "~",
    "-rf",
    "null",
    "0",
    "1e3",
    "Größe",
    "Gro\u0308ße",
    "工作流",
    "🦑" * 10,
    "\u202eabc",
    "\ufeffabc",
    "x" * 512,
    "é" * 256,
]


class Interrupted(Exception):
    """Raised in the middle of a commit."""


class Interrupting(Sequence[Append]):
    """Appends that raise `Interrupted` after the first one."""

    def __init__(self, appends: Sequence[Append]):
        self.appends = appends

    def __len__(self) -> int:
        return len(self.appends)

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return self.appends[0]
        return self.fail()

    def __iter__(self) -> Iterator[Append]:
        yield self.appends[0]
        self.fail()

    def fail(self) -> NoReturn:
        """Interrupt the commit."""
        raise Interrupted


class JournalContract:
    """Commits, journals and deletion."""

    def test_first_append_creates_the_workflow(self, journals: JournalStore) -> None:
        """After OK, the entry, the commit id and the catalog row can be read."""
        append = make_append("w", 0, commit_id="c", entry=b"first")
        assert journals.read_catalog("w") is None
        assert journals.read_journal(append.incarnation) == []
        assert journals.commit([append]) == [OK]
        row, journal = state(journals, "w")
        assert row == append.catalog
        assert [(e.seq, e.commit_id, e.entry) for e in journal] == [(1, "c", b"first")]

    def test_next_append_continues_the_journal(self, journals: JournalStore) -> None:
        """Each append at the end succeeds and replaces the catalog row."""
        for seq in range(5):
            assert journals.commit([make_append("w", seq, started_at=float(seq))]) == [OK]
            row, journal = state(journals, "w")
            assert row is not None
            assert (row.seq, row.started_at, len(journal)) == (seq + 1, float(seq), seq + 1)

    @pytest.mark.parametrize("together", [1, 3])
    def test_rows_that_stay_as_they_are_name_the_end(
        self, journals: JournalStore, together: int
    ) -> None:
        """The seq of a row is right after any number of appends that change nothing else in it."""
        names = [f"w{number}" for number in range(together)]
        for name in names:
            fill(journals, name)
        for seq in range(1, 6):
            group = [make_append(name, seq) for name in names]
            assert journals.commit(group) == [OK] * together
            rows = tuple(append.catalog for append in group)
            assert tuple(map(journals.read_catalog, names)) == rows
            for fields in ({}, {"statuses": (rows[0].status,)}, {"holders": ("h1",)}):
                assert journals.list_catalog(CatalogQuery(**fields)).rows == rows
                newest = CatalogQuery(newest_first=True, **fields)
                assert journals.list_catalog(newest).rows == rows[::-1]

    def test_rows_that_change_now_and_then(self, journals: JournalStore) -> None:
        """The row is that of the last append, also if it has earlier values again, and if values
        are equal but of different types."""
        changes: list[dict[str, Any]] = [
            {},
            {"holder": "h2"},
            {"holder": "h2"},
            {},
            {"metadata": {"k": 1}},
            {"metadata": {"k": True}},
            {"metadata": {"k": 1.0}},
            {"metadata": {}, "error": "e", "released": True},
            {},
        ]
        for seq, fields in enumerate(changes):
            append = make_append("w", seq, **fields)
            assert journals.commit([append, make_append(f"x{seq}", 0)]) == [OK, OK]
            row = journals.read_catalog("w")
            assert row == append.catalog
            assert repr(row) == repr(append.catalog)

    @pytest.mark.parametrize("expected_seq", [0, 1, 2, 4, 5, 1000])
    def test_append_elsewhere_than_the_end_is_stale(
        self, journals: JournalStore, expected_seq: int
    ) -> None:
        """Nothing is written, neither to the journal nor to the catalog."""
        fill(journals, "w", 3)
        before = state(journals, "w")
        append = make_append("w", expected_seq, entry=b"stale", holder="thief")
        assert journals.commit([append]) == [STALE]
        assert state(journals, "w") == before
        assert list_ids(journals) == ["w"]

    def test_creating_an_id_in_use_is_stale(self, journals: JournalStore) -> None:
        """Also under another incarnation; nothing of that one is stored."""
        fill(journals, "w", 2)
        before = state(journals, "w")
        assert journals.commit([make_append("w", 0, incarnation="i-other")]) == [STALE]
        assert state(journals, "w") == before
        assert journals.read_journal("i-other") == []

    def test_creating_under_an_incarnation_in_use_is_stale(self, journals: JournalStore) -> None:
        """Two workflows never share a journal."""
        fill(journals, "w", 2, incarnation="i-shared")
        before = state(journals, "w")
        assert journals.commit([make_append("other", 0, incarnation="i-shared")]) == [STALE]
        assert journals.read_catalog("other") is None
        assert state(journals, "w") == before

    def test_append_to_an_unknown_workflow_is_stale(self, journals: JournalStore) -> None:
        """Only entry 1 can create it."""
        assert journals.commit([make_append("w", 1)]) == [STALE]
        assert state(journals, "w") == (None, [])

    def test_append_under_another_incarnation_is_stale(self, journals: JournalStore) -> None:
        """An append with the right seq is stale all the same."""
        fill(journals, "w", 2)
        before = state(journals, "w")
        assert journals.commit([make_append("w", 2, incarnation="i-other")]) == [STALE]
        assert state(journals, "w") == before

    def test_repeated_append_is_stale_and_can_be_found(self, journals: JournalStore) -> None:
        """The commit id in the journal says whether an ambiguous append has succeeded."""
        append = make_append("w", 0, commit_id="mine")
        assert journals.commit([append]) == [OK]
        assert journals.commit([append]) == [STALE]
        assert [entry.commit_id for entry in journals.read_journal(append.incarnation)] == ["mine"]

    def test_outcomes_are_independent(self, journals: JournalStore) -> None:
        """A stale append does not keep others in the same call from succeeding."""
        fill(journals, "a", 1)
        fill(journals, "b", 2)
        outcomes = journals.commit(
            [
                make_append("a", 1),
                make_append("b", 1),
                make_append("new", 0),
                make_append("absent", 7),
                make_append("b", 2),
            ]
        )
        assert outcomes == [OK, STALE, OK, STALE, OK]
        ends = [state(journals, name)[0] for name in ("a", "b", "new", "absent")]
        assert [row and row.seq for row in ends] == [2, 3, 1, None]

    def test_two_appends_to_one_workflow_in_one_commit(self, journals: JournalStore) -> None:
        """Both take effect in their order; of two with the same seq, only the first."""
        assert journals.commit([make_append("w", 0), make_append("w", 1)]) == [OK, OK]
        outcomes = journals.commit(
            [
                make_append("w", 2, entry=b"first"),
                make_append("w", 2, entry=b"second"),
                make_append("w", 4),
                make_append("w", 3, holder="last"),
            ]
        )
        assert outcomes == [OK, STALE, STALE, OK]
        row, journal = state(journals, "w")
        assert row is not None
        assert (row.holder, journal[2].entry) == ("last", b"first")

    def test_empty_commit(self, journals: JournalStore) -> None:
        """A commit without appends has no outcomes."""
        assert journals.commit([]) == []

    def test_large_commit(self, journals: JournalStore) -> None:
        """One call commits many workflows, and returns the outcomes in the same order."""
        for name in ("w10", "w20"):
            fill(journals, name)
        outcomes = journals.commit([make_append(f"w{i}", 0) for i in range(500)])
        assert [i for i, outcome in enumerate(outcomes) if outcome is not OK] == [10, 20]
        assert sorted(list_ids(journals)) == sorted(f"w{i}" for i in range(500))

    @pytest.mark.parametrize(
        "change", [{"seq": 3}, {"seq": 1}, {"workflow_id": "x"}, {"incarnation": "i-x"}]
    )
    def test_contradictory_append_is_refused(
        self, journals: JournalStore, change: dict[str, Any]
    ) -> None:
        """A catalog row has to fit the append that it is part of."""
        fill(journals, "w", 1)
        before = state(journals, "w")
        good = make_append("w", 1)
        bad = msgspec.structs.replace(good, catalog=msgspec.structs.replace(good.catalog, **change))
        with pytest.raises(ValueError, match="catalog row"):
            journals.commit([make_append("other", 0), bad])
        assert state(journals, "w") == before
        assert list_ids(journals) == ["w"]

    @pytest.mark.parametrize("incarnation", ["../up", "a/b", ".hidden", "é", "a b", "x" * 201])
    def test_incarnation_that_is_no_name_is_refused(
        self, journals: JournalStore, incarnation: str
    ) -> None:
        """An incarnation becomes the name of a directory or an object prefix."""
        with pytest.raises(ValueError, match="incarnation"):
            journals.commit([make_append("w", 0, incarnation=incarnation)])
        assert journals.read_catalog("w") is None

    @pytest.mark.parametrize(
        "entry",
        [b"\x00", bytes(range(256)) * 4, b"'; --", b"x" * 1_000_000],
        ids=["nul", "all bytes", "quote", "large"],
    )
    def test_entries_come_back_as_they_were(self, journals: JournalStore, entry: bytes) -> None:
        """An entry is opaque bytes."""
        fill(journals, "w", 1, entry=entry)
        (stored,) = journals.read_journal(incarnation_of("w"))
        assert stored.entry == entry

    def test_read_journal_after(self, journals: JournalStore) -> None:
        """A read returns only later entries, in order, and none after the end."""
        fill(journals, "w", 12)
        fill(journals, "other", 3)
        incarnation = incarnation_of("w")
        for after in (0, 1, 9, 11, 12, 13, 1000):
            found = [entry.seq for entry in journals.read_journal(incarnation, after)]
            assert found == list(range(after + 1, 13))
        assert journals.read_journal("i-unknown", 3) == []

    def test_odd_workflow_ids(self, journals: JournalStore) -> None:
        """Ids are opaque: nothing in them is a path, a pattern, a number or SQL."""
        names = ["w", *ODD_IDS]
        for name in names:
            fill(journals, name, 2)
        assert list_ids(journals, limit=1) == sorted(names)
        for workflow_id in ODD_IDS:
            row, journal = state(journals, workflow_id)
            assert row is not None, workflow_id
            assert (row.workflow_id, len(journal)) == (workflow_id, 2)
            # If it deletes another workflow too, the checks of that one fail.
            assert journals.delete(workflow_id, row.incarnation, 2) is OK
            assert journals.read_catalog(workflow_id) is None, workflow_id
        assert list_ids(journals) == ["w"]

    def test_ids_that_look_alike_differ(self, journals: JournalStore) -> None:
        """Ids are stored without case folding, Unicode normalization or stripping."""
        ids = ["a", "A", "a ", " a", "é", "e\u0301", "a/", "a//", "\uff11", "1"]
        for name in ids:
            fill(journals, name)
        assert list_ids(journals) == sorted(ids)

    def test_interrupted_commit_leaves_the_previous_or_the_next_state(
        self, journals: JournalStore
    ) -> None:
        """There is never an entry without its row or a row without its entry; and the storage stays
        usable."""
        fill(journals, "a", 1)
        appends = [make_append("a", 1), make_append("b", 0)]
        with pytest.raises(Interrupted):
            journals.commit(Interrupting(appends))
        assert journals.read_catalog("b") is None
        row, _ = state(journals, "a")
        assert row is not None
        assert row.seq in (1, 2)
        # A caller that doesn't know the outcome repeats the commit.
        assert journals.commit(appends) == [OK if row.seq == 1 else STALE, OK]
        assert [len(state(journals, name)[1]) for name in ("a", "b")] == [2, 1]

    def test_commit_that_can_not_be_written(self, journals: JournalStore) -> None:
        """If an entry is not bytes, workflows stay whole, and the storage stays usable."""
        for name in ("a", "b"):
            fill(journals, name, 1)
        bad: Any = object()
        appends = [make_append("a", 1), make_append("b", 1, entry=bad), make_append("c", 0)]
        with contextlib.suppress(Exception):
            journals.commit(appends)
        ends = [(row and row.seq) or 0 for row in (state(journals, name)[0] for name in "abc")]
        assert ends[0] in (1, 2)
        assert ends[1] == 1
        assert ends[2] in (0, 1)
        again = [make_append(name, end) for name, end in zip("abc", ends, strict=True)]
        assert journals.commit(again) == [OK, OK, OK]

    # -- concurrency -----------------------------------------------------------------------

    @pytest.mark.parametrize("expected_seq", [0, 3])
    def test_one_of_many_rivals_succeeds(self, journals: JournalStore, expected_seq: int) -> None:
        """Of many appends at the same place, exactly one succeeds: the library relies on it."""
        for round_number in range(20):
            name = f"w{round_number}"
            if expected_seq:
                fill(journals, name, expected_seq)
            rivals = [
                make_append(name, expected_seq, commit_id=f"r{i}", holder=f"r{i}") for i in range(8)
            ]
            outcomes = in_threads([partial(journals.commit, [rival]) for rival in rivals])
            assert sorted(outcomes) == [[OK]] + [[STALE]] * 7
            row, journal = state(journals, name)
            winner = rivals[outcomes.index([OK])]
            assert row == winner.catalog
            assert journal[-1].commit_id == winner.commit_id

    def test_rivals_take_turns_on_one_journal(self, journals: JournalStore) -> None:
        """Each entry is that of the writer whose append returned OK."""
        fill(journals, "w", 1)

        def write(name: str) -> list[tuple[int, str]]:
            mine = []
            while (seq := len(journals.read_journal(incarnation_of("w")))) < 100:
                append = make_append("w", seq, commit_id=f"{name}-{seq}")
                if journals.commit([append]) == [OK]:
                    mine.append((seq + 1, append.commit_id))
            return mine

        parts = in_threads([partial(write, name) for name in ("a", "b", "c", "d")])
        _, journal = state(journals, "w")
        assert [(e.seq, e.commit_id) for e in journal[1:]] == sorted(itertools.chain(*parts))

    def test_rival_incarnations_of_one_id(self, journals: JournalStore) -> None:
        """Of many creations of one id, one succeeds."""
        rivals = [make_append("w", 0, incarnation=f"i-{i}") for i in range(8)]
        outcomes = in_threads([partial(journals.commit, [rival]) for rival in rivals])
        assert sorted(outcomes) == [[OK]] + [[STALE]] * 7
        found = [journals.read_journal(rival.incarnation) for rival in rivals]
        assert [bool(journal) for journal in found] == [o == [OK] for o in outcomes]

    def test_appends_to_different_workflows_do_not_disturb_each_other(
        self, journals: JournalStore
    ) -> None:
        """All succeed, and readers meanwhile see each workflow whole."""

        def write(name: str) -> list[CommitOutcome]:
            return [journals.commit([make_append(name, seq)])[0] for seq in range(20)]

        def watch(name: str) -> list[CommitOutcome]:
            seen = 0
            while seen < 20:
                row = journals.read_catalog(name)
                journal = journals.read_journal(incarnation_of(name))
                later = journals.read_catalog(name)
                low, high = (row.seq if row else 0), (later.seq if later else 0)
                assert seen <= low <= len(journal) <= high
                assert [entry.seq for entry in journal] == list(range(1, len(journal) + 1))
                seen = high
            return [OK] * 20

        names = [f"w{i}" for i in range(6)]
        outcomes = in_threads(
            [partial(write, n) for n in names] + [partial(watch, n) for n in names]
        )
        assert outcomes == [[OK] * 20] * 12

    # -- deletion --------------------------------------------------------------------------

    def test_delete(self, journals: JournalStore) -> None:
        """A deletion removes the workflow completely, and changes no other."""
        row = fill(journals, "w", 3)
        fill(journals, "other", 2)
        assert journals.delete("w", row.incarnation, 3) is OK
        assert journals.read_catalog("w") is None
        assert journals.read_journal(row.incarnation) == []
        assert list_ids(journals) == ["other"]
        assert len(state(journals, "other")[1]) == 2
        assert journals.delete("w", row.incarnation, 3) is STALE

    def test_delete_what_is_not_there(self, journals: JournalStore) -> None:
        """Deleting an unknown id, or another incarnation of a known one, is stale."""
        fill(journals, "w", 2)
        before = state(journals, "w")
        assert journals.delete("absent", "i-absent", 1) is STALE
        assert journals.delete("w", "i-other", 2) is STALE
        assert state(journals, "w") == before

    def test_delete_and_append_at_once(self, journals: JournalStore) -> None:
        """One of them succeeds, never both."""
        for round_number in range(10):
            name = f"w{round_number}"
            row = fill(journals, name, 1)
            outcomes = in_threads(
                [
                    partial(journals.commit, [make_append(name, 1)]),
                    partial(self.delete_as_list, journals, row),
                ]
            )
            assert sorted(outcomes) == [[OK], [STALE]]
            assert len(state(journals, name)[1]) == (2 if outcomes[0] == [OK] else 0)

    def test_delete_among_appends(self, journals: JournalStore) -> None:
        """A deletion succeeds only if the journal has not grown, and no append succeeds after
        it."""
        fill(journals, "w")

        def write() -> int:
            seq = 1
            while journals.commit([make_append("w", seq)]) == [OK]:
                seq += 1
            return seq

        def remove() -> int:
            while True:
                row = journals.read_catalog("w")
                assert row is not None
                if journals.delete("w", row.incarnation, row.seq) is OK:
                    return row.seq

        written, removed = in_threads([write, remove])
        assert written == removed
        assert state(journals, "w") == (None, [])
        assert list_ids(journals) == []

    def delete_as_list(self, journals: JournalStore, row: CatalogRow) -> list[CommitOutcome]:
        """Delete with the outcome in a list, as a commit's is."""
        return [journals.delete(row.workflow_id, row.incarnation, row.seq)]
