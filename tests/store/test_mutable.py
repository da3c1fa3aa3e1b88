# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutable slots: the request budget, what fails, what is unsure, with Tahoe's disk backend as the oracle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.interfaces import BadWriteEnablerError
from allmydata.storage.common import UnknownMutableContainerVersionError, storage_index_to_dir
from allmydata.storage.server import StorageServer
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tahoe_s3.client import Changed, NotFound, Unavailable
from tahoe_s3.store import mutable
from tahoe_s3.store.containers import DamagedContainerError
from tahoe_s3.store.index import MUTABLE, ShareRow
from tahoe_s3.store.keys import ShareId, lease_key, share_key
from tahoe_s3.store.leases import Lease
from tahoe_s3.store.mutable import SCRATCH
from tahoe_s3.store.readahead import SMALL_OBJECT_BYTES
from tahoe_s3.store.versions import NOT_FOUND_DELAYS_S

from .helpers import (
    MIB,
    NODEID,
    SI,
    WRITE_ENABLER,
    Place,
    error_of,
    immutable_object,
    lease,
    mutable_object,
    now,
    pattern,
    waits,
)

SECRETS = (WRITE_ENABLER, b"r" * 32, b"c" * 32)
CREATE = [(0, 1, b"eq", b"")]


class Slot:
    """Read-test-write on a Place, with Tahoe's own code as the server has it."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.tahoe = StorageServer(str(folder / "tahoe"), NODEID, clock=place.clock)

    def write(
        self, vectors: dict[int, Any], read: Any = (), *, secrets: tuple[bytes, bytes, bytes] = SECRETS, si: bytes = SI,
        renew: bool = True,
    ) -> Deferred[Any]:  # fmt: skip
        def execute(sharedir: str) -> Any:
            self.tahoe.sharedir = sharedir
            return self.tahoe.slot_testv_and_readv_and_writev(si, secrets, vectors, list(read), renew)

        return self.place.store.mutable.read_test_write(si, touched=set(vectors), execute=execute)

    def create(self, *shnums: int, data: bytes = b"data") -> None:
        assert now(self.write({shnum: (CREATE, [(0, data)], None) for shnum in shnums}))[0]

    def readv(self, shnums: Any = (), readv: Any = ((0, 1000),)) -> Any:
        return now(self.place.store.mutable.readv(SI, set(shnums), list(readv)))


def left_over(place: Place) -> list[Path]:
    """Files in the scratch folder."""
    return [path for path in place.store.incoming_dir.rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    assert left_over(made) == []
    made.store.reads.close()
    assert made.client.window_bytes == 0


@pytest.fixture
def slot(place: Place, tmp_path: Path) -> Slot:
    return Slot(place, tmp_path)


# the budget


def test_create_is_one_put_a_share_and_reading_it_nothing(place: Place, slot: Slot) -> None:
    slot.create(0, 1, 2)
    assert place.client.requests == {"PutObject": 3}
    assert slot.readv() == {0: [b"data"], 1: [b"data"], 2: [b"data"]}
    assert now(place.store.mutable.length(SI, 1)) == 4
    assert place.client.requests == {"PutObject": 3}


def test_overwriting_is_one_put_and_one_get_for_each_share_not_cached(place: Place, slot: Slot) -> None:
    slot.create(0, 1, 2)
    place.client.forget_requests()
    assert now(slot.write({1: ([], [(0, b"more")], None)}))[0]
    assert place.client.requests == {"PutObject": 1}
    place.store.cache.clear()
    place.client.forget_requests()
    assert now(slot.write({1: ([], [(0, b"even")], None)}))[0]
    assert place.client.requests == {"GetObject": 3, "PutObject": 1}
    assert slot.readv() == {0: [b"data"], 1: [b"even"], 2: [b"data"]}
    assert place.client.requests == {"GetObject": 3, "PutObject": 1}


def test_reading_is_one_get_then_nothing(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    place.store.cache.clear()
    place.client.forget_requests()
    held = place.client.hold("GetObject")
    reads = [place.store.mutable.readv(SI, {0}, [(0, 2)]) for _ in range(5)]
    held.release()
    assert [now(read) for read in reads] == [{0: [b"da"]}] * 5
    assert slot.readv({0}, [(0, 1), (2, 100), (4, 1)]) == {0: [b"d", b"ta", b""]}
    assert place.client.requests == {"GetObject": 1}


def test_a_failed_test_vector_writes_nothing(place: Place, slot: Slot) -> None:
    slot.create(0)
    place.client.forget_requests()
    answer = now(slot.write({0: ([(0, 4, b"eq", b"nope")], [(0, b"more")], None)}, [(1, 2)]))
    assert answer == (False, {0: [b"at"]})
    assert place.client.requests == {}


def test_a_share_beyond_a_mebibyte_is_read_in_ranges(place: Place, slot: Slot) -> None:
    data = pattern(5 * MIB)
    slot.create(0, data=data)
    place.store.cache.clear()
    place.client.forget_requests()
    assert slot.readv({0}, [(0, 100), (4 * MIB, 100), (5 * MIB - 10, 100)]) == {
        0: [data[:100], data[4 * MIB : 4 * MIB + 100], data[-10:]]
    }
    assert now(place.store.mutable.length(SI, 0)) == len(data)
    assert sum(length for _, _, length in place.client.ranges) < 2 * MIB


def test_a_large_share_front_to_back_in_small_pieces(place: Place, slot: Slot) -> None:
    """As an HTTP client reads it: for every 64 KiB the length and a read."""
    data = pattern(6 * MIB)
    slot.create(0, data=data)
    place.store.cache.clear()
    place.index.put_share(SI, ShareRow(0, place.row().size, place.row().etag, False, 0))
    place.client.forget_requests()
    for offset in range(0, len(data), 65536):
        assert now(place.store.mutable.length(SI, 0)) == len(data)
        assert slot.readv({0}, [(offset, 65536)]) == {0: [data[offset : offset + 65536]]}
    assert place.client.requests == {"GetObject": 5}, "256 KiB, 512 KiB, 1, 2 and the remaining 2.25 MiB"


def test_a_share_beyond_a_part_is_put_and_fetched_in_parts(tmp_path: Path) -> None:
    place = Place(tmp_path, part_bytes=5 * MIB)
    slot = Slot(place, tmp_path)
    data = pattern(12 * MIB)
    slot.create(0, data=data)
    assert place.client.requests == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
    place.store.cache.clear()
    place.client.forget_requests()
    assert now(slot.write({0: ([(0, 4, b"eq", data[:4])], [(3, b"changed")], None)}))[0]
    assert place.client.requests["GetObject"] == 2
    assert slot.readv({0}, [(0, 2**40)]) == {0: [data[:3] + b"changed" + data[10:]]}


def test_deleting_a_slot_removes_its_lease_object(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    now(place.store.overlay.add(SI, Lease.from_tahoe(lease())))
    place.client.forget_requests()
    assert now(slot.write({0: ([], [], 0)}))[0]
    assert place.client.requests == {"DeleteObject": 1}
    assert slot.readv() == {1: [b"data"]}
    assert now(slot.write({1: ([], [], 0), 7: ([], [], 0)}))[0]
    assert place.client.objects == {} and place.index.overlay(SI) is None
    assert slot.readv() == {} and place.index.share_count == 0
    assert isinstance(error_of(place.store.mutable.length(SI, 1)), KeyError)


def test_what_the_index_learns(place: Place, slot: Slot) -> None:
    slot.create(0, data=b"12345")
    row = place.row()
    assert (row.kind, row.data_length, row.size, row.etag_is_sure) == (MUTABLE, 5, len(place.object()), True)
    assert row.leases is not None and len(row.leases) == 1
    place.index.put_share(SI, ShareRow(0, row.size, row.etag, False, row.modified_s))
    place.store.cache.clear()
    slot.readv()
    assert place.row() == row


# one version, one writer


def test_reads_see_the_old_share_until_the_bucket_has_the_new_one(place: Place, slot: Slot) -> None:
    slot.create(0)
    held = place.client.hold("PutObject")
    writing = slot.write({0: ([], [(0, b"more")], None)})
    assert waits(writing) and slot.readv() == {0: [b"data"]}
    held.release()
    assert now(writing)[0] and slot.readv() == {0: [b"more"]}


def test_a_reader_that_meets_a_write_under_way_waits_for_its_outcome(place: Place, slot: Slot) -> None:
    slot.create(0)
    held = place.client.hold("PutObject", apply_first=True)
    writing = slot.write({0: ([], [(0, b"more")], None)})
    place.store.cache.clear()
    reading = place.store.mutable.readv(SI, set(), [(0, 10)])
    assert waits(writing) and waits(reading), "the bucket has it, but nobody was told so yet"
    held.release()
    assert now(writing)[0] and now(reading) == {0: [b"more"]}


def test_writes_of_one_slot_wait_for_each_other(place: Place, slot: Slot) -> None:
    slot.create(0)
    held = place.client.hold("PutObject")
    first = slot.write({0: ([(0, 4, b"eq", b"data")], [(0, b"one!")], None)})
    second = slot.write({0: ([(0, 4, b"eq", b"data")], [(0, b"two!")], None)})
    assert waits(first) and waits(second) and len(held) == 1
    held.release()
    assert now(first)[0] is True and now(second)[0] is False
    assert slot.readv() == {0: [b"one!"]}


def test_a_client_that_hangs_up_does_not_stop_a_write(place: Place, slot: Slot) -> None:
    slot.create(0)
    held = place.client.hold("PutObject")
    writing = slot.write({0: ([], [(0, b"more")], None)})
    writing.cancel()
    error_of(writing)
    held.release()
    assert slot.readv() == {0: [b"more"]} and b"more" in place.object()


def test_a_large_share_overwritten_while_it_is_read_is_one_version(place: Place, slot: Slot) -> None:
    old, new = pattern(3 * MIB, seed=1), pattern(3 * MIB, seed=2)
    slot.create(0, data=old)
    place.store.cache.clear()
    held = place.client.hold("GetObject")
    reading = place.store.mutable.readv(SI, {0}, [(0, 100), (2 * MIB, 100)])
    held.release(1)
    assert waits(reading)
    place.client.holds.remove(held)
    assert now(slot.write({0: ([], [(0, new)], None)}))[0]
    for call in list(held.calls):
        call.go()
    assert now(reading) == {0: [new[:100], new[2 * MIB : 2 * MIB + 100]]}


def test_an_object_that_somebody_replaced(place: Place, slot: Slot) -> None:
    slot.create(0)
    place.store.cache.clear()
    place.client.store(share_key(SI, 0), mutable_object(b"theirs"))
    assert slot.readv() == {0: [b"theirs"]}
    place.store.cache.clear()
    place.client.store(share_key(SI, 0), mutable_object(b"theirs again"))
    answer = now(slot.write({0: ([], [(0, b"OURS")], None)}, [(0, 100)]))
    assert answer == (True, {0: [b"theirs again"]})
    assert slot.readv() == {0: [b"OURSrs again"]}


# failures


def test_a_wrong_write_enabler_writes_nothing(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    before = dict(place.client.objects)
    failed = slot.write({2: ([], [(0, b"x")], None)}, secrets=(b"X" * 32, b"r" * 32, b"c" * 32))
    assert isinstance(error_of(failed), BadWriteEnablerError)
    assert place.client.objects == before and set(slot.readv()) == {0, 1}


def test_a_put_that_was_not_applied(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    place.client.fail("PutObject", Unavailable, key=share_key(SI, 1))
    failed = slot.write({0: ([], [(0, b"more")], None), 1: ([], [(0, b"more")], None), 2: ([], [(0, b"new")], None)})
    assert isinstance(error_of(failed), Unavailable)
    place.client.forget_requests()
    assert slot.readv() == {0: [b"more"], 1: [b"data"], 2: [b"new"]}
    assert place.client.requests["HeadObject"] == 0


@pytest.mark.parametrize("applied", [True, False])
def test_a_put_that_nobody_knows_the_outcome_of(place: Place, slot: Slot, applied: bool) -> None:
    slot.create(0, 1)
    place.client.fail("PutObject", Unavailable, key=share_key(SI, 1), outcome="unknown", applied=applied)
    assert isinstance(error_of(slot.write({1: ([], [(0, b"more")], None)})), Unavailable)
    place.client.fail("HeadObject", Unavailable)
    assert isinstance(error_of(place.store.mutable.readv(SI, set(), [(0, 9)])), Unavailable), "not settled: no answer"
    assert slot.readv() == {0: [b"data"], 1: [b"more" if applied else b"data"]}
    assert now(slot.write({1: ([(0, 4, b"eq", b"more")], [(0, b"next")], None)}))[0] is applied


@pytest.mark.parametrize("applied", [True, False])
def test_a_create_that_nobody_knows_the_outcome_of(place: Place, slot: Slot, applied: bool) -> None:
    place.client.fail("PutObject", Unavailable, outcome="unknown", applied=applied)
    assert isinstance(error_of(slot.write({0: (CREATE, [(0, b"data")], None)})), Unavailable)
    assert slot.readv() == ({0: [b"data"]} if applied else {})


@pytest.mark.parametrize("applied", [True, False])
def test_a_delete_that_nobody_knows_the_outcome_of(place: Place, slot: Slot, applied: bool) -> None:
    slot.create(0)
    place.client.fail("DeleteObject", Unavailable, outcome="unknown", applied=applied)
    assert isinstance(error_of(slot.write({0: ([], [], 0)})), Unavailable)
    assert slot.readv() == ({} if applied else {0: [b"data"]})


def test_nothing_is_deleted_where_a_put_failed(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    place.client.fail("PutObject", Unavailable)
    assert isinstance(error_of(slot.write({0: ([], [], 0), 1: ([], [(0, b"more")], None)})), Unavailable)
    assert slot.readv() == {0: [b"data"], 1: [b"data"]}


def test_a_failed_fetch_writes_nothing(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    place.store.cache.clear()
    place.client.fail("GetObject", Unavailable, key=share_key(SI, 1))
    assert isinstance(error_of(slot.write({0: ([], [(0, b"more")], None)})), Unavailable)
    assert slot.readv() == {0: [b"data"], 1: [b"data"]}


def test_a_404_for_a_known_share_is_an_error(place: Place, slot: Slot) -> None:
    slot.create(0)
    place.store.cache.clear()
    place.client.objects.clear()
    reading = place.store.mutable.readv(SI, set(), [(0, 9)])
    for delay_s in NOT_FOUND_DELAYS_S:
        assert waits(reading)
        place.clock.advance(delay_s)
    assert isinstance(error_of(reading), NotFound)
    assert place.gets == 1 + len(NOT_FOUND_DELAYS_S)


def test_a_damaged_copy_is_never_built_on(place: Place, slot: Slot) -> None:
    slot.create(0, 1, data=b"data" * 1000)
    for path in place.store.cache_dir.iterdir():
        content = bytearray(path.read_bytes())
        content[2000] ^= 1
        path.write_bytes(bytes(content))
    place.client.forget_requests()
    assert now(slot.write({0: ([(0, 4, b"eq", b"data")], [(0, b"more")], None)}))[0]
    assert place.client.requests == {"GetObject": 2, "PutObject": 1}
    assert slot.readv(readv=[(0, 9999)]) == {0: [b"more" + b"data" * 999], 1: [b"data" * 1000]}


def test_a_cache_that_lost_its_files_or_its_folder(place: Place, slot: Slot) -> None:
    slot.create(0)
    shutil.rmtree(place.store.cache_dir)
    assert slot.readv() == {0: [b"data"]}
    assert now(slot.write({0: ([], [(0, b"more")], None)}))[0]
    assert slot.readv() == {0: [b"more"]}


def test_a_scratch_folder_that_cannot_be_written(place: Place, slot: Slot) -> None:
    slot.create(0)
    shutil.rmtree(place.store.incoming_dir)
    place.store.incoming_dir.write_bytes(b"a file")
    failed = slot.write({0: ([], [(0, b"more")], None)})
    assert isinstance(error_of(failed), OSError)
    place.store.incoming_dir.unlink()
    place.store.incoming_dir.mkdir()
    assert slot.readv() == {0: [b"data"]} and b"more" not in place.object()


def test_an_object_that_always_changes_is_an_error(place: Place, slot: Slot) -> None:
    slot.create(0)
    place.store.cache.clear()
    place.client.fail("GetObject", Changed, times=100)
    assert isinstance(error_of(place.store.mutable.readv(SI, set(), [(0, 9)])), Changed)
    assert isinstance(error_of(slot.write({0: ([], [(0, b"more")], None)})), Changed)


@pytest.mark.parametrize("size", [100, 2 * MIB, 9 * MIB])
def test_an_immutable_share_raises_as_tahoe_does(place: Place, slot: Slot, size: int) -> None:
    place.add(immutable_object(pattern(size)))
    for _ in range(2):
        for failed in (
            place.store.mutable.readv(SI, set(), [(0, 9)]), place.store.mutable.length(SI, 0),
            slot.write({0: ([], [(0, b"more")], None)}),
        ):  # fmt: skip
            assert isinstance(error_of(failed), UnknownMutableContainerVersionError)
    assert place.client.requests["PutObject"] == 0


def test_a_damaged_container_is_a_clear_error_without_secrets(place: Place, slot: Slot) -> None:
    place.add(mutable_object(pattern(3000))[:2000])
    for failed in (place.store.mutable.readv(SI, set(), [(0, 9)]), slot.write({0: ([], [(0, b"more")], None)})):
        error = error_of(failed)
        assert isinstance(error, DamagedContainerError)
        assert WRITE_ENABLER.decode() not in repr(error) + str(error)


def test_a_lease_object_that_cannot_be_removed_does_not_fail_the_delete(place: Place, slot: Slot) -> None:
    slot.create(0)
    now(place.store.overlay.add(SI, Lease.from_tahoe(lease())))
    place.client.fail("DeleteObject", Unavailable, key=lease_key(SI))
    assert now(slot.write({0: ([], [], 0)}))[0]
    assert slot.readv() == {}


def test_links_in_the_scratch_folder_never_let_the_cache_be_written(place: Place, slot: Slot) -> None:
    """What a call may write is a copy; the cached file of another version stays what it was."""
    slot.create(0)
    copy = place.store.cache.find(ShareId(SI, 0), place.row().etag)
    assert copy is not None
    os.link(copy.path, place.store.cache_dir.parent / "witness")
    now(slot.write({0: ([], [(0, b"more")], None)}))
    assert b"data" in (place.store.cache_dir.parent / "witness").read_bytes()


def test_files_that_a_scratch_folder_kept_are_not_taken_for_shares(place: Place, slot: Slot) -> None:
    slot.create(0)
    folder = place.store.incoming_dir / SCRATCH / "shares" / storage_index_to_dir(SI)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "7").write_bytes(mutable_object(b"stray"))
    assert now(slot.write({0: ([], [(0, b"more")], None)}, [(0, 9)])) == (True, {0: [b"data"]})
    assert slot.readv() == {0: [b"more"]}


# Tahoe's disk backend as the oracle

OFFSETS = st.integers(0, 600)
READV = st.lists(st.tuples(OFFSETS, st.integers(0, 700)), min_size=1, max_size=4)
DATAV = st.lists(st.tuples(OFFSETS, st.binary(min_size=1, max_size=200)), max_size=3)
NEW_LENGTH = st.sampled_from([None, None, None, 0, 1, 100, 400, 700])
#: (offset, length, whether the specimen is what is there)
TESTV = st.lists(st.tuples(OFFSETS, st.integers(0, 50), st.sampled_from([True, True, True, False])), max_size=2)
SHNUMS = st.integers(0, 2)
WRITE = st.tuples(
    st.just("write"), st.dictionaries(SHNUMS, st.tuples(TESTV, DATAV, NEW_LENGTH), min_size=1), READV, st.booleans(),
    st.sampled_from([b"w", b"w", b"w", b"w", b"x"]), st.sampled_from([b"r", b"s"]),
)  # fmt: skip
READ = st.tuples(st.just("read"), st.sets(SHNUMS), READV)
LENGTH = st.tuples(st.just("length"), SHNUMS)
#: A share that came from elsewhere: (share number, data, container version, leases)
MIGRATED = st.tuples(st.just("migrate"), SHNUMS, st.binary(max_size=300), st.sampled_from([1, 2]), st.integers(0, 6))
OTHER = st.tuples(st.sampled_from(["advance", "clear", "doubt", "harm"]))


class Both:
    """The same operations on Tahoe's own server and on ours."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder / "ours")
        self.slot = Slot(self.place, folder / "ours")
        self.disk = StorageServer(str(folder / "disk"), NODEID, clock=self.place.clock)

    def outcome(self, call: Any) -> Any:
        try:
            result = call()
            return now(result) if isinstance(result, Deferred) else result
        except (BadWriteEnablerError, KeyError, AssertionError) as error:
            return type(error)

    def specimen(self, shnum: int, offset: int, length: int, is_right: bool) -> bytes:
        found = self.disk.slot_readv(SI, [shnum], [(offset, length)]).get(shnum, [b""])
        right: bytes = found[0]
        return right if is_right else right + b"!"

    def write(self, vectors: Any, read: Any, renew: bool, enabler: bytes, renewer: bytes) -> None:
        secrets = (enabler * 32, renewer * 32, b"c" * 32)
        tested = {
            shnum: ([(o, n, b"eq", self.specimen(shnum, o, n, right)) for o, n, right in testv], datav, new_length)
            for shnum, (testv, datav, new_length) in vectors.items()
        }
        theirs = self.outcome(lambda: self.disk.slot_testv_and_readv_and_writev(SI, secrets, tested, read, renew))
        ours = self.outcome(lambda: self.slot.write(tested, read, secrets=secrets, renew=renew))
        assert ours == theirs

    def read(self, shnums: set[int], readv: Any) -> None:
        ours = now(self.place.store.mutable.readv(SI, shnums, readv))
        assert ours == self.disk.slot_readv(SI, shnums, readv)

    def length(self, shnum: int) -> None:
        theirs = self.outcome(lambda: self.disk.get_mutable_share_length(SI, shnum))
        assert self.outcome(lambda: self.place.store.mutable.length(SI, shnum)) == theirs

    def migrate(self, shnum: int, data: bytes, version: int, leases: int) -> None:
        share = mutable_object(data, version=version, leases=leases)
        path = Path(self.disk.sharedir) / storage_index_to_dir(SI) / str(shnum)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(share)
        self.place.add(share, shnum=shnum, sure=False)
        self.place.store.share_changed(SI, shnum)

    def advance(self) -> None:
        self.place.clock.advance(86_400)

    def clear(self) -> None:
        self.place.store.cache.clear()

    def doubt(self) -> None:
        """As after a start without an index: only what a listing tells is known."""
        for row in self.place.index.shares(SI):
            self.place.index.put_share(SI, ShareRow(row.shnum, row.size, row.etag, False, row.modified_s))

    def harm(self) -> None:
        for path in self.place.store.cache_dir.iterdir():
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(bytes(content))

    def compare(self) -> None:
        """The bucket is Tahoe's storage directory, byte for byte."""
        theirs = {shnum: Path(path).read_bytes() for shnum, path in self.disk.get_shares(SI)}
        ours = {key: stored.data for key, stored in self.place.client.objects.items()}
        assert ours == {share_key(SI, shnum): data for shnum, data in theirs.items()}
        for row in self.place.index.shares(SI):
            assert row.size == len(theirs[row.shnum])
        assert {row.shnum for row in self.place.index.shares(SI)} == set(theirs)


@settings(max_examples=40)
@given(st.lists(st.one_of(WRITE, WRITE, WRITE, READ, LENGTH, MIGRATED, OTHER), min_size=6, max_size=15))
def test_the_same_operations_as_on_disk(tmp_path_factory: Any, steps: list[Any]) -> None:
    both = Both(tmp_path_factory.mktemp("both"))
    both.write({shnum: ([], [(0, b"%d" % shnum * 99)], None) for shnum in range(3)}, [], True, b"w", b"r")
    for step in steps:
        getattr(both, step[0])(*step[1:])
        both.compare()
    assert left_over(both.place) == []
    both.place.index.close()


def test_reads_without_a_row(place: Place) -> None:
    missing: ShareRow | None = place.index.share(SI, 0)
    assert missing is None
    assert now(place.store.mutable.readv(SI, {0, 1}, [(0, 5)])) == {}
    assert place.client.requests == {}


# a slot is read at one moment


def test_a_delete_is_seen_together_with_what_was_put(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    held = place.client.hold("DeleteObject")
    writing = slot.write({0: ([], [(0, b"DATA")], None), 1: ([], [], 0)})
    assert waits(writing) and len(held) == 1
    assert slot.readv() == {0: [b"data"], 1: [b"data"]}
    held.release()
    assert now(writing)[0]
    assert slot.readv() == {0: [b"DATA"]}


def test_a_delete_that_failed_does_not_hide_what_was_put(place: Place, slot: Slot) -> None:
    slot.create(0, 1)
    place.client.fail("DeleteObject", Unavailable)
    assert isinstance(error_of(slot.write({0: ([], [(0, b"DATA")], None), 1: ([], [], 0)})), Unavailable)
    assert slot.readv() == {0: [b"DATA"], 1: [b"data"]}


def test_a_read_of_two_shares_has_both_of_one_version(place: Place, slot: Slot) -> None:
    """One comes from the local copy at once, the other late: a write of both is in between."""
    slot.create(0, 1)
    place.store.cache.drop(ShareId(SI, 1))
    held = place.client.hold("GetObject", share_key(SI, 1), apply_first=True)
    reading = place.store.mutable.readv(SI, set(), [(0, 9)])
    assert waits(reading) and len(held) == 1
    place.client.holds.remove(held)
    assert now(slot.write({n: ([], [(0, b"DATA")], None) for n in (0, 1)}))[0]
    held.calls.pop().go()
    assert now(reading) == {0: [b"DATA"], 1: [b"DATA"]}


@pytest.mark.parametrize("small_bytes", [SMALL_OBJECT_BYTES, 100])
def test_what_is_put_and_not_answered_is_not_read(
    place: Place, slot: Slot, monkeypatch: pytest.MonkeyPatch, small_bytes: int
) -> None:
    """A reader that knows the share from a listing only gets the object of a write that is under way."""
    monkeypatch.setattr(mutable, "SMALL_OBJECT_BYTES", small_bytes)
    shares = [place.add(mutable_object(b"data"), shnum=n, sure=False) for n in (0, 1)]
    early = place.client.hold("GetObject", share_key(*shares[0]))
    reading = place.store.mutable.readv(SI, set(), [(0, 9)])
    place.client.holds.remove(early)
    held = place.client.hold("PutObject", share_key(*shares[1]))
    writing = slot.write({n: ([], [(0, b"DATA")], None) for n in (0, 1)})
    assert place.object(0) != place.object(1) and len(held) == 1
    early.calls.pop().go()
    assert now(reading) == {0: [b"data"], 1: [b"data"]}
    held.release()
    assert now(writing)[0] and slot.readv() == {0: [b"DATA"], 1: [b"DATA"]}
