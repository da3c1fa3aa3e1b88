# SPDX-License-Identifier: GPL-2.0-or-later
"""A bucket in memory with the surface of tahoe_s3.client.S3Client: the store's tests run on it without a server.

It counts requests by operation, holds answers back until a test lets them go, and fails as a service or a network
would: before the service did anything, or after it did and the answer was lost (outcome "unknown"). Answers come at
once, before the call returns, unless they are held; downloads are the real Download over a window made of bytes.

    client = MemoryClient()
    held = client.hold("PutObject")            # the next PutObject waits ...
    ... ; held.release()                       # ... for this
    client.fail("PutObject", Unavailable, outcome="unknown", applied=True)
    assert client.requests == {"GetObject": 1}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Union, cast

from twisted.internet.defer import Deferred, succeed

from tahoe_s3 import listing
from tahoe_s3.client import (
    BadReply,
    Changed,
    Closed,
    Download,
    Entry,
    FileRegion,
    GetResult,
    NoSuchUpload,
    NotFound,
    ObjectInfo,
    Page,
    Probe,
    S3Error,
)
from tahoe_s3.client import Upload as UploadInfo

from .memory_requests import Requests
from .memory_window import Get

Body = Union[bytes, FileRegion]
MAX_KEYS = 1000


@dataclass
class Stored:
    """One object. `listed_etag` is what listings say, where that is something else."""

    data: bytes
    etag: str
    modified_s: int
    listed_etag: str | None = None


@dataclass
class _Upload:
    key: str
    initiated_s: int
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryClient(Requests):
    """See above. `now_s` is the service's clock."""

    def __init__(self, *, budget_bytes: int | None = None) -> None:
        super().__init__()
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, _Upload] = {}
        self.on_budget_wait: Callable[[int], None] | None = None
        self.now_s = 1_700_000_000
        self.region = "us-east-1"
        self.window_bytes = 0
        self.budget_bytes = budget_bytes
        self.etag_of: Callable[[bytes], str] = lambda data: hashlib.md5(data).hexdigest()
        #: Keys on one page of a listing.
        self.page_keys = MAX_KEYS
        self.unlisted: set[str] = set()  # keys that are there and that no listing shows, since it lags
        self.delete_errors: dict[str, str] = {}  # keys that a multi-delete does not delete, and why
        self.ahead_s = 0.0  # how far its clock is ahead of the one it follows
        self._waiting: list[Get] = []
        self._serial = 0

    # for tests

    def follow(self, clock: Any) -> None:
        """From here on the service's time is the clock's, plus `ahead_s`."""
        self._clock = clock

    @property
    def clock_difference_s(self) -> float | None:
        """As the real client's: None before the first answer, and where the service follows no clock."""
        return self.ahead_s if self.answered and self._clock is not None else None

    def store(self, key: str, data: bytes, *, etag: str | None = None, listed_etag: str | None = None) -> Stored:
        """Put an object there behind everybody's back, with no request."""
        self.now_s = self.now_s + 1 if self._clock is None else int(self._clock.seconds() + self.ahead_s)
        self.objects[key] = Stored(data, etag or self.etag_of(data), self.now_s, listed_etag)
        return self.objects[key]

    # inside

    def look(
        self, key: str, expect_etag: str | None = None, operation: str = "GetObject", *, offset: int = 0
    ) -> tuple[ObjectInfo, bytes]:
        stored = self.objects.get(key)
        method = "HEAD" if operation == "HeadObject" else "GET"
        if stored is None:
            code = "" if method == "HEAD" else "NoSuchKey"
            raise NotFound("no such key", operation=operation, method=method, key=key, status=404, code=code)
        if expect_etag is not None and expect_etag != stored.etag:
            raise Changed("another ETag", operation=operation, method=method, key=key, status=200, kind="changed")
        if offset and offset >= len(stored.data):
            raise S3Error("beyond the end", operation=operation, method="GET", key=key, status=416, code="InvalidRange")
        return ObjectInfo(key, len(stored.data), stored.etag, stored.modified_s), stored.data

    def start_waiting(self) -> None:
        """Memory was freed."""
        while self._waiting and self._fits(self._waiting[0].length):
            self._waiting.pop(0).begin()

    def forget_waiting(self, get: Get) -> None:
        if get in self._waiting:
            self._waiting.remove(get)

    def _fits(self, length: int) -> bool:
        return self.budget_bytes is None or self.window_bytes + length <= self.budget_bytes

    @staticmethod
    def _bytes(body: Body) -> bytes:
        if isinstance(body, bytes):
            return body
        data = os.pread(body.fd, body.length, body.offset)
        if len(data) != body.length:
            raise BadReply("the file is shorter than its region")
        return data

    # objects

    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, expect_etag: str | None = None,
        priority: int = 1, deadline_s: float | None = None,
    ) -> Deferred[GetResult]:  # fmt: skip
        def apply() -> GetResult:
            info, data = self.look(key, expect_etag, offset=offset)
            stop = len(data) if length is None else offset + length
            self.ranges.append((key, offset, min(stop, len(data)) - offset))
            return GetResult(data[offset:stop], info.etag, info.size, info.modified_s)

        self.priorities.append(priority)
        return self._request("GetObject", key, apply)

    def get_window(
        self, key: str, *, offset: int, length: int, expect_etag: str | None = None, priority: int = 1,
        deadline_s: float | None = None,
    ) -> Download:  # fmt: skip
        assert offset >= 0 and length > 0, (offset, length)
        self.ranges.append((key, offset, length))
        self.priorities.append(priority)
        made: list[Get] = []

        def start(on_ready: Callable[[Any], None]) -> Any:
            made.append(Get(self, key, offset, length, expect_etag, on_ready))
            return made[0]

        download = Download(key, length, start, lambda: None)
        if self._fits(length) and not self._waiting:
            made[0].begin()
        else:
            self._waiting.append(made[0])
            if self.on_budget_wait is not None:
                self.on_budget_wait(length)
            self.start_waiting()
        return download

    def put(
        self, key: str, body: Body, *, content_type: str = "application/octet-stream", priority: int = 1,
        deadline_s: float | None = None,
    ) -> Deferred[ObjectInfo]:  # fmt: skip
        def apply() -> ObjectInfo:
            stored = self.store(key, self._bytes(body))
            return ObjectInfo(key, len(stored.data), stored.etag, stored.modified_s)

        return self._write("PutObject", key, [key], apply)

    def head(self, key: str, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[ObjectInfo]:
        return self._request("HeadObject", key, lambda: self.look(key, operation="HeadObject")[0])

    def delete(self, key: str, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[None]:
        def apply() -> None:
            self.objects.pop(key, None)

        return self._write("DeleteObject", key, [key], apply)

    def delete_many(
        self, keys: Iterable[str], *, priority: int = 2, deadline_s: float | None = None
    ) -> Deferred[list[tuple[str, str]]]:
        wanted = list(keys)

        def apply() -> list[tuple[str, str]]:
            for key in wanted:
                if key not in self.delete_errors:
                    self.objects.pop(key, None)
            return [(key, self.delete_errors[key]) for key in wanted if key in self.delete_errors]

        for _ in range(0, max(0, len(wanted) - MAX_KEYS), MAX_KEYS):
            self.count("DeleteObjects", "")
        return self._write("DeleteObjects", "", wanted, apply) if wanted else succeed([])

    # listings

    def list_page(
        self, prefix: str, *, token: str | None = None, start_after: str | None = None,
        delimiter: str | None = None, max_keys: int = MAX_KEYS, priority: int = 1,
        deadline_s: float | None = None,
    ) -> Deferred[Page]:  # fmt: skip
        def apply() -> Page:
            after = token or start_after or ""
            shown = sorted(self.objects.keys() - self.unlisted)
            keys = [key for key in shown if key.startswith(prefix) and key > after]
            page = keys[: min(max_keys, self.page_keys)]
            return Page([self.entry(key) for key in page], [], page[-1] if len(keys) > len(page) else None, False)

        assert delimiter is None, "no test needs it yet"
        return self._request("ListObjectsV2", prefix, apply)

    def entry(self, key: str) -> Entry:
        """What a listing says of it."""
        stored = self.objects[key]
        return Entry(key, len(stored.data), stored.listed_etag or stored.etag, stored.modified_s, "STANDARD")

    def list_all(self, prefix: str, on_page: Callable[[Page], Any], **options: Any) -> Deferred[int]:
        """The client's own, on the pages of this."""
        return listing.list_all(self.as_client(), prefix, on_page, **options)

    # multipart uploads

    def create_multipart(
        self, key: str, *, content_type: str = "application/octet-stream", priority: int = 1,
        deadline_s: float | None = None,
    ) -> Deferred[str]:  # fmt: skip
        def apply() -> str:
            self._serial += 1
            upload_id = f"upload-{self._serial}"
            self.uploads[upload_id] = _Upload(key, self.now_s)
            return upload_id

        return self._request("CreateMultipartUpload", key, apply)

    def _upload(self, operation: str, key: str, upload_id: str) -> _Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NoSuchUpload("no such upload", operation=operation, key=key, status=404, code="NoSuchUpload")
        return upload

    def upload_part(
        self, key: str, upload_id: str, number: int, body: Body, *, priority: int = 1,
        deadline_s: float | None = None,
    ) -> Deferred[str]:  # fmt: skip
        def apply() -> str:
            data = self._bytes(body)
            self._upload("UploadPart", key, upload_id).parts[number] = data
            return self.etag_of(data)

        return self._request("UploadPart", key, apply, is_write=True)

    def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, expect_size: int | None = None,
        priority: int = 1, deadline_s: float | None = None,
    ) -> Deferred[ObjectInfo]:  # fmt: skip
        def apply() -> ObjectInfo:
            upload = self._upload("CompleteMultipartUpload", key, upload_id)
            for number, etag in parts:
                if number not in upload.parts or self.etag_of(upload.parts[number]) != etag:
                    raise S3Error("a part is missing", operation="CompleteMultipartUpload", key=key, code="InvalidPart")
            data = b"".join(upload.parts[number] for number, _ in sorted(parts))
            del self.uploads[upload_id]
            stored = self.store(key, data, etag=f"{self.etag_of(data)}-{len(parts)}")
            return ObjectInfo(key, len(data), stored.etag, stored.modified_s)

        return self._write("CompleteMultipartUpload", key, [key], apply)

    def abort_multipart(
        self, key: str, upload_id: str, *, priority: int = 1, deadline_s: float | None = None
    ) -> Deferred[None]:
        def apply() -> None:
            self.uploads.pop(upload_id, None)

        return self._request("AbortMultipartUpload", key, apply, is_write=True)

    def list_multiparts(
        self, prefix: str, *, priority: int = 2, deadline_s: float | None = None
    ) -> Deferred[list[UploadInfo]]:
        def apply() -> list[UploadInfo]:
            return [UploadInfo(u.key, i, u.initiated_s) for i, u in self.uploads.items() if u.key.startswith(prefix)]

        return self._request("ListMultipartUploads", prefix, apply)

    # the bucket

    def head_bucket(self, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[None]:
        return self._request("HeadBucket", "", lambda: None)

    def probe(self, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[Probe]:
        return self._request("ListObjectsV2", "", lambda: Probe(self.now_s, not self.objects))

    def get_versioning(self, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[str | None]:
        return self._request("GetBucketVersioning", "", lambda: "Disabled")

    def get_object_lock(self, *, priority: int = 1, deadline_s: float | None = None) -> Deferred[str | None]:
        return self._request("GetObjectLockConfiguration", "", lambda: None)

    def stats(self) -> dict[str, int]:
        return {"waiting": len(self._waiting), "budget_used_bytes": self.window_bytes}

    def set_credentials(self, access_key_id: str, secret: bytes, token: str | None = None) -> None:
        """Nothing here is signed."""

    def close(self) -> Deferred[None]:
        self.closed = True
        for held in list(self.holds):
            for call in list(held.calls):
                call.fail(Closed, kind="closed")
            held.calls.clear()
        return succeed(None)

    def as_client(self) -> Any:
        """Itself, for parameters that are typed S3Client."""
        return cast(Any, self)
