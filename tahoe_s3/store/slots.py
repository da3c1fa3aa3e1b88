# SPDX-License-Identifier: GPL-2.0-or-later
"""One lock a storage index, and what is unsure: writes whose outcome nobody knows yet, and storage indexes that the
listing at start has not come to.

The lock covers lease changes, read-test-write and the final PUT or Complete of an upload; asking for shares and
reading never wait for it. A write with an unknown outcome (no answer, 5xx) makes its share unsure until a HEAD
settles it: before the next write under the lock, and before the share is shown or read again. So is what the index
does not cover yet (store/reconcile.py). So an error is never taken for an absence, nor for a success.

Owner: the Store. Thread: the reactor's. Limits: at most MAX_WAITERS operations wait for one lock; one more fails
with Busy.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator
from typing import Any, Callable, Protocol, TypeVar

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import Busy, NotFound, ObjectInfo, Page, S3Client
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key, si_text
from tahoe_s3.store.points import reach

T = TypeVar("T")

#: Operations that may wait for the lock of one storage index. A client has one at a time under way.
MAX_WAITERS = 256
#: Shares whose changes are told apart; beyond it all count as changed once.
MAX_GENERATIONS = 100_000
_UNSURE = "unsure shares"


class Knowledge(Protocol):
    """What the index covers: the store's Rebuild."""

    def covers(self, storage_index: bytes) -> bool: ...
    def look_up(self, storage_index: bytes) -> Deferred[None]: ...


class _Operation:
    """One operation, waiting or running, and the Deferred its caller has."""

    def __init__(self, run: Callable[[], Deferred[Any]]) -> None:
        self.run = run
        # A caller that goes away does not stop what may have begun: its cancellation only ends its own waiting.
        self.result: Deferred[Any] = Deferred(lambda _: None)


class _Lock:
    """The lock of one storage index, while something runs or waits. `is_draining`: _drain() is on the stack."""

    def __init__(self) -> None:
        self.waiting: deque[_Operation] = deque()
        self.is_held = False
        self.is_draining = False


class Slots:
    """Locks and unsure shares, both only while somebody needs them."""

    log = Logger()

    def __init__(self, client: S3Client, index: Index, knowledge: Knowledge) -> None:
        self._client = client
        self._index = index
        self._knowledge = knowledge
        self._locks: dict[bytes, _Lock] = {}
        self._unsure = _unsure_at_the_end_of_the_last_run(index)
        self._settling: dict[bytes, list[Deferred[None]]] = {}
        self._generations: dict[ShareId, int] = {}
        #: Called after the index was made right about a share that had been unsure.
        self.on_settled: Callable[[ShareId], None] = lambda share: None
        #: Called with what the bucket was found to have of a share, under its lock; fires with what it has when older
        #: writes that were applied late have been put right (store/undone.py).
        self.put_right: Callable[[ShareId, ShareRow | None], Deferred[ShareRow | None]] = _as_it_is
        self._changes = 0
        #: The generation of all shares that are not in _generations.
        self._forgotten = 0
        self._idle: list[Deferred[None]] = []

    # the lock

    def run(self, storage_index: bytes, operation: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run `operation` under the lock, after what is unsure of the storage index was settled.

        The operation is not cancelled when the returned Deferred is; its outcome is then only logged.
        """
        mine = _Operation(operation)
        lock = self._locks.get(storage_index)
        if lock is None:
            lock = self._locks[storage_index] = _Lock()
        if len(lock.waiting) >= MAX_WAITERS:
            message = f"{len(lock.waiting)} operations wait for storage index {si_text(storage_index)} already"
            mine.result.errback(Busy(message, kind="local"))
        else:
            lock.waiting.append(mine)
            self._drain(storage_index, lock)
        return mine.result

    def _drain(self, storage_index: bytes, lock: _Lock) -> None:
        """Start the next operation while none runs: in a loop, since many may end before they return."""
        if lock.is_draining:
            return
        lock.is_draining = True
        while lock.waiting and not lock.is_held:
            lock.is_held = True
            mine = lock.waiting.popleft()
            done: Deferred[object] = maybeDeferred(self.settle, storage_index)
            done.addCallback(_run, mine)
            done.addBoth(self._finish, storage_index, lock, mine)
        lock.is_draining = False
        if not lock.is_held:
            del self._locks[storage_index]
            self._tell_idle()

    def _finish(self, result: Any, storage_index: bytes, lock: _Lock, mine: _Operation) -> None:
        # The caller hears first, so that outcomes come in the order of the operations.
        if not mine.result.called:
            mine.result.callback(result)
        elif isinstance(result, Failure):
            self.log.error("an operation whose caller had gone failed: {error}", error=result.getErrorMessage())
        lock.is_held = False
        self._drain(storage_index, lock)

    def _tell_idle(self) -> None:
        if not self._locks:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def is_busy(self, storage_index: bytes) -> bool:
        """Whether something runs under this lock now."""
        return storage_index in self._locks

    def when_idle(self) -> Deferred[None]:
        """Fires when no operation runs or waits: what was begun has its outcome."""
        idle: Deferred[None] = Deferred()
        if self._locks:
            self._idle.append(idle)
        else:
            idle.callback(None)
        return idle

    # what is unsure

    def mark_unsure(self, storage_index: bytes, shnum: int) -> None:
        """A write of this share ended with an unknown outcome. Call it under the lock."""
        self._unsure.setdefault(storage_index, set()).add(shnum)
        self.changed(storage_index, shnum)
        reach("unsure.marked")

    def remember_unsure(self) -> None:
        """For the next run, if it keeps the index: it would take what may be gone for certain, and promise it."""
        unsure = [(si.hex(), shnum) for si, shnums in self._unsure.items() for shnum in sorted(shnums)]
        self._index.remember(_UNSURE, json.dumps(unsure))

    def changed(self, storage_index: bytes, shnum: int) -> None:
        """The share was written: what a request learned of it before is no longer to be believed."""
        self._changes += 1
        self._generations[ShareId(storage_index, shnum)] = self._changes
        if len(self._generations) > MAX_GENERATIONS:
            # Every share then seems to have changed once, which costs a request under way its answer at worst.
            self._forgotten = self._changes
            self._generations.clear()

    def generation(self, storage_index: bytes, shnum: int) -> int:
        """Changes with every write of the share."""
        return self._generations.get(ShareId(storage_index, shnum), self._forgotten)

    @property
    def unsure(self) -> list[bytes]:
        """The storage indexes that have unsure shares."""
        return list(self._unsure)

    def is_unsure(self, storage_index: bytes) -> bool:
        return storage_index in self._unsure

    def is_share_unsure(self, share: ShareId) -> bool:
        return share.shnum in self._unsure.get(share.storage_index, ())

    def settle(self, storage_index: bytes) -> Deferred[None]:
        """Ask the bucket about what is unsure or was not listed yet; no request where nothing is. Fails with an S3Error
        where it cannot."""
        waiter: Deferred[None] = Deferred(lambda _: None)
        if storage_index not in self._unsure and self._knowledge.covers(storage_index):
            waiter.callback(None)
            return waiter
        waiters = self._settling.get(storage_index)
        if waiters is not None:
            waiters.append(waiter)
            return waiter
        self._settling[storage_index] = [waiter]
        self._settle(storage_index).addBoth(self._settled, storage_index)
        return waiter

    def _settled(self, result: Failure | None, storage_index: bytes) -> None:
        for waiter in self._settling.pop(storage_index):
            if not waiter.called:
                waiter.callback(result)

    @inlineCallbacks
    def _settle(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        """Until nothing is unsure: a share may become so while another is asked about."""
        if not self._knowledge.covers(storage_index):
            yield self._knowledge.look_up(storage_index)
        while storage_index in self._unsure:
            shnum = min(self._unsure[storage_index])
            generation = self.generation(storage_index, shnum)
            found = yield self._look(storage_index, shnum)
            found = yield self.put_right(ShareId(storage_index, shnum), found)
            if self.generation(storage_index, shnum) == generation:
                self._adopt(storage_index, shnum, found)

    @inlineCallbacks
    def _look(self, storage_index: bytes, shnum: int) -> Generator[Deferred[Any], Any, ShareRow | None]:
        """What the bucket has. Some services answer 404 for a moment after a write; a share that is given up for that
        would be created anew by the next write, or come back later. So the listing has to agree."""
        key = share_key(storage_index, shnum)
        try:
            info: ObjectInfo = yield self._client.head(key, priority=0)
            return ShareRow.found(shnum, info)
        except NotFound:
            reach("unsure.asked")
            # Not one key: share 1 has a prefix of share 10's, and not every service sorts.
            page: Page = yield self._client.list_page(key, priority=0)
        for entry in page.entries:
            if entry.key == key:
                return ShareRow(shnum, entry.size, entry.etag, False, entry.modified_s)
        return None

    def _adopt(self, storage_index: bytes, shnum: int, found: ShareRow | None) -> None:
        """Believe the bucket. A share that came out whole though nobody was told so is kept: it loses nothing."""
        reach("unsure.before-row")
        if found is None:
            self._index.drop_share(storage_index, shnum)
        else:
            self._index.put_share(storage_index, found)
        self.changed(storage_index, shnum)
        unsure = self._unsure.get(storage_index, set())
        unsure.discard(shnum)
        if not unsure:
            self._unsure.pop(storage_index, None)
        self.on_settled(ShareId(storage_index, shnum))
        reach("unsure.settled")


def _as_it_is(_: ShareId, found: ShareRow | None) -> Deferred[ShareRow | None]:
    return succeed(found)


def _run(_: object, mine: _Operation) -> Deferred[Any]:
    return mine.run()


def _unsure_at_the_end_of_the_last_run(index: Index) -> dict[bytes, set[int]]:
    unsure: dict[bytes, set[int]] = {}
    for storage_index, shnum in json.loads(index.recall(_UNSURE) or "[]"):
        unsure.setdefault(bytes.fromhex(storage_index), set()).add(shnum)
    return unsure
