# SPDX-License-Identifier: GPL-2.0-or-later
"""S3's operations over HTTP terms: from a Call to an Answer, with S3's XML. Source: Amazon S3's API
reference.

Thread: the reactor's (called by S3Server). Raises Denied where S3 answers with an error.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

from .s3model import Stored, byte_range
from .sigcheck import Denied

if TYPE_CHECKING:
    from .s3server import S3Server

_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
_KEPT = ("content-type", "cache-control", "content-encoding")


@dataclass(frozen=True)
class Call:
    """A request, decoded; header names are lower-case."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    now_s: float


@dataclass(frozen=True)
class Answer:
    """A reply; `length` stands for Content-Length where there is no body to tell it (HEAD)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


_ON_BUCKET = {
    ("HEAD", ""): "HeadBucket",
    ("PUT", ""): "CreateBucket",
    ("GET", "versioning"): "GetBucketVersioning",
    ("GET", "object-lock"): "GetObjectLockConfiguration",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "uploads"): "ListMultipartUploads",
    ("POST", "delete"): "DeleteObjects",
}


def operation_of(call: Call) -> str:
    """S3's name of what a request asks for."""
    if not call.key:
        for (method, mark), name in _ON_BUCKET.items():
            if method == call.method and (mark in call.query if mark else not call.query):
                return name
        if call.method == "GET":
            return "ListObjectsV2" if call.query.get("list-type") == "2" else "ListObjects"
        return "Unknown"
    if "uploads" in call.query and call.method == "POST":
        return "CreateMultipartUpload"
    if "uploadId" in call.query:
        names = {
            "PUT": "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts",
        }
        return names.get(call.method, "Unknown")
    if call.method == "PUT" and "x-amz-copy-source" in call.headers:
        return "CopyObject"
    names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
    return names.get(call.method, "Unknown")


def iso(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at_s))


def _xml(root: str, inside: str, status: int = 200) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{_XMLNS}">{inside}</{root}>'
    return Answer(status, {"content-type": "application/xml"}, text.encode("utf-8"))


def _tag(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def error_document(denied: Denied, call: Call) -> Answer:
    """The answer to a refused request; without a body for HEAD, as in S3."""
    inside = _tag("Code", denied.code) + _tag("Message", denied.message) + _tag("Resource", "/" + call.key)
    inside += "".join(_tag(name, value) for name, value in denied.more.items()) + _tag("RequestId", "0" * 16)
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}</Error>'.encode()
    headers = {"content-type": "application/xml"}
    if "Region" in denied.more:
        headers["x-amz-bucket-region"] = denied.more["Region"]
    return Answer(denied.status, headers, b"" if call.method == "HEAD" else text)


def _elements(body: bytes, path: str) -> Sequence[ET.Element]:
    try:
        root = ET.fromstring(body)
    except ET.ParseError as error:
        raise Denied(400, "MalformedXML", str(error)) from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root.findall(path)


def _object_headers(stored: Stored) -> dict[str, str]:
    return {
        "etag": stored.etag,
        "last-modified": formatdate(stored.modified_s, usegmt=True),
        "accept-ranges": "bytes",
        **stored.metadata,
    }


def _metadata(call: Call) -> dict[str, str]:
    return {name: value for name, value in call.headers.items() if name in _KEPT or name.startswith("x-amz-meta-")}


def _check_condition(server: S3Server, call: Call) -> None:
    """If-Match and If-None-Match of a write, on a service that has them."""
    if not server.settings.conditional_writes:
        return
    there = server.bucket.objects.get(call.key)
    if call.headers.get("if-none-match") == "*" and there is not None:
        raise Denied(412, "PreconditionFailed", "The object exists already", Condition="If-None-Match")
    wanted = call.headers.get("if-match")
    if wanted is not None and (there is None or there.etag != wanted):
        raise Denied(412, "PreconditionFailed", "The object is another one", Condition="If-Match")


def _put(server: S3Server, call: Call) -> Answer:
    _check_condition(server, call)
    stored = server.bucket.put(call.key, call.body, now_s=call.now_s, metadata=_metadata(call))
    return Answer(200, {"etag": stored.etag})


def _get(server: S3Server, call: Call) -> Answer:
    stored = server.bucket.get(call.key)
    if call.headers.get("if-match", stored.etag) != stored.etag:
        raise Denied(412, "PreconditionFailed", "The object is another one", Condition="If-Match")
    headers = _object_headers(stored)
    chosen = byte_range(call.headers.get("range"), len(stored.body))
    if chosen is None:
        return Answer(200, headers, stored.body)
    first, end = chosen
    headers["content-range"] = f"bytes {first}-{end - 1}/{len(stored.body)}"
    return Answer(206, headers, stored.body[first:end])


def _head(server: S3Server, call: Call) -> Answer:
    stored = server.bucket.get(call.key)
    return Answer(200, _object_headers(stored), b"", len(stored.body))


def _delete(server: S3Server, call: Call) -> Answer:
    server.bucket.delete(call.key)
    return Answer(204)


def _delete_many(server: S3Server, call: Call) -> Answer:
    if not server.settings.multi_delete:
        raise Denied(501, "NotImplemented", "This service has no multi-delete")
    if not any(name == "content-md5" or name.startswith("x-amz-checksum-") for name in call.headers):
        raise Denied(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
    keys = [element.text or "" for element in _elements(call.body, "Object/Key")]
    if not 1 <= len(keys) <= 1000:
        raise Denied(400, "MalformedXML", "Between 1 and 1000 keys are wanted")
    quiet = [element.text for element in _elements(call.body, "Quiet")] == ["true"]
    inside = ""
    for key in keys:
        code = server.settings.delete_errors.get(key)
        if code is not None:
            inside += f"<Error>{_tag('Key', key)}{_tag('Code', code)}{_tag('Message', 'as asked')}</Error>"
            continue
        server.bucket.delete(key)
        inside += "" if quiet else f"<Deleted>{_tag('Key', key)}</Deleted>"
    return _xml("DeleteResult", inside)


def _list(server: S3Server, call: Call) -> Answer:
    second = call.query.get("list-type") == "2"
    if second and not server.settings.list_v2:
        raise Denied(501, "NotImplemented", "This service has ListObjects of version 1 only")
    url = call.query.get("encoding-type") == "url"
    kept = "" if server.settings.escape_slash else "/"

    def name(text: str) -> str:
        return quote(text, safe="-_.~" + kept) if url else text

    token = call.query.get("continuation-token")
    first = call.query.get("start-after" if second else "marker", "")
    after = bytes.fromhex(token).decode() if token else first
    limit = min(int(call.query.get("max-keys", "1000")), server.settings.page_size, 1000)
    prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
    page = server.bucket.list(prefix=prefix, delimiter=delimiter, after=after, limit=limit)
    inside = _tag("Name", server.bucket_name) + _tag("Prefix", name(prefix)) + _tag("MaxKeys", limit)
    inside += _tag("EncodingType", "url") if url else ""
    inside += _tag("Delimiter", name(delimiter)) if delimiter else ""
    inside += _tag("IsTruncated", "true" if page.next_after is not None else "false")
    if second:
        inside += _tag("KeyCount", len(page.entries) + len(page.prefixes))
        if page.next_after is not None:
            inside += _tag("NextContinuationToken", page.next_after.encode().hex())
    elif page.next_after is not None and delimiter:
        inside += _tag("NextMarker", name(page.next_after))
    for key, stored in page.entries:
        row = _tag("Key", name(key)) + _tag("LastModified", iso(stored.modified_s)) + _tag("ETag", stored.etag)
        inside += f"<Contents>{row}{_tag('Size', len(stored.body))}{_tag('StorageClass', 'STANDARD')}</Contents>"
    for group in page.prefixes:
        inside += f"<CommonPrefixes>{_tag('Prefix', name(group))}</CommonPrefixes>"
    return _xml("ListBucketResult", inside)


def _create_upload(server: S3Server, call: Call) -> Answer:
    upload_id = server.bucket.create_upload(call.key, now_s=call.now_s, metadata=_metadata(call))
    inside = _tag("Bucket", server.bucket_name) + _tag("Key", call.key) + _tag("UploadId", upload_id)
    return _xml("InitiateMultipartUploadResult", inside)


def _put_part(server: S3Server, call: Call) -> Answer:
    number = int(call.query.get("partNumber", "0"))
    part = server.bucket.put_part(call.key, call.query["uploadId"], number, call.body, now_s=call.now_s)
    return Answer(200, {"etag": part.etag})


def _complete(server: S3Server, call: Call) -> Answer:
    _check_condition(server, call)
    numbers = [int(element.text or "0") for element in _elements(call.body, "Part/PartNumber")]
    etags = [element.text or "" for element in _elements(call.body, "Part/ETag")]
    wanted = list(zip(numbers, etags))
    stored = server.bucket.complete(call.key, call.query["uploadId"], wanted, now_s=call.now_s)
    inside = _tag("Bucket", server.bucket_name) + _tag("Key", call.key) + _tag("ETag", stored.etag)
    return _xml("CompleteMultipartUploadResult", inside)


def _abort(server: S3Server, call: Call) -> Answer:
    server.bucket.abort(call.key, call.query["uploadId"])
    return Answer(204)


def _list_parts(server: S3Server, call: Call) -> Answer:
    upload = server.bucket.upload(call.key, call.query["uploadId"])
    inside = _tag("Key", call.key) + _tag("UploadId", call.query["uploadId"]) + _tag("IsTruncated", "false")
    for number, part in sorted(upload.parts.items()):
        row = _tag("PartNumber", number) + _tag("ETag", part.etag) + _tag("Size", len(part.body))
        inside += f"<Part>{row}{_tag('LastModified', iso(part.modified_s))}</Part>"
    return _xml("ListPartsResult", inside)


def _list_uploads(server: S3Server, call: Call) -> Answer:
    url = call.query.get("encoding-type") == "url"
    prefix = call.query.get("prefix", "")
    after = (call.query.get("key-marker", ""), call.query.get("upload-id-marker", "\U0010ffff"))
    limit = min(int(call.query.get("max-uploads", "1000")), server.settings.page_size)
    rows = [row for row in server.bucket.listed_uploads(prefix) if row > after]
    page = rows[:limit]
    inside = _tag("Bucket", server.bucket_name) + (_tag("EncodingType", "url") if url else "")
    inside += _tag("IsTruncated", "true" if len(rows) > len(page) else "false")
    if len(rows) > len(page):
        last = quote(page[-1][0], safe="-_.~/") if url else page[-1][0]
        inside += _tag("NextKeyMarker", last) + _tag("NextUploadIdMarker", page[-1][1])
    for key, upload_id in page:
        started = iso(server.bucket.uploads[upload_id].started_s)
        name = quote(key, safe="-_.~/") if url else key
        inside += f"<Upload>{_tag('Key', name)}{_tag('UploadId', upload_id)}{_tag('Initiated', started)}</Upload>"
    return _xml("ListMultipartUploadsResult", inside)


def _versioning(server: S3Server, call: Call) -> Answer:
    status = server.settings.versioning
    return _xml("VersioningConfiguration", _tag("Status", status) if status else "")


def _object_lock(server: S3Server, call: Call) -> Answer:
    if not server.settings.object_lock:
        raise Denied(404, "ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist")
    return _xml("ObjectLockConfiguration", _tag("ObjectLockEnabled", "Enabled"))


def _location(server: S3Server, call: Call) -> Answer:
    region = server.settings.region or ""
    return _xml("LocationConstraint", "" if region == "us-east-1" else escape(region))


def _head_bucket(server: S3Server, call: Call) -> Answer:
    region = server.settings.region
    return Answer(200, {} if region is None else {"x-amz-bucket-region": region})


_HANDLERS = {
    "PutObject": _put,
    "GetObject": _get,
    "HeadObject": _head,
    "DeleteObject": _delete,
    "DeleteObjects": _delete_many,
    "ListObjects": _list,
    "ListObjectsV2": _list,
    "CreateMultipartUpload": _create_upload,
    "UploadPart": _put_part,
    "CompleteMultipartUpload": _complete,
    "AbortMultipartUpload": _abort,
    "ListParts": _list_parts,
    "ListMultipartUploads": _list_uploads,
    "HeadBucket": _head_bucket,
    "GetBucketVersioning": _versioning,
    "GetObjectLockConfiguration": _object_lock,
    "GetBucketLocation": _location,
}


def answer(server: S3Server, call: Call, operation: str) -> Answer:
    """Does what the request asks for."""
    if call.bucket != server.bucket_name:
        raise Denied(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=call.bucket)
    handler = _HANDLERS.get(operation)
    if handler is None:
        raise Denied(501, "NotImplemented", f"This server does not know {call.method} {operation}")
    return handler(server, call)
