# SPDX-License-Identifier: GPL-2.0-or-later
"""Expiry against everything that happens at the same time: renewals, uploads, writes, reads, failures, clocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.http_common import Secrets
from allmydata.util import cputhreadpool
from twisted.logger import globalLogPublisher

from tahoe_s3.client import AccessDenied, NotFound, S3Error, Throttled, Unavailable
from tahoe_s3.http import S3HTTPServer
from tahoe_s3.store import expiry
from tahoe_s3.store.index import OverlayRow
from tahoe_s3.store.keys import OWNER_KEY, lease_key, share_key, si_text
from tahoe_s3.store.learning import learn_overlay
from tahoe_s3.store.leases import Lease, overlay_to_json
from tahoe_s3.store.versions import ShareGone

from ..raw_http import SWISSNUM, RawClient
from .expiring import CYCLE_S, DATA, DAY_S, LEASE_DURATION_S, SIS, START_S, ExpiryPlace, renew_of
from .helpers import NODEID, error_of, now, pattern, waits
from .servers import CANCEL, RENEW

I0, I1, M2, M3 = SIS
Make = Callable[..., ExpiryPlace]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[ExpiryPlace] = []

    def make_one(**expire: Any) -> ExpiryPlace:
        made.append(ExpiryPlace(tmp_path / f"place{len(made)}", **{"override_lease_duration": DAY_S, **expire}))
        return made[-1]

    yield make_one
    for place in made:
        if not place.store.is_closed:
            place.client.holds.clear()
            place.close()


@pytest.fixture
def place(make: Make) -> ExpiryPlace:
    """Two files, one with a lease object, both of which the next cycle deletes."""
    found = make()
    found.upload(DATA, si=I0)
    found.upload(DATA, si=I1)
    found.renew(I1, renew_of(5))
    found.pass_days(2)
    found.start()
    found.finish_cycle()
    assert found.has(I0) and found.has(I1)
    return found


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What was logged as a warning or worse, formatted."""
    from twisted.logger import LogLevel, formatEvent

    texts: list[str] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            texts.append(str(formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


def begin_until(place: ExpiryPlace, operation: str, key: str | None = None) -> Any:
    """Step until the expirer's request of this kind is held back."""
    held = place.client.hold(operation, key)
    for _ in range(100):
        if len(held):
            return held
        place.step()
    raise AssertionError(f"no {operation} came")


# renewals


def test_a_renewal_that_comes_before_the_batch_wins(place: ExpiryPlace) -> None:
    held = begin_until(place, "HeadObject", OWNER_KEY)
    place.renew(I0)
    renewing = place.client.hold("PutObject", lease_key(I1))
    slow = place.server.add_lease(I1, RENEW, CANCEL)
    held.release()
    assert place.client.requests["DeleteObjects"] == 0 and waits(slow)
    renewing.release()
    assert now(slow) is None and place.has(I0) and place.has(I1)
    place.cycles(2)
    assert place.has(I0) and place.has(I1)


@pytest.mark.parametrize("applied", [True, False])
def test_a_renewal_that_comes_too_late_is_of_nothing(place: ExpiryPlace, applied: bool) -> None:
    """It waits for what the bucket says. Where the share stayed, the lease is there before it is acknowledged."""
    held = begin_until(place, "DeleteObjects")
    adding = place.server.add_lease(I0, RENEW, CANCEL)
    renewing = place.server.renew_lease(I1, renew_of(5))
    assert waits(adding) and waits(renewing)
    if applied:
        held.release()
        assert now(adding) is None and isinstance(error_of(renewing), IndexError)
        assert set(place.client.objects) == {OWNER_KEY}, "no lease object of a share that is gone"
    else:
        place.client.holds.remove(held)
        held.fail(Throttled)
        assert now(adding) is None and now(renewing) is None
        place.cycles(2)
        assert place.has(I0) and place.has(I1) and place.has_overlay(I0)


def test_over_http_a_late_renewal_is_told_that_there_is_nothing(
    place: ExpiryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cputhreadpool, "_DISABLED", True)
    client = RawClient(S3HTTPServer(place.clock, place.server, SWISSNUM).get_resource(), place.clock)
    path = f"/storage/v1/lease/{si_text(I0)}"
    secrets = {Secrets.LEASE_RENEW: RENEW, Secrets.LEASE_CANCEL: CANCEL}
    held = begin_until(place, "DeleteObjects")
    place.clock.callLater(0.0, held.release)
    assert client.ask("PUT", path, secrets=secrets).status == 404
    assert client.ask("PUT", path, secrets=secrets).status == 404


# uploads and writes


def test_the_same_share_is_uploaded_again_while_it_goes(place: ExpiryPlace) -> None:
    held = begin_until(place, "DeleteObjects")
    allocating = place.server.allocate_buckets(I0, RENEW, CANCEL, [0], len(DATA))
    assert waits(allocating)
    held.release()
    had, writers = now(allocating)
    assert had == set() and set(writers) == {0}
    now(writers[0].write(0, DATA))
    now(writers[0].close())
    place.cycles(1)
    assert place.has(I0) and now(now(place.server.get_buckets(I0))[0].read(0, 2000)) == DATA
    place.pass_days(1.6)
    place.finish_cycle()
    assert not place.has(I0)


def test_an_upload_under_way_keeps_the_lease_object(place: ExpiryPlace) -> None:
    """Not its shares, whose leases are over; but a writer of its storage index may be closed at any time."""
    held = begin_until(place, "HeadObject", OWNER_KEY)
    lease_info = place.server._new_lease(0, RENEW, CANCEL)
    writer = place.server._make_writers(I1, [1], len(DATA), lease_info)[1]
    held.release()
    assert not place.has(I0) and not place.has(I1) and place.has_overlay(I1)
    now(writer.write(0, DATA))
    now(writer.close())
    place.finish_cycle()
    assert place.has(I1, 1) and place.has_overlay(I1)
    place.pass_days(1.5)
    place.cycles(2)
    assert not place.has(I1, 1) and not place.has_overlay(I1)


def test_an_upload_that_is_being_closed_is_waited_for(place: ExpiryPlace) -> None:
    held = begin_until(place, "HeadObject", OWNER_KEY)
    putting = place.client.hold("PutObject", share_key(I1, 1))
    writer = place.server._make_writers(I1, [1], len(DATA), place.server._new_lease(0, RENEW, CANCEL))[1]
    now(writer.write(0, DATA))
    closing = writer.close()
    held.release()
    assert not place.has(I0) and place.has(I1), "the lock is somebody's: the next cycle looks again"
    putting.release()
    assert now(closing) is None
    place.finish_cycle()
    assert not place.has(I1) and place.has(I1, 1) and place.has_overlay(I1)


def test_a_slot_that_is_being_written_is_left_alone(make: Make) -> None:
    place = make()
    place.make_slot(M2)
    place.make_slot(M3)
    place.pass_days(2)
    place.start()
    place.finish_cycle()
    held = place.client.hold("PutObject", share_key(M2, 0))
    secrets = (b"w" * 32, renew_of(9), CANCEL)
    writing = place.server.slot_testv_and_readv_and_writev(M2, secrets, {0: ([], [(0, b"new")], None)}, [])
    place.finish_cycle()
    assert waits(writing) and place.has(M2) and not place.has(M3)
    held.release()
    assert now(writing)[0]
    place.finish_cycle()
    assert place.has(M2), "the write has brought a lease"


def test_a_write_to_a_slot_that_goes_makes_a_new_one(make: Make) -> None:
    place = make()
    place.make_slot(M2, b"old" * 100)
    place.pass_days(2)
    place.start()
    place.finish_cycle()
    held = begin_until(place, "DeleteObjects")
    secrets = (b"w" * 32, RENEW, CANCEL)
    writing = place.server.slot_testv_and_readv_and_writev(M2, secrets, {0: ([], [(2, b"new")], None)}, [])
    assert waits(writing)
    held.release()
    assert now(writing)[0]
    assert now(place.server.slot_readv(M2, [], [(0, 1000)])) == {0: [b"\0\0new"]}


# reads


def test_a_share_that_is_read_while_it_goes_gives_an_error_and_no_wrong_byte(make: Make) -> None:
    place = make()
    data = pattern(3_000_000)
    place.upload(data, si=I0)
    place.pass_days(2)
    reader = now(place.server.get_buckets(I0))[0]
    assert now(reader.read(0, 1000)) == data[:1000]
    place.start()
    place.finish_cycle()
    held = begin_until(place, "DeleteObjects")
    reading = place.client.hold("GetObject")
    late, cached = reader.read(2_500_000, 1000), reader.read(100, 100)
    assert now(cached) == data[100:200] and waits(late)
    held.release()
    assert not place.has(I0)
    reading.release()
    place.clock.pump([0.1] * 100)
    assert isinstance(error_of(late), (ShareGone, NotFound))
    assert isinstance(error_of(reader.read(0, 1000)), ShareGone)
    assert now(place.server.get_buckets(I0)) == {} and place.store.reads.stats()["windows"] == 0


def test_readers_of_slots_that_go(make: Make) -> None:
    place = make()
    place.make_slot(M2)
    place.pass_days(2)
    place.start()
    place.cycles(2)
    assert now(place.server.slot_readv(M2, [], [(0, 10)])) == {}
    assert place.store.cache.stats()["copies"] == 0


# failures


@pytest.mark.parametrize("applied", [True, False])
def test_a_delete_that_nobody_answered_is_settled_by_a_head(place: ExpiryPlace, applied: bool) -> None:
    place.client.fail("DeleteObjects", Unavailable, outcome="unknown", applied=applied)
    for _ in range(20):
        place.step()
        if place.client.requests["DeleteObjects"]:
            break
    assert place.store.slots.is_unsure(I0) and place.store.slots.is_unsure(I1)
    assert place.has_overlay(I1), "the lease object goes last"
    place.client.forget_requests()
    assert set(now(place.server.get_buckets(I0))) == (set() if applied else {0})
    assert place.client.requests["HeadObject"] == 1
    place.cycles(1)
    now(place.server.get_buckets(I1))
    place.cycles(1)
    assert not place.has(I0) and not place.has(I1) and not place.has_overlay(I1)


def test_keys_that_the_service_did_not_delete(place: ExpiryPlace, told: list[str]) -> None:
    key = share_key(I0, 0)
    place.client.delete_errors = {key: "InternalError", lease_key(I1): "InternalError"}
    place.finish_cycle()
    assert place.store.slots.is_unsure(I0) and not place.has(I1) and place.has_overlay(I1)
    assert f"{key} could not be deleted: InternalError" in told
    assert set(now(place.server.get_buckets(I0))) == {0}
    place.client.delete_errors = {}
    found = place.finish_cycle()["space-recovered"]
    assert set(place.client.objects) == {OWNER_KEY}
    assert (found["actual-shares"], found["actual-buckets"]) == (1, 1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_key_that_may_not_delete(place: ExpiryPlace, told: list[str], whole: bool) -> None:
    if whole:
        place.client.fail("DeleteObjects", AccessDenied)
    else:
        place.client.delete_errors = {share_key(si, 0): "AccessDenied" for si in (I0, I1)}
    place.finish_cycle()
    assert place.has(I0) and place.has(I1) and not place.store.slots.is_unsure(I0)
    assert place.client.requests["DeleteObjects"] == 1
    (line,) = told
    assert line.startswith("no share is deleted in this cycle: the service refuses it with AccessDenied")


def test_a_service_that_is_down_is_waited_for(make: Make, told: list[str]) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    place.pass_days(2)
    place.client.fail("GetObject", Unavailable, times=2)
    place.start()
    place.finish_cycle()
    assert [line[:43] for line in told] == [f"looking after leases goes on in {n} seconds:" for n in (30, 60)]
    assert place.row(si=I0).leases is not None
    told.clear()
    place.client.fail("HeadObject", Unavailable, times=2)
    place.client.fail("DeleteObjects", Throttled, times=1)
    place.finish_cycle()
    assert len(told) == 3 and not place.has(I0)


def test_one_object_that_cannot_be_read_holds_up_nothing(make: Make) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    place.put(I1, "immutable", [START_S])
    place.pass_days(2)
    place.client.fail("GetObject", Unavailable, key=share_key(I0, 0), times=100)
    place.start()
    place.cycles(2)
    assert place.has(I0) and not place.has(I1)
    assert place.client.requests["GetObject"] <= 2 * expiry.TRIES + 2


def test_a_share_that_vanished_is_an_error_and_no_absence(make: Make) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    place.put(I1, "immutable", [START_S])
    stored = place.client.objects.pop(share_key(I0, 0))
    place.pass_days(2)
    place.start()
    place.begin_cycle()
    place.clock.pump([0.5] * 20)
    assert place.index.share(I0, 0) is not None
    place.client.objects[share_key(I0, 0)] = stored
    place.cycles(2)
    assert not place.has(I0) and not place.has(I1)


def test_an_index_that_cannot_be_written(place: ExpiryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket has deleted the share, and nobody can note it: whoever asks next looks into the bucket."""
    import sqlite3

    def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(place.index, "drop_share", refuse)
    held = begin_until(place, "DeleteObjects")
    held.release()
    monkeypatch.undo()
    assert place.store.slots.is_unsure(I0)
    assert now(place.server.get_buckets(I0)) == {} == now(place.server.get_buckets(I1))


def test_stopping_waits_for_a_batch_and_begins_none(place: ExpiryPlace) -> None:
    held = begin_until(place, "DeleteObjects")
    stopping = place.server.stopService()
    assert waits(stopping)
    held.release()
    assert now(stopping) is None and set(place.client.objects) == {OWNER_KEY}


def test_stopping_while_the_bucket_is_asked_deletes_nothing(place: ExpiryPlace) -> None:
    held = begin_until(place, "HeadObject", OWNER_KEY)
    stopping = place.server.stopService()
    held.release()
    assert now(stopping) is None and place.client.requests["DeleteObjects"] == 0
    assert not place.clock.getDelayedCalls()


def test_without_the_owners_mark_nothing_goes(place: ExpiryPlace, told: list[str]) -> None:
    mark = place.client.objects.pop(OWNER_KEY)
    place.finish_cycle()
    assert place.has(I0) and place.client.requests["DeleteObjects"] == 0
    assert any("the mark of this node is not in the bucket" in line for line in told)
    place.client.objects[OWNER_KEY] = mark
    place.finish_cycle()
    assert not place.has(I0)


def test_while_the_bucket_cannot_be_used_nothing_is_asked(place: ExpiryPlace) -> None:
    place.store.problem = "it is gone"
    place.client.forget_requests()
    place.clock.pump([100.0] * 1000)
    assert not place.client.requests
    place.store.problem = None
    place.finish_cycle()
    assert not place.has(I0)


# clocks


@pytest.mark.parametrize("days", [90, -90])
def test_a_clock_that_was_months_wrong_from_the_start(make: Make, days: int) -> None:
    """Shares that are valid by the service's clock stay; and those that are not, as long as nobody knows the time."""
    place = make(override_lease_duration=30 * DAY_S)
    place.upload(DATA, si=I0)
    place.pass_days(1)
    place = place.restarted()
    place.clock.rightNow += days * DAY_S
    place.client.ahead_s -= days * DAY_S
    place = place.restarted()
    place.start()
    found = place.cycles(5)["space-recovered"]
    assert place.has(I0)
    if days > 0:
        assert found["configured-shares"] == 0, "the service's time counts"
    place.close()


def test_a_difference_of_the_clocks(place: ExpiryPlace, told: list[str]) -> None:
    for ahead_s in (901, -901):
        place.client.ahead_s = ahead_s
        place.finish_cycle()
        assert place.has(I0) and place.client.requests["DeleteObjects"] == 0
        assert told.pop() == (
            "no share is deleted in this cycle: this machine's clock and the service's differ by 901 seconds"
        )
    place.client.ahead_s = -899
    place.finish_cycle()
    assert not place.has(I0)


def test_a_clock_that_is_set_while_the_bucket_is_asked(place: ExpiryPlace, told: list[str]) -> None:
    held = begin_until(place, "HeadObject", OWNER_KEY)
    place.set_clock(-600)
    held.release()
    assert not place.expirer.in_cycle and "This machine's clock was set by -600 seconds" in told[0]
    first_s = place.finish_cycle()["cycle-start-finish-times"][0]
    assert place.has(I0), "a whole cycle has to pass"
    place.finish_cycle()
    assert not place.has(I0) and place.clock.seconds() >= first_s + CYCLE_S


@pytest.mark.parametrize("in_cycle", [True, False])
def test_a_clock_that_jumps_months_ahead(make: Make, in_cycle: bool) -> None:
    place = make(override_lease_duration=30 * DAY_S)
    place.upload(DATA, si=I0)
    place.start()
    place.cycles(2)
    if in_cycle:
        place.put(I1, "immutable", [START_S])
        place.index.put_share(I1, replace(place.row(si=I1), modified_s=1))
        held = place.client.hold("GetObject")
        place.begin_cycle()
        place.set_clock(90 * DAY_S)
        held.release()
    else:
        place.set_clock(90 * DAY_S)
    place.cycles(4)
    assert place.has(I0) and place.client.requests["DeleteObjects"] == 0
    place = place.restarted()
    place.set_clock(-90 * DAY_S)
    place.start()
    place.cycles(4)
    assert place.has(I0) and place.client.requests["DeleteObjects"] == 0
    place.close()


def test_a_small_correction_of_the_clock_is_none(place: ExpiryPlace) -> None:
    place.set_clock(50)
    place.finish_cycle()
    assert not place.has(I0)


def test_the_service_must_have_told_its_time(place: ExpiryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(place.client), "clock_difference_s", None)
    place.cycles(2)
    assert place.has(I0) and place.client.requests["DeleteObjects"] == 0


def test_a_cutoff_date_in_the_future_deletes_nothing(make: Make, told: list[str]) -> None:
    place = make(mode="cutoff-date", cutoff_date=int(START_S + 10 * DAY_S))
    place.upload(DATA, si=I0)
    place.start()
    place.cycles(4)
    assert place.has(I0) and "the cutoff date lies in the future" in told[0]
    place.pass_days(10)
    place.cycles(1)
    assert not place.has(I0), "what was stored before that day was not renewed since"


# knowledge


def test_a_lease_object_that_the_listing_missed(make: Make) -> None:
    """The index has no row of it: whether there is one is asked before anything goes."""
    place = make()
    place.put(I0, "immutable", [START_S])
    place.pass_days(2)
    lease = Lease.from_secrets(RENEW, CANCEL, owner_num=1, expiration_s=place.clock.seconds() + LEASE_DURATION_S,
                               nodeid=NODEID)  # fmt: skip
    place.client.store(lease_key(I0), overlay_to_json([lease]))
    place.start()
    place.cycles(2)
    assert place.has(I0) and place.index.overlay(I0) is not None
    place.cycles(4)
    assert not place.has(I0) and not place.has_overlay(I0)


def test_a_lease_object_that_the_listing_missed_and_nobody_had_time_to_note(make: Make) -> None:
    """Its answer comes while somebody has the lock: then it is not noted, and must not count as missing."""
    place = make()
    place.put(I0, "immutable", [START_S])
    place.pass_days(2)
    place.start()
    place.finish_cycle()
    lease = Lease.from_secrets(RENEW, CANCEL, owner_num=1, expiration_s=place.clock.seconds() + LEASE_DURATION_S,
                               nodeid=NODEID)  # fmt: skip
    place.client.store(lease_key(I0), overlay_to_json([lease]))
    getting = begin_until(place, "GetObject", lease_key(I0))
    putting = place.client.hold("PutObject", share_key(I0, 1))
    writer = place.server._make_writers(I0, [1], len(DATA), place.server._new_lease(0, RENEW, CANCEL))[1]
    now(writer.write(0, DATA))
    closing = writer.close()
    asking = place.client.hold("HeadObject", OWNER_KEY)
    getting.release()
    putting.fail(Throttled)
    assert isinstance(error_of(closing), Throttled)
    asking.release()
    place.clock.pump([1.0] * 5)
    assert place.has(I0) and place.client.requests["DeleteObjects"] == 0
    place.cycles(1)
    assert place.has(I0) and place.index.overlay(I0) is not None


def test_what_was_read_of_a_lease_object_does_not_undo_a_renewal(make: Make) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    stored = place.client.store(lease_key(I0), overlay_to_json([]))
    place.index.confirm_overlays([(I0, stored.etag, stored.modified_s)])
    held = place.client.hold("GetObject", lease_key(I0), apply_first=True)
    learning = learn_overlay(place.store, I0, priority=2)
    adding = place.server.add_lease(I0, RENEW, CANCEL)
    held.calls.pop(1).go()
    assert now(adding) is None and waits(learning)
    held.release()
    assert now(learning) is False
    overlay = place.index.overlay(I0)
    assert overlay is not None and overlay.leases is not None and len(overlay.leases) == 1


def test_a_lease_object_that_is_listed_and_said_to_be_missing(make: Make) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    place.index.put_overlay(I0, OverlayRow("listed", int(START_S), None))
    place.pass_days(2)
    place.start()
    place.cycles(3)
    assert place.has(I0)


@pytest.mark.parametrize("applied", [True, False])
def test_a_lease_object_whose_write_nobody_answered(make: Make, applied: bool) -> None:
    place = make(override_lease_duration=3 * DAY_S)
    place.upload(DATA, si=I0)
    place.pass_days(1.5)
    place.client.fail("PutObject", Unavailable, key=lease_key(I0), outcome="unknown", applied=applied)
    error_of(place.server.add_lease(I0, renew_of(3), CANCEL))
    place.start()
    while place.clock.seconds() <= START_S + 4.5 * DAY_S:
        assert place.has(I0), "the lease may be there"
        place.finish_cycle()
    assert not place.has(I0) and place.index.overlay(I0) is None and not place.has_overlay(I0)


def test_a_damaged_lease_object_keeps_its_shares(make: Make, told: list[str]) -> None:
    place = make()
    place.put(I0, "immutable", [START_S])
    stored = place.client.store(lease_key(I0), b"{}")
    place.index.confirm_overlays([(I0, stored.etag, stored.modified_s)])
    place.pass_days(2)
    place.start()
    place.cycles(2)
    assert place.has(I0)
    assert told == [f"{lease_key(I0)}: a damaged lease object (KeyError); no share of it is deleted"] * 2


def test_an_object_whose_age_no_listing_told(make: Make) -> None:
    place = make()
    place.upload(DATA, si=I0)
    place.index.put_share(I0, replace(place.row(si=I0), modified_s=0))
    place.pass_days(2)
    place.client.objects[share_key(I0, 0)].modified_s = int(START_S + 3 * DAY_S)
    place.start()
    while place.clock.seconds() <= START_S + 4 * DAY_S:
        assert place.has(I0)
        place.finish_cycle()
    assert not place.has(I0) and place.client.keys_asked.count(("HeadObject", share_key(I0, 0))) == 1


def test_a_storage_index_that_is_unsure_is_left_alone(place: ExpiryPlace) -> None:
    place.client.fail("HeadObject", Unavailable, key=share_key(I0, 0), times=100)
    place.store.slots.mark_unsure(I0, 0)
    place.finish_cycle()
    assert place.has(I0) and not place.has(I1)


def test_a_storage_index_that_becomes_unsure_is_left_alone(place: ExpiryPlace) -> None:
    held = begin_until(place, "HeadObject", OWNER_KEY)
    place.store.slots.mark_unsure(I0, 0)
    held.release()
    assert place.has(I0) and not place.has(I1)
    place.finish_cycle()
    assert place.has(I0), "nobody has asked what became of it"
    assert set(now(place.server.get_buckets(I0))) == {0}
    place.finish_cycle()
    assert not place.has(I0)


# all at once


class Oracle:
    """What clients were told: until when each storage index must not lose a share."""

    def __init__(self, place: ExpiryPlace, lifetime_s: float) -> None:
        self.place, self.lifetime_s = place, lifetime_s
        self.acknowledged: dict[str, float] = {}
        self.deleted = 0
        self.wrong: list[str] = []

    def lease(self, si: bytes, given_s: float) -> None:
        text = si_text(si)
        self.acknowledged[text] = max(self.acknowledged.get(text, 0), given_s)

    def check_delete(self, key: str) -> None:
        if key.startswith("shares/"):
            given_s = self.acknowledged.get(key.split("/")[2], 0.0)
            left_s = given_s + self.lifetime_s - self.place.clock.seconds()
            if left_s >= 0:
                self.wrong.append(f"{key} was deleted {left_s:.0f} seconds before its lease ended")
            self.deleted += 1


class WatchedObjects(dict[str, Any]):
    """The bucket's objects, with somebody who looks at each deletion."""

    oracle: Oracle | None = None

    def pop(self, key: str, *default: Any) -> Any:
        if self.oracle is not None and key in self:
            self.oracle.check_delete(key)
        return super().pop(key, *default)


@pytest.mark.parametrize("seed", range(4))
def test_no_acknowledged_share_goes_early_whatever_happens(make: Make, seed: int) -> None:
    chance = random.Random(seed)
    place = make(override_lease_duration=2 * DAY_S)
    watched = WatchedObjects(place.client.objects)
    watched.oracle = oracle = Oracle(place, 2 * DAY_S)
    place.client.objects = watched
    sis = [bytes([17 * number]) * 16 for number in range(12)]
    place.start()
    for _ in range(700):
        si, given_s = chance.choice(sis), place.clock.seconds()
        action = chance.randrange(10)
        if chance.random() < 0.2:
            outcome, applied = chance.choice([("unknown", True), ("unknown", False), ("not_applied", False)])
            operation = chance.choice(["DeleteObjects", "PutObject", "GetObject", "HeadObject"])
            place.client.fail(operation, Unavailable, outcome=outcome, applied=applied)
        held = place.client.hold(chance.choice(["DeleteObjects", "PutObject", "GetObject", "HeadObject"]))
        done: Any = None
        if action == 0:
            upload(place, si, chance.randrange(3), lambda si=si, given_s=given_s: oracle.lease(si, given_s))
        elif action == 1:
            done = place.server.add_lease(si, renew_of(chance.randrange(3)), CANCEL)
        elif action == 2:
            done = place.server.renew_lease(si, RENEW)
        place.clock.advance(chance.choice([0.5, 60, 3600, CYCLE_S / 2]))
        held.release()
        if action in (1, 2):
            settle_into(done, lambda si=si, given_s=given_s: oracle.lease(si, given_s))
        place.clock.pump([0.5] * 4)
    place.client._failing.clear()
    assert not oracle.wrong, f"seed {seed}: {oracle.wrong}"
    assert oracle.deleted > 10, f"seed {seed}: hardly anything was deleted"
    for si in sis:
        readers = now(place.server.get_buckets(si))
        assert {place.store.index.share(si, shnum) is not None for shnum in readers} <= {True}
        assert set(readers) == {n for n in range(3) if share_key(si, n) in place.client.objects}, f"seed {seed}"


def upload(place: ExpiryPlace, si: bytes, shnum: int, acknowledged: Callable[[], None]) -> None:
    def allocated(answer: Any) -> Any:
        for writer in answer[1].values():
            writer.write(0, DATA).addErrback(lambda failure: failure.trap(S3Error))
            writer.close().addCallbacks(lambda _: acknowledged(), lambda failure: failure.trap(S3Error))

    allocating = place.server.allocate_buckets(si, RENEW, CANCEL, [shnum], len(DATA))
    allocating.addCallback(allocated).addErrback(lambda failure: failure.trap(S3Error))


def settle_into(done: Any, acknowledged: Callable[[], None]) -> None:
    done.addCallbacks(lambda _: acknowledged(), lambda failure: failure.trap(S3Error, IndexError))


