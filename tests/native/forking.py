# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that forks again and again while it has many transfers over TLS under way.

    python forking.py URL BUNDLE SEED FORKS

Children try every call, drop what they hold, and end in every way; none may end by a signal or hang. The parent's
transfers must all end right, byte for byte, each in its first attempt and on the connections of the beginning: a
child that says goodbye on one of them would be seen. Ends with status 0 and one line, or with what went wrong.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import time
import warnings
from typing import Any, Callable, NoReturn

from tahoe_s3 import _native
from tests.support.tls_peer import content

CONNECTIONS = 16
IN_FLIGHT = 32
CHILD_S = 30
WATCHED: list[Any] = []
LOOK = """
import os, socket, sys
for name in os.listdir("/proc/self/fd"):
    path = f"/proc/self/fd/{name}"
    if os.path.islink(path) and os.readlink(path).startswith("socket:"):
        # libcurl before 8.9 leaves the pair open that wakes it up (curl's issue 13618); it leads nowhere.
        found = socket.socket(fileno=int(name))
        assert found.family == socket.AF_UNIX, name
        found.detach()
"""


class Transfers:
    """Keeps so many requests with the engine, and checks each that ends."""

    def __init__(self, engine: _native.Engine, rand: random.Random) -> None:
        self.engine, self.rand = engine, rand
        self.open: dict[int, tuple[str, Any]] = {}
        self.ended, self.bytes = 0, 0

    def begin(self) -> None:
        key, size = f"k{self.rand.getrandbits(40)}", self.rand.randrange(1, 1 << 21)
        if self.rand.random() < 0.5:
            window = self.engine.window(size)
            self.open[self.engine.submit("GET", key, into=window)] = (key, window)
        else:
            body = content(key, 0, size)
            self.open[self.engine.submit("PUT", key, body=body)] = (key, body)

    def fill(self) -> None:
        while len(self.open) < IN_FLIGHT:
            self.begin()

    def take(self, *, wait_s: float) -> None:
        select.select([self.engine.fileno()], [], [], wait_s)
        for event in self.engine.drain():
            assert event.final
            key, held = self.open.pop(event.id)
            assert event.failure is None and event.attempts == 1, (key, event)
            if isinstance(held, bytes):
                assert event.etag == hashlib.md5(held).hexdigest(), key
                size = len(held)
            else:
                size = held.size
                assert held.read(0, size) == content(key, 0, size), key
                held.close()
            self.ended += 1
            self.bytes += size


def forbidden(transfers: Transfers) -> list[Callable[[], object]]:
    engine = transfers.engine
    windows = [held for _, held in transfers.open.values() if not isinstance(held, bytes)]
    return [
        lambda: engine.submit("GET", "k"), lambda: engine.submit("PUT", "k", body=b"x"), engine.drain, engine.fileno,
        engine.close, engine.stats, engine.region, lambda: engine.window(10), lambda: engine.cancel(1),
        lambda: engine.set_credentials("a", b"b"),
        *[lambda window=window: window.arm(1) for window in windows],
        *[lambda window=window: window.read(0, 0) for window in windows],
    ]


def in_child(transfers: Transfers) -> None:
    """What may be called raises; what is dropped does no harm."""
    signal.alarm(CHILD_S)
    for call in forbidden(transfers):
        try:
            call()
        except _native.EngineForked:
            continue
        raise AssertionError(f"{call} did not raise")
    for _, held in transfers.open.values():
        if not isinstance(held, bytes):
            held.close()
    assert _native.parse_error(b"<Error><Code>C</Code></Error>").code == "C"


def child_of_multiprocessing() -> None:
    in_child(WATCHED[0])


def drop_all(transfers: Transfers) -> None:
    WATCHED.clear()
    transfers.open.clear()
    del transfers.engine
    gc.collect()


def end_child(how: int, transfers: Transfers) -> NoReturn:
    in_child(transfers)
    if how == 0:
        os._exit(0)
    if how == 1:
        drop_all(transfers)
        os._exit(0)
    if how == 2:
        drop_all(transfers)
    sys.exit(0)  # through atexit and the end of the interpreter, with everything still there where how is 3


def fork(how: int, transfers: Transfers) -> Callable[[], int]:
    """Starts a child; what is returned waits for it and says its status."""
    child = os.fork()
    if child == 0:
        end_child(how, transfers)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def spawn(how: int) -> Callable[[], int]:
    """multiprocessing's fork, or another program, which must find no socket of ours."""
    if how == 4:
        process = multiprocessing.get_context("fork").Process(target=child_of_multiprocessing)
        process.start()

        def ended() -> int:
            process.join()
            status: int = process.exitcode or 0
            process.close()
            return status

        return ended
    other = subprocess.Popen([sys.executable, "-S", "-c", LOOK], close_fds=False)
    return lambda: other.wait()


def main() -> None:
    url, bundle, seed, forks = sys.argv[1:]
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    rand = random.Random(int(seed))
    engine = _native.Engine(endpoint=url, region="us-east-1", bucket="bucket", ca_file=bundle,
                            max_connections=CONNECTIONS, max_queue=2 * IN_FLIGHT)
    engine.set_credentials("AKID", b"secret")
    transfers = Transfers(engine, rand)
    WATCHED.append(transfers)
    for number in range(int(forks)):
        transfers.fill()
        until = time.monotonic() + rand.uniform(0, 0.05)
        while (left := until - time.monotonic()) > 0:
            transfers.take(wait_s=left)
            transfers.fill()
        how = number % 6
        wait = fork(how, transfers) if how < 4 else spawn(how)
        for _ in range(3):  # the transfers go on while the child lives
            transfers.take(wait_s=0.002)
            transfers.fill()
        status = wait()
        assert status == 0, f"child {number}, which ended by way {how}, has status {status}"
    while transfers.open:
        transfers.take(wait_s=10)
    stats = engine.stats()
    assert stats["retries"] == 0 and stats["connections_opened"] <= CONNECTIONS, stats
    assert stats["budget_used_bytes"] == 0, stats
    engine.close()
    print(f"{forks} forks, {transfers.ended} transfers with {transfers.bytes >> 20} MiB unharmed")


if __name__ == "__main__":
    main()
