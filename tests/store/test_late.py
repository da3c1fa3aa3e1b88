# SPDX-License-Identifier: GPL-2.0-or-later
"""A write that had no answer is applied long after its sender gave it up: what was acknowledged since comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from tahoe_s3.client import Changed, NotFound, S3Error, Unavailable
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.late import CHECKS_S, LATE_S
from tahoe_s3.store.leases import hash_secret, overlay_from_json

from ..live.node_here import NodeHere, fresh_index, open_here
from ..support.s3server import Gate, S3Server
from .helpers import SI, error_of, mutable_object, now, pattern
from .memory_client import MemoryClient, Stored
from .servers import CANCEL, RENEW, ServerPlace

OTHER = b"o" * 32
KEY, LEASES = share_key(SI, 0), lease_key(SI)
DATA = pattern(300)


@pytest.fixture
def place(tmp_path: Path) -> ServerPlace:
    return ServerPlace(tmp_path)


def write(place: ServerPlace, content: bytes, *, delete: bool = False) -> Any:
    vectors: dict[int, Any] = {0: ([], [], 0) if delete else ([], [(0, content)], len(content))}
    return place.server.slot_testv_and_readv_and_writev(SI, (b"w" * 32, RENEW, CANCEL), vectors, [])


def lose(place: ServerPlace, operation: str = "PutObject", key: str = KEY) -> None:
    """The next one has no answer, and was not done when the bucket is asked."""
    place.client.fail(operation, Unavailable, key=key, outcome="unknown")


def refused(call: Any) -> None:
    assert isinstance(error_of(call), S3Error)


def data_of(place: ServerPlace) -> bytes:
    return bytes(now(place.server.slot_readv(SI, [0], [(0, 10_000)]))[0][0])


def there(place: ServerPlace) -> bytes:
    """What a node that starts now would find."""
    body = place.object()
    return body[468 : 468 + int.from_bytes(body[84:92], "big")]


def as_indexed(place: ServerPlace) -> None:
    stored = place.client.objects[KEY]
    row = place.row()
    assert (row.size, row.etag) == (len(stored.data), stored.etag)


def renew_hashes(client: MemoryClient) -> set[bytes]:
    return {lease.renew_hash for lease in overlay_from_json(client.objects[LEASES].data)}


def test_an_older_version_does_not_stay_in_the_place_of_an_acknowledged_one(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place)
    refused(write(place, b"second"))
    now(write(place, b"third"))
    place.client.store(KEY, mutable_object(b"second"))
    place.clock.advance(CHECKS_S[0])
    assert there(place) == data_of(place) == b"third"
    as_indexed(place)


def test_a_late_deletion_does_not_stay(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place, "DeleteObject")
    refused(write(place, b"", delete=True))
    now(write(place, b"second"))
    del place.client.objects[KEY]
    place.clock.advance(CHECKS_S[0])
    assert there(place) == data_of(place) == b"second"
    as_indexed(place)


def test_acknowledged_leases_come_back(place: ServerPlace) -> None:
    place.upload(DATA)
    lose(place, key=LEASES)
    refused(place.server.add_lease(SI, b"1" * 32, CANCEL))
    now(place.server.add_lease(SI, b"2" * 32, CANCEL))
    before = place.client.objects[LEASES]
    place.client.store(LEASES, b'{"version":1,"leases":[]}')
    place.clock.advance(CHECKS_S[0])
    assert place.client.objects[LEASES].data == before.data
    assert renew_hashes(place.client) >= {hash_secret(b"2" * 32)}
    overlay = place.index.overlay(SI)
    assert overlay is not None and overlay.etag == place.client.objects[LEASES].etag


def test_the_lease_of_an_upload_survives_an_earlier_one_that_comes_late(place: ServerPlace) -> None:
    """The share is the same, but for the lease in its container."""
    lose(place)
    writer = place.allocate([0], len(DATA))[1][0]
    now(writer.write(0, DATA))
    refused(writer.close())
    _, writers = place.allocate([0], len(DATA), renew=OTHER)
    now(writers[0].write(0, DATA))
    late = place.client.objects.get(KEY)
    assert late is None
    now(writers[0].close())
    stored = place.client.objects[KEY]
    place.client.store(KEY, stored.data.replace(hash_secret(OTHER), hash_secret(RENEW)))
    place.clock.advance(CHECKS_S[0])
    assert hash_secret(OTHER) in renew_hashes(place.client)
    as_indexed(place)
    readers = now(place.server.get_buckets(SI))
    assert now(readers[0].read(0, 1000)) == DATA


def test_a_share_that_is_found_may_have_another_uploads_lease(place: ServerPlace) -> None:
    """No answer came, and the bucket has a share of that size: ours, or that of an upload that had failed before."""
    lose(place)
    writer = place.allocate([0], len(DATA))[1][0]
    now(writer.write(0, DATA))
    theirs = Path(writer.incominghome).read_bytes()
    refused(writer.close())
    _, writers = place.allocate([0], len(DATA), renew=OTHER)
    now(writers[0].write(0, DATA))
    lose(place)
    place.client.store(KEY, theirs)
    assert now(writers[0].close()) is None
    assert renew_hashes(place.client) == {hash_secret(OTHER)}
    as_indexed(place)


def test_a_share_that_comes_after_its_upload_had_failed_is_noticed(place: ServerPlace) -> None:
    lose(place)
    writer = place.allocate([0], len(DATA))[1][0]
    now(writer.write(0, DATA))
    body = Path(writer.incominghome).read_bytes()
    refused(writer.close())
    place.client.store(KEY, body)
    assert place.index.share(SI, 0) is None
    place.clock.advance(CHECKS_S[0])
    as_indexed(place)
    assert place.index.used_bytes == len(body)


@pytest.mark.parametrize("number", range(len(CHECKS_S)))
def test_it_is_looked_for_again_and_again(place: ServerPlace, number: int) -> None:
    now(write(place, b"first"))
    place.client.retried.add(KEY)
    now(write(place, b"second"))
    place.client.retried.clear()
    now(write(place, b"third"))
    if number:
        place.clock.advance(CHECKS_S[number - 1])
    place.client.store(KEY, mutable_object(b"second"))
    place.clock.advance(sum(CHECKS_S))
    assert there(place) == b"third"


def test_without_a_copy_the_bucket_is_believed(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place)
    refused(write(place, b"second"))
    now(write(place, b"third"))
    assert place.store.shed_copies()
    place.client.store(KEY, mutable_object(b"second"))
    place.clock.advance(CHECKS_S[0])
    assert data_of(place) == b"second"
    as_indexed(place)


def test_a_damaged_copy_is_not_put(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place)
    refused(write(place, b"second"))
    now(write(place, b"third"))
    (copy,) = [path for path in place.store.cache_dir.iterdir() if path.is_file()]
    copy.write_bytes(copy.read_bytes().replace(b"third", b"thirl"))
    place.client.store(KEY, mutable_object(b"second"))
    place.clock.advance(CHECKS_S[0])
    assert there(place) == b"second"


def test_what_is_answered_at_once_costs_nothing_later(place: ServerPlace) -> None:
    now(write(place, b"first"))
    now(write(place, b"second"))
    now(place.server.add_lease(SI, OTHER, CANCEL))
    place.client.forget_requests()
    place.clock.advance(2 * LATE_S)
    assert not place.client.requests


def test_a_retry_alone_costs_nothing_later(place: ServerPlace) -> None:
    place.client.retried.add(KEY)
    now(write(place, b"first"))
    place.client.forget_requests()
    place.clock.advance(2 * LATE_S)
    assert not place.client.requests


def test_the_checks_are_three_heads(place: ServerPlace) -> None:
    place.client.retried.add(KEY)
    now(write(place, b"first"))
    place.client.retried.clear()
    now(write(place, b"second"))
    now(write(place, b"third"))
    place.client.forget_requests()
    place.clock.pump([1.0] * int(sum(CHECKS_S)))
    place.clock.advance(2 * LATE_S)
    assert place.client.requests == {"HeadObject": len(CHECKS_S)}


def test_doubts_end(place: ServerPlace) -> None:
    place.client.retried.add(KEY)
    now(write(place, b"first"))
    place.client.retried.clear()
    place.clock.advance(LATE_S + 1)
    now(write(place, b"second"))
    place.client.forget_requests()
    place.clock.advance(LATE_S)
    assert not place.client.requests


def test_a_check_that_fails_is_made_again(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place)
    refused(write(place, b"second"))
    now(write(place, b"third"))
    place.client.store(KEY, mutable_object(b"second"))
    place.client.fail("HeadObject", Unavailable, key=KEY)
    place.clock.advance(CHECKS_S[0])
    assert there(place) == b"second"
    place.clock.advance(CHECKS_S[1])
    assert there(place) == b"third"


def test_a_node_that_stops_asks_no_more(place: ServerPlace) -> None:
    now(write(place, b"first"))
    lose(place)
    refused(write(place, b"second"))
    now(write(place, b"third"))
    now(place.server.stopService())
    assert place.clock.getDelayedCalls() == []


async def settle_late(node: NodeHere, server: S3Server, gate: Gate, key: str) -> Stored | Any:
    """The late PUT is applied, and the first check has come."""
    newer = server.bucket.objects[key]
    gate.release()
    assert server.bucket.objects[key].body != newer.body
    node.clock.advance(CHECKS_S[0])
    for _ in range(500):
        if server.bucket.objects[key].body == newer.body:
            break
        await _pause()
    return newer


async def _pause() -> None:
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    await deferLater(reactor, 0.01)


@ensureDeferred
async def test_through_the_engine(s3server: S3Server, tmp_path: Path) -> None:
    """The first attempt of a PUT is cut off and applied after the next write of the same share."""
    from twisted.internet import reactor

    node = await open_here(reactor, s3server, tmp_path)
    slot = fresh_index()
    await node.write_slot(slot, [0], b"first")
    gate = Gate()
    s3server.drop("PutObject", key="shares/", times=1, gate=gate)
    await node.write_slot(slot, [0], b"second")
    await node.write_slot(slot, [0], b"third")
    key = share_key(slot, 0)
    newer = await settle_late(node, s3server, gate, key)
    assert s3server.bucket.objects[key].body == newer.body
    assert (await node.read_slot(slot)) == {0: b"third"}
    await node.close()


@ensureDeferred
async def test_the_client_tells_what_it_does_not_know(s3server: S3Server, tmp_path: Path) -> None:
    from twisted.internet import reactor

    node = await open_here(reactor, s3server, tmp_path)
    told: list[tuple[str, bool, bool]] = []
    client = node.server.store.client
    client.on_write = lambda key, *, is_in_doubt, is_answered: told.append((key, is_in_doubt, is_answered))
    await client.put("a", b"1")
    s3server.drop("PutObject")
    await client.put("b", b"1")
    s3server.drop("PutObject", times=None)
    with pytest.raises(S3Error):
        await client.put("c", b"1")
    s3server.clear_rules()
    s3server.fail("PutObject", status=403, code="AccessDenied")
    with pytest.raises(S3Error):
        await client.put("d", b"1")
    s3server.drop("DeleteObject")
    await client.delete("e")
    s3server.drop("DeleteObjects")
    await client.delete_many(["f", "g"])
    with pytest.raises((NotFound, Changed)):
        await client.get("h")
    assert told == [
        ("a", False, True), ("b", True, True), ("c", True, False), ("e", True, True), ("f", True, True),
        ("g", True, True),
    ]  # fmt: skip
    await node.close()
