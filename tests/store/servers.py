# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage server over a bucket in memory, with a clock, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allmydata.util.idlib import nodeid_b2a
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tahoe_s3.config import S3Config
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.opening import open_store
from tahoe_s3.store.store import Store

from .helpers import NODEID, PART_BYTES, SI, Place, now
from .memory_client import MemoryClient

RENEW, CANCEL = b"r" * 32, b"c" * 32


def open_files(folder: Path) -> list[str]:
    """The files below the folder that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            # The descriptor of the listing itself.
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


class ServerPlace(Place):
    """A server, its store, client, clock and index."""

    def __init__(
        self, folder: Path, *, client: MemoryClient | None = None, part_bytes: int = PART_BYTES, start_s: float = 0.0,
        capacity_bytes: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            folder, client=client, part_bytes=part_bytes, start_s=start_s, capacity_bytes=capacity_bytes
        )
        options.setdefault("steady_s", self.clock.seconds)
        self.server = S3StorageServer(str(folder), NODEID, clock=self.clock, backend=self.store, **options)

    def key(self, shnum: int = 0, si: bytes = SI) -> str:
        return share_key(si, shnum)

    def allocate(
        self, shnums: Iterable[int], size: int, *, si: bytes = SI, renew: bytes = RENEW, **options: Any
    ) -> tuple[set[int], dict[int, Any]]:
        """What the server answers at once."""
        answer: tuple[set[int], dict[int, Any]] = now(
            self.server.allocate_buckets(si, renew, CANCEL, shnums, size, **options)
        )
        return answer

    def upload(self, data: bytes, shnum: int = 0, *, si: bytes = SI) -> None:
        """A whole share, which must not be there yet."""
        writer = self.allocate([shnum], len(data), si=si)[1][shnum]
        assert now(writer.write(0, data)) is True
        assert now(writer.close()) is None

    def assert_no_upload(self) -> None:
        """No upload has left a trace on this machine: writers, their timers, files, space."""
        assert self.server._bucket_writers == {} and self.server.allocated_size() == 0
        # The store may still be looking after writes that had no answer (store/late.py).
        assert set(self.clock.getDelayedCalls()) <= self.store._timers
        assert [path for path in self.store.incoming_dir.rglob("*") if path.is_file()] == []


def reborn(client: MemoryClient) -> MemoryClient:
    """The same bucket as another process sees it: objects and uploads, but no counts, holds and failures."""
    fresh = MemoryClient()
    fresh.objects, fresh.uploads, fresh.now_s = client.objects, client.uploads, client.now_s
    fresh._serial, fresh.page_keys, fresh.unlisted = client._serial, client.page_keys, client.unlisted
    return fresh


def config_of(*, prefix: str = "", part_bytes: int = PART_BYTES, **options: Any) -> S3Config:
    """A configuration that names no real service."""
    values: dict[str, Any] = {
        "access_key_id": "AKID", "secret": b"secret", "bucket": "bucket", "url": "http://127.0.0.1:1",
        "region": "us-east-1", "region_is_explicit": False, "prefix": prefix, "path_style": True, "ca_bundle": None,
        "max_connections": 8, "part_size_bytes": part_bytes, **options,
    }  # fmt: skip
    return S3Config(**values)


def open_place(
    client: MemoryClient, folder: Path, clock: Clock, *, has_run_before: bool = False, **options: Any
) -> Deferred[Store]:
    """A start of the node with NODEID on this bucket."""
    return open_store(
        clock,
        config_of(**options),
        nodeid=nodeid_b2a(NODEID),
        local_dir=folder,
        has_run_before=has_run_before,
        make_client=lambda _reactor, _config: client.as_client(),
    )
