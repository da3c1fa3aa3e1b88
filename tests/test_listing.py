# SPDX-License-Identifier: GPL-2.0-or-later
"""Listing by ranges against a model: every key once, in order, whatever the keys and the service's habits."""
from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from tahoe_s3 import listing
from tahoe_s3._native import Entry, Page
from tahoe_s3.client import AccessDenied, BadReply, Cancelled, S3Client, S3Error, Unavailable
from tahoe_s3.listing import LANES, WAITING_PAGES, WASTE_SHARE
from tahoe_s3.splits import Splits, order
from tahoe_s3.store.keys import KeySplits, si_text

from .support.habits import HabitServer
from .support.services import Service
from .test_client import opened
from .test_client_faults import outcome_of
from .test_client_services import connect

DELAY_S = 0.05


@dataclass
class Habits:
    """What this service does that others do not.

    start_after: "" as Amazon does; "ignored"; "known" (ignored unless there is such a key: rclone); "empty" (finds
    nothing); "refused". overlap: how many entries of the page before a page repeats. short: pages may have fewer keys
    than allowed, and none. by_time: listings are in no order of keys. circle: the n-th page is the first again.
    one_page: tokens are not looked at; but for a service that goes in circles they are new each time.
    """

    start_after: str = ""
    overlap: int = 0
    short: bool = False
    by_time: bool = False
    circle: int = 0
    one_page: bool = False


class Bucket:
    """A service's list_page on a clock. `held`: how many pages it gave that the caller has not been handed."""

    def __init__(self, keys: Sequence[str], *, page: int = 1000, habits: Habits | None = None, seed: int = 0) -> None:
        self.clock = Clock()
        self.habits = habits or Habits()
        self.page = page
        self.random = random.Random(seed)
        self.keys = sorted(keys, key=order)
        self.shown = list(self.keys)
        if self.habits.by_time:
            self.random.shuffle(self.shown)
        self.orders = [order(key) for key in self.keys]
        self.requests = 0
        self.in_flight = self.most_in_flight = 0
        self.waiting_keys = self.most_waiting_keys = 0
        self.fail: Callable[[int], S3Error | None] = lambda number: None
        self.cancelled = 0

    def list_page(
        self, prefix: str, *, token: str | None = None, start_after: str | None = None, priority: int = 1,
        deadline_s: float | None = None,
    ) -> Deferred[Page]:
        number, self.requests = self.requests, self.requests + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

        def cancelled(d: Deferred[Page]) -> None:
            timer.cancel()
            self.in_flight -= 1
            self.cancelled += 1
            d.errback(Cancelled("cancelled"))

        def answer() -> None:
            self.in_flight -= 1
            error = self.fail(number)
            if error is None and start_after is not None and self.habits.start_after == "refused":
                error = S3Error("no", status=501, code="NotImplemented")
            if error is not None:
                d.errback(Failure(error))
                return
            page = self._page(token, start_after, number)
            self.waiting_keys += len(page.entries)
            self.most_waiting_keys = max(self.most_waiting_keys, self.waiting_keys)
            d.callback(page)

        d: Deferred[Page] = Deferred(cancelled)
        timer = self.clock.callLater(DELAY_S * self.random.uniform(0.5, 1.5), answer)
        return d

    def _page(self, token: str | None, start_after: str | None, number: int) -> Page:
        habits = self.habits
        first = 0
        if token is not None and not habits.one_page:
            first = self._place_of(token.rpartition("-")[0])
        elif token is None and start_after is not None:
            first = self._first_behind(start_after)
        if habits.circle and number % habits.circle == habits.circle - 1:
            first = 0
        size = self.random.choice([0, 1, self.page]) if habits.short else self.page
        shown = self.shown
        end = min(len(shown), first + size)
        begin = max(0, first - habits.overlap) if token is not None else first
        found = sorted(shown[begin:end], key=order)
        last = str(end) if habits.by_time else shown[end - 1] if end else ""
        more = f"{last}-{0 if habits.circle else number}" if end < len(shown) else None
        return Page([Entry(key, len(key), "e", 7, "") for key in found], [], more, False)

    def _place_of(self, last: str) -> int:
        return int(last) if self.habits.by_time else bisect_right(self.orders, order(last)) if last else 0

    def _first_behind(self, start_after: str) -> int:
        """A service that does not sort starts behind the place of that key, if it has it."""
        start_after.encode("utf-8")  # what is sent must be text
        habit = self.habits.start_after
        place = bisect_right(self.orders, order(start_after))
        if habit == "ignored" or (habit == "known" and start_after not in self.keys):
            return 0
        if habit == "empty":
            return len(self.keys)
        if self.habits.by_time:
            return self.shown.index(start_after) + 1 if start_after in self.keys else 0
        return place


@dataclass
class Run:
    """One listing and what came of it. `slow`: seconds that on_page takes for a page."""

    bucket: Bucket
    splits: Splits = ()
    after: str = ""
    slow: float = 0.0
    keys: list[str] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def start(self) -> Deferred[Any]:
        d = listing.list_all(self.bucket, "", self._on_page, after=self.after, splits=self.splits)
        d.addBoth(self.results.append)
        return d

    def _on_page(self, page: Page) -> Deferred[Any] | None:
        self.keys += [entry.key for entry in page.entries]
        self.pages.append(len(page.entries))
        self.bucket.waiting_keys -= len(page.entries)
        if not self.slow:
            return None
        done: Deferred[Any] = Deferred(lambda _: None)
        self.bucket.clock.callLater(self.slow, lambda: None if done.called else done.callback(None))
        return done

    def finish(self, *, most_requests: int = 20_000) -> Any:
        """The result; the clock runs until it is there."""
        self.start()
        clock = self.bucket.clock
        while not self.results:
            assert clock.getDelayedCalls(), f"it stands still after {self.bucket.requests} requests"
            assert self.bucket.requests < most_requests
            clock.advance(max(0.0, min(call.getTime() for call in clock.getDelayedCalls()) - clock.seconds()))
        return self.results[0]


def share_keys(count: int, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    names = [si_text(chance.randbytes(16)) for _ in range(count)]
    return [f"shares/{name[:2]}/{name}/{chance.randrange(3)}" for name in names]


# any keys, any habit

PIECES = st.sampled_from(["a", "b", "0", "9", "z", "/", "shares/", "shares/aa/aa", "é", "ß", "\uffff", "\U00010000",
                          "\U0001f4a9", "long common beginning/", "\x1f", "~", "+ %", "\udcff", "\udc80", "\ufffc"])
KEYS = st.lists(st.lists(PIECES, min_size=1, max_size=6).map("".join), max_size=80, unique_by=order)


@st.composite
def buckets(draw: st.DrawFn) -> tuple[list[str], int]:
    """Keys, and how many a page has: odd ones, or many behind beginnings of very different weight."""
    if draw(st.booleans()):
        return draw(KEYS), draw(st.integers(1, 5))
    seed, count = draw(st.integers(0, 2**32)), draw(st.integers(0, 1500))
    chance = random.Random(seed)
    starts = [draw(st.sampled_from(["", "shares/", "x" * 300, "é/", "\U0001f4a9"])) for _ in range(3)]
    alphabet = draw(st.sampled_from(["01", "0123456789abcdef", "aäöz\uffff\U00010000", "/ab"]))
    skew = draw(st.integers(1, 40))
    keys = {
        starts[0 if chance.randrange(skew) else chance.randrange(3)] + "".join(chance.choices(alphabet, k=12))
        for _ in range(count)
    }
    return sorted(keys), draw(st.sampled_from([2, 7, 20, 100, 1000]))


HABITS = st.builds(Habits, start_after=st.sampled_from(["", "", "ignored", "known", "empty", "refused"]),
                   overlap=st.sampled_from([0, 0, 1, 3]), short=st.booleans())


@st.composite
def hints(draw: st.DrawFn, keys: list[str]) -> Splits:
    kind = draw(st.sampled_from(["none", "shares", "own", "wrong"]))
    if kind == "own":
        return sorted(draw(st.lists(st.sampled_from(keys), max_size=30))) if keys else []
    return {"none": (), "shares": KeySplits(), "wrong": ["b", "shares/", "z"]}[kind]


@settings(max_examples=100)
@given(st.data(), buckets(), HABITS, st.integers(0, 1000), st.sampled_from([0.0, 0.0, 0.01, 0.2]))
def test_every_key_comes_once_and_in_order(
    data: st.DataObject, made: tuple[list[str], int], habits: Habits, seed: int, slow: float,
) -> None:
    keys, page = made
    bucket = Bucket(keys, page=page, habits=habits, seed=seed)
    after = data.draw(st.one_of(st.just(""), KEYS.map(lambda found: found[0] if found else "")))
    if not after.isprintable() or habits.start_after == "empty":
        after = ""  # nobody could tell, if nothing has come before that should have come
    run = Run(bucket, splits=data.draw(hints(keys)), after=after, slow=slow)
    expected = [key for key in bucket.keys if order(key) > order(after)]
    assert run.finish() == len(expected)
    assert run.keys == expected
    assert 0 not in run.pages
    assert bucket.in_flight == 0
    assert bucket.most_in_flight <= LANES
    if not habits.short:
        useful = -(-len(keys) // page)
        repeats = 1 + habits.overlap if page > 3 else 4 * (1 + habits.overlap)
        assert bucket.requests <= (useful * (1 + WASTE_SHARE) + LANES + 8) * repeats


@settings(max_examples=60)
@given(buckets(), st.integers(0, 1000), st.integers(0, 1000))
def test_a_service_that_does_not_sort_loses_nothing(made: tuple[list[str], int], seed: int, prefix: int) -> None:
    keys, page = made
    run = Run(Bucket(keys, page=page, habits=Habits(by_time=True), seed=seed))
    run.finish()
    assert sorted(run.keys, key=order) == run.bucket.keys


@settings(max_examples=60)
@given(buckets(), st.sampled_from([0, 2, 3, 9]), st.booleans(), st.integers(0, 1000))
def test_a_service_that_goes_in_circles_is_left(
    made: tuple[list[str], int], circle: int, one_page: bool, seed: int,
) -> None:
    """Tokens that lead back, or nowhere: an error or the whole, and an end in any case; never a part as the whole."""
    keys, page = made
    bucket = Bucket(keys, page=page, habits=Habits(circle=circle, one_page=one_page or not circle),
                    seed=seed)
    run = Run(bucket)
    result = run.finish()
    if isinstance(result, Failure):
        assert result.check(BadReply)
    else:
        assert sorted(set(run.keys), key=order) == bucket.keys
    assert bucket.requests < 4 * len(keys) + 100


# shares


def test_a_bucket_of_shares_is_listed_many_pages_at_a_time() -> None:
    bucket = Bucket([*share_keys(60_000), "owner.json"], page=200)
    run = Run(bucket, splits=KeySplits())
    assert run.finish() == 60_001
    assert run.keys == bucket.keys
    pages = len(bucket.keys) / bucket.page
    assert bucket.requests <= pages * (1 + WASTE_SHARE) + 8
    assert bucket.clock.seconds() < pages * DELAY_S / 6


@pytest.mark.parametrize("shape", ["numbers", "hex", "skewed", "leases first", "one long beginning", "not ASCII"])
def test_other_keys_too(shape: str) -> None:
    """Without any hint, or with hints that fit badly."""
    chance = random.Random(5)
    names = [f"{chance.getrandbits(64):016x}" for _ in range(30_000)]
    keys = {
        "numbers": [f"{number:09d}" for number in range(30_000)],
        "hex": names,
        "skewed": [name if number % 100 == 0 else f"k/{name}" for number, name in enumerate(names)],
        "leases first": share_keys(25_000) + [f"leases/{name[7:36]}" for name in share_keys(5_000)],
        "one long beginning": ["deep/" * 40 + name for name in names],
        "not ASCII": ["é/" + "".join(chance.choices("aåäöß\U0001f4a9", k=9)) for _ in range(30_000)],
    }[shape]
    bucket = Bucket(list(set(keys)), page=100)
    run = Run(bucket, splits=KeySplits() if shape == "leases first" else ())
    run.finish()
    assert run.keys == bucket.keys
    pages = len(bucket.keys) / bucket.page
    assert bucket.clock.seconds() < pages * DELAY_S / 4
    assert bucket.requests <= pages * (1 + WASTE_SHARE) + LANES + 8


@pytest.mark.parametrize(("count", "requests"), [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (2500, 3), (6500, 7)])
def test_a_small_bucket_costs_no_request_more(count: int, requests: int) -> None:
    run = Run(Bucket(share_keys(count)), splits=KeySplits())
    assert run.finish() == count
    assert run.bucket.requests == requests


@pytest.mark.parametrize("slow", [0.0, 0.1, 5.0])
def test_memory_is_bounded(slow: float) -> None:
    """Of pages that came, few have not been handed on, however slow on_page is."""
    bucket = Bucket(share_keys(40_000), page=100)
    run = Run(bucket, splits=KeySplits(), slow=slow)
    assert run.finish() == 40_000
    # Besides what waits: the page that has just come, and the parts of pages behind a range's end.
    assert bucket.most_waiting_keys <= (WAITING_PAGES + 5) * bucket.page * (1 + WASTE_SHARE) + LANES * bucket.page


def test_hints_are_in_order() -> None:
    splits = KeySplits()
    some = [*range(0, len(splits), 4099), len(splits) - 1]
    found = [splits[index] for index in some]
    assert found == sorted(set(found))
    assert (splits[0], splits[len(splits) - 1]) == ("leases/22/2222", "shares/zz/zzzz")
    for index in (-1, len(splits)):
        with pytest.raises(IndexError):
            splits[index]


# errors


def failing_at(number: int, error: S3Error) -> Callable[[int], S3Error | None]:
    return lambda found: error if found == number else None


@pytest.mark.parametrize("number", [0, 1, 2, 5, 30, 31, 60, 100, 101, 500])
def test_a_page_that_fails_fails_all(number: int) -> None:
    bucket = Bucket(share_keys(20_000), page=200)
    bucket.fail = failing_at(number, Unavailable("no answer", kind="timeout"))
    run = Run(bucket, splits=KeySplits())
    result = run.finish()
    if number >= bucket.requests:
        assert result == 20_000
        return
    assert isinstance(result, Failure)
    assert result.check(Unavailable)
    assert bucket.in_flight == 0
    assert run.keys == bucket.keys[: len(run.keys)]
    count = len(run.keys)
    bucket.clock.advance(100)
    assert len(run.keys) == count


@pytest.mark.parametrize("slow", [0.0, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 7, 20, 60])
def test_cancelling_stops_all(steps: int, slow: float) -> None:
    bucket = Bucket(share_keys(20_000), page=200)
    run = Run(bucket, splits=KeySplits(), slow=slow)
    d = run.start()
    for _ in range(steps):
        bucket.clock.advance(DELAY_S / 4)
    d.cancel()
    assert run.results[0].check(Cancelled)
    assert bucket.in_flight == 0
    count = len(run.keys)
    for _ in range(100):
        bucket.clock.advance(1)
    assert len(run.keys) == count


@pytest.mark.parametrize("page", [0, 1, 30])
@pytest.mark.parametrize("later", [False, True])
def test_an_exception_of_the_caller_ends_it(page: int, later: bool) -> None:
    bucket = Bucket(share_keys(20_000), page=200)
    pages: list[Page] = []
    results: list[Any] = []

    def on_page(found: Page) -> Deferred[Any] | None:
        pages.append(found)
        if len(pages) <= page:
            return None
        if not later:
            raise KeyError("the caller's")
        broken: Deferred[Any] = Deferred()
        bucket.clock.callLater(1, broken.errback, KeyError("the caller's"))
        return broken

    listing.list_all(bucket, "", on_page, splits=KeySplits()).addBoth(results.append)
    for _ in range(1000):
        bucket.clock.advance(DELAY_S / 4)
    assert results[0].check(KeyError)
    assert len(pages) == page + 1
    assert bucket.in_flight == 0


def test_a_caller_that_cancels_while_it_is_handed_a_page() -> None:
    bucket = Bucket(share_keys(20_000), page=200)
    results: list[Any] = []
    pages: list[Page] = []

    def on_page(page: Page) -> None:
        pages.append(page)
        if len(pages) == 20:
            d.cancel()

    d = listing.list_all(bucket, "", on_page, splits=KeySplits())
    d.addBoth(results.append)
    for _ in range(1000):
        bucket.clock.advance(DELAY_S / 4)
    assert results[0].check(Cancelled)
    assert len(pages) == 20
    assert bucket.in_flight == 0


# while objects come and go


# In these the one key that a range saw behind its end is deleted before the next range is asked.
@settings(max_examples=15)
@example(517)
@example(574)
@given(st.integers(0, 10_000))
def test_what_was_there_all_the_time_is_listed(seed: int) -> None:
    """Objects that come and go meanwhile may be shown or not; no other key is lost for them, and a range that is
    doubted for them does not make a chain of the whole listing. (The times are the clock's.)"""
    chance = random.Random(seed)
    bucket = Bucket(share_keys(8000, seed), page=40, seed=seed)
    lasting = set(bucket.keys[::2])
    run = Run(bucket, splits=KeySplits())
    run.start()
    while not run.results:
        bucket.clock.advance(DELAY_S / 4)
        for key in [*chance.sample(bucket.keys, 5), *share_keys(3, chance.getrandbits(30))]:
            place = bisect_right(bucket.orders, order(key))
            if place and bucket.keys[place - 1] == key and key not in lasting:
                del bucket.keys[place - 1], bucket.orders[place - 1]
            elif key not in lasting:
                bucket.keys.insert(place, key)
                bucket.orders.insert(place, order(key))
        bucket.shown = bucket.keys
    assert isinstance(run.results[0], int)
    assert lasting <= set(run.keys)
    assert run.keys == sorted(set(run.keys), key=order)
    assert bucket.clock.seconds() < 200 * DELAY_S / 2, "it went page after page"


# over the wire


class Paged:
    """A client's list_page with smaller pages; counts the requests, and those by start-after."""

    def __init__(self, client: S3Client, page: int) -> None:
        self.client = client
        self.page = page
        self.requests = self.ranges = 0

    def list_page(self, prefix: str, *, start_after: str | None = None, **options: Any) -> Deferred[Page]:
        self.requests += 1
        self.ranges += start_after is not None
        return self.client.list_page(prefix, start_after=start_after, max_keys=self.page, **options)


async def collected(pages: Paged, **options: Any) -> list[str]:
    found: list[str] = []

    def on_page(page: Page) -> None:
        found.extend(entry.key for entry in page.entries)

    assert await listing.list_all(pages, "", on_page, **options) == len(found)
    return found


async def listed(client: S3Client, prefix: str = "", **options: Any) -> list[str]:
    found: list[str] = []

    def on_page(page: Page) -> None:
        found.extend(entry.key for entry in page.entries)

    await client.list_all(prefix, on_page, **options)
    return found


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
@ensureDeferred
async def test_over_http(version: int, shuffled: bool) -> None:
    """By ranges, by token and by marker, with a prefix of the client's own, keys of others around it."""
    from twisted.internet import reactor

    server = HabitServer(reactor, min_part_bytes=1)
    server.start()
    server.settings.list_v2, server.settings.page_size, server.bucket.shuffled = version == 2, 20, shuffled
    keys = share_keys(1500) + [f"é {number} +%&/\U0001f4a9" for number in range(300)]
    for key in [*(f"here/{key}" for key in keys), "a", "herd", "here0", "z"]:
        server.bucket.put(key, b"", now_s=1.0)
    client = opened(server.url, prefix="here/")
    keys.sort(key=order)
    assert await listed(client, splits=KeySplits()) == keys
    assert await listed(client, "shares/") == [key for key in keys if key.startswith("shares/")]
    assert await listed(client, after=keys[700]) == keys[701:]
    assert any("start-after=" in seen.uri or "marker=here%2Fshares" in seen.uri for seen in server.log)
    await client.close()
    await server.stop()


@ensureDeferred
async def test_a_service_that_refuses_start_after_is_listed_by_its_tokens() -> None:
    """Its tokens are of version 2, so version 1 must not be tried with them."""
    from twisted.internet import reactor

    server = HabitServer(reactor, min_part_bytes=1)
    server.start()
    server.settings.page_size = 20
    show = server._apply

    def apply(call: Any, seen: Any) -> Any:
        server.habits.refused.pop("ListObjectsV2", None)
        if "start-after" in call.query:
            server.habits.refused["ListObjectsV2"] = (501, "NotImplemented")
        return show(call, seen)

    server._apply = apply  # type: ignore[method-assign]
    keys = sorted(share_keys(1500))
    for key in keys:
        server.bucket.put(key, b"", now_s=1.0)
    client = opened(server.url)
    assert await listed(client, splits=KeySplits()) == keys
    assert "ListObjects" not in server.count()
    assert any("start-after=" in seen.uri for seen in server.log)
    server.fail("ListObjectsV2", status=403, code="AccessDenied")
    assert isinstance(await outcome_of(client.list_all("", lambda page: None)), AccessDenied)
    await client.close()
    await server.stop()


@ensureDeferred
async def test_of_other_services(service: Service) -> None:
    """The ranges meet, and nothing of it makes them doubt; or they are given up at once."""
    name = await deferToThread(service.make_bucket)
    client = connect(service, name, prefix="nodes/one/")
    keys = sorted(share_keys(240) + [f"é {number} +%&/\U0001f4a9" for number in range(20)], key=order)
    for key in keys:
        await client.put(key, b"x")
    small = Paged(client, 10)
    assert await collected(small, splits=KeySplits()) == keys
    assert small.ranges > 4 or not service.lists_behind
    assert small.requests <= len(keys) / 10 * (1 + WASTE_SHARE) + LANES + 8
    assert await collected(Paged(client, 10)) == keys
    assert await collected(Paged(client, 10), after=keys[100]) == keys[101:]
    await client.close()
