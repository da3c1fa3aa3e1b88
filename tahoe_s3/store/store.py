# SPDX-License-Identifier: GPL-2.0-or-later
"""A Tahoe storage directory in a bucket: what the storage server works on.

Puts the parts together (client, index, locks, overlays, reads, mutable slots) and keeps what belongs to none of
them: the local folders, work in the background, shares that seem to have vanished.

Owner: S3StorageServer. Thread: the reactor's. Everything on local disk can be deleted while the node is stopped.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import NotFound, ObjectInfo, Priority, S3Client, S3Error, Unavailable
from tahoe_s3.store.cache import MutableCache
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import OWNER_KEY, ShareId, share_key, si_text
from tahoe_s3.store.learning import learn_leases
from tahoe_s3.store.mutable import MutableSlots
from tahoe_s3.store.overlay import Overlays
from tahoe_s3.store.reconcile import Rebuild
from tahoe_s3.store.slots import Slots
from tahoe_s3.store.windows import ReadCache

#: Seconds after which an object that should be there and is not is asked for again. All must say 404 before the
#: share is dropped, since listings and reads of some services lag behind.
VANISH_CHECKS_S = (30.0, 120.0, 300.0)
#: Bytes of share data kept in memory for reads, and of whole mutable shares on local disk.
READ_BUDGET_BYTES = 64 * 1024 * 1024
CACHE_BUDGET_BYTES = 256 * 1024 * 1024
#: Folder names that opening.py and this file agree on, below the node's storage folder.
INCOMING = "incoming"
CACHE = "cache"
INDEX = "index.sqlite"


class Store:
    """The shares of one bucket and prefix. Made by store.opening, closed by the storage server.

    `problem` is None while the bucket can be used; else one sentence why nothing can be answered yet.
    """

    log = Logger()

    def __init__(
        self, *, reactor: Any, client: S3Client, index: Index, local_dir: Path, part_size_bytes: int
    ) -> None:
        self.reactor = reactor
        self.client = client
        self.index = index
        self.part_size_bytes = part_size_bytes
        self.problem: str | None = None
        #: Keys in the bucket that are not of our layout; left alone.
        self.foreign_keys = 0
        self.incoming_dir = local_dir / INCOMING
        self.cache_dir = local_dir / CACHE
        shutil.rmtree(self.incoming_dir, ignore_errors=True)
        self.incoming_dir.mkdir(parents=True, exist_ok=True)
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        #: How far the listing of the bucket has come that each start makes (store/reconcile.py).
        self.rebuild = Rebuild(self)
        self.slots = Slots(client, index, self.rebuild)
        self.overlay = Overlays(client, index, self.slots)
        self.reads = ReadCache(
            client, index, self.slots, reactor=reactor, on_vanished=self.vanished, budget_bytes=READ_BUDGET_BYTES
        )
        self.cache = MutableCache(self.cache_dir, budget_bytes=CACHE_BUDGET_BYTES)
        if not index.was_kept:
            self.cache.clear()
        self.mutable = MutableSlots(self)
        self._uploading: Counter[bytes] = Counter()
        self._background: set[Deferred[Any]] = set()
        self._vanishing: set[ShareId] = set()
        self._timers: set[DelayedCall] = set()
        self._closed = False
        self._stopping = False

    def require_ready(self) -> None:
        """Raise Unavailable while the bucket has not been seen since the start: an error is not an absence."""
        if self._stopping:
            raise Unavailable("the node is stopping", kind="local")
        if self.problem is not None:
            raise Unavailable(self.problem, kind="local")

    def refuse_more(self) -> None:
        """From here on nothing new is begun; what has begun goes on. The first step of stopping."""
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def check_still_ours(self, *, priority: Priority) -> Deferred[None]:
        """Ask the bucket whether this node may still write there; who deletes of its own accord asks right before.

        The answer tells the service's time too. Fails with NotFound where the owner's mark is gone: then another node
        may be about to take the bucket over; with another S3Error where nobody can tell.
        """
        return self.client.head(OWNER_KEY, priority=priority).addCallback(lambda _: None)

    @property
    def is_closed(self) -> bool:
        return self._closed

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Call `what` after a while, unless the store is closed by then."""
        timer: list[DelayedCall] = []

        def run() -> None:
            self._timers.discard(timer[0])
            what()

        if not self._closed:
            timer.append(self.reactor.callLater(delay_s, run))
            self._timers.add(timer[0])

    # the spool

    def spool_path(self, storage_index: bytes, shnum: int) -> Path:
        """The file of a share being uploaded. All lie in one folder: making and removing folders takes longer."""
        return self.incoming_dir / f"{si_text(storage_index)}.{shnum}"

    def drop_spool(self, storage_index: bytes, shnum: int) -> None:
        self.spool_path(storage_index, shnum).unlink(missing_ok=True)

    def upload_began(self, storage_index: bytes) -> None:
        """A share of this storage index is being uploaded, until upload_ended() is called as often."""
        self._uploading[storage_index] += 1

    def upload_ended(self, storage_index: bytes) -> None:
        self._uploading[storage_index] -= 1
        if not self._uploading[storage_index]:
            del self._uploading[storage_index]

    def is_uploading(self, storage_index: bytes) -> bool:
        return storage_index in self._uploading

    # changes

    def share_deleted(self, share: ShareId) -> None:
        """The bucket has deleted it. Under the lock."""
        self.index.drop_share(*share)
        self.cache.drop(share)
        self.share_changed(*share)

    def share_changed(self, storage_index: bytes, shnum: int) -> None:
        """After a write or delete of a share: nothing that was read of it before is used again."""
        self.slots.changed(storage_index, shnum)
        self.reads.forget(ShareId(storage_index, shnum))

    def in_background(self, work: Deferred[Any]) -> None:
        """Work that nobody waits for but close(). Its failure is logged."""
        self._background.add(work)

        def ended(result: Any) -> None:
            self._background.discard(work)

        work.addErrback(lambda failure: self.log.failure("work in the background failed", failure=failure))
        work.addBoth(ended)

    # what a container says

    def learn_leases(self, storage_index: bytes, shnum: int, *, priority: Priority = 1) -> Deferred[None]:
        """Read the leases in a share's container into the index (store/learning.py)."""
        return learn_leases(self, ShareId(storage_index, shnum), priority=priority)

    # shares that the index knows and the bucket seems to have lost

    def vanished(self, storage_index: bytes, shnum: int) -> None:
        """A share that should be there was not. It stays listed until repeated HEADs, minutes apart, said 404."""
        share = ShareId(storage_index, shnum)
        if share not in self._vanishing:
            self._vanishing.add(share)
            self._schedule_check(share, 0)

    @property
    def vanishing_count(self) -> int:
        """Shares that are being asked for because they seemed to be gone."""
        return len(self._vanishing)

    def _schedule_check(self, share: ShareId, number: int) -> None:
        self.later(VANISH_CHECKS_S[number], lambda: self._check(share, number))

    def _check(self, share: ShareId, number: int) -> None:
        checked = self.slots.run(share.storage_index, lambda: self._check_locked(share, number))
        checked.addErrback(self._cannot_tell, share, number)
        checked.addCallback(self._checked, share, number)
        self.in_background(checked)

    def _cannot_tell(self, failure: Failure, share: ShareId, number: int) -> int:
        failure.trap(S3Error)
        self.log.warn("cannot tell whether {key} is there: {error}", key=share_key(*share), error=str(failure.value))
        return number

    def _checked(self, again_as: int | None, share: ShareId, number: int) -> None:
        if again_as is None:
            self._vanishing.discard(share)
        else:
            self._schedule_check(share, again_as)

    @inlineCallbacks
    def _check_locked(self, share: ShareId, number: int) -> Generator[Deferred[Any], Any, int | None]:
        """One look; fires with the number of the next check, or None when it is settled."""
        row = self.index.share(*share)
        if row is None:
            return None
        key = share_key(*share)
        try:
            info: ObjectInfo = yield self.client.head(key, priority=2)
        except NotFound:
            if number + 1 < len(VANISH_CHECKS_S):
                return number + 1
            self.log.critical(
                "the share {key} has vanished from the bucket: {count} requests said so, over minutes",
                key=key, count=len(VANISH_CHECKS_S),
            )  # fmt: skip
            self.index.drop_share(*share, was_deleted=False)
            self.share_changed(*share)
            return None
        if (info.size, info.etag) != (row.size, row.etag):
            fresh = ShareRow(share.shnum, info.size, info.etag, True, info.modified_s)
            self.index.put_share(share.storage_index, fresh)
            self.share_changed(*share)
        return None

    # the end

    @inlineCallbacks
    def close(self) -> Generator[Deferred[Any], Any, None]:
        """Wait for what has begun, then stop the engine and mark the index clean. Never fails; once is enough."""
        if self._closed:
            return
        self.refuse_more()
        self._closed = True
        self.rebuild.stop()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self.problem is not None:
            # Nothing was begun but attempts to reach the bucket, which may take minutes.
            yield self.client.close()
        yield self.slots.when_idle()
        while self._background:
            yield DeferredList(list(self._background))
        is_clean = self.problem is None
        for step in (self.reads.close, self.cache.close, self.client.close, self.slots.remember_unsure):
            try:
                yield maybeDeferred(step)
            except Exception:
                self.log.failure("the store was not closed cleanly")
                is_clean = False
        self._close_index(is_clean=is_clean)

    def _close_index(self, *, is_clean: bool) -> None:
        try:
            if is_clean:
                self.rebuild.remember()
                self.index.close()
                return
        except (sqlite3.Error, OSError):
            self.log.failure("the index cannot be marked clean; the next start rebuilds it")
        self.index.abandon()
