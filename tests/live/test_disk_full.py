# SPDX-License-Identifier: GPL-2.0-or-later
"""The spool's disk fills up in the middle of uploads, through the engine and on a real disk of a few MiB.

tests/store/test_disk_full.py has the cases one by one; here parts and PUTs are under way while it happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from ..store.helpers import KIB, pattern
from ..support.s3server import S3Server
from ..support.small_disk import CannotMount, MountedDisk
from .node_here import MIB, fresh_index, open_here

PART = MIB
UPLOADS = 8
SIZE = 2 * MIB + 300 * KIB
HALF = MIB + 100 * KIB
PIECE = 200 * KIB


@ensureDeferred
async def test_what_was_acknowledged_is_there_and_the_rest_leaves_nothing(s3server: S3Server, tmp_path: Path) -> None:
    from twisted.internet import reactor

    disk = MountedDisk(tmp_path / "disk", 40 * MIB)
    try:
        disk.__enter__()
    except CannotMount as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        node = await open_here(reactor, s3server, disk.folder, part_size_bytes=PART)
        index, other = fresh_index(), fresh_index()
        _, writers = await node.server.allocate_buckets(index, node.renew, node.cancel, set(range(UPLOADS)), SIZE)
        assert len(writers) == UPLOADS
        bodies = {shnum: pattern(SIZE, seed=shnum) for shnum in writers}
        stored: set[int] = set()
        failed: dict[int, BaseException] = {}

        async def write(shnum: int, writer: Any, start: int, stop: int) -> None:
            for begin in range(start, stop, PIECE):
                await writer.write(begin, bodies[shnum][begin : min(stop, begin + PIECE)])

        async def upload(shnum: int, writer: Any) -> None:
            try:
                await write(shnum, writer, HALF, SIZE)
                await writer.close()
                stored.add(shnum)
            except OSError as error:
                failed[shnum] = error
                await writer.abort()

        await gatherResults([Deferred.fromCoroutine(write(*one, 0, HALF)) for one in writers.items()])
        # Room for two of them to be completed.
        disk.leave(2 * (SIZE - HALF) + 400 * KIB)
        await gatherResults([Deferred.fromCoroutine(upload(*one)) for one in writers.items()], consumeErrors=True)
        assert len(stored) >= 2 and failed, "some went on, and some met a full disk"
        assert node.server._bucket_writers == {} and node.server.store.space.promised_bytes == 0
        assert not list(node.server.store.incoming_dir.glob("*.*"))
        disk.leave(None)
        assert await node.upload(other, {0: bodies[0]}) == set()
        readers = await node.server.get_buckets(index)
        assert set(readers) == stored
        for shnum in stored:
            assert await readers[shnum].read(0, SIZE) == bodies[shnum]
        await node.close()
        assert len(s3server.shares()) == len(stored) + 1 and not s3server.bucket.uploads
    finally:
        disk.__exit__()
