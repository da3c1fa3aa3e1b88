# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and read-test-writes through the real engine and HTTP, many at once, on connections that break."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from ..live.node_here import NodeHere, fresh_index, open_here
from ..support.s3server import S3Server
from .helpers import MIB, pattern

READS = 300
ROUNDS = 12


def start(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


@pytest_twisted.async_yield_fixture
async def node(s3server: S3Server, tmp_path: Path) -> AsyncIterator[NodeHere]:
    from twisted.internet import reactor

    opened = await open_here(reactor, s3server, tmp_path)
    yield opened
    await opened.close()


async def read_at_random(node: NodeHere, index: bytes, bodies: dict[int, bytes], rng: random.Random) -> None:
    readers = await node.server.get_buckets(index)

    async def one() -> None:
        shnum = rng.choice(list(bodies))
        offset = rng.randrange(len(bodies[shnum]))
        length = rng.choice([32, 1000, 70_000, 400_000, 3 * MIB])
        data = await readers[shnum].read(offset, length)
        assert data == bodies[shnum][offset : offset + length]

    await gatherResults([start(one()) for _ in range(READS)], consumeErrors=True)


@ensureDeferred
async def test_many_reads_at_once(node: NodeHere, s3server: S3Server) -> None:
    rng = random.Random(1)
    bodies = {shnum: pattern(4 * MIB + shnum * 1000, seed=shnum) for shnum in range(6)}
    index = fresh_index()
    for shnum, body in bodies.items():
        await node.upload(index, {shnum: body})
    await read_at_random(node, index, bodies, rng)
    assert s3server.count()["GetObject"] < READS // 2
    assert node.server.store.reads.stats()["bytes"] <= 64 * MIB + 6 * 8 * MIB


@ensureDeferred
async def test_many_reads_on_connections_that_break(node: NodeHere, s3server: S3Server) -> None:
    rng = random.Random(2)
    bodies = {shnum: pattern(3 * MIB + shnum, seed=shnum) for shnum in range(3)}
    index = fresh_index()
    for shnum, body in bodies.items():
        await node.upload(index, {shnum: body})
    s3server.drop("GetObject", times=4, body_limit_bytes=100_000)
    # The engine waits a moment before it tries again, on its own clock.
    await read_at_random(node, index, bodies, rng)


@ensureDeferred
async def test_mutable_slots_written_and_read_at_once(node: NodeHere, s3server: S3Server) -> None:
    """Every read gives what one write has written, whole; and the last one stays."""
    rng = random.Random(3)
    indexes = [fresh_index() for _ in range(4)]
    versions = {number: bytes([number]) * (1000 if number % 2 else 1_500_000) for number in range(ROUNDS)}

    async def write(index: bytes) -> None:
        for number in range(ROUNDS):
            assert await node.write_slot(index, [0, 1], versions[number])

    async def read(index: bytes) -> None:
        latest = {0: 0, 1: 0}
        for _ in range(3 * ROUNDS):
            if rng.random() < 0.3:
                node.server.store.cache.clear()
            for shnum, data in (await node.read_slot(index)).items():
                assert data == versions[data[0]] and data[0] >= latest[shnum], "a mixture, or a step back"
                latest[shnum] = data[0]

    for index in indexes:
        assert await node.write_slot(index, [0, 1], versions[0])
    await gatherResults([start(work(index)) for index in indexes for work in (write, read, read)], consumeErrors=True)
    for index in indexes:
        assert await node.read_slot(index) == {0: versions[ROUNDS - 1], 1: versions[ROUNDS - 1]}
    assert [path for path in node.server.store.incoming_dir.rglob("*") if path.is_file()] == []
