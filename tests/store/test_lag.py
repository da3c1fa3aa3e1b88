# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that was killed, and whose next start lists its bucket on a service whose listings lag: what the listing does
not show yet is there all the same, and nothing that was acknowledged is overwritten for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3.client import Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.journal import JOURNAL
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.leases import Lease, hash_secret, overlay_from_json
from tahoe_s3.store.reconcile import LAG_S
from tahoe_s3.store.store import Store

from .helpers import SI, WRITE_ENABLER, error_of, now, waits
from .listed import DATA, NEW_LEASE, OBJECT, numbers, server_of, si_of
from .servers import CANCEL, RENEW, open_files
from .starting import Node, stop

START_S = 1_700_000_000.0
KEY = lease_key(SI)
OTHER = si_of(9)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """One whose bucket has a share that nothing here is about, so that it is not a new one."""
    made = Node(tmp_path / "storage")
    at(made, START_S)
    made.client.store(share_key(si_of(20), 0), OBJECT)
    yield made
    assert open_files(tmp_path) == []


def at(node: Node, now_s: float) -> None:
    """The time of this machine and of the service."""
    node.clock.advance(now_s - node.clock.seconds())
    node.client.follow(node.clock)


def killed(node: Node, store: Store) -> None:
    """The process ends, and a new one is about to start, which has nothing but the bucket."""
    now_s = node.clock.seconds()
    node.crash(store)
    for path in node.folder.glob(f"{JOURNAL}*"):
        path.unlink()
    at(node, now_s)


def lease(number: int) -> Lease:
    return Lease(1, b"%032d" % number, b"%032d" % (number + 500), 9_000_000_000, bytes(20))


def upload(server: S3StorageServer, si: bytes = SI, shnum: int = 0) -> None:
    writer = now(server.allocate_buckets(si, RENEW, CANCEL, {shnum}, len(DATA)))[1][shnum]
    now(writer.write(0, DATA))
    assert now(writer.close()) is None


def in_bucket(node: Node, si: bytes = SI) -> set[bytes]:
    return {one.renew_hash for one in overlay_from_json(node.client.objects[lease_key(si)].data)}


def with_leases(node: Node, count: int = 2) -> Store:
    """A node that has acknowledged a share and some leases."""
    store = node.start()
    upload(server_of(node, store))
    for number in range(count):
        assert now(store.overlay.add(SI, lease(number))) is None
    return store


ACKNOWLEDGED = {lease(0).renew_hash, lease(1).renew_hash}


def test_a_share_and_its_lease_object_that_the_listing_hides(node: Node) -> None:
    """A client that stores another share of the file makes a row that no listing told of."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    assert numbers(store, SI) == []
    upload(server_of(node, store), shnum=5)
    assert numbers(store, SI) == [5]
    node.client.forget_requests()
    for number in (7, 8):
        assert now(store.overlay.add(SI, lease(number))) is None
    assert in_bucket(node) == ACKNOWLEDGED | {lease(7).renew_hash, lease(8).renew_hash}
    assert node.client.requests == {"GetObject": 1, "PutObject": 2}
    stop(store)


def test_a_lease_object_of_a_share_that_nobody_has_stored_again(node: Node) -> None:
    """The listing shows the share, and what is asked of its lease object is asked once."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY}
    store = node.start()
    assert now(store.overlay.add(SI, lease(7))) is None
    assert in_bucket(node) == ACKNOWLEDGED | {lease(7).renew_hash}
    stop(store)


def test_what_was_hidden_is_asked_for_after_a_clean_stop_too(node: Node) -> None:
    """What the index does not know it does not know in the next run either."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    upload(server_of(node, store), shnum=5)
    stop(store)
    store = begun_again(node)
    assert store.index.was_kept and not store.index.knows_absences
    upload(server_of(node, store), shnum=1)
    assert in_bucket(node) == ACKNOWLEDGED | {hash_secret(RENEW)}, "the share that is there gets the lease"
    stop(store)


def test_a_lease_object_whose_get_fails_is_not_written(node: Node) -> None:
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    upload(server_of(node, store), shnum=5)
    node.client.fail("GetObject", Unavailable, key=KEY)
    failed: list[object] = []
    store.overlay.add(SI, lease(7)).addErrback(lambda failure: failed.append(failure.value))
    assert isinstance(failed[0], Unavailable) and in_bucket(node) == ACKNOWLEDGED
    assert now(store.overlay.add(SI, lease(7))) is None
    assert in_bucket(node) == ACKNOWLEDGED | {lease(7).renew_hash}
    stop(store)


def test_expiry_asks_for_it_too(node: Node) -> None:
    """A lease that was hidden keeps a share that was stored again."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    server = server_of(node, store, expiration_enabled=True, expiration_override_lease_duration=86_400,
                       steady_s=node.clock.seconds)  # fmt: skip
    server.startService()
    upload(server, shnum=5)
    node.clock.pump([1000.0] * 400)
    assert {share_key(SI, 0), share_key(SI, 5)} <= node.client.objects.keys() and in_bucket(node) == ACKNOWLEDGED
    overlay = store.index.overlay(SI)
    assert overlay is not None and len(overlay.leases or ()) == 2
    now(server.stopService())


# shares that are hidden


def test_an_upload_of_a_hidden_share(node: Node) -> None:
    """It is there already: its object, and the lease in it, stay, and the new lease goes beside them."""
    killed(node, with_leases(node))
    key = share_key(SI, 0)
    before = node.client.objects[key]
    node.client.unlisted |= {KEY, key}
    store = node.start()
    server = server_of(node, store)
    assert set(now(server.get_buckets(SI))) == set(), "what this test is about"
    node.client.forget_requests()
    had, writers = now(server.allocate_buckets(SI, b"R" * 32, CANCEL, {0, 1}, len(DATA)))
    assert (had, set(writers)) == ({0}, {1})
    assert node.client.requests == {"HeadObject": 2, "GetObject": 1, "PutObject": 1}
    assert node.client.objects[key] is before
    assert in_bucket(node) == ACKNOWLEDGED | {hash_secret(b"R" * 32)}
    assert now(now(server.get_buckets(SI))[0].read(0, 100)) == DATA
    now(writers[1].abort())
    stop(store)


def test_a_read_test_write_of_a_hidden_share(node: Node) -> None:
    """What was acknowledged is tested and read, not taken for nothing."""
    store = node.start()

    def write(server: S3StorageServer, test: list[Any], data: bytes) -> Any:
        vectors: Any = {0: (test, [(0, data)], len(data))}
        secrets = (WRITE_ENABLER, RENEW, CANCEL)
        return server.slot_testv_and_readv_and_writev(SI, secrets, vectors, [(0, 100)])

    new = [(0, 1, b"eq", b"")]
    assert now(write(server_of(node, store), new, b"the first")) == (True, {})
    killed(node, store)
    node.client.unlisted.add(share_key(SI, 0))
    store = node.start()
    server = server_of(node, store)
    node.client.forget_requests()
    assert now(write(server, new, b"another first")) == (False, {0: [b"the first"]})
    assert node.client.requests == {"HeadObject": 1, "GetObject": 1}
    assert now(write(server, [(0, 9, b"eq", b"the first")], b"the second")) == (True, {0: [b"the first"]})
    assert now(server.slot_readv(SI, [], [(0, 100)])) == {0: [b"the second"]}
    assert node.client.requests == {"HeadObject": 1, "GetObject": 1, "PutObject": 1}
    stop(store)


@pytest.mark.parametrize("what", ["allocate", "write"])
def test_where_the_bucket_does_not_tell_nothing_is_made(node: Node, what: str) -> None:
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    server = server_of(node, store)
    before = dict(node.client.objects)
    node.client.fail("HeadObject", Unavailable)
    if what == "allocate":
        call = server.allocate_buckets(SI, RENEW, CANCEL, {0}, len(DATA))
    else:
        call = server.slot_testv_and_readv_and_writev(
            SI, (WRITE_ENABLER, RENEW, CANCEL), {0: ([], [(0, b"x")], 1)}, []
        )
    assert isinstance(error_of(call), Unavailable)
    assert node.client.objects == before and server._bucket_writers == {}
    stop(store)


def test_two_who_make_the_same_share_at_once(node: Node) -> None:
    """What the first one's PUT has made is not taken for a hidden one before it is answered."""
    store = node.start()
    server = server_of(node, store)
    held = node.client.hold("PutObject", share_key(OTHER, 0), apply_first=True)

    def write(data: bytes) -> Any:
        vectors: Any = {0: ([(0, 1, b"eq", b"")], [(0, data)], len(data))}
        return server.slot_testv_and_readv_and_writev(OTHER, (WRITE_ENABLER, RENEW, CANCEL), vectors, [(0, 100)])

    first, second = write(b"first"), write(b"second")
    assert waits(first) and waits(second)
    held.release()
    assert now(first) == (True, {}) and now(second) == (False, {0: [b"first"]})
    stop(store)


def test_a_stop_while_the_bucket_is_asked(node: Node) -> None:
    store = node.start()
    server = server_of(node, store)
    held = node.client.hold("HeadObject")
    allocating = server.allocate_buckets(OTHER, RENEW, CANCEL, {0}, len(DATA))
    writing = server.slot_testv_and_readv_and_writev(
        SI, (WRITE_ENABLER, RENEW, CANCEL), {0: ([], [(0, b"x")], 1)}, []
    )
    stopping = server.stopService()
    assert waits(stopping)
    held.release()
    assert isinstance(error_of(allocating), Unavailable), "nobody would end the writer"
    assert now(writing) == (True, {}), "what has begun ends"
    assert now(stopping) is None and server._bucket_writers == {}
    assert share_key(SI, 0) in node.client.objects and share_key(OTHER, 0) not in node.client.objects


# the listing that is made once more


def listings(node: Node) -> int:
    return node.client.keys_asked.count(("ListObjectsV2", ""))


def begun_again(node: Node) -> Store:
    """The next start, at the same time."""
    now_s = node.clock.seconds()
    starting = node.begin()
    at(node, now_s)
    store: Store = now(starting)
    return store


def pass_time(node: Node, seconds: float) -> None:
    node.clock.pump([10.0] * int(seconds / 10))


def test_the_bucket_is_listed_once_more_when_no_listing_lags(node: Node) -> None:
    """Then what was hidden is seen again, and what is not shown is not there."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    store = node.start()
    node.client.forget_requests()
    pass_time(node, LAG_S - 10)
    assert node.client.requests == {} and not store.index.knows_absences
    node.client.unlisted.clear()
    pass_time(node, 10)
    assert listings(node) == 1 and store.index.knows_absences and numbers(store, SI) == [0]
    assert store.rebuild.progress.is_complete and store.rebuild.progress.keys == 2
    upload(server_of(node, store), OTHER)
    node.client.forget_requests()
    assert now(store.overlay.add(OTHER, NEW_LEASE)) is None
    assert node.client.requests == {"PutObject": 1}, "that there is no lease object is known now"
    assert now(store.overlay.add(SI, lease(7))) is None
    assert in_bucket(node) == ACKNOWLEDGED | {lease(7).renew_hash}
    node.client.forget_requests()
    pass_time(node, 4 * LAG_S)
    assert node.client.requests == {}, "no more than once"
    stop(store)
    node.client.forget_requests()
    store = begun_again(node)
    assert store.index.knows_absences and listings(node) == 2, "one is of the check whether there is such a bucket"
    stop(store)


def test_it_touches_nothing_that_has_a_row(node: Node) -> None:
    """An older version that it shows is an old one, or the doing of a PUT that was applied late, which is put right."""
    killed(node, with_leases(node))
    store = node.start()
    server, key = server_of(node, store), share_key(OTHER, 0)

    def write(data: bytes) -> None:
        vectors: Any = {0: ([], [(0, data)], len(data))}
        now(server.slot_testv_and_readv_and_writev(OTHER, (WRITE_ENABLER, RENEW, CANCEL), vectors, []))

    pass_time(node, LAG_S - 50)
    node.client.retried.add(key)
    write(b"the old one")
    old = node.client.objects[key].data
    node.client.retried.clear()
    write(b"the new one")
    new = node.client.objects[key].data
    node.client.store(key, old)
    row = store.index.share(OTHER, 0)
    node.client.forget_requests()
    pass_time(node, 50)
    assert listings(node) == 1 and store.index.knows_absences and store.index.share(OTHER, 0) == row
    assert store.vanishing_count == 0
    pass_time(node, 20)
    assert node.client.objects[key].data == new
    stop(store)


def test_what_was_deleted_before_it_began_stays_deleted(node: Node) -> None:
    """It may show that still."""
    killed(node, with_leases(node))
    store = node.start()
    server = server_of(node, store)
    secrets = (WRITE_ENABLER, RENEW, CANCEL)
    now(server.slot_testv_and_readv_and_writev(OTHER, secrets, {0: ([], [(0, b"x")], 1)}, []))
    assert now(store.overlay.add(OTHER, NEW_LEASE)) is None
    gone = {key: node.client.objects[key] for key in (share_key(OTHER, 0), lease_key(OTHER))}
    pass_time(node, LAG_S - 10)
    now(server.slot_testv_and_readv_and_writev(OTHER, secrets, {0: ([], [], 0)}, []))
    assert not gone.keys() & node.client.objects.keys()
    node.client.objects.update(gone)
    pass_time(node, 10)
    assert store.index.knows_absences and numbers(store, OTHER) == [] and store.index.overlay(OTHER) is None
    stop(store)


def test_it_goes_on_where_it_broke_off(node: Node) -> None:
    killed(node, with_leases(node))
    store = node.start()
    node.client.fail("ListObjectsV2", Unavailable, times=2)
    pass_time(node, LAG_S)
    assert store.rebuild.progress.problem is not None and not store.index.knows_absences
    assert numbers(store, SI) == [0], "the node serves meanwhile"
    pass_time(node, 100)
    assert store.rebuild.progress.problem is None and store.index.knows_absences
    stop(store)
    assert node.clock.getDelayedCalls() == []


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_stop_before_it_leaves_it_to_the_next_start(node: Node, moment: str) -> None:
    killed(node, with_leases(node))
    store = node.start()
    pass_time(node, LAG_S - 10)
    held = node.client.hold("ListObjectsV2")
    if moment != "before":
        pass_time(node, 10)
        assert len(held) == 1
    if moment == "after":
        held.release()
    stop(store)
    assert node.clock.getDelayedCalls() == []
    store = begun_again(node)
    assert store.index.was_kept and store.rebuild.answers_for_all
    assert store.index.knows_absences is (moment != "before")
    node.client.forget_requests()
    pass_time(node, 10)
    assert store.index.knows_absences and listings(node) == (moment == "before")
    stop(store)


def test_the_time_that_counts_is_the_services(node: Node) -> None:
    """A machine without a clock of its own learns the time after its start: no half hour has passed for that."""
    killed(node, with_leases(node))
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    now_s = node.clock.seconds()
    node.clock.rightNow = 1000.0
    node.client.ahead_s = now_s - 1000.0
    node.client.answered = True
    store = node.start()
    stop(store)
    starting_s = node.clock.seconds()
    node.clock.rightNow = now_s + 60
    store = begun_again(node)
    assert starting_s < now_s and not store.index.knows_absences
    stop(store)


def test_a_time_that_lies_ahead_is_not_waited_for(node: Node) -> None:
    killed(node, with_leases(node))
    store = node.start()
    pass_time(node, LAG_S / 2)
    store.index.remember("the index's beginning", "9e9")
    stop(store)
    store = begun_again(node)
    pass_time(node, LAG_S)
    assert store.index.knows_absences
    stop(store)


def test_a_new_bucket_has_nothing_to_hide(tmp_path: Path) -> None:
    node = Node(tmp_path / "storage")
    at(node, START_S)
    store = node.start()
    assert store.index.knows_absences
    upload(server_of(node, store))
    node.client.forget_requests()
    assert now(store.overlay.add(SI, lease(1))) is None
    assert node.client.requests == {"PutObject": 1}
    pass_time(node, 2 * LAG_S)
    assert listings(node) == 0
    killed(node, store)
    store = node.start()
    assert not store.index.knows_absences
    stop(store)


def test_a_bucket_that_shares_were_copied_to_may_hide_some(tmp_path: Path) -> None:
    node = Node(tmp_path / "storage")
    at(node, START_S)
    node.client.store(share_key(SI, 0), OBJECT)
    store = node.start()
    assert not store.index.knows_absences
    stop(store)


def test_an_index_that_is_made_anew_while_the_node_runs(node: Node) -> None:
    store = with_leases(node)
    # Until nothing is in doubt any more either, of which the node would know.
    pass_time(node, 2 * LAG_S + 10)
    assert store.index.knows_absences
    node.client.unlisted |= {KEY, share_key(SI, 0)}
    assert store.mend_index is not None
    store.mend_index("a test")
    assert store.problem is None and not store.index.knows_absences and numbers(store, SI) == []
    upload(server_of(node, store), shnum=5)
    assert now(store.overlay.add(SI, lease(7))) is None
    assert in_bucket(node) == ACKNOWLEDGED | {lease(7).renew_hash}
    stop(store)
