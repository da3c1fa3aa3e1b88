# SPDX-License-Identifier: GPL-2.0-or-later
"""The same storm as test_storm.py in small, through the real engine: what it says of a failed request's outcome is
what the store builds on, so nothing acknowledged may be lost here either."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from tahoe_s3.client import S3Error
from tahoe_s3.store.leases import hash_secret
from tahoe_s3.store.upload import ShareWriter

from ..live.node_here import NodeHere, fresh_index, open_here
from ..support.s3server import S3Server
from .helpers import pattern
from .servers import CANCEL

ENABLER = b"w" * 32
PART = 1024 * 1024
ATTEMPTS = 5
OPERATIONS = ["PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "HeadObject", "GetObject"]


class Storm:
    def __init__(self, s3server: S3Server, node: NodeHere, seed: int) -> None:
        self.s3server, self.node = s3server, node
        self.chance = random.Random(seed)
        self.shares: dict[tuple[bytes, int], bytes] = {}
        self.slots: dict[bytes, list[bytes]] = {}
        self.leases: set[tuple[bytes, bytes]] = set()
        self.failed = 0

    def worsen(self) -> None:
        """The next requests of some kind fail: fewer than are tried again, or all of them."""
        operation = self.chance.choice(OPERATIONS)
        times = self.chance.choice([1, 2, ATTEMPTS, ATTEMPTS + 1])
        applied = self.chance.random() < 0.5
        if self.chance.random() < 0.5:
            self.s3server.drop(operation, times=times, applied=applied)
        else:
            self.s3server.fail(operation, times=times, applied=applied, status=500, code="InternalError")

    async def expect(self, deferred: Deferred[Any]) -> Any:
        """The result, or None where the bucket failed."""
        try:
            return await deferred
        except S3Error:
            self.failed += 1
            return None

    async def upload(self) -> None:
        index, shnum = fresh_index(), self.chance.randrange(5)
        data = pattern(self.chance.choice([100, 2 * PART + 5]), seed=self.chance.randrange(1000))
        secret = self.chance.randbytes(32)
        answer = await self.expect(self.node.server.allocate_buckets(index, secret, CANCEL, [shnum], len(data)))
        if answer is None:
            return
        writer: ShareWriter = answer[1][shnum]
        try:
            for start in range(0, len(data), PART):
                await writer.write(start, data[start : start + PART])
            await writer.close()
        except S3Error:
            self.failed += 1
            await writer.abort()
        else:
            self.shares[index, shnum] = data
            self.leases.add((index, secret))

    async def lease(self) -> None:
        if self.shares:
            index, _ = self.chance.choice(list(self.shares))
            secret = self.chance.randbytes(32)
            adding = self.node.server.add_lease(index, secret, CANCEL)
            try:
                await adding
            except S3Error:
                self.failed += 1
            else:
                self.leases.add((index, secret))

    async def write(self) -> None:
        index = self.chance.choice(list(self.slots)) if self.slots and self.chance.random() < 0.7 else fresh_index()
        content = self.chance.randbytes(16) + pattern(self.chance.choice([50, PART + 9]))
        secrets = (ENABLER, b"r" * 32, CANCEL)
        vectors = {0: ([], [(0, content)], len(content))}
        calling = self.node.server.slot_testv_and_readv_and_writev(index, secrets, vectors, [])
        answer = await self.expect(calling)
        self.slots[index] = [content] if answer is not None else [*self.slots.get(index, [b""]), content]

    async def check(self) -> None:
        server = self.node.server
        for (index, shnum), data in self.shares.items():
            readers = await server.get_buckets(index)
            assert await readers[shnum].read(0, len(data) + 1) == data
        for index, contents in self.slots.items():
            answer = await server.slot_readv(index, [], [(0, 3 * PART)])
            assert answer.get(0, [b""])[0] in contents
        for index, secret in self.leases:
            await server.store.slots.run(index, lambda index=index: server.store.overlay.read(index))
            known = {}
            for row in server.store.index.shares(index):
                await server.store.learn_leases(index, row.shnum)
                known.update({one.renew_hash: one for one in server.store.index.leases(index, row.shnum)})
            assert known[hash_secret(secret)].expiration_s > server._clock.seconds() + DEFAULT_RENEWAL_TIME - 3600


@pytest.mark.parametrize("seed", range(3))
@ensureDeferred
async def test_nothing_acknowledged_is_lost_over_the_wire(s3server: S3Server, tmp_path: Path, seed: int) -> None:
    from twisted.internet import reactor

    node = await open_here(reactor, s3server, tmp_path / "first", part_size_bytes=PART)
    storm = Storm(s3server, node, seed)
    for _ in range(40):
        if storm.chance.random() < 0.6:
            storm.worsen()
        await storm.chance.choice([storm.upload, storm.upload, storm.lease, storm.write, storm.write])()
    s3server.clear_rules()
    assert storm.failed and storm.shares and storm.slots and storm.leases
    await storm.check()
    await node.close()
    storm.node = await open_here(reactor, s3server, tmp_path / "second", part_size_bytes=PART)
    await storm.check()
    await storm.node.close()
