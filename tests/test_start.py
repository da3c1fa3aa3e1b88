# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bucket can say at a node's start, and the sentence (or the node) that comes of it.

Each node is built in the test's process, as `tahoe run` builds it, on a bucket of tests/support/s3server.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from allmydata import client
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.logger import formatEvent, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import Site

from tahoe_s3 import _hook, errors

from .support.nodefolder import NOWHERE, keys, make_folder, stop, write_secret
from .support.s3server import S3Server

_hook.register()

SECRET = "secret/of+the=test"
OTHER_NODE = "2ucvnckyyc7zwpqk6yr6vamqdegbnbnx"


@pytest.fixture
def basedir(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def said() -> Any:
    """What the node logs as warnings or errors, while the test runs."""
    events: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_level") is not None and event["log_level"].name in ("warn", "error", "critical"):
            events.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


async def refused(basedir: Path, storage: dict[str, str | None]) -> errors.ConfigError:
    """The node must not start; the error is one sentence without the secret."""
    make_folder(basedir, storage, secret=SECRET)
    with pytest.raises(errors.ConfigError) as caught:
        await client.create_client(str(basedir))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert SECRET not in sentence
    assert not (basedir / "permutation-seed").exists()
    return caught.value


async def started(basedir: Path, storage: dict[str, str | None]) -> Any:
    """The node's storage server; the node itself is its parent."""
    if not basedir.exists():
        make_folder(basedir, storage, secret=SECRET)
    node = await client.create_client(str(basedir))
    return node.get_anonymous_storage_server()


def own_id(basedir: Path) -> str:
    from foolscap.api import Tub

    tub_id: str = Tub(certFile=str(basedir / "private" / "node.pem")).tubID
    return tub_id


def mark(nodeid: str = OTHER_NODE, **changes: Any) -> bytes:
    return json.dumps({"version": 1, "nodeid": nodeid, "instance": "a" * 32, "since": 1767323045, **changes}).encode()


@ensureDeferred
async def test_no_such_bucket(basedir: Path, s3server: S3Server) -> None:
    error = await refused(basedir, keys(s3server, s3__bucket="elsewhere"))
    assert str(error) == (
        f"[storage]s3.bucket in tahoe.cfg is 'elsewhere', but {s3server.url} has no bucket of that name; create it "
        f"with `aws --endpoint-url {s3server.url} --region us-east-1 s3 mb s3://elsewhere` or in your provider's "
        "console, or correct the name."
    )


@ensureDeferred
async def test_a_region_that_was_set_wrong(basedir: Path, s3server: S3Server) -> None:
    s3server.settings.region = "eu-west-1"
    error = await refused(basedir, keys(s3server, s3__region="us-west-2"))
    assert str(error) == (
        "[storage]s3.region in tahoe.cfg is 'us-west-2', but the bucket 'bucket' is in 'eu-west-1'; "
        "write s3.region = eu-west-1."
    )


@ensureDeferred
async def test_a_region_that_was_not_set_is_learned(basedir: Path, s3server: S3Server) -> None:
    s3server.settings.region = "eu-west-1"
    server = await started(basedir, keys(s3server))
    assert server.store.client.region == "eu-west-1"
    await stop(server.parent)


@pytest.mark.parametrize(
    ("change", "code", "cure"),
    [
        ({"secret": "not-it"}, "SignatureDoesNotMatch", "write the secret of this access key id into private/s3secret"),
        ({"key": "AKIDUNKNOWN"}, "InvalidAccessKeyId", "correct s3.access_key_id in tahoe.cfg"),
    ],
)
@ensureDeferred
async def test_refused_credentials(
    basedir: Path, s3server: S3Server, change: dict[str, str], code: str, cure: str
) -> None:
    key = change.get("key", "AKIDTESTTEST")
    make_folder(basedir, keys(s3server, s3__access_key_id=key))
    write_secret(basedir, change.get("secret", SECRET))
    with pytest.raises(errors.RefusedCredentials) as caught:
        await client.create_client(str(basedir))
    assert str(caught.value) == (
        f"The service at {s3server.url} refused access to the bucket 'bucket' for s3.access_key_id '{key}' ({code}); "
        f"{cure}."
    )
    assert len(s3server.log) + len(s3server.refused) <= 2, "refused credentials are not tried again"


@ensureDeferred
async def test_object_lock(basedir: Path, s3server: S3Server) -> None:
    s3server.settings.object_lock = True
    error = await refused(basedir, keys(s3server))
    assert type(error) is errors.ObjectLocked
    assert s3server.bucket.objects == {}


@ensureDeferred
async def test_versioning_is_warned_of(basedir: Path, s3server: S3Server, said: list[str]) -> None:
    s3server.settings.versioning = "Enabled"
    server = await started(basedir, keys(s3server))
    assert [line for line in said if "the bucket bucket keeps old versions of objects" in line]
    await stop(server.parent)


@ensureDeferred
async def test_http_is_warned_of(basedir: Path, s3server: S3Server, said: list[str]) -> None:
    server = await started(basedir, keys(s3server))
    assert [line for line in said if f"[storage]s3.url in tahoe.cfg is {s3server.url}: requests" in line]
    assert [line for line in said if "https is wanted" in line]
    await stop(server.parent)


class _Page(Resource):
    """What is no S3 service: every path answers the same."""

    isLeaf = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__()
        self._status, self._body = status, body

    def render(self, request: Any) -> bytes:
        request.setResponseCode(self._status)
        request.setHeader("content-type", "text/html")
        return self._body


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<!DOCTYPE html><html><body>Welcome</body></html>"),
        (200, b""),
        (200, b'{"it": "works"}'),
        (404, b"<html><body>Not here</body></html>"),
        (405, b""),
    ],
)
@ensureDeferred
async def test_something_that_is_not_s3(basedir: Path, status: int, body: bytes) -> None:
    port = reactor.listenTCP(0, Site(_Page(status, body)), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}"
    try:
        error = await refused(basedir, keys(s3__url=url))
    finally:
        await port.stopListening()
    assert type(error) is errors.NotS3
    assert str(error).startswith(
        f"[storage]s3.url in tahoe.cfg is {url}, but what answers there is not an S3 service (HTTP status {status}"
    )


@ensureDeferred
async def test_another_nodes_bucket(basedir: Path, s3server: S3Server) -> None:
    s3server.bucket.put("owner.json", mark(), now_s=1.0)
    error = await refused(basedir, keys(s3server))
    assert str(error) == (
        f"[storage]s3.bucket in tahoe.cfg names the bucket 'bucket', which belongs to the node {OTHER_NODE} (since "
        f"2026-01-02T03:04:05Z), while this node is {own_id(basedir)}; give each node a bucket or an s3.prefix of its "
        "own, or, if that node is gone for good, delete the object owner.json."
    )
    assert s3server.bucket.objects["owner.json"].body == mark()


@pytest.mark.parametrize("prefix", ["grids", "grids/one/two"])
@ensureDeferred
async def test_a_prefix_inside_or_around_another_nodes(basedir: Path, s3server: S3Server, prefix: str) -> None:
    s3server.bucket.put("grids/one/owner.json", mark(), now_s=1.0)
    error = await refused(basedir, keys(s3server, s3__prefix=prefix))
    assert type(error) is (errors.NestedOwner if prefix == "grids" else errors.OwnedByAnother)
    assert "grids/one/" in str(error)


@ensureDeferred
async def test_a_prefix_beside_another_nodes(basedir: Path, s3server: S3Server) -> None:
    s3server.bucket.put("grids/one/owner.json", mark(), now_s=1.0)
    server = await started(basedir, keys(s3server, s3__prefix="grids/two"))
    assert json.loads(s3server.bucket.objects["grids/two/owner.json"].body)["nodeid"] == own_id(basedir)
    await stop(server.parent)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", errors.BadOwnerMark),
        (b"hello", errors.BadOwnerMark),
        (mark(nodeid=""), errors.BadOwnerMark),
        (mark(version=2), errors.NewerLayout),
    ],
)
@ensureDeferred
async def test_marks_that_are_not_ours(
    basedir: Path, s3server: S3Server, body: bytes, error: type[errors.ConfigError]
) -> None:
    s3server.bucket.put("owner.json", body, now_s=1.0)
    assert type(await refused(basedir, keys(s3server))) is error
    assert s3server.bucket.objects["owner.json"].body == body


@ensureDeferred
async def test_shares_of_the_disk_backend(basedir: Path, s3server: S3Server) -> None:
    share = basedir / "storage" / "shares" / "aa" / "aaaaaaaaaaaaaaaaaaaaaaaaaa" / "0"
    share.parent.mkdir(parents=True)
    share.write_bytes(b"share")
    error = await refused(basedir, keys(s3server))
    assert str(error) == (
        f"The folder {basedir / 'storage'} holds shares of the disk backend, which would vanish from the grid; copy "
        "its shares folder to s3://bucket/shares and move it away, or set another storage_dir in tahoe.cfg."
    )
    assert s3server.log == []


@ensureDeferred
async def test_unreachable_at_the_first_start(basedir: Path) -> None:
    error = await refused(basedir, keys())
    assert type(error) is errors.Unreachable
    assert str(error).startswith(f"The S3 service at {NOWHERE} cannot be reached (")


@ensureDeferred
async def test_unreachable_later_does_not_stop_a_node(basedir: Path, s3server: S3Server, said: list[str]) -> None:
    server = await started(basedir, keys(s3server))
    await stop(server.parent)
    s3server.fail(None, status=503, code="ServiceUnavailable", times=None)
    server = await started(basedir, keys(s3server))
    try:
        assert [line for line in said if "could not be reached since the node's start" in line]
        with pytest.raises(Exception, match=r"could not be reached|cannot be"):
            await server.get_buckets(b"\0" * 16)
    finally:
        s3server.clear_rules()
        await stop(server.parent)


@ensureDeferred
async def test_the_tokens_of_the_start_are_kept(basedir: Path, s3server: S3Server) -> None:
    """A changed file has no effect before the next start."""
    s3server.settings.token = "user,product"
    make_folder(basedir, keys(s3server), secret=SECRET)
    for name in ("user", "product"):
        (basedir / "private" / f"s3{name}token").write_text(f"{name}\n")
    server = await started(basedir, {})
    (basedir / "private" / "s3usertoken").write_text("changed\n")
    s3server.forget()
    await server.store.client.put("shares/x", b"x")
    assert [seen.values("x-amz-security-token") for seen in s3server.log] == [["user,product"]]
    await stop(server.parent)
