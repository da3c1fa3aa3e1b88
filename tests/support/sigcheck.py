# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks SigV4 signatures as a service does, straight from AWS's description and with none of tahoe-s3's
code.

Source: S3's "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)". The path
and the query are taken as they came on the wire, decoded and encoded again; header values are trimmed and
folded. Raises Denied with the status and the error code S3 answers with. Thread: any; nothing is kept.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote_to_bytes

UNSIGNED = "UNSIGNED-PAYLOAD"
SKEW_LIMIT_S = 15 * 60
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request,"
    r"\s*SignedHeaders=(?P<signed>[a-z0-9;.-]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)


class Denied(Exception):
    """A request that S3 refuses: status, S3's code, a message, and further elements of the error document."""

    def __init__(self, status: int, code: str, message: str, **more: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.more = status, code, message, more


def _encoded(part: bytes, *, slash: str = "") -> str:
    return quote(unquote_to_bytes(part), safe="-_.~" + slash)


def _canonical_query(query: bytes) -> str:
    pairs = []
    for piece in query.split(b"&") if query else []:
        name, _, value = piece.partition(b"=")
        pairs.append((_encoded(name), _encoded(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def canonical_request(
    *, method: str, uri: bytes, headers: Sequence[tuple[str, str]], signed: Sequence[str], payload: str
) -> str:
    """The text whose hash is signed; `headers` are lower-case name and value as received, `signed` the
    sorted names.
    """
    path, _, query = uri.partition(b"?")
    lines = []
    for name in signed:
        values = [" ".join(value.split()) for key, value in headers if key == name]
        lines.append(f"{name}:{','.join(values)}\n")
    return "\n".join(
        [
            method,
            _encoded(path, slash="/"),
            _canonical_query(query),
            "".join(lines),
            ";".join(signed),
            payload,
        ]
    )


def signature(*, secret: str, stamp: str, region: str, service: str, request: str) -> str:
    """The hexadecimal signature of a canonical request at `stamp` (YYYYMMDDTHHMMSSZ)."""
    key = ("AWS4" + secret).encode()
    for word in (stamp[:8], region, service, "aws4_request"):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _check_scope(found: Mapping[str, str], *, secrets: Mapping[str, str], region: str | None, stamp: str) -> None:
    if found["key"] not in secrets:
        raise Denied(
            403,
            "InvalidAccessKeyId",
            "The access key id you provided does not exist",
            AWSAccessKeyId=found["key"],
        )
    if region is not None and found["region"] != region:
        raise Denied(
            400,
            "AuthorizationHeaderMalformed",
            f"The region '{found['region']}' is wrong; expecting '{region}'",
            Region=region,
        )
    if found["service"] != "s3" or found["day"] != stamp[:8]:
        raise Denied(400, "AuthorizationHeaderMalformed", "The credential's scope does not fit the request")


def _check_time(stamp: str, now_s: float) -> None:
    try:
        sent_s = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise Denied(403, "AccessDenied", "x-amz-date is missing or not of the form YYYYMMDDTHHMMSSZ") from None
    if abs(sent_s - now_s) > SKEW_LIMIT_S:
        raise Denied(
            403,
            "RequestTimeTooSkewed",
            "The difference between the request time and the server's time is too large",
            RequestTime=stamp,
            ServerTime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)),
        )


def _check_payload(payload: str, content_md5: str | None, body: bytes, *, allow_unsigned: bool) -> None:
    if payload == UNSIGNED:
        if not allow_unsigned:
            raise Denied(400, "InvalidRequest", "This server wants the payload's SHA-256 signed")
    elif payload != hashlib.sha256(body).hexdigest():
        raise Denied(400, "XAmzContentSHA256Mismatch", "x-amz-content-sha256 does not match the body")
    if content_md5 is not None and content_md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
        raise Denied(400, "BadDigest", "Content-MD5 does not match the body")


def verify(
    *,
    method: str,
    uri: bytes,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    secrets: Mapping[str, str],
    region: str | None,
    now_s: float,
    token: str | None = None,
    allow_unsigned: bool = False,
) -> str:
    """Returns the access key id that signed the request; raises Denied where S3 would refuse it.

    `secrets` maps access key ids to secrets, `region` None takes any; `token` is the one value that
    x-amz-security-token must have (None: the header must not be there). `now_s` is the server's wall clock.
    """
    named = dict(headers)
    found = _AUTHORIZATION.fullmatch(named.get("authorization", ""))
    if found is None:
        raise Denied(403, "AccessDenied", "No usable Authorization header")
    stamp = named.get("x-amz-date", "")
    _check_time(stamp, now_s)
    _check_scope(found.groupdict(), secrets=secrets, region=region, stamp=stamp)
    signed = found["signed"].split(";")
    if signed != sorted(set(signed)):
        raise Denied(403, "AccessDenied", "SignedHeaders is not a sorted list of different names")
    absent = [name for name in signed if name not in named]
    unsigned = [name for name in named if name not in signed and (name.startswith("x-amz-") or name == "host")]
    if absent or unsigned:
        raise Denied(403, "AccessDenied", f"Headers present but not signed: {unsigned}, signed but absent: {absent}")
    payload = named.get("x-amz-content-sha256", "")
    request = canonical_request(method=method, uri=uri, headers=headers, signed=signed, payload=payload)
    secret = secrets[found["key"]]
    wanted = signature(secret=secret, stamp=stamp, region=found["region"], service="s3", request=request)
    if not hmac.compare_digest(wanted, found["signature"]):
        raise Denied(403, "SignatureDoesNotMatch", "The signature does not match", CanonicalRequest=request)
    tokens = [value for name, value in headers if name == "x-amz-security-token"]
    if tokens != ([] if token is None else [token]):
        raise Denied(400, "InvalidToken", f"x-amz-security-token came {len(tokens)} times or with another value")
    _check_payload(payload, named.get("content-md5"), body, allow_unsigned=allow_unsigned)
    return found["key"]
