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

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Final, Literal, NamedTuple, Optional, Union
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, succeed

from tahoe_s3._native import Engine, Entry, FileRegion, Page
from tahoe_s3.download import Download
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
    WrongRegion,
    is_unsupported,
)
from tahoe_s3.transfer import Call, Counters, Priority, ReactorLike, Transfers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from tahoe_s3._native import Event

__all__ = [
    "AccessDenied", "BadReply", "Busy", "Cancelled", "Changed", "ClientConfig", "ClockSkewed", "Closed", "Counters",
    "Download", "Entry", "FileRegion", "GetResult", "LocalError", "NoSuchBucket", "NoSuchUpload", "NotFound",
    "ObjectInfo", "Page", "Priority", "Probe", "S3Client", "S3Error", "Throttled", "Unavailable", "WrongRegion",
    "open_client",
]

Body = Union[bytes, FileRegion]

DELETE_BATCH_KEYS: Final = 1000
"""Most keys that DeleteObjects takes in one request."""
SINGLE_DELETES_AT_ONCE: Final = 16
COMPLETE_SILENCE_MS: Final = 300_000
"""CompleteMultipartUpload may stay silent for minutes while the service joins the parts."""
MAX_LISTED_UPLOADS: Final = 100_000


@dataclass(frozen=True)
class ClientConfig:
    """All that a client needs to know. Sizes in bytes, no times. The secret and the token are not in its repr."""

    endpoint: str
    """Scheme, host and perhaps port: "https://s3.eu-west-1.amazonaws.com"."""
    region: str
    bucket: str
    access_key_id: str
    secret: bytes = field(repr=False)
    token: Optional[str] = field(default=None, repr=False)
    """Sent, signed, as x-amz-security-token with every request."""
    addressing: Literal["path", "virtual"] = "path"
    prefix: str = ""
    """Put before every key; ends with "/" unless empty."""
    ca_file: Optional[str] = None
    """A bundle of certificates in PEM to trust instead of the system's."""
    proxy: str = ""
    max_connections: int = 32
    max_queue: int = 1024
    """Most requests inside the engine."""
    max_waiting: int = 16_384
    """Most requests that wait for room in the engine; one more fails with Busy."""
    buffer_budget_bytes: int = 128 * 1024 * 1024
    """All memory of downloads under way and of windows not closed yet."""
    workers: int = 2
    attempts: int = 5


class ObjectInfo(NamedTuple):
    """What S3 says of an object. `size` in bytes, `modified_s` in seconds since 1970, `etag` as sent, quotes off."""

    key: str
    size: int
    etag: str
    modified_s: int


class GetResult(NamedTuple):
    """Bytes of an object. `size` is the whole object's, whatever range was asked for."""

    data: bytes
    etag: str
    size: int
    modified_s: int


class Probe(NamedTuple):
    """What a first look at the bucket tells. `empty`: nothing below the prefix."""

    server_time_s: Optional[int]
    empty: bool


class Upload(NamedTuple):
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_s: int


class S3Client:
    """One bucket (below one prefix) of one service.

    Args:
        reactor: where Deferreds fire.
        engine: with its credentials set; the client owns it from here and closes it.
        config: the same the engine was made from.
    """

    def __init__(self, reactor: ReactorLike, engine: Engine, config: ClientConfig) -> None: ...

    counters: Counters
    """Requests by operation ("PutObject": 3), errors by operation, the last error and when."""

    on_budget_wait: Optional[Callable[[int], None]]
    """Called with a number of bytes when a download has to wait for memory: whoever holds idle windows should
    close some. It is on the way of the caller of get or get_window, so it must be quick."""

    def stats(self) -> dict[str, int]:
        """The engine's numbers (ext/net/ts3_engine.h) plus "waiting", the requests that wait for room here."""
        ...

    def set_credentials(self, access_key_id: str, secret: bytes, token: Optional[str] = None) -> None:
        """Sign everything from the next attempt on with these."""
        ...

    # objects

    def get(
        self, key: str, *, offset: int = 0, length: Optional[int] = None, expect_etag: Optional[str] = None,
        priority: Priority = 1, deadline_s: Optional[float] = None,
    ) -> Deferred[GetResult]:
        """GetObject, whole (length None) or a range of it. A range that passes the object's end is cut there.

        Errors: NotFound; Changed when `expect_etag` is given and not the object's; any other S3Error.
        """
        ...

    def get_window(
        self, key: str, *, offset: int, length: int, expect_etag: Optional[str] = None, priority: Priority = 1,
        deadline_s: Optional[float] = None,
    ) -> Download:
        """GetObject of `length` bytes from `offset` into C memory, readable while it still arrives.

        Returns at once, also while it waits for memory. The caller must close() the Download. Never raises for
        the service's sake; errors come through when_ready() and when_done().
        """
        ...

    def put(
        self, key: str, body: Body, *, content_type: str = "application/octet-stream",
        priority: Priority = 1, deadline_s: Optional[float] = None,
    ) -> Deferred[ObjectInfo]:
        """PutObject. A file's region is read while it is sent and must not change until the Deferred fires.

        The answer's `modified_s` is the service's Date, which LastModified equals to the second or nearly so.
        """
        ...

    def head(self, key: str, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[ObjectInfo]:
        """HeadObject. Errors: NotFound on a 404."""
        ...

    def delete(self, key: str, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[None]:
        """DeleteObject. Success also where the object does not exist."""
        ...

    def delete_many(
        self, keys: Iterable[str], *, priority: Priority = 2, deadline_s: Optional[float] = None,
    ) -> Deferred[list[tuple[str, str]]]:
        """DeleteObjects, a thousand keys a request, one batch after the other; single DELETEs where the service
        refuses multi-delete (remembered).

        Fires with (key, S3 code) of every key that was not deleted, empty when all are gone. A batch that fails as
        a whole fails the Deferred; what earlier batches did stays done, and deleting again is harmless.
        """
        ...

    # listings

    def list_page(
        self, prefix: str, *, token: Optional[str] = None, start_after: Optional[str] = None,
        delimiter: Optional[str] = None, max_keys: int = 1000, priority: Priority = 1,
        deadline_s: Optional[float] = None,
    ) -> Deferred[Page]:
        """One page of ListObjectsV2 (ListObjects where the service knows no v2; remembered), sorted by key.

        `next_token` of the answer goes into the next call's `token`; None on the last page.
        """
        ...

    def list_all(
        self, prefix: str, on_page: Callable[[Page], Optional[Deferred[Any]]], *, delimiter: Optional[str] = None,
        priority: Priority = 2, deadline_s: Optional[float] = None,
    ) -> Deferred[int]:
        """Every page below `prefix`, in order, one at a time. Fires with the number of entries.

        `on_page` may return a Deferred: the next page is asked for when it has fired. An exception of on_page ends
        the listing and fails the Deferred with it. `deadline_s` holds for each page.
        """
        ...

    # multipart uploads

    def create_multipart(
        self, key: str, *, content_type: str = "application/octet-stream", priority: Priority = 1,
        deadline_s: Optional[float] = None,
    ) -> Deferred[str]:
        """CreateMultipartUpload; fires with the upload id."""
        ...

    def upload_part(
        self, key: str, upload_id: str, number: int, body: Body, *, priority: Priority = 1,
        deadline_s: Optional[float] = None,
    ) -> Deferred[str]:
        """UploadPart `number` (1 to 10,000); fires with the part's ETag. Errors: NoSuchUpload, ..."""
        ...

    def complete_multipart(
        self, key: str, upload_id: str, parts: Sequence[tuple[int, str]], *, expect_size: Optional[int] = None,
        priority: Priority = 1, deadline_s: Optional[float] = None,
    ) -> Deferred[ObjectInfo]:
        """CompleteMultipartUpload of (number, ETag) pairs. May take minutes.

        When the service says NoSuchUpload after an answer was lost, a HEAD tells whether it had been done: it had
        if the size is `expect_size` and the ETag fits the parts'. Without `expect_size` NoSuchUpload is an error.
        """
        ...

    def abort_multipart(
        self, key: str, upload_id: str, *, priority: Priority = 1, deadline_s: Optional[float] = None,
    ) -> Deferred[None]:
        """AbortMultipartUpload. Success also where the upload is gone."""
        ...

    def list_multiparts(
        self, prefix: str, *, priority: Priority = 2, deadline_s: Optional[float] = None,
    ) -> Deferred[list[Upload]]:
        """ListMultipartUploads, all pages; empty where the service does not know the operation."""
        ...

    # the bucket

    def head_bucket(self, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[None]:
        """HeadBucket. Errors: NoSuchBucket, AccessDenied, ... A HEAD's error has no S3 code; probe() tells more."""
        ...

    def probe(self, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[Probe]:
        """Is the bucket there, in this region, for these credentials? A listing of one key, since its error
        document names what is wrong: NoSuchBucket, AccessDenied, WrongRegion, ClockSkewed, BadReply (not S3).
        """
        ...

    def get_versioning(self, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[Optional[str]]:
        """GetBucketVersioning: "Enabled", "Suspended" or "Disabled"; None where the service does not say."""
        ...

    def get_object_lock(self, *, priority: Priority = 1, deadline_s: Optional[float] = None) -> Deferred[Optional[str]]:
        """GetObjectLockConfiguration: "Enabled", or None where there is none or the service does not know it."""
        ...

    def close(self) -> Deferred[None]:
        """Stop. Open Deferreds fail with Closed; the engine's thread is joined (bounded, well under a second)."""
        ...


def open_client(reactor: ReactorLike, config: ClientConfig) -> S3Client:
    """An engine and its client. No request is made and no thread started before the first operation.

    Raises ValueError for a configuration the engine refuses (endpoint, prefix, limits).
    """
    ...
