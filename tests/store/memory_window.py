# SPDX-License-Identifier: GPL-2.0-or-later
"""The window in memory of a download from the bucket in memory (memory_client.py)."""

from __future__ import annotations

from typing import Callable


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
