# SPDX-License-Identifier: GPL-2.0-or-later
"""S3Client against services that others wrote, as processes of their own."""
from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tahoe_s3.client import AccessDenied, Changed, NoSuchBucket, NotFound, S3Client

from .support.services import Service
from .test_client import opened
from .test_client_faults import outcome_of

PART = 5 * 1024 * 1024


AT_ONCE = 40


def connect(service: Service, bucket: str, **changes: Any) -> S3Client:
    given = {"region": service.region, "access_key_id": service.access_key_id, "secret": service.secret.encode()}
    return opened(service.url, bucket=bucket, **{**given, **changes})


@pytest_twisted.async_yield_fixture
async def client(service: Service) -> AsyncIterator[S3Client]:
    bucket = await deferToThread(service.make_bucket)
    made = connect(service, bucket, prefix="nodes/one/")
    yield made
    await made.close()


@ensureDeferred
async def test_objects(client: S3Client) -> None:
    body = os.urandom(300_000)
    for key in ("plain", "a b+c%d/é中", "shares/aa/aaaa/0"):
        etag = (await client.put(key, body)).etag
        got = await client.get(key, expect_etag=etag)
        assert (got.data, got.size) == (body, len(body))
        assert (await client.get(key, offset=1000, length=5000, expect_etag=etag)).data == body[1000:6000]
        assert (await client.head(key)).size == len(body)
    await client.put("empty", b"")
    assert (await client.get("empty")).data == b""
    assert await client.delete_many(["plain", "a b+c%d/é中", "empty"]) == []
    await client.delete("shares/aa/aaaa/0")
    with pytest.raises(NotFound):
        await client.get("plain")
    with pytest.raises(NotFound):
        await client.head("plain")


@ensureDeferred
async def test_versions_of_an_object(client: S3Client) -> None:
    """Another one has another ETag, also of the same length; many are written and read at once."""
    keys = [f"shares/aa/{number}" for number in range(AT_ONCE)]
    first = await gatherResults([client.put(key, os.urandom(5000)) for key in keys])
    bodies = [os.urandom(5000) for _ in keys]
    second = await gatherResults([client.put(key, body) for key, body in zip(keys, bodies)])
    got = await gatherResults([client.get(key, expect_etag=put.etag) for key, put in zip(keys, second)])
    assert [one.data for one in got] == bodies
    assert all(abs(one.modified_s - time.time()) < 60 for one in got)
    assert isinstance(await outcome_of(client.get(keys[0], expect_etag=first[0].etag)), Changed)
    assert await client.delete_many([*keys, "never/there"]) == []
    assert (await client.list_page("shares/")).entries == []


@ensureDeferred
async def test_listing(client: S3Client) -> None:
    keys = [f"shares/{i % 5:02d}/k{i} +é" for i in range(23)]
    for key in keys:
        await client.put(key, b"123")
    found: list[str] = []
    token = None
    while True:
        page = await client.list_page("shares/", token=token, max_keys=10)
        found += [entry.key for entry in page.entries]
        assert all(entry.size == 3 for entry in page.entries)
        token = page.next_token
        if token is None:
            break
    assert found == sorted(keys)
    page = await client.list_page("shares/", delimiter="/")
    assert page.prefixes == [f"shares/{i:02d}/" for i in range(5)]


@ensureDeferred
async def test_multipart(service: Service, client: S3Client) -> None:
    body = os.urandom(PART + 1000)
    upload = await client.create_multipart("big")
    if service.uploads_by_prefix:
        assert [found.upload_id for found in await client.list_multiparts("")] == [upload]
    parts = [(1, await client.upload_part("big", upload, 1, body[:PART])),
             (2, await client.upload_part("big", upload, 2, body[PART:]))]
    info = await client.complete_multipart("big", upload, parts, expect_size=len(body))
    got = await client.get("big")
    assert (got.data, info.size) == (body, len(body))
    if service.completes_with != "another":
        assert got.etag == info.etag
        again = await client.complete_multipart("big", upload, parts, expect_size=len(body))
        assert again.etag == info.etag
    other = await client.create_multipart("other")
    await client.abort_multipart("other", other)
    assert await client.list_multiparts("") == []


@ensureDeferred
async def test_questions(service: Service, client: S3Client) -> None:
    await client.head_bucket()
    probe = await client.probe()
    assert probe.empty
    assert probe.server_time_s is not None
    assert await client.get_versioning() in (None, "Disabled")
    assert await client.get_object_lock() is None
    absent = connect(service, "no-such-bucket-here")
    with pytest.raises(NoSuchBucket):
        await absent.probe()
    await absent.close()


@pytest.mark.parametrize("wrong", [{"secret": b"another secret"}, {"access_key_id": "AKIDUNKNOWN000000000"}])
@ensureDeferred
async def test_who_is_not_let_in(service: Service, wrong: dict[str, Any]) -> None:
    """One request, since services lock out who comes back."""
    stranger = connect(service, await deferToThread(service.make_bucket), **wrong)
    if not service.checks_keys:
        await stranger.probe()
        await stranger.close()
        return
    for work in (stranger.probe(), stranger.put("k", b"x"), stranger.get("k")):
        assert isinstance(await outcome_of(work), AccessDenied)
    assert sum(stranger.counters.requests.values()) == 3
    assert stranger.stats()["retries"] == 0
    await stranger.close()


@ensureDeferred
async def test_another_region(service: Service) -> None:
    """Some do not look at it, others name the right one, which is adopted."""
    client = connect(service, await deferToThread(service.make_bucket), region="eu-far-7")
    await client.probe()
    await client.put("k", b"x")
    assert (await client.get("k")).data == b"x"
    await client.close()
