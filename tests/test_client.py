# SPDX-License-Identifier: GPL-2.0-or-later
"""Each operation of S3Client, on a server that checks every signature itself (tests/support/s3server.py)."""
from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.logger import formatEvent, globalLogPublisher

from tahoe_s3.client import (
    AccessDenied,
    BadReply,
    Changed,
    ClientConfig,
    FileRegion,
    NoSuchBucket,
    NoSuchUpload,
    NotFound,
    Page,
    S3Client,
    S3Error,
    Throttled,
    open_client,
)

from .native.scripted import ScriptedServer, answer
from .support.s3server import S3Server

SECRET = "secret/of+the=test"


def configure(url: str, **changes: Any) -> ClientConfig:
    values: dict[str, Any] = {"endpoint": url, "region": "us-east-1", "bucket": "bucket", "max_connections": 8,
                              "access_key_id": "AKIDTESTTEST", "secret": SECRET.encode(), **changes}
    return ClientConfig(**values)


def opened(url: str, **changes: Any) -> S3Client:
    from twisted.internet import reactor

    return open_client(reactor, configure(url, **changes))  # type: ignore[arg-type]


@pytest_twisted.async_yield_fixture(params=["", "some/where/"])
async def client(request: pytest.FixtureRequest, s3server: S3Server) -> AsyncIterator[S3Client]:
    """Once without a prefix and once with one: no operation may tell the difference."""
    made = opened(s3server.url, prefix=request.param)
    yield made
    await made.close()


def stored(server: S3Server, client: S3Client, key: str) -> bytes | None:
    found = server.bucket.objects.get(client._prefix + key)
    return None if found is None else found.body


@ensureDeferred
async def test_put_and_get(s3server: S3Server, client: S3Client) -> None:
    body = os.urandom(100_000)
    put = await client.put("shares/aa/x y+é%/0", body)
    assert stored(s3server, client, "shares/aa/x y+é%/0") == body
    assert (put.key, put.size, put.etag) == ("shares/aa/x y+é%/0", 100_000, hashlib.md5(body).hexdigest())
    got = await client.get("shares/aa/x y+é%/0")
    assert (got.data, got.size, got.etag) == (body, 100_000, put.etag)
    assert abs(got.modified_s - put.modified_s) <= 2
    assert client.counters.requests == {"PutObject": 1, "GetObject": 1}
    assert not s3server.refused


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"abc"), (3, 4, b"defg"), (20, 100, b"uvwxyz"), (25, None, b"z"), (0, None, None), (0, 26, None)],
)
@ensureDeferred
async def test_ranges(
    client: S3Client, offset: int, length: int | None, expected: bytes | None,
) -> None:
    body = b"abcdefghijklmnopqrstuvwxyz"
    await client.put("k", body)
    got = await client.get("k", offset=offset, length=length)
    assert (got.data, got.size) == (body if expected is None else expected, 26)


@ensureDeferred
async def test_an_object_too_large_for_one_answer(s3server: S3Server, client: S3Client) -> None:
    body = os.urandom(1 << 20) * 33
    s3server.bucket.put(client._prefix + "k", body, now_s=s3server.wall_s(), metadata={})
    got = await client.get("k")
    assert got.data == body
    assert s3server.count() == {"GetObject": 2, "HeadObject": 1}


@ensureDeferred
async def test_an_empty_object(client: S3Client) -> None:
    await client.put("empty", b"")
    got = await client.get("empty")
    assert (got.data, got.size) == (b"", 0)
    assert (await client.head("empty")).size == 0


@ensureDeferred
async def test_a_region_of_a_file_is_put(s3server: S3Server, client: S3Client, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    path = tmp_path / "spool"
    path.write_bytes(body)
    with path.open("rb") as file:
        put = client.put("k", FileRegion(file.fileno(), 1000, 2_500_000))
    info = await put  # the descriptor was duplicated
    assert (info.size, stored(s3server, client, "k")) == (2_500_000, body[1000:2_501_000])


@ensureDeferred
async def test_head_and_delete(client: S3Client) -> None:
    put = await client.put("k", b"12345")
    info = await client.head("k")
    assert (info.key, info.size, info.etag) == ("k", 5, put.etag)
    await client.delete("k")
    with pytest.raises(NotFound):
        await client.head("k")
    await client.delete("k")


@ensureDeferred
async def test_an_absence_says_what_is_absent(client: S3Client) -> None:
    with pytest.raises(NotFound) as caught:
        await client.get("shares/aa/nothing/0")
    error = caught.value
    assert (error.status, error.code, error.key) == (404, "NoSuchKey", "shares/aa/nothing/0")
    assert (error.operation, error.outcome, error.attempts) == ("GetObject", "not_applied", 1)
    assert str(error).startswith("GET shares/aa/nothing/0: 404 NoSuchKey (")
    assert error.request_id in str(error)
    assert client.counters.errors == {}


@ensureDeferred
async def test_a_changed_object_is_not_read(client: S3Client) -> None:
    etag = (await client.put("k", b"old")).etag
    await client.put("k", b"new")
    for length in (None, 3):
        with pytest.raises(Changed):
            await client.get("k", length=length, expect_etag=etag)
    assert (await client.get("k", length=3)).data == b"new"


@ensureDeferred
async def test_a_window_is_read_while_it_arrives(s3server: S3Server, client: S3Client) -> None:
    body = os.urandom(2_000_000)
    etag = (await client.put("k", body)).etag
    download = client.get_window("k", offset=500_000, length=1_200_000, expect_etag=etag)
    await download.when_ready(10_000)
    assert download.read(0, 10_000) == body[500_000:510_000]
    await download.when_ready(1_200_000)
    assert download.read(1_100_000, 100_000) == body[1_600_000:1_700_000]
    info = await download.when_done()
    assert (info.size, info.etag) == (2_000_000, etag)
    assert await download.when_ready(1) is None
    with pytest.raises(ValueError, match="1200001"):
        download.when_ready(1_200_001)
    download.close()
    download.close()
    with pytest.raises(ValueError, match="closed"):
        download.read(0, 1)
    assert client.stats()["budget_used_bytes"] == 0


@ensureDeferred
async def test_a_window_past_the_end_is_ready_as_far_as_the_object_goes(client: S3Client) -> None:
    await client.put("k", b"0123456789")
    download = client.get_window("k", offset=4, length=100)
    await download.when_ready(100)
    assert (download.ready, download.read(0, download.ready)) == (6, b"456789")
    download.close()


@ensureDeferred
async def test_pages_and_the_whole_listing(s3server: S3Server, client: S3Client) -> None:
    keys = [f"shares/{i % 7:02d}/k é+{i}" for i in range(60)]
    for key in keys:
        await client.put(key, b"x" * 3)
    await client.put("other", b"")
    s3server.settings.page_size = 25
    page = await client.list_page("shares/")
    assert [entry.key for entry in page.entries] == sorted(keys)[:25]
    assert page.next_token is not None
    page = await client.list_page("shares/", token=page.next_token)
    assert [entry.key for entry in page.entries] == sorted(keys)[25:50]
    assert page.entries[0].size == 3
    found: list[str] = []

    def on_page(page: Page) -> None:
        found.extend(entry.key for entry in page.entries)

    assert await client.list_all("shares/", on_page) == 60
    assert found == sorted(keys)
    after = await client.list_page("shares/", start_after=sorted(keys)[55])
    assert [entry.key for entry in after.entries] == sorted(keys)[56:]
    folders = await client.list_page("shares/", delimiter="/")
    assert folders.prefixes == [f"shares/{i:02d}/" for i in range(7)]
    assert "ListObjects" not in client.counters.requests


@ensureDeferred
async def test_a_service_without_v2_is_listed_by_v1(s3server: S3Server, client: S3Client) -> None:
    s3server.settings.list_v2 = False
    s3server.settings.page_size = 4
    for i in range(10):
        await client.put(f"k{i}", b"")
    found: list[str] = []
    await client.list_all("", lambda page: found.extend(entry.key for entry in page.entries))  # type: ignore[func-returns-value]
    assert found == [f"k{i}" for i in range(10)]
    after = await client.list_page("", start_after="k7")
    assert [entry.key for entry in after.entries] == ["k8", "k9"]
    assert client.counters.requests.get("ListObjectsV2", 0) <= 1


@ensureDeferred
async def test_a_service_that_answers_v2_with_v1_is_listed_by_v1() -> None:
    """It ignores what it does not know: list-type, and start-after."""
    targets: list[str] = []

    def respond(what: str, _body: bytes) -> bytes:
        targets.append(what)
        marker = parse_qs(urlsplit(what).query).get("marker", [""])[0]
        rows = "".join(
            f"<Contents><Key>k{i}</Key><LastModified>2023-01-01T00:00:30Z</LastModified><ETag>e</ETag>"
            "<Size>1</Size></Contents>"
            for i in range(6) if f"k{i}" > marker
        )
        cut = "</Contents>".join(rows.split("</Contents>")[:2]) + "</Contents>" if rows.count("<Key>") > 2 else rows
        more = "true" if cut != rows else "false"
        return answer(f"<ListBucketResult><Marker>{marker}</Marker><IsTruncated>{more}</IsTruncated>{cut}"
                      "</ListBucketResult>".encode())

    server = ScriptedServer(respond)
    client = opened(server.url)
    page = await client.list_page("", start_after="k2")
    assert [entry.key for entry in page.entries] == ["k3", "k4"]
    assert page.next_token is not None
    page = await client.list_page("", token=page.next_token)
    assert [entry.key for entry in page.entries] == ["k5"]
    assert ["list-type" in target for target in targets] == [True, False, False]
    await client.close()
    server.close()


@ensureDeferred
async def test_many_are_deleted_in_one_request(s3server: S3Server, client: S3Client) -> None:
    keys = [f"k {i}<&>é\t" for i in range(30)]
    for key in keys:
        await client.put(key, b"")
    assert await client.delete_many([*keys, "never was"]) == []
    assert s3server.bucket.objects == {}
    assert s3server.count()["DeleteObjects"] == 1


@ensureDeferred
async def test_keys_that_are_refused_are_told(s3server: S3Server, client: S3Client) -> None:
    for key in ("a", "b", "c"):
        await client.put(key, b"")
    s3server.settings.delete_errors = {client._prefix + "b": "AccessDenied"}
    assert await client.delete_many(["a", "b", "c"]) == [("b", "AccessDenied")]


@ensureDeferred
async def test_who_deletes_many_and_fails_may_have_deleted_some(s3server: S3Server, client: S3Client) -> None:
    """One by one, or in a second thousand: what failed was not applied, but something was."""
    keys = [f"{number:04}" for number in range(1001)]
    for key in ("0000", "0001", "1000"):
        await client.put(key, b"")
    impatient = opened(s3server.url, prefix=client._prefix, attempts=1)
    try:
        await _fail_deletions(s3server, client, impatient, keys)
    finally:
        await impatient.close()


async def _fail_deletions(s3server: S3Server, client: S3Client, impatient: S3Client, keys: list[str]) -> None:
    busy = s3server.fail("DeleteObjects", status=503, code="SlowDown", times=None)
    with pytest.raises(Throttled) as caught:
        await impatient.delete_many(keys)
    assert caught.value.outcome == "not_applied"
    s3server.rules.remove(busy)
    s3server.hold("DeleteObjects", times=1).release()
    s3server.fail("DeleteObjects", status=503, code="SlowDown", times=None)
    with pytest.raises(Throttled) as caught:
        await impatient.delete_many(keys)
    assert caught.value.outcome == "unknown" and len(s3server.bucket.objects) == 1
    s3server.clear_rules()
    s3server.settings.multi_delete = False
    await client.put("0000", b"")
    s3server.fail("DeleteObject", key="0001", status=503, code="SlowDown", times=None)
    with pytest.raises(Throttled) as caught:
        await impatient.delete_many(["0000", "0001"])
    assert caught.value.outcome == "unknown" and len(s3server.bucket.objects) == 1


@ensureDeferred
async def test_without_multi_delete_they_go_one_by_one(s3server: S3Server, client: S3Client) -> None:
    s3server.settings.multi_delete = False
    for key in ("a", "b", "c"):
        await client.put(key, b"")
    assert await client.delete_many(["a", "b"]) == []
    assert await client.delete_many(["c"]) == []
    assert s3server.bucket.objects == {}
    assert client.counters.requests["DeleteObjects"] == 1
    assert client.counters.requests["DeleteObject"] == 3


@ensureDeferred
async def test_multipart(s3server: S3Server, client: S3Client) -> None:
    upload = await client.create_multipart("big")
    assert [(found.key, found.upload_id) for found in await client.list_multiparts("")] == [("big", upload)]
    one, two = os.urandom(200_000), os.urandom(5)
    etags = [(2, await client.upload_part("big", upload, 2, two)), (1, await client.upload_part("big", upload, 1, one))]
    assert stored(s3server, client, "big") is None
    info = await client.complete_multipart("big", upload, etags, expect_size=200_005)
    assert stored(s3server, client, "big") == one + two
    assert (await client.head("big")).etag == info.etag
    assert info.size == 200_005
    assert await client.list_multiparts("") == []


@ensureDeferred
async def test_an_aborted_upload_is_gone(client: S3Client) -> None:
    upload = await client.create_multipart("big")
    await client.upload_part("big", upload, 1, b"x")
    await client.abort_multipart("big", upload)
    await client.abort_multipart("big", upload)
    with pytest.raises(NoSuchUpload):
        await client.upload_part("big", upload, 2, b"y")
    with pytest.raises(NoSuchUpload):
        await client.complete_multipart("big", upload, [(1, "00")], expect_size=1)


@ensureDeferred
async def test_questions_about_the_bucket(s3server: S3Server, client: S3Client) -> None:
    await client.head_bucket()
    probe = await client.probe()
    assert probe.empty
    assert probe.server_time_s is not None
    assert abs(probe.server_time_s - s3server.wall_s()) < 5
    await client.put("k", b"")
    assert not (await client.probe()).empty
    assert await client.get_versioning() == "Disabled"
    assert await client.get_object_lock() is None
    s3server.settings.versioning = "Enabled"
    s3server.settings.object_lock = True
    assert await client.get_versioning() == "Enabled"
    assert await client.get_object_lock() == "Enabled"


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"bucket": "another"}, NoSuchBucket), ({"secret": b"wrong"}, AccessDenied),
     ({"access_key_id": "AKIDUNKNOWN"}, AccessDenied)],
)
@ensureDeferred
async def test_what_is_wrong_with_a_bucket_is_told(s3server: S3Server, changes: Any, error: type[S3Error]) -> None:
    client = opened(s3server.url, **changes)
    with pytest.raises(error) as caught:
        await client.probe()
    assert caught.value.attempts == 1
    for text in (str(caught.value), repr(caught.value), repr(client), repr(configure(s3server.url, **changes))):
        assert SECRET not in text
        assert "wrong" not in text
    await client.close()


@ensureDeferred
async def test_the_region_is_adopted(s3server: S3Server) -> None:
    s3server.settings.region = "eu-far-7"
    client = opened(s3server.url)
    await client.put("k", b"x")
    await client.put("l", b"x")
    assert len(s3server.refused) == 1
    assert client.region == "eu-far-7"
    await client.close()


@ensureDeferred
async def test_a_wrong_clock_is_corrected_and_told(s3server: S3Server) -> None:
    import time

    s3server.wall_s = lambda: time.time() + 7200
    told: list[str] = []
    client = opened(s3server.url)

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace", "").startswith("tahoe_s3.transfer"):
            told.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        await client.put("k", b"x")
        await client.put("l", b"x")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert abs(client.stats()["skew_s"] - 7200) < 5
    assert client.clock_difference_s is not None
    assert abs(client.clock_difference_s - 7200) < 5
    assert len(told) == 1
    assert told[0].startswith("This machine's clock (")
    await client.close()


@ensureDeferred
async def test_every_request_carries_the_token(s3server: S3Server) -> None:
    s3server.settings.token = "user,product"
    client = opened(s3server.url, token="user,product")
    await client.put("k", b"x")
    assert (await client.get("k")).data == b"x"
    assert await client.delete_many(["k"]) == []
    assert all(seen.values("x-amz-security-token") == ["user,product"] for seen in s3server.log)
    assert "user,product" not in repr(configure(s3server.url, token="user,product"))
    await client.close()


@pytest.mark.parametrize("prefix", ["no-slash", "/rooted/"])
def test_a_prefix_is_a_folder(prefix: str) -> None:
    with pytest.raises(ValueError, match="slash"):
        opened("http://127.0.0.1:1", prefix=prefix)


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://h/path", "http://", ""])
def test_an_impossible_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):
        opened(endpoint)


@ensureDeferred
async def test_an_answer_that_is_no_s3s(s3server: S3Server) -> None:
    """An HTML page with status 404 is not an absence."""
    from twisted.internet import reactor
    from twisted.web.resource import Resource
    from twisted.web.server import Request, Site

    class Page(Resource):
        isLeaf = True

        def render(self, request: Request) -> bytes:
            request.setResponseCode(404)
            return b"<html><body>No such page</body></html>"

    port: Any = reactor.listenTCP(0, Site(Page()), interface="127.0.0.1")  # type: ignore[attr-defined]
    client = opened(f"http://127.0.0.1:{port.getHost().port}")
    for d in (client.get("k"), client.get("k", length=5), client.delete("k"), client.probe()):
        with pytest.raises(BadReply):
            await d
    await client.close()
    await port.stopListening()
