# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads of share objects through windows in memory that are fetched ahead of the reader and shared by all readers.

A window is one GET of a range (store/readahead.py says which). Its bytes are handed on as they arrive. Windows belong
to the share, not to a reader object, since HTTP clients have none; all shares share one budget of bytes. A window
that nobody waits for is idle and can go at any time: first those that a sequential reader has read to their end, then
the least recently used. What somebody waits for has priority 0, what is fetched ahead has 2.

Everything that one read() gives is of one version of the object: see store/versions.py. When a share is written or
deleted here, forget() must be called; a read that has still something to fetch then starts over.

Owner: the Store. Thread: the reactor's. Errors: S3Error; ShareGone for a share that is not in the index.
Limits: budget_bytes, beyond which only windows go that somebody waits for, each then as small as can be.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from typing import Any, Callable, Final

from allmydata.util.assertutil import precondition
from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.python.failure import Failure

from tahoe_s3.client import Cancelled, Changed, Download, ObjectInfo, Priority, S3Client
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.readahead import FIRST_WINDOW_BYTES, MAX_WINDOW_BYTES, Plan, Range, Stream
from tahoe_s3.store.slots import Slots
from tahoe_s3.store.versions import Restart, Shared, Versions

DEFAULT_BUDGET_BYTES = 64 * 1024 * 1024
#: Charged for each window besides its bytes, so that very many tiny shares stay bounded too.
WINDOW_OVERHEAD_BYTES = 4096
#: Shares whose windows have all gone, of which it is still known how they were being read.
MAX_RESTING = 1000
#: Seconds after which a window that was fetched ahead, and of which nothing has come, is asked for again as urgent
#: by the first who waits for it: the request may not even have been sent.
HURRY_AFTER_S = 2.0
INTERACTIVE: Final = 0
AHEAD: Final = 2


class _Window:
    """One GET. `users` wait for it or copy from it now; `read_upto` is how far a reader got, in the object."""

    def __init__(self, state: _ShareState, chosen: Range, priority: Priority, download: Download) -> None:
        self.state = state
        self.priority = priority
        self.start = chosen.start
        self.stop = chosen.stop
        self.stream: Stream | None = chosen.stream
        self.download = download
        self.done: Shared[ObjectInfo] = Shared()
        self.users = 0
        self.read_upto = chosen.start
        self.is_open = True
        self.is_counted = False
        self.hurry: Any = None

    @property
    def charge(self) -> int:
        return self.stop - self.start + WINDOW_OVERHEAD_BYTES

    @property
    def is_spent(self) -> bool:
        """A sequential reader is through with it."""
        return self.stream is not None and self.read_upto >= self.stop


class _ShareState:
    """The windows of one version of one share. `etag` is None until an answer has told it."""

    def __init__(self, share: ShareId, row: ShareRow, generation: int) -> None:
        self.share = share
        self.key = share_key(*share)
        self.generation = generation
        self.etag = row.etag if row.etag_is_sure else None
        self.plan = Plan(row.size)
        self.windows: dict[int, _Window] = {}
        self.is_dead = False

    def fits(self, row: ShareRow) -> bool:
        """Whether this is the version that the index has."""
        same = self.plan.size == row.size
        if row.etag_is_sure:
            return same and self.etag == row.etag
        return same and self.etag in (None, row.etag)

    def covering(self, position: int) -> _Window | None:
        found = self.plan.covers(position)
        return None if found is None else self.windows[found[0]]

    def unproven(self) -> _Window | None:
        """The GET whose answer will tell the version, if that is not known yet."""
        return next(iter(self.windows.values()), None) if self.etag is None else None


class ReadCache:
    """All windows of all shares."""

    def __init__(
        self, client: S3Client, index: Index, slots: Slots, *, reactor: Any,
        on_vanished: Callable[[bytes, int], None], budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:  # fmt: skip
        self._client = client
        self._index = index
        self._reactor = reactor
        self._slots = slots
        self._budget_bytes = budget_bytes
        self.versions = Versions(
            client, index, slots, reactor=reactor, on_vanished=on_vanished, on_changed=self.forget
        )
        self._states: dict[ShareId, _ShareState] = {}
        self._resting: OrderedDict[ShareId, None] = OrderedDict()
        # Idle windows, the next to go first.
        self._spent: OrderedDict[_Window, None] = OrderedDict()
        self._recent: OrderedDict[_Window, None] = OrderedDict()
        self._bytes = 0
        self._windows = 0
        # Windows that a sequential reader has not read to their end, by share.
        self._being_read: dict[_ShareState, int] = {}
        self._hits = self._gets = self._ahead = 0
        client.on_budget_wait = self._free

    # reading

    def read(self, share: ShareId, offset: int, length: int) -> Deferred[bytes]:
        """Bytes of the object (container and all), cut at its end. All of them are of one version."""
        precondition(offset >= 0 and length >= 0, offset, length)
        data = self._read_now(share, offset, offset + length)
        if data is not None:
            return succeed(data)
        return self.versions.with_row(share, lambda row: self._read(share, row, offset, offset + length))

    def _read_now(self, share: ShareId, position: int, end: int) -> bytes | None:
        """The bytes, where they are all in one window: most reads of a client are, so this way is short."""
        state, row = self._states.get(share), self._index.share(*share)
        if state is None or row is None or state.etag is None or not state.fits(row):
            return None
        end = min(end, row.size)
        window = state.covering(position) if position < end else None
        if window is None or end - window.start > window.download.ready:
            return None
        self._hold(window)
        data = self._copy(window, position, end)
        self._hits += 1
        self._fetch_ahead(window, end)
        return data

    def read_version(self, share: ShareId, row: ShareRow, offset: int, length: int) -> Deferred[bytes]:
        """As read(), of the version that `row` names. Fails with what Versions.with_row handles, to be run in it."""
        now = self._index.share(*share)
        if now is None or (now.etag, now.size) != (row.etag, row.size):
            return fail(Restart())
        return self._read(share, now, offset, offset + length)

    @inlineCallbacks
    def _read(
        self, share: ShareId, row: ShareRow, position: int, end: int
    ) -> Generator[Deferred[Any], Any, bytes]:
        end = min(end, row.size)
        state = self._state(share, row)
        asked = False
        pieces: list[bytes] = []
        while position < end:
            if state.is_dead:
                raise Restart
            window = state.covering(position)
            unproven = state.unproven()
            if unproven is not None and unproven is not window:
                # Which version this is must be known before a second window of it may be asked for.
                yield self._proof(unproven)
                continue
            if window is None:
                asked = True
                window = self._open(state, position, end)
            stop = min(end, window.stop)
            pieces.append((yield self._piece(window, position, stop, end)))
            position = stop
        if pieces and not asked:
            self._hits += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @inlineCallbacks
    def _proof(self, window: _Window) -> Generator[Deferred[Any], Any, None]:
        """Wait for the end of the GET whose answer tells the version."""
        self._hold(window)
        try:
            yield window.done.wait()
        finally:
            self._release(window)

    @inlineCallbacks
    def _piece(
        self, window: _Window, position: int, stop: int, end: int
    ) -> Generator[Deferred[Any], Any, bytes]:
        """Copy [position, stop) from the window as soon as it is there. `end` is how far the reader wants to get."""
        state, needed = window.state, stop - window.start
        self._hold(window)
        try:
            if stop < end and state.etag is not None and state.covering(stop) is None:
                self._open(state, stop, end)
            if state.etag is not None:
                yield self._arrival(window, needed)
            if window.download.ready < needed or state.etag is None:
                # Bytes of an unknown version wait for the end of the answer. So do those that an object which ended
                # early does not have: its size then makes the read fail.
                yield window.done.wait()
        except BaseException:
            self._release(window)
            raise
        data = self._copy(window, position, stop)
        self._fetch_ahead(window, stop)
        return data

    @inlineCallbacks
    def _arrival(self, window: _Window, needed: int) -> Generator[Deferred[Any], Any, None]:
        """Wait until so many bytes have arrived, or all that will."""
        while window.download.ready < needed:
            download = window.download
            if window.priority == AHEAD and download.ready == 0 and window.hurry is None:
                window.hurry = self._reactor.callLater(HURRY_AFTER_S, self._hurry, window)
            try:
                yield download.when_ready(needed)
                return
            except Cancelled:
                if window.download is download:
                    raise

    def _copy(self, window: _Window, position: int, stop: int) -> bytes:
        """Take the bytes, which have arrived, and let go of the window."""
        try:
            data = window.download.read(position - window.start, stop - position)
            window.read_upto = max(window.read_upto, stop)
            if window.is_spent:
                self._stop_counting(window)
            if window.stream is not None:
                window.stream.note(position, stop)
        finally:
            self._release(window)
        return data

    def _fetch_ahead(self, window: _Window, position: int) -> None:
        """Start the window behind this one when a reader that goes forward is past its middle."""
        state, stream = window.state, window.stream
        if stream is None or not stream.is_forward or 2 * position <= window.start + window.stop:
            return
        limit = self._limit()
        crowded = limit == FIRST_WINDOW_BYTES
        if crowded or state.is_dead or state.etag is None or window.stop >= state.plan.size:
            return
        if state.covering(window.stop) is None:
            chosen = state.plan.choose(window.stop, window.stop + 1, limit=limit)
            if self._make_room(chosen.stop - chosen.start):
                self._ahead += 1
                self._start(state, chosen, AHEAD)

    # windows

    def _state(self, share: ShareId, row: ShareRow) -> _ShareState:
        state = self._states.get(share)
        if state is not None and not state.fits(row):
            self.forget(share)
            state = None
        if state is None:
            state = self._states[share] = _ShareState(share, row, self._slots.generation(*share))
            self._rest(state)
        return state

    def _limit(self) -> int:
        """The largest window now: every share that is being read front to back gets room for two."""
        fair = self._budget_bytes // (2 * max(1, len(self._being_read)))
        return max(FIRST_WINDOW_BYTES, min(MAX_WINDOW_BYTES, fair))

    def _open(self, state: _ShareState, position: int, end: int) -> _Window:
        """A window for somebody who waits for it."""
        chosen = state.plan.choose(position, end, limit=self._limit())
        if not self._make_room(chosen.stop - chosen.start):
            chosen = state.plan.choose(position, end, limit=FIRST_WINDOW_BYTES)
        return self._start(state, chosen, INTERACTIVE)

    def _start(self, state: _ShareState, chosen: Range, priority: Priority) -> _Window:
        state.plan.took(chosen)
        window = _Window(state, chosen, priority, self._download(state, chosen.start, chosen.stop, priority))
        state.windows[window.start] = window
        self._resting.pop(state.share, None)
        self._bytes += window.charge
        self._windows += 1
        if window.stream is not None:
            window.is_counted = True
            self._being_read[state] = self._being_read.get(state, 0) + 1
        self._recent[window] = None
        self._follow(window)
        return window

    def _download(self, state: _ShareState, start: int, stop: int, priority: Priority) -> Download:
        self._gets += 1
        return self._client.get_window(
            state.key, offset=start, length=stop - start, expect_etag=state.etag or None, priority=priority
        )

    def _follow(self, window: _Window) -> None:
        download = window.download
        download.when_done().addBoth(self._ended, window, download)

    def _hurry(self, window: _Window) -> None:
        """What was fetched ahead is waited for, and nothing has come: it may be queued behind all that is urgent."""
        window.hurry = None
        if window.is_open and window.users and window.download.ready == 0 and not window.done.done:
            late, window.priority = window.download, INTERACTIVE
            window.download = self._download(window.state, window.start, window.stop, INTERACTIVE)
            self._follow(window)
            late.close()

    def _ended(self, result: ObjectInfo | Failure, window: _Window, download: Download) -> None:
        """The GET has its outcome, for all who wait for the window."""
        if window.download is not download:
            return
        if window.hurry is not None:
            window.hurry.cancel()
            window.hurry = None
        outcome = self._failure_of(result, window.state)
        if outcome is not None:
            self._close(window)
        window.done.finish(result if outcome is None else outcome)

    def _failure_of(self, result: ObjectInfo | Failure, state: _ShareState) -> Failure | None:
        """Why an answer cannot be used, or None. The first answer tells which version is read."""
        if isinstance(result, Failure):
            return result
        if result.size != state.plan.size:
            return Failure(
                Changed(f"{result.size} bytes, not {state.plan.size}", operation="GetObject", method="GET",
                        key=state.key, kind="changed")
            )  # fmt: skip
        if state.etag is None and not state.is_dead:
            if self.versions.is_unanswered(state.share, result.etag):
                return Failure(Restart())
            state.etag = result.etag
            self.versions.learn(
                state.share, state.generation, etag=result.etag, size=result.size, modified_s=result.modified_s
            )
        return None

    def _hold(self, window: _Window) -> None:
        """It must not go away now."""
        window.users += 1
        self._spent.pop(window, None)
        self._recent.pop(window, None)

    def _release(self, window: _Window) -> None:
        window.users -= 1
        if window.users:
            return
        if not window.is_open:
            window.download.close()
        elif window.state.is_dead:
            self._close(window)
        elif window.is_spent:
            self._spent[window] = None
        else:
            self._recent[window] = None

    def _stop_counting(self, window: _Window) -> None:
        """Nobody reads forward in this window any more."""
        if window.is_counted:
            window.is_counted = False
            count = self._being_read[window.state] - 1
            if count:
                self._being_read[window.state] = count
            else:
                del self._being_read[window.state]

    def _close(self, window: _Window) -> None:
        """Give its memory back, as soon as nobody copies from it any more."""
        if not window.is_open:
            return
        window.is_open = False
        if window.hurry is not None:
            window.hurry.cancel()
            window.hurry = None
        self._spent.pop(window, None)
        self._recent.pop(window, None)
        self._stop_counting(window)
        self._bytes -= window.charge
        self._windows -= 1
        state = window.state
        del state.windows[window.start]
        state.plan.remove(window.start, window.stop)
        if window.users == 0:
            window.download.close()
        if not state.windows and self._states.get(state.share) is state:
            self._rest(state)

    def _rest(self, state: _ShareState) -> None:
        """It has no window: kept a while for what is known of its readers."""
        self._resting[state.share] = None
        while len(self._resting) > MAX_RESTING:
            share, _ = self._resting.popitem(last=False)
            self._states.pop(share).is_dead = True

    # the budget

    def _make_room(self, needed: int) -> bool:
        """Close idle windows until `needed` bytes fit; False where they do not."""
        while self._bytes + needed + WINDOW_OVERHEAD_BYTES > self._budget_bytes:
            if not self._spent and not self._recent:
                return False
            self._close(next(iter(self._spent or self._recent)))
        return True

    def _free(self, needed: int) -> None:
        """The engine's memory is used up: give back what is idle."""
        freed = 0
        while freed < needed and (self._spent or self._recent):
            window = next(iter(self._spent or self._recent))
            freed += window.stop - window.start
            self._close(window)

    # the rest

    def forget(self, share: ShareId) -> None:
        """The share was written or deleted, or is another than was thought: nothing fetched so far is used again."""
        state = self._states.pop(share, None)
        self._resting.pop(share, None)
        if state is not None:
            state.is_dead = True
            for window in list(state.windows.values()):
                if window.users == 0:
                    self._close(window)

    def close(self) -> None:
        """Give all memory back. Reads under way fail as the client closes."""
        for share in list(self._states):
            self.forget(share)
        self._client.on_budget_wait = None

    def stats(self) -> dict[str, int]:
        """Windows and bytes now; reads served without a request (hits), GETs, and those of them ahead of a reader."""
        return {
            "windows": self._windows, "bytes": self._bytes, "shares": len(self._states), "hits": self._hits,
            "gets": self._gets, "ahead": self._ahead,
        }  # fmt: skip
