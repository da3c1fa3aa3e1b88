# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock of a storage index, and what happens to a share when nobody knows whether it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tahoe_s3.client import AccessDenied, Busy, NotFound, Unavailable
from tahoe_s3.store import slots as slots_module
from tahoe_s3.store.slots import MAX_WAITERS, Slots

from .helpers import SI, Place, error_of, now, waits

OTHER = b"o" * 16


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.index.abandon()


@pytest.fixture
def slots(place: Place) -> Slots:
    return place.store.slots


class Operation:
    """One that ends when the test says so, and knows when it was begun."""

    def __init__(self) -> None:
        self.begun = False
        self.outcome: Deferred[Any] = Deferred()

    def __call__(self) -> Deferred[Any]:
        assert not self.begun
        self.begun = True
        return self.outcome


# the lock


def test_operations_of_one_storage_index_run_one_after_the_other(slots: Slots) -> None:
    first, second = Operation(), Operation()
    one, two = slots.run(SI, first), slots.run(SI, second)
    assert first.begun and not second.begun and waits(one)
    first.outcome.callback("one")
    assert now(one) == "one" and second.begun and waits(two)
    second.outcome.callback("two")
    assert now(two) == "two" and not slots.is_busy(SI)


def test_other_storage_indexes_do_not_wait(slots: Slots) -> None:
    first, second = Operation(), Operation()
    one = slots.run(SI, first)
    assert now(slots.run(OTHER, lambda: succeed(3))) == 3
    two = slots.run(OTHER, second)
    first.outcome.callback(None)
    assert now(one) is None and waits(two)
    second.outcome.callback(None)


@pytest.mark.parametrize("raises", [True, False])
def test_a_failure_is_the_callers_and_frees_the_lock(slots: Slots, raises: bool) -> None:
    def operation() -> Deferred[None]:
        if raises:
            raise ValueError("no")
        return fail(ValueError("no"))

    assert isinstance(error_of(slots.run(SI, operation)), ValueError)
    assert now(slots.run(SI, lambda: succeed(1))) == 1


def test_a_caller_that_goes_away_stops_nothing(slots: Slots) -> None:
    running, waiting = Operation(), Operation()
    one, two = slots.run(SI, running), slots.run(SI, waiting)
    one.addErrback(lambda _: None)
    two.addErrback(lambda _: None)
    one.cancel()
    two.cancel()
    assert not running.outcome.called and not waiting.begun
    running.outcome.callback(None)
    assert waiting.begun
    waiting.outcome.errback(Unavailable("nobody hears this"))
    assert not slots.is_busy(SI)


def test_many_that_end_at_once_do_not_exhaust_the_stack(slots: Slots) -> None:
    first = Operation()
    slots.run(SI, first)
    order: list[int] = []
    results = [slots.run(SI, lambda: succeed(None)) for _ in range(MAX_WAITERS)]
    for number, result in enumerate(results):
        result.addCallback(lambda _, number=number: order.append(number))
    first.outcome.callback(None)
    assert order == list(range(MAX_WAITERS)), "each is told, in order"
    assert not slots.is_busy(SI)


def test_the_queue_is_bounded(slots: Slots) -> None:
    first = Operation()
    slots.run(SI, first)
    waiting = [slots.run(SI, lambda: succeed("in")) for _ in range(MAX_WAITERS)]
    assert isinstance(error_of(slots.run(SI, lambda: succeed("too many"))), Busy)
    assert now(slots.run(OTHER, lambda: succeed("elsewhere"))) == "elsewhere"
    first.outcome.callback(None)
    assert [now(result) for result in waiting] == ["in"] * MAX_WAITERS


def test_an_operation_may_ask_for_another_when_told(slots: Slots) -> None:
    nested: list[Any] = []
    first = Operation()
    one = slots.run(SI, first)
    one.addCallback(lambda _: nested.append(slots.run(SI, lambda: succeed("nested"))))
    first.outcome.callback(None)
    assert now(nested[0]) == "nested" and not slots.is_busy(SI)


def test_idle_is_when_nothing_runs_or_waits(slots: Slots) -> None:
    assert now(slots.when_idle()) is None
    first, second = Operation(), Operation()
    slots.run(SI, first)
    slots.run(SI, second)
    slots.run(OTHER, lambda: succeed(None))
    idle = slots.when_idle()
    first.outcome.callback(None)
    assert waits(idle)
    second.outcome.callback(None)
    assert now(idle) is None


# what is unsure


def test_nothing_unsure_costs_no_request(place: Place, slots: Slots) -> None:
    assert now(slots.settle(SI)) is None
    assert not place.client.requests


def test_a_write_that_came_through_is_found_by_head(place: Place, slots: Slots) -> None:
    share = place.add(b"old" * 100)
    stored = place.client.store("shares/aa/aaaqeayeaudaocajbifqydiob4/0", b"newer" * 100)
    slots.mark_unsure(*share)
    assert slots.is_unsure(SI)
    assert now(slots.settle(SI)) is None
    assert (place.row().size, place.row().etag, place.row().etag_is_sure) == (500, stored.etag, True)
    assert place.row().kind is None, "what was known of the old one is not the new one's"
    assert place.client.requests == {"HeadObject": 1} and not slots.is_unsure(SI)
    assert now(slots.settle(SI)) is None
    assert place.client.requests == {"HeadObject": 1}


def test_a_new_share_that_did_not_come_through_is_absent(place: Place, slots: Slots) -> None:
    slots.mark_unsure(SI, 5)
    assert now(slots.settle(SI)) is None
    assert place.index.shares(SI) == [] and place.client.requests == {"HeadObject": 1, "ListObjectsV2": 1}


def test_an_error_is_not_an_absence(place: Place, slots: Slots) -> None:
    place.add(b"share")
    slots.mark_unsure(SI, 0)
    before = place.row()
    for error in (Unavailable, AccessDenied):
        place.client.fail("HeadObject", error)
        assert isinstance(error_of(slots.settle(SI)), error)
        assert place.row() == before and slots.is_unsure(SI)
    assert now(slots.settle(SI)) is None and place.row().size == 5


@pytest.mark.parametrize("is_new", [True, False])
def test_a_share_is_not_given_up_for_one_404(place: Place, slots: Slots, is_new: bool) -> None:
    share = place.add(b"share", listed_etag="listed")
    if is_new:
        place.index.drop_share(*share)
    slots.mark_unsure(SI, 0)
    place.client.fail("HeadObject", NotFound)
    assert now(slots.settle(SI)) is None
    assert (place.row().size, place.row().etag, place.row().etag_is_sure) == (5, "listed", False)
    assert place.client.requests == {"HeadObject": 1, "ListObjectsV2": 1}


def test_a_listing_that_cannot_be_had_leaves_it_unsure(place: Place, slots: Slots) -> None:
    slots.mark_unsure(SI, 0)
    place.client.fail("ListObjectsV2", Unavailable)
    assert isinstance(error_of(slots.settle(SI)), Unavailable) and slots.is_unsure(SI)
    assert now(slots.settle(SI)) is None


def test_a_share_whose_neighbour_is_listed_is_still_absent(place: Place, slots: Slots) -> None:
    place.add(b"one", shnum=1)
    place.add(b"ten", shnum=10)
    slots.mark_unsure(SI, 1)
    del place.client.objects["shares/aa/aaaqeayeaudaocajbifqydiob4/1"]
    assert now(slots.settle(SI)) is None
    assert [row.shnum for row in place.index.shares(SI)] == [10]


def test_the_next_operation_waits_until_it_is_settled(place: Place, slots: Slots) -> None:
    slots.mark_unsure(SI, 0)
    held = place.client.hold("HeadObject")
    operation = Operation()
    result = slots.run(SI, operation)
    assert not operation.begun and len(held) == 1
    held.release()
    assert operation.begun and waits(result)
    operation.outcome.callback("done")
    assert now(result) == "done"


def test_an_operation_does_not_run_where_settling_failed(place: Place, slots: Slots) -> None:
    slots.mark_unsure(SI, 0)
    place.client.fail("HeadObject", Unavailable)
    operation = Operation()
    assert isinstance(error_of(slots.run(SI, operation)), Unavailable)
    assert not operation.begun and not slots.is_busy(SI)


def test_all_who_ask_share_one_look(place: Place, slots: Slots) -> None:
    slots.mark_unsure(SI, 0)
    held = place.client.hold("HeadObject")
    asking = [slots.settle(SI) for _ in range(5)]
    asking[0].addErrback(lambda _: None)
    asking[0].cancel()
    held.release()
    assert [now(one) for one in asking[1:]] == [None] * 4
    assert place.client.requests["HeadObject"] == 1


def test_a_share_that_becomes_unsure_meanwhile_is_settled_too(place: Place, slots: Slots) -> None:
    """A reader settles share 0 while a read-test-write that holds the lock comes to grief with share 1."""
    slots.mark_unsure(SI, 0)
    held = place.client.hold("HeadObject")
    reading = slots.settle(SI)
    slots.mark_unsure(SI, 1)
    begun = slots.run(SI, lambda: succeed(place.client.requests["HeadObject"]))
    held.release()
    assert now(reading) is None
    assert now(begun) == 2, "the next operation runs when nothing is unsure"
    assert not slots.is_unsure(SI)


def test_an_answer_from_before_a_write_is_not_believed(place: Place, slots: Slots) -> None:
    share = place.add(b"old")
    slots.mark_unsure(*share)
    held = place.client.hold("HeadObject", apply_first=True)
    settling = slots.settle(SI)
    place.client.store("shares/aa/aaaqeayeaudaocajbifqydiob4/0", b"written meanwhile")
    slots.mark_unsure(*share)
    held.release()
    assert now(settling) is None
    assert place.row().size == len(b"written meanwhile") and place.client.requests["HeadObject"] == 2


def test_generations_tell_that_a_share_was_written(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "MAX_GENERATIONS", 10)
    before = slots.generation(SI, 0)
    slots.changed(OTHER, 0)
    assert slots.generation(SI, 0) == before
    slots.changed(SI, 0)
    after = slots.generation(SI, 0)
    assert after != before
    for number in range(1, 30):
        slots.changed(OTHER, number)
    assert slots.generation(SI, 0) != before, "also where its count was forgotten"
