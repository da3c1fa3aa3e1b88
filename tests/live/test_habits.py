# SPDX-License-Identifier: GPL-2.0-or-later
"""A node's life on services with habits of their own (tests/support/habits.py).

What is stored is found again after a restart that keeps the index and after one that has to list the bucket; an error
is never an absence; nothing that was not stored is acknowledged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Callable

import pytest
import pytest_twisted
from allmydata.storage.common import si_b2a
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.defer import ensureDeferred as as_deferred
from twisted.internet.task import deferLater

from tahoe_s3.client import NotFound, S3Error
from tahoe_s3.store.keys import ShareId
from tahoe_s3.store.store import VANISH_CHECKS_S

from ..support.habits import RCLONE_CREATE, HabitServer, etag_of_parts
from .node_here import MIB, NodeHere, fresh_index, open_here


@pytest_twisted.async_yield_fixture
async def odd() -> AsyncIterator[HabitServer]:
    server = HabitServer(reactor, min_part_bytes=1)
    server.start()
    yield server
    await server.stop()


def share_key(storage_index: bytes, shnum: int) -> str:
    text = si_b2a(storage_index).decode()
    return f"shares/{text[:2]}/{text}/{shnum}"


async def patiently(node: NodeHere, work: Any, *, step_s: float = 0.5) -> Any:
    """The outcome of `work`, while the node's clock goes on."""
    done: list[Any] = []
    d: Deferred[Any] = as_deferred(work) if hasattr(work, "__await__") and not isinstance(work, Deferred) else work
    d.addBoth(done.append)
    for _ in range(1000):
        if done:
            break
        node.clock.advance(step_s)
        await deferLater(reactor, 0.01, lambda: None)  # type: ignore[arg-type]
    assert done, "it never ended"
    if hasattr(done[0], "raiseException"):
        done[0].raiseException()
    return done[0]


def prefix_etag(etag: str) -> str:
    return f'"listed-{etag[1:9]}"'


def refuse(odd: HabitServer, **answers: tuple[int, str]) -> None:
    odd.habits.refused.update(answers)


def set_all(target: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(target, name, value)


HABITS: dict[str, Callable[[HabitServer], None]] = {
    "amazon": lambda odd: None,
    "v1 only": lambda odd: (refuse(odd, ListObjectsV2=(501, "NotImplemented")), set_all(odd.settings, page_size=4))[0],
    "refuses with 400": lambda odd: refuse(
        odd, ListMultipartUploads=(400, "InvalidArgument"), GetBucketVersioning=(400, "InvalidRequest"),
        GetObjectLockConfiguration=(400, ""), DeleteObjects=(400, "InvalidRequest"), ListObjectsV2=(400, ""),
    ),
    "refuses with 405": lambda odd: refuse(
        odd, ListMultipartUploads=(405, "MethodNotAllowed"), GetBucketVersioning=(405, ""),
        GetObjectLockConfiguration=(404, "NoSuchKey"), DeleteObjects=(405, "MethodNotAllowed"),
    ),
    "takes questions for listings": lambda odd: (
        set_all(odd.settings, page_size=4), set_all(odd.habits, takes_for_listing={
            "ListObjectsV2", "ListMultipartUploads", "GetBucketVersioning", "GetObjectLockConfiguration"})
    )[0],
    "unsorted": lambda odd: (
        set_all(odd.bucket, shuffled=True, overlap=2), set_all(odd.settings, page_size=3, escape_slash=True)
    )[0],
    "folders as keys": lambda odd: [
        odd.bucket.put(key, b"", now_s=1.0) for key in ("shares/", "shares/aa/", "leases/", "shares/incoming/", "x/y")
    ] and None,
    "opaque ETags": lambda odd: set_all(odd.bucket, opaque_etags=True),
    "other ETags in listings": lambda odd: set_all(odd.bucket, listed_etag=prefix_etag),
    "no ETags in listings": lambda odd: set_all(odd.bucket, listed_etag=lambda _: ""),
    "no ETags of writes": lambda odd: odd.habits.without.update(
        PutObject={"etag", "last-modified"}, CompleteMultipartUpload={"etag"}
    ),
    "other ETags of Complete": lambda odd: odd.habits.bodies.update(CompleteMultipartUpload=etag_of_parts),
    "as rclone": lambda odd: odd.habits.bodies.update(CreateMultipartUpload=RCLONE_CREATE),
    "no dates": lambda odd: odd.habits.without.update(GetObject={"last-modified"}, HeadObject={"last-modified"}),
    "chunked": lambda odd: set_all(odd.habits, chunked=True, lower_case=True),
    "closes": lambda odd: set_all(odd.habits, closes="silently"),
    "Connection: close": lambda odd: set_all(odd.habits, closes="says", chunked=True),
    "region": lambda odd: (set_all(odd.settings, region="eu-far-7"), set_all(odd.habits, region_status=301))[0],
}  # fmt: skip


async def restart(node: NodeHere, odd: HabitServer, folder: Path, *, forget: bool) -> NodeHere:
    await node.close()
    if forget:
        shutil.rmtree(folder / "storage")
    return await open_here(reactor, odd, folder, part_size_bytes=MIB)


@pytest.mark.parametrize("habit", HABITS)
@ensureDeferred
async def test_a_life(odd: HabitServer, tmp_path: Path, habit: str) -> None:
    HABITS[habit](odd)
    node = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB)
    small, large, slot = fresh_index(), fresh_index(), fresh_index()
    data = {number: os.urandom(2_500_000) for number in (0, 7)}
    await node.upload(small, dict.fromkeys(range(5), b"small share"))
    await node.upload(large, data)
    assert await node.write_slot(slot, [0, 1], b"mutable")
    for forget in (False, True):
        await node.server.add_lease(small, os.urandom(32), os.urandom(32))
        node = await restart(node, odd, tmp_path, forget=forget)
        assert set(await node.server.get_buckets(small)) == set(range(5))
        assert await node.read(small, 4, [(0, 100)]) == [b"small share"]
        for number in data:
            spans = [(2_499_000, 1000), (0, 2_500_000)]
            assert await node.read(large, number, spans) == [data[number][2_499_000:], data[number]]
        assert await node.read_slot(slot) == {0: b"mutable", 1: b"mutable"}
        assert await node.write_slot(slot, [0, 1], b"changed") and await node.write_slot(slot, [0, 1], b"mutable")
        assert await node.upload(small, {0: b"small share"}) == set(range(5))
    assert await node.server.get_buckets(fresh_index()) == {}
    await node.close()


# listings and reads that lag


@ensureDeferred
async def test_what_a_lagging_listing_does_not_show_stays_known(odd: HabitServer, tmp_path: Path) -> None:
    node = await open_here(reactor, odd, tmp_path)
    odd.bucket.lag = True
    index, slot = fresh_index(), fresh_index()
    await node.upload(index, {0: b"fresh"})
    assert await node.write_slot(slot, [2], b"fresh too")
    node = await restart(node, odd, tmp_path, forget=False)
    for _ in range(2):
        assert await node.read(index, 0, [(0, 10)]) == [b"fresh"]
        assert await node.read_slot(slot) == {2: b"fresh too"}
        node.clock.advance(sum(VANISH_CHECKS_S))
        await deferLater(reactor, 0.2, lambda: None)  # type: ignore[arg-type]
    await node.close()


@ensureDeferred
async def test_what_a_lagging_listing_shows_still_is_an_error_until_it_is_sure(
    odd: HabitServer, tmp_path: Path
) -> None:
    """A share that was deleted behind the node's back: no absence before three HEADs over minutes said so."""
    node = await open_here(reactor, odd, tmp_path)
    index = fresh_index()
    await node.upload(index, {0: b"gone!", 1: b"there"})
    odd.bucket.lag = True
    odd.bucket.delete(share_key(index, 0))
    node = await restart(node, odd, tmp_path, forget=True)
    assert set(await node.server.get_buckets(index)) == {0, 1}
    assert await node.read(index, 1, [(0, 10)]) == [b"there"]
    with pytest.raises(S3Error) as caught:
        await patiently(node, node.read(index, 0, [(0, 10)]))
    assert isinstance(caught.value, NotFound)
    assert set(await node.server.get_buckets(index)) == {0, 1}
    for _ in range(100):
        node.clock.advance(10)
        await deferLater(reactor, 0.01, lambda: None)  # type: ignore[arg-type]
    assert set(await node.server.get_buckets(index)) == {1}
    assert await node.read(index, 1, [(0, 10)]) == [b"there"]
    await node.close()


@ensureDeferred
async def test_what_is_there_may_seem_absent_for_a_moment(odd: HabitServer, tmp_path: Path) -> None:
    node = await open_here(reactor, odd, tmp_path)
    index, slot = fresh_index(), fresh_index()
    data = os.urandom(2_000_000)
    await node.upload(index, {0: data})
    await node.write_slot(slot, [0], b"first")
    node = await restart(node, odd, tmp_path, forget=True)
    odd.bucket.absent = {share_key(index, 0): 2, share_key(slot, 0): 2}
    assert await patiently(node, node.read(index, 0, [(0, 2_000_000)])) == [data]
    assert await patiently(node, node.read_slot(slot)) == {0: b"first"}
    odd.bucket.absent = {share_key(slot, 0): 2}
    assert await patiently(node, node.write_slot(slot, [0], b"second"))
    odd.bucket.absent = {share_key(slot, 0): 2}
    assert await patiently(node, node.read_slot(slot)) == {0: b"second"}
    await node.close()


@ensureDeferred
async def test_leases_that_seem_absent_are_not_lost(odd: HabitServer, tmp_path: Path) -> None:
    """The next renewal is told of an error, rather than writing the lease object without the others."""
    node = await open_here(reactor, odd, tmp_path)
    index = fresh_index()
    await node.upload(index, {0: b"data"})
    for number in range(3):
        await node.server.add_lease(index, bytes([number]) * 32, bytes([number]) * 32)
    node = await restart(node, odd, tmp_path, forget=True)
    odd.bucket.absent = {share_key(index, 0).replace("shares", "leases")[:-2]: 1}
    with pytest.raises(S3Error):
        await node.server.add_lease(index, b"3" * 32, b"3" * 32)
    assert list(odd.bucket.absent.values()) == [0]
    await node.server.add_lease(index, b"4" * 32, b"4" * 32)
    assert len(node.server.store.index.overlay(index).leases) == 4
    await node.close()


# writes


@ensureDeferred
async def test_complete_that_fails_behind_a_200(odd: HabitServer, tmp_path: Path) -> None:
    node = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB)
    index, other = fresh_index(), fresh_index()
    data = os.urandom(2_500_000)
    odd.habits.complete_fails = 2
    await node.upload(index, {0: data})
    assert await node.read(index, 0, [(0, 2_500_000)]) == [data]
    odd.habits.complete_fails = 99
    with pytest.raises(S3Error):
        await node.upload(other, {0: data})
    assert await node.server.get_buckets(other) == {}
    assert share_key(other, 0) not in odd.bucket.objects
    odd.habits.complete_fails = 0
    await node.upload(other, {0: data})
    assert await node.read(other, 0, [(0, 2_500_000)]) == [data]
    await node.close()


@ensureDeferred
async def test_reading_after_complete_named_another_etag(odd: HabitServer, tmp_path: Path) -> None:
    """The first GET tells the ETag; none is thrown away, and nothing is asked beside."""
    odd.habits.bodies["CompleteMultipartUpload"] = etag_of_parts
    node = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB)
    index, data = fresh_index(), os.urandom(2_500_000)
    await node.upload(index, {0: data})
    odd.log.clear()
    assert await node.read(index, 0, [(0, 2_500_000)]) == [data]
    assert await node.read(index, 0, [(2_499_000, 1000)]) == [data[2_499_000:]]
    assert {seen.operation for seen in odd.log} == {"GetObject"}
    ranges = [seen.values("range") for seen in odd.log]
    assert all(ranges.count(one) == 1 for one in ranges)
    await node.close()


@ensureDeferred
async def test_a_large_mutable_share_whose_complete_named_another_etag(odd: HabitServer, tmp_path: Path) -> None:
    """Whether its copy is there or not, and over restarts, it is the version that was written last."""
    odd.habits.bodies["CompleteMultipartUpload"] = etag_of_parts
    node, slot = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB), fresh_index()
    first, second = os.urandom(2_500_000), os.urandom(2_500_000)
    assert await node.write_slot(slot, [0], first)
    assert await node.read_slot(slot) == {0: first}
    node.server.store.cache.drop(ShareId(slot, 0))
    assert await node.read_slot(slot) == {0: first}
    assert await node.write_slot(slot, [0], second)
    for forget in (False, True):
        node = await restart(node, odd, tmp_path, forget=forget)
        assert await node.read_slot(slot) == {0: second}
    assert await node.write_slot(slot, [0], first)
    node.server.store.cache.drop(ShareId(slot, 0))
    assert await node.write_slot(slot, [0], second)
    assert await node.read_slot(slot) == {0: second}
    await node.close()


@pytest.mark.parametrize("status", [200, 502])
@ensureDeferred
async def test_a_page_for_people_acknowledges_nothing(odd: HabitServer, tmp_path: Path, status: int) -> None:
    """A proxy answers every write, with success too: the client is told of an error, and of no share."""
    node = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB)
    small, large, slot = fresh_index(), fresh_index(), fresh_index()
    await node.write_slot(slot, [0], b"first")
    operations = ("PutObject", "UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload")
    odd.habits.page_status, odd.habits.pages = status, dict.fromkeys(operations, 10_000)
    for index, size in ((small, 10), (large, 2_500_000)):
        with pytest.raises(S3Error):
            await node.upload(index, {0: os.urandom(size)})
    with pytest.raises(S3Error):
        await node.write_slot(slot, [0], b"second")
    for index in (small, large):
        assert await node.server.get_buckets(index) == {}
    assert await node.read_slot(slot) == {0: b"first"}
    odd.habits.pages = {}
    for index, size in ((small, 10), (large, 2_500_000)):
        data = os.urandom(size)
        await node.upload(index, {0: data})
        assert await node.read(index, 0, [(0, size)]) == [data]
    assert await node.write_slot(slot, [0], b"third")
    assert await node.read_slot(slot) == {0: b"third"}
    await node.close()


@ensureDeferred
async def test_pages_and_throttles_now_and_then(odd: HabitServer, tmp_path: Path) -> None:
    """Every kind of request fails once or twice, and nobody notices."""
    node = await open_here(reactor, odd, tmp_path, part_size_bytes=MIB)
    operations = (
        "PutObject", "UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload", "GetObject", "HeadObject",
        "ListObjectsV2", "GetBucketVersioning", "ListMultipartUploads",
    )  # fmt: skip
    index, slot, data = fresh_index(), fresh_index(), os.urandom(2_500_000)
    odd.habits.pages = dict.fromkeys(operations, 2)
    odd.fail("UploadPart", status=429, code="TooManyRequests", times=1)
    await node.upload(index, {0: data})
    await node.write_slot(slot, [0], b"mutable")
    node = await restart(node, odd, tmp_path, forget=True)
    assert await node.read(index, 0, [(0, 2_500_000)]) == [data]
    assert await node.read_slot(slot) == {0: b"mutable"}
    assert {name: left for name, left in odd.habits.pages.items() if left} == {"HeadObject": 2}
    await node.close()
