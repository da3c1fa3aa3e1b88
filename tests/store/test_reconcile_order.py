# SPDX-License-Identifier: GPL-2.0-or-later
"""Uploads, deletions, leases, stops and crashes in any order while the bucket is being listed: every answer is right,
and at the end the index is the bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tahoe_s3.client import Unavailable
from tahoe_s3.store import reconcile
from tahoe_s3.store.keys import LeaseId, ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import Lease, overlay_from_json, overlay_to_json
from tahoe_s3.store.reconcile import MAX_RETRY_S

from .helpers import NODEID, now, waits
from .listed import (
    DATA,
    OBJECT,
    PAGE,
    SERVES_AFTER,
    end_of_listing,
    in_bucket,
    in_index,
    server_of,
    si_of,
)
from .servers import CANCEL, RENEW, reborn
from .starting import Node

steps = st.lists(
    st.tuples(
        st.sampled_from(["page", "page", "turn", "turn", "upload", "delete", "lease", "rtw", "look", "answer", "break",
                         "restart", "crash"]),
        st.integers(0, 23),
    ),
    max_size=60,
)  # fmt: skip


class Busy(Node):
    """A node whose listing comes a page at a time, as a test says, while shares come and go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.client.page_keys = PAGE
        self.held: Any = None
        self.store: Any = None
        self.server: Any = None

    def run(self) -> None:
        """Start, with as many pages as it needs for that."""
        if self.client.closed:
            self.client = reborn(self.client)
        self.held = self.client.hold("ListObjectsV2", "", apply_first=True)
        starting = self.begin()
        for _ in range(100):
            if not waits(starting):
                break
            self.page(0)
        self.store = now(starting)
        self.server = server_of(self, self.store)

    def page(self, number: int) -> None:
        """One of the pages that are on their way arrives: what the service put together when it was asked."""
        waiting = [call for call in self.held.calls if not call.result.called]
        if waiting:
            waiting[number % len(waiting)].go()

    def end(self) -> None:
        self.held.release()
        self.clock.advance(MAX_RETRY_S)
        end_of_listing(self, self.store)


def shares_of(node: Busy, si: bytes) -> set[int]:
    return {share.shnum for share in in_bucket(node) if share.storage_index == si}


def do(node: Busy, what: str, number: int) -> None:
    si, shnum = si_of(number), number % 3
    if what in ("page", "turn"):
        node.page(number) if what == "page" else node.clock.turn()
    elif what == "upload":
        present, writers = now(node.server.allocate_buckets(si, RENEW, CANCEL, {shnum}, len(DATA)))
        assert present == shares_of(node, si)
        for writer in writers.values():
            now(writer.write(0, DATA))
            now(writer.close())
    elif what == "look":
        assert set(now(node.server.get_buckets(si))) == shares_of(node, si)
    elif what == "lease":
        now(node.server.add_lease(si, RENEW, CANCEL))
        if shares_of(node, si):
            found = overlay_from_json(node.client.objects[lease_key(si)].data)
            assert len(found) == 1 + (number % 2), "the one that was there, and this one"
    elif what == "delete" and shares_of(node, si):
        shnum = min(shares_of(node, si))
        now(node.store.slots.run(si, lambda: delete(node, ShareId(si, shnum))))
    elif what == "rtw":
        mutable = bytes([251]) * 15 + bytes([number])
        length = {number % 2: ([], [(0, bytes([number]) * 20)], 0 if number > 18 else None)}
        now(node.server.slot_testv_and_readv_and_writev(mutable, (b"w" * 32, RENEW, CANCEL), length, []))
        assert now(node.server.enumerate_mutable_shares(mutable)) == shares_of(node, mutable)
    elif what == "answer":
        assert node.store.problem is None
    elif what == "break":
        waiting = [call for call in node.held.calls if not call.result.called]
        if waiting:
            waiting[0].fail(Unavailable)
            node.clock.advance(MAX_RETRY_S)
    elif what == "restart":
        now(node.server.stopService())
        node.run()
    elif what == "crash":
        node.store.rebuild.stop()
        node.crash(node.store)
        node.run()


def delete(node: Busy, share: ShareId) -> Deferred[Any]:
    done: Deferred[Any] = node.client.delete(share_key(*share))
    return done.addCallback(lambda _: node.store.share_deleted(share))


@given(steps)
@settings(max_examples=40)
def test_whatever_comes_in_whatever_order_answers_are_right_and_the_index_is_the_bucket(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "START_KEYS", SERVES_AFTER)
        node = Busy(Path(folder) / "storage")
        for number in range(24):
            node.client.store(share_key(si_of(number), number % 4), OBJECT)
            if number % 2:
                old = Lease(2, b"o" * 32, b"p" * 32, 8_000_000_000, NODEID)
                node.client.store(lease_key(si_of(number)), overlay_to_json([old]))
        node.run()
        for what, number in steps:
            do(node, what, number)
        node.end()
        assert in_index(node.store) == in_bucket(node)
        overlays = {bytes(si) for (si,) in node.store.index.query("SELECT si FROM overlays", {})}
        assert overlays == {name.storage_index for name in map(parse_key, node.client.objects) if type(name) is LeaseId}
        rows = node.store.index.query("SELECT COUNT(*), SUM(size), COUNT(DISTINCT si) FROM shares", {})
        assert rows == [(node.store.index.share_count, node.store.index.used_bytes, node.store.index.slot_count)]
        now(node.server.stopService())
