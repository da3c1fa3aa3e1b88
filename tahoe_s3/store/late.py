# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes that a service applies long after their sender has given them up, over what was put there since.

A PUT or DELETE that got no answer may still be under way inside the service. Nothing that only puts and gets can keep
it from undoing a later write of the same key, so it is found and made good: the bucket is asked again, minutes later,
about keys where that can have happened. Those are the keys of which an attempt had no answer, and that were written
again since (also by the next attempt's success); and those whose write failed with an unknown outcome, which may show
up yet. Without retries there is no request.

What is found to be undone: a mutable share is put again from its local copy; a lease object is written again with all
leases that are known; an immutable share is the same whoever stored it, but for the lease in its container, which then
goes to the lease object. What nobody has a copy of is taken as it is, and the operator told.

This needs the node to live: of what was under way when a node was killed nobody knows.

Owner: the Store. Thread: the reactor's. Errors: none leave it; a check that fails is made again with the next. Limits:
MAX_KEYS keys, the oldest forgotten first; three HEADs a key, in the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import NotFound, ObjectInfo, S3Error
from tahoe_s3.store.cache import file_digest
from tahoe_s3.store.index import IMMUTABLE, OverlayRow, ShareRow
from tahoe_s3.store.keys import LeaseId, ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import Lease
from tahoe_s3.store.objects import put_file
from tahoe_s3.store.points import reach

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: Seconds after which a key is looked at, and looked at again.
CHECKS_S = (60.0, 300.0, 900.0)
#: How long a write without an answer is thought to be possible still, in seconds.
LATE_S = 1800.0
MAX_KEYS = 10_000
BACKGROUND: Final = 2


class LateWrites:
    """See the module."""

    log = Logger()

    def __init__(self, store: Store) -> None:
        self._store = store
        #: Key -> when a write of it had no answer, the oldest first.
        self._doubts: OrderedDict[str, float] = OrderedDict()
        #: Key -> the number of its latest round of checks.
        self._rounds: dict[str, int] = {}
        self._serial = 0

    def wrote(self, key: str, *, is_in_doubt: bool, is_answered: bool) -> None:
        """A write of the key has ended. is_in_doubt: some attempt may be applied yet. is_answered: one was."""
        now_s = self._store.reactor.seconds()
        since_s = self._doubts.get(key)
        had_doubts = since_s is not None and now_s - since_s < LATE_S
        if is_in_doubt:
            self._doubts.pop(key, None)
            self._doubts[key] = now_s
            if len(self._doubts) > MAX_KEYS:
                self._doubts.popitem(last=False)
        elif since_s is not None and not had_doubts:
            del self._doubts[key]
        if had_doubts or not is_answered:
            self._begin_round(key)

    # checks

    def _begin_round(self, key: str) -> None:
        """From now on the key is looked at after each of CHECKS_S; an earlier round of it ends."""
        if parse_key(key) is None or (len(self._rounds) >= MAX_KEYS and key not in self._rounds):
            return
        self._serial += 1
        self._rounds[key] = self._serial
        self._schedule(key, self._serial, 0)

    def _schedule(self, key: str, serial: int, number: int) -> None:
        self._store.later(CHECKS_S[number], lambda: self._check(key, serial, number))

    def _check(self, key: str, serial: int, number: int) -> None:
        if self._rounds.get(key) != serial or self._store.is_stopping:
            return
        name = parse_key(key)
        assert name is not None
        checked: Deferred[Any] = self._store.slots.run(name.storage_index, lambda: self._look(name))
        checked.addCallback(self._add_leases, name.storage_index)
        checked.addErrback(self._cannot_tell, key)
        checked.addCallback(lambda _: self._checked(key, serial, number))
        self._store.in_background(checked)

    def _cannot_tell(self, failure: Failure, key: str) -> None:
        failure.trap(S3Error)
        self.log.warn("cannot tell whether {key} is as it was written: {error}", key=key, error=str(failure.value))

    def _checked(self, key: str, serial: int, number: int) -> None:
        if self._rounds.get(key) != serial:
            return
        if number + 1 < len(CHECKS_S):
            self._schedule(key, serial, number + 1)
        else:
            del self._rounds[key]

    def _look(self, name: ShareId | LeaseId) -> Deferred[list[Lease]]:
        """Under the lock. Fires with leases that are to be added to the lease object."""
        self._store.require_ready()
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

    # shares

    @inlineCallbacks
    def _look_at_share(self, share: ShareId) -> Generator[Deferred[Any], Any, list[Lease]]:
        store, key = self._store, share_key(*share)
        info: ObjectInfo | None = yield self._head(key)
        row = store.index.share(*share)
        if row is None or info is None:
            if info is not None:
                self.log.warn("{key} is in the bucket: a write that had no answer was applied later", key=key)
                self._adopt(share, ShareRow(share.shnum, info.size, info.etag, True, info.modified_s))
            elif row is not None and not (yield self._put_again(share, row)):
                store.vanished(*share)
            return []
        if info.etag == row.etag or (yield self._put_again(share, row)):
            return []
        fresh = ShareRow(share.shnum, info.size, info.etag, True, info.modified_s)
        if row.kind == IMMUTABLE and row.size == info.size:
            self.log.warn("{key} was stored once more by a write that had no answer", key=key)
            self._adopt(share, replace(fresh, kind=row.kind, data_length=row.data_length))
            return list(row.leases or ())
        if row.etag_is_sure:
            self.log.critical(
                "{key} was replaced by an older version, since the S3 service has applied a write that had no answer "
                "after a later one; there is no local copy to put it right from",
                key=key,
            )  # fmt: skip
        self._adopt(share, fresh)
        return []

    def _adopt(self, share: ShareId, row: ShareRow) -> None:
        self._store.index.put_share(share.storage_index, row)
        self._store.cache.drop(share)
        self._store.share_changed(*share)

    @inlineCallbacks
    def _put_again(self, share: ShareId, row: ShareRow) -> Generator[Deferred[Any], Any, bool]:
        """Put the version that was acknowledged, from its local copy. False where there is none."""
        store, key = self._store, share_key(*share)
        copy = store.cache.find(share, row.etag) if row.etag_is_sure else None
        if copy is None or file_digest(copy.path) != copy.sha256:
            return False
        reach("late.before-put")
        info: ObjectInfo = yield put_file(store.client, key, copy.path, part_size_bytes=store.part_size_bytes)
        reach("late.after-put")
        self.log.warn(
            "{key} was undone by a write that had no answer and was applied later; it is put right", key=key
        )  # fmt: skip
        self._adopt(share, replace(row, etag=info.etag, modified_s=info.modified_s))
        return True

    @inlineCallbacks
    def _add_leases(self, leases: list[Lease], storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        for lease in leases:
            yield self._store.overlay.add(storage_index, lease)

    # lease objects

    @inlineCallbacks
    def _look_at_leases(self, storage_index: bytes) -> Generator[Deferred[Any], Any, list[Lease]]:
        store, key = self._store, lease_key(storage_index)
        info: ObjectInfo | None = yield self._head(key)
        row = store.index.overlay(storage_index)
        if info is not None and (row is None or row.leases is None):
            # One that was deleted is back, or one that nobody has read: what it holds is read when it is needed.
            store.index.put_overlay(storage_index, OverlayRow(info.etag, info.modified_s, None, info.size))
        elif row is not None and row.leases and (info is None or info.etag != row.etag):
            if row.etag:
                self.log.warn("{key} was undone by a write that had no answer; it is written again", key=key)
            # Without an ETag its last write has had no answer: now it is known.
            yield store.overlay.write_again(storage_index)
        return []
