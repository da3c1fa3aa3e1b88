# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding out what the index does not know of leases: those in a share's container, and the lease object.

Owner: the Store. Thread: the reactor's. No lock is held while the bucket is asked, so that clients do not wait for
work in the background; what changed meanwhile is not overwritten with what was read. Errors: S3Error, ShareGone,
DamagedContainerError and Tahoe's two for unknown containers, OverlayError. Requests: one GET for a share of up to
WHOLE_BYTES, two for a larger one, one for a lease object.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks

from tahoe_s3.client import Changed, GetResult, NotFound, ObjectInfo, Priority
from tahoe_s3.store.containers import (
    HEAD_BYTES,
    MUTABLE_DATA_OFFSET,
    DamagedContainerError,
    Head,
    parse_head,
    parse_leases,
)
from tahoe_s3.store.index import OverlayRow, ShareRow
from tahoe_s3.store.keys import ShareId, lease_key, share_key
from tahoe_s3.store.lease_policy import is_known
from tahoe_s3.store.leases import Lease, OverlayError, merge, overlay_from_json

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: An object up to this size is fetched whole to see its leases.
WHOLE_BYTES = 64 * 1024
#: Most bytes of one container's leases that are looked at.
MAX_LEASE_BYTES = 1024 * 1024
#: How often they are looked at again because the share was written meanwhile.
LEARN_TRIES = 3


class _Seen(NamedTuple):
    """What one version of a share's object shows."""

    head: Head
    leases: tuple[Lease, ...]
    etag: str
    modified_s: int
    size: int


@inlineCallbacks
def learn_leases(store: Store, share: ShareId, *, priority: Priority) -> Generator[Deferred[Any], Any, None]:
    """Read the leases in a share's container into the index, where it does not know them."""
    for _ in range(LEARN_TRIES):
        row = store.index.share(*share)
        if row is None or row.leases is not None:
            return
        generation = store.slots.generation(*share)
        try:
            seen: _Seen = yield store.reads.versions.with_row(share, lambda row: _look(store, share, row, priority))
        except DamagedContainerError:
            if store.slots.generation(*share) == generation:
                raise
            # Pieces of two versions, since it was written meanwhile.
            continue
        store.reads.versions.learn(
            share, generation, etag=seen.etag, size=seen.size, modified_s=seen.modified_s, kind=seen.head.kind,
            data_length=seen.head.data_length, leases=seen.leases,
        )  # fmt: skip


@inlineCallbacks
def _look(store: Store, share: ShareId, row: ShareRow, priority: Priority) -> Generator[Deferred[Any], Any, _Seen]:
    """The container's first bytes and its last ones, of one version."""
    key, client = share_key(*share), store.client
    whole = row.size <= WHOLE_BYTES
    if row.size == 0:
        raise DamagedContainerError(key, "it is empty")
    front: GetResult = yield client.get(
        key, offset=0, length=row.size if whole else MUTABLE_DATA_OFFSET,
        expect_etag=row.etag if row.etag_is_sure else None, priority=priority,
    )  # fmt: skip
    if front.size != row.size:
        raise Changed(f"{front.size} bytes, not {row.size}", operation="GetObject", key=key, kind="changed")
    head = parse_head(key, front.data[:HEAD_BYTES], object_size=row.size)
    length = min(row.size - head.leases_offset, MAX_LEASE_BYTES)
    tail = front.data[head.leases_offset :]
    if not whole and length:
        got: GetResult = yield client.get(
            key, offset=head.leases_offset, length=length, expect_etag=front.etag, priority=priority
        )
        tail = got.data

    def read(offset: int, length: int) -> bytes:
        start = offset - head.leases_offset
        return tail[start : start + length] if start >= 0 else front.data[offset : offset + length]

    return _Seen(head, parse_leases(key, head, read), front.etag, front.modified_s, front.size)


@inlineCallbacks
def learn_modified(store: Store, share: ShareId, *, priority: Priority) -> Generator[Deferred[Any], Any, None]:
    """Ask when the share's object was written, where no answer has told it so far."""
    row = store.index.share(*share)
    if row is None or row.modified_s:
        return
    generation = store.slots.generation(*share)
    info: ObjectInfo = yield store.client.head(share_key(*share), priority=priority)
    if (info.size, info.etag) == (row.size, row.etag):
        store.reads.versions.learn(share, generation, etag=info.etag, size=info.size, modified_s=info.modified_s)


@inlineCallbacks
def learn_overlay(
    store: Store, storage_index: bytes, *, priority: Priority
) -> Generator[Deferred[Any], Any, bool]:
    """Ask the bucket for the lease object, where the index does not know it for certain.

    Fires with whether the index is right now. Where it has no row because a listing showed none that is asked too: the
    listing may have been behind. Whoever was given a lease on a share that this node stored itself since then has a
    row, and older leases than that share's own do not matter.
    """
    index = store.index
    before = index.overlay(storage_index)
    if is_known(before) if before is not None else not index.may_have_missed_overlay(storage_index):
        return True
    if store.late.kept_leases(storage_index):
        # What must be there may not be.
        yield store.slots.run(storage_index, lambda: store.overlay.settle(storage_index))
        before = index.overlay(storage_index)
        return before is None or is_known(before)
    key = lease_key(storage_index)
    try:
        got: GetResult = yield store.client.get(key, priority=priority)
    except NotFound:
        if before is None:
            if index.overlay(storage_index) is None:
                index.has_no_overlay(storage_index)
            return index.overlay(storage_index) is None
        if not before.etag:
            yield store.slots.run(storage_index, lambda: _drop_if_same(store, storage_index, before))
        # What is listed under an ETag and said not to be there is not known.
        return index.overlay(storage_index) is None
    try:
        leases = overlay_from_json(got.data)
    except OverlayError as error:
        raise OverlayError(f"{key}: {error}") from None
    if index.overlay(storage_index) != before or store.slots.is_busy(storage_index):
        return False
    # Leases of a write that nobody knows the fate of stay: it may still be applied.
    known = () if before is None else before.leases or ()
    row = OverlayRow(got.etag, got.modified_s, tuple(merge(known, leases)), len(got.data))
    index.put_overlay(storage_index, row)
    return True


@inlineCallbacks
def _drop_if_same(
    store: Store, storage_index: bytes, before: OverlayRow
) -> Generator[Deferred[Any], Any, None]:
    """Under the lock: forget an object of which no answer ever told an ETag, and which is not there."""
    try:
        yield store.client.head(lease_key(storage_index), priority=1)
    except NotFound:
        if store.index.overlay(storage_index) == before:
            store.index.drop_overlay(storage_index)
