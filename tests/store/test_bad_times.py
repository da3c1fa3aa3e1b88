# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad luck of every kind: clients get errors, never an absence; the log and the status page say what is wrong, once and
in words; nothing that was acknowledged is lost; and all is well again by itself when it can be.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, BadReply, LocalError, NoSuchBucket, NotFound, S3Error, Throttled, Unavailable
from tahoe_s3.store.health import DOWN_AFTER, RECENT, RETRY_REFUSED_S, SUSPECT_EVERY_S
from tahoe_s3.store.index import Index
from tahoe_s3.store.keys import OWNER_KEY, lease_key, share_key
from tahoe_s3.store.leases import overlay_from_json
from tahoe_s3.store.opening import RETRY_S
from tahoe_s3.store.store import VANISH_CHECKS_S

from .expiring import ExpiryPlace, Make, making
from .helpers import NODEID, SI, error_of, now, pattern, waits
from .nodes import DAY_S, Bucket, Node, heard
from .servers import CANCEL, RENEW

DATA = pattern(3000)
SLOT = b"m" * 16
EVERYTHING = ("GetObject", "HeadObject", "ListObjectsV2", "PutObject", "DeleteObject", "DeleteObjects",
              "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload",
              "ListMultipartUploads", "GetBucketVersioning", "GetObjectLockConfiguration")  # fmt: skip


@pytest.fixture
def node(bucket: Bucket) -> Node:
    """A node with an immutable share, a lease added to it, and a mutable share."""
    made = bucket.start()
    made.upload(DATA)
    now(made.server.add_lease(SI, b"q" * 32, CANCEL))
    assert now(made.write_slot(b"mutable", si=SLOT))[0]
    made.client.forget_requests()
    return made


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    yield from heard()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from making(tmp_path)


def break_all(node: Node, error: type[S3Error], **how: Any) -> None:
    """From here on every request fails; that of a bucket that is gone is a plain 404 to a HEAD."""
    for operation in EVERYTHING:
        is_head = operation == "HeadObject" and error is NoSuchBucket
        node.client.fail(operation, NotFound if is_head else error, times=10**9, **how)


def mend_all(node: Node) -> None:
    node.client._failing.clear()


def calls_that_ask(node: Node) -> dict[str, Any]:
    """Calls that cannot be answered without the bucket."""
    return {
        "read": lambda: now(node.server.get_buckets(SI))[0].read(0, 100),
        "allocate": lambda: node.server.allocate_buckets(SI, b"z" * 32, CANCEL, {9}, 10),
        "add_lease": lambda: node.server.add_lease(SI, b"z" * 32, CANCEL),
        "renew_lease": lambda: node.server.renew_lease(SI, b"q" * 32),
        "writev": lambda: node.write_slot(b"changed", si=SLOT),
        "new slot": lambda: node.write_slot(b"changed", si=b"w" * 16),
        "close": lambda: begun_upload(node).close(),
    }


def begun_upload(node: Node, si: bytes = b"u" * 16) -> Any:
    writer = node.allocate(100, si=si)
    now(writer.write(0, pattern(100)))
    return writer


def assert_errors(node: Node, calls: dict[str, Any], kinds: Any) -> None:
    """Each of them fails, with an error of these kinds that is no absence; reads wait for their retries."""
    for name, call in calls.items():
        try:
            result = call()
        except kinds:
            # Refused before anything was begun.
            continue
        for _ in range(20):
            node.clock.advance(0 if result.called else 1)
        error = error_of(result)
        assert isinstance(error, kinds) and not isinstance(error, NotFound), (name, repr(error))


def assert_whole(node: Node, data: bytes = b"mutable") -> None:
    """What was acknowledged is there, and is answered."""
    assert 0 in now(node.server.get_buckets(SI))
    assert now(now(node.server.get_buckets(SI))[0].read(0, 3000)) == DATA
    assert now(node.server.slot_readv(SLOT, [], [(0, 100)])) == {0: [data]}
    leases = overlay_from_json(node.client.objects[lease_key(SI)].data)
    assert any(lease.renew_hash for lease in leases)
    node.upload(DATA, si=b"n" * 16, shnum=len(node.bucket.client.objects))


def lines(told: list[tuple[str, str]], words: str) -> list[str]:
    return [level for level, text in told if re.search(words, text)]


# the service


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
@pytest.mark.parametrize("error", [Unavailable, Throttled, BadReply])
def test_a_service_that_is_down(node: Node, told: list[Any], error: Any, outcome: str) -> None:
    break_all(node, error, outcome=outcome)
    assert_errors(node, calls_that_ask(node), S3Error)
    assert set(now(node.server.get_buckets(SI))) == {0} and node.store.problem is None
    trouble = node.store.health.trouble
    assert trouble is not None and "gives no usable answer" in trouble
    assert lines(told, "gives no usable answer") == ["error"], "once, however many requests fail"
    assert 0 < len(node.store.recent_errors) <= RECENT
    assert all("made to fail" in what for _, what in node.store.recent_errors)
    mend_all(node)
    assert_whole(node)
    assert node.store.health.trouble is None and lines(told, "answers again, after") == ["warn"]


def test_a_request_that_fails_among_others_is_no_outage(node: Node, told: list[Any]) -> None:
    for number in range(3 * DOWN_AFTER):
        node.client.fail("PutObject", Unavailable)
        assert isinstance(error_of(begun_upload(node).close()), Unavailable)
        node.upload(DATA, si=bytes([number]) * 16)
    assert node.store.health.trouble is None and not lines(told, "usable answer")


def test_what_fails_here_is_not_the_services_fault(node: Node) -> None:
    break_all(node, LocalError)
    assert_errors(node, calls_that_ask(node), S3Error)
    assert node.store.health.trouble is None and node.store.recent_errors


@pytest.mark.parametrize(
    ("error", "words"), [(AccessDenied, "refuses this node's credentials"), (NoSuchBucket, "is not there any more")]
)
def test_a_service_that_refuses_this_node(node: Node, told: list[Any], error: Any, words: str) -> None:
    """Services lock out who comes back with bad credentials: nothing is asked but the mark, every ten minutes."""
    reader, writer = now(node.server.get_buckets(SI))[0], begun_upload(node)
    break_all(node, error)
    assert isinstance(error_of(node.server.add_lease(SI, RENEW, CANCEL)), error)
    problem = node.store.problem
    assert problem is not None and re.search(words, problem) and "the bucket 'bucket'" in problem
    assert node.client.requests == {"PutObject": 1, "GetObject": 1}
    for _ in range(50):
        assert_errors(node, {**node.calls(), "read": lambda: reader.read(0, 10)}, Unavailable)
    assert lines(told, words) == ["critical"], "once and loudly"
    assert isinstance(error_of(writer.close()), Unavailable)
    node.client.forget_requests()
    node.clock.pump([1.0] * int(3 * RETRY_REFUSED_S))
    assert node.client.requests == {"GetObject": 3}
    assert lines(told, "still cannot be used") and node.store.health.trouble == problem
    mend_all(node)
    node.clock.advance(RETRY_REFUSED_S)
    assert node.store.problem is None and lines(told, "can be used again") == ["warn"]
    assert_whole(node)
    node.client.forget_requests()
    node.clock.pump([RETRY_REFUSED_S] * 10)
    assert node.client.requests == {}, "it is not asked for any more"


def test_a_key_that_may_not_do_one_thing_is_no_reason_to_stop(node: Node) -> None:
    node.client.fail("PutObject", AccessDenied, times=10**9)
    for _ in range(10):
        assert isinstance(error_of(node.server.add_lease(SI, RENEW, CANCEL)), AccessDenied)
    assert node.store.problem is None and node.looks == 1, "who is refused much looks once a minute"
    assert now(now(node.server.get_buckets(SI))[0].read(0, 100)) == DATA[:100]
    node.clock.advance(SUSPECT_EVERY_S)
    assert isinstance(error_of(node.server.add_lease(SI, RENEW, CANCEL)), AccessDenied)
    assert node.looks == 2


def test_a_refusal_that_nobody_can_confirm_settles_nothing(node: Node) -> None:
    node.client.fail("PutObject", AccessDenied)
    node.client.fail("GetObject", Unavailable, key=OWNER_KEY)
    assert isinstance(error_of(node.server.add_lease(SI, RENEW, CANCEL)), AccessDenied)
    assert node.store.problem is None
    assert_whole(node)


def test_a_bucket_that_comes_back_empty_is_not_taken_for_ours(node: Node) -> None:
    """Somebody made it anew: the mark is gone, and no share is dropped for what a bucket says that may not be ours."""
    break_all(node, NoSuchBucket)
    error_of(node.server.add_lease(SI, RENEW, CANCEL))
    mend_all(node)
    kept = dict(node.client.objects)
    node.client.objects.clear()
    for _ in range(30):
        node.clock.advance(60)
    assert node.store.watch.lost is not None and "restart this node" in node.store.watch.lost
    assert node.store.index.share_count == 2
    node.client.objects.update(kept)
    assert_whole(node.restarted())


# shares that seem to be gone


def notice_absence(node: Node) -> None:
    """A client reads the share, and the bucket says that it is not there."""
    read = now(node.server.get_buckets(SI))[0].read(0, 10)
    node.clock.pump([1.0] * 10)
    assert isinstance(error_of(read), S3Error)


@pytest.mark.parametrize(
    ("error", "expected"), [(NoSuchBucket, NoSuchBucket), (AccessDenied, AccessDenied), (Unavailable, Unavailable)]
)
def test_a_bucket_that_is_gone_takes_no_share_along(node: Node, error: Any, expected: Any) -> None:
    """To a HEAD a bucket that is gone answers 404, as for an object that is gone."""
    stored = node.client.objects.pop(share_key(SI, 0))
    notice_absence(node)
    node.client.fail("HeadObject", NotFound, times=10**9)
    node.client.fail("GetObject", error, key=OWNER_KEY, times=10**9)
    for _ in range(30):
        node.clock.advance(VANISH_CHECKS_S[-1])
    assert node.store.index.share(SI, 0) is not None
    mend_all(node)
    node.client.objects[share_key(SI, 0)] = stored
    node.clock.advance(RETRY_REFUSED_S)
    node.clock.advance(sum(VANISH_CHECKS_S))
    assert_whole(node)


def test_a_mark_that_is_gone_too_takes_no_share_along(node: Node) -> None:
    stored = {key: node.client.objects.pop(key) for key in (share_key(SI, 0), OWNER_KEY)}
    notice_absence(node)
    for _ in range(30):
        node.clock.advance(60)
    assert node.store.index.share(SI, 0) is not None and node.store.watch.lost is not None
    node.client.objects.update(stored)
    assert_whole(node.restarted())


def test_a_share_that_is_gone_from_a_bucket_that_is_ours_is_dropped(node: Node, told: list[Any]) -> None:
    del node.client.objects[share_key(SI, 0)]
    notice_absence(node)
    node.client.forget_requests()
    for delay_s in VANISH_CHECKS_S:
        node.clock.advance(delay_s)
    assert node.client.requests == {"HeadObject": len(VANISH_CHECKS_S), "GetObject": 1}
    assert now(node.server.get_buckets(SI)) == {} and lines(told, "has vanished") == ["critical"]


# starts


def unreachable(bucket: Bucket) -> Node:
    now(bucket.start().server.stopService())
    node = Node(bucket, "node", NODEID)
    break_all(node, Unavailable)
    return node


def test_a_start_without_its_bucket(bucket: Bucket, told: list[Any]) -> None:
    node = unreachable(bucket)
    node.open(has_run_before=True)
    bucket.nodes.append(node)
    assert_errors(node, node.calls(), Unavailable)
    assert node.client.requests == {}, "calls do not ask either"
    assert lines(told, "could not be reached since the node's start") == ["error"]
    node.clock.advance(RETRY_S)
    assert node.store.problem is not None
    mend_all(node)
    node.clock.advance(RETRY_S)
    assert node.store.problem is None
    node.upload(DATA)


def test_a_first_start_needs_its_bucket(bucket: Bucket) -> None:
    error = error_of(unreachable(bucket).begin(has_run_before=False))
    assert isinstance(error, errors.Unreachable) and "never ran before" in str(error)


def test_an_index_that_another_process_uses_stops_the_start(node: Node, bucket: Bucket) -> None:
    again = Node(bucket, "node", NODEID)
    error = error_of(again.begin(has_run_before=True))
    assert isinstance(error, errors.UnusableFolder) and "database is locked" in str(error)
    assert again.client.closed and again.client.requests == {}
    assert_whole(node)


def test_a_storage_folder_that_cannot_be_made_stops_the_start(bucket: Bucket) -> None:
    bucket.folder.joinpath("node").write_text("a file where the folder should be")
    node = Node(bucket, "node", NODEID)
    error = error_of(node.begin(has_run_before=True))
    assert isinstance(error, errors.UnusableFolder) and str(node.folder) in str(error)
    assert node.client.requests == {}


def test_an_index_that_cannot_be_opened_stops_the_start(bucket: Bucket) -> None:
    (bucket.folder / "node" / "index.sqlite").mkdir(parents=True)
    node = Node(bucket, "node", NODEID)
    error = error_of(node.begin(has_run_before=True))
    assert isinstance(error, errors.UnusableFolder) and "index.sqlite" in str(error)
    assert node.client.closed


# the index


def fill_disk(index: Index) -> None:
    """SQLite finds no room for another page."""
    pages = index._db.execute("PRAGMA page_count").fetchone()[0]
    index._db.execute(f"PRAGMA max_page_count={pages}")


def empty_disk(index: Index) -> None:
    index._db.execute("PRAGMA max_page_count=1000000")


def test_no_room_for_the_index(node: Node, told: list[Any]) -> None:
    fill_disk(node.store.index)
    failed: list[int] = []
    for number in range(100):
        try:
            node.upload(DATA, shnum=0, si=bytes([number + 1]) * 16)
        except sqlite3.OperationalError:
            failed.append(number)
    assert failed, "the disk is full"
    for number in failed:
        # The bucket has it: there may be room by now for the little that a HEAD tells, but it is no absence.
        asked = node.server.get_buckets(bytes([number + 1]) * 16)
        asked.addCallbacks(set, lambda failure: failure.trap(sqlite3.OperationalError) and {0})
        assert now(asked) == {0}
    assert now(now(node.server.get_buckets(SI))[0].read(0, 100)) == DATA[:100], "what is known is served"
    assert any("full" in what for _, what in node.store.recent_errors) and node.store.problem is None
    empty_disk(node.store.index)
    for number in failed:
        assert set(now(node.server.get_buckets(bytes([number + 1]) * 16))) == {0}
    assert_whole(node)


@pytest.mark.parametrize("change", ["overwrite", "delete"])
def test_a_change_of_a_slot_that_cannot_be_noted(node: Node, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Nobody goes on with what the index says of it; the bucket tells."""

    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    now(node.server.slot_readv(SLOT, [], [(0, 100)]))
    monkeypatch.setattr(node.store.index, "put_share", refuse)
    monkeypatch.setattr(node.store.index, "drop_share", refuse)
    vectors = ([], [], 0) if change == "delete" else ([], [(0, b"changed")], None)
    secrets = (b"w" * 32, RENEW, CANCEL)
    failed = node.server.slot_testv_and_readv_and_writev(SLOT, secrets, {0: vectors}, [])
    assert isinstance(error_of(failed), sqlite3.OperationalError)
    assert isinstance(error_of(node.server.slot_readv(SLOT, [], [(0, 100)])), sqlite3.OperationalError)
    monkeypatch.undo()
    expected = {} if change == "delete" else {0: [b"changed"]}
    assert now(node.server.slot_readv(SLOT, [], [(0, 100)])) == expected


def damage(node: Node) -> None:
    """Garbage over all of the index's file but its header, and nothing of it in memory."""
    index = node.store.index
    index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index._db.execute("PRAGMA cache_size=0")
    index._db.execute("PRAGMA shrink_memory")
    size = index.path.stat().st_size
    with index.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xee" * (size - 4096))


def test_an_index_that_is_damaged_while_it_is_used(node: Node, told: list[Any]) -> None:
    writer = begun_upload(node)
    reader = now(node.server.get_buckets(SI))[0]
    damage(node)
    held = node.client.hold("ListObjectsV2")
    error = error_of(node.server.get_buckets(SI))
    assert isinstance(error, sqlite3.DatabaseError), repr(error)
    node.clock.advance(0)
    problem = node.store.problem
    assert problem is not None and "is being rebuilt from the bucket" in problem
    assert lines(told, "is damaged .* thrown away and rebuilt") == ["critical"]
    assert_errors(node, {**node.calls(), "read": lambda: reader.read(0, 10), "close": writer.close}, Unavailable)
    held.release()
    assert node.store.problem is None and lines(told, "the index was rebuilt: 2 shares") == ["warn"]
    assert_whole(node)
    assert now(reader.read(0, 3000)) == DATA
    now(node.server.stopService())
    assert bucket_is_index(node.bucket.start())


def test_a_share_of_an_index_that_was_thrown_away_is_no_absence(node: Node) -> None:
    """Asked for before, and looked for again after a 404 that was none, when no row is left."""
    node.store.cache.clear()
    node.client.fail("GetObject", NotFound)
    reading = node.server.slot_readv(SLOT, [], [(0, 100)])
    damage(node)
    held = node.client.hold("ListObjectsV2")
    error_of(node.server.get_buckets(SI))
    node.clock.advance(0)
    assert node.store.index.share_count == 0 and waits(reading)
    node.clock.advance(1)
    error = error_of(reading)
    assert isinstance(error, Unavailable) and "is being rebuilt" in str(error)
    held.release()
    assert_whole(node)


def test_an_index_that_cannot_be_rebuilt_at_once(node: Node, told: list[Any]) -> None:
    damage(node)
    node.client.fail("ListObjectsV2", Unavailable, times=3)
    error_of(node.server.get_buckets(SI))
    node.clock.advance(0)
    for _ in range(2):
        assert node.store.problem is not None and "cannot be rebuilt yet" in node.store.problem
        assert_errors(node, node.calls(), Unavailable)
        node.clock.advance(RETRY_S)
    node.clock.advance(RETRY_S)
    assert node.store.problem is None
    assert_whole(node)


def test_a_stop_while_the_index_is_rebuilt(node: Node) -> None:
    damage(node)
    held = node.client.hold("ListObjectsV2")
    error_of(node.server.get_buckets(SI))
    node.clock.advance(0)
    stopping = node.server.stopService()
    held.release()
    now(stopping)
    fresh = node.bucket.start()
    assert not fresh.store.index.was_kept
    assert bucket_is_index(fresh)
    assert_whole(fresh)


def test_a_superseded_node_does_not_take_the_bucket_back_with_a_new_index(node: Node, bucket: Bucket) -> None:
    bucket.start("copy")
    mark = bucket.client.objects[OWNER_KEY].data
    damage(node)
    error_of(node.server.get_buckets(SI))
    node.clock.advance(0)
    assert bucket.client.objects[OWNER_KEY].data == mark
    assert node.store.problem is not None and "started a second time" in node.store.problem


def bucket_is_index(node: Node) -> bool:
    keys = {key for key in node.bucket.client.objects if key.startswith("shares/")}
    rows = node.store.index.query("SELECT si, shnum FROM shares", {})
    return keys == {share_key(si, shnum) for si, shnum in rows}


# the local folder


def test_a_storage_folder_that_is_deleted_under_a_running_node(node: Node, told: list[Any]) -> None:
    shutil.rmtree(node.folder)
    assert_whole(node)
    assert now(node.write_slot(b"changed", si=SLOT))[0]
    assert now(node.server.slot_readv(SLOT, [], [(0, 100)])) == {0: [b"changed"]}
    node.client.forget_requests()
    assert now(node.write_slot(b"again", si=SLOT))[0] and node.client.requests == {"PutObject": 1}, "the cache works"
    assert lines(told, "was deleted while the node runs") == ["error"]
    now(node.server.stopService())
    fresh = node.bucket.start()
    assert bucket_is_index(fresh)
    assert_whole(fresh, b"again")


def test_a_storage_folder_that_cannot_be_made_anew(node: Node) -> None:
    shutil.rmtree(node.folder)
    node.folder.write_text("in the way")
    assert_errors(node, node.calls(), Unavailable)
    node.folder.unlink()
    assert_whole(node)


# the clock


@pytest.mark.parametrize("days", [-4000, 4000])
def test_leases_of_a_clock_that_was_wrong(make: Make, days: int) -> None:
    """Leases that were given by a clock years behind are long over by the right one: when the object was written, by
    the service's clock, counts too."""
    place: ExpiryPlace = make(override_lease_duration=30 * DAY_S)
    place.start()
    place.set_clock(days * DAY_S)
    place.upload(DATA)
    place.make_slot(SLOT)
    place.renew(SI, b"q" * 32)
    place.set_clock(-days * DAY_S)
    for _ in range(50):
        place.pass_days(0.5)
        assert place.has(SI) and place.has(SLOT)
    if days < 0:
        place.pass_days(30)
        place.cycles(3)
        assert not place.has(SI) and not place.has(SLOT), "then they do go"
