# SPDX-License-Identifier: GPL-2.0-or-later
"""One immutable share as a client reads it: the data inside the container, at most to its end.

What Tahoe's BucketReader is on disk. Making one costs no request; where the index does not know the container yet
(the share was found in a listing), the first read starts at the object's first byte, so that one GET tells the
header and, as a rule, holds what was asked for too.

Owner: whoever asked for it; it holds nothing. Thread: the reactor's. Errors: S3Error; ShareGone (a KeyError) where
the share was deleted; UnknownImmutableContainerVersionError for a mutable share or a newer container, as in Tahoe;
DamagedContainerError.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Callable

from allmydata.storage.common import UnknownImmutableContainerVersionError
from allmydata.util.assertutil import precondition
from twisted.internet.defer import Deferred, inlineCallbacks

from tahoe_s3.client import Changed
from tahoe_s3.store.containers import (
    IMMUTABLE_HEADER_BYTES,
    mutable_instead,
    needed_head_bytes,
    parse_head,
    require_immutable,
)
from tahoe_s3.store.index import IMMUTABLE, ShareRow
from tahoe_s3.store.keys import ShareId, share_key, si_text
from tahoe_s3.store.versions import MAX_CHANGES, ShareGone

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store


class ShareReader:
    """Reads one share of one immutable file.

    on_read: called with the seconds that each successful read took, its wait for the bucket included.
    advise: called with a client's reason why the share is corrupt.
    """

    def __init__(
        self, store: Store, storage_index: bytes, shnum: int, *, on_read: Callable[[float], None],
        advise: Callable[[bytes], Deferred[None]],
    ) -> None:  # fmt: skip
        self.storage_index = storage_index
        self.shnum = shnum
        self._store = store
        self._share = ShareId(storage_index, shnum)
        self._on_read = on_read
        self._advise = advise

    def __repr__(self) -> str:
        return f"<ShareReader {si_text(self.storage_index)[:12]} {self.shnum}>"

    @inlineCallbacks
    def read(self, offset: int, length: int) -> Generator[Deferred[Any], Any, bytes]:
        """Bytes of the share's data; fewer where it ends, none beyond."""
        precondition(offset >= 0 and length >= 0, offset, length)
        self._store.require_service()
        started_s = self._store.reactor.seconds()
        data: bytes = yield self._read(offset, length)
        self._on_read(self._store.reactor.seconds() - started_s)
        return data

    @inlineCallbacks
    def get_length(self) -> Generator[Deferred[Any], Any, int]:
        """The length of the share's data in bytes: with no request where the container is known."""
        row: ShareRow = yield self._known_row()
        assert row.data_length is not None
        return row.data_length

    def advise_corrupt_share(self, reason: bytes) -> Deferred[None]:
        """A client says that the share is corrupt."""
        return self._advise(reason)

    @inlineCallbacks
    def _read(self, offset: int, length: int) -> Generator[Deferred[Any], Any, bytes]:
        for _ in range(MAX_CHANGES + 1):
            row: ShareRow = yield self._known_row()
            assert row.data_length is not None
            length_here = max(0, min(length, row.data_length - offset))
            if length_here == 0:
                return b""
            data: bytes = yield self._store.reads.read(self._share, IMMUTABLE_HEADER_BYTES + offset, length_here)
            now = self._row()
            if len(data) == length_here and now.size == row.size and now.data_length in (row.data_length, None):
                return data
        raise Changed("it changed again and again while it was read", operation="GetObject",
                      key=share_key(*self._share), kind="changed")  # fmt: skip

    def _row(self) -> ShareRow:
        row = self._store.index.share(*self._share)
        if row is None:
            raise ShareGone(f"the share {share_key(*self._share)} is no longer here")
        return row

    @inlineCallbacks
    def _known_row(self) -> Generator[Deferred[Any], Any, ShareRow]:
        """The share's row, with its data length; from the container's header where it was not known."""
        yield self._store.slots.settle(self.storage_index)
        for _ in range(MAX_CHANGES + 1):
            row = self._row()
            if row.kind == IMMUTABLE and row.data_length is not None:
                return row
            if row.kind is not None and row.kind != IMMUTABLE:
                raise UnknownImmutableContainerVersionError(share_key(*self._share), mutable_instead())
            yield self._look()
        raise Changed("it changed again and again while its header was read", operation="GetObject",
                      key=share_key(*self._share), kind="changed")  # fmt: skip

    @inlineCallbacks
    def _look(self) -> Generator[Deferred[Any], Any, None]:
        """Read the header into the index."""
        key, reads = share_key(*self._share), self._store.reads
        generation = self._store.slots.generation(*self._share)
        start = yield reads.read(self._share, 0, needed_head_bytes(self._row().size))
        row = self._row()
        head = parse_head(key, start, object_size=row.size)
        reads.versions.learn(
            self._share, generation, etag=row.etag, size=row.size, kind=head.kind, data_length=head.data_length
        )
        require_immutable(key, start)
