# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that lives through crashes and stops on one bucket in memory, for tests of writes that are applied late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3.client import Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.journal import COPIES, JOURNAL
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.leases import overlay_from_json
from tahoe_s3.store.store import Store

from .helpers import NODEID, SI, now, pattern
from .memory_client import MemoryClient
from .servers import CANCEL, RENEW, reborn
from .starting import Node, stop

HOW = pytest.mark.parametrize("how", ["kill", "stop"])
KEY, LEASES = share_key(SI, 0), lease_key(SI)
OTHER = b"o" * 32
DATA = pattern(300)


class Living:
    """A node over its lives on one bucket. `objects` are the bucket's."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder)
        self.folder = folder
        self.store: Store = self.node.start()
        self._serve()

    def _serve(self) -> None:
        clock = self.node.clock
        #: By how much the clock was set forward.
        self.set_by_s = 0.0
        self.server = S3StorageServer(
            str(self.folder), NODEID, clock=clock, backend=self.store, steady_s=lambda: clock.seconds() - self.set_by_s
        )

    def set_clock(self, by_s: float) -> None:
        self.set_by_s += by_s
        self.node.clock.rightNow += by_s

    @property
    def client(self) -> MemoryClient:
        return self.node.client

    @property
    def objects(self) -> dict[str, Any]:
        return self.client.objects

    def restart(self, how: str, *, after_s: float = 5, meanwhile: Callable[[], object] = lambda: None) -> None:
        """`how`: "kill" or "stop". Time does not stand still."""
        clock_s = self.node.clock.seconds()
        if how == "kill":
            self.node.crash(self.store)
        else:
            stop(self.store)
            self.node.client = reborn(self.client)
        self.node.clock = type(self.node.clock)()
        self.node.clock.advance(clock_s + after_s)
        meanwhile()
        self.store = self.node.start(has_run_before=True)
        self._serve()

    def write(self, content: bytes, *, delete: bool = False, shnum: int = 0) -> Any:
        vectors: dict[int, Any] = {shnum: ([], [], 0) if delete else ([], [(0, content)], len(content))}
        return self.server.slot_testv_and_readv_and_writev(SI, (b"w" * 32, RENEW, CANCEL), vectors, [])

    def retried(self, content: bytes) -> None:
        """A write of which the first attempt had no answer."""
        self.client.retried.add(KEY)
        assert now(self.write(content))[0]
        self.client.retried.clear()

    def put_in_doubt(self) -> None:
        """A share whose acknowledged version, "third", is kept: of the one before an attempt may be applied yet."""
        now(self.write(b"first"))
        self.retried(b"second")
        now(self.write(b"third"))

    def read(self) -> bytes:
        return bytes(now(self.server.slot_readv(SI, [0], [(0, 10_000)]))[0][0])

    def there(self) -> bytes:
        body = self.objects[KEY].data
        return bytes(body[468 : 468 + int.from_bytes(body[84:92], "big")])

    def upload(self, data: bytes = DATA, *, renew: bytes = RENEW, si: bytes = SI) -> Any:
        _, writers = now(self.server.allocate_buckets(si, renew, CANCEL, {0}, len(data)))
        now(writers[0].write(0, data))
        return writers[0].close()

    def lose(self, operation: str = "PutObject", key: str = KEY) -> None:
        self.client.fail(operation, Unavailable, key=key, outcome="unknown")

    def put_leases_in_doubt(self) -> bytes:
        """A share with two acknowledged leases, "1" and "2"; gives the lease object with the first alone."""
        now(self.upload())
        self.client.retried.add(LEASES)
        now(self.server.add_lease(SI, b"1" * 32, CANCEL))
        stale = bytes(self.objects[LEASES].data)
        now(self.server.add_lease(SI, b"2" * 32, CANCEL))
        return stale

    def leases(self) -> set[bytes]:
        return {lease.renew_hash for lease in overlay_from_json(self.objects[LEASES].data)}

    def as_indexed(self) -> None:
        row = self.store.index.share(SI, 0)
        assert row is not None and (row.size, row.etag) == (len(self.objects[KEY].data), self.objects[KEY].etag)

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    @property
    def copies(self) -> list[Path]:
        folder = self.folder / COPIES
        return list(folder.iterdir()) if folder.is_dir() else []
