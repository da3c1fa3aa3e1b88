# SPDX-License-Identifier: GPL-2.0-or-later
"""S3Client when things go wrong: refusals, lost answers, cancellation, deadlines, no room, the end."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tahoe_s3.client import (
    AccessDenied,
    Busy,
    Cancelled,
    Closed,
    FileRegion,
    LocalError,
    NoSuchUpload,
    S3Error,
    Throttled,
    Unavailable,
)

from .support.s3server import S3Server
from .test_client import opened


def pause(seconds: float) -> Deferred[None]:
    from twisted.internet import reactor

    return deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]


async def outcome_of(d: Deferred[Any]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        await d
    return caught.value


@ensureDeferred
async def test_an_error_reads_like_a_sentence(s3server: S3Server) -> None:
    client = opened(s3server.url, attempts=2)
    s3server.fail("PutObject", times=None)
    error = await outcome_of(client.put("shares/aa/x/0", b"body"))
    assert isinstance(error, Throttled)
    assert str(error).startswith("PUT shares/aa/x/0: 503 SlowDown (as the test asked) after 2 attempts")
    assert client.counters.requests == {"PutObject": 2}
    assert client.counters.errors == {"PutObject": 1}
    assert client.counters.last_error is error
    await client.close()


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (400, "RequestTimeout")])
@ensureDeferred
async def test_a_passing_failure_is_not_noticed(s3server: S3Server, status: int, code: str) -> None:
    client = opened(s3server.url)
    s3server.fail(None, status=status, code=code, times=2)
    await client.put("k", b"body")
    s3server.drop("GetObject")
    assert (await client.get("k")).data == b"body"
    await client.close()


@ensureDeferred
async def test_refused_credentials_are_not_tried_again(s3server: S3Server) -> None:
    client = opened(s3server.url)
    s3server.fail("GetObject", status=403, code="AccessDenied", times=None)
    error = await outcome_of(client.get("k"))
    assert isinstance(error, AccessDenied)
    assert (error.attempts, error.kind) == (1, "auth")
    await client.close()


@ensureDeferred
async def test_nobody_listens() -> None:
    client = opened("http://127.0.0.1:9", attempts=2)
    error = await outcome_of(client.put("k", b"x"))
    assert isinstance(error, Unavailable)
    assert (error.kind, error.outcome, error.status) == ("transport", "not_applied", 0)
    await client.close()


@ensureDeferred
async def test_a_body_that_is_cut_short_goes_on_where_it_ended(s3server: S3Server) -> None:
    client = opened(s3server.url)
    body = os.urandom(500_000)
    await client.put("k", body)
    s3server.drop("GetObject", body_limit_bytes=123_456)
    assert (await client.get("k", offset=0, length=500_000)).data == body
    assert s3server.count()["GetObject"] == 2
    s3server.drop("GetObject", body_limit_bytes=99)
    assert (await client.get("k")).data == body
    await client.close()


@ensureDeferred
async def test_a_lost_answer_to_a_put_is_unknown(s3server: S3Server) -> None:
    client = opened(s3server.url, attempts=1)
    s3server.drop("PutObject", applied=True)
    error = await outcome_of(client.put("k", b"x"))
    assert isinstance(error, Unavailable)
    assert error.outcome == "unknown"
    assert "may have been applied" in str(error)
    await client.close()


@ensureDeferred
async def test_a_lost_answer_to_complete_is_found_out(s3server: S3Server) -> None:
    client = opened(s3server.url)
    upload = await client.create_multipart("k")
    parts = [(1, await client.upload_part("k", upload, 1, b"12345"))]
    s3server.drop("CompleteMultipartUpload", applied=True)
    info = await client.complete_multipart("k", upload, parts, expect_size=5)
    assert (info.size, s3server.bucket.objects["k"].body) == (5, b"12345")
    assert s3server.count()["HeadObject"] == 1
    await client.close()


@ensureDeferred
async def test_another_object_is_not_taken_for_the_completed_one(s3server: S3Server) -> None:
    client = opened(s3server.url)
    upload = await client.create_multipart("k")
    parts = [(1, await client.upload_part("k", upload, 1, b"12345"))]
    await client.abort_multipart("k", upload)
    await client.put("k", b"other")
    with pytest.raises(NoSuchUpload):
        await client.complete_multipart("k", upload, parts, expect_size=5)
    await client.close()


@ensureDeferred
async def test_cancelling(s3server: S3Server) -> None:
    client = opened(s3server.url)
    await client.put("k", b"x")
    gate = s3server.hold(None)
    get, put = client.get("k"), client.put("k", b"y")
    download = client.get_window("k", offset=0, length=1)
    ready = download.when_ready(1)
    await gate.reached
    get.cancel()
    put.cancel()
    download.cancel()
    errors = [await outcome_of(get), await outcome_of(put), await outcome_of(ready)]
    assert all(isinstance(error, Cancelled) for error in errors)
    assert [error.outcome for error in errors] == ["not_applied", "unknown", "not_applied"]
    download.close()
    await pause(0.3)
    assert client.stats()["in_flight"] == 0
    assert client.stats()["budget_used_bytes"] == 0
    await client.close()


@ensureDeferred
async def test_a_deadline(s3server: S3Server) -> None:
    client = opened(s3server.url)
    s3server.hold("GetObject")
    error = await outcome_of(client.get("k", deadline_s=0.2))
    assert isinstance(error, Unavailable)
    assert error.kind == "timeout"
    await client.close()


@ensureDeferred
async def test_a_full_engine_is_waited_for(s3server: S3Server) -> None:
    client = opened(s3server.url, max_connections=2, max_queue=2)
    gets: list[Deferred[Any]] = []
    gate = s3server.hold(None)
    for i in range(50):
        gets.append(client.put(f"k{i}", str(i).encode(), priority=2))
    urgent = client.put("urgent", b"", priority=0)
    late = client.put("late", b"", deadline_s=0.2)
    assert client.stats()["waiting"] >= 40
    assert isinstance(await outcome_of(late), Unavailable)
    gets.pop().cancel()
    gate.release()
    await urgent
    assert [seen.key for seen in s3server.log].index("urgent") <= 5
    for d in gets[:-1]:
        await d
    assert client.stats()["waiting"] == 0
    await client.close()


@ensureDeferred
async def test_waiting_has_a_limit(s3server: S3Server) -> None:
    client = opened(s3server.url, max_connections=1, max_queue=1, max_waiting=3)
    s3server.hold(None)
    puts = [client.put(f"k{i}", b"") for i in range(9)]
    errors = []
    for d in puts:
        d.addErrback(lambda failure: errors.append(failure.value))
    assert len(errors) >= 3
    assert all(isinstance(error, Busy) and error.outcome == "not_applied" for error in errors)
    await client.close()
    assert len(errors) == 9


@ensureDeferred
async def test_memory_is_waited_for_and_asked_back(s3server: S3Server) -> None:
    client = opened(s3server.url, buffer_budget_bytes=1_000_000)
    await client.put("k", os.urandom(900_000))
    asked: list[int] = []
    client.on_budget_wait = asked.append
    first = client.get_window("k", offset=0, length=700_000)
    second = client.get_window("k", offset=0, length=600_000)
    ready = second.when_ready(600_000)
    await first.when_done()
    await client.delete("another")
    assert asked == [600_000]
    assert second.ready == 0
    first.close()
    await ready
    second.close()
    with pytest.raises(ValueError, match="1000001"):
        client.get_window("k", offset=0, length=1_000_001)
    await client.close()


@ensureDeferred
async def test_a_file_that_is_too_short(s3server: S3Server, tmp_path: Path) -> None:
    client = opened(s3server.url)
    path = tmp_path / "f"
    path.write_bytes(b"short")
    with path.open("rb") as file:
        error = await outcome_of(client.put("k", FileRegion(file.fileno(), 0, 1_000_000)))
    assert isinstance(error, LocalError)
    assert error.outcome == "not_applied"
    error = await outcome_of(client.put("k", FileRegion(999_999, 0, 1)))
    assert isinstance(error, LocalError)
    await client.close()


@ensureDeferred
async def test_closing_ends_everything(s3server: S3Server) -> None:
    client = opened(s3server.url, max_connections=1, max_queue=1)
    gate = s3server.hold(None)
    waiting: list[Deferred[Any]] = [client.put(f"k{i}", b"x") for i in range(5)]
    download = client.get_window("k", offset=0, length=10)
    done = download.when_done()
    await gate.reached
    await client.close()
    await client.close()
    for d in [*waiting, done, client.get("k")]:
        assert isinstance(await outcome_of(d), Closed)
    download.close()


@ensureDeferred
async def test_digests_of_parts_decide(s3server: S3Server) -> None:
    """The object of an earlier, equal upload counts as completed."""
    client = opened(s3server.url)
    for attempt in range(2):
        upload = await client.create_multipart("k")
        parts = [(1, await client.upload_part("k", upload, 1, b"12345"))]
        if attempt == 0:
            await client.complete_multipart("k", upload, parts)
    await client.abort_multipart("k", upload)
    info = await client.complete_multipart("k", upload, parts, expect_size=5)
    assert info.etag == hashlib.md5(hashlib.md5(b"12345").digest()).hexdigest() + "-1"
    await client.close()
