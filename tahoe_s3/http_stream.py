# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares as bodies of HTTP answers: ranges, pieces, back-pressure, and answers that break off.

Owner: http.py. Reactor thread only. Status codes and headers are those of read_range in
allmydata/storage/http_server.py.

Limits: of one answer at most one piece (PIECE_BYTES, for mutable shares MUTABLE_PIECE_BYTES) is in memory
here, besides what the transport holds; the next is read when the client has taken the former.
Errors: a failure before the first byte propagates, so it can still become a status; one after it aborts the
connection, since the client must not take the part for the whole.
"""
from __future__ import annotations

from typing import Any, Callable, Final, NamedTuple

from allmydata.storage.http_server import _HTTPError
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request
from werkzeug.datastructures import ContentRange
from werkzeug.http import parse_range_header
from zope.interface import implementer

from tahoe_s3.wire import log_failure, shield

PIECE_BYTES: Final = 512 * 1024
"""Big enough that a client's usual block (349,526 bytes) is one read, small enough to come soon."""
MUTABLE_PIECE_BYTES: Final = 1024 * 1024
"""A range up to this is read in one call, so from one version of the share."""
MUTABLE_TRIES: Final = 3
"""How often a mutable share is asked again that shrinks between the question for its length and the read."""

ReadAt = Callable[[int, int], "Deferred[bytes]"]
"""(offset, length) -> data, shorter only past the end of the share's data."""


class ShareChanged(Exception):
    """A share gave less data than its length promised."""


class Range(NamedTuple):
    """What a Range header asks for, in bytes: start, and the first byte no longer wanted."""

    start: int
    end: int


def requested_range(request: Request) -> Range | None:
    """The request's Range header, or None without one.

    Raises _HTTPError 416 for all that Tahoe does not answer: no bytes, several ranges, no explicit end.
    """
    header = request.getHeader("range")
    if header is None:
        return None
    parsed = parse_range_header(header)
    if parsed is None or parsed.units != "bytes" or len(parsed.ranges) != 1:
        raise _HTTPError(http.REQUESTED_RANGE_NOT_SATISFIABLE)
    start, end = parsed.ranges[0]
    if start is None or end is None:
        raise _HTTPError(http.REQUESTED_RANGE_NOT_SATISFIABLE)
    return Range(start, end)


def _within(wanted: Range | None, share_length: int) -> Range:
    """The part of the share to send. Raises _HTTPError 204 for a range that starts past its end."""
    if wanted is None:
        return Range(0, share_length)
    end = min(wanted.end, share_length)
    if wanted.start >= end:
        raise _HTTPError(http.NO_CONTENT)
    return Range(wanted.start, end)


def _announce(request: Request, part: Range) -> None:
    """The status and header of a partial answer."""
    request.setResponseCode(http.PARTIAL_CONTENT)
    request.setHeader("content-range", ContentRange("bytes", part.start, part.end).to_header())


async def send_share(
    request: Request, *, length: int, read: ReadAt, piece_bytes: int = PIECE_BYTES
) -> bytes:
    """Answer a GET (or HEAD) of a share whose data is `length` bytes long.

    Returns what the handler is to return: the body if it is one piece, else b"" when all has been written.
    """
    wanted = requested_range(request)
    part = _within(wanted, length)
    first = b""
    if request.method != b"HEAD" and part.start < part.end:
        first = await _read_exactly(read, part.start, min(part.end - part.start, piece_bytes))
    if wanted is not None:
        _announce(request, part)
    rest = Range(part.start + len(first), part.end)
    if not first or rest.start == rest.end:
        return first
    sender = _Sender(request, read, piece_bytes)
    sender.start(first)
    del first
    return await sender.send(rest)


async def send_mutable_share(
    request: Request, *, get_length: Callable[[], Deferred[int]], read: ReadAt
) -> bytes:
    """Answer a GET of a mutable share. Both callables fail with KeyError where there is no such share: 404.

    A range of up to MUTABLE_PIECE_BYTES takes one read, which also tells where the share ends.
    """
    try:
        wanted = requested_range(request)
        if wanted is None or wanted.end - wanted.start > MUTABLE_PIECE_BYTES:
            return await _send_long_mutable_share(request, get_length, read)
        data = await shield(read(wanted.start, wanted.end - wanted.start), "reading a mutable share")
    except KeyError:
        raise _HTTPError(http.NOT_FOUND) from None
    except _HTTPError as error:
        if error.code == http.REQUESTED_RANGE_NOT_SATISFIABLE:
            await _check_exists(get_length)
        raise
    part = _within(wanted, wanted.start + len(data))
    _announce(request, part)
    return data


async def _check_exists(get_length: Callable[[], Deferred[int]]) -> None:
    """Raise _HTTPError 404 if there is no such share: that comes before complaints about the range."""
    try:
        await shield(get_length(), "looking for a mutable share")
    except KeyError:
        raise _HTTPError(http.NOT_FOUND) from None


async def _send_long_mutable_share(
    request: Request, get_length: Callable[[], Deferred[int]], read: ReadAt
) -> bytes:
    """Length first, then pieces. One that shrinks in between is asked again while nothing has been sent."""
    for attempt in range(MUTABLE_TRIES):
        length = await shield(get_length(), "looking for a mutable share")
        try:
            return await send_share(request, length=length, read=read, piece_bytes=MUTABLE_PIECE_BYTES)
        except ShareChanged:
            if attempt == MUTABLE_TRIES - 1:
                raise
    raise AssertionError("unreachable")


async def _read_exactly(read: ReadAt, offset: int, length: int) -> bytes:
    """Read, and refuse less than was asked for.

    The read itself goes on when the client hangs up: it is bounded, and others may wait for the same bytes.
    """
    data = await shield(read(offset, length), "reading a share")
    if len(data) != length:
        raise ShareChanged(f"{length} bytes were expected at offset {offset}, but {len(data)} came")
    return data


@implementer(IPushProducer)
class _Sender:
    """Hands the pieces of one answer to its request, no faster than the client takes them.

    Klein cancels the handler, and so what send() waits for, when the client has hung up; by then
    request.channel is None and the request takes no further calls.
    """

    def __init__(self, request: Request, read: ReadAt, piece_bytes: int) -> None:
        self._request = request
        self._read = read
        self._piece_bytes = piece_bytes
        self._paused = False
        self._resumed: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The connection is ending: send nothing more; the cancellation follows."""
        self._paused = True

    def _ready(self) -> Deferred[None]:
        """Fires when the client has room."""
        if not self._paused:
            return succeed(None)

        def forget(_: Deferred[None]) -> None:
            self._resumed = None

        self._resumed = Deferred(forget)
        return self._resumed

    def start(self, data: bytes) -> None:
        """Begin the answer with its first piece."""
        self._request.registerProducer(self, True)
        self._request.write(data)

    async def send(self, rest: Range) -> bytes:
        """Send what remains. Returns b"" at the end of the answer, never from one that broke off."""
        request = self._request
        try:
            await self._send_pieces(rest)
        except Exception:
            if request.channel is None:
                raise
            log_failure("sending a share to an HTTP client, which was cut off,", Failure())
            transport: Any = request.transport
            transport.abortConnection()
            # Returning or raising would make Klein end the answer as if it were complete.
            await _forever()
        request.unregisterProducer()
        return b""

    async def _send_pieces(self, rest: Range) -> None:
        offset, end = rest
        while offset < end:
            await self._ready()
            data = await _read_exactly(self._read, offset, min(end - offset, self._piece_bytes))
            offset += len(data)
            self._request.write(data)
            del data


def _forever() -> Deferred[Any]:
    """Fires only by being cancelled."""
    return Deferred()
