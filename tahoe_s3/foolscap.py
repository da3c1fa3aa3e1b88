# SPDX-License-Identifier: GPL-2.0-or-later
"""The Foolscap protocol over a storage server that has to wait for its bucket.

Owner: plugin.py puts S3FoolscapStorageServer where Tahoe creates its FoolscapStorageServer. Reactor thread
only.

Tahoe's own wrappers (allmydata/storage/server.py, immutable.py) expect answers at once in three places:
allocating, getting readers, and writing. Foolscap itself waits for a Deferred that a remote_ method returns,
checks its result against the schema once it has fired, and starts the methods in the order of the client's
calls (foolscap/broker.py, doNextCall); so pipelined writes and a close reach the ShareWriter in order, and
the writer itself lets its close wait for them.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allmydata.storage.immutable import FoolscapBucketReader, FoolscapBucketWriter
from allmydata.storage.server import FoolscapStorageServer
from twisted.internet.defer import Deferred

from tahoe_s3.wire import for_foolscap, logged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from foolscap.ipb import IRemoteReference

Secrets = tuple[bytes, bytes, bytes]
"""Write enabler, lease renew secret, lease cancel secret."""


class S3FoolscapBucketWriter(FoolscapBucketWriter):
    """A ShareWriter as a Foolscap client sees it. RIBucketWriter wants None from every method."""

    def remote_write(self, offset: int, data: bytes) -> Deferred[None]:
        return _none(self._bucket_writer.write(offset, data), "writing to a share")

    def remote_close(self) -> Deferred[None]:
        return _none(self._bucket_writer.close(), "closing a share")

    def remote_abort(self) -> Deferred[None]:
        return _none(self._bucket_writer.abort(), "aborting a share")


class S3FoolscapBucketReader(FoolscapBucketReader):
    """A ShareReader as a Foolscap client sees it."""

    def remote_read(self, offset: int, length: int) -> Deferred[bytes]:
        d: Deferred[bytes] = self._bucket_reader.read(offset, length)
        return d.addErrback(for_foolscap("reading a share"))

    def remote_advise_corrupt_share(self, reason: bytes) -> Deferred[None]:
        return _none(self._bucket_reader.advise_corrupt_share(reason), "noting a corrupt share")


class S3FoolscapStorageServer(FoolscapStorageServer):
    """RIStorageServer over an S3StorageServer. As in Tahoe, an upload ends with its connection."""

    def remote_allocate_buckets(
        self,
        storage_index: bytes,
        renew_secret: bytes,
        cancel_secret: bytes,
        sharenums: Iterable[int],
        allocated_size: int,
        canary: IRemoteReference,
        owner_num: int = 0,
    ) -> Deferred[tuple[set[int], dict[int, S3FoolscapBucketWriter]]]:
        d = self._server.allocate_buckets(
            storage_index, renew_secret, cancel_secret, sharenums, allocated_size,
            owner_num=owner_num, renew_leases=True,
        )
        d.addCallbacks(self._allocated, for_foolscap("allocating shares"), callbackArgs=(canary,))
        result: Deferred[tuple[set[int], dict[int, S3FoolscapBucketWriter]]] = d
        return result

    def _allocated(
        self, outcome: tuple[set[int], dict[int, Any]], canary: IRemoteReference
    ) -> tuple[set[int], dict[int, S3FoolscapBucketWriter]]:
        already_got, writers = outcome
        for writer in writers.values():
            if writer.closed:
                # The server stopped meanwhile; the handler that would take the marker away has run already.
                continue
            # For a client that is gone already, notifyOnDisconnect calls back soon (foolscap/broker.py), so a
            # writer that was made while the connection broke ends too.
            marker = canary.notifyOnDisconnect(_client_gone, writer)
            self._bucket_writer_disconnect_markers[writer] = (canary, marker)
        return set(already_got), {n: S3FoolscapBucketWriter(writer) for n, writer in writers.items()}

    def remote_add_lease(
        self, storage_index: bytes, renew_secret: bytes, cancel_secret: bytes, owner_num: int = 1
    ) -> Deferred[None]:
        return _none(self._server.add_lease(storage_index, renew_secret, cancel_secret), "adding a lease")

    def remote_renew_lease(self, storage_index: bytes, renew_secret: bytes) -> Deferred[None]:
        return _none(self._server.renew_lease(storage_index, renew_secret), "renewing a lease")

    def remote_get_buckets(self, storage_index: bytes) -> Deferred[dict[int, S3FoolscapBucketReader]]:
        d = self._server.get_buckets(storage_index)
        d.addCallbacks(_wrap_readers, for_foolscap("looking for shares"))
        result: Deferred[dict[int, S3FoolscapBucketReader]] = d
        return result

    def remote_slot_testv_and_readv_and_writev(
        self,
        storage_index: bytes,
        secrets: Secrets,
        test_and_write_vectors: dict[int, Any],
        read_vector: list[tuple[int, int]],
    ) -> Deferred[tuple[bool, dict[int, list[bytes]]]]:
        d: Deferred[tuple[bool, dict[int, list[bytes]]]] = self._server.slot_testv_and_readv_and_writev(
            storage_index, secrets, test_and_write_vectors, read_vector, renew_leases=True
        )
        return d.addErrback(for_foolscap("changing a mutable share"))

    def remote_slot_readv(
        self, storage_index: bytes, shares: list[int], readv: list[tuple[int, int]]
    ) -> Deferred[dict[int, list[bytes]]]:
        d: Deferred[dict[int, list[bytes]]] = self._server.slot_readv(storage_index, shares, readv)
        return d.addErrback(for_foolscap("reading a mutable share"))

    def remote_advise_corrupt_share(
        self, share_type: bytes, storage_index: bytes, shnum: int, reason: bytes
    ) -> Deferred[None]:
        return _none(
            self._server.advise_corrupt_share(share_type, storage_index, shnum, reason),
            "noting a corrupt share",
        )


def _none(d: Deferred[Any], what: str) -> Deferred[None]:
    """The same Deferred, with None for its result and no S3Error for its failure."""
    return d.addCallbacks(lambda _: None, for_foolscap(what))


def _wrap_readers(readers: dict[int, Any]) -> dict[int, S3FoolscapBucketReader]:
    return {n: S3FoolscapBucketReader(reader) for n, reader in readers.items()}


def _client_gone(writer: Any) -> None:
    """The connection of an upload broke; Foolscap calls this and forgets what it returns."""
    logged(writer.disconnected(), "ending the upload of a client that is gone")
