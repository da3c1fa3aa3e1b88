# SPDX-License-Identifier: GPL-2.0-or-later
"""The two buckets that ours is tried on: in memory behind the client's surface, and behind HTTP with the real engine.

Owner: Pair. Both know how to open a Store, how to wait for a Deferred, and what objects there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredList
from twisted.internet.task import Clock, LoopingCall

from tahoe_s3.config import NodeSettings
from tahoe_s3.server import open_storage
from tahoe_s3.store.store import Store

from ..live.node_here import ClockedReactor, config_for
from ..store.helpers import NODEID, now
from ..store.memory_client import MemoryClient
from ..store.servers import open_place, reborn
from ..support.s3server import S3Server
from .waiting import wait

#: Bytes of a part: shares of both kinds are larger than that.
PART = 900
#: Turns of the clock for work in the background; and seconds between two where sockets are waited for too.
TURNS = 100
TURN_S = 0.002


class InMemory:
    """MemoryClient: every Deferred has fired when the call returns. A process may also be killed."""

    can_kill = True
    settle = staticmethod(now)

    def __init__(self) -> None:
        self.clock = Clock()
        self._client = MemoryClient()

    def open(self, folder: Path) -> Store:
        self._client = reborn(self._client)
        self._client.follow(self.clock)
        store: Store = now(open_place(self._client, folder, self.clock, part_bytes=PART))
        return store

    @property
    def objects(self) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self._client.objects.items()}

    def put(self, key: str, data: bytes) -> None:
        """Behind everybody's back."""
        self._client.store(key, data)

    def finish(self, store: Store) -> None:
        """Everything was done at once, but for what waits for its next turn."""
        for _ in range(TURNS):
            if store._background:
                self.clock.advance(0)
        now(DeferredList(list(store._background)))

    @property
    def uploads(self) -> int:
        return len(self._client.uploads)

    def close(self) -> None:
        """Nothing is open."""


class OnEngine:
    """S3Server on a real socket, and the real engine. Only inside in_greenlet()."""

    can_kill = False
    settle = staticmethod(wait)

    def __init__(self) -> None:
        from twisted.internet import reactor

        self.clock: Any = ClockedReactor(reactor)
        self._server = S3Server(reactor, min_part_bytes=1)
        self._server.start()

    def open(self, folder: Path) -> Store:
        settings = NodeSettings(has_permutation_seed=True)
        config = config_for(self._server, part_size_bytes=PART)
        opening = open_storage(self.clock, config, nodeid=NODEID, storage_dir=folder, settings=settings)
        store: Store = self.settle(opening)
        return store

    @property
    def objects(self) -> dict[str, bytes]:
        return {key: stored.body for key, stored in self._server.bucket.objects.items()}

    def put(self, key: str, data: bytes) -> None:
        """Behind everybody's back."""
        self._server.bucket.put(key, data, now_s=self.clock.seconds())

    def finish(self, store: Store) -> None:
        """Wait for what nobody waits for, as the removal of an upload that was aborted. The clock does not go on by
        itself: what waits for its next turn (a listing that is made while the node serves) gets it."""
        turns = LoopingCall(self.clock.advance, 0)
        turns.start(TURN_S)
        self.settle(DeferredList(list(store._background)))
        turns.stop()

    @property
    def uploads(self) -> int:
        return len(self._server.bucket.uploads)

    def close(self) -> None:
        from twisted.internet.defer import ensureDeferred

        self.settle(ensureDeferred(self._server.stop()))
