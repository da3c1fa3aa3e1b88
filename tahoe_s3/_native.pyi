# SPDX-License-Identifier: GPL-2.0-or-later
"""The C extension: request signing, the transfer engine, parsing of S3's documents.

Thread: all calls on an Engine and its Windows come from one thread, that of the owner (the reactor). The engine's
own threads never take the GIL. close(), and the end of an Engine that was not closed, release the GIL while they
join these threads, which takes well under a second whatever the network does (a read of a FileRegion that a dead
network file system does not answer is waited for). close() may be called from several threads; each waits for the
end. At the interpreter's end every Engine is closed, and from then on none can be made.
Fork: in a forked child every method of an Engine or a Window raises EngineForked, but for Window.close(); deallocation
does nothing to the parent's connections.
Interpreters: the main one only; elsewhere the import raises ImportError. So it does with libcurl before 7.87.
Text: keys are str. Bytes that are no UTF-8 appear as surrogates, as in Python's file names (surrogateescape), and
such a str names the same key again.
Times: `_s` seconds since 1970 UTC, `_ms` and `_us` spans of milliseconds and microseconds. Sizes are bytes.
"""
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, final

Parse = Literal["none", "bytes", "list", "deleted", "create", "complete", "copy", "uploads"]
Kind = Literal[
    "service", "auth", "transport", "timeout", "protocol", "integrity", "changed", "cancelled", "closed", "local"
]
Method = Literal["GET", "HEAD", "PUT", "POST", "DELETE"]
Text = str | bytes
Pairs = Sequence[tuple[Text, Text]]

LIBCURL_VERSION: Final[str]
"""The version of libcurl that is loaded, for instance "7.88.1"."""
TLS_VERSION: Final[str]
"""The TLS library that libcurl uses and its version, for instance "OpenSSL/3.0.19"; "" without one."""

class EngineError(Exception):
    """The engine refuses a call. Nothing was kept of it."""

class EngineForked(EngineError):
    """The engine belongs to the parent process."""

class EngineClosed(EngineError):
    """The engine was closed, or the interpreter is ending."""

class QueueFull(EngineError):
    """max_queue + max_connections requests have no drained final event yet; drain() makes room."""

class BudgetExhausted(EngineError):
    """No memory left for a window of that size now; closing one makes room."""

class FileRegion(NamedTuple):
    """`length` bytes of an open file from `offset`. `fd` is duplicated in submit() and may be closed after it; the
    bytes must not change until the final event was drained."""

    fd: int
    offset: int
    length: int

class Entry(NamedTuple):
    """One object of a listing. `etag` without quotes; it and `storage_class` are "" where the service said nothing."""

    key: str
    size: int
    etag: str
    modified_s: int
    storage_class: str

class Page(NamedTuple):
    """One page of a listing: entries sorted by key, each key once. `next_token` is None on the last page, else what
    to go on with: a continuation token, or the marker where `v1` says that the document is of ListObjects v1."""

    entries: list[Entry]
    prefixes: list[str]
    next_token: str | None
    v1: bool

class Upload(NamedTuple):
    """A multipart upload under way. `initiated_s` is None where the service did not say."""

    key: str
    upload_id: str
    initiated_s: int | None

class Uploads(NamedTuple):
    """One page of multipart uploads; both markers are None on the last."""

    uploads: list[Upload]
    next_key_marker: str | None
    next_upload_id_marker: str | None

class ErrorDocument(NamedTuple):
    """An S3 error document; what it does not say is ""."""

    code: str
    message: str
    region: str
    request_id: str
    host_id: str
    server_time_s: int | None

class Failure(NamedTuple):
    """Why a request failed, after all its attempts.

    kind: "service": answered with an error. "auth": with 401 or 403, never retried. "transport": no connection, or
        it broke. "timeout": connect, first byte, stall or deadline. "protocol": an answer that breaks HTTP's or S3's
        rules. "integrity": not the bytes that were asked for. "changed": not the expected ETag (event.etag has the
        one found). "cancelled", "closed": by the caller. "local": memory, a file or OpenSSL failed here.
    outcome: "not_applied": no attempt can have had an effect (always so for GET and HEAD); "unknown": one may have.
    status: of the last answer, 0 without one. code: S3's, or "", or "CertificateNotTrusted" (of kind "transport").
    message: one line, never with a secret.
    server_time_s: the last answer's Date. region: one that the service named.
    """

    kind: Kind
    outcome: Literal["not_applied", "unknown"]
    status: int
    code: str
    message: str
    server_time_s: int | None
    region: str | None

class Event(NamedTuple):
    """What the engine has to say of a request.

    final: True exactly once for every id, and then the engine holds nothing of the caller's any more. False: the
        size that was armed on the request's window is ready; only `id` means something then.
    etag without quotes; size of the whole object (GET, HEAD); modified_s Last-Modified; server_time_s Date.
    skew_s: what was added to this machine's clock for signing when the request ended.
    value: by `parse`: "bytes" bytes; "list" a Page; "deleted" a list of (key, code), code "" for a deleted one;
        "create" the upload id; "complete" and "copy" the ETag; "uploads" an Uploads; None for "none" and failures.
    request_id, host_id: the service's, of the last attempt, "" where it gave none.
    attempts: how often it was sent. queued_us: submit to the first attempt; first_byte_us: submit to the first byte
        of the last answer, -1 without one; total_us: submit to the end.
    bytes_up: of the body, bytes_down: of the answers' bodies, error documents too; all attempts.
    """

    id: int
    final: bool
    failure: Failure | None
    status: int
    etag: str | None
    size: int | None
    modified_s: int | None
    server_time_s: int | None
    skew_s: int
    value: Page | Uploads | bytes | str | list[tuple[str, str]] | None
    request_id: str
    host_id: str
    attempts: int
    queued_us: int
    first_byte_us: int
    total_us: int
    bytes_up: int
    bytes_down: int

@final
class Window:
    """Memory of C's for a range of an object, made by Engine.window(). Charged to the engine's budget until it is
    closed (or dropped) and no request fills it any more. May outlive its engine. Not to be instantiated."""

    @property
    def size(self) -> int:
        """Bytes in all."""
    @property
    def ready(self) -> int:
        """Bytes that are valid from 0 on; only grows; stays after a failure; 0 once closed."""
    def arm(self, upto: int, /) -> bool:
        """True: the first `upto` bytes are ready. False: one Event with final=False comes when they are; a later
        call replaces an earlier one that has not fired. ValueError beyond size or after close()."""
    def read(self, offset: int, length: int, /) -> bytes:
        """A copy (but see Engine.window). ValueError where not all of it is ready, or after close()."""
    def close(self) -> None:
        """Give up this reference. Idempotent; allowed while a GET is in flight."""

@final
class Engine:
    """Connections to one bucket, the thread that drives them, the workers that read and hash.

    endpoint: "http[s]://host[:port]". path_style: the bucket in the path, else in the host's name.
    ca_file: PEM bundle, None for the system's. proxy: "" for none; the environment is never looked at.
    max_connections: 1 to 1024. max_queue: 1 to 1,000,000 requests. workers: 1 to 16.
    buffer_budget_bytes: for windows and bodies read from files. sign_payload: False sends UNSIGNED-PAYLOAD over https.
    connect_ms: for name, connection and TLS handshake of one attempt; 0: 10 s.
    retry_tokens: the retry quota; 0: the standard one.
    Errors: ValueError with one sentence for a setting that cannot be; EngineError, OSError, MemoryError.
    No thread is started before the first submit().
    """

    def __new__(
        cls, *, endpoint: str, region: str, bucket: str, path_style: bool = True, ca_file: str | None = None,
        proxy: str = "", max_connections: int = 32, max_queue: int = 1024, buffer_budget_bytes: int = 134_217_728,
        workers: int = 2, sign_payload: bool = True, connect_ms: int = 10_000, retry_tokens: int = 0,
    ) -> Engine: ...
    def set_credentials(self, access_key_id: str, secret: bytes, token: str | None = None) -> None:
        """Sign attempts from now on with these. The token is sent, signed, as x-amz-security-token."""
    def fileno(self) -> int:
        """An eventfd, readable while drain() has events, and now and then once for nothing. Owned by the engine,
        valid until it is gone."""
    def window(self, size: int, /, *, whole: bool = False) -> Window:
        """At least 1 byte. `whole`: for who takes all of it at once: read(0, size) then costs no copy.
        Raises BudgetExhausted, ValueError, MemoryError, EngineClosed."""
    def submit(
        self, method: Method, key: str, *, query: Pairs = (), headers: Pairs = (),
        body: bytes | bytearray | memoryview | FileRegion | None = None, into: Window | None = None,
        offset: int = 0, expect_etag: str | None = None, parse: Parse = "none", max_answer_bytes: int = 0,
        strip: str | None = None, priority: int = 1, attempts: int = 5, first_byte_ms: int = 10_000,
        stall_ms: int = 20_000, deadline_ms: int = 0,
    ) -> int:
        """Hand in a request and return its id (never 0). Never blocks.

        key: not percent-encoded, at most 1024 bytes; "" is the bucket itself. query, headers: at most 64 pairs each;
        Authorization, Host, Range, Content-Length, Expect and the x-amz headers of signing are the engine's own.
        body: for PUT and POST. A buffer is kept, and must not change, until the final event was drained.
        into: for GET: bytes [offset, offset + into.size) land there, fewer where the object ends before. A window
        with ready bytes (of a GET that failed) is filled from there on and needs expect_etag.
        parse: what is made of the body of a success. max_answer_bytes: for "bytes", a longer body is a failure;
        0: 1 MiB; at most 32 MiB. strip: cut from keys and prefixes of listings; those without it are left out.
        priority: 0 interactive, 1 ordinary, 2 background. attempts: 1 to 100. first_byte_ms: from the request sent
        whole to the answer's first byte. stall_ms: without a byte either way. deadline_ms: all in all. 0: no limit.
        Errors: QueueFull, EngineClosed, EngineForked, ValueError, TypeError, OSError (the file's dup), MemoryError.
        """
    def cancel(self, id: int, /) -> None:
        """Ask for an early end. The final event still comes, soon. Unknown and ended ids do nothing."""
    def drain(self, max_events: int = 64, /) -> list[Event]:
        """Up to so many events, oldest first. Works after close(), too."""
    def region(self) -> str:
        """The region that requests are signed for: the configured one, or the one that the service named since."""
    def stats(self) -> dict[str, int]:
        """Counters and gauges by name: requests_get (head, put, post, delete), attempts, retries, retries_denied,
        succeeded, failed, bytes_up, bytes_down, connections_opened, connections_dropped_stale, connections_open,
        queued, in_flight, undrained, budget_used_bytes, budget_bytes, skew_s, skew_adopted (0 or 1), loop_turns (since
        the last call, as what follows), loop_p999_us (999 of 1,000 turns took at most so long; told up to a fifth too
        long), loop_max_us (the longest turn), loop_cpu_p999_us (the same of the processor time
        that the loop's thread took for a turn, or at most took), loop_cpu_max_us."""
    def close(self) -> None:
        """End every request (kind "closed"), join the threads with the GIL released. Idempotent."""

def sign(
    *, method: Text, host: Text, path: Text, query: Pairs, headers: Pairs, payload_sha256: Text, time_s: int,
    region: Text, access_key_id: Text, secret: Text, service: Text = "s3",
) -> str:
    """The Authorization header's value for an S3 request (Signature Version 4).

    path and query are raw, not percent-encoded; the path begins with "/". headers: all that are sent and known, but
    for host, x-amz-date and x-amz-content-sha256, which are added. payload_sha256: lower-case hex, or
    "UNSIGNED-PAYLOAD". Errors: ValueError for what cannot be signed.
    """

def parse_list(document: bytes, /) -> Page:
    """The page of a listing (ListObjectsV2 or v1). ValueError with one sentence for a document that is cut off, not
    well-formed, of another kind, has a DTD, or is over a limit (32 MiB, 10,000 entries, 4 KiB a key)."""

def parse_error(document: bytes, /) -> ErrorDocument:
    """An S3 error document. ValueError for anything else (an HTML page, an empty body)."""
