# SPDX-License-Identifier: GPL-2.0-or-later
"""Local copies of whole mutable share objects, so that reading or overwriting one need not fetch it again.

Each copy has the ETag under which the bucket holds the object, and a SHA-256 of its bytes. A copy is used only for
exactly that ETag, and only while its bytes still have that digest: before a write builds on it, always; before a
read, always where it is small, and where its file was touched since it was last looked at. A damaged one is dropped,
never an error: the bucket has the object.

The copies survive a clean stop: close() writes a table of them, the next start reads it and removes it at once, so
that after a crash there is none and everything here is removed.

Owner: the Store. Thread: the reactor's. Limits: budget_bytes in all, the least recently used go first. Errors:
OSError is the caller's only where a file of its own is concerned; trouble with the cache's folder is logged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from tahoe_s3.store.keys import ShareId, parse_key, share_key, si_text
from tahoe_s3.store.points import reach

DEFAULT_BUDGET_BYTES = 256 * 1024 * 1024
#: Copies up to this size are hashed at every read as well.
ALWAYS_HASHED_BYTES = 1024 * 1024
TABLE = "table.json"
TABLE_VERSION = 1
_CHUNK_BYTES = 1024 * 1024


@dataclass
class Copy:
    """One local copy. `looked_at` is the file's identity when its bytes were last known to be right."""

    path: Path
    size: int
    etag: str
    sha256: str
    looked_at: tuple[int, int, int] | None = None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> str:
    """Copy a file's bytes to a new file and give the SHA-256 of what was copied. The target must not exist."""
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("xb") as new:
        for chunk in iter(lambda: old.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
            new.write(chunk)
    return digest.hexdigest()


def is_full(error: OSError) -> bool:
    """Whether the local disk, or this user's part of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class MutableCache:
    """The copies in one folder, which is the cache's alone."""

    log = Logger()

    def __init__(self, cache_dir: Path, *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._dir = cache_dir
        self._budget_bytes = budget_bytes
        self._copies: OrderedDict[ShareId, Copy] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._damaged = 0
        cache_dir.mkdir(parents=True, exist_ok=True)
        self._load()
        self._remove_strangers()

    # what is there

    def find(self, share: ShareId, etag: str) -> Copy | None:
        """The copy of exactly this version, if there is one of the right size. Its bytes are not looked at."""
        copy = self._copies.get(share)
        if copy is None or copy.etag != etag:
            self._misses += 1
            return None
        try:
            right = copy.path.stat().st_size == copy.size
        except OSError:
            right = False
        if not right:
            self.damaged(share, copy)
            self._misses += 1
            return None
        self._copies.move_to_end(share)
        self._hits += 1
        return copy

    def find_verified(self, share: ShareId, etag: str) -> Copy | None:
        """As find(), for a read: the bytes are right as far as a look of microseconds to a millisecond can tell.

        A large copy is hashed here only where its file has changed since it was known to be right.
        """
        copy = self.find(share, etag)
        if copy is None:
            return None
        try:
            identity = _identity(copy.path)
            if identity == copy.looked_at and copy.size > ALWAYS_HASHED_BYTES:
                return copy
            right = file_digest(copy.path) == copy.sha256
        except OSError:
            right = False
        if not right:
            self.damaged(share, copy)
            return None
        copy.looked_at = identity
        return copy

    def damaged(self, share: ShareId, copy: Copy) -> None:
        """A copy whose bytes are not what they were: log it and drop it."""
        self._damaged += 1
        self.log.warn("the local copy of {key} was damaged, it is fetched again", key=share_key(*share))
        if self._copies.get(share) is copy:
            self.drop(share)

    # what comes and goes

    def put_bytes(self, share: ShareId, etag: str, data: bytes) -> Copy | None:
        """Keep a copy of these bytes; None where it does not fit or could not be written (which is logged)."""
        path = self._new_path(share)
        if len(data) > self._budget_bytes:
            self.drop(share)
            return None
        try:
            self._write(path, data)
        except OSError as error:
            self._failed(share, path, error)
            return None
        return self._keep(share, Copy(path, len(data), etag, hashlib.sha256(data).hexdigest()))

    def adopt(self, share: ShareId, etag: str, source: Path, *, sha256: str) -> Copy | None:
        """Keep this file, which is moved here (it must be on the same file system) and whose digest is given.

        None where it does not fit or could not be moved; then the source may still be where it was.
        """
        path = self._new_path(share)
        try:
            size = source.stat().st_size
            if size > self._budget_bytes:
                self.drop(share)
                return None
            source.replace(path)
        except OSError as error:
            self._failed(share, path, error)
            return None
        return self._keep(share, Copy(path, size, etag, sha256))

    def drop(self, share: ShareId) -> None:
        """Forget the share's copy, whatever its version."""
        copy = self._copies.pop(share, None)
        if copy is not None:
            self._bytes -= copy.size
            self._unlink(copy.path)

    def shed(self, size_bytes: int) -> bool:
        """Drop the least recently used copies until so many bytes are gone, since the disk is wanted for more than
        copies. Whether any went."""
        least = self._bytes - size_bytes
        any_went = False
        while self._copies and self._bytes > least:
            self.drop(next(iter(self._copies)))
            any_went = True
        return any_went

    @property
    def size_bytes(self) -> int:
        """Bytes of all copies."""
        return self._bytes

    def clear(self) -> None:
        """Remove everything: nothing here can be trusted, or is wanted."""
        self._copies.clear()
        self._bytes = 0
        self._remove_strangers()

    def close(self) -> None:
        """A clean stop: write down what is here for the next start."""
        entries = [
            {"key": share_key(*share), "file": copy.path.name, "size": copy.size, "etag": copy.etag,
             "sha256": copy.sha256}
            for share, copy in self._copies.items()
        ]  # fmt: skip
        temporary = self._dir / (TABLE + ".new")
        try:
            temporary.write_text(json.dumps({"version": TABLE_VERSION, "copies": entries}), "utf-8")
            reach("cache.written")
            temporary.replace(self._dir / TABLE)
            reach("cache.closed")
        except OSError as error:
            self.log.warn("cannot write down what is cached, it is fetched again: {error}", error=str(error))

    def stats(self) -> dict[str, int]:
        """Copies and their bytes now; hits, misses and damaged copies since the start."""
        return {
            "copies": len(self._copies), "bytes": self._bytes, "hits": self._hits, "misses": self._misses,
            "damaged": self._damaged,
        }  # fmt: skip

    # inside

    def _write(self, path: Path, data: bytes) -> None:
        """On a full disk it takes the place of others."""
        try:
            path.write_bytes(data)
        except OSError as error:
            if not is_full(error) or not self.shed(len(data)):
                raise
            path.write_bytes(data)

    def _new_path(self, share: ShareId) -> Path:
        # A name never used before: whoever has an old copy open or linked goes on seeing the old bytes.
        return self._dir / f"{si_text(share.storage_index)}.{share.shnum}.{secrets.token_hex(8)}"

    def _keep(self, share: ShareId, copy: Copy) -> Copy:
        self.drop(share)
        self._copies[share] = copy
        self._bytes += copy.size
        while self._bytes > self._budget_bytes:
            self.drop(next(iter(self._copies)))
        return copy

    def _failed(self, share: ShareId, path: Path, error: OSError) -> None:
        self.log.warn("cannot keep a local copy of {key}: {error}", key=share_key(*share), error=str(error))
        self._unlink(path)
        self.drop(share)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.log.warn("cannot remove {path}: {error}", path=str(path), error=str(error))

    def _load(self) -> None:
        table = self._dir / TABLE
        try:
            text = table.read_text("utf-8")
            table.unlink()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            self.log.warn("cannot read {path}, copies are fetched again: {error}", path=str(table), error=str(error))
            return
        try:
            document = json.loads(text)
            if document["version"] != TABLE_VERSION:
                return
            for entry in document["copies"]:
                self._load_entry(entry)
        except (ValueError, KeyError, TypeError) as error:
            self.log.warn("{path} is damaged, copies are fetched again: {error}", path=str(table), error=repr(error))
            self._copies.clear()
            self._bytes = 0

    def _load_entry(self, entry: dict[str, Any]) -> None:
        share = parse_key(entry["key"])
        name, size, etag, sha256 = entry["file"], entry["size"], entry["etag"], entry["sha256"]
        plain = isinstance(name, str) and isinstance(etag, str) and isinstance(sha256, str) and type(size) is int
        if not isinstance(share, ShareId) or not plain or Path(name).name != name or size < 0:
            raise ValueError("an entry that was not written by close()")
        self._keep(share, Copy(self._dir / name, size, etag, sha256))

    def _remove_strangers(self) -> None:
        """Remove the files that no copy is in: those of a run that crashed, or of a table that was damaged."""
        known = {copy.path.name for copy in self._copies.values()}
        try:
            for path in self._dir.iterdir():
                if path.name not in known:
                    self._unlink(path)
        except OSError as error:
            self.log.warn("cannot tidy {path}: {error}", path=str(self._dir), error=str(error))
