# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole local files into the bucket: one PUT, or a multipart upload where the file is larger than a part. And large
objects out of it, in pieces.

Limits are S3's (User Guide, "Amazon S3 multipart upload limits"): 10,000 parts, an object of 5 TiB, parts of equal
size but for the last (Cloudflare R2 insists on that).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import Changed, FileRegion, GetResult, NoSuchUpload, ObjectInfo, S3Client, S3Error
from tahoe_s3.store.points import reach
from tahoe_s3.store.versions import all_of

MAX_PARTS = 10_000
MAX_OBJECT_BYTES = 5 * 1024**4
MIB = 1024 * 1024
#: Of a large object that is fetched whole, in one request.
PIECE_BYTES = 8 * MIB
#: Parts of one file, or of one share, under way at once; each is held in memory by the engine while it is sent. Eight
#: of the default size would fill what bodies may have of its default budget, and a small share would wait until one
#: was sent. With six, two cores wait for each other at hashing and sending, an eighth of the time. To a service far
#: away, where one connection carries a few megabytes a second, an upload is as quick as so many of them.
PARTS_AT_ONCE = 7

_log = Logger()


def part_size_for(object_size_bytes: int, part_size_bytes: int) -> int:
    """The size of all parts but the last: the configured one, or more (whole MiB) where 10,000 would not do."""
    if object_size_bytes <= part_size_bytes * MAX_PARTS:
        return part_size_bytes
    least = -(-object_size_bytes // MAX_PARTS)
    return -(-least // MIB) * MIB


def abort_quietly(client: S3Client, key: str, upload_id: str) -> Deferred[bool]:
    """Remove an upload that failed; fires with whether the bucket said so. What this leaves behind, the next start
    removes."""

    def failed(failure: object) -> bool:
        _log.warn("could not abort an upload of {key}, the next start will: {failure}", key=key, failure=str(failure))
        return False

    removing = client.abort_multipart(key, upload_id, priority=2)
    return removing.addCallbacks(lambda _: True, lambda failure: failed(failure.value))


@inlineCallbacks
def get_pieces(
    client: S3Client, key: str, *, size: int, etag: str | None, take: Callable[[bytes], object],
    piece_bytes: int = PIECE_BYTES,
) -> Generator[Deferred[Any], Any, str | None]:
    """Give a whole object to `take`, piece by piece, all of one version: of that ETag, or the first piece's where it is
    None. Fires with it. Fails with Changed where the object has another size, with S3Error, or with what `take` raises.
    """
    for offset in range(0, size, piece_bytes):
        length = min(piece_bytes, size - offset)
        got: GetResult = yield client.get(key, offset=offset, length=length, expect_etag=etag)
        if got.size != size or len(got.data) != length:
            raise another_version(key, f"{got.size} bytes, not {size}")
        if offset == 0:
            etag = got.etag
        take(got.data)
    return etag


def another_version(key: str, message: str) -> Changed:
    return Changed(message, operation="GetObject", method="GET", key=key, kind="changed")


def put_file(
    client: S3Client, key: str, path: Path, *, part_size_bytes: int
) -> Deferred[ObjectInfo]:
    """Store the file under `key`. It must not change until the Deferred fires, which fails with an S3Error."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
    except OSError:
        os.close(fd)
        raise
    if size <= part_size_bytes:
        done = client.put(key, FileRegion(fd, 0, size))
    else:
        done = _put_parts(client, key, fd, size=size, part_size=part_size_for(size, part_size_bytes))

    def close(result: object) -> object:
        os.close(fd)
        return result

    done.addBoth(close)
    return done


@inlineCallbacks
def _put_parts(
    client: S3Client, key: str, fd: int, *, size: int, part_size: int
) -> Generator[Deferred[Any], Any, ObjectInfo]:
    upload_id: str = yield client.create_multipart(key)
    reach("file.created")
    try:
        parts = yield _send_parts(client, key, fd, upload_id=upload_id, size=size, part_size=part_size)
        reach("file.before-complete")
        info: ObjectInfo = yield client.complete_multipart(key, upload_id, parts, expect_size=size)
    except S3Error as error:
        if error.outcome == "not_applied" and not isinstance(error, NoSuchUpload):
            reach("file.aborting")
            abort_quietly(client, key, upload_id)
        raise
    return info


@inlineCallbacks
def _send_parts(
    client: S3Client, key: str, fd: int, *, upload_id: str, size: int, part_size: int
) -> Generator[Deferred[Any], Any, list[tuple[int, str]]]:
    """Numbers and ETags of all parts. PARTS_AT_ONCE are under way, so that memory stays bounded whatever the file's
    size. Where one fails no other is begun, and this fails when all have ended: one that arrived behind the abort of
    its upload might be kept for ever."""
    todo = deque(range(-(-size // part_size)))
    etags: dict[int, str] = {}

    @inlineCallbacks
    def one_after_the_other() -> Generator[Deferred[Any], Any, None]:
        while todo:
            index = todo.popleft()
            start = index * part_size
            region = FileRegion(fd, start, min(part_size, size - start))
            etags[index + 1] = yield client.upload_part(key, upload_id, index + 1, region)
            reach("file.part-arrived")

    def give_up(failure: Failure) -> Failure:
        todo.clear()
        if isinstance(failure.value, S3Error):
            # A part's fate says nothing of the object, which only Complete makes.
            failure.value.outcome = "not_applied"
        return failure

    yield all_of([one_after_the_other().addErrback(give_up) for _ in range(PARTS_AT_ONCE)])
    return sorted(etags.items())
