# SPDX-License-Identifier: GPL-2.0-or-later
"""S3Client on services with habits of their own (tests/support/habits.py); tests/live/test_habits.py has nodes."""
from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred

from tahoe_s3.client import (
    AccessDenied,
    BadReply,
    Changed,
    NotFound,
    S3Client,
    S3Error,
    Throttled,
    Unavailable,
    WrongRegion,
)

from .support.habits import PAGE, RCLONE_CREATE, HabitServer, replacing
from .support.sigcheck import Denied
from .test_client import opened
from .test_client_faults import outcome_of


@pytest_twisted.async_yield_fixture
async def odd() -> AsyncIterator[HabitServer]:
    from twisted.internet import reactor

    server = HabitServer(reactor, min_part_bytes=1)
    server.start()
    yield server
    await server.stop()


@pytest_twisted.async_yield_fixture
async def client(odd: HabitServer) -> AsyncIterator[S3Client]:
    made = opened(odd.url, prefix="here/")
    yield made
    await made.close()


async def keys_of(client: S3Client, prefix: str = "") -> list[str]:
    found: list[str] = []

    def on_page(page: Any) -> None:
        found.extend(entry.key for entry in page.entries)

    await client.list_all(prefix, on_page)
    return found


async def fill(client: S3Client, count: int = 23) -> list[str]:
    keys = [f"shares/{i % 5:02d}/k{i} +é" for i in range(count)]
    for key in keys:
        await client.put(key, b"123")
    return sorted(keys)


# listings


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "InvalidArgument"), (400, "InvalidRequest"), (501, ""),
     (405, ""), (400, "")],
)
@ensureDeferred
async def test_no_listing_of_version_2(odd: HabitServer, client: S3Client, status: int, code: str) -> None:
    keys = await fill(client)
    odd.habits.refused["ListObjectsV2"] = (status, code)
    odd.bucket.shuffled = True
    odd.settings.page_size = 7
    assert await keys_of(client) == keys
    assert client.counters.requests["ListObjectsV2"] == 1
    await keys_of(client)
    assert client.counters.requests["ListObjectsV2"] == 1


@ensureDeferred
async def test_a_refusal_is_no_lack_of_version_2(odd: HabitServer, client: S3Client) -> None:
    """Bad credentials are not sent once more in another form."""
    odd.habits.refused["ListObjectsV2"] = (403, "AccessDenied")
    assert isinstance(await outcome_of(client.list_page("")), AccessDenied)
    odd.habits.refused["ListObjectsV2"] = (400, "ExpiredToken")
    assert isinstance(await outcome_of(client.list_page("")), S3Error)
    assert "ListObjects" not in client.counters.requests


@ensureDeferred
async def test_pages_out_of_order_with_doubles_and_overlaps(odd: HabitServer, client: S3Client) -> None:
    """Each page is sorted, and of all pages together each key comes once, in order."""
    keys = await fill(client)
    odd.settings.page_size, odd.bucket.shuffled, odd.bucket.overlap = 5, True, 3
    page = await client.list_page("shares/")
    assert [entry.key for entry in page.entries] == sorted(entry.key for entry in page.entries)
    assert await keys_of(client, "shares/") == keys
    assert odd.count()["ListObjectsV2"] >= len(keys) // 5


@ensureDeferred
async def test_escaped_slashes(odd: HabitServer, client: S3Client) -> None:
    keys = await fill(client)
    odd.settings.escape_slash, odd.settings.page_size = True, 9
    assert await keys_of(client) == keys
    folders = await client.list_page("shares/", delimiter="/")
    assert folders.prefixes == [f"shares/{i:02d}/" for i in range(5)]
    odd.settings.list_v2 = False
    other = opened(odd.url, prefix="here/")
    assert await keys_of(other) == keys
    await other.close()
    upload = await client.create_multipart("shares/aa/x é")
    assert [(found.key, found.upload_id) for found in await client.list_multiparts("shares/")] == [
        ("shares/aa/x é", upload)
    ]


@ensureDeferred
async def test_keys_of_others_are_not_shown(odd: HabitServer, client: S3Client) -> None:
    """Gateways to file systems show folders as keys; and a service that does not look at the prefix shows all."""
    keys = await fill(client)
    for key in ("here", "hereafter/k", "here/", "there/shares/k", "a", "z"):
        odd.bucket.put(key, b"", now_s=1.0)
    odd.bucket.put("here/shares/", b"", now_s=1.0)
    odd.bucket.ignores_prefix, odd.settings.page_size = True, 4
    assert [key for key in await keys_of(client) if key] == ["shares/", *keys]


@ensureDeferred
async def test_uploads_come_in_pages(odd: HabitServer, client: S3Client) -> None:
    odd.settings.page_size = 2
    uploads = [(key, await client.create_multipart(key)) for key in ("shares/aa/é +%", "shares/aa/b", "shares/aa/b")]
    uploads += [(key, await client.create_multipart(key)) for key in ("shares/ab/c", "shares/aa/a&b")]
    await client.create_multipart("elsewhere")
    found = await client.list_multiparts("shares/")
    assert sorted((upload.key, upload.upload_id) for upload in found) == sorted(uploads)
    assert odd.count()["ListMultipartUploads"] == 3


@ensureDeferred
async def test_a_prefix_of_uploads_is_taken_for_a_key(odd: HabitServer) -> None:
    """In a bucket of our own none is sent, so MinIO finds what a crash left behind."""
    odd.bucket.uploads_of_one_key = True
    client = opened(odd.url)
    upload = await client.create_multipart("shares/aa/b")
    await client.create_multipart("elsewhere")
    assert [(found.key, found.upload_id) for found in await client.list_multiparts("shares/")] == [
        ("shares/aa/b", upload)
    ]
    await client.close()


@pytest.mark.parametrize("version", [1, 2])
@ensureDeferred
async def test_a_listing_that_goes_in_circles_ends(odd: HabitServer, client: S3Client, version: int) -> None:
    await fill(client, 9)
    odd.settings.page_size, odd.settings.list_v2 = 2, version == 2
    turns = iter(range(1000))
    show = odd.bucket.list

    def circle(*, prefix: str, delimiter: str, after: str, limit: int) -> Any:
        """Every third page begins anew."""
        start = "" if next(turns) % 3 == 0 else after
        return show(prefix=prefix, delimiter=delimiter, after=start, limit=limit)

    odd.bucket.list = circle  # type: ignore[method-assign]
    error = await outcome_of(client.list_all("", lambda page: None))
    assert isinstance(error, BadReply)
    assert len(odd.log) < 30


@ensureDeferred
async def test_a_lagging_listing_is_not_asked_about_what_is_there(odd: HabitServer, client: S3Client) -> None:
    await client.put("gone", b"x")
    odd.bucket.lag = True
    await client.put("fresh", b"y")
    await client.delete("gone")
    assert await keys_of(client) == ["gone"]
    assert (await client.get("fresh")).data == b"y"
    with pytest.raises(NotFound):
        await client.head("gone")


# questions and operations that are refused


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (405, "MethodNotAllowed"), (405, ""), (501, "")])
@ensureDeferred
async def test_questions_that_are_not_known(odd: HabitServer, client: S3Client, status: int, code: str) -> None:
    for operation in ("ListMultipartUploads", "GetBucketVersioning", "GetObjectLockConfiguration"):
        odd.habits.refused[operation] = (status, code)
    assert await client.list_multiparts("") == []
    assert await client.get_versioning() is None
    assert await client.get_object_lock() is None
    assert sum(client.counters.requests.values()) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "InvalidRequest"), (400, "MalformedXML"), (400, "")],
)
@ensureDeferred
async def test_no_multi_delete(odd: HabitServer, client: S3Client, status: int, code: str) -> None:
    odd.habits.refused["DeleteObjects"] = (status, code)
    keys = await fill(client)
    assert await client.delete_many(keys) == []
    assert odd.bucket.objects == {}
    assert client.counters.requests["DeleteObjects"] == 1


@ensureDeferred
async def test_multi_delete_has_a_content_md5(odd: HabitServer, client: S3Client) -> None:
    """The server refuses one without it, and checks it."""
    keys = await fill(client)
    odd.settings.delete_errors = {f"here/{keys[3]}": "InternalError", f"here/{keys[4]}": "NoSuchKey"}
    assert await client.delete_many(keys) == [(keys[3], "InternalError")]
    (seen,) = [seen for seen in odd.log if seen.operation == "DeleteObjects"]
    assert len(seen.values("content-md5")) == 1
    assert "content-md5" in seen.values("authorization")[0]


@ensureDeferred
async def test_a_multi_delete_that_nobody_can_read(odd: HabitServer, client: S3Client) -> None:
    """Deleting again is harmless, so each key is deleted by itself."""
    odd.habits.bodies["DeleteObjects"] = lambda _: PAGE
    keys = await fill(client)
    assert await client.delete_many(keys[:20]) == []
    assert await client.delete_many(keys[20:]) == []
    assert odd.bucket.objects == {}
    assert client.counters.requests["DeleteObject"] == len(keys)


@ensureDeferred
async def test_a_deletion_is_not_believed_from_a_page(odd: HabitServer, client: S3Client) -> None:
    """S3 says 204. To another success a HEAD says whether the object is gone."""
    await client.put("k", b"body")
    odd.habits.pages, odd.habits.page_status = {"DeleteObject": 1}, 200
    error = await outcome_of(client.delete("k"))
    assert isinstance(error, BadReply)
    assert (error.outcome, "shows it still" in str(error)) == ("unknown", True)
    odd.habits.pages = {"DeleteObjects": 99, "DeleteObject": 99}
    assert isinstance(await outcome_of(client.delete_many(["k"])), BadReply)
    odd.habits.pages = {}
    await client.delete("k")
    assert odd.bucket.objects == {}
    odd.habits.refused["DeleteObject"] = (200, "")
    await client.delete("k")
    assert client.counters.requests["HeadObject"] == 3


@pytest.mark.parametrize("named", [b"", b"here/another"])
@ensureDeferred
async def test_a_failure_of_nobody_knows_which_key(odd: HabitServer, client: S3Client, named: bytes) -> None:
    """Only failures are named, so this one would pass for a deletion."""
    keys = await fill(client)
    odd.settings.delete_errors = {f"here/{keys[3]}": "InternalError"}
    odd.habits.bodies["DeleteObjects"] = replacing((f"here/{keys[3]}".encode(), named))
    assert await client.delete_many(keys) == []
    assert odd.bucket.objects == {}
    assert client.counters.requests["DeleteObject"] == len(keys)


# ETags and what answers lack


@ensureDeferred
async def test_etags_that_are_no_md5(odd: HabitServer, client: S3Client) -> None:
    """Equal bytes put twice are another version."""
    odd.bucket.opaque_etags = True
    first = await client.put("k", b"body")
    second = await client.put("k", b"body")
    assert first.etag != second.etag
    assert (await client.get("k", expect_etag=second.etag)).data == b"body"
    assert isinstance(await outcome_of(client.get("k", expect_etag=first.etag)), Changed)
    upload = await client.create_multipart("m")
    parts = [(number, await client.upload_part("m", upload, number, b"x" * 10)) for number in (1, 2)]
    odd.drop("CompleteMultipartUpload", applied=True)
    info = await client.complete_multipart("m", upload, parts, expect_size=20)
    assert info.etag == odd.bucket.objects["here/m"].etag.strip('"')


@ensureDeferred
async def test_another_name_for_the_result_of_create(odd: HabitServer, client: S3Client) -> None:
    odd.habits.bodies["CreateMultipartUpload"] = RCLONE_CREATE
    upload = await client.create_multipart("m")
    etag = await client.upload_part("m", upload, 1, b"x" * 10)
    await client.complete_multipart("m", upload, [(1, etag)], expect_size=10)
    assert odd.bucket.objects["here/m"].body == b"x" * 10


@ensureDeferred
async def test_another_error_for_an_upload_that_has_ended(odd: HabitServer, client: S3Client) -> None:
    """S3Proxy says NoSuchKey to a Complete whose first answer was lost."""
    odd.habits.bodies["CompleteMultipartUpload"] = lambda body: body.replace(b"NoSuchUpload", b"NoSuchKey")
    upload = await client.create_multipart("m")
    parts = [(1, await client.upload_part("m", upload, 1, b"x" * 10))]
    odd.drop("CompleteMultipartUpload", applied=True)
    assert (await client.complete_multipart("m", upload, parts, expect_size=10)).size == 10
    assert isinstance(await outcome_of(client.complete_multipart("n", upload, parts, expect_size=10)), NotFound)


@ensureDeferred
async def test_weak_etags(odd: HabitServer, client: S3Client) -> None:
    """A proxy that might compress makes strong ETags weak; the bytes are the same."""
    etag = (await client.put("k", b"body")).etag
    odd.habits.extra = {"etag": f'W/"{etag}"'}
    assert (await client.get("k", expect_etag=etag)).data == b"body"
    assert (await client.head("k")).etag == etag


@ensureDeferred
async def test_a_write_is_not_believed_without_an_etag(odd: HabitServer, client: S3Client) -> None:
    """A HEAD tells the ETag and the size; a page of a proxy with status 200 is no success."""
    for operation in ("PutObject", "CompleteMultipartUpload"):
        odd.habits.without[operation] = {"etag", "last-modified"}
    info = await client.put("k", b"body")
    assert (info.size, info.etag) == (4, odd.bucket.objects["here/k"].etag.strip('"'))
    assert client.counters.requests == {"PutObject": 1, "HeadObject": 1}
    odd.habits.pages, odd.habits.page_status = {"PutObject": 3}, 200
    error = await outcome_of(client.put("other", b"body"))
    assert isinstance(error, BadReply)
    assert error.outcome == "unknown"
    assert "may have been applied" in str(error)
    error = await outcome_of(client.put("k", b"longer body"))
    assert isinstance(error, BadReply)
    assert "shows another size" in str(error)
    odd.bucket.put("here/k", b"old!", now_s=odd.wall_s() - 3600)
    assert "shows an older one" in str(await outcome_of(client.put("k", b"new!")))


@ensureDeferred
async def test_a_part_without_an_etag_is_not_stored(odd: HabitServer, client: S3Client) -> None:
    odd.habits.without["UploadPart"] = {"etag"}
    upload = await client.create_multipart("m")
    assert isinstance(await outcome_of(client.upload_part("m", upload, 1, b"x")), BadReply)


@ensureDeferred
async def test_missing_dates_and_lengths(odd: HabitServer, client: S3Client) -> None:
    etag = (await client.put("k", b"0123456789")).etag
    for operation in ("GetObject", "HeadObject"):
        odd.habits.without[operation] = {"last-modified"}
    assert (await client.head("k")).modified_s == 0
    got = await client.get("k", offset=2, length=3, expect_etag=etag)
    assert (got.data, got.size, got.modified_s) == (b"234", 10, 0)
    odd.habits.without["HeadObject"] = {"content-length"}
    error = await outcome_of(client.head("k"))
    assert isinstance(error, BadReply), "an unknown size must not pass for an empty object"


# how answers come


@pytest.mark.parametrize(
    "change", [{"chunked": True}, {"lower_case": True}, {"closes": "says"}, {"closes": "silently"}]
)
@ensureDeferred
async def test_shapes_of_answers(odd: HabitServer, client: S3Client, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(odd.habits, name, value)
    body = os.urandom(700_000)
    etag = (await client.put("k", body)).etag
    for length in (None, 700_000, 250_000):
        got = await client.get("k", length=length, expect_etag=etag)
        assert (got.data, got.size, got.etag) == (body[:length], 700_000, etag)
        assert abs(got.modified_s - odd.wall_s()) < 60
    assert (await client.head("k")).size == 700_000
    assert await keys_of(client) == ["k"]
    upload = await client.create_multipart("m")
    parts = [(number, await client.upload_part("m", upload, number, body)) for number in (1, 2, 3)]
    assert (await client.complete_multipart("m", upload, parts, expect_size=2_100_000)).size == 2_100_000
    assert (await client.get("m")).data == body * 3
    assert isinstance(await outcome_of(client.get("absent")), NotFound)
    assert await client.delete_many(["k", "m"]) == []
    assert not odd.refused
    assert all(count == 1 for count in (odd.count()["CompleteMultipartUpload"], odd.count()["DeleteObjects"]))


@ensureDeferred
async def test_connections_that_close_under_many_requests(odd: HabitServer, client: S3Client) -> None:
    """Each answer may be the last of its connection, and nothing says so before."""
    from twisted.internet.defer import gatherResults

    odd.habits.closes = "silently"
    for _ in range(5):
        await gatherResults([client.put(f"k{i}", b"x" * i) for i in range(40)])
    assert len(await keys_of(client)) == 40
    assert [len(got.data) for got in await gatherResults([client.get(f"k{i}") for i in range(40)])] == list(range(40))


@ensureDeferred
async def test_a_chunked_answer_that_breaks_off(odd: HabitServer, client: S3Client) -> None:
    odd.habits.chunked = True
    body = os.urandom(400_000)
    await client.put("k", body)
    for length in (None, 400_000):
        odd.drop("GetObject", body_limit_bytes=100_000)
        assert (await client.get("k", length=length)).data == body
    odd.drop("ListObjectsV2", body_limit_bytes=150)
    assert await keys_of(client) == ["k"]


# failures that come in odd clothes


@ensureDeferred
async def test_complete_fails_behind_a_200(odd: HabitServer, client: S3Client) -> None:
    upload = await client.create_multipart("m")
    parts = [(1, await client.upload_part("m", upload, 1, b"12345"))]
    odd.habits.complete_fails = 2
    info = await client.complete_multipart("m", upload, parts, expect_size=5)
    assert (info.size, odd.count()["CompleteMultipartUpload"]) == (5, 3)
    odd.habits.complete_fails = 99
    upload = await client.create_multipart("n")
    parts = [(1, await client.upload_part("n", upload, 1, b"12345"))]
    error = await outcome_of(client.complete_multipart("n", upload, parts, expect_size=5))
    assert (error.code, error.outcome) == ("InternalError", "unknown")


@ensureDeferred
async def test_a_proxy_that_answers_for_the_service(odd: HabitServer, client: S3Client) -> None:
    """Pages for people, with 502, are tried again; none is taken for an object, a listing, or an absence."""
    etag = (await client.put("k", b"body")).etag
    operations = ("PutObject", "GetObject", "HeadObject", "ListObjectsV2", "DeleteObjects", "CreateMultipartUpload")
    odd.habits.pages = dict.fromkeys(operations, 2)
    assert (await client.put("k", b"body")).etag == etag
    assert (await client.get("k")).data == b"body"
    assert (await client.head("k")).size == 4
    assert await keys_of(client) == ["k"]
    await client.create_multipart("m")
    assert await client.delete_many(["k"]) == []
    assert all(left == 0 for left in odd.habits.pages.values())
    await client.put("k", b"body")
    odd.habits.pages = dict.fromkeys(operations, 99)
    assert isinstance(await outcome_of(client.get("k")), Unavailable)
    odd.habits.page_status = 404
    assert isinstance(await outcome_of(client.get("k")), BadReply)
    odd.habits.page_status = 200
    for d in (client.get("k", length=4, expect_etag=etag), client.list_page(""), client.create_multipart("m")):
        assert isinstance(await outcome_of(d), BadReply)


@ensureDeferred
async def test_too_many_requests(odd: HabitServer, client: S3Client) -> None:
    """429, with and without an error document; Retry-After is more than the patience of a request."""
    odd.habits.extra = {"retry-after": "1"}
    odd.fail("PutObject", status=429, code="TooManyRequests", times=1)
    await client.put("k", b"x")
    assert odd.count() == {"PutObject": 2}
    impatient = opened(odd.url, attempts=1)
    odd.habits.refused["GetObject"] = (429, "")
    assert isinstance(await outcome_of(impatient.get("k")), Throttled)
    await impatient.close()


# regions


@pytest.mark.parametrize("by", [("document",), ("header",), ("document", "header")])
@pytest.mark.parametrize("status", [400, 301])
@pytest.mark.parametrize("operation", ["put", "head", "list"])
@ensureDeferred
async def test_another_region(odd: HabitServer, by: tuple[str, ...], status: int, operation: str) -> None:
    """Adopted once, however it is told; only HEAD without the header has no way to know."""
    odd.settings.region, odd.habits.region_status, odd.habits.region_by = "eu-far-7", status, by
    odd.bucket.put("k", b"body", now_s=1.0)
    client = opened(odd.url)
    calls: dict[str, Any] = {"put": lambda: client.put("k", b"body"), "head": lambda: client.head("k"),
                             "list": client.probe}
    if operation == "head" and "header" not in by:
        error = await outcome_of(calls[operation]())
        assert isinstance(error, (WrongRegion, S3Error))
        assert not isinstance(error, NotFound)
    else:
        await calls[operation]()
        assert client.region == "eu-far-7"
        await client.head("k")
        assert len(odd.refused) == 1
    await client.close()


@ensureDeferred
async def test_a_region_that_is_refused_as_well(odd: HabitServer) -> None:
    """A service that names a region and then does not take it gets two requests, not more."""
    client = opened(odd.url)

    def refuse(request: Any, call: Any, seen: Any) -> None:
        denied = Denied(400, "AuthorizationHeaderMalformed", "the region is wrong", Region="eu-far-7")
        odd.refused.append(denied)
        raise denied

    odd._verify = refuse  # type: ignore[method-assign]
    assert isinstance(await outcome_of(client.put("k", b"x")), WrongRegion)
    assert len(odd.refused) == 2
    await client.close()


@ensureDeferred
async def test_what_is_there_may_seem_absent(odd: HabitServer, client: S3Client) -> None:
    """The client tells a 404 as it is; the store, which knows better, asks again (tests/live/test_habits.py)."""
    await client.put("k", b"x")
    odd.bucket.absent = {"here/k": 2}
    for _ in range(2):
        assert isinstance(await outcome_of(client.get("k")), NotFound)
    assert (await client.get("k")).data == b"x"
