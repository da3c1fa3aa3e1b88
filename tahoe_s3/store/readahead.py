# SPDX-License-Identifier: GPL-2.0-or-later
"""Which range of a share object the next GET should fetch. No requests here, only the decision.

A Tahoe client reads a share's hash trees, which lie at its end, and then its blocks in order; an HTTP client reads in
pieces of 64 KiB; a repairer here and there. So, of an object beyond SMALL_OBJECT_BYTES, windows are fetched: along a
sequential reader they double from 256 KiB to 8 MiB; the first access into the tail fetches the whole tail; anything
else fetches what was asked for, but at least 256 KiB. A smaller object is one window.

Thread: the reactor's. Limits: MAX_STREAMS readers of one share are told apart.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB
SMALL_OBJECT_BYTES = MIB
FIRST_WINDOW_BYTES = 256 * KIB
MAX_WINDOW_BYTES = 8 * MIB
#: A sequential reader that leaves out no more than this is still one: fetching the gap is cheaper than a request.
MAX_GAP_BYTES = MIB
#: A window begins or ends this much further out, rather than leave a splinter that would be a request of its own.
SPLINTER_BYTES = 4 * KIB
MAX_STREAMS = 8


def tail_bytes(size: int) -> int:
    """How much of an object's end is fetched at once: Tahoe's hash trees are under a thousandth of a share."""
    return max(FIRST_WINDOW_BYTES, min(size // 256, MAX_WINDOW_BYTES))


class Stream:
    """One sequential reader: where its windows end, how large the next one is, where it read last."""

    def __init__(self, frontier: int) -> None:
        self.frontier = frontier
        self.next_bytes = FIRST_WINDOW_BYTES
        self.last_start = -1
        self.last_end = -1
        #: Seen to go forward at least once; only then is anything fetched that nobody has asked for.
        self.is_forward = False

    def note(self, start: int, end: int) -> None:
        """The reader has read [start, end)."""
        if self.last_end >= 0:
            self.is_forward = self.last_start <= start <= self.last_end + MAX_GAP_BYTES and end > self.last_end
        self.last_start, self.last_end = start, end


class Range(NamedTuple):
    """What to fetch: [start, stop) of the object, and for which reader (None: the tail, or a small object)."""

    start: int
    stop: int
    stream: Stream | None


class Plan:
    """The windows of one object of `size` bytes: which ranges are there (or coming), and what is next."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranges: list[tuple[int, int]] = []
        self._streams: list[Stream] = []

    def covers(self, position: int) -> tuple[int, int] | None:
        """The range with this byte in it."""
        index = bisect_right(self._ranges, (position, self.size + 1)) - 1
        if index >= 0 and position < self._ranges[index][1]:
            return self._ranges[index]
        return None

    def add(self, start: int, stop: int) -> None:
        insort(self._ranges, (start, stop))

    def remove(self, start: int, stop: int) -> None:
        self._ranges.remove((start, stop))

    def _neighbours(self, position: int) -> tuple[int, int]:
        """Where the free space around an uncovered byte begins and ends."""
        index = bisect_right(self._ranges, (position, self.size + 1))
        low = self._ranges[index - 1][1] if index else 0
        high = self._ranges[index][0] if index < len(self._ranges) else self.size
        return low, high

    def _stream_at(self, position: int, *, gap: int) -> Stream | None:
        near = [stream for stream in self._streams if stream.frontier <= position <= stream.frontier + gap]
        return max(near, key=lambda stream: stream.frontier, default=None)

    def choose(self, position: int, end: int, *, limit: int = MAX_WINDOW_BYTES) -> Range:
        """The range to fetch for a reader of [position, end), whose first byte is not covered.

        `limit`: the largest window that memory allows for now. Never overlaps a range that is there.
        """
        if self.size <= SMALL_OBJECT_BYTES:
            return Range(0, self.size, None)
        low, high = self._neighbours(position)
        in_tail = position >= self.size - tail_bytes(self.size)
        stream = self._stream_at(position, gap=0 if in_tail else MAX_GAP_BYTES)
        if stream is None and in_tail:
            return Range(max(low, self.size - tail_bytes(self.size)), high, None)
        wanted = min(end - position, limit)
        if stream is None:
            stream = Stream(position)
            self._streams = [*self._streams[-MAX_STREAMS + 1 :], stream]
            start = low if position - low <= SPLINTER_BYTES else position
            stop = start + max(position - start + wanted, FIRST_WINDOW_BYTES)
        else:
            start = max(low, stream.frontier)
            stop = max(start + min(stream.next_bytes, limit), position + wanted)
        return Range(start, high if high - stop <= SPLINTER_BYTES else stop, stream)

    def took(self, chosen: Range) -> None:
        """The range is being fetched: note it, and move its reader on."""
        self.add(chosen.start, chosen.stop)
        stream = chosen.stream
        if stream is None:
            return
        grown = 2 * max(chosen.stop - chosen.start, FIRST_WINDOW_BYTES)
        stream.next_bytes = min(max(stream.next_bytes, grown), MAX_WINDOW_BYTES)
        self.advance(stream, chosen.stop)

    def advance(self, stream: Stream, frontier: int) -> None:
        """Move the frontier there, and over ranges that follow without a hole (the tail)."""
        while True:
            covering = self.covers(frontier)
            if covering is None:
                break
            frontier = covering[1]
        stream.frontier = frontier
        self._streams = [
            other for other in self._streams if other is stream or other.frontier != frontier or other.is_forward
        ]
