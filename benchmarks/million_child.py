# SPDX-License-Identifier: GPL-2.0-or-later
"""One process of million.py: a storage server, measured from its start to its stop. Prints one line of JSON.

    million_child.py s3 URL FOLDER KEYS rebuild|kept
    million_child.py disk FOLDER KEYS SECONDS

While the bucket is listed somebody asks for shares of random storage indexes, ASK_EVERY_S apart, and a timer that is
due every STALL_EVERY_S tells how late the reactor comes to it.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import statistics
import struct
import sys
import time
from base64 import b32decode
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable

import allmydata.client  # noqa: F401  (what a node has in memory anyway)
from allmydata.storage.server import StorageServer
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import deferLater, react

from tahoe_s3.client import NotFound, open_client
from tahoe_s3.config import S3Config
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import OWNER_KEY, slot_prefix
from tahoe_s3.store.opening import open_store
from tahoe_s3.store.store import INDEX

NODE_ID = b"m" * 20
MB = 1e6
ASK_EVERY_S = 0.01
STALL_EVERY_S = 0.001
ASKING_S = 3.0
BATCH = 200
#: Base32 as ASCII orders it, and null_s3's storage indexes of so many spread bits.
DIGITS = "234567abcdefghijklmnopqrstuvwxyz"
SPREAD_BITS = 30


def storage_index(index: int, keys: int) -> bytes:
    """The one that null_s3 lists as its `index`-th of so many (make_si there)."""
    value = (index << SPREAD_BITS) // keys
    spread = "".join(DIGITS[value >> shift & 31] for shift in range(25, -1, -5))
    number = "".join(DIGITS[index >> shift & 31] for shift in range(35, -1, -5))
    return b32decode(f"{spread}{'a' * 11}{number}a".upper() + "======")


def memory_mb(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith(name))


class Stalls:
    """How late the reactor comes to a timer, and how long Python's garbage collector stops everything."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.late_s: list[float] = []
        self._collector_s = self._began_s = 0.0
        gc.callbacks.append(self._collects)
        self._call = reactor.callLater(STALL_EVERY_S, self._due)

    def _due(self) -> None:
        self.late_s.append(self._reactor.seconds() - self._call.getTime())
        self._call = self._reactor.callLater(STALL_EVERY_S, self._due)

    def _collects(self, phase: str, _: object) -> None:
        if phase == "start":
            self._began_s = time.perf_counter()
        else:
            self._collector_s = max(self._collector_s, time.perf_counter() - self._began_s)

    def stop(self) -> dict[str, float]:
        self._call.cancel()
        gc.callbacks.remove(self._collects)
        late_ms = sorted(1000 * late for late in self.late_s) or [0.0]
        return {
            "stall_ms": late_ms[-1], "stall_99_ms": late_ms[int(0.99 * (len(late_ms) - 1))],
            "collector_ms": 1000 * self._collector_s,
        }  # fmt: skip


@inlineCallbacks
def rate(reactor: Any, ask: Callable[[], Any], is_right: Callable[[Any], bool]) -> Generator[Deferred[Any], Any, float]:
    """How many calls a second end, one after the other, in batches between which the reactor has a turn."""
    count, ended_s = 0, time.perf_counter() + ASKING_S
    spent_s = 0.0
    while time.perf_counter() < ended_s:
        began_s = time.perf_counter()
        for _ in range(BATCH):
            answer = yield maybeDeferred(ask)
            if not is_right(answer):
                raise RuntimeError(f"a wrong answer: {answer!r}")
        spent_s += time.perf_counter() - began_s
        count += BATCH
        yield deferLater(reactor, 0, lambda: None)
    return count / spent_s


def keeping_the_mark(folder: Path) -> Callable[[Any, Any], Any]:
    """open_client, but the owner's mark is kept in a file, since null_s3 keeps nothing. Its requests are made."""
    mark = folder.with_suffix(".mark")

    def make(reactor: Any, config: Any) -> Any:
        client: Any = open_client(reactor, config)
        real_get, real_put = client.get, client.put

        def put(key: str, body: Any, **options: Any) -> Any:
            if key == OWNER_KEY:
                mark.write_bytes(body)
            return real_put(key, body, **options)

        def as_kept(answer: Any) -> Any:
            if not mark.exists():
                raise NotFound("null_s3 keeps nothing", operation="GetObject", key=OWNER_KEY, status=404)
            return answer._replace(data=mark.read_bytes())

        def get(key: str, **options: Any) -> Any:
            got = real_get(key, **options)
            return got.addCallback(as_kept) if key == OWNER_KEY else got

        client.get, client.put = get, put
        return client

    return make


def config_for(url: str) -> S3Config:
    return S3Config(
        access_key_id="AKID", secret=b"secret", bucket="bucket", url=url, region="us-east-1", region_is_explicit=False,
        prefix="", path_style=True, ca_bundle=None, max_connections=50, part_size_bytes=8 * 2**20,
    )  # fmt: skip


@inlineCallbacks
def s3(reactor: Any, url: str, folder: str, keys: str, start: str) -> Generator[Deferred[Any], Any, None]:
    count, chosen = int(keys), random.Random(1)
    found: dict[str, Any] = {"before_mb": memory_mb("VmRSS")}

    def somewhere() -> bytes:
        return storage_index(chosen.randrange(count), count)

    began_s = time.perf_counter()
    store = yield open_store(
        reactor, config_for(url), nodeid="million", local_dir=Path(folder), has_run_before=start == "kept",
        make_client=keeping_the_mark(Path(folder)),
    )  # fmt: skip
    found["serves_s"] = time.perf_counter() - began_s
    stalls = Stalls(reactor)
    if store.index.was_kept is not (start == "kept"):
        raise RuntimeError("the index is not what this start is to have")
    server = S3StorageServer(folder, NODE_ID, backend=store)
    waits_ms: list[float] = []
    prefixes = set()
    while not store.rebuild.is_complete:
        si = somewhere()
        if not store.rebuild.covers(si):
            prefixes.add(slot_prefix(si))
        asked_s = time.perf_counter()
        readers = yield server.get_buckets(si)
        waits_ms.append(1000 * (time.perf_counter() - asked_s))
        if set(readers) != {0}:
            raise RuntimeError("a share is missing")
        yield deferLater(reactor, ASK_EVERY_S, lambda: None)
    found["complete_s"] = time.perf_counter() - began_s
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found["cpu_s"] = usage.ru_utime + usage.ru_stime
    found.update(stalls.stop())
    found["asked"] = len(waits_ms)
    if waits_ms:
        found["asked_median_ms"], found["asked_max_ms"] = statistics.median(waits_ms), max(waits_ms)
    requests = dict(store.client.counters.requests)
    # The first LIST is that which finds out whether there is a bucket.
    found["look_ups"] = len(prefixes)
    found["lists"] = requests.pop("ListObjectsV2") - 1 - len(prefixes)
    found["lists_budget"] = int(count / 1000 * 1.125) + 20
    found["others"], found["others_budget"] = sum(requests.values()) + 1, 8
    found["shares"] = store.index.share_count
    before = sum(store.client.counters.requests.values())
    found["there_per_s"] = yield rate(reactor, lambda: server.get_buckets(somewhere()), lambda got: set(got) == {0})
    found["nowhere_per_s"] = yield rate(
        reactor, lambda: server.get_buckets(chosen.randbytes(16)), lambda got: got == {}
    )
    found["late_requests"] = sum(store.client.counters.requests.values()) - before
    found["rss_mb"], found["peak_mb"] = memory_mb("VmRSS"), memory_mb("VmHWM")
    stopped_s = time.perf_counter()
    yield server.stopService()
    found["stop_s"] = time.perf_counter() - stopped_s
    found["index_mb"] = (Path(folder) / INDEX).stat().st_size / MB
    print(json.dumps(found))


def make_files(folder: Path, keys: int, seconds: float) -> int:
    """Share files of the storage indexes, all over the key space; how many there are when the time is up."""
    data = struct.pack(">LLL", 2, 100, 1) + bytes(100) + struct.pack(">L32s32sL", 1, b"r" * 32, b"c" * 32, 2**31)
    ended_s, made = time.perf_counter() + seconds, 0
    while made < keys and time.perf_counter() < ended_s:
        place = folder / "shares" / slot_prefix(storage_index(made * 7919 % keys, keys))[len("shares/") :]
        place.mkdir(parents=True)
        (place / "0").write_bytes(data)
        made += 1
    return made


@inlineCallbacks
def disk(reactor: Any, folder: str, keys: str, seconds: str) -> Generator[Deferred[Any], Any, None]:
    count, chosen = int(keys), random.Random(1)
    found: dict[str, Any] = {"before_mb": memory_mb("VmRSS")}
    made = found["shares"] = make_files(Path(folder), count, float(seconds))
    began_s = time.perf_counter()
    server = StorageServer(folder, NODE_ID)
    server.startService()
    found["serves_s"] = time.perf_counter() - began_s

    def somewhere() -> bytes:
        return storage_index(chosen.randrange(made) * 7919 % count, count)

    found["there_per_s"] = yield rate(reactor, lambda: server.get_buckets(somewhere()), lambda got: set(got) == {0})
    found["nowhere_per_s"] = yield rate(
        reactor, lambda: server.get_buckets(chosen.randbytes(16)), lambda got: got == {}
    )
    found["rss_mb"], found["peak_mb"] = memory_mb("VmRSS"), memory_mb("VmHWM")
    yield maybeDeferred(server.stopService)
    print(json.dumps(found))


if __name__ == "__main__":
    react({"s3": s3, "disk": disk}[sys.argv[1]], sys.argv[2:])
