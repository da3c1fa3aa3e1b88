# SPDX-License-Identifier: GPL-2.0-or-later
"""The index: kept only after a clean stop, rebuilt from whatever damage, brought into line with a listing."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe_s3.client import Unavailable
from tahoe_s3.store.index import IMMUTABLE, MUTABLE, Index, OverlayRow, ShareRow
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.leases import Lease

SI, OTHER = b"a" * 16, b"b" * 16
LEASE = Lease(1, b"r" * 32, b"c" * 32, 1000, b"n" * 20)
FULL = ShareRow(3, 500, "etag", True, 77, IMMUTABLE, 416, (LEASE,))
BARE = ShareRow(4, 600, "other", False, 78)


def open_index(folder: Path, identity: str = "me") -> Index:
    return Index(folder / "index.sqlite", identity=identity)


def filled(folder: Path) -> Index:
    index = open_index(folder)
    index.put_share(SI, FULL)
    index.put_share(SI, BARE)
    index.put_share(OTHER, replace(FULL, kind=MUTABLE, leases=(), data_length=0))
    index.put_overlay(SI, OverlayRow("e1", 5, (LEASE.until(2000),), 300))
    index.put_overlay(OTHER, OverlayRow("e2", 6, None, 150))
    return index


def totals(index: Index) -> tuple[int, int]:
    """What it says of itself, which must be what its rows say."""
    rows = index._db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM shares").fetchone()
    assert (index.share_count, index.used_bytes) == tuple(rows)
    slots = index._db.execute("SELECT COUNT(DISTINCT si) FROM shares").fetchone()
    assert index.slot_count == slots[0]
    assert index.lease_bytes == index._db.execute("SELECT COALESCE(SUM(size), 0) FROM overlays").fetchone()[0]
    return index.share_count, index.used_bytes


def test_rows_come_back_as_they_were_put(tmp_path: Path) -> None:
    index = filled(tmp_path)
    assert index.shares(SI) == [FULL, BARE]
    assert index.share(SI, 3) == FULL and index.share(SI, 5) is None
    assert index.overlay(SI) == OverlayRow("e1", 5, (LEASE.until(2000),), 300)
    assert index.overlay(OTHER) == OverlayRow("e2", 6, None, 150)
    assert index.overlay(b"c" * 16) is None and index.shares(b"c" * 16) == []
    assert totals(index) == (3, 1600) and index.slot_count == 2
    index.abandon()


def test_leases_are_the_containers_and_the_overlays(tmp_path: Path) -> None:
    index = filled(tmp_path)
    assert index.leases(SI, 3) == [LEASE.until(2000)]
    assert index.leases(SI, 4) == [LEASE.until(2000)]
    assert index.leases(OTHER, 3) == [] and index.leases(b"c" * 16, 0) == []
    index.abandon()


def test_used_bytes_follow_changes(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.put_share(SI, replace(FULL, size=100))
    assert totals(index) == (3, 1200)
    index.drop_share(SI, 4)
    index.drop_share(SI, 4)
    index.drop_share(b"c" * 16, 0)
    assert totals(index) == (2, 600)
    index.drop_overlay(SI)
    index.drop_overlay(SI)
    assert index.overlay(SI) is None
    index.abandon()


def test_a_clean_stop_keeps_everything(tmp_path: Path) -> None:
    filled(tmp_path).close()
    again = open_index(tmp_path)
    assert again.was_kept and again.shares(SI) == [FULL, BARE]
    assert again.overlay(SI) == OverlayRow("e1", 5, (LEASE.until(2000),), 300)
    assert totals(again) == (3, 1600)
    again.abandon()


@pytest.mark.parametrize("how", ["abandoned", "another identity", "copied while open"])
def test_anything_else_empties_it(tmp_path: Path, how: str) -> None:
    index = filled(tmp_path)
    if how == "another identity":
        index.close()
        again = open_index(tmp_path, "somebody else")
    elif how == "copied while open":
        shutil.copytree(tmp_path, tmp_path / "copy")
        index.close()
        again = open_index(tmp_path / "copy")
    else:
        index.abandon()
        again = open_index(tmp_path)
    assert not again.was_kept and again.shares(SI) == [] and again.overlay(SI) is None
    assert totals(again) == (0, 0)
    again.abandon()


def test_a_kept_index_is_dirty_again_once_opened(tmp_path: Path) -> None:
    filled(tmp_path).close()
    open_index(tmp_path).abandon()
    third = open_index(tmp_path)
    assert not third.was_kept and third.share_count == 0
    third.abandon()


def test_a_killed_process_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    filled(tmp_path).close()
    script = (
        "import os, sys; from pathlib import Path; from tahoe_s3.store.index import Index, ShareRow;"
        "index = Index(Path(sys.argv[1]), identity='me'); assert index.was_kept;"
        "index.drop_share(b'a' * 16, 3); os._exit(9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "index.sqlite")], timeout=60, check=False)
    assert ended.returncode == 9
    again = open_index(tmp_path)
    assert not again.was_kept and again.share_count == 0
    again.abandon()


def text_file(path: Path) -> None:
    path.write_text("this is no database, but long enough to be looked at as one " * 100)


def cut_file(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def scrambled_file(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(byte ^ 0x5A for byte in data[100:]))


def other_tables(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(str(path))
    db.execute("CREATE TABLE shares (something TEXT)")
    db.commit()
    db.close()


@pytest.mark.parametrize("damage", [text_file, cut_file, scrambled_file, other_tables, Path.unlink])
def test_damage_makes_it_start_anew(tmp_path: Path, damage: Any) -> None:
    filled(tmp_path).close()
    damage(tmp_path / "index.sqlite")
    again = open_index(tmp_path)
    assert not again.was_kept and again.share_count == 0
    again.put_share(SI, FULL)
    again.close()
    third = open_index(tmp_path)
    assert third.was_kept and third.shares(SI) == [FULL]
    third.abandon()


def test_an_index_that_another_process_works_with_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: real(path, timeout=0.01, **options))
    index = filled(tmp_path)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        open_index(tmp_path)
    assert index.shares(SI) == [FULL, BARE]
    index.close()
    again = open_index(tmp_path)
    assert again.was_kept and again.share_count == 3
    again.abandon()


# reconciliation


def flat(stretches: Iterable[list[Any]]) -> list[Any]:
    return [found for stretch in stretches for found in stretch]


def list_shares(index: Index, *found: tuple[bytes, int, int, str]) -> None:
    index.confirm_shares((ShareId(si, shnum), size, etag, 99) for si, shnum, size, etag in found)


def test_what_is_known_survives_a_listing_that_says_the_same(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    list_shares(index, (SI, 3, 500, "etag"), (SI, 4, 600, "other"))
    index.confirm_overlays([(SI, 300, "e1", 9)])
    assert index.share(SI, 3) == replace(FULL, modified_s=99)
    assert index.overlay(SI) == OverlayRow("e1", 5, (LEASE.until(2000),), 300)
    assert flat(index.unseen_shares()) == [ShareId(OTHER, 3)]
    assert flat(index.unseen_overlays()) == [OTHER]
    index.abandon()


@pytest.mark.parametrize(("size", "etag"), [(501, "etag"), (500, "changed")])
def test_what_somebody_else_wrote_is_forgotten(tmp_path: Path, size: int, etag: str) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    list_shares(index, (SI, 3, size, etag))
    index.confirm_overlays([(SI, 310, "changed", 9)])
    assert index.share(SI, 3) == ShareRow(3, size, etag, False, 99)
    assert index.overlay(SI) == OverlayRow("changed", 9, None, 310)
    totals(index)
    index.abandon()


def test_a_row_written_since_the_listing_began_is_immune(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    index.put_share(SI, replace(FULL, size=700, etag="new"))
    index.put_overlay(SI, OverlayRow("new", 8, (), 55))
    list_shares(index, (SI, 3, 500, "etag"))
    index.confirm_overlays([(SI, 300, "e1", 9)])
    assert index.share(SI, 3) == replace(FULL, size=700, etag="new")
    assert index.overlay(SI) == OverlayRow("new", 8, (), 55)
    assert ShareId(SI, 3) not in flat(index.unseen_shares())
    index.abandon()


def test_listings_of_different_runs_are_told_apart(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    list_shares(index, (SI, 3, 500, "etag"), (SI, 4, 600, "other"), (OTHER, 3, 500, "etag"))
    assert flat(index.unseen_shares()) == []
    index.close()
    again = open_index(tmp_path)
    again.begin_listing()
    list_shares(again, (SI, 3, 500, "etag"))
    assert sorted(flat(again.unseen_shares())) == [ShareId(SI, 4), ShareId(OTHER, 3)]
    again.abandon()


@pytest.mark.parametrize("was_deleted", [True, False])
def test_a_page_that_was_asked_for_before_does_not_bring_back_what_was_deleted(
    tmp_path: Path, was_deleted: bool
) -> None:
    """But what only seemed to have vanished, and what was deleted before the listing began, it does bring back."""
    index = filled(tmp_path)
    index.drop_share(OTHER, 3)
    index.begin_listing()
    index.drop_share(SI, 3, was_deleted=was_deleted)
    index.drop_overlay(SI)
    list_shares(index, (SI, 3, 500, "etag"), (SI, 4, 600, "other"), (OTHER, 3, 500, "etag"))
    index.confirm_overlays([(SI, 300, "e1", 9)])
    assert [row.shnum for row in index.shares(SI)] == ([4] if was_deleted else [3, 4])
    assert index.overlay(SI) is None and index.share(OTHER, 3) is not None
    totals(index)
    index.end_listing()
    list_shares(index, (SI, 3, 500, "etag"))
    assert index.share(SI, 3) is not None, "the next listing was asked for afterwards"
    index.abandon()


def test_a_share_that_was_deleted_and_stored_again_meanwhile_is_the_new_one(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    index.drop_share(SI, 3)
    index.put_share(SI, replace(FULL, etag="again"))
    list_shares(index, (SI, 3, 500, "etag"))
    assert index.share(SI, 3) == replace(FULL, etag="again")
    totals(index)
    index.abandon()


def test_a_page_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.begin_listing()
    with pytest.raises(sqlite3.Error):
        index.confirm_shares([(ShareId(SI, 3), 700, "new", 1), (ShareId(SI, 9), 700, None, 1)])  # type: ignore[list-item]
    assert index.share(SI, 3) == FULL and totals(index) == (3, 1600)
    index.abandon()


def test_unseen_rows_are_found_a_stretch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tahoe_s3.store.index._STRETCH_ROWS", 3)
    index = open_index(tmp_path)
    everywhere = [bytes([first]) * 16 for first in (0, 1, 84, 85, 86, 127, 128, 170, 171, 254, 255)]
    for storage_index in everywhere:
        index.put_share(storage_index, BARE)
        index.put_overlay(storage_index, OverlayRow("e", 1, None, 5))
    index.begin_listing()
    list_shares(index, (everywhere[4], 4, 600, "other"))
    del everywhere[4]
    assert len(list(index.unseen_shares())) == 4
    assert flat(index.unseen_shares()) == [ShareId(storage_index, 4) for storage_index in everywhere]
    assert len(flat(index.unseen_overlays())) == 11
    index.abandon()


def test_an_overlay_in_doubt_keeps_its_leases_unless_it_may_be_gone(tmp_path: Path) -> None:
    index = filled(tmp_path)
    index.doubt_overlay(SI)
    assert index.overlay(SI) == OverlayRow("", 0, (LEASE.until(2000),), 300)
    index.doubt_overlay(SI, was_deleted=True)
    assert index.overlay(SI) == OverlayRow("", 0, None, 300)
    totals(index)
    index.abandon()


changes = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "confirm", "begin", "again", "end", "lease", "unlease", "list lease"]),
              st.sampled_from([SI, OTHER]), st.integers(0, 2), st.integers(84, 90)),
    max_size=30,
)  # fmt: skip


@given(changes)
@settings(max_examples=60)
def test_totals_are_right_whatever_happens(tmp_path: Path, steps: list[tuple[str, bytes, int, int]]) -> None:
    index = Index(tmp_path / "random.sqlite", identity="me")
    try:
        for what, si, shnum, size in steps:
            if what == "put":
                index.put_share(si, ShareRow(shnum, size, "e", True, 1))
            elif what == "drop":
                index.drop_share(si, shnum)
            elif what == "lease":
                index.put_overlay(si, OverlayRow("e", 1, None, size))
            elif what == "unlease":
                index.drop_overlay(si)
            elif what == "list lease":
                index.confirm_overlays([(si, size, "e", 1), (si, size + 1, "f", 1)])
            elif what == "end":
                index.end_listing()
            elif what == "again":
                index.begin_listing(only_adds=True)
            elif what == "confirm":
                list_shares(index, (si, shnum, size, "e"), (si, shnum, size, "e"))
            else:
                index.begin_listing()
            totals(index)
    finally:
        index.abandon()


def test_what_asks_a_closed_index_is_told_that_the_node_has_stopped(tmp_path: Path) -> None:
    """A read that paused while the node stopped: its client gets the error of a bucket that does not answer."""
    index = filled(tmp_path)
    index.close()
    with pytest.raises(Unavailable, match="the node has stopped"):
        index.share(SI, 3)
    with pytest.raises(Unavailable):
        index.put_share(SI, FULL)
    index.abandon()
    assert open_index(tmp_path).was_kept


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 3)), max_size=40))
@settings(max_examples=40)
def test_a_page_finds_its_rows_wherever_they_lie(tmp_path: Path, found: list[tuple[bytes, int]]) -> None:
    """Keys come in the order of their text, in which digits come before letters, not in that of the index."""
    index = Index(tmp_path / "pages.sqlite", identity="me")
    try:
        page = sorted({ShareId(*share) for share in found}, key=lambda share: share_key(*share))
        for share in page[::2]:
            index.put_share(share.storage_index, replace(FULL, shnum=share.shnum))
        index.begin_listing()
        index.confirm_shares((share, 500, "etag", 99) for share in page)
        assert totals(index) == (len(page), 500 * len(page)) and flat(index.unseen_shares()) == []
        for number, share in enumerate(page):
            row = index.share(*share)
            assert row is not None and (row.kind is None) == bool(number % 2), "what was known is kept"
            index.drop_share(*share)
    finally:
        index.abandon()
