# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases added or renewed after the share objects were written: one small object a storage index.

The object is rewritten whole, so it is read first when its content is not known. Changes of one storage index that
arrive while a write is under way share the next write. Nothing is answered before the bucket has it. A lease object
that was there and now seems not to be is not taken for an empty one, since writing it anew would lose its leases.

Owner: the Store. Thread: the reactor's.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from allmydata.interfaces import NoSpace
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger

from tahoe_s3.client import Busy, GetResult, NotFound, ObjectInfo, Page, S3Client, S3Error, Unavailable
from tahoe_s3.store.index import Index, OverlayRow
from tahoe_s3.store.keys import lease_key, si_text
from tahoe_s3.store.leases import MAX_LEASES, Lease, OverlayError, merge, overlay_from_json, overlay_to_json
from tahoe_s3.store.points import reach
from tahoe_s3.store.slots import Slots

if TYPE_CHECKING:
    from tahoe_s3.store.late import LateWrites


class _Batch:
    """Leases that go out with the next write, and those who wait for it."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.waiters: list[Deferred[None]] = []


class Overlays:
    """Adds leases to the overlay objects, and reads and removes them."""

    log = Logger()

    def __init__(self, client: S3Client, index: Index, slots: Slots, late: LateWrites) -> None:
        self._client = client
        self._late = late
        self._index = index
        self._slots = slots
        self._next: dict[bytes, _Batch] = {}

    def add(self, storage_index: bytes, lease: Lease) -> Deferred[None]:
        """Add the lease to all shares of the storage index, or renew the one of the same renew secret.

        No request where there is no share. Fails with an S3Error, an OverlayError for a damaged object, or Tahoe's
        NoSpace where there are MAX_LEASES already.
        """
        waiter: Deferred[None] = Deferred(lambda _: None)
        batch = self._next.get(storage_index)
        if batch is None:
            batch = self._next[storage_index] = _Batch()
            batch.leases.append(lease)
            batch.waiters.append(waiter)
            written = self._slots.run(storage_index, lambda: self._write_next(storage_index))
            written.addBoth(self._tell, storage_index, batch)
        elif len(batch.waiters) >= MAX_LEASES:
            waiter.errback(Busy(f"{MAX_LEASES} leases wait for {si_text(storage_index)} already", kind="local"))
        else:
            batch.leases.append(lease)
            batch.waiters.append(waiter)
        return waiter

    def _tell(self, result: Any, storage_index: bytes, batch: _Batch) -> None:
        if self._next.get(storage_index) is batch:
            # It never got its turn (the queue was full, or what is unsure could not be settled).
            del self._next[storage_index]
        for waiter in batch.waiters:
            if not waiter.called:
                waiter.callback(result)

    def _write_next(self, storage_index: bytes) -> Deferred[None]:
        batch = self._next.pop(storage_index)
        if not self._index.shares(storage_index):
            return succeed(None)
        return self.write(storage_index, batch.leases)

    @inlineCallbacks
    def write(self, storage_index: bytes, leases: list[Lease]) -> Generator[Deferred[Any], Any, None]:
        """add(), for who has the lock, of several."""
        known = yield self.read(storage_index)
        merged = merge(known, leases)
        if len(merged) > MAX_LEASES:
            raise NoSpace(f"{si_text(storage_index)} has {MAX_LEASES} leases, which is the most there can be")
        yield self._put(storage_index, merged)

    def write_again(self, storage_index: bytes) -> Deferred[None]:
        """Put the leases that are known once more. Under the lock."""
        row = self._index.overlay(storage_index)
        return self._put(storage_index, [] if row is None or row.leases is None else list(row.leases))

    @inlineCallbacks
    def _put(self, storage_index: bytes, merged: list[Lease]) -> Generator[Deferred[Any], Any, None]:
        key, body = lease_key(storage_index), overlay_to_json(merged)
        must_keep = self._late.must_keep(key)
        reach("lease.before-put")
        try:
            info: ObjectInfo = yield self._client.put(key, body, content_type="application/json")
            reach("lease.after-put")
            if must_keep:
                yield self._late.keep(key, etag=info.etag, size=len(body), leases=merged)
        except (S3Error, OSError) as error:
            if not isinstance(error, S3Error) or error.outcome != "not_applied":
                # The object has either these leases or those before. All of them go out with the next write, so
                # none is lost whichever it is; without an ETag the next start reads the object anew.
                self._index.put_overlay(storage_index, OverlayRow("", 0, tuple(merged), len(body)))
            raise
        self._index.put_overlay(storage_index, OverlayRow(info.etag, info.modified_s, tuple(merged), len(body)))
        reach("lease.row")

    @inlineCallbacks
    def read(self, storage_index: bytes) -> Generator[Deferred[Any], Any, list[Lease]]:
        """The overlay's leases: from the index, or with one GET where its content is not known, or where only the
        listing that the index was built from says that there is none, which may have lagged. Under the lock."""
        row = self._index.overlay(storage_index)
        if row is None and not self._index.may_have_missed_overlay(storage_index):
            return []
        if row is not None and row.leases is not None:
            return list(row.leases)
        key = lease_key(storage_index)
        reach("lease.before-get")
        kept = self._late.kept_leases(storage_index)
        try:
            got = yield self._client.get(key)
        except NotFound:
            if kept:
                # Undone. They count all the same, and go out with the next write, or when it is looked after.
                self._index.put_overlay(storage_index, OverlayRow("", 0, kept))
                return list(kept)
            if row is None:
                self._index.has_no_overlay(storage_index)
                return []
            if row.etag and (yield self._is_listed(key)):
                raise Unavailable(f"{key} is listed, but reading it said that it is not there") from None
            if row.etag:
                self.log.critical("the lease object {key} has vanished from the bucket, and its leases", key=key)
            self._index.drop_overlay(storage_index)
            return []
        leases = _parse(key, got.data)
        reach("lease.after-get")
        merged = merge(leases, kept)
        etag = got.etag if merged == leases else ""
        self._index.put_overlay(storage_index, OverlayRow(etag, got.modified_s, tuple(merged), len(got.data)))
        return merged

    @inlineCallbacks
    def settle(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        """Ask the bucket what it has, and write what is missing there: of an object whose last write had no answer, or
        that an older write may have undone. Under the lock."""
        key, row = lease_key(storage_index), self._index.overlay(storage_index)
        known: tuple[Lease, ...] = () if row is None or row.leases is None else row.leases
        try:
            got: GetResult | None = yield self._client.get(key)
        except NotFound:
            got = None
        there = [] if got is None else _parse(key, got.data)
        merged = merge(there, known, self._late.kept_leases(storage_index))
        if merged != there and self._index.shares(storage_index):
            if self._late.kept_leases(storage_index):
                self.log.warn("{key} was undone by a write that had no answer; it is written again", key=key)
            yield self._put(storage_index, merged)
        elif got is None:
            self._index.drop_overlay(storage_index)
        else:
            self._index.put_overlay(storage_index, OverlayRow(got.etag, got.modified_s, tuple(there), len(got.data)))

    @inlineCallbacks
    def _is_listed(self, key: str) -> Generator[Deferred[Any], Any, bool]:
        """Services that lag answer 404 for what they list: an absence that loses leases needs both to agree."""
        page: Page = yield self._client.list_page(key, max_keys=1)
        return any(entry.key == key for entry in page.entries)

    @inlineCallbacks
    def delete(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        """Remove it, after the last share of the storage index has gone. Under the lock."""
        if self._index.overlay(storage_index) is None:
            return
        reach("lease.before-delete")
        try:
            yield self._client.delete(lease_key(storage_index))
            reach("lease.after-delete")
            yield self._late.forget(lease_key(storage_index))
        except (S3Error, OSError) as error:
            if not isinstance(error, S3Error) or error.outcome != "not_applied":
                self._index.doubt_overlay(storage_index, was_deleted=True)
            raise
        self._index.drop_overlay(storage_index)


def _parse(key: str, data: bytes) -> list[Lease]:
    try:
        return overlay_from_json(data)
    except OverlayError as error:
        raise OverlayError(f"{key}: {error}") from None
