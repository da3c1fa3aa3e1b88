# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole files into the bucket: sizes around a part, parts that fail, and no file descriptor left open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3.client import NoSuchUpload, Throttled, Unavailable
from tahoe_s3.store.objects import MAX_OBJECT_BYTES, MAX_PARTS, MIB, PARTS_AT_ONCE, part_size_for, put_file

from .helpers import error_of, now, pattern, waits
from .memory_client import MemoryClient
from .servers import open_files

PART = 1000


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MemoryClient]:
    yield MemoryClient()
    assert open_files(tmp_path) == []


def put(client: MemoryClient, folder: Path, size: int) -> Any:
    path = folder / "file"
    path.write_bytes(pattern(size))
    return put_file(client.as_client(), "key", path, part_size_bytes=PART)


@given(st.integers(1, MAX_OBJECT_BYTES), st.integers(5 * MIB, 512 * MIB))
def test_every_object_fits_ten_thousand_parts(size: int, wanted: int) -> None:
    part = part_size_for(size, wanted)
    assert part >= wanted and part * MAX_PARTS >= size
    assert part == wanted or (part % MIB == 0 and (part - MIB) * MAX_PARTS < size)


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART])
def test_what_fits_a_part_is_one_put(client: MemoryClient, tmp_path: Path, size: int) -> None:
    info = now(put(client, tmp_path, size))
    assert (info.size, info.etag) == (size, client.objects["key"].etag)
    assert client.objects["key"].data == pattern(size) and client.requests == {"PutObject": 1}


@pytest.mark.parametrize("size", [PART + 1, 2 * PART, 2 * PART + 1, 9 * PART - 1])
def test_what_does_not_is_its_parts_and_two(client: MemoryClient, tmp_path: Path, size: int) -> None:
    info = now(put(client, tmp_path, size))
    assert info.size == size and client.objects["key"].data == pattern(size)
    parts = -(-size // PART)
    assert client.requests == {"CreateMultipartUpload": 1, "UploadPart": parts, "CompleteMultipartUpload": 1}
    assert not client.uploads


def test_only_so_many_parts_are_under_way(client: MemoryClient, tmp_path: Path) -> None:
    held = client.hold("UploadPart")
    putting = put(client, tmp_path, 10 * PART)
    assert len(held) == PARTS_AT_ONCE and waits(putting) and not client.objects
    held.release()
    assert now(putting).size == 10 * PART


def test_a_slow_part_holds_up_no_other(client: MemoryClient, tmp_path: Path) -> None:
    held = client.hold("UploadPart")
    putting = put(client, tmp_path, 3 * PARTS_AT_ONCE * PART)
    slow = held.calls.pop(0)
    while held.calls:
        held.release(1)
        assert len(held) <= PARTS_AT_ONCE - 1
    assert client.requests["UploadPart"] == 3 * PARTS_AT_ONCE and waits(putting)
    slow.go()
    assert now(putting).size == 3 * PARTS_AT_ONCE * PART
    assert client.objects["key"].data == pattern(3 * PARTS_AT_ONCE * PART)


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
def test_a_part_that_fails_ends_the_upload(client: MemoryClient, tmp_path: Path, outcome: str) -> None:
    client.fail("UploadPart", Throttled, outcome=outcome)
    error: Any = error_of(put(client, tmp_path, 3 * PART))
    assert isinstance(error, Throttled) and error.outcome == "not_applied", "the object is as it was"
    assert not client.objects and not client.uploads
    assert client.requests["CompleteMultipartUpload"] == 0


def test_all_parts_under_way_are_waited_for(client: MemoryClient, tmp_path: Path) -> None:
    """An upload that is aborted while its parts arrive may keep them for ever."""
    held = client.hold("UploadPart")
    putting = put(client, tmp_path, 3 * PART)
    held.fail(Unavailable)
    assert waits(putting) and client.requests["AbortMultipartUpload"] == 0
    held.release()
    assert isinstance(error_of(putting), Unavailable) and not client.uploads


def test_behind_a_part_that_failed_none_is_begun(client: MemoryClient, tmp_path: Path) -> None:
    held = client.hold("UploadPart")
    putting = put(client, tmp_path, 3 * PARTS_AT_ONCE * PART)
    held.release(1)
    held.fail(Throttled, outcome="unknown")
    held.release()
    error: Any = error_of(putting)
    assert isinstance(error, Throttled) and error.outcome == "not_applied"
    assert client.requests["UploadPart"] == PARTS_AT_ONCE + 1 and not client.objects and not client.uploads


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "CompleteMultipartUpload"])
@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
def test_failures_keep_their_outcome(client: MemoryClient, tmp_path: Path, operation: str, outcome: str) -> None:
    client.fail(operation, Unavailable, outcome=outcome)
    error: Any = error_of(put(client, tmp_path, PART if operation == "PutObject" else 3 * PART))
    assert isinstance(error, Unavailable) and error.outcome == outcome
    assert not client.objects
    if operation == "CompleteMultipartUpload":
        # While the answer may still be "done", the parts must stay.
        assert bool(client.uploads) == (outcome == "unknown")


def test_an_upload_that_is_gone_is_not_aborted(client: MemoryClient, tmp_path: Path) -> None:
    client.fail("CompleteMultipartUpload", NoSuchUpload)
    assert isinstance(error_of(put(client, tmp_path, 2 * PART)), NoSuchUpload)
    assert client.requests["AbortMultipartUpload"] == 0


def test_an_abort_that_fails_hides_nothing(client: MemoryClient, tmp_path: Path) -> None:
    client.fail("UploadPart", Throttled)
    client.fail("AbortMultipartUpload", Unavailable)
    assert isinstance(error_of(put(client, tmp_path, 2 * PART)), Throttled)


def test_cancelling_leaves_no_upload(client: MemoryClient, tmp_path: Path) -> None:
    held = client.hold("UploadPart")
    putting = put(client, tmp_path, 3 * PART)
    putting.cancel()
    held.release()
    error_of(putting)
    assert not client.objects and not client.uploads


def test_a_file_that_is_not_there_is_an_oserror(client: MemoryClient, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put_file(client.as_client(), "key", tmp_path / "none", part_size_bytes=PART)
