# SPDX-License-Identifier: GPL-2.0-or-later
"""What the store's tests share: a Store over a bucket in memory with a clock, and share objects made by Tahoe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from allmydata.storage import immutable_schema, mutable_schema
from allmydata.storage.immutable import ShareFile
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.mutable import MutableShareFile
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.store import Store

from .memory_client import MemoryClient

SI = bytes(range(16))
NODEID = b"n" * 20
WRITE_ENABLER = b"w" * 32
PART_BYTES = 8 * 1024 * 1024
KIB = 1024
MIB = 1024 * KIB


def now(deferred: Deferred[Any]) -> Any:
    """The result of a Deferred that must have fired already; its exception is raised."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "it has not fired"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def error_of(deferred: Deferred[Any]) -> BaseException:
    """What a Deferred has failed with."""
    results: list[Any] = []
    deferred.addErrback(lambda failure: results.append(failure.value))
    assert results, "it has not failed"
    error: BaseException = results[0]
    return error


def waits(deferred: Deferred[Any]) -> bool:
    return not deferred.called


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes of which every range of four is told from every other near it."""
    block = b"".join(((index * 2654435761 + seed) & 0xFFFFFFFF).to_bytes(4, "big") for index in range(4099))
    return (block * (size // len(block) + 1))[:size]


def lease(number: int = 1, *, expires_s: int = 2_000_000_000) -> LeaseInfo:
    return LeaseInfo(number, b"%032d" % number, b"%032d" % (number + 500), expires_s, NODEID)


def schema_of(schemas: Any, version: int) -> Any:
    return next(schema for schema in schemas if schema.version == version)


def immutable_object(data: bytes, *, leases: int = 1, version: int = 2) -> bytes:
    """The bytes of the file that Tahoe's disk backend has for an immutable share."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0"
        schema = schema_of(immutable_schema.ALL_SCHEMAS, version)
        share = ShareFile(str(path), max_size=len(data), create=True, schema=schema)
        share.write_share_data(0, data)
        for number in range(leases):
            share.add_lease(lease(number + 1))
        return path.read_bytes()


def mutable_object(data: bytes, *, leases: int = 1, version: int = 2) -> bytes:
    """The same for a mutable share."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0"
        share = MutableShareFile(str(path), schema=schema_of(mutable_schema.ALL_SCHEMAS, version))
        share.create(NODEID, WRITE_ENABLER)
        share.writev([(0, data)], None)
        for number in range(leases):
            share.add_lease(10**9, lease(number + 1))
        return path.read_bytes()


class Place:
    """A store, its client, clock and index."""

    def __init__(
        self, folder: Path, *, client: MemoryClient | None = None, part_bytes: int = PART_BYTES, start_s: float = 0.0,
        capacity_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.client = client or MemoryClient()
        self.clock = Clock()
        self.clock.advance(start_s)
        self.index = Index(folder / "index.sqlite", identity="bucket")
        self.store = Store(
            reactor=self.clock, client=self.client.as_client(), index=self.index, local_dir=folder,
            part_size_bytes=part_bytes, capacity_bytes=capacity_bytes,
        )  # fmt: skip

    def add(self, data: bytes, *, shnum: int = 0, si: bytes = SI, sure: bool = True, **details: Any) -> ShareId:
        """An object in the bucket that the index knows, of which nothing but the listing was seen."""
        stored = self.client.store(share_key(si, shnum), data, **details)
        etag = stored.etag if sure else stored.listed_etag or stored.etag
        self.index.put_share(si, ShareRow(shnum, len(data), etag, sure, stored.modified_s), listed=True)
        return ShareId(si, shnum)

    def row(self, shnum: int = 0, si: bytes = SI) -> ShareRow:
        row = self.index.share(si, shnum)
        assert row is not None
        return row

    def object(self, shnum: int = 0, si: bytes = SI) -> bytes:
        return self.client.objects[share_key(si, shnum)].data

    def read(self, share: ShareId, offset: int, length: int) -> bytes:
        data: bytes = now(self.store.reads.read(share, offset, length))
        return data

    @property
    def gets(self) -> int:
        return self.client.requests["GetObject"]
