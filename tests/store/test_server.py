# SPDX-License-Identifier: GPL-2.0-or-later
"""The storage server: the budget of requests, space, numbers, errors that are no absences, and stopping."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.common import UnknownImmutableContainerVersionError
from allmydata.storage.server import DEFAULT_RENEWAL_TIME, StorageServer
from allmydata.util import fileutil
from allmydata.web.storage import StorageStatus, StorageStatusElement
from twisted.web.template import flattenString

from tahoe_s3.client import Unavailable
from tahoe_s3.store.containers import DamagedContainerError
from tahoe_s3.store.keys import MAX_SHNUM, lease_key, share_key
from tahoe_s3.store.leases import hash_secret, overlay_from_json

from .helpers import NODEID, SI, error_of, immutable_object, mutable_object, now, pattern, waits
from .servers import CANCEL, RENEW, ServerPlace, open_files

OTHER = b"o" * 16
ENABLER = b"w" * 32
SECRETS = (ENABLER, RENEW, CANCEL)
CREATE = [(0, 1, b"eq", b"")]
PART = 1000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ServerPlace]:
    made = ServerPlace(tmp_path, part_bytes=PART)
    yield made
    made.client.holds.clear()
    made.client._failing.clear()
    assert now(made.server.stopService()) is None
    made.assert_no_upload()
    assert open_files(tmp_path) == []


def asked(place: ServerPlace, call: Callable[[], Any]) -> dict[str, int]:
    """The requests that a call which is answered at once has cost."""
    place.client.forget_requests()
    now(call())
    return dict(place.client.requests)


def create(place: ServerPlace, data: bytes = b"mutable data", shnums: tuple[int, ...] = (0,), si: bytes = OTHER) -> Any:
    vectors = {shnum: (CREATE, [(0, data)], None) for shnum in shnums}
    return place.server.slot_testv_and_readv_and_writev(si, SECRETS, vectors, [(0, 57)])


def leases_of(place: ServerPlace, si: bytes = SI) -> dict[bytes, int]:
    return {lease.renew_hash: lease.expiration_s
            for lease in overlay_from_json(place.client.objects[lease_key(si)].data)}  # fmt: skip


# the budget of design.md, section 5


def test_asking_for_shares_costs_nothing(place: ServerPlace) -> None:
    place.upload(pattern(50))
    assert asked(place, lambda: place.server.get_buckets(SI)) == {}
    assert asked(place, lambda: place.server.get_buckets(OTHER)) == {}
    assert asked(place, lambda: place.server.enumerate_mutable_shares(SI)) == {}
    assert asked(place, lambda: place.server.get_immutable_share_length(SI, 0)) == {}
    assert list(place.server.get_shares(SI)) == [(0, share_key(SI, 0))]


def test_allocating_costs_a_lease_where_there_are_shares(place: ServerPlace) -> None:
    def allocate(shnums: set[int], **options: Any) -> Callable[[], Any]:
        return lambda: place.server.allocate_buckets(SI, RENEW, CANCEL, shnums, 50, **options)

    assert asked(place, allocate({9})) == {}
    place.upload(pattern(50))
    assert asked(place, allocate({0, 8})) == {"PutObject": 1}
    assert asked(place, allocate({0, 7}, renew_leases=False)) == {}


def test_an_upload_is_one_put_or_its_parts_and_two(place: ServerPlace) -> None:
    assert asked(place, lambda: place.upload(pattern(50)) or place.server.get_buckets(SI)) == {"PutObject": 1}
    large = asked(place, lambda: place.upload(pattern(3 * PART), si=OTHER) or place.server.get_buckets(SI))
    assert large == {"CreateMultipartUpload": 1, "UploadPart": 4, "CompleteMultipartUpload": 1}


def test_leases_cost_a_put(place: ServerPlace) -> None:
    place.upload(pattern(50))
    place.upload(pattern(50), 1)
    assert asked(place, lambda: place.server.add_lease(SI, b"a" * 32, CANCEL)) == {"PutObject": 1}
    assert asked(place, lambda: place.server.add_lease(SI, b"a" * 32, CANCEL)) == {"PutObject": 1}
    assert asked(place, lambda: place.server.renew_lease(SI, b"a" * 32)) == {"PutObject": 1}
    assert asked(place, lambda: place.server.renew_lease(SI, RENEW)) == {"PutObject": 1}
    assert asked(place, lambda: place.server.add_lease(OTHER, b"a" * 32, CANCEL)) == {}


def test_sdmf_costs(place: ServerPlace) -> None:
    assert asked(place, lambda: create(place)) == {"PutObject": 1}
    assert asked(place, lambda: place.server.slot_readv(OTHER, [], [(0, 100)])) == {}

    def overwrite() -> Any:
        vectors = {0: ([(0, 7, b"eq", b"mutable")], [(0, b"changed")], None)}
        return place.server.slot_testv_and_readv_and_writev(OTHER, SECRETS, vectors, [])

    assert asked(place, overwrite) == {"PutObject": 1}
    place.store.cache.clear()
    assert asked(place, lambda: place.server.slot_readv(OTHER, [0], [(0, 7)])) == {"GetObject": 1}
    assert now(place.server.slot_readv(OTHER, [0], [(0, 7)])) == {0: [b"changed"]}


def test_reading_a_share_up_to_a_mebibyte_is_one_get(place: ServerPlace) -> None:
    data = pattern(100_000)
    place.add(immutable_object(data))

    def read() -> Any:
        reader = now(place.server.get_buckets(SI))[0]
        assert now(reader.read(0, 1024)) == data[:1024]
        assert now(reader.read(99_000, 5000)) == data[99_000:] and now(reader.read(200_000, 5)) == b""
        return reader.read(5, 60_000)

    assert asked(place, read) == {"GetObject": 1}
    assert asked(place, read) == {}


def test_an_idle_hour_costs_nothing(place: ServerPlace) -> None:
    place.upload(pattern(50))
    now(create(place))
    place.client.forget_requests()
    for _ in range(60):
        place.clock.advance(60)
    assert place.client.requests == {}


# space


def test_a_read_only_server_takes_no_shares(tmp_path: Path) -> None:
    place = ServerPlace(tmp_path, readonly_storage=True)
    place.add(immutable_object(b"here"))
    assert place.allocate([0, 1], 10) == ({0}, {})
    assert place.server.get_available_space() == 0
    assert place.server.get_stats()["storage_server.accepting_immutable_shares"] == 0
    assert place.server.get_version()[b"http://allmydata.org/tahoe/protocols/storage/v1"][b"available-space"] == 0
    now(place.server.stopService())


def test_uploads_share_the_space_that_there_is(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileutil, "get_available_space", lambda *_: 250)
    first = place.allocate([0, 1, 2], 100)[1]
    assert set(first) == {0, 1} and place.server.allocated_size() == 200
    assert place.allocate([2], 100, si=OTHER)[1] == {}
    small = place.allocate([3], 50)[1]
    assert set(small) == {3}
    now(first[0].abort())
    assert set(place.allocate([2], 100)[1]) == {2}
    monkeypatch.setattr(fileutil, "get_available_space", lambda *_: None)
    assert place.server.get_available_space() < 2**64
    assert place.allocate([5], 2**60) == (set(), {}), "larger than S3 can hold"


def test_reserved_space_is_not_offered(tmp_path: Path) -> None:
    everything = ServerPlace(tmp_path / "a").server.get_available_space()
    keeping = ServerPlace(tmp_path / "b", reserved_space=everything // 2)
    assert keeping.server.get_available_space() < everything * 3 // 4
    assert keeping.server.get_stats()["storage_server.reserved_space"] == everything // 2


@pytest.mark.parametrize("si", [b"", b"short", SI[:15]])
def test_what_a_start_would_not_find_again_is_not_taken(place: ServerPlace, si: bytes) -> None:
    assert place.allocate([0], 10, si=si) == (set(), {})
    error_of(create(place, si=si))
    assert place.client.objects == {}


def test_share_numbers_beyond_any_use(place: ServerPlace) -> None:
    got, writers = place.allocate([-1, MAX_SHNUM + 1, MAX_SHNUM], 10)
    assert got == set() and set(writers) == {MAX_SHNUM}
    error_of(create(place, shnums=(MAX_SHNUM + 1,)))


# the wrong kind of question


def test_a_mutable_file_is_not_asked_for_as_an_immutable_one(place: ServerPlace) -> None:
    """Tahoe opens every share there as an immutable one, and fails; nobody gets a reader, a writer or a lease."""
    now(create(place))
    place.client.forget_requests()
    assert isinstance(error_of(place.server.get_buckets(OTHER)), UnknownImmutableContainerVersionError)
    allocating = place.server.allocate_buckets(OTHER, b"R" * 32, CANCEL, {0, 1}, 50)
    assert isinstance(error_of(allocating), UnknownImmutableContainerVersionError)
    assert place.client.requests == {}
    place.assert_no_upload()


# an error is not an absence


CALLS: dict[str, Callable[[Any], Any]] = {
    "allocate_buckets": lambda server: server.allocate_buckets(SI, RENEW, CANCEL, {0}, 50),
    "get_buckets": lambda server: server.get_buckets(SI),
    "get_immutable_share_length": lambda server: server.get_immutable_share_length(SI, 0),
    "add_lease": lambda server: server.add_lease(SI, RENEW, CANCEL),
    "renew_lease": lambda server: server.renew_lease(SI, RENEW),
    "enumerate_mutable_shares": lambda server: server.enumerate_mutable_shares(SI),
    "get_mutable_share_length": lambda server: server.get_mutable_share_length(SI, 0),
    "slot_readv": lambda server: server.slot_readv(SI, [], [(0, 10)]),
    "slot_testv_and_readv_and_writev": lambda server: server.slot_testv_and_readv_and_writev(
        SI, SECRETS, {0: ([], [(0, b"x")], None)}, []
    ),
    "advise_corrupt_share": lambda server: server.advise_corrupt_share(b"immutable", SI, 0, b"bad"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("why", ["unreachable since the start", "stopping"])
def test_nothing_is_answered_without_the_bucket(place: ServerPlace, name: str, why: str) -> None:
    if why == "stopping":
        place.store.refuse_more()
    else:
        place.store.problem = why
    assert isinstance(error_of(CALLS[name](place.server)), Unavailable)
    with pytest.raises(Unavailable):
        place.server.get_shares(SI)
    assert place.server.get_version() and place.server.get_stats(), "these never wait, nor fail"
    assert place.server.have_shares() is False
    place.store.problem = None


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"advise_corrupt_share"}))
def test_a_share_that_is_unsure_is_not_missing(place: ServerPlace, name: str) -> None:
    place.store.slots.mark_unsure(SI, 0)
    place.client.fail("HeadObject", Unavailable, times=3)
    assert isinstance(error_of(CALLS[name](place.server)), Unavailable)


def test_a_lease_call_that_fails_says_so(place: ServerPlace) -> None:
    place.upload(pattern(50))
    for call in (CALLS["add_lease"], CALLS["renew_lease"], CALLS["allocate_buckets"]):
        place.client.fail("PutObject", Unavailable)
        assert isinstance(error_of(call(place.server)), Unavailable)
    assert place.server._bucket_writers == {}


@pytest.mark.parametrize("call", ["add_lease", "renew_lease", "slot_testv_and_readv_and_writev"])
def test_nothing_is_answered_before_the_bucket_has(place: ServerPlace, call: str) -> None:
    if call.startswith("slot"):
        now(create(place, si=SI))
    else:
        place.upload(pattern(50))
    held = place.client.hold("PutObject", apply_first=True)
    answer = CALLS[call](place.server)
    assert waits(answer) and len(held) == 1
    held.release()
    now(answer)


# leases


def test_leases_live_a_month_from_the_call(place: ServerPlace) -> None:
    place.clock.advance(1_700_000_000)
    place.upload(pattern(50))
    place.clock.advance(1000.9)
    now(place.server.renew_lease(SI, RENEW))
    expires_s = 1_700_001_000 + DEFAULT_RENEWAL_TIME
    assert leases_of(place) == {hash_secret(RENEW): expires_s}
    (lease,) = place.server.get_leases(SI)
    assert lease.get_expiration_time() == expires_s and lease.is_renew_secret(RENEW)
    assert list(place.server.get_slot_leases(OTHER)) == []


def test_renewing_what_is_not_there(place: ServerPlace) -> None:
    assert isinstance(error_of(place.server.renew_lease(SI, RENEW)), IndexError)
    place.upload(pattern(50))
    assert isinstance(error_of(place.server.renew_lease(SI, b"x" * 32)), IndexError)
    assert place.client.requests == {"PutObject": 1}


@pytest.mark.parametrize("make", [immutable_object, mutable_object])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("count", [1, 6])
def test_renewing_a_lease_that_only_the_container_has(
    place: ServerPlace, make: Callable[..., bytes], version: int, count: int
) -> None:
    """A share that came by a plain copy, of which the index knows only what the listing said."""
    place.clock.advance(1_990_000_000)
    place.add(make(pattern(3000), leases=count, version=version))
    renew = b"%032d" % count
    now(place.server.renew_lease(SI, renew))
    assert leases_of(place) == {hash_secret(renew): 1_990_000_000 + DEFAULT_RENEWAL_TIME}
    assert len(list(place.server.get_leases(SI))) == count
    assert isinstance(error_of(place.server.renew_lease(SI, b"%032d" % (count + 1))), IndexError)


def test_renewing_while_the_share_is_overwritten(place: ServerPlace) -> None:
    """The head of one version and the leases of the next make no sense together; it is looked at again."""
    place.clock.advance(1_990_000_000)
    place.add(mutable_object(pattern(3000), leases=6), si=OTHER)
    held = place.client.hold("GetObject")
    renewing = place.server.renew_lease(OTHER, b"%032d" % 6)
    place.add(mutable_object(pattern(9000), leases=6), si=OTHER)
    place.store.share_changed(OTHER, 0)
    for _ in range(20):
        held.release(len(held))
        place.clock.advance(5)
    held.release()
    assert now(renewing) is None and len(leases_of(place, OTHER)) == 1


def test_a_damaged_share_does_not_lose_its_slots_leases(place: ServerPlace) -> None:
    place.add(b"\x00\x00\x00\x02" + b"\xff" * 8)
    assert isinstance(error_of(place.server.renew_lease(SI, RENEW)), DamagedContainerError)
    now(place.server.add_lease(SI, RENEW, CANCEL))
    now(place.server.renew_lease(SI, RENEW))
    assert set(leases_of(place)) == {hash_secret(RENEW)}


# what is told and counted


def test_corruption_advisories_are_written_down(place: ServerPlace) -> None:
    place.upload(pattern(50))
    now(place.server.advise_corrupt_share(b"immutable", SI, 0, b"block 3 is wrong"))
    now(now(place.server.get_buckets(SI))[0].advise_corrupt_share(b"and block 4"))
    now(place.server.advise_corrupt_share(b"immutable", SI, 5, b"a share that is not here"))
    reports = list(Path(place.server.corruption_advisory_dir).iterdir())
    texts = "".join(path.read_text("utf-8") for path in reports)
    assert "block" in texts and "not here" not in texts


class Counts:
    """What stats_provider is to a storage server."""

    def __init__(self) -> None:
        self.counted: dict[str, int] = {}

    def register_producer(self, _: Any) -> None:
        pass

    def count(self, name: str, delta: int = 1) -> None:
        self.counted[name] = self.counted.get(name, 0) + delta


def test_what_succeeded_is_counted_with_the_time_it_took(tmp_path: Path) -> None:
    counts = Counts()
    place = ServerPlace(tmp_path, stats_provider=counts)
    held = place.client.hold("PutObject")
    writer = place.allocate([0], 50)[1][0]
    now(writer.write(0, pattern(50)))
    closing = writer.close()
    place.clock.advance(7)
    assert "storage_server.close" not in counts.counted
    held.release()
    now(closing)
    assert counts.counted["storage_server.close"] == 1 and counts.counted["storage_server.bytes_added"] == 134
    assert place.server.latencies["close"] == [7.0]
    place.client.fail("PutObject", Unavailable)
    error_of(place.server.add_lease(SI, RENEW, CANCEL))
    assert "storage_server.add-lease" not in counts.counted
    now(place.server.add_lease(SI, RENEW, CANCEL))
    now(now(place.server.get_buckets(SI))[0].read(0, 5))
    now(create(place))
    now(place.server.slot_readv(OTHER, [], [(0, 5)]))
    for name in ("allocate", "write", "get", "read", "add-lease", "writev", "readv"):
        assert counts.counted[f"storage_server.{name}"] == 1, name
    now(place.server.stopService())


def test_stats_are_plain_numbers(place: ServerPlace) -> None:
    place.upload(pattern(50))
    now(create(place))
    place.client.fail("HeadObject", Unavailable)
    error_of(place.client.head("x"))
    stats = json.loads(json.dumps(place.server.get_stats()))
    assert all(value is None or isinstance(value, (int, float)) for value in stats.values())
    assert stats["tahoe_s3.shares"] == 2 and stats["tahoe_s3.bucket_usable"] == 1
    assert stats["tahoe_s3.used_bytes"] == place.index.used_bytes > 0
    assert stats["tahoe_s3.requests.PutObject"] == 2
    assert stats["storage_server.total_bucket_count"] == 2
    assert stats["storage_server.accepting_immutable_shares"] == 1


def test_close_handlers_hear_of_every_end(place: ServerPlace) -> None:
    ended: list[Any] = []
    place.server.register_bucket_writer_close_handler(ended.append)
    writers = place.allocate([0, 1, 2], 50)[1]
    now(writers[0].write(0, pattern(50)))
    now(writers[0].close())
    now(writers[1].abort())
    place.client.fail("PutObject", Unavailable)
    error_of(writers[2].close())
    assert ended == [writers[0], writers[1], writers[2]] and len(set(ended)) == 3


def test_the_status_page_renders(place: ServerPlace) -> None:
    place.upload(pattern(50))
    element = StorageStatusElement(place.server, "nickname")
    html = now(flattenString(None, element)).decode("utf-8")
    assert "nickname" in html and "Error" not in html
    page = StorageStatus(place.server, "nickname")
    assert json.loads(page.render_JSON(FakeRequest()))["stats"]["tahoe_s3.shares"] == 1


class FakeRequest:
    def setHeader(self, *_: Any) -> None:
        pass


def test_it_is_a_storage_server_that_shows_no_secret(place: ServerPlace) -> None:
    assert isinstance(place.server, StorageServer) and place.server.name == "storage"
    assert place.server.my_nodeid == NODEID
    writer = place.allocate([0], 5)[1][0]
    reader_text = repr(place.server) + repr(writer)
    assert RENEW.decode() not in reader_text


# stopping


def test_a_stop_waits_for_what_closes_and_ends_the_rest(place: ServerPlace) -> None:
    held = place.client.hold("PutObject")
    writers = place.allocate([0, 1], 50)[1]
    large = place.allocate([0], 3 * PART, si=OTHER)[1][0]
    now(large.write(0, pattern(2 * PART)))
    now(writers[0].write(0, pattern(50)))
    closing = writers[0].close()
    stopping = place.server.stopService()
    assert waits(stopping) and waits(closing) and writers[1].closed and large.closed
    assert not place.client.closed
    held.release()
    assert now(closing) is None and now(stopping) is None
    assert place.client.closed and place.client.uploads == {} and set(place.client.objects) == {share_key(SI, 0)}


def test_a_stop_waits_for_a_lease_and_a_read_test_write(place: ServerPlace) -> None:
    place.upload(pattern(50))
    held = place.client.hold("PutObject")
    calls = [place.server.add_lease(SI, RENEW, CANCEL), create(place)]
    stopping = place.server.stopService()
    assert waits(stopping)
    held.release()
    assert now(calls[0]) is None and now(calls[1])[0] is True and now(stopping) is None


def test_no_writer_is_made_once_the_stop_began(place: ServerPlace) -> None:
    """An allocation that waits for its lease when the node stops would leave a timer and a file behind."""
    place.upload(pattern(50))
    held = place.client.hold("PutObject")
    allocating = place.server.allocate_buckets(SI, RENEW, CANCEL, {0, 1}, 50)
    stopping = place.server.stopService()
    held.release()
    assert isinstance(error_of(allocating), Unavailable) and now(stopping) is None
    place.assert_no_upload()


def test_a_stop_whose_closing_share_fails(place: ServerPlace) -> None:
    held = place.client.hold("PutObject")
    writer = place.allocate([0], 50)[1][0]
    closing = writer.close()
    stopping = place.server.stopService()
    held.fail(Unavailable, outcome="unknown")
    assert isinstance(error_of(closing), Unavailable) and now(stopping) is None


def test_a_clean_stop_is_remembered_and_a_broken_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ServerPlace(tmp_path)
    first.upload(pattern(50))
    now(first.server.stopService())
    second = ServerPlace(tmp_path)
    assert second.index.was_kept and second.index.share_count == 1
    monkeypatch.setattr(second.store.cache, "close", lambda: 1 / 0)
    now(second.server.stopService())
    assert second.client.closed and open_files(tmp_path) == []
    third = ServerPlace(tmp_path)
    assert not third.index.was_kept
    now(third.server.stopService())


def stop_after_a_delete_without_an_answer(folder: Path) -> ServerPlace:
    """A server that is about to stop, and does not know whether share 0 is still there. It is not."""
    place = ServerPlace(folder)
    now(create(place, shnums=(0, 1)))
    place.client.fail("DeleteObject", Unavailable, outcome="unknown", applied=True)
    deleting = place.server.slot_testv_and_readv_and_writev(OTHER, SECRETS, {0: ([], [], 0)}, [])
    assert isinstance(error_of(deleting), Unavailable)
    return place


def test_what_is_unsure_stays_so_over_a_stop(tmp_path: Path) -> None:
    """Else the next start would show the share until it had been missed for minutes."""
    first = stop_after_a_delete_without_an_answer(tmp_path)
    now(first.server.stopService())
    assert first.clock.getDelayedCalls() == []
    second = ServerPlace(tmp_path)
    assert second.index.was_kept and second.store.slots.is_unsure(OTHER)
    second.client.fail("HeadObject", Unavailable)
    assert isinstance(error_of(second.server.enumerate_mutable_shares(OTHER)), Unavailable)
    assert now(second.server.enumerate_mutable_shares(OTHER)) == {1}
    assert not second.store.slots.is_unsure(OTHER)
    now(second.server.stopService())
