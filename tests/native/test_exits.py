# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a process in the middle of transfers over TLS, and forks: a tenth of what `make exits` does."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ..support.tls_peer import Peer
from .exiting import WAYS
from .exits import run_exits, run_forks
from .scripted import ScriptedServer
from .test_engine import make

EXITS = 104
FORKS = 12


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("peer")) as made:
        yield made


def test_a_hundred_processes_end(peer: Peer) -> None:
    """Every way a few times. The seed is in what fails."""
    runs = run_exits(peer, EXITS, int(time.time()))
    assert {run.way for run in runs} == set(WAYS)
    wrong = [f"{run.way} with seed {run.seed}: {run.wrong}" for run in runs if run.wrong]
    assert not wrong, "\n".join(wrong)


def test_forks_leave_the_parent_s_transfers_alone(peer: Peer) -> None:
    run = run_forks(peer, FORKS, int(time.time()))
    assert not run.wrong, f"seed {run.seed}: {run.wrong}"


def test_who_closes_second_waits_too() -> None:
    """Whoever returns from close() finds the final event of every request."""
    silent = ScriptedServer(lambda _what, _body: b"")
    for _ in range(30):
        engine = make(silent.url)
        for number in range(10):
            engine.submit("PUT", f"k{number}", body=bytes(100_000))
        time.sleep(0.002)
        found: list[int] = []
        barrier = threading.Barrier(3)

        def close(engine=engine, found=found, barrier=barrier) -> None:  # type: ignore[no-untyped-def]
            barrier.wait()
            engine.close()
            found.append(engine.stats()["undrained"])

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [10, 10, 10]
    silent.close()
