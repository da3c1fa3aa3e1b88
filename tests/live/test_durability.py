# SPDX-License-Identifier: GPL-2.0-or-later
"""Acknowledged means durable: nothing is answered, or seen by anyone, before the bucket has it; also after kill -9.

A real node as a process, Tahoe's own clients over both protocols, and an S3 server that holds its answers back.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from ..support.grid import Grid, StorageNode
from ..support.nodes import S3Backend
from ..support.s3server import S3Server
from .node_here import fresh_index
from .wire import PROTOCOLS, Peer, RefusedByNode, plain

PART = 2**20
SMALL, LARGE = 100_000, 3 * PART + 17
LAST_REQUEST = {SMALL: "PutObject", LARGE: "CompleteMultipartUpload"}
WAIT_S = 0.7


class Setting:
    """A node on the test's S3 server, and its clients."""

    def __init__(self, reactor: Any, server: S3Server, grid: Grid, node: StorageNode) -> None:
        self.reactor, self.server, self.grid, self.node = reactor, server, grid, node
        self.peers: list[Peer] = []

    async def peer(self, protocol: str) -> Peer:
        found = await Peer.connect(self.reactor, self.node, protocol=protocol)
        self.peers.append(found)
        return found

    async def close_peers(self) -> None:
        peers, self.peers = self.peers, []
        for peer in peers:
            await peer.close()

    async def kill_and_start(self) -> None:
        """kill -9, then whatever the S3 server still holds happens, then a new start."""
        await deferToThread(self.node.kill)
        await self.close_peers()
        self.server.clear_rules()
        await deferToThread(self.node.start)

    async def pause(self) -> None:
        await deferLater(self.reactor, WAIT_S)


@pytest_twisted.async_yield_fixture
async def setting(s3server: S3Server, tmp_path: Path) -> AsyncIterator[Setting]:
    from twisted.internet import reactor

    access_key_id, secret = next(iter(s3server.secrets.items()))
    options = {"part_size": str(PART), "region": "us-east-1"}
    backend = S3Backend(s3server.url, s3server.bucket_name, access_key_id, secret, options=options)
    grid = Grid(tmp_path / "grid", with_introducer=False)
    await deferToThread(grid.__enter__)
    try:
        node = await deferToThread(grid.add_storage, "storage", backend)
        found = Setting(reactor, s3server, grid, node)
        yield found
        await found.close_peers()
    finally:
        s3server.clear_rules()
        await deferToThread(grid.stop)
    assert not s3server.refused


def swallow(result: Deferred[Any]) -> list[Any]:
    """Collects how a Deferred ends; the list stays empty while it has not."""
    ended: list[Any] = []
    result.addBoth(ended.append)
    return ended


@ensureDeferred
async def test_nothing_is_acknowledged_or_seen_before_the_bucket_has_it(setting: Setting) -> None:
    for protocol in PROTOCOLS:
        writer, other = await setting.peer(protocol), await setting.peer(protocol)
        for size in (SMALL, LARGE):
            index, body = fresh_index(), os.urandom(size)
            gate = setting.server.hold(LAST_REQUEST[size], key="shares/")
            writers = await writer.allocate(index, {0}, size)
            ended = swallow(writer.write_and_close(writers[0], body))
            await gate.reached
            await setting.pause()
            assert not ended, f"{protocol}: acknowledged before the bucket had it"
            for peer in (writer, other):
                assert await peer.shares(index) == {}, f"{protocol}: seen before the bucket had it"
            setting.server.clear_rules()
            while not ended:
                await deferLater(setting.reactor, 0.05)
            assert ended == [None]
            assert await other.read(index, 0, size) == body


@ensureDeferred
async def test_a_change_is_not_acknowledged_or_seen_before_the_bucket_has_it(setting: Setting) -> None:
    for protocol in PROTOCOLS:
        writer, other = await setting.peer(protocol), await setting.peer(protocol)
        slot, secrets = fresh_index(), (b"w" * 32, b"r" * 32, b"c" * 32)
        change = writer.storage.slot_testv_and_readv_and_writev
        await change(slot, secrets, {0: ([], [(0, b"old")], None)}, [])
        gate = setting.server.hold("PutObject", key="shares/")
        ended = swallow(change(slot, secrets, {0: ([], [(0, b"new")], None)}, []))
        await gate.reached
        await setting.pause()
        assert not ended
        assert await other.storage.slot_readv(slot, [0], [(0, 10)]) == {0: [b"old"]}
        setting.server.clear_rules()
        while not ended:
            await deferLater(setting.reactor, 0.05)
        assert ended[0][0] is True
        assert await other.storage.slot_readv(slot, [0], [(0, 10)]) == {0: [b"new"]}


@ensureDeferred
async def test_a_lease_is_not_acknowledged_before_the_bucket_has_it(setting: Setting) -> None:
    for protocol in PROTOCOLS:
        peer, index = await setting.peer(protocol), fresh_index()
        writers = await peer.allocate(index, {0}, SMALL)
        await peer.write_and_close(writers[0], os.urandom(SMALL))
        gate = setting.server.hold("PutObject", key="leases/")
        ended = swallow(peer.storage.add_lease(index, b"R" * 32, b"C" * 32))
        await gate.reached
        await setting.pause()
        assert not ended
        setting.server.clear_rules()
        while not ended:
            await deferLater(setting.reactor, 0.05)
        assert ended == [None]
        setting.server.fail("PutObject", key="leases/", status=403, code="AccessDenied", times=None)
        with pytest.raises(RefusedByNode):
            await plain(peer.storage.add_lease(index, b"S" * 32, b"C" * 32))
        setting.server.clear_rules()


@pytest.mark.parametrize("applied", [False, True], ids=["never applied", "applied"])
@ensureDeferred
async def test_after_kill_a_share_is_whole_or_absent(setting: Setting, applied: bool) -> None:
    stored: dict[bytes, bytes] = {}
    writer = await setting.peer("foolscap")
    for size in (SMALL, LARGE):
        gate = setting.server.hold(LAST_REQUEST[size], key="shares/", applied=applied)
        index, body = fresh_index(), os.urandom(size)
        stored[index] = body
        writers = await writer.allocate(index, {0}, size)
        swallow(writer.write_and_close(writers[0], body))
        await gate.reached
    # A third one is killed in the middle of its writes, and leaves an upload behind.
    half = fresh_index()
    writers = await writer.allocate(half, {0}, LARGE)
    await writers[0].callRemote("write", 0, os.urandom(2 * PART + 1000))
    await setting.pause()
    await setting.kill_and_start()
    assert not setting.server.bucket.uploads, "an unfinished upload was left in the bucket"
    reader = await setting.peer("http")
    assert await reader.shares(half) == {}
    for index, body in stored.items():
        there = await reader.shares(index)
        assert set(there) <= {0}
        if there or applied:
            assert await reader.read(index, 0, len(body)) == body
        # Either way, what the client does next works: it stores the share again, or learns that it is there.
        again = await reader.allocate(index, {0}, len(body))
        assert set(again) == (set() if there else {0})
        if again:
            await reader.write_and_close(again[0], body)
            assert await reader.read(index, 0, len(body)) == body


@ensureDeferred
async def test_a_failed_upload_is_an_error_and_leaves_nothing(setting: Setting) -> None:
    for protocol in PROTOCOLS:
        writer = await setting.peer(protocol)
        for size in (SMALL, LARGE):
            for status, code in ((403, "AccessDenied"), (500, "InternalError")):
                index, body = fresh_index(), os.urandom(size)
                setting.server.fail(LAST_REQUEST[size], key="shares/", status=status, code=code, times=None)
                writers = await writer.allocate(index, {0}, size)
                # Over HTTP only the write fails, and a close would wait for ever, so both are one.
                with pytest.raises(RefusedByNode):
                    await writer.write_and_close(writers[0], body)
                setting.server.clear_rules()
                assert await writer.shares(index) == {}
                await setting.pause()
                assert not setting.server.bucket.uploads
                spooled = [path for path in (setting.node.storage_dir / "incoming").rglob("*") if path.is_file()]
                assert not spooled
                again = await writer.allocate(index, {0}, size)
                await writer.write_and_close(again[0], body)
                assert await writer.read(index, 0, size) == body
