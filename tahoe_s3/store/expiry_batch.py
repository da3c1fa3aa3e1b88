# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage indexes that are deleted together: their locks, one multi-delete of shares, one of lease objects.

take() and the start of delete() run in one turn of the reactor. A batch takes only locks that nobody has, so it never
waits for one while it holds others. Under the lock everything is judged once more, from the index.

Owner: the Expirer, for one batch. Thread: the reactor's. Errors: delete() fails with an S3Error where the shares'
multi-delete did; shares of which nobody knows whether they went are then unsure (store/slots.py). Limits: MAX_KEYS
shares, which take the reactor about a tenth of a second to judge and as long to note.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from tahoe_s3.client import S3Error
from tahoe_s3.store.index import ShareRow
from tahoe_s3.store.keys import ShareId, lease_key, share_key
from tahoe_s3.store.lease_policy import LeasePolicy, expired_shares, is_overlay_expired
from tahoe_s3.store.points import reach

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: Shares of one batch, as many as one multi-delete takes.
MAX_KEYS = 1000
#: Seconds that a multi-delete may take with all its attempts, while clients may wait for the locks.
DELETE_S = 120.0
#: What a service says of a key that it refused to touch.
REFUSED = "AccessDenied"


class Batch:
    """See the module. `before_s`: leases renewed before this time are expired."""

    log = Logger()

    def __init__(self, store: Store, policy: LeasePolicy, *, before_s: float) -> None:
        self._store = store
        self._policy = policy
        self._before_s = before_s
        self._gates: list[Deferred[None]] = []
        self._shares: list[tuple[ShareId, ShareRow]] = []
        self._gone: list[tuple[ShareId, ShareRow]] = []
        #: The storage indexes whose locks it has.
        self.slots: list[bytes] = []
        #: The service refused to delete something.
        self.was_refused = False

    def count_of(self, storage_index: bytes) -> int:
        """How many objects of this storage index may go now: shares, or a lease object that is left over."""
        return len(self._expired(storage_index)) or int(self._is_left_over(storage_index))

    def _expired(self, storage_index: bytes) -> list[ShareRow]:
        index = self._store.index
        rows, overlay = index.shares(storage_index), index.overlay(storage_index)
        return expired_shares(rows, overlay, before_s=self._before_s, sharetypes=self._policy.sharetypes)

    def _is_left_over(self, storage_index: bytes) -> bool:
        index = self._store.index
        overlay = index.overlay(storage_index)
        unused = not index.shares(storage_index) and not self._store.is_uploading(storage_index)
        return unused and overlay is not None and is_overlay_expired(overlay, self._before_s)

    def take(self, storage_index: bytes) -> bool:
        """Lock it and take what may go; False where there is no room. Nothing is taken of one whose lock somebody
        has, or of which something is unsure."""
        slots = self._store.slots
        if slots.is_busy(storage_index) or slots.is_unsure(storage_index):
            return True
        rows = self._expired(storage_index)[:MAX_KEYS]
        if len(self._shares) + len(rows) > MAX_KEYS or len(self.slots) == MAX_KEYS:
            return False
        if rows or self._is_left_over(storage_index):
            gate: Deferred[None] = Deferred()
            self._gates.append(gate)
            slots.run(storage_index, lambda: gate)
            self.slots.append(storage_index)
            self._shares.extend((ShareId(storage_index, row.shnum), row) for row in rows)
        return True

    @inlineCallbacks
    def delete(self) -> Generator[Deferred[Any], Any, None]:
        """Delete what was taken, and give the locks back."""
        reach("expiry.taken")
        try:
            if self._shares:
                yield self._delete_shares()
            yield self._delete_overlays()
        finally:
            gates, self._gates = self._gates, []
            for gate in gates:
                gate.callback(None)

    @inlineCallbacks
    def _delete_shares(self) -> Generator[Deferred[Any], Any, None]:
        keys = [share_key(*share) for share, _ in self._shares]
        yield self._store.late.about_to_delete(keys)
        try:
            refused = dict((yield self._delete(keys)))
        except S3Error as error:
            self._store.late.deletion_ended(keys, ())
            if error.outcome != "not_applied":
                for share, _ in self._shares:
                    self._make_unsure(share)
            raise
        reach("expiry.deleted")
        self._store.late.deletion_ended(keys, [key for key in keys if key not in refused])
        for (share, row), key in zip(self._shares, keys):
            code = refused.get(key)
            if code is None:
                self._went(share, row)
            elif code == REFUSED:
                self.was_refused = True
            else:
                self.log.warn("{key} could not be deleted: {code}", key=key, code=code)
                self._make_unsure(share)

    def _delete(self, keys: list[str]) -> Deferred[list[tuple[str, str]]]:
        # Not as background work, since others may wait for the locks.
        return self._store.client.delete_many(keys, priority=1, deadline_s=DELETE_S)

    def _went(self, share: ShareId, row: ShareRow) -> None:
        try:
            self._store.share_deleted(share)
        except Exception:
            # The bucket has it no more, and the index does not know: whoever asks next must look.
            self.log.failure("{key} was deleted, which cannot be noted", key=share_key(*share))
            self._make_unsure(share)
            return
        self._gone.append((share, row))
        reach("expiry.row-dropped")

    def _make_unsure(self, share: ShareId) -> None:
        """Nobody knows whether it is still there. A HEAD will tell (store/slots.py)."""
        self._store.cache.drop(share)
        self._store.slots.mark_unsure(*share)
        self._store.reads.forget(share)

    @inlineCallbacks
    def _delete_overlays(self) -> Generator[Deferred[Any], Any, None]:
        """The lease objects of those that have no share left, nor one that is being uploaded."""
        index = self._store.index
        left_over = {lease_key(si): si for si in self.slots if self._is_left_over(si)}
        if not left_over:
            return
        reach("expiry.before-leases")
        try:
            refused = dict((yield self._delete(list(left_over))))
        except S3Error as error:
            # The shares are gone, which is what counts. The next cycle finds these again.
            self.log.warn("lease objects without shares are left over: {error}", error=str(error))
            if error.outcome != "not_applied":
                for storage_index in left_over.values():
                    index.doubt_overlay(storage_index, was_deleted=True)
            return
        reach("expiry.leases-deleted")
        self._store.in_background(self._store.late.forget(*(key for key in left_over if key not in refused)))
        for key, storage_index in left_over.items():
            if key not in refused:
                index.drop_overlay(storage_index)
            elif refused[key] != REFUSED:
                index.doubt_overlay(storage_index, was_deleted=True)

    def recovered(self) -> Iterable[tuple[str | None, int, int, int]]:
        """(kind, storage indexes, shares, bytes) of what is known to have gone."""
        for kind in sorted({row.kind or "" for _, row in self._gone}):
            gone = [(share, row) for share, row in self._gone if (row.kind or "") == kind]
            emptied = {share.storage_index for share, _ in gone if not self._store.index.shares(share.storage_index)}
            yield kind or None, len(emptied), len(gone), sum(row.size for _, row in gone)
