# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts Tahoe's test_storage_http on a bucket: its storage server and its HTTP server become ours, nothing else changes.

Those tests run without a reactor: a fake one has the time, and their loops move it on and sleep a little. So the
fake one gets to watch the engine's descriptor too, and looks at it whenever its time moves. Each test has a bucket.
"""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from allmydata.test import test_storage_http
from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from ..support.services import Service

T = TypeVar("T")
WAIT_LIMIT_S = 30


class WatchingReactor(test_storage_http.Reactor):
    """Tahoe's fake reactor, which also reads from descriptors while its time moves."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self._readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        self._readers.discard(reader)

    def advance(self, *args: Any, **kwargs: Any) -> None:
        super().advance(*args, **kwargs)
        self.look()

    def look(self, wait_s: float = 0) -> None:
        """Serves the descriptors that have something, waiting for that at most `wait_s`."""
        if self._readers:
            for reader in select.select(list(self._readers), [], [], wait_s)[0]:
                reader.doRead()

    def wait_for(self, result: Deferred[T]) -> T:
        """Lets real time pass until the Deferred has fired; its result."""
        ended: list[T] = []
        failed: list[Any] = []
        result.addCallbacks(ended.append, failed.append)
        end = time.monotonic() + WAIT_LIMIT_S
        while not ended and not failed:
            if time.monotonic() > end:
                raise AssertionError("the bucket did not answer")
            self.advance(0.001)
            self.look(0.05)
        if failed:
            failed[0].raiseException()
        return ended[0]


def install(service: Service) -> None:
    """Patches the module's globals, for good."""
    from tahoe_s3.config import NodeSettings, S3Config
    from tahoe_s3.http import S3HTTPServer
    from tahoe_s3.server import S3StorageServer, open_storage

    def config() -> S3Config:
        return S3Config(
            access_key_id=service.access_key_id,
            secret=service.secret.encode(),
            bucket=service.make_bucket(),
            url=service.url,
            region=service.region,
            region_is_explicit=False,
            prefix="",
            path_style=True,
            ca_bundle=None,
            max_connections=8,
            part_size_bytes=8 * 2**20,
        )

    def make_server(storedir: str, nodeid: bytes, *, clock: WatchingReactor) -> S3StorageServer:
        settings = NodeSettings(has_permutation_seed=True)
        opening = open_storage(clock, config(), nodeid=nodeid, storage_dir=Path(storedir), settings=settings)
        return S3StorageServer(storedir, nodeid, clock=clock, backend=clock.wait_for(opening))

    original_set_up = test_storage_http.HttpTestFixture._setUp

    def set_up(self: Any) -> None:
        original_set_up(self)
        self.addCleanup(lambda: self.clock.wait_for(self.storage_server.store.close()))

    test_storage_http.HttpTestFixture._setUp = set_up
    test_storage_http.Reactor = WatchingReactor
    test_storage_http.StorageServer = make_server
    test_storage_http.HTTPServer = S3HTTPServer
