# SPDX-License-Identifier: GPL-2.0-or-later
"""For all tests of the store: a failure that ends in a Deferred nobody looked at fails the test that caused it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher


@pytest.fixture(autouse=True)
def no_lost_failures() -> Iterator[None]:
    lost: list[str] = []

    def look(event: Any) -> None:
        if "Unhandled" in str(event.get("log_format", "")) and event.get("log_failure") is not None:
            lost.append(event["log_failure"].getTraceback())

    gc.collect()
    globalLogPublisher.addObserver(look)
    try:
        yield
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(look)
    assert not lost, "\n".join(lost)
