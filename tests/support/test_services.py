# SPDX-License-Identifier: GPL-2.0-or-later
"""The services and the test's own S3 server answer botocore alike, so that what is proven on one holds on
another.
"""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from .s3server import S3Server
from .services import Service

PART = 5 * 2**20


def contract(service: Service, bucket: str) -> None:
    """What the node needs of a service, through botocore."""
    client = service.client()
    keys = [f"shares/aa/{name}/{number}" for name in ("x", "y", "z") for number in range(3)]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert service.objects(bucket) == {key: len(key) for key in keys}
    page = client.list_objects_v2(Bucket=bucket, Prefix="shares/aa/", Delimiter="/")
    assert [row["Prefix"] for row in page["CommonPrefixes"]] == [
        "shares/aa/x/",
        "shares/aa/y/",
        "shares/aa/z/",
    ]
    page = client.list_objects_v2(Bucket=bucket, MaxKeys=4)
    assert page["IsTruncated"] and len(page["Contents"]) == 4
    page = client.list_objects_v2(Bucket=bucket, ContinuationToken=page["NextContinuationToken"])
    assert [row["Key"] for row in page["Contents"]] == keys[4:]
    got = client.get_object(Bucket=bucket, Key=keys[0], Range="bytes=2-5")
    assert got["Body"].read() == keys[0].encode()[2:6]
    assert got["ContentRange"] == f"bytes 2-5/{len(keys[0])}"
    assert client.head_object(Bucket=bucket, Key=keys[1])["ContentLength"] == len(keys[1])
    with pytest.raises(ClientError) as raised:
        client.get_object(Bucket=bucket, Key="shares/aa/none/0")
    assert raised.value.response["Error"]["Code"] == "NoSuchKey"
    multipart(client, bucket)
    gone = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[:-1]]})
    assert len(gone["Deleted"]) == len(keys) - 1
    client.delete_object(Bucket=bucket, Key=keys[-1])
    assert list(service.objects(bucket, "shares/aa/")) == []


def multipart(client: Any, bucket: str) -> None:
    key, bodies = "shares/bb/m/0", [b"1" * PART, b"2" * PART, b"3"]
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        done = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    assert [row["UploadId"] for row in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"".join(bodies)
    second = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=second)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    client.delete_object(Bucket=bucket, Key=key)


def test_service(service: Service) -> None:
    contract(service, service.make_bucket())


def as_service(server: S3Server, *, secret: str | None = None, region: str = "us-east-1") -> Service:
    """The test's own server, spoken to as one of the services."""
    found = Service.__new__(Service)
    found.url, found.region = server.url, region
    found.access_key_id, found.secret = next(iter(server.secrets.items()))
    found.secret = secret or found.secret
    return found


def refusal(service: Service, key: str = "k") -> str:
    with pytest.raises(ClientError) as raised:
        service.client(attempts=1).get_object(Bucket="bucket", Key=key)
    return str(raised.value.response["Error"]["Code"])


@ensureDeferred
async def test_own_server(s3server: S3Server) -> None:
    await deferToThread(contract, as_service(s3server), "bucket")
    counts = s3server.count()
    assert counts["PutObject"] == 9
    assert counts["UploadPart"] == 3
    assert counts["DeleteObjects"] == 1
    assert not s3server.refused


@ensureDeferred
async def test_signatures_are_checked(s3server: S3Server) -> None:
    names = ["plain", "sp ace", "uni\u00e9\u4e2d", "a//b", "a/../b", "per%cent", "pl+us", "~-._()!*'"]
    service = as_service(s3server)
    for name in names:
        await deferToThread(service.client().put_object, Bucket="bucket", Key=name, Body=b"x")
    assert sorted(s3server.bucket.objects) == sorted(names)
    assert await deferToThread(refusal, as_service(s3server, secret="another")) == "SignatureDoesNotMatch"
    # botocore tries again with the region that the refusal named.
    assert await deferToThread(refusal, as_service(s3server, region="eu-1")) == "NoSuchKey"
    assert s3server.refused[-1].code == "AuthorizationHeaderMalformed"
    s3server.settings.token = "user,product"
    assert await deferToThread(refusal, service) == "InvalidToken"
    s3server.settings.token = None
    true_time = s3server.wall_s
    s3server.wall_s = lambda: true_time() + 16 * 60
    assert await deferToThread(refusal, service) == "RequestTimeTooSkewed"


@ensureDeferred
async def test_faults(s3server: S3Server) -> None:
    service = as_service(s3server)
    s3server.bucket.put("k", b"0123456789", now_s=s3server.wall_s())
    s3server.fail("GetObject", code="InternalError", status=500)
    assert await deferToThread(refusal, service) == "InternalError"
    s3server.drop("GetObject")
    s3server.drop("GetObject", body_limit_bytes=4)
    client = service.client(attempts=1)
    for _ in range(2):
        with pytest.raises((HTTPClientError, EndpointConnectionError, ClientError, OSError)):
            got = await deferToThread(client.get_object, Bucket="bucket", Key="k")
            await deferToThread(got["Body"].read)
    got = await deferToThread(client.get_object, Bucket="bucket", Key="k")
    assert await deferToThread(got["Body"].read) == b"0123456789"


@ensureDeferred
async def test_gates(s3server: S3Server) -> None:
    service = as_service(s3server)
    gate = s3server.hold("PutObject", key="held")
    done = deferToThread(service.client().put_object, Bucket="bucket", Key="held", Body=b"1")
    await gate.reached
    assert not done.called
    assert not s3server.bucket.objects
    gate.release()
    await done
    assert list(s3server.bucket.objects) == ["held"]
    late = s3server.hold("PutObject", key="late")
    s3server.rules.remove(next(rule for rule in s3server.rules if rule.gate is late))
    s3server.drop("PutObject", key="late", gate=late)
    with pytest.raises(HTTPClientError):
        await deferToThread(service.client(attempts=1).put_object, Bucket="bucket", Key="late", Body=b"2")
    assert "late" not in s3server.bucket.objects
    late.release()
    assert "late" in s3server.bucket.objects
