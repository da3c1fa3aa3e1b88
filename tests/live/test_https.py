# SPDX-License-Identifier: GPL-2.0-or-later
"""A grid whose storage node, a process of its own started with `tahoe run`, has its bucket behind https."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from ..support.authority import Authority
from ..support.grid import Grid
from ..support.nodes import S3Backend
from ..support.s3server import S3Server


@ensureDeferred
async def test_files_go_through_https(tmp_path: Path) -> None:
    """Over both of Tahoe's protocols: a file that goes up in parts, and a mutable one that is changed."""
    authority = Authority(tmp_path)
    server = S3Server(reactor, min_part_bytes=1)
    server.start(tls=authority.server("127.0.0.1"))
    access_key_id, secret = next(iter(server.secrets.items()))
    options = {"part_size": "1048576", "ca_bundle": str(authority.bundle)}
    backend = S3Backend(server.url, server.bucket_name, access_key_id, secret, options=options)
    body = os.urandom(3_000_000)

    def run() -> None:
        with Grid(tmp_path / "grid") as grid:
            grid.add_storage("storage", backend)
            for name, force_foolscap in (("one", False), ("two", True)):
                client = grid.add_client(name, force_foolscap=force_foolscap, shares=(1, 1, 1))
                cap = client.put(body)
                assert client.get(cap) == body
                cap = client.put(b"mutable" * 100, kind="SDMF")
                client.overwrite(cap, b"changed" * 100)
                assert client.get(cap) == b"changed" * 100

    try:
        await deferToThread(run)
    finally:
        await server.stop()
    assert not server.refused
    assert {"UploadPart", "CompleteMultipartUpload", "PutObject", "GetObject"} <= set(server.count())
