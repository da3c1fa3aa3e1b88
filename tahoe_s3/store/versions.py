# SPDX-License-Identifier: GPL-2.0-or-later
"""Which version of a share's object is read, and what happens when the bucket has another one, or says 404.

Every GET of a share expects the ETag in the share's row, where a GET, HEAD or PUT told it; where only a listing did,
the first answer's ETag is taken over. An object that turns out to be another one is looked at with a HEAD under the
lock of its storage index (so that a write of our own that is under way is waited for) and read afresh. A 404 for a
share that the index knows is asked again, then reported as an error: it is never an absence.

Owner: the ReadCache. Thread: the reactor's. Errors: S3Error; ShareGone where the index no longer has the share.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Callable, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tahoe_s3.client import Changed, NotFound, ObjectInfo, S3Client, S3Error
from tahoe_s3.store.index import IMMUTABLE, Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.slots import Slots

T = TypeVar("T")

#: How often one read starts over because the object is another one than the index said.
MAX_CHANGES = 3
#: How often one read starts over because shares were written here while it was under way.
MAX_RESTARTS = 16
#: Seconds before a read that met a 404 asks again.
NOT_FOUND_DELAYS_S = (0.2, 1.0, 3.0)


class ShareGone(KeyError):
    """The share is not, or no longer, in the index: it was deleted."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "no such share"


def is_another_version(error: S3Error) -> bool:
    """Another ETag; or the object ends before the range that was asked for (InvalidRange)."""
    return isinstance(error, Changed) or error.status == 416


class Restart(Exception):
    """What was being read was replaced by this node meanwhile: read it again. Never leaves the store."""


class Shared(Generic[T]):
    """One outcome for several who wait; that one of them gives up does not disturb the others."""

    def __init__(self, work: Deferred[T] | None = None) -> None:
        self._waiters: list[Deferred[T]] = []
        self._result: Any = None
        self.done = False
        if work is not None:
            self.follow(work)

    def follow(self, work: Deferred[T]) -> None:
        """Take over its outcome, for the first and only time."""
        work.addBoth(self.finish)

    def finish(self, result: Any) -> None:
        """This is the outcome: a result, or a Failure."""
        self.done, self._result = True, result
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(result)

    def wait(self) -> Deferred[T]:
        """The outcome, now or later."""
        waiter: Deferred[T] = Deferred(lambda _: None)
        if self.done:
            waiter.callback(self._result)
        else:
            self._waiters.append(waiter)
        return waiter


@inlineCallbacks
def all_of(work: Sequence[Deferred[T]]) -> Generator[Deferred[Any], Any, list[T]]:
    """Wait until all have ended, then give their results, or raise what the first of them in order failed with."""
    results = yield DeferredList(work, consumeErrors=True)
    for succeeded, value in results:
        if not succeeded:
            failure: Failure = value
            failure.raiseException()
    return [value for _, value in results]


class Versions:
    """Runs reads against the version that the index names, and finds out where that is not the bucket's."""

    def __init__(
        self, client: S3Client, index: Index, slots: Slots, *, reactor: Any,
        on_vanished: Callable[[bytes, int], None], on_changed: Callable[[ShareId], None],
    ) -> None:  # fmt: skip
        self._client = client
        self._index = index
        self._slots = slots
        self._reactor = reactor
        self._on_vanished = on_vanished
        self._on_changed = on_changed
        self._refreshing: dict[tuple[ShareId, str], Shared[None]] = {}

    @inlineCallbacks
    def with_row(
        self, share: ShareId, attempt: Callable[[ShareRow], Deferred[T]], *, locked: bool = False
    ) -> Generator[Deferred[Any], Any, T]:
        """Run `attempt` with the share's row, again where it meets Changed, NotFound or Restart.

        `locked`: the caller holds the lock of the storage index.
        """
        changes = missing = restarts = 0
        while True:
            row = self._index.share(*share)
            if row is None:
                raise ShareGone(f"the share {share_key(*share)} is no longer here")
            try:
                try:
                    result: T = yield attempt(row)
                    return result
                except S3Error as error:
                    if not is_another_version(error):
                        raise
                    changes += 1
                    if changes > MAX_CHANGES:
                        raise
                    yield self._refresh_locked(share, row.etag) if locked else self._refresh(share, row.etag)
            except NotFound:
                if missing == len(NOT_FOUND_DELAYS_S):
                    self._on_vanished(*share)
                    raise
                yield deferLater(self._reactor, NOT_FOUND_DELAYS_S[missing], lambda: None)
                missing += 1
            except Restart:
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise Changed("it was overwritten again and again while it was read",
                                  operation="GetObject", key=share_key(*share), kind="changed") from None

    def snapshot(self, share: ShareId) -> object:
        """Equal as long as the share is the same version."""
        row = self._index.share(*share)
        return self._slots.generation(*share), None if row is None else row.etag

    def is_unanswered(self, share: ShareId, etag: str) -> bool:
        """Of a GET that expected no ETag: whether it brought another version than the one that has become known since.
        Then a read-test-write has begun since, and this is what it has put and not answered yet."""
        row = self._index.share(*share)
        return row is not None and row.etag_is_sure and row.etag != etag

    def learn(
        self, share: ShareId, generation: int, *, etag: str, size: int, modified_s: int | None = None,
        kind: str | None = None, **details: Any,
    ) -> bool:  # fmt: skip
        """Note what a GET told of the object. False, and nothing noted, where the share was written since
        `generation` was taken. `details` are fields of the row that are known now (data_length, leases).
        """
        row = self._index.share(*share)
        if row is None or self._slots.generation(*share) != generation:
            return False
        fresh = replace(row, size=size, etag=etag, etag_is_sure=True, **details)
        if modified_s:
            # 0 where the answer did not tell.
            fresh = replace(fresh, modified_s=modified_s)
        if kind is not None:
            fresh = replace(fresh, kind=kind)
        if fresh != row:
            self._index.put_share(share.storage_index, fresh)
        return True

    def _refresh(self, share: ShareId, seen_etag: str) -> Deferred[None]:
        where = (share, seen_etag)
        shared = self._refreshing.get(where)
        if shared is None:
            work = self._slots.run(share.storage_index, lambda: self._refresh_locked(share, seen_etag))

            def ended(result: Any) -> Any:
                self._refreshing.pop(where, None)
                return result

            shared = Shared(work.addBoth(ended))
            if not shared.done:
                self._refreshing[where] = shared
        return shared.wait()

    @inlineCallbacks
    def _refresh_locked(self, share: ShareId, seen_etag: str) -> Generator[Deferred[Any], Any, None]:
        """Ask the bucket what it has, unless the index has learned something newer than `seen_etag` meanwhile."""
        row = self._index.share(*share)
        if row is None or row.etag != seen_etag:
            return
        info: ObjectInfo = yield self._client.head(share_key(*share), priority=0)
        row = self._index.share(*share)
        if row is None or row.etag != seen_etag:
            return
        found: ShareRow | None = yield self._slots.put_right(share, ShareRow.found(share.shnum, info))
        row = self._index.share(*share)
        if row is None or row.etag != seen_etag or found is None:
            return
        fresh = found
        if row.kind == IMMUTABLE and row.size == fresh.size:
            # Uploaded again: the same share, as far as its length tells.
            fresh = replace(fresh, kind=row.kind, data_length=row.data_length)
        self._index.put_share(share.storage_index, fresh)
        self._slots.changed(*share)
        self._on_changed(share)
