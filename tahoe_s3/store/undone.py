# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts right what a write that had no answer, and was applied later, has done to an object.

A mutable share is put again from its copy; a lease object is written again with all leases that are known; an
immutable share is the same whoever stored it, but for the lease in its container, which then goes to the lease object.
What nobody has a copy of is taken as it is, and the operator told.

Owner: LateWrites (store/late.py), which knows what must be there. Thread: the reactor's. All under the lock of the
storage index. Errors: S3Error, and OSError where the journal cannot be written.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from tahoe_s3.client import NotFound, ObjectInfo, Unavailable
from tahoe_s3.store.index import IMMUTABLE, MUTABLE, OverlayRow, ShareRow
from tahoe_s3.store.journal import Kept
from tahoe_s3.store.keys import LeaseId, ShareId, lease_key, share_key
from tahoe_s3.store.objects import get_pieces, put_file
from tahoe_s3.store.points import reach

if TYPE_CHECKING:
    from tahoe_s3.store.late import LateWrites
    from tahoe_s3.store.store import Store

BACKGROUND: Final = 2
#: Failures that say nothing of a file.
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Undone:
    """See the module."""

    log = Logger()

    def __init__(self, store: Store, late: LateWrites) -> None:
        self._store = store
        self._late = late

    def look(self, name: ShareId | LeaseId) -> Deferred[None]:
        """Ask the bucket about one object, and put it right."""
        if isinstance(name, ShareId):
            return self._look_at_share(name)
        return self._look_at_leases(name.storage_index)

    @inlineCallbacks
    def _head(self, key: str) -> Generator[Deferred[Any], Any, ObjectInfo | None]:
        try:
            info: ObjectInfo = yield self._store.client.head(key, priority=BACKGROUND)
        except NotFound:
            return None
        return info

    @inlineCallbacks
    def _require_ours(self) -> Generator[Deferred[Any], Any, None]:
        """Before something is put back of our own accord: what seems to be an older write of ours may be the newest of
        a node that has taken the bucket over. Unavailable where it is."""
        if self._store.watch.has_begun:
            doubt: str | None = yield self._store.check_still_ours(priority=0)
            if doubt is not None:
                raise Unavailable(doubt, kind="local")

    # shares

    @inlineCallbacks
    def put_right(self, share: ShareId, found: ShareRow | None) -> Generator[Deferred[Any], Any, ShareRow | None]:
        """What the bucket has, when it has what must be there; `found` is what it was found to have, None for no such
        object. The index is the caller's to mend."""
        key = share_key(*share)
        kept = self._late.kept(key)
        if kept is None:
            return found
        if found is not None and found.etag == kept.etag:
            return replace(found, etag_is_sure=True)
        if found is not None and (yield self._is_same(share, kept, found)):
            yield self._late.keep_again(key, replace(kept, etag=found.etag))
            return self._of_this_version(share, kept, replace(found, etag_is_sure=True))
        again: ShareRow | None = yield self._put_again(share, kept)
        if again is not None:
            return again
        if kept.leases is not None and found is None:
            if self._late.may_be_deleted(key):
                return None
            # Nobody but this node deletes it, and it has not: the service may lag. So it is no absence before it was
            # looked for as often as any other share.
            row = self._store.index.share(*share)
            self._store.vanished(*share)
            return row or ShareRow(share.shnum, kept.size, kept.etag, True, 0, IMMUTABLE)
        if kept.leases is not None and found is not None and found.size == kept.size:
            self.log.warn("{key} was stored once more by a write that had no answer", key=key)
            etag, slots = found.etag, self._store.slots
            # When this operation has given the lock back.
            self._store.in_background(
                slots.run(share.storage_index, lambda: self._add_leases(share, kept, etag))
            )
            return replace(found, kind=IMMUTABLE)
        self.log.critical(
            "{key} was replaced by an older version, or deleted, since the S3 service has applied a write that had no "
            "answer after a later one; there is no local copy to put it right from", key=key,
        )  # fmt: skip
        yield self._late.forget(key)
        return found

    @inlineCallbacks
    def put_back(self, share: ShareId) -> Generator[Deferred[Any], Any, ShareRow | None]:
        """A share that is not there although it was looked for over minutes: put it again. None where nobody has a
        copy, or any version may be there; then the bucket is believed."""
        key = share_key(*share)
        kept = self._late.kept(key)
        again: ShareRow | None = None if kept is None else (yield self._put_again(share, kept))
        if again is None:
            yield self._late.forget(key)
        return again

    @inlineCallbacks
    def _put_again(self, share: ShareId, kept: Kept) -> Generator[Deferred[Any], Any, ShareRow | None]:
        """Put the version that was acknowledged, from its copy. None where there is none."""
        store, key = self._store, share_key(*share)
        path: Path | None = yield self._copy(share, kept)
        if path is None:
            return None
        yield self._require_ours()
        reach("late.before-put")
        info: ObjectInfo = yield put_file(store.client, key, path, part_size_bytes=store.part_size_bytes)
        reach("late.after-put")
        yield self._late.keep_again(key, replace(kept, etag=info.etag))
        self.log.warn(
            "{key} was undone by a write that had no answer and was applied later; it is put right", key=key
        )  # fmt: skip
        kind = MUTABLE if kept.leases is None else IMMUTABLE
        fresh = ShareRow(share.shnum, kept.size, info.etag, True, info.modified_s, kind)
        return self._of_this_version(share, kept, fresh)

    def _of_this_version(self, share: ShareId, kept: Kept, fresh: ShareRow) -> ShareRow:
        """The row of the version that was kept, which has the ETag of `fresh`: what is known of it is known still."""
        row = self._store.index.share(*share)
        if row is None or row.etag != kept.etag:
            return fresh
        return replace(row, etag=fresh.etag, etag_is_sure=True, modified_s=fresh.modified_s)

    @inlineCallbacks
    def _is_same(self, share: ShareId, kept: Kept, found: ShareRow) -> Generator[Deferred[Any], Any, bool]:
        """Whether it is what was kept by another name: of an object of parts some services tell an ETag when it is
        completed that is not the object's (S3Proxy, gofakes3, rclone before 1.76). Its bytes tell."""
        store, digest = self._store, hashlib.sha256()
        if found.size != kept.size or kept.sha256 is None or kept.size <= store.part_size_bytes:
            return False
        yield get_pieces(store.client, share_key(*share), size=found.size, etag=found.etag, take=digest.update)
        return digest.hexdigest() == kept.sha256

    @inlineCallbacks
    def _copy(self, share: ShareId, kept: Kept) -> Generator[Deferred[Any], Any, Path | None]:
        """A file with the very bytes of this version: its own copy, or the cache's, which may be another file."""
        cached = self._store.cache.find(share, kept.etag)
        copies = [(self._late.copy_of(kept), kept.sha256)]
        if cached is not None:
            copies.append((cached.path, cached.sha256))
        for path, sha256 in copies:
            try:
                if path is not None and (yield self._late.digest_of(path)) == sha256:
                    return path
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                self.log.warn("a copy of {key} cannot be read: {error}", key=share_key(*share), error=str(error))
        return None

    @inlineCallbacks
    def _look_at_share(self, share: ShareId) -> Generator[Deferred[Any], Any, None]:
        store, key = self._store, share_key(*share)
        info: ObjectInfo | None = yield self._head(key)
        found = None if info is None else ShareRow.found(share.shnum, info)
        right: ShareRow | None = yield self.put_right(share, found)
        row = store.index.share(*share)
        if right is None:
            if row is not None:
                store.vanished(*share)
        elif row is None or row.etag != right.etag:
            if right is found:
                self.log.warn("{key} is in the bucket: a write that had no answer was applied later", key=key)
            store.index.put_share(share.storage_index, right)
            store.cache.drop(share)
            store.share_changed(*share)

    @inlineCallbacks
    def _add_leases(self, share: ShareId, kept: Kept, etag: str) -> Generator[Deferred[Any], Any, None]:
        """The leases to the lease object; then this version of the share is right as well. Under the lock."""
        key = share_key(*share)
        if self._late.kept(key) is kept:
            yield self._store.overlay.write(share.storage_index, list(kept.leases or ()))
            yield self._late.keep_again(key, replace(kept, etag=etag))

    # lease objects

    @inlineCallbacks
    def _look_at_leases(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        store, key = self._store, lease_key(storage_index)
        info: ObjectInfo | None = yield self._head(key)
        row = store.index.overlay(storage_index)
        if row is None or row.leases is None:
            if info is not None:
                # One that was deleted is back, or one that nobody has read: its content is read when it is needed.
                store.index.put_overlay(storage_index, OverlayRow(info.etag, info.modified_s, None, info.size))
            if self._late.kept_leases(storage_index):
                yield store.overlay.settle(storage_index)
        elif row.leases and (info is None or info.etag != row.etag):
            yield self._require_ours()
            if row.etag:
                self.log.warn("{key} was undone by a write that had no answer; it is written again", key=key)
            # Without an ETag its last write has had no answer: now it is known.
            yield store.overlay.write_again(storage_index)
