# SPDX-License-Identifier: GPL-2.0-or-later
"""One contender's many transfers at once, in a process of its own, which then tells how large it has been.

    python -m contest.memory_child WHO WHAT URL CA_FILE FOLDER PARTS

PARTS: how many parts of one file are under way at once, where one can say so; ours has its own number.

Prints one line of JSON: "baseline" (resident bytes after the first small request), "peak" (the most since then),
"moved" (bytes of bodies) and "seconds". The peak is the kernel's (VmHWM, set back through clear_refs).
"""
from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import react

from contest.load import BUCKET, THREADS, Load, Site

MIB = 1024 * 1024
TRANSFERS = THREADS
TRANSFER_BYTES = 100_000_000
WINDOW_BYTES = PART_BYTES = 8 * MIB
PIECE_BYTES = MIB
READERS = 500
READER_BYTES = 4 * MIB
"""What each reader reads of its share, front to back."""
BLOCK_BYTES = 64 * 1024
BUDGET_BYTES = 128 * MIB
"""The client's default."""
KEY = f"object-{TRANSFER_BYTES}"
CONTAINER_BYTES = 12 + 72
"""Header and one lease of an immutable share."""
ETAG, MODIFIED_S = "0123456789abcdef0123456789abcdef", 784_111_777
WARM = Load("GET", "small-4096", 4096, 1)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


class Measured:
    """From its making until tell()."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self._baseline = _status("VmRSS")
        self._begun_s = time.perf_counter()

    def tell(self, moved: int) -> None:
        print(json.dumps({"baseline": self._baseline, "peak": _status("VmHWM"), "moved": moved,
                          "seconds": time.perf_counter() - self._begun_s}))


def sparse_file(folder: Path) -> Path:
    """What every upload sends: a hole, so that no disk decides the pace."""
    path = folder / "upload"
    with path.open("wb") as file:
        file.truncate(TRANSFER_BYTES)
    return path


# ours


@inlineCallbacks
def _download(client: Any) -> Generator[Deferred[Any], Any, None]:
    """One object, window after window, read in pieces and dropped."""
    for offset in range(0, TRANSFER_BYTES, WINDOW_BYTES):
        length = min(WINDOW_BYTES, TRANSFER_BYTES - offset)
        window = client.get_window(KEY, offset=offset, length=length)
        yield window.when_done()
        for start in range(0, length, PIECE_BYTES):
            window.read(start, min(PIECE_BYTES, length - start))
        window.close()


@inlineCallbacks
def _read_share(reader: Any) -> Generator[Deferred[Any], Any, None]:
    """As a Tahoe client does: the beginning, something of the hash trees at the end, then block after block."""
    yield reader.read(0, 1024)
    yield reader.read(TRANSFER_BYTES - CONTAINER_BYTES - 5000, 600)
    for offset in range(0, READER_BYTES, BLOCK_BYTES):
        came = len((yield reader.read(offset, BLOCK_BYTES)))  # kept by nobody, as when it is sent on
        if came != BLOCK_BYTES:
            raise ValueError(f"{came} bytes came")


def _readers(reactor: Any, client: Any, folder: Path) -> tuple[Any, list[Any]]:
    """A store whose index knows a share for each reader, and the readers."""
    from tahoe_s3.store.index import IMMUTABLE, Index, ShareRow
    from tahoe_s3.store.reader import ShareReader
    from tahoe_s3.store.store import Store

    index = Index(folder / "index.sqlite", identity="benchmark")
    store = Store(reactor=reactor, client=client, index=index, local_dir=folder, part_size_bytes=PART_BYTES)
    readers = []
    for number in range(READERS):
        storage_index = number.to_bytes(16, "big")
        index.put_share(storage_index, ShareRow(0, TRANSFER_BYTES, ETAG, True, MODIFIED_S, IMMUTABLE,
                                                TRANSFER_BYTES - CONTAINER_BYTES, ()))
        readers.append(ShareReader(store, storage_index, 0, on_read=lambda seconds: None,
                                   advise=lambda reason: store.slots.settle(b"")))
    return store, readers


@inlineCallbacks
def ours(reactor: Any, what: str, site: Site, folder: Path) -> Generator[Deferred[Any], Any, None]:
    from contest.ours import make_client
    from tahoe_s3.store.objects import put_file

    client = make_client(reactor, site, budget_bytes=BUDGET_BYTES)
    yield client.get(WARM.key)
    moved = TRANSFERS * TRANSFER_BYTES
    if what == "readers":
        store, readers = _readers(reactor, client, folder)
        measured, moved = Measured(), READERS * READER_BYTES
        yield gatherResults([_read_share(reader) for reader in readers], consumeErrors=True)
        measured.tell(moved)
        store.reads.close()
    elif what == "get":
        measured = Measured()
        yield gatherResults([_download(client) for _ in range(TRANSFERS)], consumeErrors=True)
        measured.tell(moved)
    else:
        path, measured = sparse_file(folder), Measured()
        yield gatherResults(
            [put_file(client, f"{number}-{TRANSFER_BYTES}", path, part_size_bytes=PART_BYTES)
             for number in range(TRANSFERS)], consumeErrors=True)
        measured.tell(moved)
    yield client.close()


# the others


def _in_threads(one: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(one, range(TRANSFERS)))


def boto3(what: str, site: Site, folder: Path, parts_at_once: int) -> None:
    """64 threads: streamed reads of 8 MiB; upload_file with parts of 8 MiB."""
    from boto3.s3.transfer import TransferConfig

    from contest.others import Boto3

    contender = Boto3(site)
    contender.one(WARM, 0, b"")
    client, path = contender._client, sparse_file(folder)
    config = TransferConfig(multipart_chunksize=PART_BYTES, max_concurrency=parts_at_once)

    def get(_: int) -> None:
        for _chunk in client.get_object(Bucket=BUCKET, Key=KEY)["Body"].iter_chunks(WINDOW_BYTES):
            pass

    def put(number: int) -> None:
        client.upload_file(str(path), BUCKET, f"{number}-{TRANSFER_BYTES}", Config=config)

    measured = Measured()
    _in_threads(get if what == "get" else put)
    measured.tell(TRANSFERS * TRANSFER_BYTES)


def obstore(what: str, site: Site, folder: Path, parts_at_once: int) -> None:
    """Coroutines: streams in pieces of 8 MiB; put of a path with parts of 8 MiB."""
    from contest.others import Obstore

    contender = Obstore(site)
    contender.run(WARM, 1)
    store, api, path = contender._store, contender._api, sparse_file(folder)

    async def get(_: int) -> None:
        answer = await api.get_async(store, KEY)
        async for _chunk in answer.stream(min_chunk_size=WINDOW_BYTES):
            pass

    async def put(number: int) -> None:
        await api.put_async(store, f"{number}-{TRANSFER_BYTES}", path, use_multipart=True, chunk_size=PART_BYTES,
                            max_concurrency=parts_at_once)

    async def everything() -> None:
        one = get if what == "get" else put
        await asyncio.gather(*(one(number) for number in range(TRANSFERS)))

    measured = Measured()
    asyncio.run(everything())
    measured.tell(TRANSFERS * TRANSFER_BYTES)


def main() -> None:
    who, what, url, ca_file, folder, parts_at_once = sys.argv[1:7]
    site = Site(url, ca_file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if who == "ours":
        react(ours, (what, site, Path(folder)))
    else:
        {"boto3": boto3, "obstore": obstore}[who](what, site, Path(folder), int(parts_at_once))
    sys.stdout.flush()
    os._exit(0)  # what others leave running must not hold this up


if __name__ == "__main__":
    main()
