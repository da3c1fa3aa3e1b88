# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts: whose bucket it is, what lies in it, and what a node does whose bucket is not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.util.idlib import nodeid_b2a
from twisted.internet.defer import succeed

from tahoe_s3 import errors
from tahoe_s3.client import (
    AccessDenied,
    BadReply,
    ClientConfig,
    ClockSkewed,
    NoSuchBucket,
    NotFound,
    Throttled,
    Unavailable,
    WrongRegion,
)
from tahoe_s3.store.index import IMMUTABLE
from tahoe_s3.store.keys import ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import Lease, overlay_from_json, overlay_to_json
from tahoe_s3.store.opening import RETRY_REFUSED_S, RETRY_S, open_store
from tahoe_s3.store.ownership import OwnerMark
from tahoe_s3.store.store import VANISH_CHECKS_S, Store

from .helpers import NODEID, SI, error_of, mutable_object, now, pattern, waits
from .memory_client import MAX_KEYS, MemoryClient
from .servers import config_of, open_files, reborn
from .starting import DATA, Node, due_soon, stop

THEIRS = OwnerMark("othernode", "instance", 1_600_000_000).to_json()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    yield Node(tmp_path / "storage")
    assert open_files(tmp_path) == []


# whose bucket


def test_an_empty_bucket_is_claimed(node: Node) -> None:
    store = node.start()
    mark = json.loads(node.client.objects["owner.json"].data)
    assert (mark["nodeid"], mark["version"]) == (nodeid_b2a(NODEID), 1)
    assert store.problem is None and store.index.share_count == 0 and store.foreign_keys == 0
    assert sum(node.client.requests.values()) <= 10
    stop(store)
    again = node.start()
    assert json.loads(node.client.objects["owner.json"].data)["instance"] != mark["instance"]
    stop(again)


def test_another_nodes_bucket_is_refused(node: Node) -> None:
    node.client.store("owner.json", THEIRS)
    node.put()
    assert "othernode" in node.refused()
    assert node.client.objects["owner.json"].data == THEIRS
    assert node.client.requests["PutObject"] == 0


def test_another_node_that_starts_at_the_same_time_is_noticed(node: Node) -> None:
    """Its mark comes after ours was read back, before we serve."""
    held = node.client.hold("ListMultipartUploads")
    listing = node.client.hold("ListObjectsV2")
    starting = node.begin()
    listing.release(1)
    node.client.store("owner.json", THEIRS)
    listing.release()
    held.release()
    assert isinstance(error_of(starting), errors.OwnedByAnother)
    assert node.client.objects["owner.json"].data == THEIRS


def test_a_damaged_mark_is_refused(node: Node) -> None:
    node.client.store("owner.json", b"{")
    assert "owner.json" in node.refused()


def test_a_newer_layout_is_refused(node: Node) -> None:
    node.client.store("owner.json", b'{"version": 2}')
    assert "newer" in node.refused()


def test_a_node_below_is_noticed_and_not_harmed(node: Node) -> None:
    node.client.store("team/b/owner.json", THEIRS)
    assert "team/b/owner.json" in node.refused()
    assert set(node.client.objects) == {"team/b/owner.json"}, "no mark above it that would stop its next start"


def test_a_node_that_was_there_before_keeps_its_mark(node: Node) -> None:
    stop(node.start())
    node.client.store("team/owner.json", THEIRS)
    node.refused()
    assert "owner.json" in node.client.objects


def test_a_node_above_is_noticed(node: Node) -> None:
    places = {"": MemoryClient(), "a/": MemoryClient(), "a/b/": MemoryClient()}

    def make(_reactor: Any, config: ClientConfig) -> Any:
        places[config.prefix] = reborn(places[config.prefix])
        return places[config.prefix].as_client()

    def begin() -> Any:
        return open_store(
            node.clock, config_of(prefix="a/b/"), nodeid=nodeid_b2a(NODEID), local_dir=node.folder,
            has_run_before=False, make_client=make,
        )  # fmt: skip

    for above in ("", "a/"):
        places[above].store("owner.json", THEIRS)
        sentence = str(error_of(begin()))
        assert "othernode" in sentence
        assert places["a/b/"].objects == {} and all(place.closed for place in places.values() if place.requests)
        del places[above].objects["owner.json"]
    store = now(begin())
    assert "owner.json" in places["a/b/"].objects and places[""].closed and places["a/"].closed
    stop(store)


def test_what_may_not_be_seen_above_is_nobodys(node: Node) -> None:
    ours, above = MemoryClient(), list[MemoryClient]()

    def make(_reactor: Any, config: ClientConfig) -> Any:
        if config.prefix:
            return ours.as_client()
        above.append(MemoryClient())
        above[-1].fail("GetObject", AccessDenied)
        return above[-1].as_client()

    store = now(open_store(
        node.clock, config_of(prefix="a/"), nodeid=nodeid_b2a(NODEID), local_dir=node.folder, has_run_before=False,
        make_client=make,
    ))  # fmt: skip
    assert len(above) == 2 and all(client.closed for client in above), "before and after ours was written"
    stop(store)


# what the operator must mend


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(NoSuchBucket, errors.NoSuchBucket), (AccessDenied, errors.RefusedCredentials),
     (ClockSkewed, errors.WrongClock), (WrongRegion, errors.WrongRegion), (BadReply, errors.NotS3)],
)  # fmt: skip
@pytest.mark.parametrize("has_run_before", [True, False])
def test_what_the_bucket_refuses_stops_the_start(
    node: Node, error: Any, sentence: type[Exception], has_run_before: bool
) -> None:
    node.client.fail("ListObjectsV2", error)
    failed = error_of(node.begin(has_run_before=has_run_before))
    assert isinstance(failed, sentence)
    assert node.client.closed and node.client.objects == {}


def test_an_explicit_region_must_be_the_buckets(node: Node) -> None:
    node.client.region = "eu-west-1"
    assert "eu-west-1" in node.refused(region_is_explicit=True)
    node.client = MemoryClient()
    stop(node.start(region_is_explicit=True))


def test_object_lock_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryClient, "get_object_lock", lambda *_, **__: succeed("Enabled"))
    node.refused()


def test_questions_that_a_policy_forbids_do_not_stop_a_start(node: Node) -> None:
    for operation in ("GetBucketVersioning", "GetObjectLockConfiguration", "ListMultipartUploads"):
        node.client.fail(operation, AccessDenied)
    stop(node.start())


def test_shares_of_the_disk_backend_are_not_hidden(node: Node) -> None:
    (node.folder / "shares" / "incoming").mkdir(parents=True)
    stop(node.start())
    folder = node.folder / "shares" / "aa" / "aaaqeayeaudaocajbifqydiob4"
    folder.mkdir(parents=True)
    node.client = reborn(node.client)
    stop(node.start())
    (folder / "3").write_bytes(b"")
    node.client = reborn(node.client)
    error = error_of(node.begin())
    assert isinstance(error, errors.DiskShares) and str(node.folder) in str(error)
    assert node.client.requests == {}, "the bucket was not even asked"


# what lies in it


def test_the_bucket_is_the_index(node: Node) -> None:
    node.put()
    node.put(shnum=12)
    node.client.store(share_key(b"m" * 16, 1), mutable_object(b"mutable"))
    lease = Lease(1, b"r" * 32, b"c" * 32, 5000, NODEID)
    node.client.store(lease_key(SI), overlay_to_json([lease]))
    for key in ("shares/incoming/aa/aaaqeayeaudaocajbifqydiob4/1", "shares/aa/x/1", "readme.txt", "leases/x"):
        node.client.store(key, b"foreign")
    before = dict(node.client.objects)
    store = node.start()
    assert [row.shnum for row in store.index.shares(SI)] == [0, 12] and store.index.share_count == 3
    sizes = [len(stored.data) for key, stored in before.items() if isinstance(parse_key(key), ShareId)]
    assert store.index.used_bytes == sum(sizes)
    assert store.foreign_keys == 4
    assert {key: node.client.objects[key] for key in before} == before, "nothing there was touched"
    assert now(store.reads.read(ShareId(SI, 0), 12, 3000)) == DATA
    overlay = store.index.overlay(SI)
    assert overlay is not None and overlay.leases is None, "read when it is needed"
    stop(store)


def test_many_objects_are_many_pages(node: Node) -> None:
    count = 2 * MAX_KEYS + 5
    for number in range(count):
        node.client.store(share_key(number.to_bytes(16, "big"), 0), b"x")
    store = node.start()
    assert store.index.share_count == count
    assert node.client.requests["ListObjectsV2"] == 1 + 3
    stop(store)


def test_an_index_of_a_clean_stop_keeps_what_it_knows(node: Node) -> None:
    node.put()
    store = node.start()
    now(store.learn_leases(SI, 0))
    known = store.index.share(SI, 0)
    assert known is not None and known.kind == IMMUTABLE and known.leases
    stop(store)
    again = node.start()
    assert again.index.was_kept
    row = again.index.share(SI, 0)
    assert row is not None and (row.kind, row.leases, row.etag_is_sure) == (IMMUTABLE, known.leases, True)
    stop(again)


def test_what_changed_while_the_node_was_away_is_noticed(node: Node) -> None:
    node.put()
    node.put(shnum=1)
    store = node.start()
    now(store.learn_leases(SI, 0))
    stop(store)
    node.put(pattern(500), shnum=0)
    node.put(shnum=2)
    again = node.start()
    row = again.index.share(SI, 0)
    assert row is not None and row.size == 584 and row.kind is None and row.leases is None
    assert [row.shnum for row in again.index.shares(SI)] == [0, 1, 2]
    assert now(again.reads.read(ShareId(SI, 0), 12, 500)) == pattern(500)
    stop(again)


@pytest.mark.parametrize("lose", ["index", "everything", "nothing, but killed"])
def test_local_state_is_replaceable(node: Node, lose: str) -> None:
    node.put()
    store = node.start()
    lease = Lease(1, b"r" * 32, b"c" * 32, 9_000_000_000, NODEID)
    now(store.overlay.add(SI, lease))
    (store.incoming_dir / "left").write_bytes(b"by an upload")
    if lose.startswith("nothing"):
        node.crash(store)
    else:
        stop(store)
        for path in sorted(node.folder.rglob("*"), reverse=True):
            if lose == "everything" or path.name.startswith("index"):
                path.unlink() if path.is_file() else path.rmdir()
    again = node.start()
    assert not again.index.was_kept and list(again.incoming_dir.iterdir()) == []
    assert now(again.reads.read(ShareId(SI, 0), 12, 3000)) == DATA
    assert now(again.overlay.read(SI)) == [lease]
    stop(again)


def test_uploads_that_a_crash_left_are_removed(node: Node) -> None:
    now(node.client.create_multipart(share_key(SI, 4)))
    now(node.client.create_multipart("shares/somebody/elses"))
    now(node.client.create_multipart("backup.tar"))
    store = node.start()
    assert {upload.key for upload in node.client.uploads.values()} == {"shares/somebody/elses", "backup.tar"}
    stop(store)


# shares that a listing does not show


def vanish(node: Node) -> Store:
    node.put()
    node.put(shnum=1)
    stop(node.start())
    node.hidden = node.client.objects.pop(share_key(SI, 1))
    return node.start()


def listed(store: Store) -> list[int]:
    return [row.shnum for row in store.index.shares(SI)]


def test_a_share_that_is_gone_is_dropped_after_minutes(node: Node) -> None:
    store = vanish(node)
    for delay in VANISH_CHECKS_S:
        assert listed(store) == [0, 1]
        node.clock.advance(delay)
    assert listed(store) == [0] and node.client.requests["HeadObject"] == len(VANISH_CHECKS_S)
    node.clock.advance(10_000)
    assert node.client.requests["HeadObject"] == len(VANISH_CHECKS_S)
    stop(store)


def test_a_share_that_a_listing_forgot_stays(node: Node) -> None:
    store = vanish(node)
    node.clock.advance(VANISH_CHECKS_S[0])
    node.client.objects[share_key(SI, 1)] = node.hidden
    node.clock.advance(10_000)
    assert listed(store) == [0, 1]
    assert now(store.reads.read(ShareId(SI, 1), 12, 3000)) == DATA
    stop(store)


@pytest.mark.parametrize("error", [Unavailable, AccessDenied, Throttled])
def test_a_check_that_fails_is_not_an_absence(node: Node, error: Any) -> None:
    store = vanish(node)
    node.client.fail("HeadObject", error, times=20)
    for _ in range(20):
        node.clock.advance(VANISH_CHECKS_S[0])
        assert listed(store) == [0, 1]
    for delay in VANISH_CHECKS_S:
        node.clock.advance(delay)
    assert listed(store) == [0]
    stop(store)


def test_a_check_that_cannot_get_the_lock_comes_again(node: Node) -> None:
    """Another share of the slot is unsure and cannot be settled: the checks go on afterwards."""
    store = vanish(node)
    store.slots.mark_unsure(SI, 7)
    node.client.fail("HeadObject", Unavailable, times=3)
    for _ in range(3):
        node.clock.advance(VANISH_CHECKS_S[0])
    for delay in VANISH_CHECKS_S:
        node.clock.advance(delay)
    assert listed(store) == [0]
    stop(store)


def test_a_stop_between_the_checks(node: Node) -> None:
    store = vanish(node)
    node.clock.advance(VANISH_CHECKS_S[0])
    held = node.client.hold("HeadObject")
    node.clock.advance(VANISH_CHECKS_S[1])
    closing = store.close()
    assert waits(closing), "what was begun has its outcome first"
    held.release()
    assert now(closing) is None and node.clock.getDelayedCalls() == []
    again = node.start()
    assert listed(again) == [0, 1], "it is looked at anew"
    for delay in VANISH_CHECKS_S:
        node.clock.advance(delay)
    assert listed(again) == [0]
    stop(again)


@pytest.mark.parametrize("is_gone", [True, False])
def test_leases_that_were_known_outlive_a_listing_that_forgot_them(node: Node, is_gone: bool) -> None:
    node.put()
    store = node.start()
    first, second = (Lease(1, who * 32, b"c" * 32, 9_000_000_000, NODEID) for who in (b"1", b"2"))
    now(store.overlay.add(SI, first))
    stop(store)
    hidden = node.client.objects.pop(lease_key(SI))
    again = node.start()
    if not is_gone:
        node.client.objects[lease_key(SI)] = hidden
    now(again.overlay.add(SI, second))
    assert overlay_from_json(node.client.objects[lease_key(SI)].data) == [first, second]
    stop(again)


# a bucket that cannot be reached


def test_the_first_start_needs_the_bucket(node: Node) -> None:
    node.client.fail("ListObjectsV2", Unavailable)
    assert "cannot be reached" in node.refused()


OPERATIONS = ["ListObjectsV2", "GetObjectLockConfiguration", "GetBucketVersioning", "GetObject", "PutObject"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [Unavailable, Throttled])
def test_a_node_that_has_run_starts_without_it_and_recovers(node: Node, operation: str, error: Any) -> None:
    node.put()
    stop(node.start())
    node.client = reborn(node.client)
    node.client.fail(operation, error, times=3)
    store = node.start(has_run_before=True)
    for _ in range(2):
        assert store.problem
        with pytest.raises(Unavailable):
            store.require_ready()
        node.clock.advance(RETRY_S)
    assert store.problem
    node.clock.advance(RETRY_S)
    assert store.problem is None and [row.shnum for row in store.index.shares(SI)] == [0]
    store.require_ready()
    assert due_soon(node) == []
    stop(store)


def test_a_bucket_that_turns_out_to_be_anothers_is_not_served(node: Node) -> None:
    node.client.fail("ListObjectsV2", Unavailable)
    node.client.store("owner.json", THEIRS)
    store = node.start(has_run_before=True)
    node.clock.advance(RETRY_S)
    assert store.problem is not None and "othernode" in store.problem
    before = sum(node.client.requests.values())
    node.clock.advance(RETRY_REFUSED_S - 1)
    assert sum(node.client.requests.values()) == before, "who was refused does not hammer"
    del node.client.objects["owner.json"]
    node.clock.advance(1)
    assert store.problem is None
    stop(store)


def test_a_stop_while_it_is_still_trying(node: Node) -> None:
    node.client.fail("ListObjectsV2", Unavailable)
    store = node.start(has_run_before=True)
    held = node.client.hold("ListObjectsV2")
    node.clock.advance(RETRY_S)
    assert len(held) == 1
    stop(store)
    assert node.clock.getDelayedCalls() == [], "it does not wait for an answer that may take minutes"


def test_a_listing_that_breaks_off_is_no_listing(node: Node) -> None:
    for number in range(MAX_KEYS + 5):
        node.client.store(share_key(number.to_bytes(16, "big"), 0), b"x")
    stop(node.start())
    node.client = reborn(node.client)
    listing = node.client.hold("ListObjectsV2")
    starting = node.begin(has_run_before=True)
    listing.release(2)
    listing.fail(Unavailable)
    store = now(starting)
    assert store.problem and store.index.share_count == MAX_KEYS + 5
    listing.release()
    node.clock.advance(RETRY_S)
    assert store.problem is None and store.index.share_count == MAX_KEYS + 5
    assert due_soon(node) == [], "and none was thought to have vanished"
    stop(store)


def test_a_404_of_a_listing_is_no_empty_bucket(node: Node) -> None:
    node.put()
    stop(node.start())
    node.client = reborn(node.client)
    node.client.fail("ListObjectsV2", NotFound, times=9)
    assert isinstance(error_of(node.begin()), errors.ConfigError)
