# SPDX-License-Identifier: GPL-2.0-or-later
"""A node's life on services that others wrote: every kind of share, small and of several parts, over restarts that keep
the index and those that have to list the bucket, and what a crash has left there."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tahoe_s3.store.keys import ShareId, lease_key, share_key

from ..support.services import Service
from ..test_client_services import connect
from .node_here import MIB, config_of, fresh_index, open_with

PART = 5 * MIB  # the least that S3 allows
LARGE = 11 * MIB + 12_345


@ensureDeferred
async def test_a_life(service: Service, tmp_path: Path) -> None:
    bucket = await deferToThread(service.make_bucket)
    config = replace(config_of(service, bucket), part_size_bytes=PART)
    client = connect(service, bucket)
    node = await open_with(reactor, config, tmp_path)
    small, large, slot, large_slot, unfinished = (fresh_index() for _ in range(5))
    data, old, new = os.urandom(LARGE), os.urandom(LARGE), os.urandom(LARGE)
    await node.upload(small, dict.fromkeys(range(5), b"small share"))
    await node.upload(large, {0: data})
    assert await node.read(large, 0, [(LARGE - 1000, 1000), (0, LARGE)]) == [data[-1000:], data]
    assert await node.write_slot(slot, [0, 1], b"mutable")
    assert await node.write_slot(large_slot, [0], old)
    for forget in (False, True):
        await node.server.add_lease(small, os.urandom(32), os.urandom(32))
        await node.close()
        if forget:
            shutil.rmtree(tmp_path / "storage")
        await client.create_multipart(share_key(unfinished, 0))
        node = await open_with(reactor, config, tmp_path)
        assert await client.list_multiparts("") == []
        assert set(await node.server.get_buckets(small)) == set(range(5))
        kept = json.loads(await deferToThread(service.read, bucket, lease_key(small)))
        assert len(kept["leases"]) == (2 if forget else 1)
        assert await node.read(small, 4, [(0, 100)]) == [b"small share"]
        assert await node.read(large, 0, [(LARGE - 1000, 1000), (0, LARGE)]) == [data[-1000:], data]
        assert await node.read_slot(slot) == {0: b"mutable", 1: b"mutable"}
        assert await node.read_slot(large_slot) == {0: old}
        for body in (new, old):
            assert await node.write_slot(large_slot, [0], body)
            node.server.store.cache.drop(ShareId(large_slot, 0))
            assert await node.read_slot(large_slot) == {0: body}
        assert await node.server.get_buckets(unfinished) == {}
    assert await node.server.get_buckets(fresh_index()) == {}
    await node.close()
    await client.close()
