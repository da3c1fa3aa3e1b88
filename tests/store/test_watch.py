# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that was superseded, or whose bucket was taken over, notices, stops writing, and says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from allmydata.util.idlib import nodeid_b2a

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, NoSuchBucket, S3Error, Throttled, Unavailable
from tahoe_s3.store.keys import OWNER_KEY, share_key
from tahoe_s3.store.ownership import OwnerMark, parse_mark, this_host
from tahoe_s3.store.upload import MAX_PARTS_BEHIND
from tahoe_s3.store.watch import AGAIN_S, GONE_AFTER_S, LOOK_EVERY_S, MISSING_EVERY_S

from .helpers import KIB, NODEID, SI, error_of, now, pattern, waits
from .nodes import DAY_S, OTHER_NODEID, Bucket, Node, heard

DATA = pattern(3000)
OTHER_SI = b"m" * 16


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    yield from heard()


def mark_of(bucket: Bucket) -> OwnerMark:
    return parse_mark(bucket.client.objects[OWNER_KEY].data, bucket="bucket", key=OWNER_KEY)


def replace_mark(bucket: Bucket, **fields: Any) -> None:
    document = {**json.loads(bucket.client.objects[OWNER_KEY].data), **fields}
    bucket.client.objects[OWNER_KEY].data = json.dumps(document).encode()


def copied(bucket: Bucket, node: Node, name: str = "copy") -> Node:
    """The same node's folder, copied elsewhere, and started there too."""
    shutil.copytree(node.folder, bucket.folder / name)
    return bucket.start(name)


def write_late(node: Node) -> None:
    """A write for which the mark has to be looked at, and which is through before that is answered."""
    held = node.client.hold("GetObject", OWNER_KEY)
    assert now(node.write_slot(b"late", si=b"late".ljust(16), shnums=(node.looks,)))
    assert node.store.problem is None and len(held) == 1
    held.release()


def assert_stopped(node: Node, words: str) -> None:
    """It answers nothing but that sentence, and asks nothing of the bucket for it."""
    problem = node.store.problem
    assert problem is not None and re.search(words, problem), problem
    node.client.forget_requests()
    for name, call in node.calls().items():
        error = error_of(call())
        assert isinstance(error, Unavailable) and problem in str(error), (name, error)
    assert node.client.requests == {}
    assert node.store.recent_errors[-1][1] == problem[:400]


# what it costs


def test_an_hour_without_writes_costs_nothing(bucket: Bucket) -> None:
    node = bucket.start()
    node.upload(DATA)
    node.client.forget_requests()
    bucket.clock.pump([10.0] * 360)
    assert set(now(node.server.get_buckets(SI))) == {0}
    assert node.client.requests == {}


def test_writes_cost_one_look_every_two_minutes(bucket: Bucket) -> None:
    node = bucket.start()
    for number in range(61):
        node.upload(DATA, si=bytes([number]) * 16)
        bucket.clock.advance(10)
    assert node.looks == 5 and node.client.requests == {"PutObject": 61, "GetObject": 5}
    assert LOOK_EVERY_S == 120


@pytest.mark.parametrize("write", ["upload", "parts", "lease", "read-test-write", "delete"])
def test_every_kind_of_write_looks(bucket: Bucket, write: str) -> None:
    bucket.part_bytes = 64 * KIB
    node = bucket.start()
    node.upload(DATA)
    now(node.write_slot(b"mutable", si=OTHER_SI))
    bucket.clock.advance(LOOK_EVERY_S)
    node.client.forget_requests()
    if write == "upload":
        node.upload(DATA, shnum=1)
    elif write == "parts":
        now(node.allocate(100 * KIB, shnum=1).write(0, pattern(70 * KIB)))
    elif write == "lease":
        now(node.server.add_lease(SI, b"x" * 32, b"y" * 32))
    elif write == "read-test-write":
        now(node.write_slot(b"changed", si=OTHER_SI))
    else:
        secrets = (b"w" * 32, b"r" * 32, b"c" * 32)
        now(node.server.slot_testv_and_readv_and_writev(OTHER_SI, secrets, {0: ([], [], 0)}, []))
    assert node.writes and node.looks == 1


def test_a_write_does_not_wait_for_the_look(bucket: Bucket) -> None:
    node = bucket.start()
    bucket.clock.advance(LOOK_EVERY_S)
    held = node.client.hold("GetObject", OWNER_KEY)
    node.upload(DATA)
    node.upload(DATA, shnum=1)
    assert len(held) == 1, "one at a time"
    held.release()
    assert node.store.problem is None


def test_a_clock_that_is_set_back_puts_no_look_off(bucket: Bucket) -> None:
    node = bucket.start()
    bucket.clock.rightNow -= 90 * DAY_S
    node.upload(DATA)
    assert node.looks == 1 and node.store.problem is None


# the same node, twice


def test_a_superseded_instance_notices_and_stops(bucket: Bucket, told: list[Any]) -> None:
    first = bucket.start()
    first.upload(DATA)
    bucket.clock.advance(1000)
    second = copied(bucket, first)
    assert second.store.problem is None and set(now(second.server.get_buckets(SI))) == {0}
    first.client.forget_requests()
    write_late(first)
    assert first.client.requests == {"PutObject": 1, "GetObject": 1}
    since = mark_of(bucket).since
    assert_stopped(first, f"started a second time on the host {re.escape(this_host())} at {since}.*stop it for good")
    assert [line for line in told if line[0] == "critical"] == [("critical", first.store.problem)]
    before = dict(bucket.client.objects)
    first.client.forget_requests()
    bucket.clock.pump([60.0] * 600)
    assert first.client.requests == {} and first.store.problem, "it does not heal, and asks nothing"
    assert bucket.client.objects == before
    second.upload(DATA, shnum=2)
    assert second.store.problem is None


def test_each_start_supersedes_the_other(bucket: Bucket) -> None:
    first = bucket.start()
    second = copied(bucket, first)
    for _ in range(3):
        bucket.clock.advance(LOOK_EVERY_S)
        write_late(first)
        assert_stopped(first, "started a second time")
        first, second = second, first.restarted()
        assert second.store.problem is None


def test_of_two_that_start_at_once_the_earlier_is_superseded(bucket: Bucket) -> None:
    """The other's mark comes after ours was read back, before the start has ended: no request tells more."""
    node = Node(bucket, "node", NODEID)
    listing = node.client.hold("ListObjectsV2")
    starting = node.begin()
    listing.release(1)
    replace_mark(bucket, instance="another", host="elsewhere")
    listing.release()
    node.store = now(starting)
    assert node.store.problem is not None and "on the host elsewhere" in node.store.problem
    now(node.store.close())


def test_uploads_end_here_and_are_left_alone_there(bucket: Bucket) -> None:
    bucket.part_bytes = 64 * KIB
    first = bucket.start()
    large = first.allocate((MAX_PARTS_BEHIND + 4) * bucket.part_bytes)
    now(large.write(0, pattern(70 * KIB)))
    small = first.allocate(100, shnum=1)
    now(small.write(0, pattern(50)))
    held = first.client.hold("UploadPart")
    waiting = large.write(70 * KIB, pattern((MAX_PARTS_BEHIND + 1) * bucket.part_bytes, 3))
    assert held.calls and waits(waiting)
    uploads = dict(bucket.client.uploads)
    bucket.clock.advance(LOOK_EVERY_S)
    second = Node(bucket, "copy", NODEID)
    second.client.uploads = {}
    second.open()
    bucket.nodes.append(second)
    first.client.forget_requests()
    assert first.store.watch.lost is None
    now(first.store.check_still_ours(priority=2))
    held.release()
    assert bucket.client.uploads == uploads and first.writes == {}, "nothing of it was removed or completed"
    assert isinstance(error_of(waiting), S3Error)
    for writer in (large, small):
        for call in (lambda w=writer: w.write(60, b"x"), writer.close):
            assert "started a second time" in str(error_of(call()))
        assert now(writer.abort()) is None
    assert first.server.allocated_size() == 0
    assert [path for path in first.store.incoming_dir.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("applied", [True, False])
def test_a_write_under_way_is_not_acknowledged_any_more(bucket: Bucket, applied: bool) -> None:
    """Whoever serves the bucket now has listed it perhaps before this came."""
    first = bucket.start()
    first.upload(DATA)
    now(first.write_slot(b"old", si=OTHER_SI, shnums=(0, 1)))
    writer = first.allocate(100, shnum=1)
    now(writer.write(0, pattern(100)))
    held = first.client.hold("PutObject", apply_first=applied)
    calls = [writer.close(), first.server.add_lease(SI, b"q" * 32, b"c" * 32), first.write_slot(b"new", si=OTHER_SI)]
    waiting = first.write_slot(b"newer", si=OTHER_SI)
    copied(bucket, first)
    assert all(waits(call) for call in [*calls, waiting])
    first.client.forget_requests()
    now(first.store.check_still_ours(priority=2))
    for call in [*calls, waiting]:
        assert isinstance(error_of(call), S3Error)
    held.release()
    assert first.writes == {}


def test_a_superseded_instance_lets_no_share_expire(bucket: Bucket) -> None:
    expire = {"enabled": True, "override_lease_duration": DAY_S}
    first = bucket.start(expire=expire)
    first.upload(DATA)
    bucket.clock.pump([1000.0] * 300)
    assert share_key(SI, 0) not in bucket.client.objects, "without another, it does expire"
    first.upload(DATA)
    copied(bucket, first)
    first.client.forget_requests()
    bucket.clock.pump([1000.0] * 300)
    assert share_key(SI, 0) in bucket.client.objects and first.client.requests == {"GetObject": 1}
    assert_stopped(first, "started a second time")


def test_a_stop_after_it_was_superseded_leaves_the_bucket_alone(bucket: Bucket) -> None:
    first = bucket.start()
    first.upload(DATA)
    copied(bucket, first)
    now(first.store.check_still_ours(priority=2))
    first.client.forget_requests()
    now(first.server.stopService())
    assert first.client.requests == {}
    fresh = bucket.start("node")
    assert not fresh.store.index.was_kept, "the other one has changed the bucket meanwhile"
    assert set(now(fresh.server.get_buckets(SI))) == {0}


# no answer


@pytest.mark.parametrize("error", [Unavailable, Throttled])
def test_a_look_without_an_answer_settles_nothing(bucket: Bucket, error: Any) -> None:
    first = bucket.start()
    copied(bucket, first)
    bucket.clock.advance(LOOK_EVERY_S)
    first.client.fail("GetObject", error, key=OWNER_KEY, times=2)
    for number in range(2 * int(AGAIN_S)):
        first.upload(DATA, si=bytes([number]) * 16)
        bucket.clock.advance(1)
    assert first.looks == 2 and first.store.problem is None
    write_late(first)
    assert_stopped(first, "started a second time")


@pytest.mark.parametrize("damage", [lambda b: b.client.objects.pop(OWNER_KEY), lambda b: replace_mark(b, nodeid=3)])
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_mark_that_is_missing_is_looked_for_again(bucket: Bucket, damage: Any, comes_back: bool) -> None:
    node = bucket.start()
    mark = bucket.client.objects[OWNER_KEY].data
    bucket.clock.advance(LOOK_EVERY_S)
    damage(bucket)
    node.upload(DATA)
    for _ in range(int(GONE_AFTER_S / MISSING_EVERY_S)):
        assert node.store.problem is None
        node.upload(DATA, shnum=node.looks)
        if comes_back and node.looks == 3:
            bucket.client.store(OWNER_KEY, mark)
        bucket.clock.advance(MISSING_EVERY_S)
    if comes_back:
        assert node.store.problem is None
        node.client.forget_requests()
        bucket.clock.pump([10.0] * 100)
        assert node.client.requests == {}, "it is not looked for any more"
        node.upload(DATA, shnum=1000)
        return
    assert_stopped(node, "has been missing from .* for minutes.*restart this node, which claims the bucket again")
    if OWNER_KEY in bucket.client.objects:
        del bucket.client.objects[OWNER_KEY]
    again = node.restarted()
    assert again.store.problem is None and mark_of(bucket).nodeid == nodeid_b2a(NODEID)
    again.upload(DATA, shnum=2000)


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_older_mark_may_be_what_a_service_that_lags_remembers(bucket: Bucket, comes_back: bool) -> None:
    """Or it is that of a machine whose clock is behind, which stays."""
    node = bucket.start()
    mark = bucket.client.objects[OWNER_KEY].data
    replace_mark(bucket, instance="before", since=mark_of(bucket).since_s - 1)
    doubt = now(node.store.check_still_ours(priority=2))
    assert doubt is not None and "is older than that of this node" in doubt and node.store.problem is None
    node.upload(DATA)
    if comes_back:
        bucket.client.store(OWNER_KEY, mark)
    bucket.clock.pump([MISSING_EVERY_S] * int(GONE_AFTER_S / MISSING_EVERY_S))
    if comes_back:
        assert node.store.problem is None and now(node.store.check_still_ours(priority=2)) is None
    else:
        assert_stopped(node, "started a second time")


# another node


def test_taking_a_bucket_over_as_the_sentence_says(bucket: Bucket) -> None:
    """The sentence of OwnedByAnother, followed to the letter while the old node still runs."""
    old = bucket.start("old")
    old.upload(DATA)
    new = Node(bucket, "new", OTHER_NODEID)
    error = error_of(new.begin())
    assert isinstance(error, errors.OwnedByAnother)
    found = re.search(r"delete the object (\S+)\.$", str(error))
    assert found is not None
    del bucket.client.objects[found[1]]
    fresh = bucket.start("new", nodeid=OTHER_NODEID)
    assert set(now(fresh.server.get_buckets(SI))) == {0}
    bucket.clock.advance(LOOK_EVERY_S)
    write_late(old)
    assert_stopped(old, f"another node, {nodeid_b2a(OTHER_NODEID)}.* has taken over the bucket 'bucket' at ")
    fresh.upload(DATA, shnum=2)
    # It keeps off, also when it is restarted.
    now(old.server.stopService())
    again = Node(bucket, "old", NODEID)
    assert isinstance(error_of(again.begin(has_run_before=True)), errors.OwnedByAnother)
    assert mark_of(bucket).nodeid == nodeid_b2a(OTHER_NODEID) and fresh.store.problem is None


def test_a_node_that_waited_for_its_bucket_keeps_off_when_it_is_anothers(bucket: Bucket) -> None:
    now(bucket.start("old").server.stopService())
    old = Node(bucket, "old", NODEID)
    old.client.fail("ListObjectsV2", Unavailable)
    old.store = now(old.begin(has_run_before=True))
    del bucket.client.objects[OWNER_KEY]
    bucket.start("new", nodeid=OTHER_NODEID)
    bucket.clock.advance(30)
    assert old.store.problem is not None and nodeid_b2a(OTHER_NODEID) in old.store.problem
    assert "PutObject" not in old.client.requests
    now(old.store.close())


def test_a_newer_layout_stops_it_too(bucket: Bucket) -> None:
    node = bucket.start()
    replace_mark(bucket, version=2)
    now(node.store.check_still_ours(priority=2))
    assert_stopped(node, "newer tahoe-s3")


def test_fields_that_are_not_known_are_ignored(bucket: Bucket) -> None:
    node = bucket.start()
    replace_mark(bucket, colour="blue", host={"not": "a name"})
    assert now(node.store.check_still_ours(priority=2)) is None
    assert mark_of(bucket).host == "" and node.store.problem is None


def test_the_mark_says_since_when(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not since the start of a node that waited for its bucket."""
    times = iter([1000.0, 5000.0, 5000.0])
    monkeypatch.setattr("tahoe_s3.store.opening.time.time", lambda: next(times))
    node = Node(bucket, "node", NODEID)
    node.client.fail("ListObjectsV2", Unavailable)
    node.store = now(node.begin(has_run_before=True))
    bucket.clock.advance(30)
    assert node.store.problem is None and mark_of(bucket).since_s == 5000
    now(node.store.close())


def test_errors_that_are_not_of_the_mark_are_told_as_such(bucket: Bucket) -> None:
    node = bucket.start()
    for error in (AccessDenied, NoSuchBucket, Unavailable):
        node.client.fail("GetObject", error, key=OWNER_KEY)
        assert isinstance(error_of(node.store.check_still_ours(priority=2)), error)
        assert node.store.watch.lost is None
