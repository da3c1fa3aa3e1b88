# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in the bucket, as far as this node knows: one SQLite file that can be deleted at any time.

It answers "which shares do you have", used bytes and leases with no request. It holds nothing that the bucket does
not hold: after an unclean stop it is emptied and filled again from a listing. Only what the bucket has acknowledged
is written here; what is being put, deleted or is unsure lives in memory (store/slots.py).

Owner: the Store. Thread: the reactor's; every call is a few statements of microseconds. Errors: sqlite3.Error where
the file cannot be used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, cast

from twisted.logger import Logger

from tahoe_s3.s3errors import Unavailable
from tahoe_s3.store.disk import BESIDE_A_DATABASE, delete_database, flush
from tahoe_s3.store.keys import LeaseId, ShareId
from tahoe_s3.store.leases import Lease, merge, pack, unpack
from tahoe_s3.store.points import reach

if TYPE_CHECKING:
    from tahoe_s3.client import ObjectInfo

SCHEMA_VERSION = 3
IMMUTABLE = "immutable"
MUTABLE = "mutable"

_KINDS = {0: None, 1: IMMUTABLE, 2: MUTABLE}
KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}

#: A lease's end in shares.expirations: so many digits, later ones as the latest that they can say.
EXPIRATION_DIGITS = 12
_MAX_EXPIRATION_S = 10**EXPIRATION_DIGITS - 1
# Most parameters of a statement: SQLite before 3.32 took 999.
_PARAMETERS = 500
# Rows that are looked at in one go, and how many there are of a storage index's first two bytes.
_STRETCH_ROWS = 5000
# What is behind the file's name in that of its checksum, which lies there while the index is closed.
_SUM = ".sum"
_FIRST_BYTES = 1 << 16
MAX_DOUBTED = 10_000
_DOUBTED = "doubted lease objects"

# `listed`: there may be a lease object that no listing has shown, until somebody asked: a listing told of the share
# first, or absences were not known when its storage index got its first share (Index.knows_absences). latest_s and
# expirations say of a share's leases, its container's and the lease object's together, what SQL can count with
# (store/lease_account.py): when the last one ends, and when each does. NULL where any of them is not known. In
# overlays, the same for the lease object alone.
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE shares (
    si BLOB NOT NULL, shnum INTEGER NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    etag_is_sure INTEGER NOT NULL, modified_s INTEGER NOT NULL, kind INTEGER NOT NULL,
    data_length INTEGER, leases BLOB, seen INTEGER NOT NULL, latest_s INTEGER, expirations TEXT,
    listed INTEGER NOT NULL, PRIMARY KEY (si, shnum)) WITHOUT ROWID;
CREATE TABLE overlays (
    si BLOB PRIMARY KEY, etag TEXT NOT NULL, modified_s INTEGER NOT NULL, leases BLOB, seen INTEGER NOT NULL,
    latest_s INTEGER, size INTEGER NOT NULL) WITHOUT ROWID;
"""
_PUT_SHARE = """
INSERT INTO shares VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (si, shnum) DO UPDATE SET
    size=excluded.size, etag=excluded.etag, etag_is_sure=excluded.etag_is_sure, modified_s=excluded.modified_s,
    kind=excluded.kind, data_length=excluded.data_length, leases=excluded.leases, seen=excluded.seen,
    latest_s=excluded.latest_s, expirations=excluded.expirations
"""
_PUT_OVERLAY = "INSERT OR REPLACE INTO overlays VALUES (?, ?, ?, ?, ?, ?, ?)"
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

    @classmethod
    def found(cls, shnum: int, info: ObjectInfo) -> ShareRow:
        """Of an object that a HEAD has shown."""
        return cls(shnum, info.size, info.etag, True, info.modified_s)


@dataclass(frozen=True)
class OverlayRow:
    """The overlay object of a storage index; leases is None where its content was not read yet. size: its bytes."""

    etag: str
    modified_s: int
    leases: tuple[Lease, ...] | None
    size: int = 0


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


def _sum_of(path: Path) -> bytes:
    """SHA-256 of a file, as text. A million shares are 90 MB and take a tenth of a second."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().encode("ascii") + b"\n"


class Index:
    """The index of one bucket and prefix. `identity` names both; an index of another identity is emptied."""

    log = Logger()

    def __init__(self, path: Path, *, identity: str) -> None:
        """Open or make it. Emptied unless it was closed cleanly and belongs to `identity`."""
        self.path = path
        self.identity = identity
        is_whole = self._is_whole()
        self._open()
        kept = is_whole and self._is_as_left(identity)
        if not kept:
            self._close_files()
            self.delete(path)
            self._open()
            self._set_meta("identity", identity)
            self._set_meta("schema", str(SCHEMA_VERSION))
        #: Whether what an earlier run knew could be kept.
        self.was_kept = kept
        #: Whether what has no row here is certainly not in the bucket. store/reconcile.py says so, at each start.
        self.knows_absences = True
        self._mark("0")
        self._sum_path.unlink(missing_ok=True)
        self._seen = int(self._meta("seen") or "0")
        count, used, slots = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(size), 0), COUNT(DISTINCT si) FROM shares"
        ).fetchone()
        #: Number of shares, the bytes of their objects together, and how many storage indexes have shares (Tahoe
        #: calls each a bucket).
        self.share_count: int = count
        self.used_bytes: int = used
        self.slot_count: int = slots
        #: The bytes of all lease objects together.
        self.lease_bytes: int = self._db.execute("SELECT COALESCE(SUM(size), 0) FROM overlays").fetchone()[0]
        #: Storage indexes whose lease object is not known to be in the bucket as its row says; at most MAX_DOUBTED.
        self.doubted_overlays: set[bytes] = {bytes.fromhex(si) for si in json.loads(self.recall(_DOUBTED) or "[]")}
        # What was deleted since the listing under way began: pages that were asked for before may still show it.
        self._deleted: set[ShareId | bytes] | None = None
        # Whether what has a row here is left as it is by the pages of this listing.
        self._only_adds = False

    @staticmethod
    def delete(path: Path) -> None:
        """Remove the files of an index that is not open."""
        path.with_name(path.name + _SUM).unlink(missing_ok=True)
        delete_database(path)

    @property
    def _sum_path(self) -> Path:
        return self.path.with_name(self.path.name + _SUM)

    def _is_whole(self) -> bool:
        """Whether the file has the very bytes that close() left: SQLite does not notice a row that rotted."""
        try:
            expected = self._sum_path.read_bytes()
        except FileNotFoundError:
            # It was not closed, or there is none.
            return False
        beside = [self.path.with_name(self.path.name + suffix) for suffix in BESIDE_A_DATABASE]
        is_whole = self.path.is_file() and _sum_of(self.path) == expected and not any(map(Path.exists, beside))
        if not is_whole:
            self.log.warn("{path} is damaged: it is made anew from the bucket", path=str(self.path))
        return is_whole

    def _is_as_left(self, identity: str) -> bool:
        """Whether a clean stop of the same node on the same bucket left it."""
        wanted = {"identity": identity, "clean": "1", "schema": str(SCHEMA_VERSION)}
        try:
            return all(self._meta(name) == value for name, value in wanted.items())
        except sqlite3.DatabaseError:
            return False

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
        self.remember(_DOUBTED, json.dumps(sorted(si.hex() for si in self.doubted_overlays)))
        # The mark must not reach the disk before the rows: a checkpoint with synchronous=FULL flushes the file, those
        # pages included that earlier checkpoints wrote without, but only if there is something to checkpoint.
        self._mark("0")
        reach("index.flushed")
        self._mark("1")
        reach("index.marked")
        self._close_files()
        reach("index.closed")
        with self._sum_path.open("wb") as file:
            file.write(_sum_of(self.path))
            file.flush()
            os.fsync(file.fileno())
        reach("index.summed")
        flush(self.path.parent)

    def abandon(self) -> None:
        """Close it without the clean mark, as a crash would: the next start rebuilds it."""
        self._close_files()

    def start_over(self, *, identity: str) -> None:
        """Its file is damaged: begin with an empty one in its place, in this same object. sqlite3.Error or OSError
        where that fails; then it may be called again."""
        self._close_files()
        self.delete(self.path)
        Index.__init__(self, self.path, identity=identity)

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
                KIND_NUMBERS[row.kind], row.data_length, packed, self._seen, *ends,
                int(listed or (is_first and not self.knows_absences)),
            ),
        )  # fmt: skip
        self.slot_count += is_first
        self.share_count += known is None
        self.used_bytes += row.size - (0 if known is None else known.size)

    def drop_share(self, storage_index: bytes, shnum: int, *, was_deleted: bool = True) -> None:
        """The bucket has it no more. `was_deleted` False: nobody knows why, so a listing that shows it is right."""
        if self._deleted is not None and was_deleted:
            self._deleted.add(ShareId(storage_index, shnum))
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
            "SELECT etag, modified_s, leases, size FROM overlays WHERE si=?", (storage_index,)
        ).fetchone()
        if row is None:
            return None
        return OverlayRow(row[0], row[1], None if row[2] is None else tuple(unpack(row[2])), row[3])

    def put_overlay(self, storage_index: bytes, row: OverlayRow) -> None:
        packed = None if row.leases is None else pack(row.leases)
        latest_s = _ends((), row)[0]
        self.lease_bytes += row.size - self._overlay_size(storage_index)
        self._db.execute(
            _PUT_OVERLAY, (storage_index, row.etag, row.modified_s, packed, self._seen, latest_s, row.size)
        )
        self._overlay_changed(storage_index, row)
        if row.etag:
            self.doubted_overlays.discard(storage_index)
        elif len(self.doubted_overlays) < MAX_DOUBTED:
            self.doubted_overlays.add(storage_index)

    def drop_overlay(self, storage_index: bytes) -> None:
        if self._deleted is not None:
            self._deleted.add(storage_index)
        self.lease_bytes -= self._overlay_size(storage_index)
        self._db.execute("DELETE FROM overlays WHERE si=?", (storage_index,))
        self.doubted_overlays.discard(storage_index)
        self._overlay_changed(storage_index, None)

    def doubt_overlay(self, storage_index: bytes, *, was_deleted: bool = False) -> None:
        """Nobody knows whether the bucket still has it. Leases that are known stay known, and go out with the next
        write, unless it `was_deleted`, perhaps; else the object is read before that, and a 404 counts as empty."""
        row = self.overlay(storage_index) or OverlayRow("", 0, None)
        leases = None if was_deleted else row.leases
        self.put_overlay(storage_index, replace(row, etag="", modified_s=0, leases=leases))

    def _overlay_size(self, storage_index: bytes) -> int:
        row = self._db.execute("SELECT size FROM overlays WHERE si=?", (storage_index,)).fetchone()
        return 0 if row is None else int(row[0])

    def may_have_missed_overlay(self, storage_index: bytes) -> bool:
        """Whether that there is no row of a lease object may be the fault of a listing that lagged. Of a storage index
        without shares nobody asks."""
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

    def begin_listing(self, *, only_adds: bool = False) -> None:
        """From here on every row that is written or confirmed counts as seen by this listing. only_adds: it is only to
        find what the one before, in the same run, did not show; what has been deleted since that one began stays so."""
        self._seen += 1
        self._set_meta("seen", str(self._seen))
        self._only_adds = only_adds
        if self._deleted is None or not only_adds:
            self._deleted = set()

    def has_seen(self, name: ShareId | LeaseId) -> bool:
        """Whether its row was written or confirmed since the last listing began."""
        if isinstance(name, ShareId):
            found = self._db.execute("SELECT seen FROM shares WHERE si=? AND shnum=?", name).fetchone()
        else:
            found = self._db.execute("SELECT seen FROM overlays WHERE si=?", name).fetchone()
        return found is not None and bool(found[0] == self._seen)

    def end_listing(self) -> None:
        """No more pages of it will come."""
        self._deleted = None

    def confirm_shares(self, found: Iterable[tuple[ShareId, int, str, int]]) -> None:
        """(share, size, ETag, modified_s) of one page. A row that changed since the listing began is immune.

        What is known of a share is kept while size and ETag are the same, else forgotten: somebody wrote it.
        """
        page = list(found)
        known: dict[tuple[bytes, int], tuple[int, int, str]] = {
            (si, shnum): (seen, size, etag)
            for si, shnum, seen, size, etag in self._look_up(
                "SELECT si, shnum, seen, size, etag FROM shares", [share.storage_index for share, *_ in page]
            )
        }
        slots = {si for si, _ in known}
        seen, count, used_bytes, slot_count = self._seen, 0, 0, 0
        same: list[tuple[Any, ...]] = []
        kept: list[tuple[Any, ...]] = []
        fresh: list[tuple[Any, ...]] = []
        for share, size, etag, modified_s in page:
            old = known.get(share)
            if (old is not None and old[0] == seen) or (self._deleted and share in self._deleted):
                continue
            known[share] = (seen, size, etag)
            if old is not None and old[1] == size and old[2] == etag:
                same.append((seen, modified_s, *share))
                continue
            if old is not None and self._only_adds:
                kept.append((seen, *share))
                continue
            fresh.append((*share, size, etag, 0, modified_s, 0, None, None, seen, None, None, 1))
            used_bytes += size - (0 if old is None else old[1])
            count += old is None
            if share.storage_index not in slots:
                slots.add(share.storage_index)
                slot_count += 1
        self._in_one_go(
            ("UPDATE shares SET seen=?, modified_s=? WHERE si=? AND shnum=?", same),
            ("UPDATE shares SET seen=? WHERE si=? AND shnum=?", kept),
            (_PUT_SHARE, fresh),
        )
        self.share_count += count
        self.used_bytes += used_bytes
        self.slot_count += slot_count

    def confirm_overlays(self, found: Iterable[tuple[bytes, int, str, int]]) -> None:
        """(storage index, size, ETag, modified_s) of one page; the content is kept while the ETag is the same."""
        page = list(found)
        known: dict[bytes, tuple[int, int, str]] = {
            si: (seen, size, etag)
            for si, seen, size, etag in self._look_up(
                "SELECT si, seen, size, etag FROM overlays", [storage_index for storage_index, *_ in page]
            )
        }
        lease_bytes = 0
        same: list[tuple[Any, ...]] = []
        kept: list[tuple[Any, ...]] = []
        fresh: list[tuple[Any, ...]] = []
        for storage_index, size, etag, modified_s in page:
            old = known.get(storage_index)
            if (old is not None and old[0] == self._seen) or (self._deleted and storage_index in self._deleted):
                continue
            known[storage_index] = (self._seen, size, etag)
            if old is not None and old[2] != etag and self._only_adds:
                kept.append((self._seen, storage_index))
                continue
            lease_bytes += size - (0 if old is None else old[1])
            if old is not None and old[2] == etag:
                same.append((self._seen, size, storage_index))
            else:
                fresh.append((storage_index, etag, modified_s, None, self._seen, None, size))
        self._in_one_go(
            ("UPDATE overlays SET seen=?, size=? WHERE si=?", same),
            ("UPDATE overlays SET seen=? WHERE si=?", kept),
            (_PUT_OVERLAY, fresh),
            # Its leases are those of every share there, and are not known now.
            ("UPDATE shares SET latest_s=NULL, expirations=NULL WHERE si=? AND expirations IS NOT NULL",
             [row[:1] for row in fresh]),
        )  # fmt: skip
        self.lease_bytes += lease_bytes
        self.doubted_overlays.difference_update(storage_index for storage_index, *_ in fresh)

    def _look_up(self, select: str, storage_indexes: list[bytes]) -> Iterator[tuple[Any, ...]]:
        """The rows of these. Keys are sorted by their text, in which digits come before letters: what a page shows is
        no range of the index."""
        wanted = list(dict.fromkeys(storage_indexes))
        for start in range(0, len(wanted), _PARAMETERS):
            some = wanted[start : start + _PARAMETERS]
            yield from self._db.execute(f"{select} WHERE si IN ({','.join('?' * len(some))})", some)

    def _in_one_go(self, *statements: tuple[str, list[tuple[Any, ...]]]) -> None:
        self._db.execute("BEGIN")
        try:
            for sql, rows in statements:
                self._db.executemany(sql, rows)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def unseen_shares(self) -> Iterator[list[ShareId]]:
        """The shares that a complete listing did not show, a stretch of the index at a time: a millisecond each, many
        of them without any. They are dropped only after HEADs said 404."""
        for rows in self._unseen("SELECT si, shnum FROM shares", self.share_count):
            yield [ShareId(si, shnum) for si, shnum in rows]

    def unseen_overlays(self) -> Iterator[list[bytes]]:
        """The same of lease objects."""
        for rows in self._unseen("SELECT si FROM overlays", self.slot_count):
            yield [row[0] for row in rows]

    def _unseen(self, select: str, count: int) -> Iterator[list[tuple[Any, ...]]]:
        # Storage indexes are hashes: about as many begin with any two bytes as with any other.
        pieces = min(_FIRST_BYTES, 1 + count // _STRETCH_ROWS)
        ends = [(_FIRST_BYTES * number // pieces).to_bytes(2, "big") for number in range(1, pieces)] + [b"\xff" * 17]
        start = b""
        for end in ends:
            yield self._db.execute(
                f"{select} WHERE si >= ? AND si < ? AND seen < ?", (start, end, self._seen)
            ).fetchall()
            start = end
