# SPDX-License-Identifier: GPL-2.0-or-later
"""All keys below a prefix, in order, each once: many pages at a time where the bucket is large.

The keys are cut into ranges that are listed side by side, each page after page; what arrives ahead of its turn waits.
The first page of all is asked for alone, so a small bucket costs what it always did. While a range seems to reach much
further than RANGE_PAGES and a place is free, it is cut about so far ahead (splits.py). A cut costs less than one
request more: the last page of a range passes its end, and what lies behind has been listed twice.

Nothing is taken on trust. What the last page of a range shows behind its end must be what the next range found
there, else that range is listed anew, as a part of the one before it. A service that shows keys at or before
start-after does not look at it (rclone's, where there is no such key). One that shows keys it should have shown earlier
does not sort. In these cases the ranges ahead are dropped, and the first goes on page after page by the service's own
tokens, which lose nothing. Only of a service that does not sort the keys come out of order, and a key twice if it shows
it twice with a page in between.

Owner: S3Client.list_all. Thread: the reactor's. Errors: the first page that fails, or what on_page raises, ends it;
the other requests are cancelled. Memory: WAITING_PAGES, and a page more for each of LANES ranges.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Callable, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3._native import Entry, Page
from tahoe_s3.answers import is_refused_way
from tahoe_s3.s3errors import BadReply, Cancelled, S3Error
from tahoe_s3.splits import Span, Splits, choose_cut, order
from tahoe_s3.transfer import Priority

LANES: Final = 16
"""Most requests at a time."""
RANGE_PAGES: Final = 6
"""How many pages a range is meant to have: fewer cost more requests, more need more memory."""
WAITING_PAGES: Final = 80
"""Most pages that wait for their turn or are on their way to it; about 350 bytes a key, so 28 MB."""
FIRST_WAITING_PAGES: Final = 4
"""Most pages of the first range that wait for a slow on_page; they are not kept from coming by those ahead."""
FREE_WASTE: Final = 4.0
WASTE_SHARE: Final = 0.125
"""No more cuts while more pages were fetched in vain than FREE_WASTE and this share of the useful ones."""
MAX_REPEATS: Final = 20
"""So many times a page may come that has nothing new. A service that does not look at its tokens goes on for ever."""
MAX_DOUBTS: Final = 3
"""So many times two ranges may differ where they meet before ranges are given up altogether."""
SAMPLE: Final = 16
"""Every so-manieth key of a page is looked at for its characters."""

OnPage = Callable[[Page], "Deferred[Any] | None"]

_log = Logger()


class Pages(Protocol):
    """What is used of S3Client."""

    def list_page(
        self, prefix: str, *, token: str | None = None, start_after: str | None = None, priority: Priority = 1,
        deadline_s: float | None = None,
    ) -> Deferred[Page]: ...


class _Range:
    """The keys behind `after` up to and with `end`, or up to the last of all.

    cursor: the greatest key that came, `after` before one did. asked, token: what its last page was and its next one
    is asked with. last: the page that came last, whole, and span how far it reached; those of the range it was cut
    from before one came. beyond: what that page showed behind `end`, until the next range was compared with it.
    skips: its last page is asked for again, and what is up to the cursor was taken. cut: where to cut it, "" not at
    all, None where that has not been thought about since the last page.
    """

    __slots__ = (
        "after", "answered", "asked", "beyond", "cursor", "cut", "dropped", "end", "ended", "last", "pages",
        "passed_end", "repeats", "request", "skips", "span", "token", "tokens",
    )

    def __init__(self, after: str | None, end: str | None, span: Span | None, last: list[Entry]) -> None:
        self.after = after
        self.end = end
        self.cursor = after
        self.span = span
        self.last = last
        self.asked: str | None = None
        self.token: str | None = None
        self.tokens: set[str] = set()
        self.pages: deque[Page] = deque()
        self.beyond: list[Entry] = []
        self.request: Deferred[Any] | None = None
        self.answered = False
        self.ended = False
        self.passed_end = False
        self.dropped = False
        self.skips = False
        self.repeats = 0
        self.cut: str | None = None


class Listing:
    """One listing, from start() to the end of the Deferred that start() returns."""

    def __init__(
        self, client: Pages, prefix: str, on_page: OnPage, *, after: str, splits: Splits, priority: Priority,
        deadline_s: float | None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._on_page = on_page
        self._splits = splits
        self._priority = priority
        self._deadline_s = deadline_s
        self._ranges = [_Range(after or None, None, None, [])]
        self._in_flight = 0
        self._waiting = 0
        self._useful = 0.0
        self._wasted = 0.0
        self._count = 0
        self._doubts = 0
        self._serial = False
        self._sends_start_after = True
        self._held: Deferred[Any] | None = None
        self._pumping = False
        self._over = False
        self._result: Deferred[int] = Deferred(self._cancelled)

    def start(self) -> Deferred[int]:
        """Fires with the number of entries that on_page was given."""
        self._pump()
        return self._result

    # the end

    def _cancelled(self, _result: Deferred[int]) -> None:
        self._fail(Failure(Cancelled("cancelled by the caller", operation="ListObjectsV2", kind="cancelled")))

    def _fail(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self._drop(self._ranges)
            held, self._held = self._held, None
            if held is not None:
                held.cancel()
            self._result.errback(failure)

    def _drop(self, ranges: Sequence[_Range]) -> None:
        dropped = list(ranges)
        self._ranges = [one for one in self._ranges if one not in dropped]
        for one in dropped:
            one.dropped = True
            self._waiting -= len(one.pages)
            request, one.request = one.request, None
            if request is not None:
                self._in_flight -= 1
                request.cancel()

    # what happens next

    def _pump(self) -> None:
        """Ask for whatever may be asked for, hand on what is next, and so on until neither goes on."""
        if self._pumping or self._over:
            return
        self._pumping = True
        try:
            while not self._over and (self._ask() or self._deliver()):
                pass
        except Exception:
            self._fail(Failure())
        finally:
            self._pumping = False
        if not self._over and not self._ranges:
            self._over = True
            self._result.callback(self._count)

    def _ask(self) -> bool:
        """Send one request. False where there is none to send now."""
        if self._in_flight >= LANES:
            return False
        chosen = self._choose()
        if chosen is None:
            return False
        self._in_flight += 1
        start_after = chosen.after if chosen.token is None and self._sends_start_after else None
        request = self._client.list_page(
            self._prefix, token=chosen.token, start_after=start_after, priority=self._priority,
            deadline_s=self._deadline_s,
        )
        chosen.request = request
        request.addCallbacks(self._arrived, self._failed, callbackArgs=(chosen,), errbackArgs=(chosen,))
        request.addErrback(self._fail)
        return True

    def _choose(self) -> _Range | None:
        """The first in order that may go on, or a new one: the second part of the first that is worth a cut.

        WAITING_PAGES are for the ranges next in order, as many pages for each as it is meant to have, so that one far
        ahead cannot take the room of those before it.
        """
        if not self._ranges:
            return None
        is_full = self._waiting + self._in_flight >= WAITING_PAGES
        may_cut = not is_full and not self._serial and self._waste < FREE_WASTE + WASTE_SHARE * self._useful
        room = WAITING_PAGES
        for index, one in enumerate(self._ranges):
            if not one.ended and one.request is None:
                if index == 0 and len(one.pages) < FIRST_WAITING_PAGES:
                    return one
                if index > 0 and not is_full and room > len(one.pages):
                    return one
            if index > 0:
                room -= len(one.pages) if one.ended else max(RANGE_PAGES, len(one.pages) + 1)
            if may_cut and room > 0 and not one.ended and self._cut_key(one):
                return self._cut(index, one)
        return None

    @property
    def _waste(self) -> float:
        """Pages fetched in vain. A range that has not shown yet that there is something in it counts as one."""
        return self._wasted + sum(not one.answered for one in self._ranges[1:])

    def _cut(self, index: int, one: _Range) -> _Range:
        second = _Range(one.cut, one.end, one.span, one.last)
        one.end, one.cut = one.cut, None
        self._ranges.insert(index + 1, second)
        return second

    def _cut_key(self, one: _Range) -> str:
        if one.cut is None:
            one.cut = self._choose_cut(one) or ""
        return one.cut

    def _choose_cut(self, one: _Range) -> str | None:
        if one.span is None or one.cursor is None:
            return None
        return choose_cut(
            self._splits, one.span, one.cursor, one.end, pages=RANGE_PAGES, below=self._prefix,
            sample=[entry.key for entry in one.last[::SAMPLE]],
        )

    # a page

    def _arrived(self, page: Page, one: _Range) -> None:
        if one.dropped:
            return
        one.request = None
        self._in_flight -= 1
        if not self._over:
            self._take(one, page)
            self._pump()

    def _failed(self, failure: Failure, one: _Range) -> None:
        if one.dropped:
            return
        one.request = None
        self._in_flight -= 1
        refused = isinstance(failure.value, S3Error) and is_refused_way(failure.value)
        if refused and self._sends_start_after and one.after is not None and not one.answered:
            self._sends_start_after = False
            asked = next(index for index, other in enumerate(self._ranges) if not other.answered)
            self._give_up(max(0, asked - 1), f"refuses start-after ({failure.value})")
            self._pump()
        else:
            self._fail(failure)

    def _take(self, one: _Range, page: Page) -> None:
        entries: Sequence[Entry] = page.entries
        if entries and one.cursor is not None and order(entries[0].key) <= order(one.cursor):
            news = self._news(one, entries)
            if news is None:
                return
            entries = news
        one.answered = True
        inside = len(entries) if one.end is None else _up_to(entries, one.end)
        self._account(len(page.entries), inside, is_first=one is self._ranges[0])
        if inside:
            one.skips = False
            whole = inside == len(page.entries)
            one.pages.append(page if whole else Page(list(entries[:inside]), page.prefixes, page.next_token, page.v1))
            self._waiting += 1
            last = entries[inside - 1].key
            if one.cursor is None or order(last) > order(one.cursor):
                one.cursor = last
        if len(page.entries) > 1:
            one.span = Span(page.entries[0].key, page.entries[-1].key)
        one.last = page.entries
        one.beyond = list(entries[inside:])
        one.passed_end = bool(one.beyond)
        one.ended = one.passed_end or page.next_token is None
        one.cut = None
        self._continue(one, page)
        self._compare(one)

    def _continue(self, one: _Range, page: Page) -> None:
        """Where its next page is, and whether there will ever be an end."""
        if one.repeats > MAX_REPEATS or (page.next_token is not None and page.next_token in one.tokens):
            raise BadReply("a listing goes on where it was before", operation="ListObjectsV2", kind="protocol")
        one.asked, one.token = one.token, page.next_token
        if one.ended:
            one.last = []
        elif page.next_token is not None:
            one.tokens.add(page.next_token)

    def _account(self, shown: int, kept: int, *, is_first: bool) -> None:
        if shown:
            self._useful += kept / shown
            self._wasted += 1 - kept / shown
        elif not is_first:
            self._wasted += 1

    def _news(self, one: _Range, entries: Sequence[Entry]) -> Sequence[Entry] | None:
        """Of a page that begins where the range has been already: what did not come before. None: forget the page.

        Some services repeat the end of the page before.
        """
        old = 0 if one.cursor is None else _up_to(entries, one.cursor)
        index = self._ranges.index(one)
        floor = b"" if one.after is None else order(one.after)
        if not one.answered and one.after is not None and order(entries[0].key) <= floor:
            if index:
                self._give_up(index - 1, "does not look at start-after")
                return None
            self._serial = True
        known = {entry.key for entry in one.last} if one.answered else set()
        one.repeats = one.repeats + 1 if all(entry.key in known for entry in entries) else 0
        if one.skips:
            return entries[old:]
        late = [entry for entry in entries[:old] if entry.key not in known and order(entry.key) > floor]
        if late:
            self._give_up(0, "does not sort its listings")
            if index:
                return None
        return [*late, *entries[old:]]

    def _give_up(self, index: int, why: str) -> None:
        """From here on page after page, beginning with the range at `index`."""
        if not self._serial:
            _log.info("the S3 service {why}: listing page after page", why=why)
        self._serial = True
        self._go_back(index)

    def _go_back(self, index: int, *, most: int | None = None) -> None:
        """Forget the ranges behind that at `index`, `most` of them or all: it goes on in their place."""
        kept = self._ranges[index]
        dropped = self._ranges[index + 1 :][:most]
        self._wasted += sum(1 + len(one.pages) for one in dropped)
        self._drop(dropped)
        if kept.passed_end:
            # What its last page showed behind its end was not taken: that page is asked for again.
            kept.ended, kept.passed_end, kept.skips, kept.token, kept.beyond = False, False, True, kept.asked, []
        kept.end, kept.cut = (None if most is None else dropped[-1].end), None

    # where two ranges meet

    def _compare(self, one: _Range) -> None:
        """With its neighbours, if that is possible now."""
        for index in (self._ranges.index(one) - 1, self._ranges.index(one)):
            if 0 <= index < len(self._ranges) - 1 and self._ranges[index].beyond:
                before, behind = self._ranges[index : index + 2]
                if behind.pages or behind.ended:
                    self._join(index, before, behind)

    def _join(self, index: int, before: _Range, behind: _Range) -> None:
        """What `before` saw behind its end must be what `behind` begins with.

        Objects come and go meanwhile, so it need not be all the same; what only `before` saw is taken in.
        """
        seen = before.beyond
        within = len(seen) if behind.end is None else _up_to(seen, behind.end)
        if within < len(seen) and not behind.ended:
            return
        # What lies behind them both is seen by whoever gets there, unless `behind` says that there is nothing.
        is_lost = within < len(seen) and not behind.passed_end
        seen = seen[:within]
        shown = behind.pages[0].entries if behind.pages else []
        comparable = len(seen) if behind.ended and len(behind.pages) <= 1 else _up_to(seen, shown[-1].key)
        known = {entry.key for entry in shown}
        missing = [entry for entry in seen[:comparable] if entry.key not in known]
        if 2 * len(missing) > comparable or is_lost:
            # The one key that `before` saw may just have been deleted: only what may be wrong is listed anew. A
            # service that is wrong is so again, where the next two meet.
            self._doubts += 1
            self._go_back(index, most=1)
            if self._doubts > MAX_DOUBTS:
                self._give_up(index, "does not find behind start-after what is there")
            return
        before.beyond = []
        if missing:
            merged = sorted([*shown, *missing], key=lambda entry: order(entry.key))
            behind.pages[0] = behind.pages[0]._replace(entries=merged)

    # what is next in order

    def _deliver(self) -> bool:
        """Hand on one page, or go over to the next range. False where neither can be done now."""
        if self._held is not None or not self._ranges:
            return False
        first = self._ranges[0]
        if first.pages:
            page = first.pages.popleft()
            self._waiting -= 1
            self._count += len(page.entries)
            held = self._on_page(page)
            if held is not None and not self._over:
                self._held = held
                held.addCallbacks(self._go_on, self._fail)
            return True
        if not first.ended or first.beyond or (len(self._ranges) > 1 and not self._ranges[1].answered):
            return False
        self._ranges.pop(0)
        return True

    def _go_on(self, _: object) -> None:
        self._held = None
        self._pump()


def _up_to(entries: Sequence[Entry], key: str) -> int:
    """How many of the sorted entries are at or before the key."""
    wanted, low, high = order(key), 0, len(entries)
    if entries and order(entries[-1].key) <= wanted:
        return high
    while low < high:
        middle = (low + high) // 2
        if order(entries[middle].key) <= wanted:
            low = middle + 1
        else:
            high = middle
    return low


def list_all(
    client: Pages, prefix: str, on_page: OnPage, *, after: str = "", splits: Splits = (), priority: Priority = 2,
    deadline_s: float | None = None,
) -> Deferred[int]:
    """S3Client.list_all, on anything that has list_page."""
    return Listing(client, prefix, on_page, after=after, splits=splits, priority=priority,
                   deadline_s=deadline_s).start()
