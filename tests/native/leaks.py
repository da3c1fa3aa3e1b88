# SPDX-License-Identifier: GPL-2.0-or-later
"""How much a call leaves behind, and calls whose allocations fail one by one; for test_leaks.py.

    python -m tests.native.leaks stop        _stop_engines() again and again
    python -m tests.native.leaks no-memory   every entry point, with each of Python's allocations failing once

Each runs in a process of its own, since nothing works after the first, and a mistake found by the second may end the
process. Status 0 where all is well; what is wrong is printed.
"""
from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any, Callable

from tahoe_s3 import _native

from .entry_points import CASES, Call, Scene

COUNT = 60
ROUNDS = 6
LEFT_BYTES = 12 * COUNT  # malloc's smallest piece has 32
MAX_ALLOCATIONS = 400
SUCCESSES = 6
INTERPRETERS_OWN = ("error return without exception set", "_PyEval_EvalFrameDefault returned NULL without setting an ")
"""What CPython says, of calls in pure Python too, where no traceback could be allocated (a debug build stops at an
assertion then). Of what an extension did wrong it says "<function> returned NULL without setting ..."."""


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]


def malloc_bytes() -> int:
    """Bytes in use from glibc's malloc, in all arenas: what C holds, and Python's larger blocks."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def state() -> dict[str, int]:
    gc.collect()
    gettotalrefcount: Callable[[], int] = getattr(sys, "gettotalrefcount", lambda: 0)  # only in a debug build
    return {"references": gettotalrefcount(), "blocks": sys.getallocatedblocks(), "malloc'ed bytes": malloc_bytes(),
            "descriptors": len(list(Path("/proc/self/fd").iterdir()))}


LIMITS = {"references": COUNT // 10, "blocks": COUNT // 10, "malloc'ed bytes": LEFT_BYTES, "descriptors": 0}


def attempt(call: Call, scene: Any) -> None:
    try:
        call(scene)
    except (_native.EngineError, TypeError, ValueError, BufferError, OSError, AttributeError, OverflowError):
        return  # what some of the calls are there for; that it was raised must leave nothing behind either


def left_behind(call: Call, scene: Any) -> str:
    """"" or what COUNT calls leave in each of ROUNDS; the engine's own thread may give back a little late."""
    for _ in range(3):
        attempt(call, scene)
    grown: dict[str, int] = {}
    for _ in range(ROUNDS):
        before = state()
        for _ in range(COUNT):
            attempt(call, scene)
        after = state()
        grown = {name: after[name] - before[name] for name in LIMITS if after[name] - before[name] > LIMITS[name]}
        if not grown:
            return ""
    return f"{COUNT} calls leave {grown}"


def fail_each(call: Call, scene: Scene) -> int:
    """Calls with the first allocation failing, then with the second, until nothing fails any more."""
    import _testcapi

    failures = successes = 0
    for number in range(MAX_ALLOCATIONS):
        _testcapi.set_nomemory(number, number + 1)
        try:
            attempt(call, scene)
        except MemoryError:
            failures, successes = failures + 1, 0
        except SystemError as error:
            if not str(error).startswith(INTERPRETERS_OWN):
                raise
        else:
            successes += 1
        finally:
            _testcapi.remove_mem_hooks()
        scene.settle()
        if successes == SUCCESSES:
            break
    return failures


def no_memory() -> str:
    scene = Scene()
    failures = 0
    for calls in CASES.values():
        for call in calls:
            failures += fail_each(call, scene)
    wrong = left_behind(lambda scene: [fail_each(calls[0], scene) for calls in CASES.values()], scene)
    scene.close()
    print(f"{failures} calls failed for lack of memory")
    return wrong


def stop() -> str:
    engine = _native.Engine(endpoint="http://127.0.0.1:9", region="r", bucket="b")
    wrong = left_behind(lambda _: _native._stop_engines(), None)  # type: ignore[attr-defined]
    try:
        engine.window(1)
    except _native.EngineClosed:
        return wrong
    return "the engine is not closed"


def main() -> int:
    wrong = {"stop": stop, "no-memory": no_memory}[sys.argv[1]]()
    if wrong:
        print(wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
