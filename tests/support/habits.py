# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests' S3 server with the habits of services that are not Amazon's: each one off until a test sets it.

    server = HabitServer(reactor); server.start()
    server.habits.refused["DeleteObjects"] = (501, "NotImplemented"); server.bucket.lag = True

What a bucket shows (order, ETags, what is not there yet) is HabitBucket's, what an answer looks like is HabitServer's.
Which service has which habit is written at each. Owner: the test; thread: the reactor's only.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .s3answers import Answer, Call, error_document, operation_of
from .s3model import Bucket, Listing, Stored
from .s3server import S3Server, Seen
from .sigcheck import Denied

PAGE = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n"
_LISTING = ("prefix", "delimiter", "marker", "max-keys", "encoding-type")


class HabitBucket(Bucket):
    """A bucket that shows its objects in its own way.

    shuffled: listings come in any order, some entries twice (rclone's S3 server). overlap: entries of the page before
    that a page repeats. ignores_prefix: listings are always of all keys. listed_etag: what listings say instead of an
    ETag. opaque_etags: ETags that are no MD5 and differ for equal bytes (encryption). lag: listings are those of the
    moment it was switched on (Swift). uploads_of_one_key: a prefix of ListMultipartUploads is taken for a key (MinIO).
    absent: how often reading a key says 404 though it is there (eventual
    consistency).
    """

    def __init__(self, *, min_part_bytes: int = 5 * 2**20) -> None:
        super().__init__(min_part_bytes=min_part_bytes)
        self.shuffled = False
        self.overlap = 0
        self.uploads_of_one_key = False
        self.ignores_prefix = False
        self.listed_etag: Callable[[str], str] | None = None
        self.opaque_etags = False
        self.absent: dict[str, int] = {}
        self._frozen: dict[str, Stored] | None = None
        self._random = random.Random(1)

    @property
    def lag(self) -> bool:
        return self._frozen is not None

    @lag.setter
    def lag(self, on: bool) -> None:
        self._frozen = dict(self.objects) if on else None

    def _named(self, stored: Stored) -> Stored:
        if not self.opaque_etags:
            return stored
        return replace(stored, etag=f'"{hashlib.sha256(self._random.randbytes(16)).hexdigest()[:40]}"')

    def put(self, key: str, body: bytes, *, now_s: float, metadata: Mapping[str, str] | None = None) -> Stored:
        stored = self.objects[key] = self._named(super().put(key, body, now_s=now_s, metadata=metadata))
        return stored

    def put_part(self, key: str, upload_id: str, number: int, body: bytes, *, now_s: float) -> Stored:
        part = self._named(super().put_part(key, upload_id, number, body, now_s=now_s))
        self.upload(key, upload_id).parts[number] = part
        return part

    def complete(self, key: str, upload_id: str, wanted: Sequence[tuple[int, str]], *, now_s: float) -> Stored:
        stored = self.objects[key] = self._named(super().complete(key, upload_id, wanted, now_s=now_s))
        return stored

    def get(self, key: str) -> Stored:
        if self.absent.get(key, 0) > 0:
            self.absent[key] -= 1
            raise Denied(404, "NoSuchKey", "The specified key does not exist", Key=key)
        return super().get(key)

    def list(self, *, prefix: str, delimiter: str, after: str, limit: int) -> Listing:
        prefix = "" if self.ignores_prefix else prefix
        now, self.objects = self.objects, self.objects if self._frozen is None else self._frozen
        try:
            page = super().list(prefix=prefix, delimiter=delimiter, after=after, limit=limit)
            entries = self._repeated(prefix, after) + list(page.entries)
        finally:
            self.objects = now
        if self.shuffled:
            entries += entries[:2]
            self._random.shuffle(entries)
        if self.listed_etag is not None:
            entries = [(key, replace(stored, etag=self.listed_etag(stored.etag))) for key, stored in entries]
        return Listing(entries, page.prefixes, page.next_after)

    def listed_uploads(self, prefix: str) -> list[tuple[str, str]]:
        rows = super().listed_uploads(prefix)
        return [row for row in rows if row[0] == prefix] if prefix and self.uploads_of_one_key else rows

    def _repeated(self, prefix: str, after: str) -> list[tuple[str, Stored]]:
        before = [key for key in sorted(self.objects, key=str.encode) if key.startswith(prefix) and key <= after]
        return [(key, self.objects[key]) for key in before[len(before) - self.overlap :]] if self.overlap else []


@dataclass
class Habits:
    """What is odd about the answers.

    refused: by operation, the status and code of every answer to it; without a code there is no S3 error document.
    takes_for_listing: operations whose query parameter is not looked at, so that they get ListObjects' answer.
    pages: how many requests a proxy in front answers with `page_status` and a page for people, by operation.
    complete_fails: how many times CompleteMultipartUpload says 200 and then, in the body, that it failed.
    bodies: what an operation's body becomes on its way out.
    closes: "says" Connection: close, or "silently" closes after each answer. chunked: no Content-Length, where there
    is a body. lower_case: names of header fields. without: fields that an operation's answers lack; extra: fields
    that all have. region_status, region_by: how a request for another region is refused, and whether the right one
    is told by the "document", the x-amz-bucket-region "header", or both (Amazon: 400, or 301 on its oldest host).
    """

    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    takes_for_listing: set[str] = field(default_factory=set)
    pages: dict[str, int] = field(default_factory=dict)
    page_status: int = 502
    complete_fails: int = 0
    bodies: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    closes: str = ""
    chunked: bool = False
    lower_case: bool = False
    without: dict[str, set[str]] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    region_status: int | None = None
    region_by: tuple[str, ...] = ("document", "header")


class HabitServer(S3Server):
    """One bucket, shown as `habits` say."""

    def __init__(self, reactor: Any, **options: Any) -> None:
        super().__init__(reactor, **options)
        self.bucket: HabitBucket = HabitBucket(min_part_bytes=self.bucket.min_part_bytes)
        self.habits = Habits()

    def _verify(self, request: Any, call: Call, seen: Seen) -> None:
        """Another region's name is refused in this service's way."""
        try:
            super()._verify(request, call, seen)
        except Denied as denied:
            status = self.habits.region_status
            if status is None or "Region" not in denied.more:
                raise
            code = "PermanentRedirect" if status == 301 else denied.code
            raise Denied(status, code, denied.message, **denied.more) from None

    def _apply(self, call: Call, seen: Seen) -> Answer:
        habits = self.habits
        if seen.operation in habits.refused:
            status, code = habits.refused[seen.operation]
            if not code:
                return Answer(status)
            return error_document(Denied(status, code, "This service does not do that"), call)
        if habits.pages.get(seen.operation, 0) > 0:
            habits.pages[seen.operation] -= 1
            return Answer(habits.page_status, {"content-type": "text/html"}, b"" if call.method == "HEAD" else PAGE)
        if seen.operation == "CompleteMultipartUpload" and habits.complete_fails > 0:
            habits.complete_fails -= 1
            document = error_document(Denied(500, "InternalError", "We encountered an internal error"), call)
            return replace(document, status=200)
        if seen.operation in habits.takes_for_listing:
            call = replace(call, query={name: call.query[name] for name in call.query if name in _LISTING})
            seen = replace(seen, operation="ListObjects")
        return super()._apply(call, seen)

    def _send(self, request: Any, call: Call, answer: Answer, *, limit_bytes: int | None = None) -> None:
        habits, channel = self.habits, request.channel
        if channel is None:
            return
        dropped = habits.without.get(operation_of(call), set())
        if "header" not in habits.region_by:
            dropped = {*dropped, "x-amz-bucket-region"}
        headers = {**answer.headers, **habits.extra}
        change = habits.bodies.get(operation_of(call), bytes)
        kept = {name: headers[name] for name in headers if name not in dropped}
        answer = replace(answer, headers=kept, body=change(answer.body))
        if "document" not in habits.region_by and b"<Region>" in answer.body:
            answer = replace(answer, body=b"")
        if habits.closes:
            channel.persistent = False
        if habits.closes == "says":
            request.setHeader("connection", "close")
        if habits.lower_case:
            channel.writeHeaders = partial(_write_in_lower_case, channel)
        super()._send(request, call, answer, limit_bytes=limit_bytes)

    def _say_length(self, request: Any, call: Call, size: int) -> None:
        """Without a length Twisted sends in chunks, to HEAD nothing that tells the length."""
        dropped = self.habits.without.get(operation_of(call), set())
        if "content-length" not in dropped and (call.method == "HEAD" or not self.habits.chunked):
            super()._say_length(request, call, size)


def replacing(*pairs: tuple[bytes, bytes]) -> Callable[[bytes], bytes]:
    """For Habits.bodies: each first one, which must be there, becomes the second."""

    def change(body: bytes) -> bytes:
        for old, new in pairs:
            assert old in body
            body = body.replace(old, new)
        return body

    return change


#: As rclone's S3 server says it.
RCLONE_CREATE = replacing((b"InitiateMultipartUploadResult", b"InitiateMultipartUpload"))


def etag_of_parts(body: bytes) -> bytes:
    """CompleteMultipartUpload names another ETag than GET, HEAD and listings have (S3Proxy, gofakes3)."""
    return re.sub(rb"<ETag>.*</ETag>", b"<ETag>&quot;0123456789abcdef0123456789abcdef-2&quot;</ETag>", body)


def _write_in_lower_case(channel: Any, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
    """HTTPChannel.writeHeaders, which has names of its own for header fields."""
    lines = [b" ".join([version, code, reason])]
    lines += [name.lower() + b": " + value for name, values in headers.getAllRawHeaders() for value in values]
    channel.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
