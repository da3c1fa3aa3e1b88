# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases added after the shares were written: none is lost, none answered early, as few requests as can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.interfaces import NoSpace

from tahoe_s3.client import Busy, NotFound, Throttled, Unavailable
from tahoe_s3.store import overlay as overlay_module
from tahoe_s3.store.index import OverlayRow
from tahoe_s3.store.keys import lease_key
from tahoe_s3.store.leases import Lease, OverlayError, overlay_from_json, overlay_to_json

from .helpers import SI, Place, error_of, now, waits

KEY = lease_key(SI)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.add(b"a share")
    # As for a share that was stored here, and not only listed.
    made.index.has_no_overlay(SI)
    yield made
    made.index.abandon()


def lease(number: int, expires_s: int = 1000) -> Lease:
    return Lease(1, b"%032d" % number, b"%032d" % (number + 500), expires_s, b"n" * 20)


def add(place: Place, *leases: Lease) -> None:
    for one in leases:
        assert now(place.store.overlay.add(SI, one)) is None


def in_bucket(place: Place) -> dict[bytes, int]:
    """Renew hash to expiration, as the bucket has them now."""
    stored = place.client.objects.get(KEY)
    return {} if stored is None else {one.renew_hash: one.expiration_s for one in overlay_from_json(stored.data)}


def expected(*leases: Lease) -> dict[bytes, int]:
    return {one.renew_hash: one.expiration_s for one in leases}


def listed(place: Place, *leases: Lease, etag: str = "listed") -> None:
    """An overlay that a listing showed, whose content is not known."""
    place.client.store(KEY, overlay_to_json(leases))
    place.index.put_overlay(SI, OverlayRow(etag, 1, None))


def test_each_lease_is_one_put(place: Place) -> None:
    add(place, lease(1), lease(2), lease(1, 2000))
    assert place.client.requests == {"PutObject": 3}
    assert in_bucket(place) == expected(lease(1, 2000), lease(2))
    assert {one.renew_hash: one.expiration_s for one in place.index.leases(SI, 0)} == in_bucket(place)


def test_a_lease_is_never_shortened(place: Place) -> None:
    add(place, lease(1, 2000), lease(1, 1000))
    assert in_bucket(place) == expected(lease(1, 2000))


def test_without_a_share_there_is_no_lease_and_no_request(place: Place) -> None:
    place.index.drop_share(SI, 0)
    add(place, lease(1))
    assert not place.client.requests


def test_the_answer_waits_for_the_bucket(place: Place) -> None:
    held = place.client.hold("PutObject")
    adding = place.store.overlay.add(SI, lease(1))
    assert waits(adding) and place.index.leases(SI, 0) == []
    held.release()
    assert now(adding) is None and in_bucket(place) == expected(lease(1))


def test_those_that_arrive_meanwhile_share_the_next_write(place: Place) -> None:
    held = place.client.hold("PutObject")
    first = place.store.overlay.add(SI, lease(1))
    others = [place.store.overlay.add(SI, lease(number)) for number in range(2, 30)]
    others[3].addErrback(lambda _: None)
    others[3].cancel()
    assert len(held) == 1
    held.release(1)
    assert now(first) is None and all(waits(other) for other in others[:3])
    held.release()
    assert [now(other) for other in others[:3] + others[4:]] == [None] * 27
    assert place.client.requests == {"PutObject": 2}
    assert in_bucket(place) == expected(*map(lease, range(1, 30))), "also of the one who did not wait"


def test_a_lease_object_that_a_listing_missed_is_not_overwritten(place: Place) -> None:
    """A share that only a listing told of: whether it has a lease object is asked once, before one is written."""
    si = bytes(reversed(SI))
    place.add(b"a share", si=si)
    stored = place.client.store(lease_key(si), overlay_to_json([lease(1, 5000)]))
    assert now(place.store.overlay.add(si, lease(2))) is None
    assert place.client.requests == {"GetObject": 1, "PutObject": 1} and place.client.objects[lease_key(si)] != stored
    found = overlay_from_json(place.client.objects[lease_key(si)].data)
    assert {one.renew_hash: one.expiration_s for one in found} == expected(lease(1, 5000), lease(2))


def test_that_there_is_no_lease_object_is_asked_once(place: Place) -> None:
    si = bytes(reversed(SI))
    place.add(b"a share", si=si)
    place.client.fail("PutObject", Throttled)
    assert isinstance(error_of(place.store.overlay.add(si, lease(1))), Throttled)
    assert place.client.requests == {"GetObject": 1, "PutObject": 1}
    assert now(place.store.overlay.add(si, lease(1))) is None
    assert place.client.requests == {"GetObject": 1, "PutObject": 2}


def test_an_unknown_overlay_is_read_first(place: Place) -> None:
    listed(place, lease(1, 5000), lease(2))
    add(place, lease(1), lease(3))
    assert place.client.requests == {"GetObject": 1, "PutObject": 2}
    assert in_bucket(place) == expected(lease(1, 5000), lease(2), lease(3))


@pytest.mark.parametrize("error", [Unavailable, Throttled])
def test_an_overlay_that_cannot_be_read_is_not_overwritten(place: Place, error: Any) -> None:
    listed(place, lease(1))
    place.client.fail("GetObject", error)
    assert isinstance(error_of(place.store.overlay.add(SI, lease(2))), error)
    assert in_bucket(place) == expected(lease(1))
    add(place, lease(2))
    assert in_bucket(place) == expected(lease(1), lease(2))


def test_one_404_does_not_cost_the_leases(place: Place) -> None:
    listed(place, lease(1))
    place.client.fail("GetObject", NotFound)
    assert isinstance(error_of(place.store.overlay.add(SI, lease(2))), Unavailable)
    assert in_bucket(place) == expected(lease(1))
    add(place, lease(2))
    assert in_bucket(place) == expected(lease(1), lease(2))


def test_an_overlay_that_somebody_deleted_is_made_anew(place: Place) -> None:
    listed(place, lease(1))
    del place.client.objects[KEY]
    add(place, lease(2))
    assert in_bucket(place) == expected(lease(2))
    assert place.client.requests == {"GetObject": 1, "ListObjectsV2": 1, "PutObject": 1}


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version": 9, "leases": []}'])
def test_a_damaged_overlay_is_an_error_and_stays(place: Place, data: bytes) -> None:
    listed(place)
    place.client.store(KEY, data)
    error = error_of(place.store.overlay.add(SI, lease(2)))
    assert isinstance(error, OverlayError) and KEY in str(error)
    assert place.client.objects[KEY].data == data


def test_a_refused_write_changes_nothing(place: Place) -> None:
    add(place, lease(1))
    place.client.fail("PutObject", Unavailable, outcome="not_applied")
    assert isinstance(error_of(place.store.overlay.add(SI, lease(2))), Unavailable)
    assert {one.renew_hash for one in place.index.leases(SI, 0)} == {lease(1).renew_hash}
    add(place, lease(3))
    assert in_bucket(place) == expected(lease(1), lease(3))


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_write_without_an_answer_loses_no_lease(place: Place, applied: bool, is_first: bool) -> None:
    if not is_first:
        add(place, lease(1))
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=applied)
    assert isinstance(error_of(place.store.overlay.add(SI, lease(2))), Unavailable)
    add(place, lease(3))
    known = [lease(2), lease(3)] if is_first else [lease(1), lease(2), lease(3)]
    assert in_bucket(place) == expected(*known)


def test_what_an_index_of_before_knew_is_read_afresh_after_an_unknown_write(place: Place) -> None:
    add(place, lease(1))
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=True)
    error_of(place.store.overlay.add(SI, lease(2)))
    place.index.begin_listing()
    place.index.confirm_overlays([(SI, 200, place.client.objects[KEY].etag, 5)])
    row = place.index.overlay(SI)
    assert row is not None and row.leases is None


def test_all_of_a_batch_hear_of_its_failure(place: Place) -> None:
    held = place.client.hold("PutObject")
    first = place.store.overlay.add(SI, lease(1))
    others = [place.store.overlay.add(SI, lease(number)) for number in (2, 3)]
    held.release(1)
    assert now(first) is None
    held.fail(Unavailable)
    assert [type(error_of(other)) for other in others] == [Unavailable] * 2
    held.release()
    add(place, lease(4))
    assert in_bucket(place) == expected(lease(1), lease(4))


def test_those_who_never_got_their_turn_hear_of_it(place: Place) -> None:
    place.store.slots.mark_unsure(SI, 0)
    held = place.client.hold("HeadObject")
    waiting = [place.store.overlay.add(SI, lease(number)) for number in (1, 2)]
    held.fail(Unavailable)
    held.release()
    assert [type(error_of(one)) for one in waiting] == [Unavailable] * 2
    add(place, lease(3))
    assert in_bucket(place) == expected(lease(3))


def test_there_are_limits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "MAX_LEASES", 3)
    add(place, lease(1), lease(2), lease(3))
    assert isinstance(error_of(place.store.overlay.add(SI, lease(4))), NoSpace)
    add(place, lease(3, 9000))
    assert in_bucket(place) == expected(lease(1), lease(2), lease(3, 9000))
    held = place.client.hold("PutObject")
    waiting = [place.store.overlay.add(SI, lease(1, 5000 + number)) for number in range(4)]
    assert isinstance(error_of(place.store.overlay.add(SI, lease(1, 9999))), Busy)
    held.release()
    assert [now(one) for one in waiting] == [None] * 4
    assert in_bucket(place)[lease(1).renew_hash] == 5003


def test_the_overlay_goes_with_the_last_share(place: Place) -> None:
    add(place, lease(1))
    place.client.forget_requests()
    assert now(place.store.overlay.delete(SI)) is None
    assert KEY not in place.client.objects and place.index.overlay(SI) is None
    assert now(place.store.overlay.delete(SI)) is None
    assert place.client.requests == {"DeleteObject": 1}


@pytest.mark.parametrize("applied", [True, False])
def test_a_delete_without_an_answer_is_looked_at_before_the_next_write(place: Place, applied: bool) -> None:
    add(place, lease(1))
    place.client.fail("DeleteObject", Unavailable, outcome="unknown", applied=applied)
    assert isinstance(error_of(place.store.overlay.delete(SI)), Unavailable)
    add(place, lease(2))
    assert in_bucket(place) == (expected(lease(2)) if applied else expected(lease(1), lease(2)))
