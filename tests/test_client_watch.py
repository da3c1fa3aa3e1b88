# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever keeps an eye on the client: hears how every request ended, and ends those that change the bucket."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from tahoe_s3.client import Cancelled, NotFound, S3Client, S3Error, Throttled, Unavailable

from .support.s3server import S3Server
from .test_client import opened
from .test_client_faults import outcome_of


class Watcher:
    """Lets writes pass until it is told otherwise."""

    def __init__(self, client: S3Client) -> None:
        self.writes = 0
        self.refuse: Exception | None = None
        self.outcomes: list[S3Error | None] = []
        client.watch(before_write=self.before_write, on_outcome=self.outcomes.append)

    def before_write(self) -> None:
        self.writes += 1
        if self.refuse is not None:
            raise self.refuse


@ensureDeferred
async def test_it_hears_how_every_request_ended(s3server: S3Server) -> None:
    client = opened(s3server.url, attempts=2)
    watcher = Watcher(client)
    await client.put("a", b"body")
    await client.get("a")
    missing = await outcome_of(client.head("b"))
    s3server.fail("GetObject", times=2)
    failed = await outcome_of(client.get("a", offset=0, length=2))
    assert watcher.outcomes == [None, None, missing, failed]
    assert isinstance(missing, NotFound) and isinstance(failed, Throttled)
    assert watcher.writes == 1, "asked before the write only"
    await client.close()


@ensureDeferred
async def test_a_watcher_that_fails_disturbs_nothing(s3server: S3Server) -> None:
    client = opened(s3server.url)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    client.watch(before_write=lambda: None, on_outcome=fail)
    await client.put("a", b"body")
    assert (await client.get("a")).data == b"body"
    await client.close()


@ensureDeferred
async def test_what_may_not_be_written_is_not_sent(s3server: S3Server) -> None:
    client = opened(s3server.url)
    await client.put("a", b"body")
    upload_id = await client.create_multipart("b")
    watcher = Watcher(client)
    watcher.refuse = Unavailable("the bucket is another's", kind="local")
    s3server.forget()
    for write in (
        lambda: client.put("a", b"new"), lambda: client.delete("a"), lambda: client.delete_many(["a"]),
        lambda: client.create_multipart("c"), lambda: client.upload_part("b", upload_id, 1, b"x"),
        lambda: client.complete_multipart("b", upload_id, [(1, "e")]), lambda: client.abort_multipart("b", upload_id),
    ):  # fmt: skip
        error = await outcome_of(write())
        assert error is watcher.refuse and error.outcome == "not_applied"
    assert s3server.count() == {} and watcher.writes == 7
    assert (await client.get("a")).data == b"body" and (await client.list_page("")).entries
    await client.close()


@pytest.mark.parametrize("max_connections", [1, 8])
@ensureDeferred
async def test_writes_under_way_can_be_ended(s3server: S3Server, max_connections: int) -> None:
    """Those that the service has, those that wait in the engine, and those that wait for room there."""
    client = opened(s3server.url, max_connections=max_connections, max_queue=max_connections)
    await client.put("a", b"body")
    gate = s3server.hold("PutObject")
    writes = [client.put(f"new{number}", b"x") for number in range(20)]
    seen = await gate.reached
    assert seen.key == "new0"
    client.end_writes()
    for write in writes:
        error = await outcome_of(write)
        assert isinstance(error, Cancelled)
    assert (await client.get("a")).data == b"body", "reads go on"
    gate.release()
    await client.put("b", b"later")
    await client.close()
