# SPDX-License-Identifier: GPL-2.0-or-later
"""The owner's mark: who may use a bucket, and what is not taken for a mark."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, S3Error, Unavailable
from tahoe_s3.store.ownership import (
    LAYOUT_VERSION,
    OwnerMark,
    claim,
    confirm,
    disclaim,
    parse_mark,
    read_mark,
    refuse_other,
)

from .helpers import error_of, now
from .memory_client import MemoryClient

OURS = OwnerMark("ournodeid", "instance1", 1_700_000_000)
THEIRS = OwnerMark("othernode", "instance2", 1_600_000_000)


def read(client: MemoryClient) -> Any:
    return read_mark(client.as_client(), bucket="bucket", prefix="p/")


def take(client: MemoryClient, mark: OwnerMark = OURS) -> Any:
    return claim(client.as_client(), mark, bucket="bucket", prefix="p/")


def test_a_mark_is_read_as_it_was_written() -> None:
    assert parse_mark(OURS.to_json(), bucket="b", key="k") == OURS
    assert OURS.since == "2023-11-14T22:13:20Z"


def test_an_empty_place_is_claimed() -> None:
    client = MemoryClient()
    assert now(take(client)) is None
    assert now(read(client)) == OURS
    assert client.requests == {"GetObject": 3, "PutObject": 1}, "one of these reads is this test's"


def test_a_later_start_of_the_same_node_supersedes_the_earlier() -> None:
    client = MemoryClient()
    now(take(client))
    later = OwnerMark(OURS.nodeid, "instance9", 1_700_000_999)
    assert now(take(client, later)) == OURS
    assert now(read(client)) == later


def test_another_nodes_place_is_refused_and_left_alone() -> None:
    client = MemoryClient()
    now(take(client, THEIRS))
    sentence = str(error_of(take(client)))
    assert "othernode" in sentence and "ournodeid" in sentence and THEIRS.since in sentence and "p/" in sentence
    assert now(read(client)) == THEIRS and client.requests["PutObject"] == 1


def test_of_two_that_start_at_once_one_gives_way() -> None:
    """Whatever the order of their writes, after both have written, one sees the other's mark."""
    client = MemoryClient()
    held = client.hold("PutObject")
    ours, theirs = take(client), take(client, THEIRS)
    held.release()
    assert now(ours) is None and now(theirs) is None
    sentence = error_of(confirm(client.as_client(), bucket="bucket", prefix="p/", nodeid=OURS.nodeid))
    assert isinstance(sentence, errors.OwnedByAnother)
    assert now(confirm(client.as_client(), bucket="bucket", prefix="p/", nodeid=THEIRS.nodeid)) == THEIRS


def test_a_mark_counts_before_its_writer_has_its_answer() -> None:
    client = MemoryClient()
    held = client.hold("PutObject", apply_first=True)
    ours, theirs = take(client), take(client, THEIRS)
    assert isinstance(error_of(theirs), errors.OwnedByAnother)
    held.release()
    assert now(ours) is None


@pytest.mark.parametrize("operation", ["GetObject", "PutObject"])
def test_an_error_is_not_an_unowned_place(operation: str) -> None:
    for error in (Unavailable, AccessDenied):
        client = MemoryClient()
        now(take(client, THEIRS))
        client.fail("GetObject", error)
        assert isinstance(error_of(take(client)), error)
        assert now(read(client)) == THEIRS


def damaged(**changes: Any) -> bytes:
    return json.dumps({**json.loads(OURS.to_json()), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"null", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 10_000, b"x" * 100_000, damaged(nodeid=""),
     damaged(nodeid=3), damaged(instance=None), damaged(since="yesterday"), damaged(since=True), damaged(since=-1),
     damaged(since=10**30), damaged(version=0), damaged(version="1"), damaged(version=None)],
)  # fmt: skip
def test_what_is_no_mark_is_left_alone(data: bytes) -> None:
    client = MemoryClient()
    client.store("owner.json", data)
    error = error_of(take(client))
    assert isinstance(error, errors.BadOwnerMark) and "p/owner.json" in str(error)
    assert client.objects["owner.json"].data == data


def test_an_empty_object_is_no_mark_even_where_ranges_of_it_are_refused() -> None:
    client = MemoryClient()
    client.store("owner.json", b"")

    class InvalidRange(S3Error):
        def __init__(self, message: str, **details: Any) -> None:
            super().__init__(message, **{**details, "status": 416, "code": "InvalidRange"})

    client.fail("GetObject", InvalidRange)
    assert isinstance(error_of(take(client)), errors.BadOwnerMark)


def test_a_newer_layout_says_what_to_do() -> None:
    client = MemoryClient()
    client.store("owner.json", damaged(version=LAYOUT_VERSION + 1, nodeid={"shape": "unknown"}))
    error = error_of(take(client))
    assert isinstance(error, errors.NewerLayout) and "install a newer tahoe-s3" in str(error)


def test_only_ones_own_mark_is_taken_away() -> None:
    client = MemoryClient()
    now(take(client))
    now(disclaim(client.as_client(), OwnerMark(OURS.nodeid, "another start", 5), bucket="b", prefix=""))
    assert now(read(client)) == OURS
    now(disclaim(client.as_client(), OURS, bucket="b", prefix=""))
    assert now(read(client)) is None


def test_refusal_is_by_node() -> None:
    refuse_other(None, bucket="b", prefix="", nodeid="me")
    refuse_other(OURS, bucket="b", prefix="", nodeid=OURS.nodeid)
    with pytest.raises(errors.OwnedByAnother):
        refuse_other(OURS, bucket="b", prefix="", nodeid="me")
