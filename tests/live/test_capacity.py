# SPDX-License-Identifier: GPL-2.0-or-later
"""s3.capacity in tahoe.cfg: Tahoe's own code builds the node, the engine talks HTTP to the test's S3 server, whose
bytes are counted while thirty clients upload at once. Then the capacity is lowered, and the index lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allmydata import client
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults

from tahoe_s3 import _hook
from tahoe_s3.store.upload import object_size

from ..support.nodefolder import keys, make_folder, stop
from ..support.s3server import S3Server
from .node_here import NodeHere, fresh_index

_hook.register()

SECRET = "secret/of+the=test"
CLIENTS = 30
SIZE = 150_000
CAPACITY = 3_000_000


async def open_node(folder: Path) -> tuple[Any, NodeHere]:
    node = await client.create_client(str(folder))
    server = node.get_anonymous_storage_server()
    return node, NodeHere(server, server._clock)


def held(s3server: S3Server) -> int:
    return sum(map(len, s3server.shares().values()))


@ensureDeferred
async def test_thirty_uploads_at_once_and_a_capacity_that_was_lowered(s3server: S3Server, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "node", keys(s3server, s3__capacity="3MB"), secret=SECRET)
    node, here = await open_node(folder)
    server, body = here.server, bytes(SIZE)

    async def upload(index: bytes) -> tuple[bytes, set[int]]:
        _, writers = await server.allocate_buckets(index, here.renew, here.cancel, {0, 1}, SIZE)
        for writer in writers.values():
            await writer.write(0, body)
            await writer.close()
            space = server.store.space
            assert held(s3server) <= space.used_bytes + space.promised_bytes <= CAPACITY
        return index, set(writers)

    uploads = [Deferred.fromCoroutine(upload(fresh_index())) for _ in range(CLIENTS)]
    stored = dict(await gatherResults(uploads, consumeErrors=True))
    assert held(s3server) == CAPACITY // object_size(SIZE) * object_size(SIZE)
    assert len(s3server.shares()) == sum(map(len, stored.values()))
    full = next(index for index, shnums in stored.items() if shnums)
    await stop(node)

    for path in (folder / "storage").glob("index.sqlite*"):
        path.unlink()
    tahoe_cfg = folder / "tahoe.cfg"
    tahoe_cfg.write_text(tahoe_cfg.read_text().replace("3MB", "1MB"))
    before = s3server.shares()
    node, here = await open_node(folder)
    stats = here.server.get_stats()
    assert (stats["tahoe_s3.capacity_bytes"], stats["tahoe_s3.available_bytes"]) == (1_000_000, 0)
    assert await here.server.allocate_buckets(full, here.renew, here.cancel, {0, 7}, 1) == (stored[full], {})
    assert await here.read(full, 0, [(0, SIZE)]) == [body]
    assert s3server.shares() == before, "nothing is deleted"
    await stop(node)
