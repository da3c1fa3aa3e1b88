# SPDX-License-Identifier: GPL-2.0-or-later
"""A Tahoe storage directory in a bucket: what the storage server works on.

Puts the parts together (client, index, locks, overlays, reads, mutable slots) and keeps what belongs to none of
them: the local folders, work in the background, shares that seem to have vanished.

Owner: S3StorageServer. Thread: the reactor's. Everything on local disk can be deleted while the node is stopped.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable

from allmydata.util.fileutil import get_available_space
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import NotFound, ObjectInfo, Priority, S3Client, S3Error, Unavailable
from tahoe_s3.config import S3Config
from tahoe_s3.store.cache import MutableCache
from tahoe_s3.store.health import Health
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key, si_text
from tahoe_s3.store.late import LateWrites
from tahoe_s3.store.learning import learn_leases
from tahoe_s3.store.mutable import MutableSlots
from tahoe_s3.store.overlay import Overlays
from tahoe_s3.store.ownership import OwnerMark
from tahoe_s3.store.points import reach
from tahoe_s3.store.reconcile import Rebuild
from tahoe_s3.store.slots import Slots
from tahoe_s3.store.space import Space
from tahoe_s3.store.watch import OwnerWatch
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
TODAY = "requests of today"


class Store:
    """The shares of one bucket and prefix. Made by store.opening, closed by the storage server.

    `problem` is None while the bucket can be used; else one sentence why nothing can be answered. Whoever sets it
    (store/opening.py) clears it; what the watch and the health of the service find goes before that. For the status
    page: `recent_errors`, (when, what) of the last troubles; `config`, what store.opening was given; `mark`, the
    owner's mark once it lies in the bucket.
    """

    log = Logger()

    def __init__(
        self, *, reactor: Any, client: S3Client, index: Index, local_dir: Path, part_size_bytes: int,
        capacity_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.reactor = reactor
        self.client = client
        self.index = index
        self.part_size_bytes = part_size_bytes
        self._start_problem: str | None = None
        self.watch = OwnerWatch(
            client, clock=reactor, later=self.later, in_background=self.in_background, on_lost=self._lost
        )
        self.health = Health(
            clock=reactor, later=self.later, in_background=self.in_background, place=lambda: self.watch.place,
            look=lambda: self.watch.look(priority=1),
        )
        self.recent_errors = self.health.recent_errors
        client.watch(before_write=self._about_to_write, on_outcome=self.health.heard)
        #: Called when this node may not write any more, to end what clients have begun.
        self.give_up: Callable[[S3Error], None] | None = None
        #: Called with the reason when the index turned out to be damaged; fills a new one from the bucket.
        self.mend_index: Callable[[str], None] | None = None
        self._is_mending = False
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
        self.space = Space(
            capacity_bytes=capacity_bytes,
            used_bytes=lambda: index.used_bytes + index.lease_bytes,
            is_known=lambda: self.problem is None and self.rebuild.answers_for_all,
            is_unsure=self.slots.is_share_unsure,
        )
        self.slots.on_settled = self.space.settled
        self.late = LateWrites(self, local_dir=local_dir)
        self.slots.put_right = self.late.undone.put_right
        self.overlay = Overlays(client, index, self.slots, self.late)
        self.reads = ReadCache(
            client, index, self.slots, reactor=reactor, on_vanished=self.vanished, budget_bytes=READ_BUDGET_BYTES
        )
        self.cache = MutableCache(self.cache_dir, budget_bytes=CACHE_BUDGET_BYTES)
        if not index.was_kept:
            self.cache.clear()
        self.mutable = MutableSlots(self)
        client.on_write = self.late.wrote
        self._uploading: Counter[bytes] = Counter()
        self._background: set[Deferred[Any]] = set()
        self._vanishing: set[ShareId] = set()
        self._timers: set[DelayedCall] = set()
        self._closed = False
        self._stopping = False
        self.config: S3Config | None = None
        self.mark: OwnerMark | None = None
        self._recall_today()

    def _recall_today(self) -> None:
        """Go on counting today's requests where the node's last run left off, if its index was kept."""
        text = self.index.recall(TODAY)
        if text is not None:
            try:
                self.client.counters.from_text(text, self.reactor.seconds())
            except ValueError:
                self.log.warn("what the index kept of today's requests cannot be read; they are counted from now on")

    @property
    def problem(self) -> str | None:
        return self.watch.lost or self.health.problem or self._start_problem

    @problem.setter
    def problem(self, sentence: str | None) -> None:
        if sentence is not None:
            self.health.note(sentence)
        self._start_problem = sentence

    def require_ready(self) -> None:
        """Raise Unavailable while the bucket cannot be used or has not been seen since the start: an error is not an
        absence."""
        if self._stopping:
            raise Unavailable("the node is stopping", kind="local")
        if self.problem is not None:
            raise Unavailable(self.problem, kind="local")
        if not self.incoming_dir.is_dir():
            self._restore_folders()

    def require_service(self) -> None:
        """Raise Unavailable while the service refuses this node, or the index is not what the bucket has: for those
        who go on with what they began before. Who reads a share may do so where another node writes."""
        problem = self.health.problem or self._start_problem
        if problem is not None:
            raise Unavailable(problem, kind="local")

    def _restore_folders(self) -> None:
        """Somebody has deleted the storage folder. The open index goes on without a name, until the node stops."""
        sentence = f"the folder {self.incoming_dir.parent} was deleted while the node runs"
        self.health.note(sentence)
        self.log.error("{sentence}; it is made anew, and the next start rebuilds the index", sentence=sentence)
        try:
            self.incoming_dir.mkdir(parents=True, exist_ok=True)
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{sentence} and cannot be made anew: {error}", kind="local") from None

    def refuse_more(self) -> None:
        """From here on nothing new is begun; what has begun goes on. The first step of stopping."""
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def check_still_ours(self, *, priority: Priority) -> Deferred[str | None]:
        """Ask the bucket whether this node may still write there; who deletes of its own accord asks right before.

        The answer tells the service's time too. Fires with None, or with the reason why nothing may be deleted; fails
        with an S3Error where nobody can tell.
        """
        return self.watch.look(priority=priority)

    def _about_to_write(self) -> None:
        """Before each request that changes the bucket."""
        if self.health.problem is not None:
            raise Unavailable(self.health.problem, kind="local")
        self.watch.about_to_write()

    def _lost(self, why: str) -> None:
        """The bucket is another's: what was begun ends now, and is left as it is there."""
        self.health.note(why)
        self.end_uploads(why)
        self.client.end_writes()

    def end_uploads(self, why: str) -> None:
        if self.give_up is not None:
            self.give_up(Unavailable(why, kind="local"))

    # what fails on this machine

    def note_failure(self, what: str, failure: Failure) -> None:
        """Something failed. Failures of the local disk and of the index are remembered; a damaged index is replaced.
        (What the service does wrong is noted where it is heard, and what clients ask wrongly is no trouble.)"""
        error = failure.value
        if not isinstance(error, (OSError, sqlite3.Error)):
            return
        self.health.note(f"{what}: {error}")
        # Disk full, locked and the like are subclasses, and pass.
        if type(error) is sqlite3.DatabaseError and not self._is_mending and self.mend_index is not None:
            self._is_mending = True
            why = str(error)
            self.log.critical(
                "the index {path} is damaged ({why}). It holds nothing that the bucket does not: it is thrown away and "
                "rebuilt from the bucket; until then clients get errors", path=str(self.index.path), why=why,
            )  # fmt: skip
            self.later(0, lambda: self._mend(why))

    def _mend(self, why: str) -> None:
        self.problem = f"the index was damaged ({why}) and is being rebuilt from the bucket"
        self.end_uploads(self.problem)
        self.in_background(self.slots.when_idle().addCallback(lambda _: self._mend_now(why)))

    def _mend_now(self, why: str) -> None:
        if self.mend_index is not None and not self._closed:
            self.mend_index(why)

    def mended(self) -> None:
        """The index is as good as new."""
        self._is_mending, self.problem = False, None

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

    def make_disk_room(self, size_bytes: int) -> None:
        """Have so many bytes free on the local disk, giving up copies of mutable shares; OSError where it is full."""
        free_bytes = self._disk_free_bytes()
        if size_bytes > free_bytes:
            self.cache.shed(size_bytes - free_bytes)
            if size_bytes > self._disk_free_bytes() and not (
                self.late.shed() and size_bytes <= self._disk_free_bytes()
            ):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def shed_copies(self) -> bool:
        """Give up all local copies, since the disk is full. Whether there were any."""
        any_cached, any_kept = self.cache.shed(self.cache.size_bytes), self.late.shed()
        return any_cached or any_kept

    def _disk_free_bytes(self) -> int:
        free_bytes = get_available_space(str(self.incoming_dir), 0)
        # None is a platform that cannot tell: then the write itself does.
        return sys.maxsize if free_bytes is None else int(free_bytes)

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
        reach("store.row-dropped")
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

        work.addErrback(self._background_failed)
        work.addBoth(ended)

    def _background_failed(self, failure: Failure) -> None:
        self.note_failure("work in the background", failure)
        self.log.failure("work in the background failed", failure=failure)

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
        if self.problem is not None:
            # Nothing that the bucket says now counts.
            self._schedule_check(share, number)
            return
        checked = self.slots.run(share.storage_index, lambda: self._check_locked(share, number))
        checked.addErrback(self._cannot_tell, share, number)
        checked.addCallback(self._checked, share, number)
        self.in_background(checked)

    def _cannot_tell(self, failure: Failure, share: ShareId, number: int) -> int:
        failure.trap(S3Error, OSError)
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
            # A HEAD has no words: a bucket that is gone says 404 too, and one that is another's has other shares.
            doubt: str | None = yield self.check_still_ours(priority=2)
            if doubt is not None:
                self.log.warn("{key} is not there, but it is kept: {doubt}", key=key, doubt=doubt)
                return number
            again: ShareRow | None = yield self.late.undone.put_back(share)
            if again is not None:
                self.index.put_share(share.storage_index, again)
                self.share_changed(*share)
                return None
            self.log.critical(
                "the share {key} has vanished from the bucket: {count} requests said so, over minutes",
                key=key, count=len(VANISH_CHECKS_S),
            )  # fmt: skip
            reach("vanish.before-drop")
            self.index.drop_share(*share, was_deleted=False)
            reach("vanish.dropped")
            self.share_changed(*share)
            return None
        if (info.size, info.etag) != (row.size, row.etag):
            found = ShareRow.found(share.shnum, info)
            fresh: ShareRow | None = yield self.slots.put_right(share, found)
            self.index.put_share(share.storage_index, fresh or found)
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
        reach("close.begun")
        if self.problem is not None:
            # What was begun cannot go well any more, and may take minutes to fail.
            yield self.client.close()
        yield self.slots.when_idle()
        reach("close.idle")
        while self._background:
            yield DeferredList(list(self._background))
        reach("close.quiet")
        is_clean = self._start_problem is None and self.watch.lost is None
        steps = self.reads.close, self.cache.close, self.client.close, self.late.close, self.slots.remember_unsure
        for step in steps:
            try:
                yield maybeDeferred(step)
            except Exception:
                self.log.failure("the store was not closed cleanly")
                is_clean = False
        reach("close.engine")
        self._close_index(is_clean=is_clean)

    def _close_index(self, *, is_clean: bool) -> None:
        try:
            if is_clean:
                self.index.remember(TODAY, self.client.counters.to_text(self.reactor.seconds()))
                self.rebuild.remember()
                reach("close.remembered")
                self.index.close()
                return
        except (sqlite3.Error, OSError):
            self.log.failure("the index cannot be marked clean; the next start rebuilds it")
        self.index.abandon()
