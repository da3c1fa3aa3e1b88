# SPDX-License-Identifier: GPL-2.0-or-later
"""What each action of a client costs in requests, counted by a server: the rows of the design's section 5."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from allmydata.storage.common import si_b2a
from pytest_twisted import ensureDeferred
from twisted.internet.defer import gatherResults

from tahoe_s3.store.upload import MAX_PARTS_BEHIND

from ..support.s3server import S3Server
from . import budget
from .node_here import MIB, NodeHere, fresh_index, open_here

PART = MIB


@pytest_twisted.async_yield_fixture
async def node(s3server: S3Server, tmp_path: Path) -> AsyncIterator[NodeHere]:
    """A node on an empty bucket, started, with the counts of the start forgotten; parts are 1 MiB."""
    from twisted.internet import reactor

    found = await open_here(reactor, s3server, tmp_path, part_size_bytes=PART)
    s3server.forget()
    yield found
    await found.close()
    assert not s3server.refused


def data(size: int) -> bytes:
    return os.urandom(size)


@ensureDeferred
async def test_asking_for_shares_costs_nothing(node: NodeHere, s3server: S3Server) -> None:
    index, other = fresh_index(), fresh_index()
    await node.upload(index, {0: data(100), 3: data(100)})
    await node.write_slot(other, [1, 2], data(100))
    s3server.forget()
    for _ in range(3):
        assert set(await node.server.get_buckets(index)) == {0, 3}
        assert await node.server.get_buckets(fresh_index()) == {}
        assert await node.server.enumerate_mutable_shares(other) == {1, 2}
        assert await node.server.slot_readv(fresh_index(), [], [(0, 10)]) == {}
    assert s3server.count() == {}


@ensureDeferred
async def test_allocating_costs_nothing(node: NodeHere, s3server: S3Server) -> None:
    had, writers = await node.server.allocate_buckets(fresh_index(), node.renew, node.cancel, {0, 1}, 1000)
    assert (had, set(writers)) == (set(), {0, 1})
    for writer in writers.values():
        await writer.abort()
    assert s3server.count() == {}


@ensureDeferred
async def test_allocating_what_is_there_puts_the_lease(node: NodeHere, s3server: S3Server) -> None:
    index = fresh_index()
    await node.upload(index, {0: data(100)})
    s3server.forget()
    assert await node.upload(index, {0: data(100)}, renew=b"another lease".ljust(32)) == {0}
    assert s3server.count() == {"PutObject": 1}


@ensureDeferred
async def test_a_share_of_one_part_is_one_put(node: NodeHere, s3server: S3Server) -> None:
    for size in (0, 1, 333_970, PART - 84):
        s3server.forget()
        await node.upload(fresh_index(), {0: data(size)})
        assert s3server.count() == {"PutObject": 1}, size


@ensureDeferred
async def test_a_larger_share_is_its_parts_and_two(node: NodeHere, s3server: S3Server) -> None:
    for size in (PART - 83, PART, 3 * PART + 5, 10 * PART):
        s3server.forget()
        index, body = fresh_index(), data(size)
        await node.upload(index, {0: body})
        expected = budget.of_upload([size + 84], part_bytes=PART)
        assert s3server.count() == expected, size
        assert await node.read(index, 0, [(0, size)]) == [body]


@ensureDeferred
async def test_parts_leave_while_the_client_still_writes(node: NodeHere, s3server: S3Server) -> None:
    parts = MAX_PARTS_BEHIND + 4
    size = parts * PART
    _, writers = await node.server.allocate_buckets(fresh_index(), node.renew, node.cancel, {0}, size)
    body = data(size)
    for start in range(0, parts // 2 * PART, PART):
        await writers[0].write(start, body[start : start + PART])
    gate = s3server.hold("CompleteMultipartUpload")
    for start in range(parts // 2 * PART, size, PART):
        await writers[0].write(start, body[start : start + PART])
    assert s3server.count()["UploadPart"] >= 2
    closing = writers[0].close()
    await gate.reached
    gate.release()
    await closing


@ensureDeferred
async def test_a_small_share_is_one_get_in_any_pattern(node: NodeHere, s3server: S3Server) -> None:
    index, body = fresh_index(), data(900_000)
    await node.upload(index, {0: body})
    s3server.forget()
    spans = [(0, 1024), (899_000, 1000), (400_000, 50_000), (0, 900_000), (7, 1)]
    assert await node.read(index, 0, spans) == [body[offset : offset + length] for offset, length in spans]
    assert s3server.count() == {"GetObject": 1}


def spans_of_a_client(size: int, tail_bytes: int, block_bytes: int) -> list[tuple[int, int]]:
    """Header, hash trees at the tail, then the blocks in order, with a hash read from the tail before each."""
    spans = [(0, 1024), (size - tail_bytes, 64), (size - 1000, 500)]
    for start in range(0, size - tail_bytes, block_bytes):
        spans += [(size - tail_bytes + start // block_bytes, 32), (start, block_bytes)]
    return spans


@ensureDeferred
async def test_a_large_share_is_read_in_windows(node: NodeHere, s3server: S3Server) -> None:
    size = 12 * MIB
    index, body = fresh_index(), data(size)
    await node.upload(index, {0: body})
    s3server.forget()
    spans = spans_of_a_client(size, 20_000, 349_526)
    assert await node.read(index, 0, spans) == [body[offset : offset + length] for offset, length in spans]
    counted = s3server.count()
    assert set(counted) == {"GetObject"}
    assert counted["GetObject"] <= budget.gets_of_share(size + 84)


@ensureDeferred
async def test_a_lease_is_one_put(node: NodeHere, s3server: S3Server) -> None:
    index, slot = fresh_index(), fresh_index()
    await node.upload(index, {0: data(100), 1: data(100)})
    await node.write_slot(slot, [0], data(100))
    for where in (index, slot):
        for secret in (b"first", b"second"):
            s3server.forget()
            await node.server.add_lease(where, secret.ljust(32), node.cancel)
            assert s3server.count() == {"PutObject": 1}
        s3server.forget()
        await node.server.renew_lease(where, b"first".ljust(32))
        assert s3server.count() == {"PutObject": 1}


@ensureDeferred
async def test_a_lease_on_nothing_costs_nothing(node: NodeHere, s3server: S3Server) -> None:
    await node.server.add_lease(fresh_index(), b"x" * 32, node.cancel)
    assert s3server.count() == {}


@ensureDeferred
async def test_leases_that_meet_share_a_put(node: NodeHere, s3server: S3Server) -> None:
    index = fresh_index()
    await node.upload(index, {0: data(100)})
    s3server.forget()
    gate = s3server.hold("PutObject", key="leases/")
    first = node.server.add_lease(index, b"0".ljust(32), node.cancel)
    await gate.reached
    later = [node.server.add_lease(index, b"%d".ljust(32) % number, node.cancel) for number in range(1, 6)]
    gate.release()
    await gatherResults([first, *later])
    assert s3server.count() == {"PutObject": 2}
    assert len(list(node.server.get_leases(index))) == 7


@ensureDeferred
async def test_a_mutable_share_is_one_put_each_time(node: NodeHere, s3server: S3Server) -> None:
    slot = fresh_index()
    for shares in ([0], [0], [0, 1, 2], [0, 1, 2]):
        s3server.forget()
        body = data(5000)
        assert await node.write_slot(slot, shares, body)
        assert s3server.count() == {"PutObject": len(shares)}
        s3server.forget()
        assert await node.read_slot(slot) == dict.fromkeys(shares, body)
        assert s3server.count() == {}


@ensureDeferred
async def test_a_mutable_share_that_is_not_cached_is_one_get(s3server: S3Server, tmp_path: Path) -> None:
    from twisted.internet import reactor

    slot, body = fresh_index(), data(5000)
    before = await open_here(reactor, s3server, tmp_path / "before")
    await before.write_slot(slot, [0], body)
    await before.close()
    node = await open_here(reactor, s3server, tmp_path / "after")
    s3server.forget()
    assert await node.read_slot(slot) == {0: body}
    assert s3server.count() == {"GetObject": 1}
    assert await node.read_slot(slot) == {0: body}
    assert s3server.count() == {"GetObject": 1}
    await node.close()


async def pass_time(node: NodeHere, reactor: Any, seconds: float, step: float) -> None:
    """Moves the node's clock, and lets the real reactor turn between the steps."""
    from twisted.internet.task import deferLater

    for _ in range(round(seconds / step)):
        node.clock.advance(step)
        await deferLater(reactor, 0)


@ensureDeferred
async def test_an_idle_hour_costs_nothing(node: NodeHere, s3server: S3Server) -> None:
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    index = fresh_index()
    await node.upload(index, {0: data(3 * PART)})
    await node.read(index, 0, [(0, 1000)])
    await node.write_slot(fresh_index(), [0], data(100))
    await deferLater(reactor, 0.3)
    s3server.forget()
    await pass_time(node, reactor, 3600, 5)
    await deferLater(reactor, 0.3)
    assert s3server.count() == {}


@ensureDeferred
async def test_a_start_lists_and_little_else(s3server: S3Server, tmp_path: Path) -> None:
    from twisted.internet import reactor

    objects = 2500
    node = await open_here(reactor, s3server, tmp_path / "first")
    await node.upload(fresh_index(), {0: data(100)})
    await node.close()
    body = next(iter(s3server.shares().values()))
    for _ in range(objects):
        name = si_b2a(fresh_index()).decode()
        s3server.bucket.put(f"shares/{name[:2]}/{name}/0", body, now_s=s3server.wall_s())
    s3server.forget()
    node = await open_here(reactor, s3server, tmp_path / "second")
    assert node.server.get_stats()["tahoe_s3.shares"] == objects + 1
    counted = s3server.count()
    listings = counted.pop("ListObjectsV2")
    assert 3 <= listings <= 3 + 6
    assert sum(counted.values()) <= 8
    await node.close()
