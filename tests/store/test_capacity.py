# SPDX-License-Identifier: GPL-2.0-or-later
"""s3.capacity: what is accepted at its edge, what clients are told, and that leases and reads know no edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.interfaces import NoSpace
from allmydata.util import fileutil
from twisted.internet.task import Clock

from tahoe_s3.client import Throttled, Unavailable
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.leases import overlay_from_json
from tahoe_s3.store.upload import REMOVE_AGAIN_S, object_size

from .helpers import SI, error_of, immutable_object, now, pattern, waits
from .memory_client import MemoryClient
from .servers import CANCEL, RENEW, ServerPlace, open_place

OTHER = b"o" * 16
SECRETS = (b"w" * 32, RENEW, CANCEL)
PART = 1000
SHARE = object_size(500)
CAPACITY = 10 * SHARE
PROTOCOL = b"http://allmydata.org/tahoe/protocols/storage/v1"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ServerPlace]:
    made = ServerPlace(tmp_path, part_bytes=PART, capacity_bytes=CAPACITY)
    yield made
    made.client.holds.clear()
    made.client._failing.clear()
    assert now(made.server.stopService()) is None
    made.assert_no_upload()


def in_bucket(place: ServerPlace) -> int:
    """Bytes of share objects, counted in the bucket itself."""
    return sum(len(stored.data) for key, stored in place.client.objects.items() if key.startswith("shares/"))


def fill(place: ServerPlace, count: int, si: bytes = SI) -> None:
    """Shares that are allocated together, so without a lease object."""
    for writer in place.allocate(range(count), 500, si=si)[1].values():
        now(writer.write(0, pattern(500)))
        now(writer.close())


def told(place: ServerPlace) -> tuple[int, int]:
    """available-space and maximum-immutable-share-size."""
    version = place.server.get_version()[PROTOCOL]
    return version[b"available-space"], version[b"maximum-immutable-share-size"]


def change(place: ServerPlace, vectors: dict[int, Any], si: bytes = OTHER) -> Any:
    return place.server.slot_testv_and_readv_and_writev(si, SECRETS, vectors, [])


def create(place: ServerPlace, size: int, shnum: int = 0) -> None:
    assert now(change(place, {shnum: ([], [(0, pattern(size))], None)}))[0]


# shares


def test_those_that_fit_are_accepted_one_by_one(place: ServerPlace) -> None:
    fill(place, 7, si=OTHER)
    first = place.allocate(range(7, 12), 500)[1]
    assert set(first) == {7, 8, 9} and place.store.space.promised_bytes == 3 * SHARE
    assert place.allocate([20], 0)[1] == {}, "not even an empty one"
    now(first[7].write(0, pattern(500)))
    now(first[7].close())
    assert in_bucket(place) == 8 * SHARE and place.store.space.promised_bytes == 2 * SHARE
    now(first[8].abort())
    assert set(place.allocate([11, 12], 500, si=b"e" * 16)[1]) == {11}
    assert place.allocate([0], 2 * CAPACITY, si=b"e" * 16)[1] == {}


def test_it_is_what_the_configuration_says(tmp_path: Path) -> None:
    client = MemoryClient()
    for number in range(3):
        client.store(share_key(SI, number), immutable_object(pattern(500)))
    store = now(open_place(client, tmp_path, Clock(), capacity_bytes=CAPACITY))
    assert (store.space.capacity_bytes, store.space.left_bytes, store.space.is_known) == (CAPACITY, 7 * SHARE, True)
    now(store.close())


def test_the_last_byte_may_be_used_and_no_more(place: ServerPlace) -> None:
    fill(place, 9)
    assert place.allocate([20], 501, si=OTHER)[1] == {}
    assert set(place.allocate([20], 500, si=OTHER)[1]) == {20}
    assert place.store.space.left_bytes == 0


def test_a_share_that_is_closing_is_still_promised(place: ServerPlace) -> None:
    held = place.client.hold("PutObject", apply_first=True)
    writer = place.allocate([0], 500)[1][0]
    now(writer.write(0, pattern(500)))
    closing = writer.close()
    assert waits(closing) and in_bucket(place) == SHARE
    assert (place.store.space.promised_bytes, place.store.space.left_bytes) == (SHARE, CAPACITY - SHARE)
    held.release()
    now(closing)
    assert (place.store.space.promised_bytes, place.store.space.left_bytes) == (0, CAPACITY - SHARE)


def test_an_upload_that_timed_out_gives_its_room_back(place: ServerPlace) -> None:
    assert len(place.allocate(range(20), 500)[1]) == 10
    place.clock.advance(30 * 60 + 1)
    assert place.store.space.promised_bytes == 0 and len(place.allocate(range(20), 500)[1]) == 10


@pytest.mark.parametrize("applied", [True, False])
def test_a_share_of_which_nobody_knows_stays_promised(place: ServerPlace, applied: bool) -> None:
    writer = place.allocate([0], 500)[1][0]
    now(writer.write(0, pattern(500)))
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=applied)
    place.client.fail("HeadObject", Unavailable)
    assert isinstance(error_of(writer.close()), Unavailable)
    assert (place.store.space.promised_bytes, place.index.used_bytes) == (SHARE, 0), "it may be there, or still come"
    assert set(now(place.server.get_buckets(SI))) == ({0} if applied else set())
    assert (place.store.space.promised_bytes, place.index.used_bytes) == (0, in_bucket(place))


def test_a_share_that_was_there_after_all_is_counted_once(place: ServerPlace) -> None:
    writer = place.allocate([0], 500)[1][0]
    now(writer.write(0, pattern(500)))
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=True)
    left = []
    settled = place.store.slots.on_settled
    place.store.slots.on_settled = lambda share: (settled(share), left.append(place.store.space.left_bytes))[0]
    now(writer.close())
    assert left == [CAPACITY - SHARE] and place.store.space.left_bytes == CAPACITY - SHARE


def test_parts_that_may_still_be_there_stay_promised(place: ServerPlace) -> None:
    size = 3 * PART
    writer = place.allocate([0], size)[1][0]
    now(writer.write(0, pattern(2 * PART)))
    place.client.fail("AbortMultipartUpload", Throttled, times=2)
    now(writer.abort())
    assert place.client.uploads and place.store.space.promised_bytes == object_size(size)
    assert not list(place.store.incoming_dir.glob("*.0")), "the disk has nothing of it any more"
    place.clock.advance(REMOVE_AGAIN_S)
    assert place.client.uploads and place.store.space.promised_bytes == object_size(size)
    place.clock.advance(REMOVE_AGAIN_S)
    assert not place.client.uploads and place.store.space.promised_bytes == 0


def test_an_index_that_cannot_be_written_forgets_no_byte(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = place.allocate([0], 500)[1][0]
    now(writer.write(0, pattern(500)))
    create(place, 100)
    monkeypatch.setattr(place.index, "put_share", lambda *_: 1 / 0)
    assert isinstance(error_of(writer.close()), ZeroDivisionError)
    vectors = {shnum: ([], [(0, pattern(300))], None) for shnum in (0, 1)}
    assert isinstance(error_of(change(place, vectors)), ZeroDivisionError)
    monkeypatch.undo()
    space = place.store.space
    assert space.left_bytes == CAPACITY - in_bucket(place), "what the index does not count is still promised"
    now(place.server.get_buckets(SI))
    assert set(now(place.server.slot_readv(OTHER, [], [(0, 1)]))) == {0, 1}
    assert space.promised_bytes == 0 and space.left_bytes == CAPACITY - in_bucket(place)


def test_a_spool_file_that_cannot_be_made_is_promised_nothing(place: ServerPlace) -> None:
    for shnum in (0, 1):
        place.store.spool_path(SI, shnum).symlink_to(place.store.incoming_dir / "no such folder" / "file")
    assert place.allocate([0, 1], 500)[1] == {}
    space = place.store.space
    assert (space.promised_bytes, space.spool_bytes, space.spooled_bytes) == (0, 0, 0)


# a full bucket


def test_a_full_bucket_keeps_what_it_has_and_its_leases(place: ServerPlace) -> None:
    fill(place, 10)
    for renew in (RENEW, b"n" * 32):
        assert place.allocate([0, 50], 500, renew=renew) == (set(range(10)), {})
    now(place.server.add_lease(SI, b"a" * 32, CANCEL))
    place.clock.advance(1000)
    now(place.server.renew_lease(SI, b"a" * 32))
    assert len(overlay_from_json(place.client.objects[lease_key(SI)].data)) == 3
    assert now(now(place.server.get_buckets(SI))[3].read(0, 500)) == pattern(500)
    now(place.server.advise_corrupt_share(b"immutable", SI, 0, b"block 3 is wrong"))
    assert len(list(Path(place.server.corruption_advisory_dir).iterdir())) == 1


def test_lease_objects_count_and_are_never_refused(place: ServerPlace) -> None:
    fill(place, 9)
    for number in range(3):
        now(place.server.add_lease(SI, bytes([number]) * 32, CANCEL))
    leases = len(place.client.objects[lease_key(SI)].data)
    assert place.index.lease_bytes == leases and place.server.get_stats()["tahoe_s3.lease_bytes"] == leases
    assert told(place)[0] == max(0, CAPACITY - in_bucket(place) - leases) < SHARE
    assert place.allocate([0], 500, si=OTHER)[1] == {}
    for number in range(3, 9):
        now(place.server.add_lease(SI, bytes([number]) * 32, CANCEL))
    left = place.store.space.left_bytes
    assert left is not None and left < 0 and told(place)[0] == 0
    assert len(overlay_from_json(place.client.objects[lease_key(SI)].data)) == 9


def test_a_bucket_that_holds_more_than_that_loses_nothing(tmp_path: Path) -> None:
    """Copied there, or the capacity was lowered."""
    place = ServerPlace(tmp_path, capacity_bytes=CAPACITY)
    create(place, 500)
    for shnum in range(30):
        place.add(immutable_object(pattern(500)), shnum=shnum)
    before = set(place.client.objects)
    assert place.allocate([0, 31], 1) == (set(range(30)), {}) and told(place)[0] == 0
    place.clock.advance(86400)
    assert now(change(place, {0: ([], [(0, b"in place")], None)}))[0]
    assert isinstance(error_of(change(place, {0: ([], [(500, b"more")], None)})), NoSpace)
    assert set(place.client.objects) - {lease_key(SI)} == before
    assert now(change(place, {0: ([], [], 0)}))[0], "deleting is always possible"
    assert share_key(OTHER, 0) not in place.client.objects
    now(place.server.stopService())


def test_a_refusal_is_logged_once_an_hour(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr("tahoe_s3.server._log.warn", lambda _format, **values: lines.append(values))
    for seconds in (0, 3599, 1):
        place.clock.advance(seconds)
        for _ in range(5):
            assert place.allocate([0], CAPACITY)[1] == {}
    assert len(lines) == 2 and lines[0]["capacity"] == CAPACITY and lines[0]["used"] == 0


# what is told


def test_a_full_server_is_still_offered_shares(place: ServerPlace) -> None:
    assert told(place) == (CAPACITY, CAPACITY - object_size(0))
    fill(place, 4)
    writer = place.allocate([9], 500, si=OTHER)[1][9]
    assert told(place) == (5 * SHARE, CAPACITY - object_size(0))
    now(writer.abort())
    fill(place, 6, si=OTHER)
    assert told(place) == (0, CAPACITY - object_size(0))
    assert place.server.get_stats()["storage_server.accepting_immutable_shares"] == 0


def test_a_server_without_its_bucket_tells_the_same(place: ServerPlace) -> None:
    fill(place, 3)
    before = told(place)
    place.store.problem = "unreachable"
    assert told(place) == before
    assert place.server.get_stats()["storage_server.accepting_immutable_shares"] == 0
    place.store.problem = None


@pytest.mark.parametrize("capacity_bytes", [None, CAPACITY])
def test_a_read_only_server_says_nothing_else(tmp_path: Path, capacity_bytes: int | None) -> None:
    place = ServerPlace(tmp_path, capacity_bytes=capacity_bytes, readonly_storage=True)
    assert told(place) == (0, 0) and place.allocate([0], 1)[1] == {}
    now(place.server.stopService())


def test_the_disk_limits_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(_: str, reserved: int) -> dict[str, int]:
        return {"total": 10_000, "used": 0, "free_for_root": 700, "free_for_nonroot": 700, "avail": 700 - reserved}

    monkeypatch.setattr(fileutil, "get_disk_stats", disk)
    place = ServerPlace(tmp_path, capacity_bytes=10**6, reserved_space=100)
    assert told(place) == (600, 9900 - object_size(0))
    place.allocate([0], 400)
    assert place.allocate([1], 201)[1] == {} and 2 in place.allocate([2], 200)[1]
    now(place.server.stopService())


def test_a_machine_that_tells_nothing_of_its_disk(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise AttributeError("no statvfs")

    monkeypatch.setattr(fileutil, "get_disk_stats", none)
    assert told(place) == (CAPACITY, CAPACITY - object_size(0))
    assert 0 in place.allocate([0], 100)[1]
    place.store.space.capacity_bytes = None
    assert max(told(place)) < 2**64


def test_nothing_new_is_taken_until_the_bucket_is_known(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.upload(pattern(500))
    create(place, 100)
    known = [False]
    monkeypatch.setattr(place.store.space, "_is_known", lambda: known[0])
    before = told(place)
    assert before[0] > 0, "a client that hears 0 does not come back"
    assert place.allocate([0, 1], 500) == ({0}, {})
    now(place.server.add_lease(SI, b"a" * 32, CANCEL))
    assert now(change(place, {0: ([], [(0, b"in place")], None)}))[0]
    assert isinstance(error_of(change(place, {0: ([], [(0, pattern(300))], None)})), Unavailable)
    assert place.server.get_stats()["storage_server.accepting_immutable_shares"] == 0
    known[0] = True
    before = told(place)
    assert set(place.allocate([0, 1], 500, si=b"e" * 16)[1]) == {0, 1} and told(place)[0] == before[0] - 2 * SHARE


def test_the_numbers(place: ServerPlace) -> None:
    fill(place, 2)
    writer = place.allocate([5], 500, si=OTHER)[1][5]
    now(writer.write(0, pattern(200)))
    stats = place.server.get_stats()
    assert stats["tahoe_s3.capacity_bytes"] == CAPACITY and stats["tahoe_s3.used_bytes"] == 2 * SHARE
    assert stats["tahoe_s3.promised_bytes"] == SHARE and stats["tahoe_s3.spooled_bytes"] == 200
    assert stats["tahoe_s3.available_bytes"] == 7 * SHARE and stats["storage_server.allocated"] == 500
    assert stats["storage_server.accepting_immutable_shares"] == 1
    place.store.space.capacity_bytes = None
    assert "tahoe_s3.capacity_bytes" not in place.server.get_stats()


# mutable shares


def test_a_mutable_share_is_created_only_where_it_fits(place: ServerPlace) -> None:
    fill(place, 8)
    before = dict(place.client.objects)
    assert isinstance(error_of(change(place, {0: ([], [(0, pattern(900))], None)})), NoSpace)
    assert place.client.objects == before and place.store.space.promised_bytes == 0
    create(place, 500)
    assert in_bucket(place) <= CAPACITY


def test_a_mutable_share_grows_only_where_there_is_room(place: ServerPlace) -> None:
    create(place, 500)
    fill(place, 8)
    left = place.store.space.left_bytes
    assert left is not None and 0 < left < SHARE
    before = place.object(0, OTHER)
    assert isinstance(error_of(change(place, {0: ([], [(0, pattern(501 + left))], None)})), NoSpace)
    assert place.object(0, OTHER) == before
    assert now(place.server.slot_readv(OTHER, [0], [(0, 9999)])) == {0: [pattern(500)]}
    assert now(change(place, {0: ([], [(0, pattern(500 + left))], None)}))[0]
    assert in_bucket(place) == CAPACITY and place.store.space.left_bytes == 0
    for vector in (([], [(0, b"in place")], None), ([], [], 10), ([], [(0, b"and back")], 100)):
        assert now(change(place, {0: vector}))[0]
    assert in_bucket(place) <= CAPACITY and place.store.space.promised_bytes == 0


def test_several_mutable_shares_grow_all_or_none(place: ServerPlace) -> None:
    create(place, 100, 0)
    create(place, 100, 1)
    fill(place, 6)
    before = dict(place.client.objects)
    left = place.store.space.left_bytes or 0
    both = {shnum: ([], [(0, pattern(100 + left * 2 // 3))], None) for shnum in (0, 1)}
    assert isinstance(error_of(change(place, both)), NoSpace)
    assert place.client.objects == before and place.store.space.promised_bytes == 0
    assert now(change(place, {0: both[0]}))[0]


def test_two_slots_do_not_grow_into_the_same_room(place: ServerPlace) -> None:
    fill(place, 8)
    held = place.client.hold("PutObject")
    first = change(place, {0: ([], [(0, pattern(300))], None)})
    second = change(place, {0: ([], [(0, pattern(300))], None)}, si=b"p" * 16)
    assert waits(first) and isinstance(error_of(second), NoSpace)
    assert place.allocate([0], 500, si=b"q" * 16)[1] == {}
    held.release()
    assert now(first)[0] and place.store.space.left_bytes == CAPACITY - in_bucket(place)


@pytest.mark.parametrize("applied", [True, False])
def test_growth_of_which_nobody_knows_stays_promised(place: ServerPlace, applied: bool) -> None:
    create(place, 100)
    small = in_bucket(place)
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=applied)
    assert isinstance(error_of(change(place, {0: ([], [(0, pattern(400))], None)})), Unavailable)
    assert place.store.space.promised_bytes == 300 and place.index.used_bytes == small
    now(place.server.slot_readv(OTHER, [0], [(0, 1)]))
    assert place.store.space.promised_bytes == 0 and place.index.used_bytes == in_bucket(place)
    assert in_bucket(place) == small + 300 * applied
