# SPDX-License-Identifier: GPL-2.0-or-later
"""One node's folder copied elsewhere, and both started with `tahoe run`: the earlier one notices and stops writing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from ..support.grid import Grid, StorageNode
from ..support.nodes import S3Backend, free_endpoint
from ..support.s3server import S3Server
from .node_here import fresh_index
from .wire import PROTOCOLS, Peer, RefusedByNode, plain

WAIT_S = 60.0
DATA = b"share" * 100
#: Two minutes are too long for a test; so is nothing else of it.
SOONER = """
from tahoe_s3.store import watch
watch.LOOK_EVERY_S = watch.AGAIN_S = 0.5
"""


async def until(happened: Callable[[], bool], what: str) -> None:
    from twisted.internet import reactor

    end_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end_s, f"waited {WAIT_S:.0f} seconds for {what}"
        await deferLater(reactor, 0.05)  # type: ignore[arg-type]


def copy_of(grid: Grid, node: StorageNode, name: str) -> StorageNode:
    """The whole folder, at another address."""
    found = StorageNode(grid.folder / name)
    shutil.copytree(node.folder, found.folder)
    port, location = free_endpoint()
    found.edit("node", tub__port=port, tub__location=location)
    grid.nodes.append(found)
    return found


@ensureDeferred
async def test_a_copy_that_is_started_supersedes_the_first(s3server: S3Server, tmp_path: Path) -> None:
    from twisted.internet import reactor

    (tmp_path / "sooner").mkdir()
    (tmp_path / "sooner" / "sitecustomize.py").write_text(SOONER)
    path = os.pathsep.join(filter(None, (str(tmp_path / "sooner"), os.environ.get("PYTHONPATH", ""))))
    access_key_id, secret = next(iter(s3server.secrets.items()))
    backend = S3Backend(s3server.url, s3server.bucket_name, access_key_id, secret)
    grid = Grid(tmp_path / "grid", with_introducer=False)
    await deferToThread(grid.__enter__)
    peers: list[Peer] = []
    try:
        first = await deferToThread(grid.create_storage, "first", backend)
        await deferToThread(lambda: first.start(environment={"PYTHONPATH": path}))
        peers += [await Peer.connect(reactor, first, protocol=protocol) for protocol in PROTOCOLS]
        index = fresh_index()
        writers = await peers[0].allocate(index, {0}, len(DATA))
        await peers[0].write_and_close(writers[0], DATA)
        second = await deferToThread(copy_of, grid, first, "second")
        await deferToThread(second.start)
        peers.append(await Peer.connect(reactor, second, protocol="http"))
        await deferLater(reactor, 0.6)  # type: ignore[arg-type]
        writers = await peers[0].allocate(fresh_index(), {0}, len(DATA))
        # The write that makes it look may end well or not: both requests are under way at once.
        with suppress(RefusedByNode):
            await peers[0].write_and_close(writers[0], DATA)
        await until(lambda: "was started a second time" in first.log_end(), "the first one to notice")
        s3server.forget()
        for peer in peers[:2]:
            with pytest.raises(RefusedByNode):
                await plain(peer.storage.get_buckets(index))
            with pytest.raises(RefusedByNode):
                await plain(peer.storage.add_lease(index, b"r" * 32, b"c" * 32))
        assert s3server.count() == {}, "it asks nothing of the bucket any more"
        assert await peers[2].read(index, 0, len(DATA)) == DATA
    finally:
        for peer in peers:
            await peer.close()
        await deferToThread(grid.stop)
    assert not s3server.refused
