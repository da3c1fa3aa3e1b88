# SPDX-License-Identifier: GPL-2.0-or-later
"""An S3StorageServer in the test's own process, on the test's own S3 server, with a clock that the test moves.

    node = await open_here(reactor, s3server, folder)
    node.clock.advance(3600); ...; await node.close()

Sockets and threads are the real reactor's; callLater and the time are the clock's, so an hour takes no time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from tahoe_s3.config import NodeSettings, S3Config
from tahoe_s3.server import S3StorageServer, open_storage

from ..support.s3server import S3Server
from ..support.services import Service

NODE_ID = b"\x01" * 20
MIB = 2**20


class ClockedReactor(Clock):
    """The reactor `real`, but for time, which only advance() moves."""

    def __init__(self, real: Any) -> None:
        super().__init__()
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def config_for(
    server: S3Server, *, part_size_bytes: int = 8 * MIB, token: str | None = None, ca_bundle: Path | None = None
) -> S3Config:
    """What a node's tahoe.cfg would say about the test's S3 server."""
    access_key_id, secret = next(iter(server.secrets.items()))
    where = _config(access_key_id, secret, server.bucket_name, server.url, "us-east-1")
    return replace(where, part_size_bytes=part_size_bytes, token=token, ca_bundle=ca_bundle)


def config_of(service: Service, bucket: str) -> S3Config:
    """The same for a bucket of a real service."""
    return _config(service.access_key_id, service.secret, bucket, service.url, service.region)


def _config(access_key_id: str, secret: str, bucket: str, url: str, region: str) -> S3Config:
    return S3Config(
        access_key_id=access_key_id,
        secret=secret.encode(),
        bucket=bucket,
        url=url,
        region=region,
        region_is_explicit=False,
        prefix="",
        path_style=True,
        ca_bundle=None,
        max_connections=32,
        part_size_bytes=8 * MIB,
        token=None,
    )


class NodeHere:
    """The storage server and what the test needs beside it."""

    def __init__(self, server: S3StorageServer, clock: ClockedReactor) -> None:
        self.server, self.clock = server, clock
        self.renew, self.cancel = b"r" * 32, b"c" * 32

    async def upload(
        self, storage_index: bytes, shares: dict[int, bytes], *, piece_bytes: int = MIB, renew: bytes | None = None
    ) -> set[int]:
        """Allocates, writes and closes; the numbers of the shares that were there already."""
        size = len(next(iter(shares.values())))
        had, writers = await self.server.allocate_buckets(
            storage_index, renew or self.renew, self.cancel, set(shares), size
        )
        for shnum, writer in writers.items():
            for start in range(0, size, piece_bytes):
                await writer.write(start, shares[shnum][start : start + piece_bytes])
            await writer.close()
        return had

    async def read(self, storage_index: bytes, shnum: int, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """The data at (offset, length), one after the other, as a client asks."""
        readers = await self.server.get_buckets(storage_index)
        return [await readers[shnum].read(offset, length) for offset, length in spans]

    async def write_slot(self, storage_index: bytes, shares: Iterable[int], data: bytes) -> bool:
        """Replaces the data of a mutable file's shares, whatever they were."""
        secrets = (b"w" * 32, self.renew, self.cancel)
        vectors = {shnum: ([], [(0, data)], len(data)) for shnum in shares}
        written, _ = await self.server.slot_testv_and_readv_and_writev(storage_index, secrets, vectors, [])
        return bool(written)

    async def read_slot(self, storage_index: bytes, length: int = 10**9) -> dict[int, bytes]:
        found = await self.server.slot_readv(storage_index, [], [(0, length)])
        return {shnum: data[0] for shnum, data in found.items()}

    async def close(self) -> None:
        await self.server.stopService()


async def open_here(reactor: Any, server: S3Server, folder: Path, **options: Any) -> NodeHere:
    """Opens the bucket as a node's start does. `options` are config_for's."""
    return await open_with(reactor, config_for(server, **options), folder)


async def open_with(reactor: Any, config: S3Config, folder: Path) -> NodeHere:
    """The same of the bucket that `config` names."""
    clock = ClockedReactor(reactor)
    settings = NodeSettings(has_permutation_seed=True)
    storage_dir = folder / "storage"
    store = await open_storage(clock, config, nodeid=NODE_ID, storage_dir=storage_dir, settings=settings)
    storage = S3StorageServer(str(storage_dir), NODE_ID, clock=clock, backend=store)
    storage.startService()
    return NodeHere(storage, clock)


def fresh_index() -> bytes:
    """A storage index that nothing has."""
    return os.urandom(16)
