# SPDX-License-Identifier: GPL-2.0-or-later
"""Ours gives the disk backend's answers and keeps its bytes, whatever is asked of both; and this test would see it if
not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred

from tahoe_s3.store import mutable, upload
from tahoe_s3.store.keys import ShareId, lease_key, share_key
from tahoe_s3.store.overlay import Overlays

from ..store.helpers import immutable_object, mutable_object, pattern
from . import differences
from .buckets import InMemory
from .machine import IMMUTABLE_SIS, MIXED_SI, MUTABLE_SIS, Oracle, OverEngine, OverFoolscap, OverHTTP
from .pair import Pair
from .profile import is_long, run_machine, scaled
from .waiting import in_greenlet

pytestmark = pytest.mark.timeout(0 if is_long() else 300)


@pytest.mark.parametrize("machine, examples", [(Oracle, 100), (OverFoolscap, 25), (OverHTTP, 20)])
def test_same_answers_same_bytes(machine: Any, examples: int) -> None:
    run_machine(machine, examples=scaled(examples))
    if is_long():
        print("\n".join(f"  {differences.met[name]:7} times: {name}" for name in differences.INTENDED))


@ensureDeferred
async def test_same_through_the_engine() -> None:
    await in_greenlet(lambda: run_machine(OverEngine, examples=scaled(20)))


def test_two_reasons_to_refuse(tmp_path: Path) -> None:
    """Too rare for chance: a slot of both kinds, and the wrong write enabler."""
    before = differences.met["which of two errors"]
    for number in range(8):
        # The order of a folder is the file system's.
        pair = Pair(tmp_path / str(number), InMemory())
        pair.put_both(ShareId(MIXED_SI, number), immutable_object(b"data"))
        pair.put_both(ShareId(MIXED_SI, 7 - number), mutable_object(b"data"))
        pair.begin()
        pair.read_test_write(MIXED_SI, 0, False, {1: ([], [(0, b"more")], None)}, [], True)
        pair.compare_all()
        pair.end()
    assert differences.met["which of two errors"] > before


# The oracle sees what it is for.


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Both servers, with a share of either kind and a lease that came later."""
    pair = Pair(tmp_path, InMemory())
    pair.begin()
    pair.allocate(IMMUTABLE_SIS[0], 0, [0, 1], 1500, True)
    for one in list(pair.uploads):
        pair.fill(one, backwards=False)
        pair.close(one)
    pair.read_test_write(MUTABLE_SIS[0], 0, True, {0: ([], [(0, pattern(800))], None)}, [], True)
    pair.add_lease(IMMUTABLE_SIS[0], 1)
    pair.compare_all()
    yield pair
    pair.end()


@pytest.mark.parametrize("share", [ShareId(IMMUTABLE_SIS[0], 1), ShareId(MUTABLE_SIS[0], 0)])
def test_one_byte_is_seen(pair: Pair, share: ShareId) -> None:
    data = bytearray(pair.bucket.objects[share_key(*share)])
    data[600] ^= 1
    pair.bucket.put(share_key(*share), bytes(data))
    with pytest.raises(AssertionError, match="other bytes"):
        pair.compare_all()


def test_a_lost_lease_is_seen(pair: Pair) -> None:
    pair.bucket.put(lease_key(IMMUTABLE_SIS[0]), b'{"version": 1, "leases": []}')
    with pytest.raises(AssertionError, match="other leases"):
        pair.compare_all()


def test_a_share_too_many_is_seen(pair: Pair) -> None:
    pair.bucket.put(share_key(MUTABLE_SIS[1], 5), b"anything")
    with pytest.raises(AssertionError, match=r"shares \[5\] in the bucket, \[\] on the disk"):
        pair.compare_all()


def _forgetful(self: Any, storage_index: bytes, lease: Any) -> Any:
    """An Overlays.add that answers without having written."""
    return self._slots.run(storage_index, lambda: self.read(storage_index)).addCallback(lambda _: None)


DEFECTS = {
    "a read that is one byte short": lambda patch: patch.setattr(
        mutable, "data_ranges", lambda at, size, readv: [(at + o, max(0, min(n, size - o) - 1)) for o, n in readv]
    ),
    "a lease that is answered and not kept": lambda patch: patch.setattr(Overlays, "add", _forgetful),
    "a part that leaves before it was written": lambda patch: patch.setattr(
        upload.ShareWriter, "_is_written", lambda *_: True
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    DEFECTS[defect](monkeypatch)
    with pytest.raises(AssertionError):
        run_machine(Oracle, examples=600, shrink=False)  # it ends with the first that finds it
