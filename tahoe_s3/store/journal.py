# SPDX-License-Identifier: GPL-2.0-or-later
"""What must outlive this process about keys in doubt: those of which the service may yet apply an older write.

One SQLite file of a few rows, written with a flush each time, and a folder with the acknowledged versions of mutable
shares (hard links, so no byte is copied as long as another copy exists). They are made when there is trouble, and gone
after a stop that leaves none: written when a key in doubt is written again, before an expiry deletes, at a start after
a crash, and at a stop that leaves doubts. store/late.py says what is written and what a start does with it. All of it
may be deleted while the node is stopped; then what a service applies late is not found.

Owner: LateWrites. Thread: the reactor's; rows and files are flushed in its thread pool, one batch at a time, where the
reactor has one. Errors: OSError where it cannot be opened or written, and nothing of that batch is kept then; a damaged
file is made anew (`was_damaged`). Times are seconds since the epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from tahoe_s3.store.disk import delete_database, flush, off_reactor
from tahoe_s3.store.leases import Lease, pack, unpack
from tahoe_s3.store.versions import Shared

JOURNAL: Final = "late.sqlite"
COPIES: Final = "late"
_SCHEMA_VERSION: Final = "1"
_SCHEMA: Final = """
BEGIN;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (
    key TEXT PRIMARY KEY, doubted_s REAL NOT NULL, may_be_deleted INTEGER NOT NULL, etag TEXT, size INTEGER,
    leases BLOB, file TEXT, sha256 TEXT) WITHOUT ROWID;
COMMIT;
"""


@dataclass(frozen=True)
class Kept:
    """The version of an object that was acknowledged: what must be in the bucket.

    leases: those of a lease object or of an immutable share's container; None for a mutable share. file, sha256: the
    name of its copy in the journal's folder, and the digest of its bytes in hexadecimal; None where there is no copy.
    """

    etag: str
    size: int
    leases: tuple[Lease, ...] | None = None
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Entry:
    """One key. doubted_s: when a write of it last had no answer. may_be_deleted: that one, or another, deletes it."""

    doubted_s: float
    may_be_deleted: bool = False
    kept: Kept | None = None


class Journal:
    """See the module. `entries` is what the file said when it was opened, for the owner to take over."""

    log = Logger()

    def __init__(self, local_dir: Path, *, identity: str, reactor: Any) -> None:
        """Open or make it; emptied where it belongs to another bucket."""
        self._reactor = reactor
        self._path = local_dir / JOURNAL
        self._copies_dir = local_dir / COPIES
        self._identity = identity
        self.was_damaged = False
        self._db: sqlite3.Connection | None = None
        self.entries: dict[str, Entry] = {}
        #: When a node began to run here after one that was not stopped: every key is in doubt for a while.
        self.unclean_s: float | None = None
        #: The instances of this node (store/ownership.py) whose mark may be the newest in the bucket.
        self.instances: list[str] = []
        if self._path.exists():
            self._db = self._open(self._read)
        self._waiting: dict[str, Entry | None] = {}
        self._waiters: Shared[None] | None = None
        self._work: Shared[None] | None = None
        self._remove_strangers()

    # opening

    def _read(self, db: sqlite3.Connection) -> None:
        entries = dict(map(_entry_of, db.execute("SELECT * FROM keys")))
        meta = dict(db.execute("SELECT name, value FROM meta"))
        unclean_s, instances = json.loads(meta.get("unclean_s", "null")), json.loads(meta.get("instances", "[]"))
        self.unclean_s = None if unclean_s is None else float(unclean_s)
        self.instances = [str(instance) for instance in instances]
        self.entries = entries

    def _open(self, look: Callable[[sqlite3.Connection], None] = lambda _: None) -> sqlite3.Connection:
        """`look` at it before it is believed to be whole."""
        try:
            try:
                return self._connect(look)
            except (sqlite3.DatabaseError, ValueError, TypeError, struct.error) as error:
                if not _is_damage(error):
                    raise
                self.log.warn("{path} is damaged, and made anew: {error}", path=str(self._path), error=str(error))
            delete_database(self._path)
            self.was_damaged = True
            return self._connect(look)
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from None

    def _connect(self, look: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        # Used by one thread at a time, but not always the same. Nobody else opens it: who runs on this folder has the
        # index locked.
        db = sqlite3.connect(str(self._path), isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            is_new = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if is_new:
                db.executescript(_SCHEMA)
            mine = {"identity": self._identity, "schema": _SCHEMA_VERSION}
            if dict(db.execute("SELECT name, value FROM meta WHERE name IN ('identity', 'schema')")) != mine:
                db.execute("DELETE FROM keys")
                db.execute("DELETE FROM meta")
                db.executemany("INSERT INTO meta VALUES (?, ?)", mine.items())
            look(db)
            if is_new:
                flush(self._path.parent)
        except BaseException:
            db.close()
            raise
        return db

    def note_unclean(self, since_s: float) -> Deferred[None]:
        """From when on every key is in doubt. Fires when that is on the disk."""
        self.unclean_s = since_s
        return self.write({})

    # copies

    def copy_path(self, name: str) -> Path:
        return self._copies_dir / name

    def keep_file(self, path: Path) -> str:
        """A copy of a file that will not change any more; gives its name here. OSError where there can be none."""
        name = secrets.token_hex(12)
        self._copies_dir.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, self.copy_path(name))
        except OSError:
            # A file system without links.
            try:
                shutil.copyfile(path, self.copy_path(name))
            except OSError:
                self.drop_file(name)
                raise
        return name

    def drop_file(self, name: str | None) -> None:
        """Remove a copy that no row names."""
        if name is not None:
            try:
                self.copy_path(name).unlink(missing_ok=True)
            except OSError as error:
                self.log.warn("cannot remove a copy from {path}: {error}", path=str(self._copies_dir), error=str(error))

    def _remove_strangers(self) -> None:
        known = {entry.kept.file for entry in self.entries.values() if entry.kept is not None}
        for path in self._copies_dir.iterdir() if self._copies_dir.is_dir() else ():
            if path.name not in known:
                self.drop_file(path.name)

    # writing

    def write(self, changes: Mapping[str, Entry | None]) -> Deferred[None]:
        """Key -> its row, None for none any more. Fires when that is on the disk, the copies that it names too."""
        self._waiting.update(changes)
        if self._waiters is None:
            self._waiters = Shared()
        waiter = self._waiters.wait()
        if self._work is None:
            self._write_next()
        return waiter

    def _write_next(self) -> None:
        """All that has been waiting, in one go; then what has come meanwhile."""
        changes, self._waiting = self._waiting, {}
        waiters, self._waiters = self._waiters, None
        assert waiters is not None
        work = self._work = Shared(off_reactor(self._reactor, self._write_now, changes, self._meta()))

        def ended(result: Any) -> None:
            self._work = None
            if self._waiters is not None:
                self._write_next()
            waiters.finish(result)

        work.wait().addBoth(ended)

    def _meta(self) -> dict[str, str]:
        return {"unclean_s": json.dumps(self.unclean_s), "instances": json.dumps(self.instances)}

    def _write_now(self, changes: dict[str, Entry | None], meta: dict[str, str]) -> None:
        """In the pool. Only the connection and files are touched."""
        files = [entry.kept.file for entry in changes.values() if entry is not None and entry.kept is not None]
        names = [name for name in files if name is not None]
        for name in names:
            flush(self.copy_path(name))
        if names:
            flush(self._copies_dir)
        db = self._db = self._db or self._open()
        try:
            # An error rolls back, and is no sqlite3.Error, which would be the index's.
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(meta.items()))
                db.executemany("DELETE FROM keys WHERE key=?", [(key,) for key in changes])
                db.executemany(
                    "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [_row_of(key, entry) for key, entry in changes.items() if entry is not None],
                )
        except sqlite3.Error as error:
            if _is_damage(error):
                # The next batch finds a new one, and the owner puts all of it there again.
                self._db = None
                db.close()
                delete_database(self._path)
                self.was_damaged = True
            raise OSError(f"{self._path}: {error}") from None

    @property
    def is_made(self) -> bool:
        """Whether there is a file."""
        return self._db is not None

    def close(self) -> None:
        """After the last write() has fired. Where nothing is in doubt, nothing is left."""
        db, self._db = self._db, None
        if db is None:
            return
        is_empty = self.unclean_s is None and not db.execute("SELECT 1 FROM keys LIMIT 1").fetchone()
        db.close()
        if is_empty:
            delete_database(self._path)
            with contextlib.suppress(OSError):
                # Copies that could not be removed keep it.
                self._copies_dir.rmdir()

    def abandon(self) -> None:
        """Close it as it is, as a crash would."""
        db, self._db = self._db, None
        if db is not None:
            db.close()


def _entry_of(row: tuple[Any, ...]) -> tuple[str, Entry]:
    key, doubted_s, may_be_deleted, etag, size, leases, file, sha256 = row
    kept = None
    if etag is not None:
        kept = Kept(etag, size, None if leases is None else tuple(unpack(leases)), file, sha256)
    return key, Entry(doubted_s, bool(may_be_deleted), kept)


def _is_damage(error: Exception) -> bool:
    """Locked, full and the like are operational errors, and pass; so is a table that is missing."""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def _row_of(key: str, entry: Entry) -> tuple[Any, ...]:
    kept = entry.kept
    if kept is None:
        return (key, entry.doubted_s, int(entry.may_be_deleted), None, None, None, None, None)
    leases = None if kept.leases is None else pack(kept.leases)
    return (key, entry.doubted_s, int(entry.may_be_deleted), kept.etag, kept.size, leases, kept.file, kept.sha256)
