# SPDX-License-Identifier: GPL-2.0-or-later
"""The signer, through Python: AWS's published vectors and S3's worked examples (tests/data/sigv4/vectors.txt, which the
C tests read too), and thousands of random requests compared with botocore's S3SigV4Auth as an independent oracle."""
from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, unquote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tahoe_s3 import _native

VECTORS = Path(__file__).parent / "data" / "sigv4" / "vectors.txt"
SECRETS = {
    "AKIDEXAMPLE": b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "AKIAIOSFODNN7EXAMPLE": b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
RANDOM_REQUESTS = 6000


# ---- the published vectors ----


def read_vectors() -> Iterator[dict[str, list[str]]]:
    """The blocks of the table, the values of each name in order."""
    block: dict[str, list[str]] = {}
    for line in [*VECTORS.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("#"):
            continue
        if line:
            name, _, value = line.partition(": ")
            block.setdefault(name, []).append(value)
        elif block:
            yield block
            block = {}


@pytest.mark.parametrize("vector", list(read_vectors()), ids=lambda vector: vector["name"][0])
def test_published_vector(vector: dict[str, list[str]]) -> None:
    (key,) = vector["key"]
    (signature,) = vector["signature"]
    (signed,) = vector["signed"]
    time = datetime.datetime.strptime(vector["time"][0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)
    service = vector.get("service", ["s3"])[0]
    pairs = [pair.partition("=") for pair in vector.get("query", [])]
    headers = [header.partition(": ") for header in vector.get("header", [])]
    got = _native.sign(
        method=vector["method"][0],
        host=vector["host"][0],
        path=unquote(vector["path"][0]),
        query=[(unquote(name), unquote(value)) for name, _, value in pairs],
        headers=[(name, unquote(value)) for name, _, value in headers],
        payload_sha256=vector.get("payload", [EMPTY_SHA256])[0],
        time_s=int(time.timestamp()),
        region="us-east-1",
        access_key_id=key,
        secret=SECRETS[key],
        service=service,
    )
    assert got == (
        f"AWS4-HMAC-SHA256 Credential={key}/{time:%Y%m%d}/us-east-1/{service}/aws4_request, "
        f"SignedHeaders={signed}, Signature={signature}"
    )


def test_every_vector_is_run() -> None:
    names = [vector["name"][0] for vector in read_vectors()]
    assert len(names) == len(set(names)) == 34
    assert sum(name.startswith("s3-") for name in names) == 4


# ---- random requests against botocore ----

PIECES = (
    "a", "b", "B", "0", "-", ".", "_", "~", " ", "  ", "+", "%", "%20", "%2F", "/", "//", "/../", "/./", "..", "ü",
    "日本", "\U0001f600", "&", "=", "?", "#", ";", ":", "@", ",", "$", "!", "*", "'", "(", ")", "[", "]", "{", "}", "|",
    "\\", "^", "`", '"', "<", ">", "\t", "\n", "\x00", "\x7f", "shares/aa/", "Zz9",
)
HEADER_NAMES = (
    "Content-Type", "content-md5", "Range", "Cache-Control", "If-None-Match", "X-Amz-Meta-A", "x-amz-meta-b",
    "x-amz-storage-class", "X-AMZ-ACL", "x-amz-security-token", "My-Header", "x_y.z", "User-Agent", "Expect",
    "Transfer-Encoding", "X-Amzn-Trace-Id",
)
HEADER_PIECES = ("a", "B", " ", "  ", "\t", "ü", "日", ",", ":", '"', "=", "/", "+", "bytes=0-9", "%41")


def text(rng: random.Random, pieces: tuple[str, ...], most: int) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randint(0, most)))


def random_request(rng: random.Random) -> dict[str, Any]:
    """The arguments of sign() but for the payload's digest, and the body."""
    query = [(text(rng, PIECES, 4), text(rng, PIECES, 4)) for _ in range(rng.choice((0, 0, 1, 2, 3, 8)))]
    if query and rng.random() < 0.4:
        query += [(query[0][0], text(rng, PIECES, 2)), rng.choice(query)]
    headers = [(rng.choice(HEADER_NAMES), text(rng, HEADER_PIECES, 6)) for _ in range(rng.choice((0, 0, 1, 2, 5, 9)))]
    return {
        "method": rng.choice(("GET", "PUT", "POST", "HEAD", "DELETE")),
        "host": rng.choice(("bucket.s3.eu-west-1.amazonaws.com", "127.0.0.1:8333", "localhost", "x.example:9000")),
        "path": "/" + text(rng, PIECES, 8),
        "query": query,
        "headers": headers,
        "time_s": rng.randint(946684800, 4102444800),
        "region": rng.choice(("us-east-1", "eu-central-1", "garage")),
        "access_key_id": rng.choice(("AKIDEXAMPLE", "tester:testing", "a/b+c=")),
        "secret": rng.choice((b"s", b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", b"long" * 40)),
    }


def botocore_authorization(request: dict[str, Any], body: bytes, *, sign_payload: bool) -> str:
    """What botocore signs for the same request, its URL encoded by urllib."""
    parts = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in request["query"])
    url = f"https://{request['host']}{quote(request['path'], safe='/~')}" + (f"?{parts}" if parts else "")
    aws_request = AWSRequest(method=request["method"], url=url, data=body)
    for name, value in request["headers"]:
        aws_request.headers.add_header(name, value)
    aws_request.context["client_config"] = mock.Mock(s3={"payload_signing_enabled": sign_payload})
    credentials = Credentials(request["access_key_id"], request["secret"].decode("ascii"))
    moment = datetime.datetime.fromtimestamp(request["time_s"], tz=datetime.timezone.utc)
    with mock.patch.object(botocore.auth, CLOCK, new=fixed_clock(moment)):
        botocore.auth.S3SigV4Auth(credentials, "s3", request["region"]).add_auth(aws_request)
    return str(aws_request.headers["Authorization"])


# botocore before 1.40 asked datetime.utcnow(), later ones ask a function of their own.
CLOCK = "get_current_datetime" if hasattr(botocore.auth, "get_current_datetime") else "datetime"


def fixed_clock(moment: datetime.datetime) -> Any:
    if CLOCK == "get_current_datetime":
        return lambda *_args, **_options: moment
    clock = mock.Mock(wraps=datetime)
    clock.datetime = mock.Mock(wraps=datetime.datetime, utcnow=lambda: moment.replace(tzinfo=None))
    return clock


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_botocore(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(RANDOM_REQUESTS // 6):
        request = random_request(rng)
        body = rng.choice((b"", b"x", b"body" * 100))
        sign_payload = rng.random() < 0.7
        digest = hashlib.sha256(body).hexdigest() if sign_payload else "UNSIGNED-PAYLOAD"
        got = _native.sign(payload_sha256=digest, **request)
        wanted = botocore_authorization(request, body, sign_payload=sign_payload)
        assert got == wanted, f"request {number} of seed {seed}: {request}"


# ---- refusals ----

GOOD: dict[str, Any] = {
    "method": "GET", "host": "h", "path": "/", "query": (), "headers": (), "payload_sha256": EMPTY_SHA256,
    "time_s": 0, "region": "r", "access_key_id": "k", "secret": b"s",
}


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "get"}, {"host": ""}, {"host": "h\r\nx: y"}, {"path": "a"}, {"payload_sha256": ""}, {"region": ""},
        {"region": "a/b"}, {"access_key_id": ""}, {"secret": b""}, {"headers": [("a", "b\r\nc: d")]},
        {"headers": [("Host", "h")]}, {"headers": [("a b", "c")]}, {"headers": [("X-Amz-Date", "20130524T000000Z")]},
        {"query": [("a", "b")] * 65}, {"path": "/" + "a" * 4096}, {"time_s": 1 << 60},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_refuses(changed: dict[str, Any]) -> None:
    assert _native.sign(**GOOD).startswith("AWS4-HMAC-SHA256 Credential=k/19700101/r/s3/aws4_request")
    with pytest.raises(ValueError) as caught:
        _native.sign(**{**GOOD, **changed})
    assert "wJalr" not in str(caught.value)
