# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that turns bad under a running storage server, through the real client: credentials that are revoked, a
bucket that is deleted, a service that goes away. What a refusal of each kind of request looks like is the server's."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater

from tahoe_s3.client import S3Error, Unavailable
from tahoe_s3.store.health import RETRY_REFUSED_S
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.store import VANISH_CHECKS_S

from ..support.s3server import S3Server
from .node_here import NodeHere, fresh_index, open_here

BODY = os.urandom(3000)
WAIT_S = 30.0


@pytest_twisted.async_yield_fixture
async def node(s3server: S3Server, tmp_path: Path) -> AsyncIterator[NodeHere]:
    from twisted.internet import reactor

    found = await open_here(reactor, s3server, tmp_path)
    yield found
    await found.close()


async def until(happened: Callable[[], Any], what: str) -> None:
    from twisted.internet import reactor

    end_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end_s, f"waited {WAIT_S:.0f} seconds for {what}"
        await deferLater(reactor, 0.01)  # type: ignore[arg-type]


def revoke(server: S3Server) -> Callable[[], None]:
    kept = dict(server.secrets)
    server.secrets.clear()
    server.secrets["AKIDSOMEBODY"] = "else"

    def give_back() -> None:
        server.secrets.clear()
        server.secrets.update(kept)

    return give_back


def delete_bucket(server: S3Server) -> Callable[[], None]:
    name, server.bucket_name = server.bucket_name, "another"

    def bring_back() -> None:
        server.bucket_name = name

    return bring_back


@pytest.mark.parametrize(
    ("turn", "words"), [(revoke, "(403 InvalidAccessKeyId)"), (delete_bucket, "not there any more (NoSuchBucket)")]
)
@ensureDeferred
async def test_a_service_that_refuses(s3server: S3Server, node: NodeHere, turn: Any, words: str) -> None:
    index, slot = fresh_index(), fresh_index()
    await node.upload(index, {0: BODY})
    await node.write_slot(slot, [0], BODY)
    turn_back = turn(s3server)
    s3server.forget()
    calls: dict[str, Callable[[], Any]] = {
        "upload": lambda: node.upload(fresh_index(), {0: BODY}),
        "read": lambda: node.read(index, 0, [(0, 100)]),
        "lease": lambda: node.server.add_lease(index, b"x" * 32, node.cancel),
        "overwrite": lambda: node.write_slot(slot, [0], b"new"),
        "delete": lambda: node.server.slot_testv_and_readv_and_writev(
            slot, (b"w" * 32, node.renew, node.cancel), {0: ([], [], 0)}, []
        ),
    }
    for name, call in calls.items():
        with pytest.raises(S3Error) as caught:
            await call()
        assert caught.value.outcome == "not_applied", name
    await until(lambda: node.server.store.problem, "the node to notice")
    assert words in (node.server.store.problem or "")
    assert len(s3server.log) <= len(calls) + 1
    s3server.forget()
    for _ in range(20):
        for call in (*calls.values(), lambda: node.read_slot(slot), lambda: node.server.get_buckets(index)):
            with pytest.raises(Unavailable):
                await call()
    assert s3server.count() == {}, "it does not hammer"
    turn_back()
    node.clock.advance(RETRY_REFUSED_S)
    await until(lambda: node.server.store.problem is None, "the node to go on")
    assert await node.read(index, 0, [(0, 3000)]) == [BODY]
    assert await node.read_slot(slot) == {0: BODY}
    await node.upload(fresh_index(), {0: BODY})


@ensureDeferred
async def test_a_bucket_that_is_deleted_takes_no_share_along(s3server: S3Server, node: NodeHere) -> None:
    """The checks of a share that vanished are HEADs, which a bucket that is gone answers like an object that is."""
    index = fresh_index()
    await node.upload(index, {0: BODY})
    store = node.server.store
    bring_back = delete_bucket(s3server)
    s3server.forget()
    store.vanished(index, 0)
    for number, delay_s in enumerate(VANISH_CHECKS_S):
        node.clock.advance(delay_s)
        heads = number + 1
        await until(lambda heads=heads: s3server.count().get("HeadObject") == heads, "a HEAD")
        await until(lambda: not store.slots.is_busy(index), "its answer")
    await until(lambda: store.problem, "the node to see that it is the bucket")
    assert store.index.share(index, 0) is not None
    bring_back()
    node.clock.advance(RETRY_REFUSED_S)
    await until(lambda: store.problem is None, "the node to go on")
    assert await node.read(index, 0, [(0, 3000)]) == [BODY]
    # And where it is the object that is gone:
    del s3server.bucket.objects[share_key(index, 0)]
    for _ in range(4):
        node.clock.advance(max(VANISH_CHECKS_S))
        await until(lambda: not store.slots.is_busy(index), "a check")
    await until(lambda: store.index.share(index, 0) is None, "the share to be dropped")
    assert await node.server.get_buckets(index) == {}
