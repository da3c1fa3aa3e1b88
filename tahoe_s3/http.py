# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP storage protocol over a storage server that has to wait for its bucket.

Owner: plugin.py puts S3HTTPServer where allmydata/protocol_switch.py creates its HTTPServer. Reactor thread
only.

Klein binds a route to the function it decorated, so overriding a handler of Tahoe's HTTPServer would change
nothing: this class has an app of its own and registers every route again. Paths, secrets, status codes and
bodies are those of allmydata/storage/http_server.py, whose authorization, schemas, decoding and encoding are
used.

What differs: nothing is answered before the storage server's Deferred has fired; what a client has begun goes
on when it hangs up; an S3Error is answered 503, CapacityReached 507.
"""
from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Callable, Final

from allmydata.interfaces import BadWriteEnablerError
from allmydata.storage.http_common import Secrets
from allmydata.storage.http_server import (
    _SCHEMAS,
    HTTPServer,
    StorageIndexConverter,
    _add_error_handling,
    _authorized_route,
    _HTTPError,
    read_encoded,
)
from allmydata.storage.immutable import ConflictingWriteError
from allmydata.util.deferredutil import async_to_deferred
from klein import Klein
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request
from werkzeug.http import parse_content_range_header

from tahoe_s3.http_stream import send_mutable_share, send_share
from tahoe_s3.s3errors import S3Error
from tahoe_s3.store.space import CapacityReached
from tahoe_s3.wire import UNAVAILABLE_TEXT, log_failure, shield

if TYPE_CHECKING:
    from typing import BinaryIO

WRITE_PIECE_BYTES: Final = 2 * 1024 * 1024
"""A PATCH is read from its temporary file and written to the share in pieces of this size. A Tahoe client
sends a little more than 1 MiB at a time, so that is one piece."""
ALLOCATE_BODY_BYTES: Final = 8192
CORRUPT_BODY_BYTES: Final = 32768
READ_TEST_WRITE_BODY_BYTES: Final = 2**48
"""The limits on bodies are Tahoe's; larger ones are answered 413."""

IMMUTABLE: Final = "/storage/v1/immutable/<storage_index:storage_index>"
MUTABLE: Final = "/storage/v1/mutable/<storage_index:storage_index>"
LEASE: Final = "/storage/v1/lease/<storage_index:storage_index>"
SHARE: Final = "/<int(signed=False):share_number>"

SecretsDict = dict[Secrets, bytes]
Handler = Callable[..., Coroutine[Any, Any, bytes]]

_APP: Final = Klein()
_APP.url_map.converters["storage_index"] = StorageIndexConverter
_add_error_handling(_APP)


@_APP.handle_errors(S3Error)
def _storage_unavailable(_server: Any, request: Request, failure: Failure) -> bytes:
    """The bucket failed: the client learns that it may try again, the operator's log what happened."""
    path = request.path.decode("utf-8", "replace")
    log_failure(f"answering HTTP {request.method.decode('ascii', 'replace')} {path}", failure)
    request.setResponseCode(http.SERVICE_UNAVAILABLE)
    # Tahoe's client looks at the type of a share before it looks at the status, and would complain of that.
    if not request.responseHeaders.hasHeader("content-type"):
        request.setHeader("content-type", "text/plain;charset=utf-8")
    return UNAVAILABLE_TEXT.encode("utf-8")


@_APP.handle_errors(CapacityReached)
def _capacity_reached(_server: Any, request: Request, failure: Failure) -> bytes:
    """A mutable share that may not grow."""
    log_failure(f"answering HTTP {request.method.decode('ascii', 'replace')}", failure)
    request.setResponseCode(http.INSUFFICIENT_STORAGE_SPACE)
    request.setHeader("content-type", "text/plain;charset=utf-8")
    return str(failure.value).encode("utf-8")


def _route(method: str, url: str, *secrets: Secrets) -> Callable[[Handler], Callable[..., Deferred[bytes]]]:
    """Register a coroutine method for a URL; it gets the request, the secrets and the parts of the URL."""

    def decorate(handler: Handler) -> Callable[..., Deferred[bytes]]:
        register = _authorized_route(_APP, set(secrets), url, methods=[method])
        registered: Callable[..., Deferred[bytes]] = register(async_to_deferred(handler))
        return registered

    return decorate


class S3HTTPServer(HTTPServer):
    """Tahoe's HTTPServer for an S3StorageServer: same constructor, same get_resource()."""

    _app = _APP

    # Generic

    @_route("GET", "/storage/v1/version")
    async def version(self, request: Request, authorization: SecretsDict) -> bytes:
        """Never waits for the bucket: clients ask every second, and give a server up after five."""
        return await self._encoded(request, self._get_version())

    @_route("PUT", LEASE, Secrets.LEASE_RENEW, Secrets.LEASE_CANCEL)
    async def add_or_renew_lease(
        self, request: Request, authorization: SecretsDict, storage_index: bytes
    ) -> bytes:
        if not await self._share_numbers(storage_index):
            raise _HTTPError(http.NOT_FOUND)
        await shield(
            self._storage_server.add_lease(
                storage_index, authorization[Secrets.LEASE_RENEW], authorization[Secrets.LEASE_CANCEL]
            ),
            "adding a lease",
        )
        if not await self._share_numbers(storage_index):
            # They were deleted before the lease's turn came: it was added to nothing.
            raise _HTTPError(http.NOT_FOUND)
        request.setResponseCode(http.NO_CONTENT)
        return b""

    async def _share_numbers(self, storage_index: bytes) -> set[int]:
        """The numbers of all shares, mutable or not.

        The index knows at once, except about a storage index that the listing at start has not come to yet, or has
        come to half: so it is believed only after asking in the way that waits for the bucket.
        """
        await shield(self._storage_server.enumerate_mutable_shares(storage_index), "looking for shares")
        return {number for number, _ in self._storage_server.get_shares(storage_index)}

    async def _encoded(self, request: Request, data: object) -> bytes:
        """Send `data` as CBOR."""
        body: bytes = await self._send_encoded(request, data)
        return body

    async def _readers(self, storage_index: bytes) -> dict[int, Any]:
        """The immutable shares of a storage index, as ShareReaders by number."""
        looking = self._storage_server.get_buckets(storage_index)
        readers: dict[int, Any] = await shield(looking, "looking for shares")
        return readers

    # Uploads

    @_route("POST", IMMUTABLE, Secrets.LEASE_RENEW, Secrets.LEASE_CANCEL, Secrets.UPLOAD)
    async def allocate_buckets(
        self, request: Request, authorization: SecretsDict, storage_index: bytes
    ) -> bytes:
        info = await read_encoded(
            self._reactor, request, _SCHEMAS["allocate_buckets"], max_size=ALLOCATE_BODY_BYTES
        )
        answer = await shield(
            Deferred.fromCoroutine(self._allocate(authorization, storage_index, info)), "allocating shares"
        )
        return await self._encoded(request, answer)

    async def _allocate(
        self, authorization: SecretsDict, storage_index: bytes, info: dict[str, Any]
    ) -> dict[str, set[int]]:
        """Allocate and remember the writers, for an upload survives its connections.

        As in Tahoe, the upload secret of other uploads in progress is not asked for here, only when writing.
        """
        already_got, writers = await self._storage_server.allocate_buckets(
            storage_index,
            renew_secret=authorization[Secrets.LEASE_RENEW],
            cancel_secret=authorization[Secrets.LEASE_CANCEL],
            sharenums=info["share-numbers"],
            allocated_size=info["allocated-size"],
        )
        for share_number, writer in writers.items():
            # One that was closed meanwhile, by a server that stops, would never be forgotten again.
            if not writer.closed:
                self._uploads.add_write_bucket(
                    storage_index, share_number, authorization[Secrets.UPLOAD], writer
                )
        return {"already-have": set(already_got), "allocated": set(writers)}

    @_route("PUT", IMMUTABLE + SHARE + "/abort", Secrets.UPLOAD)
    async def abort_share_upload(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        try:
            writer = self._uploads.get_write_bucket(
                storage_index, share_number, authorization[Secrets.UPLOAD]
            )
        except _HTTPError as error:
            if error.code == http.NOT_FOUND and share_number in await self._readers(storage_index):
                raise _HTTPError(http.NOT_ALLOWED) from None
            raise
        # The writer's close handler takes it out of self._uploads.
        closing = writer.closing
        await shield(writer.abort(), "aborting a share")
        if closing and share_number in await self._readers(storage_index):
            raise _HTTPError(http.NOT_ALLOWED)
        return b""

    @_route("PATCH", IMMUTABLE + SHARE, Secrets.UPLOAD)
    async def write_share_data(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        """Answered 201 only when the share is in the bucket; a repeated last PATCH shares the outcome."""
        content_range = parse_content_range_header(request.getHeader("content-range"))
        if content_range is None or content_range.units != "bytes":
            request.setResponseCode(http.REQUESTED_RANGE_NOT_SATISFIABLE)
            return b""
        writer = self._uploads.get_write_bucket(storage_index, share_number, authorization[Secrets.UPLOAD])
        if content_range.stop is None or request.content is None:
            raise ValueError("a PATCH needs a body and a Content-Range with an end")
        offset = content_range.start or 0
        try:
            finished = await self._write(writer, request.content, offset, content_range.stop - offset)
        except ConflictingWriteError:
            request.setResponseCode(http.CONFLICT)
            return b""
        request.setResponseCode(http.CREATED if finished else http.OK)
        required = [{"begin": start, "end": end} for start, end, _ in writer.required_ranges().ranges()]
        return await self._encoded(request, {"required": required})

    async def _write(self, writer: Any, content: BinaryIO, offset: int, remaining: int) -> bool:
        """Write `remaining` bytes, each piece when the writer has room for it; close a complete share.

        Returns whether the share is complete and in the bucket. A client that hangs up ends this between two
        pieces (its body is gone then), but not between the last one and the close.
        """
        while True:
            data = content.read(min(remaining, WRITE_PIECE_BYTES))
            if not data:
                raise ValueError("the body is shorter than its Content-Range")
            writing = writer.write(offset, data)
            offset += len(data)
            remaining -= len(data)
            # Its bytes are in the spool, while the wait for room may be long.
            del data
            if remaining <= 0:
                closing = Deferred.fromCoroutine(_close_if_complete(writer, writing))
                return await shield(closing, "closing a share")
            await shield(writing, "writing to a share")

    # Immutable shares

    @_route("GET", IMMUTABLE + "/shares")
    async def list_shares(self, request: Request, authorization: SecretsDict, storage_index: bytes) -> bytes:
        return await self._encoded(request, set(await self._readers(storage_index)))

    @_route("GET", IMMUTABLE + SHARE)
    async def read_share_chunk(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        request.setHeader("content-type", "application/octet-stream")
        reader = (await self._readers(storage_index)).get(share_number)
        if reader is None:
            raise _HTTPError(http.NOT_FOUND)
        try:
            length = await shield(reader.get_length(), "looking for a share")
            return await send_share(request, length=length, read=reader.read)
        except KeyError:
            # It was deleted since it was found, and nothing has been sent.
            raise _HTTPError(http.NOT_FOUND) from None

    @_route("POST", IMMUTABLE + SHARE + "/corrupt")
    async def advise_corrupt_share_immutable(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        reader = (await self._readers(storage_index)).get(share_number)
        if reader is None:
            raise _HTTPError(http.NOT_FOUND)
        reason = await self._corruption_reason(request)
        await shield(maybeDeferred(reader.advise_corrupt_share, reason), "noting a corrupt share")
        return b""

    async def _corruption_reason(self, request: Request) -> bytes:
        """The client's words in the body of a corruption advisory, as UTF-8."""
        info = await read_encoded(
            self._reactor, request, _SCHEMAS["advise_corrupt_share"], max_size=CORRUPT_BODY_BYTES
        )
        reason: str = info["reason"]
        return reason.encode("utf-8")

    # Mutable shares

    @_route(
        "POST", MUTABLE + "/read-test-write", Secrets.LEASE_RENEW, Secrets.LEASE_CANCEL, Secrets.WRITE_ENABLER
    )
    async def mutable_read_test_write(
        self, request: Request, authorization: SecretsDict, storage_index: bytes
    ) -> bytes:
        vectors = await read_encoded(
            self._reactor,
            request,
            _SCHEMAS["mutable_read_test_write"],
            max_size=READ_TEST_WRITE_BODY_BYTES,
        )
        secrets = (
            authorization[Secrets.WRITE_ENABLER],
            authorization[Secrets.LEASE_RENEW],
            authorization[Secrets.LEASE_CANCEL],
        )
        changing = self._storage_server.slot_testv_and_readv_and_writev(
            storage_index,
            secrets,
            {number: _share_vectors(v) for number, v in vectors["test-write-vectors"].items()},
            [(r["offset"], r["size"]) for r in vectors["read-vector"]],
        )
        try:
            success, read_data = await shield(changing, "changing a mutable share")
        except BadWriteEnablerError:
            raise _HTTPError(http.UNAUTHORIZED) from None
        return await self._encoded(request, {"success": success, "data": read_data})

    @_route("GET", MUTABLE + SHARE)
    async def read_mutable_chunk(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        request.setHeader("content-type", "application/octet-stream")
        server = self._storage_server

        def read(offset: int, length: int) -> Deferred[bytes]:
            d = server.slot_readv(storage_index, [share_number], [(offset, length)])
            d.addCallback(lambda answers: answers[share_number][0])
            data: Deferred[bytes] = d
            return data

        def get_length() -> Deferred[int]:
            length: Deferred[int] = server.get_mutable_share_length(storage_index, share_number)
            return length

        return await send_mutable_share(request, get_length=get_length, read=read)

    @_route("GET", MUTABLE + "/shares")
    async def enumerate_mutable_shares(
        self, request: Request, authorization: SecretsDict, storage_index: bytes
    ) -> bytes:
        looking = self._storage_server.enumerate_mutable_shares(storage_index)
        numbers = await shield(looking, "looking for shares")
        return await self._encoded(request, set(numbers))

    @_route("POST", MUTABLE + SHARE + "/corrupt")
    async def advise_corrupt_share_mutable(
        self, request: Request, authorization: SecretsDict, storage_index: bytes, share_number: int
    ) -> bytes:
        if share_number not in await self._share_numbers(storage_index):
            raise _HTTPError(http.NOT_FOUND)
        reason = await self._corruption_reason(request)
        noting = maybeDeferred(
            self._storage_server.advise_corrupt_share, b"mutable", storage_index, share_number, reason
        )
        await shield(noting, "noting a corrupt share")
        return b""


async def _close_if_complete(writer: Any, writing: Deferred[bool]) -> bool:
    """Wait for the last piece of a PATCH and, if the share is complete, for the bucket to have it."""
    finished = await writing
    if finished:
        await writer.close()
    return finished


def _share_vectors(
    vectors: dict[str, Any],
) -> tuple[list[tuple[int, int, bytes, bytes]], list[tuple[int, bytes]], Any]:
    """One share's part of a read-test-write, decoded from CBOR, as the storage server takes it."""
    return (
        [(t["offset"], t["size"], b"eq", t["specimen"]) for t in vectors["test"]],
        [(w["offset"], w["data"]) for w in vectors["write"]],
        vectors["new-length"],
    )
