# SPDX-License-Identifier: GPL-2.0-or-later
"""What metrics.py counts: by operation, by what is paid for, by day; what counts as an error."""

from __future__ import annotations

import pytest

from tahoe_s3.metrics import BOUNDS_S, DAY_S, MAX_CODES, OTHER, Counters, Operation, Totals, code_of, is_an_answer
from tahoe_s3.s3errors import (
    AccessDenied,
    BadReply,
    Cancelled,
    NoSuchBucket,
    NoSuchUpload,
    NotFound,
    S3Error,
    Throttled,
    Unavailable,
)

NOON_S = 1_790_000_000 // DAY_S * DAY_S + DAY_S / 2


def end(counters: Counters, name: str, *, now_s: float = NOON_S, attempts: int = 1, **numbers: int) -> None:
    counters.ended(name, now_s=now_s, attempts=attempts, **numbers)


def test_each_operation_is_counted_by_itself() -> None:
    counters = Counters()
    end(counters, "PutObject", attempts=3, bytes_up=300, total_us=20_000)
    end(counters, "PutObject", bytes_up=100, total_us=30_000)
    end(counters, "GetObject", bytes_down=50, total_us=5_000)
    end(counters, "GetObject", attempts=0, total_us=99)
    put, get = counters.by_operation["PutObject"], counters.by_operation["GetObject"]
    assert (put.attempts, put.retries, put.ended, put.bytes_up, put.bytes_down) == (4, 2, 2, 400, 0)
    assert (get.attempts, get.retries, get.ended, get.bytes_down) == (1, 0, 1, 50), "one was never sent"
    assert counters.requests == {"PutObject": 4, "GetObject": 1}
    assert put.total_s == pytest.approx(0.05)


@pytest.mark.parametrize(("us", "place"), [(0, 0), (5_000, 0), (5_001, 1), (60_000_000, 12), (60_000_001, 13)])
def test_a_latency_at_a_bound_belongs_below_it(us: int, place: int) -> None:
    counters = Counters()
    end(counters, "GetObject", total_us=us)
    counted = counters.by_operation["GetObject"]
    assert counted.buckets[place] == 1 and sum(counted.buckets) == 1
    assert counted.cumulative()[place:] == [1] * (len(BOUNDS_S) + 1 - place)


def test_two_clients_counts_together() -> None:
    one, other = Counters(), Counters()
    end(one, "GetObject", bytes_down=5, total_us=5_000)
    end(other, "GetObject", attempts=2, bytes_down=7, total_us=6_000)
    end(other, "ListObjectsV2", total_us=70_000_000)
    other.failed(Unavailable("", operation="GetObject", kind="timeout"), NOON_S)
    one.add(other, NOON_S)
    get = one.by_operation["GetObject"]
    assert (get.attempts, get.retries, get.ended, get.bytes_down, get.total_us) == (3, 1, 2, 12, 11_000)
    assert (get.errors, get.buckets[:2], one.by_operation["ListObjectsV2"].buckets[-1]) == ({"timeout": 1}, [1, 1], 1)
    assert one.today(NOON_S)[0] == Totals(puts=1, gets=3, bytes_down=12)


def test_what_part_stayed_below() -> None:
    counters = Counters()
    for us in (1_000, 2_000, 40_000, 70_000_000):
        end(counters, "GetObject", total_us=us)
    counted = counters.by_operation["GetObject"]
    assert (counted.at_most_s(0.5), counted.at_most_s(0.75), counted.at_most_s(0.99)) == (0.005, 0.05, None)
    assert Operation().at_most_s(0.5) is None


@pytest.mark.parametrize(
    "error",
    [
        NotFound("", operation="GetObject", status=404, code="NoSuchKey"),
        NoSuchUpload("", operation="UploadPart", status=404, code="NoSuchUpload"),
        Cancelled("", operation="GetObject", kind="cancelled"),
        S3Error("", operation="GetObjectLockConfiguration", status=404, code="ObjectLockConfigurationNotFoundError"),
        AccessDenied("", operation="GetBucketVersioning", status=403, code="AccessDenied", kind="auth"),
        S3Error("", operation="DeleteObjects", status=501, code="NotImplemented"),
    ],
)
def test_what_is_no_error(error: S3Error) -> None:
    counters = Counters()
    end(counters, error.operation)
    counters.failed(error, NOON_S)
    assert counters.errors == {} and counters.last_error is None and is_an_answer(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoSuchBucket("", operation="GetObject", status=404, code="NoSuchBucket"), "NoSuchBucket"),
        (BadReply("", operation="GetObject", status=404), "404"),
        (Unavailable("", operation="PutObject", kind="timeout"), "timeout"),
        (Throttled("", operation="GetBucketVersioning", status=429), "429"),
        (S3Error("", operation="PutObject", status=501, code="NotImplemented"), "NotImplemented"),
        (S3Error("", operation="PutObject", status=400, code='<b>"x" y'), "_b__x__y"),
    ],
)
def test_what_is_one(error: S3Error, code: str) -> None:
    counters = Counters()
    end(counters, error.operation)
    counters.failed(error, NOON_S)
    assert counters.by_operation[error.operation].errors == {code: 1}
    assert counters.errors == {error.operation: 1}
    assert counters.last_error is error and counters.last_error_at_s == NOON_S


def test_a_service_cannot_fill_the_memory_with_codes() -> None:
    counters = Counters()
    for number in range(1000):
        counters.failed(S3Error("", operation="PutObject", status=400, code=f"Made{number}"), NOON_S)
    errors = counters.by_operation["PutObject"].errors
    assert len(errors) == MAX_CODES + 1 and errors[OTHER] == 1000 - MAX_CODES
    assert len(code_of(S3Error("", code="x" * 5000))) == 60


def test_requests_are_summed_by_what_is_paid() -> None:
    counters = Counters()
    for name in ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "ListObjectsV2"):
        end(counters, name, attempts=2, bytes_up=10)
    for name in ("GetObject", "HeadObject", "GetBucketVersioning"):
        end(counters, name, bytes_down=7)
    for name in ("DeleteObject", "DeleteObjects", "AbortMultipartUpload"):
        end(counters, name)
    assert counters.totals() == Totals(puts=10, gets=3, deletes=3, bytes_up=50, bytes_down=21)


def test_a_day_ends_at_midnight_utc() -> None:
    counters = Counters()
    end(counters, "PutObject", now_s=NOON_S, bytes_up=5)
    end(counters, "PutObject", now_s=NOON_S + 10)
    midnight_s = NOON_S + DAY_S / 2
    assert counters.today(midnight_s - 1) == (Totals(puts=2, bytes_up=5), NOON_S)
    end(counters, "GetObject", now_s=midnight_s)
    assert counters.today(midnight_s + 1) == (Totals(gets=1), midnight_s)
    assert counters.today(midnight_s + DAY_S) == (Totals(), midnight_s + DAY_S), "nobody asked anything"
    assert counters.totals().puts == 2


def test_a_clock_that_is_set_back_begins_the_day_anew() -> None:
    counters = Counters()
    end(counters, "PutObject", now_s=NOON_S)
    end(counters, "PutObject", now_s=NOON_S - DAY_S)
    assert counters.today(NOON_S - DAY_S)[0] == Totals(puts=1)


def test_the_day_goes_on_over_a_restart() -> None:
    first = Counters()
    end(first, "PutObject", bytes_up=5)
    end(first, "GetObject", bytes_down=9)
    text = first.to_text(NOON_S + 60)
    second = Counters()
    end(second, "PutObject", now_s=NOON_S + 100)
    second.from_text(text, NOON_S + 100)
    end(second, "DeleteObjects", now_s=NOON_S + 120)
    assert second.today(NOON_S + 130) == (Totals(puts=2, gets=1, deletes=1, bytes_up=5, bytes_down=9), NOON_S)
    assert second.totals() == Totals(puts=1, deletes=1), "since the start"
    third = Counters()
    third.from_text(second.to_text(NOON_S + 130), NOON_S + DAY_S)
    assert third.today(NOON_S + DAY_S)[0] == Totals(), "yesterday's"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"day": "%s"}', '{"day": "%s", "puts": -1, "since_s": 0}'])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    counters = Counters()
    today = Counters().to_text(NOON_S)[9:19]
    with pytest.raises(ValueError):
        counters.from_text(text.replace("%s", today), NOON_S)
    assert counters.today(NOON_S)[0] == Totals()
