# SPDX-License-Identifier: GPL-2.0-or-later
"""Expiry against everything that clients do at the same time: renewals, uploads, writes, reads; and all at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.http_common import Secrets
from allmydata.util import cputhreadpool

from tahoe_s3.client import NotFound, S3Error, Throttled, Unavailable
from tahoe_s3.http import S3HTTPServer
from tahoe_s3.store.expiry import CYCLE_S
from tahoe_s3.store.keys import OWNER_KEY, lease_key, share_key, si_text
from tahoe_s3.store.versions import ShareGone

from ..raw_http import SWISSNUM, RawClient
from .expiring import DATA, DAY_S, SIS, ExpiryPlace, Make, begin_until, making, renew_of, two_files
from .helpers import error_of, now, pattern, waits
from .servers import CANCEL, RENEW

I0, I1, M2, M3 = SIS


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from making(tmp_path, override_lease_duration=DAY_S)


@pytest.fixture
def place(make: Make) -> ExpiryPlace:
    return two_files(make)


# renewals


def test_a_renewal_that_comes_before_the_batch_wins(place: ExpiryPlace) -> None:
    held = begin_until(place, "GetObject", OWNER_KEY)
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
    held = begin_until(place, "GetObject", OWNER_KEY)
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
    held = begin_until(place, "GetObject", OWNER_KEY)
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


