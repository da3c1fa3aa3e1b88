# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads: the request budget of each pattern, bytes handed on as they come, one version a read, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.common import UnknownImmutableContainerVersionError
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe_s3.client import Changed, NotFound, Unavailable
from tahoe_s3.store.index import IMMUTABLE
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.readahead import FIRST_WINDOW_BYTES, MAX_WINDOW_BYTES, SPLINTER_BYTES, Plan, tail_bytes
from tahoe_s3.store.reader import ShareReader
from tahoe_s3.store.versions import NOT_FOUND_DELAYS_S, ShareGone
from tahoe_s3.store.windows import HURRY_AFTER_S, ReadCache

from .helpers import KIB, MIB, SI, Place, error_of, immutable_object, mutable_object, now, pattern, waits

HEADER = 12


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.reads.close()
    assert made.client.window_bytes == 0, "windows were left open"


def reader(place: Place, shnum: int = 0) -> ShareReader:
    times: list[float] = []
    made = ShareReader(place.store, SI, shnum, on_read=times.append, advise=lambda reason: place.store.slots.settle(SI))
    made.times = times  # type: ignore[attr-defined]
    return made


# the budget: exact numbers of requests


def test_a_small_share_is_one_get_in_any_pattern(place: Place) -> None:
    data = immutable_object(pattern(1 * MIB - 84))
    assert len(data) == MIB
    share = place.add(data)
    for offset in (700_000, 5, MIB - 10, 0, 300_000):
        assert place.read(share, offset, 50_000) == data[offset : offset + 50_000]
    assert place.client.requests == {"GetObject": 1}
    assert place.client.ranges == [(share_key(*share), 0, MIB)]


def sequential_windows(size: int) -> int:
    """Windows of 256 KiB doubling to 8 MiB from the start of the object to its tail."""
    count, position, window = 0, 0, FIRST_WINDOW_BYTES
    while position + SPLINTER_BYTES < size - tail_bytes(size):
        count, position, window = count + 1, position + window, min(2 * window, MAX_WINDOW_BYTES)
    return count


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB, 40 * MIB + 12345])
def test_a_large_share_front_to_back_as_tahoe_reads_it(place: Place, size: int) -> None:
    """The first kilobyte, then hashes at the tail mixed with blocks in order."""
    data = pattern(size)
    share = place.add(data)
    assert place.read(share, HEADER, 1024) == data[HEADER : HEADER + 1024]
    assert place.read(share, size - 5000, 600) == data[size - 5000 : size - 4400]
    block = 349_526
    for number, start in enumerate(range(HEADER + 36, size - 200_000, block)):
        end = min(start + block, size - 200_000)
        assert place.read(share, start, end - start) == data[start:end]
        hashes = size - 190_000 + 64 * number
        assert place.read(share, hashes, 64) == data[hashes : hashes + 64]
    assert place.client.requests == {"GetObject": 1 + sequential_windows(size)}
    spans = sorted((start, start + length) for _, start, length in place.client.ranges)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert all(before[1] == after[0] for before, after in zip(spans, spans[1:])), "a gap or an overlap"


def test_windows_double_from_256_kib_to_8_mib(place: Place) -> None:
    size = 40 * MIB
    share = place.add(pattern(size))
    for offset in range(0, size, 64 * KIB):
        place.read(share, offset, 64 * KIB)
    lengths = [length for _, _, length in sorted(place.client.ranges)]
    assert lengths[:6] == [256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB]
    assert set(lengths[6:-1]) == {8 * MIB}
    assert place.store.reads.stats()["ahead"] >= len(lengths) - 2


def test_random_reads_cost_one_get_each_of_at_least_256_kib(place: Place) -> None:
    share = place.add(pattern(64 * MIB))
    for offset in (30 * MIB, 10 * MIB, 50 * MIB, 20 * MIB):
        place.read(share, offset, 1000)
    assert [(start, length) for _, start, length in place.client.ranges] == [
        (30 * MIB, 256 * KIB), (10 * MIB, 256 * KIB), (50 * MIB, 256 * KIB), (20 * MIB, 256 * KIB)
    ]  # fmt: skip
    place.read(share, 40 * MIB, 700 * KIB)
    assert place.client.ranges[-1][1:] == (40 * MIB, 700 * KIB)


def test_nearby_ranges_are_coalesced(place: Place) -> None:
    data = pattern(64 * MIB)
    share = place.add(data)
    for offset in range(10 * MIB, 30 * MIB, 600 * KIB):
        assert place.read(share, offset, 100 * KIB) == data[offset : offset + 100 * KIB]
    assert place.gets < 10


def test_the_whole_object_at_once(place: Place) -> None:
    data = pattern(20 * MIB)
    share = place.add(data)
    assert place.read(share, 0, 2**40) == data
    assert place.gets <= 4


def test_nothing_is_asked_for_where_nothing_is(place: Place) -> None:
    share = place.add(b"abc")
    assert place.read(share, 3, 10) == b""
    assert place.read(share, 0, 0) == b""
    assert place.read(place.add(b"", shnum=1), 0, 100) == b""
    assert place.gets == 0


def test_concurrent_reads_of_one_range_share_one_get(place: Place) -> None:
    data = pattern(10 * MIB)
    share = place.add(data)
    held = place.client.hold("GetObject")
    reads = [place.store.reads.read(share, 0, 1000 + number) for number in range(20)]
    assert place.gets == 1
    held.release()
    assert [now(read) for read in reads] == [data[: 1000 + number] for number in range(20)]


# bytes as they arrive


def test_bytes_are_handed_on_before_the_window_is_complete(place: Place) -> None:
    data = pattern(10 * MIB)
    share = place.add(data)
    held = place.client.hold("GetObject")
    first, second = place.store.reads.read(share, 0, 1000), place.store.reads.read(share, 5000, 1000)
    held.feed(999)
    assert waits(first)
    held.feed(1)
    assert now(first) == data[:1000] and waits(second)
    held.release()
    assert now(second) == data[5000:6000]


def test_priorities(place: Place) -> None:
    share = place.add(pattern(20 * MIB))
    for offset in range(0, 2 * MIB, 64 * KIB):
        place.read(share, offset, 64 * KIB)
    assert place.client.priorities[0] == 0
    assert 2 in place.client.priorities
    assert set(place.client.priorities) == {0, 2}


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_read_is_not_queued_behind_what_was_fetched_ahead(place: Place, has_begun: bool) -> None:
    data = pattern(20 * MIB)
    share = place.add(data)
    place.read(share, 0, 64 * KIB)
    held = place.client.hold("GetObject")
    place.read(share, 64 * KIB, 192 * KIB)
    assert place.client.priorities == [0, 2] and len(held) == 1
    if has_begun:
        held.feed(1)
    reading = place.store.reads.read(share, 256 * KIB, 1000)
    place.clock.advance(HURRY_AFTER_S)
    assert waits(reading)
    assert place.client.priorities == ([0, 2] if has_begun else [0, 2, 0])
    assert len(held) == 1, "the request that came late was given up"
    held.release()
    assert now(reading) == data[256 * KIB :][:1000]
    assert place.clock.getDelayedCalls() == []


def test_a_reader_who_gives_up_does_not_disturb_another(place: Place) -> None:
    data = pattern(10 * MIB)
    share = place.add(data)
    held = place.client.hold("GetObject")
    leaver, stayer = place.store.reads.read(share, 0, 1000), place.store.reads.read(share, 0, 1000)
    leaver.cancel()
    error_of(leaver)
    held.release()
    assert now(stayer) == data[:1000] and place.gets == 1


# failures


def test_an_error_passes_and_the_next_read_asks_again(place: Place) -> None:
    share = place.add(b"x" * 5000)
    place.client.fail("GetObject", Unavailable, after_bytes=100)
    assert isinstance(error_of(place.store.reads.read(share, 0, 5000)), Unavailable)
    assert place.read(share, 0, 5000) == b"x" * 5000
    place.store.reads.forget(share)
    held = place.client.hold("GetObject")
    early, late = place.store.reads.read(share, 0, 4000), place.store.reads.read(share, 0, 5000)
    held.feed(4000)
    held.fail(Unavailable)
    assert now(early) == b"x" * 4000, "what had arrived before is good"
    assert isinstance(error_of(late), Unavailable)


def test_a_failed_read_ahead_disturbs_nobody(place: Place) -> None:
    data = pattern(20 * MIB)
    share = place.add(data)
    place.read(share, 0, 64 * KIB)
    place.client.fail("GetObject", Unavailable)
    for offset in range(64 * KIB, 4 * MIB, 64 * KIB):
        assert place.read(share, offset, 64 * KIB) == data[offset : offset + 64 * KIB]


def test_a_404_is_asked_again_then_an_error_and_never_an_absence(place: Place) -> None:
    share = place.add(b"x" * 5000)
    gone = place.client.objects.pop(share_key(*share))
    read = place.store.reads.read(share, 0, 10)
    assert waits(read)
    place.clock.advance(NOT_FOUND_DELAYS_S[0])
    place.client.objects[share_key(*share)] = gone
    place.clock.advance(NOT_FOUND_DELAYS_S[1])
    assert now(read) == b"x" * 10
    place.store.reads.forget(share)
    del place.client.objects[share_key(*share)]
    read = place.store.reads.read(share, 0, 10)
    for delay_s in NOT_FOUND_DELAYS_S:
        place.clock.advance(delay_s)
    assert isinstance(error_of(read), NotFound)
    assert place.row().size == 5000, "it stays in the index"


def test_a_share_that_is_not_in_the_index(place: Place) -> None:
    assert isinstance(error_of(place.store.reads.read(ShareId(SI, 5), 0, 10)), ShareGone)
    assert place.gets == 0


# versions


def test_another_object_of_the_same_length_is_read_afresh(place: Place) -> None:
    share = place.add(pattern(5 * MIB, seed=1))
    place.read(share, 0, 1000)
    other = pattern(5 * MIB, seed=2)
    place.client.store(share_key(*share), other)
    assert place.read(share, 2 * MIB, 1000) == other[2 * MIB : 2 * MIB + 1000]
    assert place.client.requests["HeadObject"] == 1
    assert place.read(share, 0, 1000) == other[:1000]
    assert place.row().etag == place.client.objects[share_key(*share)].etag


def test_a_read_never_mixes_versions(place: Place) -> None:
    share = place.add(pattern(5 * MIB, seed=1))
    other = pattern(5 * MIB, seed=2)
    place.read(share, 0, 1000)
    held = place.client.hold("GetObject")
    read = place.store.reads.read(share, 0, MIB)
    assert waits(read), "the first 256 KiB are there, of the old version"
    place.client.store(share_key(*share), other)
    held.release()
    assert now(read) == other[:MIB]


def test_an_object_that_became_shorter(place: Place) -> None:
    share = place.add(pattern(5 * MIB))
    place.read(share, 0, 1000)
    place.client.store(share_key(*share), b"y" * (2 * MIB))
    assert place.read(share, 4 * MIB, 1000) == b""
    assert place.row().size == 2 * MIB
    assert place.read(share, 0, 10) == b"y" * 10


def test_an_object_that_changes_all_the_time_is_an_error(place: Place) -> None:
    share = place.add(pattern(5 * MIB))
    place.client.fail("GetObject", Changed, times=100)
    assert isinstance(error_of(place.store.reads.read(share, 0, 10)), Changed)
    assert place.gets == 4


@pytest.mark.parametrize("size", [5000, 5 * MIB])
def test_a_listings_etag_is_a_hint(place: Place, size: int) -> None:
    """The first answer's ETag is taken, however the listing spelled it, and nothing is used before it is known."""
    data = pattern(size)
    share = place.add(data, sure=False, listed_etag="as-a-listing-spells-it")
    held = place.client.hold("GetObject")
    reads = [place.store.reads.read(share, 0, 1000), place.store.reads.read(share, size - 2000, 1000)]
    held.feed(1000)
    assert place.gets == 1 and all(waits(read) for read in reads)
    held.release()
    assert [now(read) for read in reads] == [data[:1000], data[size - 2000 : size - 1000]]
    row = place.row()
    assert row.etag_is_sure and row.etag == place.client.objects[share_key(*share)].etag
    assert place.client.requests == {"GetObject": 1 if size < MIB else 2}


def test_a_listing_with_an_old_size(place: Place) -> None:
    share = place.add(b"old" * 1000, sure=False)
    place.client.store(share_key(*share), b"new!" * 1000)
    assert place.read(share, 2999, 10) == (b"new!" * 1000)[2999:3009]
    assert place.row().size == 4000


def test_a_write_here_while_a_read_is_under_way(place: Place) -> None:
    """The read starts over and is of the new version; nothing of the old one stays."""
    share = place.add(pattern(12 * MIB, seed=1))
    place.read(share, 0, 1000)
    held = place.client.hold("GetObject")
    read = place.store.reads.read(share, 0, 12 * MIB)
    held.release(1)
    data = pattern(12 * MIB, seed=3)
    place.add(data)
    place.store.share_changed(*share)
    held.release()
    assert now(read) == data


def test_a_changed_object_is_looked_at_under_the_lock(place: Place) -> None:
    """While a write of ours is under way its outcome is waited for, not guessed."""
    share = place.add(pattern(5 * MIB, seed=1))
    held = place.client.hold("PutObject")
    writing = place.store.slots.run(SI, lambda: place.client.put(share_key(*share), b"never mind"))
    data = pattern(4 * MIB, seed=5)
    place.client.store(share_key(*share), data)
    read = place.store.reads.read(share, 0, 1000)
    assert waits(read) and place.client.requests["HeadObject"] == 0
    held.fail(Unavailable)
    error_of(writing)
    assert now(read) == data[:1000]


# memory


def test_the_budget_holds_and_idle_windows_go_least_recently_used_first(tmp_path: Path) -> None:
    place = Place(tmp_path)
    reads = ReadCache(
        place.client.as_client(), place.index, place.store.slots, reactor=place.clock,
        on_vanished=place.store.vanished, budget_bytes=2 * MIB,
    )  # fmt: skip
    shares = [place.add(pattern(400 * KIB, seed=number), shnum=number) for number in range(12)]
    for share in shares:
        now(reads.read(share, 0, 10))
        now(reads.read(shares[0], 5, 10))
        assert place.client.window_bytes <= 2 * MIB
    assert place.gets == 12, "what is used again and again stays"
    now(reads.read(shares[1], 0, 10))
    assert place.gets == 13
    reads.close()
    assert place.client.window_bytes == 0


def test_many_sequential_readers_do_not_push_each_other_out(tmp_path: Path) -> None:
    place = Place(tmp_path)
    size, count = 6 * MIB, 16
    shares = [place.add(pattern(size, seed=number), shnum=number) for number in range(count)]
    reads = ReadCache(
        place.client.as_client(), place.index, place.store.slots, reactor=place.clock,
        on_vanished=place.store.vanished, budget_bytes=24 * MIB,
    )  # fmt: skip
    for offset in range(0, size, 128 * KIB):
        for number, share in enumerate(shares):
            assert now(reads.read(share, offset, 128 * KIB)) == pattern(size, seed=number)[offset : offset + 128 * KIB]
    fetched = sum(length for _, _, length in place.client.ranges)
    assert fetched < 1.2 * size * count, "windows were fetched again and again"
    reads.close()


def test_memory_that_the_engine_wants_is_given_back(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.client.budget_bytes = 3 * MIB
    first = place.add(pattern(MIB), shnum=0)
    second = place.add(pattern(MIB), shnum=1)
    third = place.add(pattern(4 * MIB), shnum=2)
    place.read(first, 0, 10)
    place.read(second, 0, 10)
    assert place.read(third, 0, 2 * MIB) == pattern(4 * MIB)[: 2 * MIB]
    assert place.client.window_bytes <= 3 * MIB


@given(st.integers(1, 30 * MIB), st.lists(st.tuples(st.integers(0, 30 * MIB), st.integers(1, 3 * MIB)), max_size=30))
def test_planned_ranges_never_overlap_and_cover_what_is_read(size: int, accesses: list[tuple[int, int]]) -> None:
    plan = Plan(size)
    fetched: list[tuple[int, int]] = []
    for offset, length in accesses:
        position, end = min(offset, size), min(offset + length, size)
        while position < end:
            covering = plan.covers(position)
            if covering is None:
                chosen = plan.choose(position, end)
                assert chosen.start <= position < chosen.stop <= size
                assert chosen.stop - chosen.start <= MAX_WINDOW_BYTES + 4 * MIB
                plan.took(chosen)
                fetched.append((chosen.start, chosen.stop))
                covering = plan.covers(position)
            assert covering is not None
            position = covering[1]
    fetched.sort()
    assert all(before[1] <= after[0] for before, after in zip(fetched, fetched[1:]))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6 * MIB), st.integers(0, 2 * MIB)), max_size=25), st.booleans())
def test_any_reads_give_the_bytes(tmp_path_factory: Any, accesses: list[tuple[int, int]], sure: bool) -> None:
    place = Place(tmp_path_factory.mktemp("place"))
    data = pattern(5 * MIB + 77)
    share = place.add(data, sure=sure)
    for offset, length in accesses:
        assert place.read(share, offset, length) == data[offset : offset + length]
    place.index.close()


# share readers


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 50_000, 3 * MIB])
def test_a_reader_gives_the_data_and_not_the_container(place: Place, version: int, size: int) -> None:
    data = pattern(size)
    place.add(immutable_object(data, leases=3, version=version))
    share = reader(place)
    assert now(share.read(0, 1024)) == data[:1024]
    assert now(share.read(0, size + 1000)) == data
    assert now(share.read(max(0, size - 5), 100)) == data[-5:]
    assert now(share.read(size, 10)) == now(share.read(size + 100, 10)) == b""
    assert now(share.get_length()) == size
    row = place.row()
    assert (row.kind, row.data_length) == (IMMUTABLE, size)
    assert len(share.times) == 5  # type: ignore[attr-defined]


def test_an_unknown_containers_header_comes_with_the_first_read(place: Place) -> None:
    place.add(immutable_object(pattern(3 * MIB)), sure=False)
    assert now(reader(place).read(0, 1024)) == pattern(3 * MIB)[:1024]
    assert place.client.requests == {"GetObject": 1}


def test_a_known_container_costs_no_request_to_learn_its_length(place: Place) -> None:
    place.add(immutable_object(pattern(3000)))
    now(reader(place).get_length())
    place.client.forget_requests()
    assert now(reader(place).get_length()) == 3000
    assert place.client.requests == {}


def test_negative_offsets_fail_as_in_tahoe(place: Place) -> None:
    place.add(immutable_object(b"data"))
    assert isinstance(error_of(reader(place).read(-1, 5)), AssertionError)


def test_a_mutable_share_raises_as_tahoe_does(place: Place) -> None:
    place.add(mutable_object(b"data"))
    for _ in range(2):
        assert isinstance(error_of(reader(place).read(0, 5)), UnknownImmutableContainerVersionError)
        assert isinstance(error_of(reader(place).get_length()), UnknownImmutableContainerVersionError)


def test_a_share_that_was_replaced_by_a_shorter_one(place: Place) -> None:
    place.add(immutable_object(b"a" * 9000))
    share = reader(place)
    assert now(share.read(0, 10)) == b"a" * 10
    place.client.store(share_key(SI, 0), immutable_object(b"b" * 500))
    place.store.reads.forget(ShareId(SI, 0))
    assert now(share.read(0, 9000)) == b"b" * 500
    assert now(share.get_length()) == 500


def test_a_deleted_share(place: Place) -> None:
    place.add(immutable_object(b"data"))
    share = reader(place)
    place.index.drop_share(SI, 0)
    assert isinstance(error_of(share.read(0, 5)), KeyError)


def test_what_is_unsure_is_settled_before_a_read(place: Place) -> None:
    place.add(immutable_object(b"old data"))
    place.client.store(share_key(SI, 0), immutable_object(b"new data"))
    place.store.slots.mark_unsure(SI, 0)
    place.client.fail("HeadObject", Unavailable)
    assert isinstance(error_of(reader(place).read(0, 8)), Unavailable)
    assert now(reader(place).read(0, 8)) == b"new data"
