"""What leads to a workflow in an object store or a shared directory is written anew from its
journal, and from nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._client.removal import delete
from ray_workflows._client.repairs import repair
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows.exceptions import StorageCorruptError, WorkflowNotFoundError
from ray_workflows.storage.objects.index_keys import id_of, parse, short_hash
from tests.contract.damage import IDS, Layout, Piece, disturbed, fill, reads, result
from tests.contract.test_damage import Objects, Shared

DAMAGES = ("flip", "cut", "foreign", "copy", "remove")
KINDS = ("ids", "index")


@pytest.fixture(params=[Objects, Shared])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    layout: Layout = request.param(tmp_path / "store")
    storage = layout.storage()
    storage.open()
    fill(storage)
    storage.close()
    return layout


def seen(layout: Layout) -> dict[str, Any]:
    """All that a process reads that has read nothing yet."""
    storage = layout.storage()
    return {name: result(read) for name, read in reads(storage).items()}


def piece_of(layout: Layout, kind: str, name: str) -> Piece:
    """The pointer of a workflow, or its entry in the index."""
    if kind == "ids":
        (found,) = (p for p in layout.pieces() if p[1].startswith(f"ids/{short_hash(name)}/"))
    else:
        (found,) = (p for p in layout.pieces() if p[0] == kind and name == name_of(p))
    return found


def name_of(piece: Piece) -> str | None:
    entry = parse("", piece[1].rpartition("/")[2])
    return None if entry is None else id_of(entry)


def damage_all(layout: Layout, pieces: list[Piece], how: str) -> None:
    contents = [layout.read(piece) for piece in pieces]
    for piece, data, other in zip(pieces, contents, [*contents[1:], contents[0]], strict=True):
        if how == "remove":
            layout.remove(piece)
        else:
            layout.write(piece, other if how == "copy" else disturbed(how, data, random.Random(1)))


def damage(layout: Layout, piece: Piece, how: str = "flip") -> None:
    damage_all(layout, [piece], how)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_leads_to_a_journal_is_written_anew(layout: Layout, kind: str, how: str) -> None:
    before = seen(layout)
    damage_all(layout, [piece_of(layout, kind, name) for name in IDS], how)
    assert seen(layout) != before
    for name in IDS:
        assert repair(layout.storage(), name) is not None
    assert seen(layout) == before
    for name in IDS:
        assert repair(layout.storage(), name) is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_repaired_can_be_deleted(layout: Layout, kind: str) -> None:
    damage(layout, piece_of(layout, kind, "one"))
    repair(layout.storage(), "one")
    storage = layout.storage()
    delete(Reader(storage), read_row(storage, "one"))
    assert storage.read_catalog("one") is None
    assert storage.read_journal("i-one") == []
    with pytest.raises(WorkflowNotFoundError):
        repair(storage, "one")


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "copy"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_where_the_journal_is_damaged(
    layout: Layout, kind: str, how: str
) -> None:
    damage(layout, piece_of(layout, kind, "one"), how)
    damage(layout, ("journal", "journal/i-one/0000000002"), "cut")
    before = {piece: layout.read(piece) for piece in layout.pieces()}
    with pytest.raises(StorageCorruptError, match="0000000002"):
        repair(layout.storage(), "one")
    assert {piece: layout.read(piece) for piece in layout.pieces()} == before


def test_a_lost_end_is_not_hidden(layout: Layout) -> None:
    """The index lists a later entry than the journal has: the workflow would look open again."""
    journal = [p for p in layout.pieces() if p[1].startswith("journal/i-one/")]
    layout.remove(journal[-1])
    before = {piece: layout.read(piece) for piece in layout.pieces()}
    with pytest.raises(StorageCorruptError, match="missing"):
        repair(layout.storage(), "one")
    assert {piece: layout.read(piece) for piece in layout.pieces()} == before


def test_a_pointer_and_an_entry_that_are_both_damaged_stay_so(layout: Layout) -> None:
    """Nothing says any more whose the journal is, but the journal, which nobody looks for."""
    for kind in KINDS:
        damage(layout, piece_of(layout, kind, "one"))
    with pytest.raises(StorageCorruptError, match="ids/"):
        repair(layout.storage(), "one")


def test_what_is_damaged_says_how_to_repair_it(layout: Layout) -> None:
    for kind, name in zip(KINDS, ("one", "two"), strict=True):
        damage(layout, piece_of(layout, kind, name))
    storage = layout.storage()
    with pytest.raises(StorageCorruptError, match="`ray-workflows repair` and its id"):
        storage.read_catalog("one")
    (text,) = storage.list_catalog(CatalogQuery()).damaged
    assert text.endswith("ray-workflows repair two")


def test_a_creation_that_came_to_nothing_is_not_made_up(layout: Layout) -> None:
    """Its first entry is there, and listed in doubt; no pointer leads to it."""
    journal = [p for p in layout.pieces() if p[1].startswith("journal/i-one/")]
    for piece in journal[1:]:
        layout.remove(piece)
    layout.remove(piece_of(layout, "ids", "one"))
    with pytest.raises(WorkflowNotFoundError):
        repair(layout.storage(), "one")
