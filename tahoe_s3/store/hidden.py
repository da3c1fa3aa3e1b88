# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares that are in the bucket and that the listing, which the index was filled from, does not show yet.

While absences are not known (Index.knows_absences), the bucket is asked for each share by its key before it is made:
else a share that somebody was told is stored would be overwritten by one with other leases, or by another version, as
if it had not been there.

Owner: who allocates, and who reads, tests and writes. Thread: the reactor's. Errors: S3Error, where the bucket does not
tell: then nothing is made. Limits: HEADS_AT_ONCE requests for one call. Requests: one HEAD for each share that has no
row; none where absences are known.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredSemaphore, inlineCallbacks, succeed
from twisted.logger import Logger

from tahoe_s3.client import NotFound, ObjectInfo
from tahoe_s3.store.index import ShareRow
from tahoe_s3.store.keys import ShareId, fits_key, share_key
from tahoe_s3.store.versions import all_of

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

HEADS_AT_ONCE = 8

_log = Logger()


def may_be_hidden(store: Store, storage_index: bytes, shnums: Iterable[int]) -> list[ShareId]:
    """Those of these shares that may be there, though the index has no row of them."""
    if store.index.knows_absences:
        return []
    shares = [ShareId(storage_index, shnum) for shnum in shnums if fits_key(storage_index, shnum)]
    return [share for share in shares if store.index.share(*share) is None]


def look_for_hidden(store: Store, storage_index: bytes, shnums: Iterable[int]) -> Deferred[Any]:
    """Fires when the index is right about these shares. Not under the lock, which this takes where it is needed."""
    wanted = list(shnums)
    if not may_be_hidden(store, storage_index, wanted):
        return succeed(None)
    return store.slots.run(storage_index, lambda: look_locked(store, storage_index, wanted))


def look_locked(store: Store, storage_index: bytes, shnums: Iterable[int]) -> Deferred[Any]:
    """The same, for who has the lock. What is found was not put a moment ago by a call that nobody has answered."""
    gate = DeferredSemaphore(HEADS_AT_ONCE)
    return all_of([gate.run(_look_for, store, share) for share in may_be_hidden(store, storage_index, shnums)])


@inlineCallbacks
def _look_for(store: Store, share: ShareId) -> Generator[Deferred[Any], Any, None]:
    key = share_key(*share)
    try:
        info: ObjectInfo = yield store.client.head(key, priority=0)
    except NotFound:
        return
    if store.index.share(*share) is None:
        _log.info("{key} is in the bucket, though no listing has shown it so far", key=key)
        store.index.put_share(share.storage_index, ShareRow.found(share.shnum, info), listed=True)
        store.share_changed(*share)
