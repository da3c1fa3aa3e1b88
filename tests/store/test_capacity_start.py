# SPDX-License-Identifier: GPL-2.0-or-later
"""s3.capacity while a node lists its bucket: nothing is promised that may not be there, and nobody is told 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3.client import Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store import reconcile
from tahoe_s3.store.keys import lease_key
from tahoe_s3.store.store import Store
from tahoe_s3.store.upload import object_size

from .helpers import NODEID, error_of, now, pattern
from .servers import CANCEL, RENEW
from .starting import Node, stop

SHARES, LEFT = 30, 3
SHARE = object_size(500)
CAPACITY = (SHARES + LEFT) * SHARE
SECRETS = (b"w" * 32, RENEW, CANCEL)
NEW = b"n" * 16


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Its bucket has 30 shares; a page of the listing has five keys, and the node serves after the second."""
    monkeypatch.setattr(reconcile, "START_KEYS", 10)
    made = Node(tmp_path)
    made.client.page_keys = 5
    for number in range(SHARES):
        made.put(pattern(500), si=bytes([number]) * 16)
    yield made


def start(node: Node) -> tuple[Store, S3StorageServer]:
    store = node.start(capacity_bytes=CAPACITY)
    return store, S3StorageServer(str(node.folder), NODEID, clock=node.clock, backend=store)


def allocate(server: S3StorageServer, count: int, size: int = 500, si: bytes = NEW) -> dict[int, Any]:
    writers: dict[int, Any] = now(server.allocate_buckets(si, RENEW, CANCEL, set(range(count)), size))[1]
    return writers


def list_all(node: Node, store: Store) -> None:
    for _ in range(100):
        if store.rebuild.is_complete:
            return
        node.clock.turn()
    raise AssertionError("the listing does not end")


def test_nothing_is_promised_before_the_bucket_is_known(node: Node) -> None:
    store, server = start(node)
    assert not store.rebuild.is_complete and store.index.share_count < SHARES
    assert allocate(server, 1) == {} and server.get_available_space() > LEFT * SHARE
    create = server.slot_testv_and_readv_and_writev(b"m" * 16, SECRETS, {0: ([], [(0, b"new")], None)}, [])
    assert isinstance(error_of(create), Unavailable)
    now(server.add_lease(bytes([29]) * 16, RENEW, CANCEL))
    assert lease_key(bytes([29]) * 16) in node.client.objects, "a lease is always possible"
    list_all(node, store)
    left = LEFT * SHARE - store.index.lease_bytes
    assert store.index.lease_bytes > 0 and server.get_available_space() == left
    assert len(allocate(server, LEFT + 1)) == left // SHARE == LEFT - 1
    now(server.stopService())


def test_an_index_that_was_kept_is_known_at_once(node: Node) -> None:
    store, _ = start(node)
    list_all(node, store)
    stop(store)
    store, server = start(node)
    assert not store.rebuild.is_complete and store.rebuild.answers_for_all
    assert len(allocate(server, LEFT + 1)) == LEFT
    list_all(node, store)
    assert server.get_available_space() == 0
    now(server.stopService())


def test_without_a_capacity_nobody_waits(node: Node) -> None:
    store = node.start()
    server = S3StorageServer(str(node.folder), NODEID, clock=node.clock, backend=store)
    assert not store.rebuild.is_complete and len(allocate(server, 4)) == 4
    now(server.stopService())
