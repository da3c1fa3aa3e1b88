# SPDX-License-Identifier: GPL-2.0-or-later
"""One lock a storage index, and what is unsure: writes whose outcome nobody knows yet.

The lock covers lease changes, read-test-write and the final PUT or Complete of an upload; asking for shares and
reading never wait for it. A write with an unknown outcome (no answer, 5xx) makes its share unsure until a HEAD
settles it: before the next write under the lock, and before the share is shown or read again. So an error is never
taken for an absence, nor for a success.

Owner: the Store. Thread: the reactor's. Limits: at most MAX_WAITERS operations wait for one lock; one more fails
with Busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any, Callable, TypeVar

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import Busy, NotFound, ObjectInfo, S3Client
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key, si_text

T = TypeVar("T")

#: Operations that may wait for the lock of one storage index. A client has one at a time under way.
MAX_WAITERS = 256


class _Operation:
    """One operation, waiting or running, and the Deferred its caller has."""

    def __init__(self, run: Callable[[], Deferred[Any]]) -> None:
        self.run = run
        # A caller that goes away does not stop what may have begun: its cancellation only ends its own waiting.
        self.result: Deferred[Any] = Deferred(lambda _: None)


class Slots:
    """Locks and unsure shares, both only while somebody needs them."""

    log = Logger()

    def __init__(self, client: S3Client, index: Index) -> None:
        self._client = client
        self._index = index
        self._waiting: dict[bytes, deque[_Operation]] = {}
        self._unsure: dict[bytes, set[int]] = {}
        self._settling: dict[bytes, list[Deferred[None]]] = {}
        self._generations: dict[ShareId, int] = {}
        self._idle: list[Deferred[None]] = []

    # the lock

    def run(self, storage_index: bytes, operation: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run `operation` under the lock, after what is unsure of the storage index was settled.

        The operation is not cancelled when the returned Deferred is; its outcome is then only logged.
        """
        mine = _Operation(operation)
        queue = self._waiting.get(storage_index)
        if queue is None:
            self._waiting[storage_index] = deque()
            self._start(storage_index, mine)
        elif len(queue) >= MAX_WAITERS:
            message = f"{len(queue)} operations wait for storage index {si_text(storage_index)} already"
            mine.result.errback(Busy(message, kind="local"))
        else:
            queue.append(mine)
        return mine.result

    def _start(self, storage_index: bytes, mine: _Operation) -> None:
        done: Deferred[object] = maybeDeferred(self.settle, storage_index)
        done.addCallback(lambda _: mine.run())
        done.addBoth(self._finish, storage_index, mine)

    def _finish(self, result: Any, storage_index: bytes, mine: _Operation) -> None:
        queue = self._waiting[storage_index]
        if queue:
            self._start(storage_index, queue.popleft())
        else:
            del self._waiting[storage_index]
        if mine.result.called:
            if isinstance(result, Failure):
                self.log.error("an operation whose caller had gone failed: {error}", error=result.getErrorMessage())
        else:
            mine.result.callback(result)
        if not self._waiting:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def is_busy(self, storage_index: bytes) -> bool:
        """Whether something runs under this lock now."""
        return storage_index in self._waiting

    def when_idle(self) -> Deferred[None]:
        """Fires when no operation runs or waits: what was begun has its outcome."""
        idle: Deferred[None] = Deferred()
        if self._waiting:
            self._idle.append(idle)
        else:
            idle.callback(None)
        return idle

    # what is unsure

    def mark_unsure(self, storage_index: bytes, shnum: int) -> None:
        """A write of this share ended with an unknown outcome. Call it under the lock."""
        self._unsure.setdefault(storage_index, set()).add(shnum)
        self.changed(storage_index, shnum)

    def changed(self, storage_index: bytes, shnum: int) -> None:
        """The share was written: what a request learned of it before is no longer to be believed."""
        share = ShareId(storage_index, shnum)
        self._generations[share] = self._generations.get(share, 0) + 1
        if len(self._generations) > 100_000:
            self._generations = {key: count for key, count in self._generations.items() if self._in_use(key)}

    def _in_use(self, share: ShareId) -> bool:
        return share.storage_index in self._waiting or share.storage_index in self._unsure

    def generation(self, storage_index: bytes, shnum: int) -> int:
        """Changes with every write of the share."""
        return self._generations.get(ShareId(storage_index, shnum), 0)

    def is_unsure(self, storage_index: bytes) -> bool:
        return storage_index in self._unsure

    def settle(self, storage_index: bytes) -> Deferred[None]:
        """Ask the bucket about what is unsure; no request where nothing is. Fails with an S3Error where it cannot."""
        waiter: Deferred[None] = Deferred(lambda _: None)
        if storage_index not in self._unsure:
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
        for shnum in sorted(self._unsure.get(storage_index, ())):
            generation = self.generation(storage_index, shnum)
            found: ObjectInfo | None
            try:
                found = yield self._client.head(share_key(storage_index, shnum), priority=0)
            except NotFound:
                found = None
            if self.generation(storage_index, shnum) == generation:
                self._adopt(storage_index, shnum, found)

    def _adopt(self, storage_index: bytes, shnum: int, found: ObjectInfo | None) -> None:
        """Believe the bucket. A share that came out whole though nobody was told so is kept: it loses nothing."""
        if found is None:
            self._index.drop_share(storage_index, shnum)
        else:
            row = ShareRow(shnum, found.size, found.etag, True, found.modified_s)
            self._index.put_share(storage_index, row)
        self.changed(storage_index, shnum)
        unsure = self._unsure.get(storage_index, set())
        unsure.discard(shnum)
        if not unsure:
            self._unsure.pop(storage_index, None)
