# SPDX-License-Identifier: GPL-2.0-or-later
"""For the tests of a bucket that is listed while the node serves: small pages, few shares, turns of the clock."""

from __future__ import annotations

from typing import Any, Callable

from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import ShareId, parse_key, share_key, slot_prefix
from tahoe_s3.store.leases import Lease
from tahoe_s3.store.store import Store

from .helpers import NODEID, immutable_object, pattern
from .starting import Node

PAGE = 4
SERVES_AFTER = 2 * PAGE
DATA = pattern(60)
OBJECT = immutable_object(DATA)
NEW_LEASE = Lease(1, b"r" * 32, b"c" * 32, 9_000_000_000, NODEID)


def si_of(number: int) -> bytes:
    """Storage indexes spread over the key space, in the order of their numbers' keys."""
    return (number * 7 + 1).to_bytes(1, "big") * 16


def in_order(sis: list[bytes]) -> list[bytes]:
    return sorted(sis, key=slot_prefix)


def fill(node: Node, count: int = 30) -> list[bytes]:
    """So many storage indexes with a share each, in the order in which a listing has them."""
    sis = in_order([si_of(number) for number in range(count)])
    for si in sis:
        node.client.store(share_key(si, 0), OBJECT)
    return sis


def server_of(node: Node, store: Store, **options: Any) -> S3StorageServer:
    options.setdefault("steady_s", node.clock.seconds)
    return S3StorageServer(str(node.folder), NODEID, clock=node.clock, backend=store, **options)


def until(node: Node, store: Store, reached: Callable[[], object]) -> None:
    """Turn after turn."""
    for _ in range(200):
        if reached():
            return
        node.clock.turn()
    raise AssertionError(f"it does not come: {store.rebuild.progress}")


def end_of_listing(node: Node, store: Store) -> None:
    until(node, store, lambda: store.rebuild.is_complete)


def numbers(store: Store, si: bytes) -> list[int]:
    return [row.shnum for row in store.index.shares(si)]


def in_bucket(node: Node) -> dict[ShareId, tuple[int, str]]:
    found = {}
    for key, stored in node.client.objects.items():
        name = parse_key(key)
        if isinstance(name, ShareId):
            found[name] = (len(stored.data), stored.etag)
    return found


def in_index(store: Store) -> dict[ShareId, tuple[int, str]]:
    rows = store.index.query("SELECT si, shnum, size, etag FROM shares", {})
    return {ShareId(si, shnum): (size, etag) for si, shnum, size, etag in rows}
