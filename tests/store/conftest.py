# SPDX-License-Identifier: GPL-2.0-or-later
"""For all tests of the store: a failure that ends in a Deferred nobody looked at fails the test that caused it.

One that hangs in a cycle of references shows only when garbage is collected, which takes too long to be done for
each test: that is at the end of each file, and fails its last test.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from .nodes import Bucket


@pytest.fixture(scope="module")
def lost_failures() -> Iterator[list[str]]:
    """Tracebacks of failures that nobody looked at."""
    lost: list[str] = []

    def look(event: Any) -> None:
        if "Unhandled" in str(event.get("log_format", "")) and event.get("log_failure") is not None:
            lost.append(event["log_failure"].getTraceback())

    gc.collect()
    globalLogPublisher.addObserver(look)
    try:
        yield lost
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(look)
    assert not lost, "\n".join(lost)


@pytest.fixture(autouse=True)
def no_lost_failures(lost_failures: list[str]) -> Iterator[None]:
    yield
    seen = lost_failures[:]
    lost_failures.clear()
    assert not seen, "\n".join(seen)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    """A bucket in memory for the nodes of a test, which end with it."""
    made = Bucket(tmp_path)
    yield made
    made.close()
