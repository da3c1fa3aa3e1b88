# SPDX-License-Identifier: GPL-2.0-or-later
"""A bucket that is listed while the node serves: right answers from the first one on, whatever happens meanwhile.

The pages are small (PAGE keys) and the node serves after the second one, so that a few dozen shares are a large
bucket. Every turn of the clock brings one page more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from twisted.internet.defer import Deferred

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, Page, Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store import reconcile
from tahoe_s3.store.expiry import RETRY_S as EXPIRY_RETRY_S
from tahoe_s3.store.expiry import SLOW_START_S
from tahoe_s3.store.index import ShareRow
from tahoe_s3.store.keys import ShareId, lease_key, share_key, slot_prefix, span_before
from tahoe_s3.store.leases import Lease, overlay_from_json, overlay_to_json
from tahoe_s3.store.ownership import OwnerMark
from tahoe_s3.store.reconcile import MAX_RETRY_S, RETRY_S, START_WAIT_S
from tahoe_s3.store.store import VANISH_CHECKS_S

from .helpers import NODEID, error_of, immutable_object, mutable_object, now, pattern, waits
from .listed import (
    DATA,
    NEW_LEASE,
    OBJECT,
    PAGE,
    SERVES_AFTER,
    end_of_listing,
    fill,
    in_bucket,
    in_index,
    numbers,
    server_of,
    si_of,
    until,
)
from .memory_client import MemoryClient
from .servers import CANCEL, RENEW, open_files
from .starting import Node, due_soon, stop


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(reconcile, "START_KEYS", SERVES_AFTER)
    made = Node(tmp_path / "storage")
    made.client.page_keys = PAGE
    yield made
    assert open_files(tmp_path) == []


# serving while the bucket is listed


def test_the_node_serves_after_the_first_pages_and_lists_on_a_page_a_turn(node: Node) -> None:
    fill(node)
    store = node.start()
    seen = [store.index.share_count]
    assert not store.rebuild.is_complete and not store.rebuild.answers_for_all and store.problem is None
    assert SERVES_AFTER - 1 <= seen[0] <= SERVES_AFTER + PAGE
    while not store.rebuild.is_complete:
        progress = store.rebuild.progress
        assert 0 < progress.part < 1 and progress.since_s == 0 and progress.problem is None
        assert len(seen) < 20
        node.clock.turn()
        seen.append(store.index.share_count)
    assert max(after - before for before, after in zip(seen, seen[1:])) <= PAGE
    assert in_index(store) == in_bucket(node) and store.rebuild.answers_for_all
    assert store.rebuild.progress.part == 1 and store.rebuild.progress.keys == 31
    node.clock.turn()
    assert due_soon(node) == []
    stop(store)


def test_a_small_bucket_is_known_before_the_node_serves(node: Node) -> None:
    fill(node, SERVES_AFTER - 2)
    store = node.start()
    assert store.rebuild.is_complete and in_index(store) == in_bucket(node)
    assert due_soon(node) == []
    stop(store)


def test_what_is_not_listed_yet_is_looked_up_once(node: Node) -> None:
    sis = fill(node)
    store = node.start()
    server = server_of(node, store)
    first, last, nowhere = sis[0], sis[-1], sis[-1][:15] + b"\x00"
    assert store.rebuild.covers(first) and not store.rebuild.covers(last)
    node.client.forget_requests()
    assert set(now(server.get_buckets(first))) == {0}
    assert node.client.requests == {}, "the listing has passed it"
    # Of all who ask at once there is one request.
    held = node.client.hold("ListObjectsV2", slot_prefix(last))
    asking: list[Deferred[Any]] = [server.get_buckets(last) for _ in range(3)]
    asking.append(server.enumerate_mutable_shares(last))
    assert all(waits(one) for one in asking) and numbers(store, last) == []
    held.release()
    assert [set(now(one)) for one in asking] == [{0}] * 4
    assert node.client.requests == {"ListObjectsV2": 1}
    assert set(now(server.get_buckets(last))) == {0}
    for _ in range(3):
        assert now(server.get_buckets(nowhere)) == {}
    assert node.client.requests["ListObjectsV2"] == 2, "that there is none is remembered too"
    assert set(store.rebuild._looked_up) == {last, nowhere}
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    stop(store)


def test_a_listing_cannot_be_half_past_a_storage_index(node: Node) -> None:
    """A page may end between two shares of one file."""
    sis = fill(node, 12)
    for shnum in range(1, 3 * PAGE):
        node.client.store(share_key(sis[2], shnum), OBJECT)
    store = node.start()
    assert 0 < len(numbers(store, sis[2])) < 3 * PAGE and not store.rebuild.covers(sis[2])
    assert len(now(server_of(node, store).get_buckets(sis[2]))) == 3 * PAGE
    stop(store)


def test_a_look_up_that_fails_is_not_an_absence(node: Node) -> None:
    last = fill(node)[-1]
    store = node.start()
    server = server_of(node, store)
    node.client.fail("ListObjectsV2", Unavailable, key=slot_prefix(last), times=2)
    for _ in range(2):
        assert isinstance(error_of(server.get_buckets(last)), Unavailable)
        assert not store.rebuild.covers(last)
    assert set(now(server.get_buckets(last))) == {0}
    stop(store)


RTW = ((b"w" * 32, RENEW, CANCEL), {1: ([], [(0, b"new")], None)}, [])
WAYS: dict[str, Callable[[S3StorageServer, bytes], Any]] = {
    "get_buckets": lambda server, si: server.get_buckets(si),
    "allocate": lambda server, si: server.allocate_buckets(si, RENEW, CANCEL, {0}, 10),
    "add_lease": lambda server, si: server.add_lease(si, RENEW, CANCEL),
    "renew_lease": lambda server, si: server.renew_lease(si, RENEW),
    "enumerate": lambda server, si: server.enumerate_mutable_shares(si),
    "length": lambda server, si: server.get_mutable_share_length(si, 0),
    "readv": lambda server, si: server.slot_readv(si, [], [(0, 10)]),
    "read-test-write": lambda server, si: server.slot_testv_and_readv_and_writev(si, *RTW),
    "advise": lambda server, si: server.advise_corrupt_share(b"mutable", si, 0, b"why"),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_call_waits_for_what_is_not_known(node: Node, way: str) -> None:
    sis = fill(node)
    last = sis[-1]
    node.client.store(share_key(last, 0), mutable_object(b"mutable data"))
    store = node.start()
    server = server_of(node, store)
    held = node.client.hold("ListObjectsV2", slot_prefix(last))
    before = dict(node.client.objects)
    answer = WAYS[way](server, last)
    assert waits(answer) and len(held) == 1 and node.client.objects == before
    held.fail(Unavailable)
    assert isinstance(error_of(answer), Unavailable)
    answer = WAYS[way](server, last)
    held.release()
    results: list[Any] = []
    answer.addBoth(results.append)
    assert results and not isinstance(getattr(results[0], "value", None), Unavailable)
    if way == "allocate":
        assert results[0][0] == {0} and results[0][1] == {}, "no second upload of a share that is there"
    now(server.stopService())


def test_leases_that_are_not_listed_yet_are_not_lost(node: Node) -> None:
    """The lease object of a share that was looked up is read before it is written anew."""
    last = fill(node)[-1]
    old = Lease(2, b"o" * 32, b"p" * 32, 8_000_000_000, NODEID)
    node.client.store(lease_key(last), overlay_to_json([old]))
    held = node.client.hold("ListObjectsV2")
    starting = node.begin()
    held.release(2)
    assert waits(starting)
    node.clock.advance(START_WAIT_S)
    store = now(starting)
    node.client.hold("ListObjectsV2", slot_prefix(last))
    node.client.holds.reverse()
    adding = store.overlay.add(last, NEW_LEASE)
    node.client.holds[0].release()
    assert now(adding) is None
    assert overlay_from_json(node.client.objects[lease_key(last)].data) == [old, NEW_LEASE]
    stop(store)


# what changes meanwhile


def test_a_page_that_was_asked_for_before_changes_nothing_that_happened_since(node: Node) -> None:
    sis = fill(node)
    held = node.client.hold("ListObjectsV2", "", apply_first=True)
    starting = node.begin()
    held.release(1)
    while waits(starting):
        held.release(1)
    store = now(starting)
    server = server_of(node, store)
    # Of the next page, which the service has put together already.
    deleted, replaced = [si for si in sis if not numbers(store, si)][:2]
    now(store.slots.run(deleted, lambda: store.client.delete(share_key(deleted, 0))))
    store.share_deleted(ShareId(deleted, 0))
    fresh = node.client.store(share_key(replaced, 0), mutable_object(b"newer"))
    store.index.put_share(replaced, ShareRow(0, len(fresh.data), fresh.etag, True, fresh.modified_s))
    uploaded = si_of(33)
    writer = now(server.allocate_buckets(uploaded, RENEW, CANCEL, {5}, len(DATA)))[1][5]
    now(writer.write(0, DATA))
    now(writer.close())
    held.release()
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    assert store.rebuild.progress.problem is None
    now(server.stopService())


def test_a_look_up_whose_answer_comes_late_brings_nothing_back(node: Node) -> None:
    """The listing came by while it was under way, and the share was deleted then."""
    last = fill(node)[-1]
    store = node.start()
    held = node.client.hold("ListObjectsV2", slot_prefix(last), apply_first=True)
    looking = store.rebuild.look_up(last)
    end_of_listing(node, store)
    del node.client.objects[share_key(last, 0)]
    store.share_deleted(ShareId(last, 0))
    held.release()
    assert now(looking) is None and numbers(store, last) == []
    stop(store)


# a listing that breaks off


def test_a_listing_that_breaks_off_goes_on_where_it_was(node: Node) -> None:
    sis = fill(node)
    held = node.client.hold("ListObjectsV2", "")
    starting = node.begin()
    while waits(starting):
        held.release(1)
    store = now(starting)
    node.clock.turn()
    done = store.rebuild.progress.keys
    assert SERVES_AFTER <= done < len(sis)
    held.calls[-1].fail(Unavailable)
    assert "made to fail" in str(store.rebuild.progress.problem)
    assert set(now(server_of(node, store).get_buckets(sis[-1]))) == {0}, "the node serves"
    # Once more, after twice the time.
    node.client.holds.remove(held)
    node.client.fail("ListObjectsV2", Unavailable, key="")
    node.client.forget_requests()
    for delay_s in (RETRY_S, 2 * RETRY_S):
        node.clock.advance(delay_s - 1)
        asked = node.client.requests["ListObjectsV2"]
        node.clock.advance(1)
        assert node.client.requests["ListObjectsV2"] > asked
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    assert store.rebuild.progress.keys == len(sis) + 1, "nothing was listed twice"
    assert store.rebuild.progress.problem is None
    stop(store)
    assert node.clock.getDelayedCalls() == []


def test_who_is_refused_does_not_hammer(node: Node) -> None:
    fill(node)
    store = node.start()
    node.client.fail("ListObjectsV2", AccessDenied, key="", times=99)
    until(node, store, lambda: store.rebuild.progress.problem is not None)
    asked = node.client.requests["ListObjectsV2"]
    node.clock.advance(MAX_RETRY_S - 1)
    assert node.client.requests["ListObjectsV2"] == asked
    node.clock.advance(1)
    assert node.client.requests["ListObjectsV2"] > asked
    stop(store)
    assert node.clock.getDelayedCalls() == []


def test_an_index_that_cannot_be_written_is_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, for instance: the page is listed once more."""
    fill(node)
    store = node.start()
    real = store.index.confirm_shares

    def refuse(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store.index, "confirm_shares", refuse)
    node.clock.turn()
    assert "no space left" in str(store.rebuild.progress.problem)
    monkeypatch.setattr(store.index, "confirm_shares", real)
    node.clock.advance(RETRY_S)
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    stop(store)


# stops


def stop_half_way(node: Node, turns: int = 2) -> int:
    """How many shares the index has then."""
    store = node.start()
    for _ in range(turns):
        node.clock.turn()
    assert not store.rebuild.is_complete
    count = store.index.share_count
    stop(store)
    assert node.clock.getDelayedCalls() == []
    return count


def test_a_clean_stop_half_way_is_gone_on_with(node: Node) -> None:
    sis = fill(node)
    count = stop_half_way(node)
    assert 0 < count < len(sis)
    # What happens meanwhile before that place is noticed as well.
    node.client.store(share_key(sis[0], 9), OBJECT)
    node.client.store(share_key(sis[1], 0), immutable_object(pattern(70)))
    listing = node.client
    store = node.start()
    assert not store.rebuild.answers_for_all and not store.rebuild.covers(sis[-1])
    assert store.rebuild.covers(sis[0]), "as of the last run"
    assert node.client is not listing
    until(node, store, lambda: store.rebuild.answers_for_all)
    assert not store.rebuild.is_complete, "what lies before is listed afterwards"
    for si in sis[2:]:
        assert numbers(store, si) == [0]
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    assert node.client.requests["ListObjectsV2"] <= 1 + (len(sis) + 3) // PAGE + 8
    stop(store)
    third = node.start()
    assert third.rebuild.answers_for_all and third.index.was_kept
    stop(third)


def test_a_part_of_an_index_is_never_taken_for_the_whole(node: Node) -> None:
    """Stopped again and again before the listing has come to its end."""
    sis = fill(node)
    for _ in range(3):
        stop_half_way(node, turns=0)
    store = node.start()
    server = server_of(node, store)
    for si in sis:
        assert set(now(server.get_buckets(si))) == {0}
    stop(store)


def test_after_a_crash_half_way_it_begins_anew(node: Node) -> None:
    fill(node)
    store = node.start()
    node.clock.turn()
    store.rebuild.stop()
    node.crash(store)
    again = node.start()
    assert not again.index.was_kept
    assert again.rebuild._position and again.index.share_count <= SERVES_AFTER + PAGE
    end_of_listing(node, again)
    assert in_index(again) == in_bucket(node)
    stop(again)


@pytest.mark.parametrize("damage", ["{", "[]", '{"after": 3, "answers_for_all": true}', '{"after": "x"}'])
def test_a_damaged_checkpoint_is_not_believed(node: Node, damage: str) -> None:
    sis = fill(node)
    store = node.start()
    store.rebuild.stop()
    store.rebuild.remember = lambda: store.index.remember("listing", damage)  # type: ignore[method-assign]
    stop(store)
    again = node.start()
    assert not again.rebuild.answers_for_all and set(now(server_of(node, again).get_buckets(sis[-1]))) == {0}
    stop(again)


def test_a_stop_in_the_pause_after_a_failure(node: Node) -> None:
    fill(node)
    store = node.start()
    node.client.fail("ListObjectsV2", Unavailable, key="", times=9)
    until(node, store, lambda: store.rebuild.progress.problem is not None)
    stop(store)
    assert node.clock.getDelayedCalls() == []


# an index that was kept


def test_a_kept_index_answers_at_once(node: Node) -> None:
    sis = fill(node)
    store = node.start()
    end_of_listing(node, store)
    stop(store)
    del node.client.objects[share_key(sis[-1], 0)]
    node.client.store(share_key(sis[-2], 7), OBJECT)
    store = node.start()
    server = server_of(node, store)
    assert store.rebuild.answers_for_all and not store.rebuild.is_complete
    node.client.forget_requests()
    for si in sis:
        assert set(now(server.get_buckets(si))) == {0}
    assert node.client.requests == {}
    end_of_listing(node, store)
    assert numbers(store, sis[-2]) == [0, 7]
    node.clock.turn()
    for delay_s in VANISH_CHECKS_S:
        assert numbers(store, sis[-1]) == [0], "one listing that does not show it is not enough"
        node.clock.advance(delay_s)
    assert numbers(store, sis[-1]) == []
    stop(store)


def test_a_bucket_that_was_emptied_is_asked_a_part_at_a_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "MAX_VANISHING", 10)
    monkeypatch.setattr("tahoe_s3.store.index._STRETCH_ROWS", 10)
    fill(node)
    store = node.start()
    end_of_listing(node, store)
    stop(store)
    node.client.objects = {"owner.json": node.client.objects["owner.json"]}
    store = node.start()
    most = 0
    for _ in range(200):
        node.clock.advance(10)
        most = max(most, store.vanishing_count)
    assert store.index.share_count == 0 and 10 <= most <= 20
    assert node.client.requests["HeadObject"] == 30 * len(VANISH_CHECKS_S)
    stop(store)


def test_nothing_expires_before_the_bucket_was_listed(node: Node) -> None:
    fill(node)
    store = node.start()
    server = server_of(node, store, expiration_enabled=True, expiration_mode="age", steady_s=node.clock.seconds)
    server.startService()
    held = node.client.hold("ListObjectsV2", "")
    until(node, store, lambda: len(held))
    node.clock.advance(SLOW_START_S)
    assert server.lease_checker.get_state()["deletes-nothing-because"] == "the bucket is still being listed"
    assert not server._expirer.in_cycle
    held.release()
    end_of_listing(node, store)
    assert server._expirer.account.state.last_finished is None
    node.clock.advance(EXPIRY_RETRY_S)
    assert server._expirer.account.state.last_finished == 0
    now(server.stopService())


# another node below


def test_a_node_below_that_is_met_late_stops_everything(node: Node) -> None:
    sis = fill(node)
    below = OwnerMark("othernode", "instance", 1_600_000_000).to_json()
    node.client.store("zone/b/owner.json", below)
    store = node.start()
    server = server_of(node, store)
    writer = now(server.allocate_buckets(sis[0], RENEW, CANCEL, {3}, len(DATA)))[1][3]
    now(writer.write(0, DATA))
    for _ in range(30):
        node.clock.turn()
    assert isinstance(store.rebuild.refused, errors.NestedOwner)
    assert store.problem is not None and "zone/b/owner.json" in store.problem
    assert store.watch.lost is not None and server.allocated_size() == 0, "uploads under way have ended"
    assert isinstance(error_of(writer.close()), Unavailable)
    assert share_key(sis[0], 3) not in node.client.objects
    assert isinstance(error_of(server.get_buckets(sis[0])), Unavailable)
    assert isinstance(error_of(store.overlay.add(sis[0], NEW_LEASE)), Unavailable)
    assert "owner.json" not in node.client.objects, "no mark above it that would stop its next start"
    now(server.stopService())


# the moment from which the node serves


def test_whether_there_is_any_share_is_known_before_the_node_is_made(node: Node) -> None:
    """Lease objects come first in a listing, and there may be many."""
    for number in range(36):
        node.client.store(lease_key(si_of(number)), overlay_to_json([NEW_LEASE]))
    node.client.store(share_key(si_of(35), 0), OBJECT)
    first = now(node.begin(has_run_before=True))
    assert first.index.share_count == 0, "it has its permutation seed and is not asked"
    stop(first)
    for path in sorted(node.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    store = node.start()
    assert server_of(node, store).have_shares()
    stop(store)


def test_a_slow_service_is_waited_for_a_while_and_until_a_page_came(node: Node) -> None:
    fill(node)
    held = node.client.hold("ListObjectsV2")
    starting = node.begin()
    held.release(1)
    node.clock.advance(START_WAIT_S)
    assert waits(starting), "nothing is known yet"
    held.release(1)
    store = now(starting)
    assert not store.rebuild.is_complete
    stop(store)
    assert node.clock.getDelayedCalls() == []


def test_uploads_of_earlier_runs_are_removed_before_any_of_this_one_begins(node: Node) -> None:
    sis = fill(node)
    now(node.client.create_multipart(share_key(sis[-1], 4)))
    held = node.client.hold("ListMultipartUploads")
    starting = node.begin()
    for _ in range(30):
        node.clock.turn()
    assert waits(starting), "the node does not serve"
    held.release()
    store = now(starting)
    assert node.client.uploads == {}
    mine = now(node.client.create_multipart(share_key(sis[-1], 4)))
    end_of_listing(node, store)
    assert list(node.client.uploads) == [mine]
    stop(store)


# services with habits


def test_where_listings_are_not_sorted_nothing_counts_as_passed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    sis = fill(node)
    keys = sorted(node.client.objects)
    shuffled = sorted(keys, key=lambda key: key[::-1])

    def list_page(
        self: MemoryClient, prefix: str, *, token: str | None = None, start_after: str | None = None, **_: Any
    ) -> Deferred[Page]:
        def apply() -> Page:
            mine = [key for key in shuffled if key.startswith(prefix) and key in self.objects]
            begin = int(token or 0)
            some = mine[begin : begin + PAGE]
            entries = [self.entry(key) for key in some]
            return Page(entries, [], str(begin + PAGE) if begin + PAGE < len(mine) else None, False)

        return self._request("ListObjectsV2", prefix, apply)

    monkeypatch.setattr(MemoryClient, "list_page", list_page)
    store = node.start()
    server = server_of(node, store)
    assert not store.rebuild.is_complete
    for si in sis[:10]:
        assert set(now(server.get_buckets(si))) == {0}
    store.rebuild.stop()
    stop(store)
    store = node.start()
    assert not store.rebuild.answers_for_all
    end_of_listing(node, store)
    assert in_index(store) == in_bucket(node)
    stop(store)


# how far it is


@pytest.mark.parametrize(
    ("key", "part"),
    [("", 0), ("leases/zz/zzzz", 0), ("owner.json", 0), ("shares/", 0), ("shares/22/2222", 0),
     ("shares/aa/aaaa", 6 / 32), ("shares/i2/i222", 14 / 32), ("shares/zz/zzzz", 1), ("zone", 1)],
)  # fmt: skip
def test_the_part_of_the_key_space(key: str, part: float) -> None:
    assert span_before(key) == pytest.approx(part, abs=0.01)
