# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's own storage clients, over Foolscap and over HTTP, to a storage node that runs as a process of its own.

    peer = await Peer.connect(reactor, node, protocol="http")
    storage = peer.storage           # an IStorageServer of Tahoe's, whichever the protocol
    ...; await peer.close()

Owner: the test. Thread: the reactor's. Each Peer is a client of its own, with connections of its own.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from allmydata.storage.http_client import StorageClientFactory
from allmydata.storage.http_server import build_nurl
from allmydata.storage_client import _HTTPStorageServer, _StorageServer
from cryptography.x509 import load_pem_x509_certificate
from foolscap.api import Referenceable, Tub, flushEventualQueue
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.web.client import HTTPConnectionPool

from ..support.grid import StorageNode

PROTOCOLS = ("foolscap", "http")


class RefusedByNode(Exception):
    """The node answered a call with an error."""


def plain(result: Deferred[Any]) -> Deferred[Any]:
    """The same, failing with RefusedByNode: a failure that came over Foolscap has a text where an exception belongs."""

    def convert(failure: Any) -> None:
        raise RefusedByNode(f"{failure.type}: {failure.value}")

    return result.addErrback(convert)


class Peer:
    """One client of one storage node. `storage` has Tahoe's IStorageServer interface."""

    def __init__(self, reactor: Any, storage: Any) -> None:
        self.reactor, self.storage = reactor, storage
        self.canary = Referenceable()
        self._tub: Any = None
        self._pool: Any = None

    @classmethod
    async def connect(
        cls, reactor: Any, node: StorageNode, *, protocol: str, certificate: bytes | None = None
    ) -> Peer:
        """`certificate`: the key and certificate of the client's Tub, which are made anew without."""
        furl = node.private("storage.furl").read_text().strip()
        if protocol == "foolscap":
            tub = Tub(certData=certificate)
            tub.startService()
            reference = await tub.getReference(furl)
            found = cls(reactor, _StorageServer(get_rref=lambda: reference))
            found._tub = tub
            return found
        where = urlsplit(furl)
        port = int(where.netloc.rpartition(":")[2].split(",")[0])
        servers = load_pem_x509_certificate(node.private("node.pem").read_bytes())
        nurl = build_nurl("127.0.0.1", port, where.path.lstrip("/"), servers)
        pool = HTTPConnectionPool(reactor)
        pool.retryAutomatically = False
        client = await StorageClientFactory({"tcp": "tcp"}, None).create_storage_client(nurl, reactor, pool)
        found = cls(reactor, _HTTPStorageServer.from_http_client(client))
        found._pool = pool
        return found

    async def allocate(self, storage_index: bytes, shnums: set[int], size: int) -> dict[int, Any]:
        """Writers of new shares, by number."""
        secrets = (b"r" * 32, b"c" * 32)
        _, writers = await self.storage.allocate_buckets(storage_index, *secrets, shnums, size, self.canary)
        found: dict[int, Any] = writers
        return found

    def write_and_close(self, writer: Any, data: bytes, *, piece_bytes: int = 2**20) -> Deferred[None]:
        """Writes all, in order, and closes; over HTTP the last write is what makes the share."""
        from twisted.internet.defer import ensureDeferred

        async def run() -> None:
            for start in range(0, len(data), piece_bytes):
                await plain(writer.callRemote("write", start, data[start : start + piece_bytes]))
            await plain(writer.callRemote("close"))

        return ensureDeferred(run())

    async def shares(self, storage_index: bytes) -> dict[int, Any]:
        """Readers of what the node says it has."""
        found: dict[int, Any] = await self.storage.get_buckets(storage_index)
        return found

    async def read(self, storage_index: bytes, shnum: int, size: int) -> bytes:
        readers = await self.shares(storage_index)
        data: bytes = await readers[shnum].callRemote("read", 0, size)
        return data

    async def close(self) -> None:
        if self._tub is not None:
            await maybeDeferred(self._tub.stopService)
            await flushEventualQueue()
        if self._pool is not None:
            await self._pool.closeCachedConnections()
            await deferLater(self.reactor, 0.1)
