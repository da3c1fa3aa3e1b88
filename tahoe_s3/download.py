# SPDX-License-Identifier: GPL-2.0-or-later
"""A range of an object on its way into memory, readable while it still arrives.

Owner: whoever asked for it (S3Client.get_window) and must close() it. On the reactor's thread.
Limits: its length is charged to the engine's budget from the moment it was sent until it is closed.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Callable, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed

from tahoe_s3.s3errors import S3Error

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from tahoe_s3._native import Event, Window
    from tahoe_s3.transfer import Call


class ObjectInfo(NamedTuple):
    """What S3 says of an object. `size` in bytes, `modified_s` in seconds since 1970, `etag` without quotes."""

    key: str
    size: int
    etag: str
    modified_s: int


class Download:
    """One GET of `length` bytes from `offset` (both of the object); its own offsets count from 0 at `offset`.

    Bytes below `ready` are valid, never change, and stay readable after a failure, until close().
    """

    def __init__(
        self, key: str, length: int, start: Callable[[Callable[[Call], None]], Call], released: Callable[[], None],
    ) -> None:
        """`start` sends the request, given what to call on progress; `released` is told that memory was freed."""
        self.key = key
        self.length = length
        self.info: ObjectInfo | None = None
        """Of the whole object, once everything has arrived."""
        self.error: S3Error | None = None
        self._released = released
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._ended: list[Deferred[ObjectInfo]] = []
        self._closed = False
        self._call: Call | None = None
        self._call = start(self._progress)
        self._call.deferred.addCallbacks(self._succeeded, self._failed)

    @property
    def _window(self) -> Window | None:
        return self._call.window if self._call is not None else None

    @property
    def ready(self) -> int:
        """How many bytes have arrived; only grows; 0 once closed."""
        window = self._window
        return window.ready if window is not None else 0

    def read(self, offset: int, length: int) -> bytes:
        """A copy of ready bytes. ValueError where they are not all ready, or after close()."""
        window = self._window
        if window is None:
            raise ValueError("nothing has arrived yet")
        return window.read(offset, length)

    def when_ready(self, upto: int) -> Deferred[None]:
        """Fires when the first `upto` bytes are ready, or all that the object has. Fails with the GET's S3Error
        where that came before. ValueError beyond `length`."""
        if upto > self.length:
            raise ValueError(f"{upto} bytes of a download of {self.length}")
        if self.info is not None or self.ready >= upto:
            return succeed(None)
        if self.error is not None:
            return fail(self.error)
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiting.append((upto, waiter))
        self._arm()
        return waiter

    def when_done(self) -> Deferred[ObjectInfo]:
        """A new Deferred each time: fires when everything has arrived, fails with the GET's S3Error."""
        if self.info is not None:
            return succeed(self.info)
        if self.error is not None:
            return fail(self.error)
        waiter: Deferred[ObjectInfo] = Deferred(self._ended.remove)
        self._ended.append(waiter)
        return waiter

    @property
    def done(self) -> Deferred[ObjectInfo]:
        """The same as when_done()."""
        return self.when_done()

    def cancel(self) -> None:
        """Stop the GET; what waits fails with Cancelled. What has arrived stays readable. Idempotent."""
        if self._call is not None:
            self._call.deferred.cancel()

    def close(self) -> None:
        """Stop it if need be and give the memory back. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.cancel()
        window = self._window
        if window is not None:
            window.close()
            self._released()

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiting = [pair for pair in self._waiting if pair[1] is not waiter]

    def _progress(self, _call: Call) -> None:
        """The request was sent, or the armed size has arrived."""
        self._arm()

    def _arm(self) -> None:
        """Fire what is ready; have the engine tell of the next that is not."""
        window = self._window
        while window is not None and self._waiting and not self._closed:
            upto = min(pair[0] for pair in self._waiting)
            if not window.arm(upto):
                return
            ready = window.ready
            fired = [pair[1] for pair in self._waiting if pair[0] <= ready]
            self._waiting = [pair for pair in self._waiting if pair[0] > ready]
            for waiter in fired:
                waiter.callback(None)

    def _succeeded(self, event: Event) -> None:
        self.info = ObjectInfo(self.key, event.size or 0, event.etag or "", event.modified_s or 0)
        waiting, self._waiting = self._waiting, []
        ended, self._ended = self._ended, []
        for _upto, waiter in waiting:
            waiter.callback(None)
        for done in ended:
            done.callback(self.info)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, S3Error):
            failure.raiseException()
            return
        self.error = error
        ready = self.ready
        waiting, self._waiting = self._waiting, []
        ended, self._ended = self._ended, []
        for upto, waiter in waiting:
            if upto <= ready:
                waiter.callback(None)
            else:
                waiter.errback(error)
        for done in ended:
            done.errback(error)
