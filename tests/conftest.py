# SPDX-License-Identifier: GPL-2.0-or-later
"""How the tests are run: pytest with pytest-twisted, so that Twisted's reactor runs under all of them.

A test that needs the reactor is `async def` with pytest_twisted's `@ensureDeferred`; blocking helpers (grids
of processes, botocore) are called in it through `await deferToThread(...)`. Since the reactor is running
already, trial's TestCases that return Deferreds cannot be used here; SynchronousTestCase can. Services (moto,
SeaweedFS, rclone) are processes of their own, started once a session when a test first asks for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings

from .support.others import service_named
from .support.s3server import S3Server
from .support.services import Moto, SeaweedFS, Service

# No example fails by the clock: beside other programs one may take a second that takes a millisecond otherwise. And
# whoever asks for a folder beside @given makes what it needs in it anew for each example.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")


@pytest_twisted.async_yield_fixture
async def s3server() -> Any:
    """An S3Server of this test alone, listening, with a bucket named "bucket"."""
    from twisted.internet import reactor

    server = S3Server(reactor, min_part_bytes=1)
    server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """The service of a name, started when it is first asked for and ended with the session."""
    started: dict[str, Service] = {}
    with contextlib.ExitStack() as stack:

        def one(name: str) -> Service:
            if name not in started:
                started[name] = stack.enter_context(service_named(name)(tmp_path_factory.mktemp(name)))
            return started[name]

        yield one


@pytest.fixture
def moto(running: Callable[[str], Moto]) -> Moto:
    return running("moto")


@pytest.fixture
def seaweedfs(running: Callable[[str], SeaweedFS]) -> SeaweedFS:
    return running("seaweedfs")


@pytest.fixture(params=os.environ.get("TAHOE_S3_SERVICES", "moto,seaweedfs,rclone").split(","))
def service(request: pytest.FixtureRequest, running: Callable[[str], Service]) -> Service:
    """Each of the real services in turn, or those that TAHOE_S3_SERVICES names (support/others.py)."""
    return running(request.param)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder whose path is short enough for nodes with sockets in it."""
    return tmp_path
