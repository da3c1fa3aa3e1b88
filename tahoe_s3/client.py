# SPDX-License-Identifier: GPL-2.0-or-later
"""S3 operations as Deferreds over the engine. Knows nothing of Tahoe.

Everything runs on the reactor's thread. Every operation returns a Deferred that fails with an S3Error and nothing
else, takes `priority` (0 interactive, 1 ordinary, 2 background) and `deadline_s` (seconds from the call, waiting
included; None: no limit of its own), and can be cancelled: the Deferred then fails with Cancelled at once, whose
`outcome` says whether a write may have been applied.

The client's prefix is put before every key that is sent and taken from every key of a listing: callers never see
it. Retries, timers and integrity checks are the engine's (ext/net/ts3_engine.h); the names of operations are those
of the Amazon S3 API reference.
"""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Final, NamedTuple, Union

from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from tahoe_s3 import answers, documents, listing
from tahoe_s3._native import Engine, Entry, FileRegion, Page, Upload
from tahoe_s3.clientconfig import ClientConfig
from tahoe_s3.deletion import Deletions
from tahoe_s3.download import Download, ObjectInfo
from tahoe_s3.metrics import Counters
from tahoe_s3.s3errors import (
    AccessDenied,
    BadReply,
    Busy,
    Cancelled,
    Changed,
    ClockSkewed,
    Closed,
    LocalError,
    NoSuchBucket,
    NoSuchUpload,
    NotFound,
    S3Error,
    Throttled,
    Unavailable,
    Untrusted,
    WrongRegion,
    is_unsupported,
)
from tahoe_s3.settle import OnWrite, completed_before, deleted, tell_ended, written
from tahoe_s3.transfer import Call, Priority, ReactorLike, Transfers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from twisted.python.failure import Failure as TwistedFailure

    from tahoe_s3._native import Event, Method
    from tahoe_s3.splits import Splits

__all__ = [
    "AccessDenied", "BadReply", "Busy", "Cancelled", "Changed", "ClientConfig", "ClockSkewed", "Closed", "Counters",
    "Download", "Entry", "FileRegion", "GetResult", "LocalError", "NoSuchBucket", "NoSuchUpload", "NotFound",
    "ObjectInfo", "OnWrite", "Page", "Priority", "Probe", "S3Client", "S3Error", "Throttled", "Unavailable",
    "Untrusted", "Upload", "WrongRegion", "open_client",
]

Body = Union[bytes, FileRegion]

COMPLETE_SILENCE_MS: Final = 300_000
"""CompleteMultipartUpload may stay silent for minutes while the service joins the parts."""
DELETE_SILENCE_MS: Final = 60_000
"""A thousand deletions take a service its time."""
MAX_LISTED_UPLOADS: Final = 100_000
WHOLE_BYTES: Final = 32 * 1024 * 1024
"""The largest object that is fetched without its size being known; the engine's own limit."""
XML_HEADERS: Final = (("content-type", "application/xml"),)


class GetResult(NamedTuple):
    """Bytes of an object. `size` is the whole object's, whatever range was asked for."""

    data: bytes
    etag: str
    size: int
    modified_s: int


class Probe(NamedTuple):
    """What a first look at the bucket tells. `empty`: nothing below the prefix."""

    server_time_s: int | None
    empty: bool


class S3Client:
    """One bucket (below one prefix) of one service.

    Args:
        reactor: where Deferreds fire.
        engine: with its credentials set; the client owns it from here and closes it.
        config: the same the engine was made from.
    """

    def __init__(self, reactor: ReactorLike, engine: Engine, config: ClientConfig) -> None:
        self._reactor = reactor
        self._engine = engine
        self._prefix = config.prefix
        self._attempts = config.attempts
        self._budget_bytes = config.buffer_budget_bytes
        self._transfers = Transfers(reactor, engine, max_waiting=config.max_waiting)
        #: Called as each write or deletion of an object ends; see OnWrite.
        self.on_write: OnWrite | None = None
        self._lists_v1: bool | None = None
        self._deletions = Deletions()

    @property
    def counters(self) -> Counters:
        """What was asked by operation ("PutObject"), what became of it, the last error and when."""
        return self._transfers.counters

    @property
    def on_budget_wait(self) -> Callable[[int], None] | None:
        """Called with a number of bytes when a download has to wait for memory: whoever holds idle windows should
        close some. It is on the way of the caller of get or get_window, so it must be quick."""
        return self._transfers.on_budget_wait

    @on_budget_wait.setter
    def on_budget_wait(self, function: Callable[[int], None] | None) -> None:
        self._transfers.on_budget_wait = function

    @property
    def region(self) -> str:
        """The region that requests are signed for; the service may have named another than the configured one."""
        return self._engine.region()

    def stats(self) -> dict[str, int]:
        """The engine's numbers (ext/net/ts3_engine.h) plus "waiting", the requests that wait for room here."""
        numbers = self._engine.stats()
        numbers["waiting"] = self._transfers.waiting
        return numbers

    @property
    def clock_difference_s(self) -> float | None:
        """The service's clock (the Date of its last answer) minus this machine's; None before the first answer."""
        return self._transfers.clock_difference_s

    def set_credentials(self, access_key_id: str, secret: bytes, token: str | None = None) -> None:
        """Sign everything from the next attempt on with these."""
        self._engine.set_credentials(access_key_id, secret, token)

    def watch(self, *, before_write: Callable[[], None], on_outcome: Callable[[S3Error | None], None]) -> None:
        """Whom to ask and to tell: before_write is called before each request that would change the bucket, which is
        not sent if it raises an S3Error, and fails with that; on_outcome hears what became of every request, after
        all its attempts: None for a success. A 404, a cancellation and Closed are told too."""
        self._transfers.before_write, self._transfers.on_outcome = before_write, on_outcome

    def end_writes(self) -> None:
        """Cancel all requests that would change the bucket; what was sent of them may still have been applied."""
        self._transfers.end_writes()

    def _object(
        self, operation: str, method: Method, key: str, priority: Priority, deadline_s: float | None, **options: Any,
    ) -> Deferred[Event]:
        """A request for one object."""
        if not key:
            raise ValueError("an object's key must not be empty")
        return self._transfers.request(
            operation, method, key, native_key=self._prefix + key, priority=priority, deadline_s=deadline_s,
            attempts=self._attempts, **options,
        ).deferred

    def _write(
        self, operation: str, method: Method, key: str, priority: Priority, deadline_s: float | None, **options: Any,
    ) -> Deferred[Event]:
        """A request that makes or removes the object. `on_write` hears of its end before the caller."""
        d = self._object(operation, method, key, priority, deadline_s, **options)
        return d.addBoth(self._wrote, [key])

    def _wrote(self, result: Event | TwistedFailure, keys: Iterable[str]) -> Event | TwistedFailure:
        if self.on_write is not None:
            tell_ended(self.on_write, result, keys)
        return result

    def _bucket(
        self, operation: str, method: Method, priority: Priority, deadline_s: float | None, **options: Any,
    ) -> Deferred[Event]:
        """A request for the bucket itself."""
        return self._transfers.request(
            operation, method, "", native_key="", priority=priority, deadline_s=deadline_s,
            attempts=self._attempts, **options,
        ).deferred

    # objects

    def get(
        self, key: str, *, offset: int = 0, length: int | None = None, expect_etag: str | None = None,
        priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[GetResult]:
        """GetObject, whole (length None) or a range of it. A range that passes the object's end is cut there.

        Errors: NotFound; Changed when `expect_etag` is given and not the object's; any other S3Error.
        """
        if length is None:
            if offset:
                return self._get_rest(key, offset, expect_etag, priority, deadline_s)
            d = self._object("GetObject", "GET", key, priority, deadline_s, parse="bytes",
                             expect_etag=expect_etag, max_answer_bytes=WHOLE_BYTES)
            return d.addCallbacks(
                lambda event: GetResult(answers.body_of(event), event.etag or "", len(answers.body_of(event)),
                                        event.modified_s or 0),
                self._too_long, errbackArgs=(key, expect_etag, priority, deadline_s),
            )
        call = self._range(key, offset, length, expect_etag=expect_etag, priority=priority, deadline_s=deadline_s,
                           whole=True)
        return call.deferred.addCallbacks(self._arrived, self._broke_off, callbackArgs=(call,), errbackArgs=(call,))

    def _range(self, key: str, offset: int, length: int, **options: Any) -> Call:
        """GetObject of a range into a window. `options` are those of Transfers.request."""
        if not key or offset < 0 or not 0 < length <= self._budget_bytes:
            raise ValueError(f"{length} bytes from {offset} of {key!r} cannot be asked for")
        return self._transfers.request("GetObject", "GET", key, native_key=self._prefix + key, window_bytes=length,
                                       attempts=self._attempts, offset=offset, **options)

    def _arrived(self, event: Event, call: Call) -> GetResult:
        """What is in the call's window, whose memory goes back."""
        if call.window is None:
            raise TypeError("a request without a window has ended as if it had one")
        try:
            data = call.window.read(0, call.window.ready)
        finally:
            self._give_back(call)
        return GetResult(data, event.etag or "", event.size or 0, event.modified_s or 0)

    def _broke_off(self, failure: TwistedFailure, call: Call) -> TwistedFailure:
        self._give_back(call)
        return failure

    def _give_back(self, call: Call) -> None:
        if call.window is not None:
            call.window.close()
            self._transfers.submit_waiting()

    def _too_long(
        self, failure: TwistedFailure, key: str, expect_etag: str | None, priority: Priority,
        deadline_s: float | None,
    ) -> TwistedFailure | Deferred[GetResult]:
        """An object that is too large to be fetched without knowing its size is fetched knowing it."""
        error = failure.value
        if isinstance(error, BadReply) and error.size is not None and error.size > WHOLE_BYTES:
            return self._get_rest(key, 0, expect_etag, priority, deadline_s)
        return failure

    @inlineCallbacks
    def _get_rest(
        self, key: str, offset: int, expect_etag: str | None, priority: Priority, deadline_s: float | None,
    ) -> Generator[Deferred[Any], Any, GetResult]:
        info: ObjectInfo = yield self.head(key, priority=priority, deadline_s=deadline_s)
        if info.size <= offset:
            return GetResult(b"", info.etag, info.size, info.modified_s)
        result: GetResult = yield self.get(key, offset=offset, length=info.size - offset, expect_etag=expect_etag,
                                           priority=priority, deadline_s=deadline_s)
        return result

    def get_window(
        self, key: str, *, offset: int, length: int, expect_etag: str | None = None, priority: Priority = 1,
        deadline_s: float | None = None,
    ) -> Download:
        """GetObject of `length` bytes from `offset` into C memory, readable while it still arrives.

        Returns at once, also while it waits for memory. The caller must close() the Download. Never raises for
        the service's sake; errors come through when_ready() and when_done().
        """

        def start(progress: Callable[[Call], None]) -> Call:
            return self._range(key, offset, length, expect_etag=expect_etag, priority=priority, deadline_s=deadline_s,
                               on_progress=progress)

        return Download(key, length, start, self._transfers.submit_waiting)

    def put(
        self, key: str, body: Body, *, content_type: str = "application/octet-stream",
        priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[ObjectInfo]:
        """PutObject. A file's region is read while it is sent and must not change until the Deferred fires.

        The answer's `modified_s` is the service's Date, which LastModified equals to the second or nearly so. Where
        the answer has no ETag, a HEAD tells it, and that it was a service which said 200.
        """
        size = body.length if isinstance(body, FileRegion) else len(body)
        head = partial(self.head, key, priority=priority, deadline_s=deadline_s)

        def done(event: Event) -> ObjectInfo | Deferred[ObjectInfo]:
            if event.etag:
                return ObjectInfo(key, size, event.etag, self._date(event))
            return written(event, "PutObject", key, size, head)

        d = self._write("PutObject", "PUT", key, priority, deadline_s, body=body,
                        headers=[("content-type", content_type)])
        return d.addCallback(done)

    def head(self, key: str, *, priority: Priority = 1, deadline_s: float | None = None) -> Deferred[ObjectInfo]:
        """HeadObject. Errors: NotFound on a 404; BadReply where the answer does not tell the object's size."""
        d = self._object("HeadObject", "HEAD", key, priority, deadline_s)
        return d.addCallback(answers.info_of, key)

    def delete(self, key: str, *, priority: Priority = 1, deadline_s: float | None = None) -> Deferred[None]:
        """DeleteObject. Success also where the object does not exist; a HEAD tells where the answer is not S3's."""
        head = partial(self.head, key, priority=priority, deadline_s=deadline_s)
        d = self._write("DeleteObject", "DELETE", key, priority, deadline_s)
        return d.addCallbacks(deleted, answers.none_for(answers.is_absence), callbackArgs=(key, head))

    def delete_many(
        self, keys: Iterable[str], *, priority: Priority = 2, deadline_s: float | None = None,
    ) -> Deferred[list[tuple[str, str]]]:
        """DeleteObjects, a thousand keys a request, one batch after the other; single DELETEs where the service
        refuses multi-delete or answers it with what cannot be read (remembered).

        Fires with (key, S3 code) of every key that was not deleted, empty when all are gone. A batch that fails as
        a whole fails the Deferred; what earlier batches did stays done, and deleting again is harmless. The error's
        outcome is that of all keys together: "unknown" where some may have been deleted.
        """
        return self._deletions.run(
            list(keys), lambda batch: self._delete_batch(batch, priority, deadline_s),
            partial(self.delete, priority=priority, deadline_s=deadline_s),
        )

    def _delete_batch(
        self, keys: list[str], priority: Priority, deadline_s: float | None,
    ) -> Deferred[list[tuple[str, str]]]:
        d = self._bucket(
            "DeleteObjects", "POST", priority, deadline_s, query=[("delete", "")], parse="deleted",
            body=documents.delete(self._prefix + key for key in keys), headers=XML_HEADERS, strip=self._prefix,
            first_byte_ms=DELETE_SILENCE_MS,
        )
        d.addBoth(self._wrote, keys)
        return d.addCallback(answers.not_deleted, keys)

    # listings

    def list_page(
        self, prefix: str, *, token: str | None = None, start_after: str | None = None,
        delimiter: str | None = None, max_keys: int = 1000, priority: Priority = 1,
        deadline_s: float | None = None,
    ) -> Deferred[Page]:
        """One page of ListObjectsV2 (ListObjects where the service knows no v2; remembered), sorted by key.

        `next_token` of the answer goes into the next call's `token`; None on the last page.
        """
        d = self._list(prefix, token, start_after, delimiter, max_keys, priority, deadline_s)
        return d.addCallback(answers.page_of)

    @inlineCallbacks
    def _list(
        self, prefix: str, token: str | None, start_after: str | None, delimiter: str | None,
        max_keys: int, priority: Priority, deadline_s: float | None,
    ) -> Generator[Deferred[Any], Any, Event]:
        """The event of one page, by v1 where v2 is not known."""
        query = [("prefix", self._prefix + prefix), ("max-keys", str(max_keys)), ("encoding-type", "url")]
        if delimiter is not None:
            query.append(("delimiter", delimiter))
        if not self._lists_v1:
            v2 = [*query, ("list-type", "2")]
            if token is not None:
                v2.append(("continuation-token", token))
            elif start_after is not None:
                v2.append(("start-after", self._prefix + start_after))
            try:
                event: Event = yield self._bucket("ListObjectsV2", "GET", priority, deadline_s, query=v2,
                                                  parse="list", strip=self._prefix)
            except S3Error as error:
                # Where version 2 has worked, it is something else that is refused, and its tokens are no markers.
                if token is not None or self._lists_v1 is False or not answers.is_refused_way(error):
                    raise
            else:
                self._lists_v1 = answers.page_of(event).v1
                if not (self._lists_v1 and start_after is not None):
                    return event
        if token is None and start_after is not None:
            token = self._prefix + start_after
        if token is not None:
            query.append(("marker", token))
        event = yield self._bucket("ListObjects", "GET", priority, deadline_s, query=query, parse="list",
                                   strip=self._prefix)
        self._lists_v1 = True
        return event

    def list_all(
        self, prefix: str, on_page: Callable[[Page], Deferred[Any] | None], *, after: str = "", splits: Splits = (),
        priority: Priority = 2, deadline_s: float | None = None,
    ) -> Deferred[int]:
        """All entries below `prefix` behind the key `after`, by key, each once; many pages at a time (listing.py).

        Fires with the number of entries. on_page gets pages of at least one entry; the next one comes when the
        Deferred that it may return has fired. An exception of on_page ends the listing and fails the Deferred with
        it. `splits`: ascending keys between which about equally many objects are thought to lie; only how fast it
        goes depends on them. `deadline_s` holds for each page.

        For n entries it makes n/1000 requests, in a large bucket up to an eighth more and some twenty.
        """
        return listing.list_all(self, prefix, on_page, after=after, splits=splits, priority=priority,
                                deadline_s=deadline_s)

    # multipart uploads

    def create_multipart(
        self, key: str, *, content_type: str = "application/octet-stream", priority: Priority = 1,
        deadline_s: float | None = None,
    ) -> Deferred[str]:
        """CreateMultipartUpload; fires with the upload id."""
        d = self._object("CreateMultipartUpload", "POST", key, priority, deadline_s, query=[("uploads", "")],
                         headers=[("content-type", content_type)], parse="create")
        return d.addCallback(answers.text_of)

    def upload_part(
        self, key: str, upload_id: str, number: int, body: Body, *, priority: Priority = 1,
        deadline_s: float | None = None,
    ) -> Deferred[str]:
        """UploadPart `number` (1 to 10,000); fires with the part's ETag. Errors: NoSuchUpload, ..."""
        d = self._object("UploadPart", "PUT", key, priority, deadline_s, body=body,
                         query=[("partNumber", str(number)), ("uploadId", upload_id)])
        return d.addCallback(answers.part_etag, key)

    def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, expect_size: int | None = None,
        priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[ObjectInfo]:
        """CompleteMultipartUpload of (number, ETag) pairs. May take minutes.

        When the service says NoSuchUpload (or NoSuchKey) after an answer was lost, a HEAD tells whether it had been
        done: it had if the size is `expect_size` and the ETag fits the parts'. Without `expect_size` it is an error.
        """
        d = self._write(
            "CompleteMultipartUpload", "POST", key, priority, deadline_s, query=[("uploadId", upload_id)],
            body=documents.complete(parts), headers=XML_HEADERS, parse="complete",
            first_byte_ms=COMPLETE_SILENCE_MS, stall_ms=COMPLETE_SILENCE_MS,
        )
        head = partial(self.head, key, priority=priority, deadline_s=deadline_s)

        def gone(failure: TwistedFailure) -> TwistedFailure | Deferred[ObjectInfo]:
            # S3Proxy says NoSuchKey.
            if expect_size is None or not failure.check(NoSuchUpload, NotFound):
                return failure
            return completed_before(failure, parts, expect_size, head)

        def done(event: Event) -> ObjectInfo | Deferred[ObjectInfo]:
            etag = answers.text_of(event) or event.etag
            if etag:
                return ObjectInfo(key, expect_size or 0, etag, self._date(event))
            return written(event, "CompleteMultipartUpload", key, expect_size, head)

        return d.addCallbacks(done, gone)

    def abort_multipart(
        self, key: str, upload_id: str, *, priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[None]:
        """AbortMultipartUpload. Success also where the upload is gone."""
        d = self._object("AbortMultipartUpload", "DELETE", key, priority, deadline_s,
                         query=[("uploadId", upload_id)])
        return d.addCallbacks(answers.nothing, answers.none_for(answers.is_absence))

    def list_multiparts(
        self, prefix: str, *, priority: Priority = 2, deadline_s: float | None = None,
    ) -> Deferred[list[Upload]]:
        """ListMultipartUploads, all pages; empty where the service does not know the operation.

        In a bucket of our own all uploads are asked for and `prefix` is looked at here, since MinIO takes a prefix for
        one whole key. With a prefix of ours in somebody else's bucket it finds nothing there.
        """
        return self._list_multiparts(prefix, priority, deadline_s)

    @inlineCallbacks
    def _list_multiparts(
        self, prefix: str, priority: Priority, deadline_s: float | None,
    ) -> Generator[Deferred[Any], Any, list[Upload]]:
        found: list[Upload] = []
        listed = 0
        narrowed = [("prefix", self._prefix + prefix)] if self._prefix else []
        markers: list[tuple[str, str]] = []
        while listed < MAX_LISTED_UPLOADS:
            query = [("uploads", ""), *narrowed, ("encoding-type", "url"), *markers]
            try:
                event: Event = yield self._bucket("ListMultipartUploads", "GET", priority, deadline_s, query=query,
                                                  parse="uploads", strip=self._prefix)
            except S3Error as error:
                if is_unsupported(error):
                    return found
                raise
            page = answers.uploads_of(event)
            listed += len(page.uploads)
            found += (upload for upload in page.uploads if upload.key.startswith(prefix))
            if page.next_key_marker is None:
                break
            before = markers
            markers = [("key-marker", page.next_key_marker)]
            if page.next_upload_id_marker:
                markers.append(("upload-id-marker", page.next_upload_id_marker))
            if markers == before:
                raise BadReply("a listing goes on where it began", operation="ListMultipartUploads", kind="protocol")
        return found

    # the bucket

    def head_bucket(self, *, priority: Priority = 1, deadline_s: float | None = None) -> Deferred[None]:
        """HeadBucket. Errors: NoSuchBucket, AccessDenied, ... A HEAD's error has no S3 code; probe() tells more."""
        return self._bucket("HeadBucket", "HEAD", priority, deadline_s).addCallback(answers.nothing)

    def probe(self, *, priority: Priority = 1, deadline_s: float | None = None) -> Deferred[Probe]:
        """Is the bucket there, in this region, for these credentials? A listing of one key, since its error
        document names what is wrong: NoSuchBucket, AccessDenied, WrongRegion, ClockSkewed, BadReply (not S3).
        """
        d = self._list("", None, None, None, 1, priority, deadline_s)
        return d.addCallback(lambda event: Probe(event.server_time_s, not answers.page_of(event).entries))

    def get_versioning(
        self, *, priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[str | None]:
        """GetBucketVersioning: "Enabled", "Suspended" or "Disabled"; None where the service does not say."""
        d = self._bucket("GetBucketVersioning", "GET", priority, deadline_s, query=[("versioning", "")],
                         parse="bytes")
        return d.addCallbacks(lambda event: documents.versioning(answers.body_of(event)),
                              answers.none_for(answers.is_unknown))

    def get_object_lock(
        self, *, priority: Priority = 1, deadline_s: float | None = None,
    ) -> Deferred[str | None]:
        """GetObjectLockConfiguration: "Enabled", or None where there is none or the service does not know it."""
        d = self._bucket("GetObjectLockConfiguration", "GET", priority, deadline_s, query=[("object-lock", "")],
                         parse="bytes")
        return d.addCallbacks(lambda event: documents.object_lock(answers.body_of(event)),
                              answers.none_for(answers.is_unknown))

    def close(self) -> Deferred[None]:
        """Stop. Open Deferreds fail with Closed; the engine's thread is joined (bounded, well under a second)."""
        self._transfers.close()
        return succeed(None)

    def _date(self, event: Event) -> int:
        """The service's clock when it answered; this machine's where it did not tell."""
        return event.server_time_s if event.server_time_s is not None else int(self._reactor.seconds())


def open_client(reactor: ReactorLike, config: ClientConfig) -> S3Client:
    """An engine and its client. No request is made and no thread started before the first operation.

    Raises ValueError for a configuration the engine refuses (endpoint, prefix, limits).
    """
    if config.prefix and (not config.prefix.endswith("/") or config.prefix.startswith("/")):
        raise ValueError(f"the prefix {config.prefix!r} must end with a slash and not begin with one")
    engine = Engine(
        endpoint=config.endpoint,
        region=config.region,
        bucket=config.bucket,
        path_style=config.addressing == "path",
        ca_file=config.ca_file,
        proxy=config.proxy,
        max_connections=config.max_connections,
        max_queue=config.max_queue,
        buffer_budget_bytes=config.buffer_budget_bytes,
        workers=config.workers,
    )
    engine.set_credentials(config.access_key_id, config.secret, config.token)
    return S3Client(reactor, engine, config)
