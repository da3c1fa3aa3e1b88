# SPDX-License-Identifier: GPL-2.0-or-later
"""A download from the bucket in memory (memory_client.py): its window, and its request, whose bytes a test may let
arrive piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from twisted.internet.defer import Deferred

from tahoe_s3.client import Cancelled, ObjectInfo, S3Error

from .memory_requests import Held

if TYPE_CHECKING:
    from .memory_client import MemoryClient


class MemoryWindow:
    """What tahoe_s3._native.Window is to a Download."""

    def __init__(self, data: bytes, closed: Callable[[], None]) -> None:
        self.data = data
        self.ready = 0
        self.armed: int | None = None
        self._closed: Callable[[], None] | None = closed

    def arm(self, upto: int) -> bool:
        if self.ready >= upto:
            return True
        self.armed = upto
        return False

    def read(self, offset: int, length: int) -> bytes:
        if self._closed is None or offset < 0 or length < 0 or offset + length > self.ready:
            raise ValueError("beyond what is ready")
        return self.data[offset : offset + length]

    def close(self) -> None:
        if self._closed is not None:
            closed, self._closed = self._closed, None
            self.ready = 0
            closed()


class Get:
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
