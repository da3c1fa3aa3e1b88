# SPDX-License-Identifier: GPL-2.0-or-later
"""Several nodes, or copies of one node, on one bucket in memory, with one clock: each is started as a node is, has a
folder and a client of its own, and a storage server on the store that came out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allmydata.util.idlib import nodeid_b2a
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.opening import open_store
from tahoe_s3.store.store import Store

from .helpers import NODEID, PART_BYTES, SI, WRITE_ENABLER, now
from .memory_client import MemoryClient
from .servers import CANCEL, RENEW, config_of, reborn

OTHER_NODEID = b"o" * 20
DAY_S = 24 * 60 * 60
START_S = 1_800_000_000.0
#: What changes a bucket.
WRITES = {"PutObject", "DeleteObject", "DeleteObjects", "CreateMultipartUpload", "UploadPart",
          "CompleteMultipartUpload", "AbortMultipartUpload"}  # fmt: skip


class Bucket:
    """The one bucket, with its clock. `client` is nobody's: what lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.clock.advance(START_S)
        self.client = MemoryClient()
        self.nodes: list[Node] = []
        self.part_bytes = PART_BYTES

    def start(self, name: str = "node", *, nodeid: bytes = NODEID, **options: Any) -> Node:
        """A start that succeeds, with `name` as its folder."""
        node = Node(self, name, nodeid)
        node.open(**options)
        self.nodes.append(node)
        return node

    def close(self) -> None:
        for node in self.nodes:
            node.client.holds.clear()
            if not node.store.is_closed:
                now(node.server.stopService())


class Node:
    """One process of a node."""

    server: S3StorageServer
    store: Store

    def __init__(self, bucket: Bucket, name: str, nodeid: bytes) -> None:
        self.bucket, self.folder, self.nodeid = bucket, bucket.folder / name, nodeid
        self.clock = bucket.clock
        self.client = reborn(bucket.client)
        self.client.objects, self.client.uploads = bucket.client.objects, bucket.client.uploads
        self.client.follow(self.clock)

    def begin(self, *, has_run_before: bool = False, prefix: str = "") -> Any:
        """The Deferred of the start of its store."""
        return open_store(
            self.clock, config_of(part_bytes=self.bucket.part_bytes, prefix=prefix), nodeid=nodeid_b2a(self.nodeid),
            local_dir=self.folder, has_run_before=has_run_before,
            make_client=lambda _reactor, _config: self.client.as_client(),
        )  # fmt: skip

    def open(self, *, expire: dict[str, Any] | None = None, **options: Any) -> None:
        self.store = now(self.begin(**options))
        settings = {f"expiration_{name}": value for name, value in (expire or {}).items()}
        self.server = S3StorageServer(
            str(self.folder), self.nodeid, clock=self.clock, backend=self.store, steady_s=self.clock.seconds, **settings
        )
        self.server.startService()
        self.client.forget_requests()

    def restarted(self, **options: Any) -> Node:
        """This process ends, and a new one starts in its folder."""
        now(self.server.stopService())
        return self.bucket.start(self.folder.name, nodeid=self.nodeid, **options)

    @property
    def writes(self) -> dict[str, int]:
        return {name: count for name, count in self.client.requests.items() if name in WRITES}

    @property
    def looks(self) -> int:
        """How often the owner's mark was asked for."""
        return self.client.keys_asked.count(("GetObject", "owner.json"))

    def allocate(self, size: int, *, si: bytes = SI, shnum: int = 0) -> Any:
        return now(self.server.allocate_buckets(si, RENEW, CANCEL, {shnum}, size))[1][shnum]

    def upload(self, data: bytes, *, si: bytes = SI, shnum: int = 0) -> None:
        writer = self.allocate(len(data), si=si, shnum=shnum)
        now(writer.write(0, data))
        assert now(writer.close()) is None

    def write_slot(self, data: bytes, *, si: bytes = SI, shnums: tuple[int, ...] = (0,)) -> Any:
        vectors = {shnum: ([], [(0, data)], len(data)) for shnum in shnums}
        return self.server.slot_testv_and_readv_and_writev(si, (WRITE_ENABLER, RENEW, CANCEL), vectors, [])

    def calls(self) -> dict[str, Any]:
        """A call of each kind that a client may make, by name."""
        server = self.server
        return {
            "get_buckets": lambda: server.get_buckets(SI),
            "allocate": lambda: server.allocate_buckets(SI, RENEW, CANCEL, {7}, 10),
            "add_lease": lambda: server.add_lease(SI, RENEW, CANCEL),
            "renew_lease": lambda: server.renew_lease(SI, RENEW),
            "readv": lambda: server.slot_readv(SI, [], [(0, 1)]),
            "writev": lambda: self.write_slot(b"x", si=b"m" * 16),
            "enumerate": lambda: server.enumerate_mutable_shares(SI),
            "length": lambda: server.get_mutable_share_length(SI, 0),
        }


def heard() -> Iterator[list[tuple[str, str]]]:
    """For a fixture: (level, text) of what is logged from here on."""
    lines: list[tuple[str, str]] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            lines.append((event["log_level"].name, str(formatEvent(event))))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
