# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked of the service, counted by S3 operation, and what of it is paid for.

Owner: tahoe_s3.transfer, which tells of every request that has ended; the status page and /statistics read. Thread: the
reactor's. Cost: about a microsecond a request. Limits: operations are those of the client; of error codes, which the
service makes up, at most MAX_CODES an operation are told apart. Sizes in bytes, times in seconds, dates in UTC.
"""
from __future__ import annotations

import json
import re
from bisect import bisect_left
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Final

from tahoe_s3.s3errors import (
    BadReply,
    Cancelled,
    Closed,
    NoSuchBucket,
    S3Error,
    is_unsupported,
)

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes that latencies are counted in; one more class holds what took longer."""
_BOUNDS_US: Final = [round(bound_s * 1_000_000) for bound_s in BOUNDS_S]
MAX_CODES: Final = 24
OTHER: Final = "other"
DAY_S: Final = 86_400

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_DELETES: Final = frozenset({"DeleteObject", "DeleteObjects", "AbortMultipartUpload"})
_PUTS: Final = frozenset(
    {"PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "CopyObject", "UploadPartCopy",
     "ListObjects", "ListObjectsV2", "ListMultipartUploads"}
)
"""S3's two dearer classes together, "PUT, COPY, POST, LIST"; deletions and aborts cost nothing, all else is a GET."""
_HAVE_ANOTHER_WAY: Final = frozenset(
    {"DeleteObjects", "GetBucketVersioning", "GetObjectLockConfiguration", "ListMultipartUploads", "ListObjectsV2"}
)
"""A service that does not know these is asked otherwise, or does without."""
_ONLY_GOOD_TO_KNOW: Final = frozenset({"GetBucketVersioning", "GetObjectLockConfiguration"})


class Operation:
    """What became of all requests of one S3 operation.

    attempts: how often one was sent; retries: how many of these were not the first of their request; ended: requests.
    errors: those that failed after all attempts, by the service's code, the HTTP status, or the kind of failure.
    bytes_up, bytes_down: of bodies, all attempts. buckets: how many requests took longer than the bound before and at
    most this one (BOUNDS_S, and one more), from the call of the engine to the end; total_us: all of them together.
    """

    __slots__ = ("attempts", "buckets", "bytes_down", "bytes_up", "ended", "errors", "retries", "total_us")

    def __init__(self) -> None:
        self.attempts = 0
        self.retries = 0
        self.ended = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.total_us = 0
        self.errors: dict[str, int] = {}
        self.buckets = [0] * (len(_BOUNDS_US) + 1)

    def add(self, other: Operation) -> None:
        self.attempts += other.attempts
        self.retries += other.retries
        self.ended += other.ended
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        self.total_us += other.total_us
        self.buckets = [mine + more for mine, more in zip(self.buckets, other.buckets)]
        for code, count in other.errors.items():
            self.errors[code] = self.errors.get(code, 0) + count

    @property
    def total_s(self) -> float:
        return self.total_us / 1_000_000

    def cumulative(self) -> list[int]:
        """How many requests took at most as long as each of BOUNDS_S; the last number counts all."""
        found, so_far = [], 0
        for count in self.buckets:
            so_far += count
            found.append(so_far)
        return found

    def at_most_s(self, part: float) -> float | None:
        """The bound below which this part of all requests stayed (0.5: half of them). None where there is none."""
        for bound_s, count in zip(BOUNDS_S, self.cumulative()):
            if self.ended and count >= part * self.ended:
                return bound_s
        return None


@dataclass(frozen=True)
class Totals:
    """All operations together, by what is paid for: see _PUTS. Attempts are counted, since they are."""

    puts: int = 0
    gets: int = 0
    deletes: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))


def is_an_answer(error: S3Error) -> bool:
    """Whether a failed request tells what it was to tell (there is no such object), or is of no consequence."""
    if isinstance(error, (Cancelled, Closed)):
        return True
    if error.status == 404:
        return not isinstance(error, (NoSuchBucket, BadReply))
    if error.operation in _ONLY_GOOD_TO_KNOW and 400 <= error.status < 500 and error.status != 429:
        return True
    return error.operation in _HAVE_ANOTHER_WAY and is_unsupported(error)


def code_of(error: S3Error) -> str:
    """One word for what went wrong, of letters, digits and underscores."""
    return _NO_NAME.sub("_", error.code or (str(error.status) if error.status else error.kind))[:60]


class Counters:
    """What was asked of the service since the start.

    by_operation: by the operation's name. last_error: the newest failure, last_error_at_s when; last_success_at_s the
    newest success; last_answer_at_s when the service last said anything (the reactor's clock; 0.0: never).
    """

    def __init__(self) -> None:
        self.by_operation: dict[str, Operation] = {}
        self.last_error: S3Error | None = None
        self.last_error_at_s = 0.0
        self.last_success_at_s = 0.0
        self.last_answer_at_s = 0.0
        self._day_starts_s = self._day_ends_s = 0.0
        #: The totals when this day began, less what an earlier run of the node counted of it.
        self._before = Totals()
        self._today_since_s = 0.0

    @property
    def requests(self) -> dict[str, int]:
        """Attempts by operation."""
        return {name: counted.attempts for name, counted in self.by_operation.items()}

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by operation, without those that had none."""
        found = {name: sum(counted.errors.values()) for name, counted in self.by_operation.items()}
        return {name: count for name, count in found.items() if count}

    # what the client tells

    def ended(
        self, name: str, *, now_s: float, attempts: int, total_us: int = 0, bytes_up: int = 0, bytes_down: int = 0,
        well: bool = True,
    ) -> None:  # fmt: skip
        """A request has ended, `well` or not; after that failed() is called too."""
        if not self._day_starts_s <= now_s < self._day_ends_s:
            self._begin_day(now_s)
        counted = self.by_operation.get(name)
        if counted is None:
            counted = self.by_operation[name] = Operation()
        if well:
            self.last_success_at_s = now_s
        if not attempts:
            return  # it was given up before it was sent
        counted.attempts += attempts
        counted.retries += attempts - 1
        counted.ended += 1
        counted.bytes_up += bytes_up
        counted.bytes_down += bytes_down
        counted.total_us += total_us
        counted.buckets[bisect_left(_BOUNDS_US, total_us)] += 1

    def failed(self, error: S3Error, now_s: float) -> None:
        """How a request that ended badly did. What is_an_answer() is not counted."""
        if is_an_answer(error):
            return
        codes = self.by_operation.setdefault(error.operation, Operation()).errors
        code = code_of(error)
        if code not in codes and len(codes) >= MAX_CODES:
            code = OTHER
        codes[code] = codes.get(code, 0) + 1
        self.last_error, self.last_error_at_s = error, now_s

    def add(self, other: Counters, now_s: float) -> None:
        """Count what another client of the same service was told, once, at its end."""
        self.today(now_s)
        for name, counted in other.by_operation.items():
            self.by_operation.setdefault(name, Operation()).add(counted)

    # sums

    def totals(self) -> Totals:
        """Since the start."""
        puts = gets = deletes = up = down = 0
        for name, counted in self.by_operation.items():
            if name in _PUTS:
                puts += counted.attempts
            elif name in _DELETES:
                deletes += counted.attempts
            else:
                gets += counted.attempts
            up += counted.bytes_up
            down += counted.bytes_down
        return Totals(puts, gets, deletes, up, down)

    def today(self, now_s: float) -> tuple[Totals, float]:
        """Since midnight, and since when that has been counted: midnight, or the first request that is known of."""
        if not self._day_starts_s <= now_s < self._day_ends_s:
            self._begin_day(now_s)
        return self.totals() - self._before, self._today_since_s

    def _begin_day(self, now_s: float) -> None:
        is_first = self._day_ends_s == 0.0
        self._day_starts_s = now_s - now_s % DAY_S
        self._day_ends_s = self._day_starts_s + DAY_S
        self._before = self.totals()
        self._today_since_s = now_s if is_first else self._day_starts_s

    # over a restart

    def to_text(self, now_s: float) -> str:
        """What from_text() of the node's next run wants to know of today."""
        totals, since_s = self.today(now_s)
        return json.dumps({"day": _day_of(now_s), "since_s": since_s, **asdict(totals)})

    def from_text(self, text: str, now_s: float) -> None:
        """Go on with what an earlier run counted, if it was today. ValueError where the text is no such thing."""
        told = json.loads(text)
        if not isinstance(told, dict):
            raise ValueError("not what to_text() wrote")
        if told.get("day") != _day_of(now_s):
            return
        since_s = told.get("since_s")
        numbers = [number for field in fields(Totals) if type(number := told.get(field.name)) is int and number >= 0]
        if len(numbers) < len(fields(Totals)) or not isinstance(since_s, (int, float)):
            raise ValueError("not what to_text() wrote")
        self.today(now_s)
        self._before = self._before - Totals(*numbers)
        self._today_since_s = float(since_s)


def _day_of(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, timezone.utc).strftime("%Y-%m-%d")
