# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that begins many transfers over TLS and ends in the middle of them, in one of many ways.

    python exiting.py WAY URL BUNDLE SEED

Run by exits.py. Just before it ends it prints the time (seconds since 1970), so that the caller sees how long the
end takes. Nothing is closed but where the way says so.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, NoReturn

Way = Callable[[], object]
WAYS: dict[str, Way] = {}
STATUS: dict[str, int] = {"exception": 1, "sys_exit": 3, "sigint": -signal.SIGINT, "sigint_in_drain": -signal.SIGINT,
                          "sigterm": 4}
"""What the process's status must be, where it is not 0."""
KEPT: list[Any] = []
LOADED: list[Any] = []
URL, BUNDLE, RANDOM = "", "", random.Random(0)


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


def native() -> Any:
    """The module, imported when it is first asked for; at the very end nothing can be imported any more."""
    if not LOADED:
        LOADED.append(importlib.import_module("tahoe_s3._native"))
    return LOADED[0]


def make() -> Any:
    engine = native().Engine(endpoint=URL, region="us-east-1", bucket="bucket", ca_file=BUNDLE, max_connections=8)
    engine.set_credentials("AKID", b"secret")
    return engine


def begin(engine: Any) -> list[Any]:
    """Downloads, uploads from memory and from a file, and requests that only wait for a place; returns the windows."""
    windows = [engine.window(4 << 20) for _ in range(6)]
    for number, window in enumerate(windows):
        engine.submit("GET", f"get{number}", into=window)
        window.arm(1 << 20)
    for number in range(4):
        engine.submit("PUT", f"put{number}", body=bytes(3 << 20))
    with tempfile.TemporaryFile() as file:
        file.truncate(20 << 20)
        engine.submit("PUT", "file", body=native().FileRegion(file.fileno(), 0, 2 << 20))
        engine.submit("PUT", "stream", body=native().FileRegion(file.fileno(), 0, 20 << 20))
    for number in range(4):
        engine.submit("GET", f"small{number}", parse="bytes", priority=0)
    return windows


def moment() -> None:
    """Some of the ends fall into the handshakes, most into the transfers."""
    time.sleep(RANDOM.choice([0.0, 0.002, 0.01, 0.03, 0.08]) * RANDOM.uniform(0.5, 2))


def leave() -> None:
    print(time.time(), flush=True)


def started() -> Any:
    engine = make()
    KEPT.append(begin(engine))
    moment()
    return engine


def in_daemon(function: Callable[[], object]) -> None:
    threading.Thread(target=function, daemon=True).start()


@way
def end_of_main() -> None:
    engine = started()
    leave()
    KEPT.append(engine)


@way
def local_variable() -> None:
    """Dropped at the end of this function."""
    engine = started()
    leave()
    engine.drain()


@way
def sys_exit() -> NoReturn:
    KEPT.append(started())
    leave()
    sys.exit(3)


@way
def exception() -> NoReturn:
    engine = started()
    leave()
    raise RuntimeError(f"expected, with {engine} in the traceback")


@way
def sys_exit_in_thread() -> None:
    def run() -> None:
        KEPT.append(started())
        leave()
        sys.exit(5)

    threading.Thread(target=run).start()


@way
def thread_outlives_main() -> None:
    engine = started()

    def run() -> None:
        moment()
        engine.drain()
        leave()

    threading.Thread(target=run).start()


@way
def atexit_uses_it() -> None:
    """Functions that run before and after the module's own."""
    def use() -> None:
        try:
            engine.submit("PUT", "late", body=bytes(100_000))
        except native().EngineClosed:
            KEPT.append("closed")
        engine.drain()
        engine.stats()

    atexit.register(use)
    engine = started()
    leave()


@way
def atexit_closes() -> None:
    engine = started()
    atexit.register(engine.close)
    atexit.register(KEPT.clear)
    leave()


atexit.register(lambda: [engine.drain() for engine in KEPT if hasattr(engine, "drain")])  # after the module's own


@way
def daemons_drain() -> None:
    engine = started()

    def run() -> None:
        while True:
            select.select([engine.fileno()], [], [], 0.01)
            engine.drain()

    for _ in range(3):
        in_daemon(run)
    moment()
    leave()


@way
def daemons_submit() -> None:
    engine = started()

    def run() -> None:
        while True:
            try:
                engine.submit("GET", "more", parse="bytes")
                engine.drain()
            except native().QueueFull:
                time.sleep(0.001)
            except native().EngineClosed:
                return

    for _ in range(3):
        in_daemon(run)
    moment()
    leave()


@way
def daemons_make_and_drop() -> None:
    KEPT.append(started())

    def run() -> None:
        while True:
            try:
                engine = make()
                engine.submit("PUT", "k", body=bytes(1 << 20))
                time.sleep(0.005)
                del engine
            except native().EngineError:
                return

    for _ in range(3):
        in_daemon(run)
    moment()
    leave()


@way
def closing_in_daemon() -> None:
    engine = started()
    for _ in range(2):
        in_daemon(engine.close)
    leave()


@way
def dropping_in_daemon() -> None:
    engines = [started()]
    in_daemon(engines.clear)
    leave()


@way
def in_a_cycle() -> None:
    class Owner(bytearray):
        engine: Any

    gc.disable()
    body = Owner(1 << 20)
    body.engine = started()
    body.engine.submit("PUT", "k", body=body)
    moment()
    leave()


@way
def garbage() -> None:
    cycle: list[Any] = [started()]
    cycle.append(cycle)
    leave()
    del cycle
    gc.collect()


@way
def finaliser() -> None:
    """Python code that runs while the interpreter takes itself apart."""

    class Last:
        def __init__(self, engine: Any) -> None:
            self.engine = engine
            self.closed = native().EngineClosed

        def __del__(self) -> None:
            self.engine.drain()
            try:
                self.engine.submit("GET", "k")
            except self.closed:
                self.engine.close()

    sys.modules["kept_to_the_end"] = Last(started())  # type: ignore[assignment]
    leave()


@way
def made_too_late() -> None:
    """An engine made while the interpreter takes itself apart, whose module atexit has not seen."""

    class Last:
        def __del__(self) -> None:
            try:
                KEEP.append(start())
            except error:
                KEEP.append(None)

    KEEP, start, error = KEPT, started, native().EngineError
    sys.modules["kept_to_the_end"] = Last()  # type: ignore[assignment]
    leave()


@way
def imported_by_atexit() -> None:
    assert "tahoe_s3._native" not in sys.modules
    atexit.register(lambda: KEPT.append(started()))
    leave()


@way
def made_by_atexit() -> None:
    def run() -> None:
        try:
            KEPT.append(started())
        except native().EngineClosed:
            KEPT.append(None)

    atexit.register(run)
    leave()


@way
def many_engines() -> None:
    for _ in range(4):
        KEPT.append(started())
    leave()


@way
def sigint() -> None:
    engine = started()
    leave()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
    engine.drain()


@way
def sigint_in_drain() -> None:
    engine = started()

    def run() -> None:
        moment()
        leave()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    in_daemon(run)
    while True:
        engine.drain()
        engine.stats()


@way
def sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    engine = started()
    leave()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    engine.drain()


@way
def broken_pipes() -> None:
    """Signals at their defaults: what the engine's threads write to a dead connection must not end the process."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    KEPT.append(started())
    leave()


@way
def nobody_listens() -> None:
    """Standard output is closed before the end."""
    KEPT.append(started())
    leave()
    sys.stdout.close()
    os.close(1)


def main() -> None:
    global URL, BUNDLE, RANDOM
    chosen, URL, BUNDLE, seed = sys.argv[1:]
    RANDOM = random.Random(int(seed))
    assert Path(BUNDLE).exists()
    WAYS[chosen]()


if __name__ == "__main__":
    main()
