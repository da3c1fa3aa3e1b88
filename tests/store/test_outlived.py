# SPDX-License-Identifier: GPL-2.0-or-later
"""An index that a clean stop has left, and that the bucket has gone on without: the node's folder came back from a
backup, or a copy of the folder has served the bucket meanwhile. Nothing that was acknowledged then is overwritten.

The listing is held up after its first page, as that of a large bucket is, so that nothing but the index answers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tahoe_s3.client import Unavailable
from tahoe_s3.store import reconcile
from tahoe_s3.store.index import Index
from tahoe_s3.store.keys import OWNER_KEY, lease_key
from tahoe_s3.store.leases import overlay_from_json

from .helpers import NODEID, SI, WRITE_ENABLER, now
from .listed import si_of
from .nodes import Bucket, Node
from .servers import CANCEL, RENEW, open_files

OTHER = si_of(3)
OLD, NEW = b"the old version", b"the new version"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(reconcile, "START_KEYS", 1)
    made = Bucket(tmp_path)
    yield made
    made.close()
    assert open_files(tmp_path) == []


def stopped(node: Node) -> None:
    now(node.server.stopService())


def listed_slowly(bucket: Bucket) -> None:
    """From here on a start sees one key before it serves, and no more before the clock goes on."""
    bucket.client.page_keys = 1


def slot(node: Node) -> bytes:
    data: bytes = now(node.server.slot_readv(SI, [0], [(0, 100)]))[0][0]
    return data


def write_where(node: Node, expected: bytes, data: bytes) -> bool:
    """A read-test-write; whether it found what was expected."""
    vectors = {0: ([(0, len(expected), b"eq", expected)], [(0, data)], len(data))}
    secrets = (WRITE_ENABLER, RENEW, CANCEL)
    wrote: bool = now(node.server.slot_testv_and_readv_and_writev(SI, secrets, vectors, []))[0]
    return wrote


def leases(bucket: Bucket) -> int:
    return len(overlay_from_json(bucket.client.objects[lease_key(OTHER)].data))


def outlived(bucket: Bucket, how: str) -> None:
    """The folder "node" is as it was at a clean stop, after which the bucket has got a new version and two leases."""
    first = bucket.start()
    now(first.write_slot(OLD))
    first.upload(b"x" * 50, si=OTHER)
    stopped(first)
    folder, copy = bucket.folder / "node", bucket.folder / "copy"
    shutil.copytree(folder, copy)
    second = bucket.start("copy" if how == "a copy" else "node")
    assert second.store.index.was_kept and second.store.index.knows_absences
    assert write_where(second, OLD, NEW)
    for number in (1, 2):
        assert now(second.server.add_lease(OTHER, b"%032d" % number, CANCEL)) is None
    stopped(second)
    if how == "a backup":
        shutil.rmtree(folder)
        copy.rename(folder)


@pytest.mark.parametrize("how", ["a copy", "a backup"])
def test_nothing_that_it_has_missed_is_overwritten(bucket: Bucket, how: str) -> None:
    outlived(bucket, how)
    listed_slowly(bucket)
    third = bucket.start()
    assert not third.store.rebuild.is_complete
    assert slot(third) == NEW
    assert not write_where(third, OLD, b"built on what is gone")
    assert now(third.server.add_lease(OTHER, b"%032d" % 3, CANCEL)) is None
    assert slot(third) == NEW and leases(bucket) == 3
    assert not third.store.index.was_kept


def test_a_node_whose_mark_was_deleted_while_it_was_stopped(bucket: Bucket) -> None:
    """Whoever did that may have had the bucket."""
    stopped(bucket.start())
    del bucket.client.objects[OWNER_KEY]
    assert not bucket.start().store.index.was_kept


def test_a_start_that_is_tried_again_keeps_it(bucket: Bucket) -> None:
    """The mark is this start's own then."""
    first = bucket.start()
    now(first.write_slot(OLD))
    stopped(first)
    again = Node(bucket, "node", NODEID)
    again.client.fail("ListMultipartUploads", Unavailable)
    again.client.fail("ListObjectsV2", Unavailable, times=2)
    again.open(has_run_before=True)
    assert again.store.problem is not None
    bucket.clock.advance(60)
    bucket.clock.advance(60)
    assert again.store.problem is None
    assert again.store.index.was_kept and slot(again) == OLD
    stopped(again)
    assert bucket.start().store.index.was_kept


def test_an_index_that_was_made_anew_while_the_node_ran_is_kept(bucket: Bucket) -> None:
    first = bucket.start()
    now(first.write_slot(OLD))
    assert first.store.mend_index is not None
    first.store.mend_index("a test")
    bucket.clock.advance(1)
    assert first.store.rebuild.is_complete and first.store.problem is None
    stopped(first)
    assert bucket.start().store.index.was_kept


def test_an_index_that_does_not_say_whose_start_it_was_kept_by(bucket: Bucket) -> None:
    """One of an earlier version of tahoe-s3."""
    first = bucket.start()
    identity = first.store.index._meta("identity")
    assert identity is not None
    stopped(first)
    index = Index(bucket.folder / "node" / "index.sqlite", identity=identity)
    assert index.was_kept
    index.remember("instance", "")
    index.close()
    assert not bucket.start().store.index.was_kept
