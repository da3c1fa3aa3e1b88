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
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Union, cast

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure

from tahoe_s3 import listing
from tahoe_s3.client import (
    BadReply,
    Cancelled,
    Changed,
    Closed,
    Counters,
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

from .memory_window import MemoryWindow

Body = Union[bytes, FileRegion]
MAX_KEYS = 1000
READS = ("Get", "Head", "List")


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


@dataclass
class _Failing:
    operation: str
    key: str | None
    error: type[S3Error]
    outcome: str
    applied: bool
    times: int
    after_bytes: int


class Held:
    """One kind of request that is held back; `calls` are those that wait now, in the order of their coming."""

    def __init__(self, owner: MemoryClient, operation: str, key: str | None, *, apply_first: bool) -> None:
        self._owner = owner
        self.operation = operation
        self.key = key
        self.apply_first = apply_first
        self.calls: list[Any] = []

    def __len__(self) -> int:
        return len(self.calls)

    def release(self, count: int | None = None) -> None:
        """Let the first `count` go, or all and everything that comes later."""
        if count is None:
            self._owner.holds.remove(self)
            count = len(self.calls)
        for _ in range(count):
            self.calls.pop(0).go()

    def feed(self, count: int) -> None:
        """Let so many further bytes of the first download arrive, and no more."""
        self.calls[0].feed(count)

    def fail(self, error: type[S3Error], **details: Any) -> None:
        """End the first of them with an error."""
        self.calls.pop(0).fail(error, **details)


class _Get:
    """The request of a download: what tahoe_s3.transfer.Call is to it."""

    def __init__(
        self, client: MemoryClient, key: str, offset: int, length: int, expect_etag: str | None,
        on_ready: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self.client, self.key, self.offset, self.length = client, key, offset, length
        self.expect_etag, self.on_ready = expect_etag, on_ready
        self.window: MemoryWindow | None = None
        self.deferred: Deferred[Any] = Deferred(self._cancelled)
        self.deferred.addBoth(client.tell)
        self.held: Held | None = None
        self.info: ObjectInfo | None = None
        self.ended = False

    def begin(self) -> None:
        """The request is sent: memory for its bytes is there."""
        self.client.window_bytes += self.length
        self.window = MemoryWindow(b"", self._closed)
        failing = self.client.count("GetObject", self.key)
        self.held = self.client.holding("GetObject", self.key, self)
        if failing is not None:
            if failing.after_bytes:
                self.feed(failing.after_bytes)
            self.fail(failing.error, outcome=failing.outcome)
        elif self.held is None:
            self.go()
        elif self.held.apply_first:
            self._look()

    def _closed(self) -> None:
        self.client.window_bytes -= self.length
        self.client.start_waiting()

    def _cancelled(self, _: object) -> None:
        self._end()
        self.deferred.errback(Cancelled("cancelled by the caller", operation="GetObject", key=self.key))

    def _end(self) -> None:
        self.ended = True
        if self.held is not None and self in self.held.calls:
            self.held.calls.remove(self)
        self.client.forget_waiting(self)

    def _look(self) -> bool:
        """Take the object as it is now, once."""
        if self.info is None:
            try:
                self.info, data = self.client.look(self.key, self.expect_etag, offset=self.offset)
            except S3Error as error:
                self._end()
                self.deferred.errback(error)
                return False
            assert self.window is not None
            self.window.data = data[self.offset : self.offset + self.length]
        return True

    def feed(self, count: int) -> None:
        if self.ended or not self._look():
            return
        window = self.window
        assert window is not None
        window.ready = min(len(window.data), window.ready + count)
        if window.armed is not None and window.ready >= window.armed:
            window.armed = None
            self.on_ready(self)

    def go(self) -> None:
        if self.ended or not self._look():
            return
        self.feed(self.length)
        if not self.ended:
            self._end()
            self.deferred.callback(self.info)

    def fail(self, error: type[S3Error], **details: Any) -> None:
        if not self.ended:
            self._end()
            self.deferred.errback(error("made to fail", operation="GetObject", method="GET", key=self.key, **details))


class _Held:
    """A held request other than a download's."""

    def __init__(self, result: Deferred[Any], finish: Callable[[], Any], fail: Callable[..., None]) -> None:
        self.result, self._finish, self._fail = result, finish, fail

    def go(self) -> None:
        if not self.result.called:
            maybeDeferred(self._finish).chainDeferred(self.result)

    def fail(self, error: type[S3Error], **details: Any) -> None:
        if not self.result.called:
            self._fail(error, **details)


class MemoryClient:
    """See above. `now_s` is the service's clock."""

    def __init__(self, *, budget_bytes: int | None = None) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, _Upload] = {}
        self.requests: Counter[str] = Counter()
        self.keys_asked: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.priorities: list[int] = []
        self.holds: list[Held] = []
        self.counters = Counters()
        self.on_budget_wait: Callable[[int], None] | None = None
        self.on_write: Any = lambda key, **_: None
        self.retried: set[str] = set()  # keys whose writes succeed at the second attempt
        self.now_s = 1_700_000_000
        self.region = "us-east-1"
        self.window_bytes = 0
        self.budget_bytes = budget_bytes
        self.etag_of: Callable[[bytes], str] = lambda data: hashlib.md5(data).hexdigest()
        self.closed = False
        self.before_write: Any = None
        self.on_outcome: Any = None
        self._writing: list[Deferred[Any]] = []
        #: Keys on one page of a listing.
        self.page_keys = MAX_KEYS
        self.delete_errors: dict[str, str] = {}  # keys that a multi-delete does not delete, and why
        self.answered = False  # whether the service has answered anything; where not, nobody knows its time
        self.ahead_s = 0.0  # how far its clock is ahead of the one it follows
        self._clock: Any = None
        self._failing: list[_Failing] = []
        self._waiting: list[_Get] = []
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

    def forget_requests(self) -> None:
        self.requests.clear()
        self.keys_asked.clear()
        self.ranges.clear()
        self.priorities.clear()

    def hold(self, operation: str, key: str | None = None, *, apply_first: bool = False) -> Held:
        """Hold back the answers of an operation (of one key, or of all).

        apply_first: the service does it at once, only its answer waits; otherwise it does it when let go.
        """
        held = Held(self, operation, key, apply_first=apply_first)
        self.holds.append(held)
        return held

    def fail(
        self, operation: str, error: type[S3Error], *, key: str | None = None, outcome: str = "not_applied",
        applied: bool = False, times: int = 1, after_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Make the next `times` requests of an operation fail. applied: the service does it all the same.

        after_bytes: a download breaks off after so many bytes.
        """
        self._failing.append(_Failing(operation, key, error, outcome, applied, times, after_bytes))

    def watch(self, *, before_write: Callable[[], None], on_outcome: Callable[[S3Error | None], None]) -> None:
        self.before_write, self.on_outcome = before_write, on_outcome

    def end_writes(self) -> None:
        for result in list(self._writing):
            result.cancel()

    # inside

    def tell(self, result: Any) -> Any:
        if self.on_outcome is not None:
            self.on_outcome(result.value if isinstance(result, Failure) else None)
        return result

    def count(self, operation: str, key: str) -> _Failing | None:
        """Note a request; the failure that was ordered for it, if any."""
        self.answered = True
        self.requests[operation] += 1
        self.counters.ended(operation, now_s=0.0 if self._clock is None else self._clock.seconds(), attempts=1)
        self.keys_asked.append((operation, key))
        for failing in self._failing:
            if failing.operation == operation and failing.key in (None, key):
                failing.times -= 1
                if failing.times == 0:
                    self._failing.remove(failing)
                return failing
        return None

    def holding(self, operation: str, key: str, call: Any) -> Held | None:
        for held in self.holds:
            if held.operation == operation and held.key in (None, key):
                held.calls.append(call)
                return held
        return None

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

    def _request(self, operation: str, key: str, apply: Callable[[], Any], *, is_write: bool = False) -> Deferred[Any]:
        if self.closed:
            return maybeDeferred(self._raise_closed)
        changes = not operation.startswith(READS)
        if changes and self.before_write is not None:
            try:
                self.before_write()
            except S3Error as error:
                return fail(error)
        failing = self.count(operation, key)

        def fail_with(error: type[S3Error], **details: Any) -> None:
            result.errback(error("made to fail", operation=operation, key=key, **details))

        def cancelled(_: object) -> None:
            outcome = "unknown" if is_write else "not_applied"
            fail_with(Cancelled, outcome=outcome, kind="cancelled")

        def ended(outcome: Any) -> Any:
            if result in self._writing:
                self._writing.remove(result)
            return self.tell(outcome)

        result: Deferred[Any] = Deferred(cancelled)
        result.addBoth(ended)
        if changes:
            self._writing.append(result)
        if failing is not None:
            if failing.applied:
                apply()
            fail_with(failing.error, outcome=failing.outcome)
            return result
        answers: list[Any] = []

        def finish() -> Any:
            return answers[0] if answers else apply()

        held = self.holding(operation, key, _Held(result, finish, fail_with))
        if held is None:
            maybeDeferred(apply).chainDeferred(result)
        elif held.apply_first:
            try:
                answers.append(apply())
            except S3Error as error:
                result.errback(error)
        return result

    def _write(self, operation: str, key: str, keys: list[str], apply: Callable[[], Any]) -> Deferred[Any]:
        """As the real client's: on_write is told how each write has ended."""
        def ended(result: Any) -> Any:
            error = getattr(result, "value", None)
            doubts = [one for one in keys if (one in self.retried if error is None else error.outcome == "unknown")]
            for one in keys if error is None else doubts:
                self.on_write(one, is_in_doubt=one in doubts, is_answered=error is None)
            return result

        return self._request(operation, key, apply, is_write=True).addBoth(ended)

    def _raise_closed(self) -> None:
        raise Closed("the client was closed", kind="closed")

    def start_waiting(self) -> None:
        """Memory was freed."""
        while self._waiting and self._fits(self._waiting[0].length):
            self._waiting.pop(0).begin()

    def forget_waiting(self, get: _Get) -> None:
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
        made: list[_Get] = []

        def start(on_ready: Callable[[Any], None]) -> Any:
            made.append(_Get(self, key, offset, length, expect_etag, on_ready))
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
            keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > after]
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
