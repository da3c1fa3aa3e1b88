# SPDX-License-Identifier: GPL-2.0-or-later
"""sign() against botocore, an implementation nobody here wrote, and against the worked examples of S3's documentation.

AWS's published vectors are checked in C, in tests/c.
"""
from __future__ import annotations

import datetime
import hashlib
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe_s3 import _native

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
DOCUMENTED: dict[str, Any] = {
    "host": "examplebucket.s3.amazonaws.com",
    "time_s": 1369353600,  # 20130524T000000Z
    "region": "us-east-1",
    "access_key_id": "AKIAIOSFODNN7EXAMPLE",
    "secret": b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}

# "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk", its four examples.
EXAMPLES = [
    ("GET", "/test.txt", [], [("Range", "bytes=0-9")], EMPTY_SHA256,
     "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
    ("PUT", "/test$file.text", [],
     [("Date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
     hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"),
    ("GET", "/", [("lifecycle", "")], [], EMPTY_SHA256,
     "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ("GET", "/", [("max-keys", "2"), ("prefix", "J")], [], EMPTY_SHA256,
     "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
]


@pytest.mark.parametrize(("method", "path", "query", "headers", "payload", "signature"), EXAMPLES)
def test_the_documentations_examples(
    method: str, path: str, query: Any, headers: Any, payload: str, signature: str,
) -> None:
    got = _native.sign(method=method, path=path, query=query, headers=headers, payload_sha256=payload, **DOCUMENTED)
    assert got.endswith(f"Signature={signature}")


def by_botocore(
    method: str, scheme: str, host: str, path: str, query: list[tuple[str, str]], headers: list[tuple[str, str]],
    body: bytes, when: datetime.datetime, region: str, key_id: str, secret: str, monkeypatch: pytest.MonkeyPatch,
) -> str:
    url = f"{scheme}://{host}{quote(path, safe='/-._~')}"
    if query:
        url += "?" + "&".join(f"{quote(name, safe='-._~')}={quote(value, safe='-._~')}" for name, value in query)
    request = AWSRequest(method=method, url=url, data=body)
    for name, value in headers:
        request.headers.add_header(name, value)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: when)
    S3SigV4Auth(Credentials(key_id, secret), "s3", region).add_auth(request)
    return str(request.headers["Authorization"])


# Characters that URLs, queries and signing have had trouble with, besides any others.
awkward = st.text(
    st.one_of(st.sampled_from(" +%/?&=#.~-_:;,'\"()*!@$[]äß中😀\t"), st.characters(exclude_categories=["Cs", "Cc"])),
    max_size=20,
)
paths = st.lists(st.one_of(awkward, st.sampled_from(["", ".", "..", "a b", "a+b", "100%", "%41"])), max_size=5).map(
    lambda parts: "/" + "/".join(parts)
)
queries = st.lists(st.tuples(awkward, awkward), max_size=6)
values = st.text(st.sampled_from("abcXYZ019 ,;=/\t-"), max_size=24)
# Names are distinct: botocore folds repeated headers otherwise than it sends them.
headers = st.dictionaries(
    st.sampled_from(["Content-Type", "content-md5", "X-Amz-Meta-A", "x-amz-storage-class", "x-amz-acl", "Cache-Control",
                     "x-amz-copy-source", "User-Agent", "Expect", "Connection"]),
    values, max_size=5,
).map(lambda pairs: list(pairs.items()))


@settings(max_examples=3000)
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE"]), path=paths, query=queries, headers=headers,
    body=st.binary(max_size=40), time_s=st.integers(0, 4102444799),
    host=st.sampled_from(["bucket.s3.amazonaws.com", "127.0.0.1:9000", "s3.example.org:8443"]),
    region=st.sampled_from(["us-east-1", "eu-west-3", "garage"]),
    key_id=st.text(st.sampled_from("AKIA0123456789xyz"), min_size=1, max_size=20),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
)
def test_random_requests_are_signed_as_botocore_signs_them(
    method: str, path: str, query: list[tuple[str, str]], headers: list[tuple[str, str]], body: bytes, time_s: int,
    host: str, region: str, key_id: str, secret: str,
) -> None:
    when = datetime.datetime.fromtimestamp(time_s, datetime.timezone.utc)
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = by_botocore(method, "http", host, path, query, headers, body, when, region, key_id, secret,
                               monkeypatch)
    got = _native.sign(
        method=method, host=host, path=path, query=query, headers=headers,
        payload_sha256=hashlib.sha256(body).hexdigest(), time_s=time_s, region=region, access_key_id=key_id,
        secret=secret.encode(),
    )
    assert got == expected


def test_repeated_headers_are_joined_in_their_order() -> None:
    def signature(pairs: list[tuple[str, str]]) -> str:
        return _native.sign(method="GET", path="/", query=(), headers=pairs, payload_sha256=EMPTY_SHA256, **DOCUMENTED)

    joined = signature([("x-amz-meta-a", "1,2")])
    assert signature([("X-Amz-Meta-A", " 1 "), ("x-amz-meta-a", "2")]) == joined
    assert signature([("x-amz-meta-a", "2"), ("x-amz-meta-a", "1")]) != joined


def test_the_key_is_derived_anew_for_other_credentials() -> None:
    def signature(**other: Any) -> str:
        return _native.sign(method="GET", path="/", query=(), headers=(), payload_sha256=EMPTY_SHA256,
                            **{**DOCUMENTED, **other})

    first = signature()
    others = [signature(secret=b"another"), signature(region="eu-west-1"), signature(time_s=1369353600 + 86400)]
    assert len({first, *others}) == 4
    assert signature() == first


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("method", "get it", ValueError), ("host", "", ValueError), ("path", "no-slash", ValueError),
        ("region", "a/b", ValueError), ("secret", b"", ValueError), ("access_key_id", "", ValueError),
        ("headers", [("host", "other")], ValueError), ("headers", [("a", "b\r\nc: d")], ValueError),
        ("query", [("a", "b")] * 65, ValueError), ("query", ["ab"], TypeError), ("query", 5, TypeError),
        ("time_s", "now", TypeError), ("secret", None, TypeError), ("method", 7, TypeError),
        ("path", "/\ud800", UnicodeEncodeError), ("surplus", 1, TypeError),
    ],
)
def test_what_cannot_be_signed_is_refused(argument: str, value: Any, error: type[Exception]) -> None:
    good: dict[str, Any] = {"method": "GET", "path": "/", "query": (), "headers": (), "payload_sha256": EMPTY_SHA256,
                            **DOCUMENTED}
    with pytest.raises(error) as caught:
        _native.sign(**{**good, argument: value})
    assert "wJalrXUtnFEMI" not in str(caught.value)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(TypeError, match="host"):
        _native.sign(method="GET")  # type: ignore[call-arg]
