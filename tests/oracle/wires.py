# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage node's server and its wires in the test's process, and Tahoe's own clients that call it through sockets.

    node = await Node.start(s3server, folder); await node.restart("kept", politely=True); await node.stop()
    wire = HTTPWire(node); answer = await wire.begin(slot, vectors, shnums)

The Tub, its certificate and its port outlive a restart, so that clients find the node again by the same names. Owner:
a test; thread: the reactor's, whose clock it is too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from allmydata import protocol_switch
from allmydata.storage.http_client import ClientException, StorageClientFactory, StorageClientMutables
from allmydata.storage_client import _HTTPStorageServer, _StorageServer
from foolscap.api import DeadReferenceError, Tub, flushEventualQueue
from foolscap.tokens import NegotiationError, RemoteNegotiationError
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    DNSLookupError,
)
from twisted.web.client import (
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)

from tahoe_s3.config import NodeSettings
from tahoe_s3.foolscap import S3FoolscapStorageServer
from tahoe_s3.http import S3HTTPServer
from tahoe_s3.server import S3StorageServer, open_storage
from tahoe_s3.wire import UNAVAILABLE_TEXT

from ..live.node_here import NODE_ID, config_for
from ..raw_http import SWISSNUM
from ..support.s3server import S3Server
from .clients import EVERYTHING, SECRETS

PART = 20_000
#: What a client sees of a node that is gone, or of a call that it gave up itself (DNSLookupError: while connecting).
HUNG_UP = (
    CancelledError, ConnectingCancelledError, DNSLookupError, DeadReferenceError, ConnectionDone, ConnectionLost,
    ConnectError, ResponseFailed, ResponseNeverReceived, RequestGenerationFailed, RequestNotSent,
    RequestTransmissionFailed, NegotiationError, RemoteNegotiationError,
)  # fmt: skip
NAME = "storage"


class Node:
    """The server behind both protocols on one port."""

    def __init__(self, s3server: S3Server, folder: Path) -> None:
        self.s3server, self.folder = s3server, folder
        self.furl = ""
        self.nurl: Any = None
        self._certificate: Any = None
        self._port = 0

    @classmethod
    async def start(cls, s3server: S3Server, folder: Path) -> Node:
        node = cls(s3server, folder)
        await node._begin()
        return node

    async def _begin(self) -> None:
        settings = NodeSettings(has_permutation_seed=True)
        config = config_for(self.s3server, part_size_bytes=PART)
        store = await open_storage(reactor, config, nodeid=NODE_ID, storage_dir=self.folder, settings=settings)
        self.server = S3StorageServer(str(self.folder), NODE_ID, clock=reactor, backend=store)
        self.server.startService()
        self._tub = protocol_switch.create_tub_with_https_support(certData=self._certificate)
        self._certificate = self._tub.getCertData()
        self._tub.startService()
        listener = self._tub.listenOn(f"tcp:{self._port}:interface=127.0.0.1")
        self._port = listener.getPortnum()
        self._tub.setLocation(f"tcp:127.0.0.1:{self._port}")
        self.furl = self._tub.registerReference(S3FoolscapStorageServer(self.server), name=NAME)
        with patch.object(protocol_switch, "HTTPServer", S3HTTPServer):
            (self.nurl,) = self._tub.negotiationClass.add_storage_server(self.server, SWISSNUM)

    async def stop(self, *, politely: bool = True) -> None:
        """politely: what was begun is answered first; else its clients lose their connections before. Both end all
        connections, as the end of a process does; the Tub knows of Foolscap's only.
        """
        if politely:
            await self.server.stopService()
        await self._tub.stopService()
        for connection in list(self._tub.negotiationClass.https_factory.protocols):
            connection.abortConnection()
        if not politely:
            await self.server.stopService()
        await flushEventualQueue()

    async def restart(self, how: str, *, politely: bool) -> None:
        """`how`: "kept", or "emptied" for a node whose local folder is lost."""
        await self.stop(politely=politely)
        if how == "emptied":
            shutil.rmtree(self.folder)
        await self._begin()


def _plain(vectors: Any) -> Any:
    """Without the operator, which Tahoe's clients add where the protocol wants it."""
    return {n: ([(at, size, data) for at, size, _, data in tests], writes, length)
            for n, (tests, writes, length) in vectors.items()}  # fmt: skip


class FoolscapWire:
    """One client's Tub."""

    reads_one = False

    @staticmethod
    def may_fail(failure: Any) -> bool:
        """The bucket's failure as the node words it, a connection that ended, or a client that gave up."""
        return UNAVAILABLE_TEXT in str(failure.value) or bool(failure.check(*HUNG_UP))

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tub = Tub()
        self._tub.startService()

    def begin(self, slot: bytes, vectors: Any, shnums: list[int]) -> Deferred[Any]:
        """By a reference of this moment: the one before a restart is dead."""
        reference: Deferred[Any] = self._tub.getReference(self._node.furl)
        return reference.addCallback(self._ask, slot, vectors, shnums)

    @staticmethod
    def _ask(reference: Any, slot: bytes, vectors: Any, shnums: list[int]) -> Deferred[Any]:
        storage = _StorageServer(get_rref=lambda: reference)
        if vectors is None:
            reading: Deferred[Any] = storage.slot_readv(slot, shnums, EVERYTHING)
            return reading.addCallback(lambda found: (True, found))
        writing: Deferred[Any] = storage.slot_testv_and_readv_and_writev(slot, SECRETS, _plain(vectors), EVERYTHING)
        return writing

    async def close(self) -> None:
        await maybeDeferred(self._tub.stopService)
        await flushEventualQueue()


class HTTPWire:
    """One client with connections of its own."""

    reads_one = True

    @staticmethod
    def may_fail(failure: Any) -> bool:
        """As for Foolscap; and one in whose middle the body of an answer breaks off."""
        if failure.check(ClientException):
            return bool(failure.value.code == 503)
        return bool(failure.check(*HUNG_UP))

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = HTTPConnectionPool(reactor)
        self._pool.retryAutomatically = False
        self._client: Any = None

    def begin(self, slot: bytes, vectors: Any, shnums: list[int]) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._ask(slot, vectors, shnums))

    async def _ask(self, slot: bytes, vectors: Any, shnums: list[int]) -> Any:
        if self._client is None:
            factory = StorageClientFactory({"tcp": "tcp"}, None)
            self._client = await factory.create_storage_client(self._node.nurl, reactor, self._pool)
        if vectors is not None:
            server = _HTTPStorageServer.from_http_client(self._client)
            return await server.slot_testv_and_readv_and_writev(slot, SECRETS, _plain(vectors), EVERYTHING)
        (shnum,) = shnums
        try:
            data = await StorageClientMutables(self._client).read_share_chunk(slot, shnum, *EVERYTHING[0])
        except ClientException as error:
            if error.code != 404:
                raise
            return True, {}
        return True, {shnum: [data]}

    def hang_up(self) -> Deferred[Any]:
        """Its idle connections end, as they do when the node's process does."""
        return self._pool.closeCachedConnections() or succeed(None)

    async def close(self) -> None:
        await self.hang_up()
