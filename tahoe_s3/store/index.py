# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in the bucket, as far as this node knows: one SQLite file that can be deleted at any time.

It answers "which shares do you have", used bytes and leases with no request. It holds nothing that the bucket does
not hold: after an unclean stop it is emptied and filled again from a listing. Only what the bucket has acknowledged
is written here; what is being put, deleted or is unsure lives in memory (store/slots.py).

Owner: the Store. Thread: the reactor's; every call is a few statements of microseconds. Errors: sqlite3.Error where
the file cannot be used.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, cast

from tahoe_s3.s3errors import Unavailable
from tahoe_s3.store.keys import ShareId
from tahoe_s3.store.leases import Lease, merge, pack, unpack

SCHEMA_VERSION = 2
IMMUTABLE = "immutable"
MUTABLE = "mutable"

_KINDS = {0: None, 1: IMMUTABLE, 2: MUTABLE}
KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}

#: A lease's end in shares.expirations: so many digits, later ones as the latest that they can say.
EXPIRATION_DIGITS = 12
_MAX_EXPIRATION_S = 10**EXPIRATION_DIGITS - 1

# `listed`: a listing told of the share first, so there may be a lease object that the listing missed, until somebody
# asked. latest_s and expirations say of a share's leases, its container's and the lease object's together, what SQL
# can count with (store/lease_account.py): when the last one ends, and when each does. NULL where any of them is not
# known. In overlays, the same for the lease object alone.
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE shares (
    si BLOB NOT NULL, shnum INTEGER NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    etag_is_sure INTEGER NOT NULL, modified_s INTEGER NOT NULL, kind INTEGER NOT NULL,
    data_length INTEGER, leases BLOB, seen INTEGER NOT NULL, latest_s INTEGER, expirations TEXT,
    listed INTEGER NOT NULL, PRIMARY KEY (si, shnum)) WITHOUT ROWID;
CREATE TABLE overlays (
    si BLOB PRIMARY KEY, etag TEXT NOT NULL, modified_s INTEGER NOT NULL, leases BLOB, seen INTEGER NOT NULL,
    latest_s INTEGER) WITHOUT ROWID;
"""
_PUT_SHARE = """
INSERT INTO shares VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (si, shnum) DO UPDATE SET
    size=excluded.size, etag=excluded.etag, etag_is_sure=excluded.etag_is_sure, modified_s=excluded.modified_s,
    kind=excluded.kind, data_length=excluded.data_length, leases=excluded.leases, seen=excluded.seen,
    latest_s=excluded.latest_s, expirations=excluded.expirations
"""
_SHARE_COLUMNS = "shnum, size, etag, etag_is_sure, modified_s, kind, data_length, leases"


@dataclass(frozen=True)
class ShareRow:
    """One share object.

    size: bytes of the object (container and all). etag_is_sure: False where only a listing told the ETag, which is
    a hint until the first GET or HEAD. kind, data_length, leases: None until the container was seen.
    """

    shnum: int
    size: int
    etag: str
    etag_is_sure: bool
    modified_s: int
    kind: str | None = None
    data_length: int | None = None
    leases: tuple[Lease, ...] | None = None


@dataclass(frozen=True)
class OverlayRow:
    """The overlay object of a storage index; leases is None where its content was not read yet."""

    etag: str
    modified_s: int
    leases: tuple[Lease, ...] | None


_Ends = tuple[Optional[int], Optional[str]]
_UNKNOWN_ENDS: _Ends = (None, None)


def _ends(leases: Iterable[Lease], overlay: OverlayRow | None) -> _Ends:
    """The last two columns of a share whose container has these leases. 0 is the end of the last of none."""
    if overlay is not None:
        if overlay.leases is None:
            return _UNKNOWN_ENDS
        leases = merge(leases, overlay.leases)
    ends = [lease.expiration_s for lease in leases]
    return max(ends, default=0), "".join(f"{min(end, _MAX_EXPIRATION_S):0{EXPIRATION_DIGITS}d}" for end in ends)


class _Closed:
    """In the place of the database of a closed index: what was under way when the node stopped, and asks again, ends
    with an error that says so."""

    def execute(self, *_: object) -> sqlite3.Cursor:
        raise Unavailable("the node has stopped", kind="local")

    def close(self) -> None:
        """Nothing is open."""


class Index:
    """The index of one bucket and prefix. `identity` names both; an index of another identity is emptied."""

    def __init__(self, path: Path, *, identity: str) -> None:
        """Open or make it. Emptied unless it was closed cleanly and belongs to `identity`."""
        self.path = path
        self._open()
        kept = self._meta("identity") == identity and self._meta("clean") == "1"
        if not kept or self._meta("schema") != str(SCHEMA_VERSION):
            kept = False
            self._close_files()
            self.delete(path)
            self._open()
            self._set_meta("identity", identity)
            self._set_meta("schema", str(SCHEMA_VERSION))
        #: Whether what an earlier run knew could be kept.
        self.was_kept = kept
        self._mark("0")
        self._seen = int(self._meta("seen") or "0")
        count, used, slots = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(size), 0), COUNT(DISTINCT si) FROM shares"
        ).fetchone()
        #: Number of shares, the bytes of their objects together, and how many storage indexes have shares (Tahoe
        #: calls each a bucket).
        self.share_count: int = count
        self.used_bytes: int = used
        self.slot_count: int = slots

    @staticmethod
    def delete(path: Path) -> None:
        """Remove the files of an index that is not open."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                # Another process works with it: it is not damaged, and not ours to remove.
                raise
            # A damaged file holds nothing that the bucket does not.
            self.delete(self.path)
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(str(self.path), isolation_level=None)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            # Durability is the bucket's: a crash empties the index anyway.
            db.execute("PRAGMA synchronous=OFF")
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("damaged")
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                db.executescript(_SCHEMA)
            for table in ("meta", "shares", "overlays"):
                db.execute(f"SELECT * FROM {table} LIMIT 1")
        except BaseException:
            db.close()
            raise
        return db

    def _close_files(self) -> None:
        self._db.close()
        self._db = cast(sqlite3.Connection, _Closed())

    def close(self) -> None:
        """Mark it clean, on disk, and close it. Idempotent is not needed: the Store calls it once."""
        # The mark must not reach the disk before the rows: a checkpoint with synchronous=FULL flushes the file, those
        # pages included that earlier checkpoints wrote without, but only if there is something to checkpoint.
        self._mark("0")
        self._mark("1")
        self._close_files()
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def abandon(self) -> None:
        """Close it without the clean mark, as a crash would: the next start rebuilds it."""
        self._close_files()

    def _mark(self, clean: str) -> None:
        """Write the mark, and everything before it, to the disk itself."""
        self._db.execute("PRAGMA synchronous=FULL")
        self._set_meta("clean", clean)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA synchronous=OFF")

    def _meta(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # for others of the store

    def recall(self, name: str) -> str | None:
        """What remember() was given; None after the index was emptied."""
        return self._meta(f"of {name}")

    def remember(self, name: str, value: str) -> None:
        """Keep it as long as the rows here."""
        self._set_meta(f"of {name}", value)

    def query(self, sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of a question of one's own. It must be short: the reactor waits."""
        return self._db.execute(sql, parameters).fetchall()

    # shares

    def shares(self, storage_index: bytes) -> list[ShareRow]:
        """The shares of a storage index, by number."""
        rows = self._db.execute(
            f"SELECT {_SHARE_COLUMNS} FROM shares WHERE si=? ORDER BY shnum", (storage_index,)
        )
        return [self._share_row(row) for row in rows]

    def share(self, storage_index: bytes, shnum: int) -> ShareRow | None:
        row = self._db.execute(
            f"SELECT {_SHARE_COLUMNS} FROM shares WHERE si=? AND shnum=?", (storage_index, shnum)
        ).fetchone()
        return None if row is None else self._share_row(row)

    @staticmethod
    def _share_row(row: tuple[int, int, str, int, int, int, int | None, bytes | None]) -> ShareRow:
        shnum, size, etag, sure, modified_s, kind, data_length, leases = row
        known = None if leases is None else tuple(unpack(leases))
        return ShareRow(shnum, size, etag, bool(sure), modified_s, _KINDS[kind], data_length, known)

    def put_share(self, storage_index: bytes, row: ShareRow, *, listed: bool = False) -> None:
        """What the bucket has acknowledged or shown. `listed`: a listing did, and here is its first row."""
        known = self.share(storage_index, row.shnum)
        is_first = known is None and not self._has_shares(storage_index)
        packed, ends = None, _UNKNOWN_ENDS
        if row.leases is not None:
            packed, ends = pack(row.leases), _ends(row.leases, self.overlay(storage_index))
        self._db.execute(
            _PUT_SHARE,
            (
                storage_index, row.shnum, row.size, row.etag, int(row.etag_is_sure), row.modified_s,
                KIND_NUMBERS[row.kind], row.data_length, packed, self._seen, *ends, int(listed),
            ),
        )  # fmt: skip
        self.slot_count += is_first
        self.share_count += known is None
        self.used_bytes += row.size - (0 if known is None else known.size)

    def drop_share(self, storage_index: bytes, shnum: int) -> None:
        known = self.share(storage_index, shnum)
        if known is not None:
            self._db.execute("DELETE FROM shares WHERE si=? AND shnum=?", (storage_index, shnum))
            self.share_count -= 1
            self.used_bytes -= known.size
            self.slot_count -= not self._has_shares(storage_index)

    def _has_shares(self, storage_index: bytes) -> bool:
        found = self._db.execute("SELECT 1 FROM shares WHERE si=? LIMIT 1", (storage_index,)).fetchone()
        return found is not None

    # leases

    def overlay(self, storage_index: bytes) -> OverlayRow | None:
        row = self._db.execute(
            "SELECT etag, modified_s, leases FROM overlays WHERE si=?", (storage_index,)
        ).fetchone()
        if row is None:
            return None
        return OverlayRow(row[0], row[1], None if row[2] is None else tuple(unpack(row[2])))

    def put_overlay(self, storage_index: bytes, row: OverlayRow) -> None:
        packed = None if row.leases is None else pack(row.leases)
        latest_s = _ends((), row)[0]
        self._db.execute(
            "INSERT OR REPLACE INTO overlays VALUES (?, ?, ?, ?, ?, ?)",
            (storage_index, row.etag, row.modified_s, packed, self._seen, latest_s),
        )
        self._overlay_changed(storage_index, row)

    def drop_overlay(self, storage_index: bytes) -> None:
        self._db.execute("DELETE FROM overlays WHERE si=?", (storage_index,))
        self._overlay_changed(storage_index, None)

    def may_have_missed_overlay(self, storage_index: bytes) -> bool:
        """Whether that there is no row of a lease object may be the fault of a listing that lagged."""
        found = self._db.execute("SELECT 1 FROM shares WHERE si=? AND listed LIMIT 1", (storage_index,)).fetchone()
        return found is not None

    def has_no_overlay(self, storage_index: bytes) -> None:
        """The bucket was asked for the lease object, and has none."""
        self._db.execute("UPDATE shares SET listed=0 WHERE si=?", (storage_index,))

    def _overlay_changed(self, storage_index: bytes, overlay: OverlayRow | None) -> None:
        """Its leases are those of every share there."""
        rows = self._db.execute(
            "SELECT shnum, leases FROM shares WHERE si=? AND leases IS NOT NULL", (storage_index,)
        ).fetchall()
        for shnum, packed in rows:
            self._db.execute(
                "UPDATE shares SET latest_s=?, expirations=? WHERE si=? AND shnum=?",
                (*_ends(unpack(packed), overlay), storage_index, shnum),
            )

    def leases(self, storage_index: bytes, shnum: int) -> list[Lease]:
        """The leases of a share as far as they are known: its container's and the overlay's, merged."""
        row, overlay = self.share(storage_index, shnum), self.overlay(storage_index)
        container = () if row is None or row.leases is None else row.leases
        return merge(container, () if overlay is None or overlay.leases is None else overlay.leases)

    # reconciliation with a listing

    def begin_listing(self) -> None:
        """From here on every row that is written or confirmed counts as seen by this listing."""
        self._seen += 1
        self._set_meta("seen", str(self._seen))

    def confirm_shares(self, found: Iterable[tuple[ShareId, int, str, int]]) -> None:
        """(share, size, ETag, modified_s) of one page. A row that changed since the listing began is immune.

        What is known of a share is kept while size and ETag are the same, else forgotten: somebody wrote it.
        """
        self._db.execute("BEGIN")
        try:
            for (storage_index, shnum), size, etag, modified_s in found:
                self._confirm_share(storage_index, shnum, size, etag, modified_s)
        finally:
            self._db.execute("COMMIT")

    def _confirm_share(self, storage_index: bytes, shnum: int, size: int, etag: str, modified_s: int) -> None:
        where = (storage_index, shnum)
        old = self._db.execute(
            "SELECT seen, size, etag FROM shares WHERE si=? AND shnum=?", where
        ).fetchone()
        if old is not None and old[0] == self._seen:
            return
        if old is not None and old[1] == size and old[2] == etag:
            self._db.execute(
                "UPDATE shares SET seen=?, modified_s=? WHERE si=? AND shnum=?", (self._seen, modified_s, *where)
            )
            return
        self.put_share(storage_index, ShareRow(shnum, size, etag, False, modified_s), listed=True)

    def confirm_overlays(self, found: Iterable[tuple[bytes, str, int]]) -> None:
        """(storage index, ETag, modified_s) of one page; the content is kept while the ETag is the same."""
        self._db.execute("BEGIN")
        try:
            for storage_index, etag, modified_s in found:
                old = self._db.execute("SELECT seen, etag FROM overlays WHERE si=?", (storage_index,)).fetchone()
                if old is not None and old[0] == self._seen:
                    continue
                if old is not None and old[1] == etag:
                    self._db.execute("UPDATE overlays SET seen=? WHERE si=?", (self._seen, storage_index))
                else:
                    self.put_overlay(storage_index, OverlayRow(etag, modified_s, None))
        finally:
            self._db.execute("COMMIT")

    def unseen_shares(self) -> Iterator[ShareId]:
        """The shares that a complete listing did not show. They are dropped only after HEADs said 404."""
        rows = self._db.execute("SELECT si, shnum FROM shares WHERE seen<?", (self._seen,)).fetchall()
        return (ShareId(si, shnum) for si, shnum in rows)

    def unseen_overlays(self) -> Iterator[bytes]:
        rows = self._db.execute("SELECT si FROM overlays WHERE seen<?", (self._seen,)).fetchall()
        return (row[0] for row in rows)
