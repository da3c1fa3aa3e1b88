# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's own HTTP client and S3HTTPServer through a real socket: Tahoe's protocol switch, TLS, slow clients.

What a test without a network cannot show: that an answer which breaks off is an error to the client, and that the
server reads no faster than the socket takes.
"""
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from allmydata import protocol_switch
from allmydata.storage.http_client import (
    ClientException,
    StorageClientFactory,
    StorageClientGeneral,
    StorageClientImmutables,
    UploadProgress,
)
from foolscap.api import flushEventualQueue
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool, ResponseFailed

from tahoe_s3.http import S3HTTPServer
from tahoe_s3.http_stream import PIECE_BYTES
from tahoe_s3.s3errors import Unavailable

from .held_server import HeldServer
from .http_talk import DATA, IMMUTABLE, SI
from .raw_http import SWISSNUM

S3_DOWN = Unavailable("the proxy said no", operation="GetObject", method="GET", key="shares/zz/zzz/0", status=503)
BIG = DATA * 16_000


class Net:
    """A Tub that speaks HTTPS too, as a node has it, and Tahoe's client for it."""

    def __init__(self, folder: Path) -> None:
        self.server = HeldServer(str(folder), reactor)
        self.tub = protocol_switch.create_tub_with_https_support()
        self.pool = HTTPConnectionPool(reactor)
        self.client: Any = None
        self.shares: Any = None

    async def start(self) -> None:
        self.tub.startService()
        listener = self.tub.listenOn("tcp:0:interface=127.0.0.1")
        self.tub.setLocation(f"tcp:127.0.0.1:{listener.getPortnum()}")
        (nurl,) = self.tub.negotiationClass.add_storage_server(self.server, SWISSNUM)
        factory = StorageClientFactory(default_connection_handlers={"tcp": "tcp"}, tor_provider=None)
        self.client = await factory.create_storage_client(nurl, reactor, self.pool)
        self.shares = StorageClientImmutables(self.client)

    async def stop(self) -> None:
        await self.pool.closeCachedConnections()
        await self.tub.stopService()
        await flushEventualQueue()

    async def upload(self, number: int, data: bytes) -> UploadProgress:
        await self.shares.create(SI, {number}, len(data), b"upload", b"r" * 32, b"c" * 32)
        return await self.write(number, 0, data)

    async def write(self, number: int, offset: int, data: bytes) -> UploadProgress:
        progress: UploadProgress = await self.shares.write_share_chunk(SI, number, b"upload", offset, data)
        return progress

    async def get(self, path: str) -> Any:
        return await self.client.request("GET", self.client.relative_url(path), unbuffered=True)

    def reads(self) -> int:
        return self.server.gate.calls.count("read")


@pytest_twisted.async_yield_fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setattr(protocol_switch, "HTTPServer", S3HTTPServer)
    net = Net(tmp_path / "storage")
    await net.start()
    yield net
    await net.stop()


class SlowReader(Protocol):
    """Takes nothing before it is told to resume."""

    def __init__(self) -> None:
        self.received = 0
        self.ended: Deferred[Failure] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.ended.callback(None)


async def read_slowly(net: Net) -> SlowReader:
    """Ask for the big share, and pause when its body begins."""
    response = await net.get(IMMUTABLE + "/0")
    reader = SlowReader()
    response.deliverBody(reader)
    reader.transport.pauseProducing()  # type: ignore[union-attr]
    return reader


async def settled(net: Net) -> int:
    """The number of reads when it no longer grows."""
    before = -1
    while before != net.reads():
        before = net.reads()
        await deferLater(reactor, 0.2)
    return before


@pytest_twisted.ensureDeferred
async def test_upload_and_download(net: Net) -> None:
    assert (await net.upload(0, DATA)).finished
    assert await net.shares.list_shares(SI) == {0}
    assert await net.shares.read_share_chunk(SI, 0, 10, 100) == DATA[10:110]
    assert await net.shares.read_share_chunk(SI, 0, 99999, 100) == b""
    assert await StorageClientGeneral(net.client).get_version()


@pytest_twisted.ensureDeferred
async def test_errors_of_the_bucket(net: Net) -> None:
    """Tahoe's client takes a 503 for an error with that code, whatever it asked for."""
    await net.upload(0, DATA)
    gate = net.server.gate
    for name, asking in (
        ("get_buckets", lambda: net.shares.list_shares(SI)),
        ("read", lambda: net.shares.read_share_chunk(SI, 0, 0, 10)),
        ("close", lambda: net.upload(1, DATA)),
        ("add_lease", lambda: StorageClientGeneral(net.client).add_or_renew_lease(SI, b"r" * 32, b"c" * 32)),
    ):
        gate.fail(name, S3_DOWN)
        with pytest.raises(ClientException) as caught:
            await asking()
        assert caught.value.code == 503, name


@pytest_twisted.ensureDeferred
async def test_answer_that_breaks_off(net: Net) -> None:
    await net.upload(0, BIG)
    net.server.gate.fail("read", S3_DOWN, after=3)
    with pytest.raises(ResponseFailed):
        await net.shares.read_share_chunk(SI, 0, 0, len(BIG) // 2)


@pytest_twisted.ensureDeferred
async def test_slow_client(net: Net) -> None:
    """The server reads no more than what the sockets take, and goes on when the client does."""
    await net.upload(0, BIG)
    reader = await read_slowly(net)
    stopped_at = await settled(net)
    assert stopped_at * PIECE_BYTES < len(BIG) // 2
    reader.transport.resumeProducing()  # type: ignore[union-attr]
    await reader.ended
    assert reader.received == len(BIG)
    assert net.reads() == -(-len(BIG) // PIECE_BYTES)


@pytest_twisted.ensureDeferred
async def test_client_that_hangs_up(net: Net) -> None:
    await net.upload(0, BIG)
    reader = await read_slowly(net)
    stopped_at = await settled(net)
    # Agent's proxy has no abortConnection; closing politely would wait for what the client does not read.
    reader.transport._producer.abortConnection()  # type: ignore[union-attr]
    await reader.ended
    assert await settled(net) == stopped_at
    assert net.server.gate.cancelled == []
