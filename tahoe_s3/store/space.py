# SPDX-License-Identifier: GPL-2.0-or-later
"""How much there may be in the bucket (s3.capacity) and on the spool's disk, and what of it is promised.

An upload is promised the bytes of its whole object when it is allocated, and keeps them until the index counts the
share or nothing of it can be in the bucket any more: its parts were removed, and what is unsure of it (store/slots.py)
was settled. So at every moment what the bucket holds of shares is at most what is used and promised here, and that is
at most the capacity. A mutable share is promised what it grows by. Lease objects are used space too, but nobody asks
whether there is room for one: a share must not be lost for it. On the disk a share is promised the bytes of its data
until its file is gone. As in Tahoe (StorageServer.allocate_buckets) those that were written count twice until then, in
the promise and in what the disk has free: that errs on the safe side.

Pure accounting: no file, no request, no clock. Every call is a few additions, and what it decides stays decided: two
allocations cannot be given the same bytes, since nothing else runs on the reactor's thread in between.

Owner: the Store. Thread: the reactor's. Errors: none here; what does not fit gets None for an answer. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from allmydata.interfaces import NoSpace

from tahoe_s3.store.keys import ShareId


class CapacityReached(NoSpace):
    """s3.capacity leaves no room for what a mutable share would grow by. Tahoe's own code raises NoSpace for a disk."""


@dataclass(eq=False)
class Promise:
    """What one write under way was promised. Changed by Space only.

    bucket_bytes: of the bucket. spool_bytes: of the disk, where spooled_bytes of them lie already.
    """

    share: ShareId
    bucket_bytes: int
    spool_bytes: int
    spooled_bytes: int = 0


class Space:
    """The space of one store."""

    def __init__(
        self,
        *,
        capacity_bytes: int | None,
        used_bytes: Callable[[], int],
        is_known: Callable[[], bool],
        is_unsure: Callable[[ShareId], bool],
    ) -> None:
        """
        Args:
            capacity_bytes: what the bucket may hold; None where nobody set a limit.
            used_bytes: what the bucket holds of shares and leases, as far as the index knows.
            is_known: whether that is all of it. False while the bucket is still being listed.
            is_unsure: whether nobody knows if the last write of a share was applied.
        """
        self.capacity_bytes = capacity_bytes
        self._used_bytes = used_bytes
        self._is_known = is_known
        self._is_unsure = is_unsure
        self._held: dict[ShareId, list[Promise]] = {}
        #: Bytes of the bucket that are promised and that the index does not count yet.
        self.promised_bytes = 0
        #: Bytes of the disk that are promised, and those of them that lie there.
        self.spool_bytes = 0
        self.spooled_bytes = 0

    # what there is

    @property
    def is_known(self) -> bool:
        """Whether it is known how much of the capacity is left; always, where there is no limit."""
        return self.capacity_bytes is None or self._is_known()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes()

    @property
    def left_bytes(self) -> int | None:
        """What is left of the capacity, at most, where not all is known. Below 0 where the bucket holds more than
        that; None where there is no limit."""
        if self.capacity_bytes is None:
            return None
        return self.capacity_bytes - self._used_bytes() - self.promised_bytes

    def room_bytes(self, disk_free_bytes: int) -> int:
        """What there is for a new share, 0 for nothing; at most that, while not all is known. As in Tahoe the promised
        bytes of the disk are not taken off."""
        left = self.left_bytes
        return max(0, disk_free_bytes if left is None else min(disk_free_bytes, left))

    def most_bytes(self, disk_bytes: int) -> int:
        """The largest share that would ever be taken, if everything were free. `disk_bytes`: all that the disk has
        for shares."""
        return max(0, disk_bytes if self.capacity_bytes is None else min(disk_bytes, self.capacity_bytes))

    # promises

    def promise(
        self, share: ShareId, *, bucket_bytes: int, spool_bytes: int = 0, disk_free_bytes: int | None = None
    ) -> Promise | None:
        """Room for a write, or None where there is none, or where nobody knows yet whether there is.

        What takes nothing more of the bucket is promised always, also where the bucket holds too much. The disk is
        not looked at where disk_free_bytes is None.
        """
        left = self.left_bytes
        if bucket_bytes > 0 and left is not None and (bucket_bytes > left or not self.is_known):
            return None
        if disk_free_bytes is not None and spool_bytes > disk_free_bytes - self.spool_bytes:
            return None
        self.promised_bytes += bucket_bytes
        self.spool_bytes += spool_bytes
        return Promise(share, bucket_bytes, spool_bytes)

    def spooled(self, promise: Promise, total_bytes: int) -> None:
        """So many bytes of the promised ones lie on the disk by now."""
        self.spooled_bytes += total_bytes - promise.spooled_bytes
        promise.spooled_bytes = total_bytes

    def left_the_disk(self, promise: Promise) -> None:
        """Its file is gone. Again changes nothing."""
        self.spooled_bytes -= promise.spooled_bytes
        self.spool_bytes -= promise.spool_bytes
        promise.spool_bytes = promise.spooled_bytes = 0

    def end(self, promise: Promise) -> None:
        """The index counts it now, or nothing of it was stored; where that is unsure it is kept until settled().

        Again changes nothing.
        """
        if promise.bucket_bytes and self._is_unsure(promise.share):
            held = self._held.setdefault(promise.share, [])
            if promise not in held:
                held.append(promise)
        else:
            self.promised_bytes -= promise.bucket_bytes
            promise.bucket_bytes = 0

    def settled(self, share: ShareId) -> None:
        """The index is right about the share again."""
        for promise in self._held.pop(share, ()):
            self.end(promise)
