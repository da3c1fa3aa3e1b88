# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of the node's storage folder fills up in the middle of uploads and of changes of mutable shares.

Each test runs on a real disk of a few MiB where this process may mount one, and always on one that is pretended.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import pytest

from tahoe_s3.client import S3Error
from tahoe_s3.store.keys import ShareId, share_key
from tahoe_s3.store.upload import REFUSED_GRACE_S, object_size

from ..support.small_disk import CannotMount, MountedDisk, PretendedDisk
from .helpers import KIB, MIB, SI, error_of, mutable_object, now, pattern
from .servers import CANCEL, RENEW, ServerPlace

SIZE = 8 * MIB
OTHER = b"o" * 16
SECRETS = (b"w" * 32, RENEW, CANCEL)
Disk = Union[MountedDisk, PretendedDisk]


@pytest.fixture(params=["mounted", "pretended"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    folder = tmp_path / "storage"
    made: Disk
    made = MountedDisk(folder, SIZE) if request.param == "mounted" else PretendedDisk(folder, SIZE, monkeypatch)
    try:
        made.__enter__()
    except CannotMount as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield made
    made.__exit__()


@pytest.fixture
def place(disk: Disk) -> Iterator[ServerPlace]:
    made = ServerPlace(disk.folder, part_bytes=MIB)
    yield made
    disk.leave(None)
    assert now(made.server.stopService()) is None
    made.assert_no_upload()
    space = made.store.space
    assert (space.promised_bytes, space.spool_bytes, space.spooled_bytes) == (0, 0, 0)


def is_no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def data_of(place: ServerPlace, shnum: int = 0, si: bytes = SI) -> bytes:
    """What a client reads of the share."""
    readers = now(place.server.get_buckets(si))
    found: bytes = now(readers[shnum].read(0, SIZE))
    return found


def change(place: ServerPlace, data: bytes, si: bytes = OTHER) -> Any:
    return place.server.slot_testv_and_readv_and_writev(si, SECRETS, {0: ([], [(0, data)], None)}, [])


def cached(place: ServerPlace) -> int:
    return int(place.store.cache.stats()["bytes"])


def test_one_upload_ends_and_the_others_go_on(place: ServerPlace, disk: Disk) -> None:
    place.upload(pattern(1000), 9)
    large = place.allocate([0], 4 * MIB)[1][0]
    small = place.allocate([1], 100 * KIB)[1][1]
    now(large.write(0, pattern(4 * MIB)[: 2 * MIB]))
    now(small.write(0, pattern(50 * KIB)))
    assert place.client.uploads, "its first part has left"
    disk.leave(700 * KIB)
    assert is_no_space(error_of(large.write(2 * MIB, pattern(4 * MIB)[2 * MIB : 3 * MIB])))
    assert place.allocate([0], 2 * MIB, si=OTHER)[1] == {}, "what does not fit is not accepted"
    now(small.write(50 * KIB, pattern(100 * KIB)[50 * KIB :]))
    now(small.close())
    now(large.abort())
    stored = {key for key in place.client.objects if key.startswith("shares/")}
    assert not place.client.uploads and stored == {share_key(SI, 1), share_key(SI, 9)}
    assert disk.free_bytes > 2 * MIB, "its space is back"
    place.upload(pattern(MIB), 2)
    disk.leave(None)
    place.upload(pattern(4 * MIB), 0)
    for shnum, size in ((9, 1000), (1, 100 * KIB), (2, MIB), (0, 4 * MIB)):
        assert data_of(place, shnum) == pattern(size)


def test_a_client_that_says_nothing_more_is_not_waited_for(place: ServerPlace, disk: Disk) -> None:
    silent, again = (place.allocate([shnum], 3 * MIB)[1][shnum] for shnum in (0, 1))
    for writer in (silent, again):
        now(writer.write(0, pattern(3 * MIB)[:MIB]))
    disk.leave(100 * KIB)
    for writer in (silent, again):
        assert is_no_space(error_of(writer.write(MIB, pattern(3 * MIB)[MIB:])))
    disk.leave(None)
    now(again.write(MIB, pattern(3 * MIB)[MIB:]))
    place.clock.advance(REFUSED_GRACE_S + 1)
    assert silent.closed and not again.closed
    assert len(place.client.uploads) == 1 and not place.store.spool_path(SI, 0).exists()
    now(again.close())
    assert data_of(place, 1) == pattern(3 * MIB)


def test_bytes_that_are_missing_are_never_stored_as_zeros(place: ServerPlace, disk: Disk) -> None:
    """Also by a client that goes on writing what fits."""
    writer = place.allocate([0], 2 * MIB)[1][0]
    disk.leave(300 * KIB)
    assert is_no_space(error_of(writer.write(0, pattern(2 * MIB)[:MIB])))
    now(writer.write(MIB, pattern(2 * MIB)[MIB : MIB + 100 * KIB]))
    assert is_no_space(error_of(writer.close()))
    assert writer.closed and not place.client.objects and not place.client.uploads


def test_no_share_is_accepted_on_a_full_disk(place: ServerPlace, disk: Disk) -> None:
    disk.leave(0)
    assert place.allocate([0, 1], 1000)[1] == {} and place.server.get_available_space() == 0
    assert place.server.get_stats()["storage_server.accepting_immutable_shares"] == 0
    version = place.server.get_version()[b"http://allmydata.org/tahoe/protocols/storage/v1"]
    assert version[b"maximum-immutable-share-size"] > SIZE * 9 // 10, "or nobody would come again"
    disk.leave(None)
    assert set(place.allocate([0, 1], 1000)[1]) == {0, 1}


def test_copies_make_room_for_uploads(place: ServerPlace, disk: Disk) -> None:
    for number in range(12):
        assert now(change(place, pattern(400 * KIB), si=bytes([number]) * 16))[0]
    assert cached(place) > 4 * MIB
    disk.leave(500 * KIB)
    assert place.allocate([0], SIZE)[1] == {} and cached(place) > 4 * MIB, "not even all of them would do"
    room = place.server.get_available_space() + cached(place)
    writers = place.allocate([0, 1, 2, 3], 2 * MIB)[1]
    assert len(writers) == room // (2 * MIB) == 2 and cached(place) < 2 * MIB
    writer = writers[0]
    now(writers[1].abort())
    disk.leave(2 * MIB - cached(place) // 2)
    now(writer.write(0, pattern(2 * MIB)))
    now(writer.close())
    assert data_of(place) == pattern(2 * MIB)
    for number in range(12):
        found = now(place.server.slot_readv(bytes([number]) * 16, [0], [(0, MIB)]))
        assert found == {0: [pattern(400 * KIB)]}


def test_copies_make_room_for_a_change(place: ServerPlace, disk: Disk) -> None:
    for number in range(8):
        assert now(change(place, pattern(400 * KIB), si=bytes([number]) * 16))[0]
    disk.leave(100 * KIB)
    changed = b"changed" + pattern(400 * KIB)[7:]
    assert now(change(place, b"changed", si=bytes(16)))[0]
    assert now(place.server.slot_readv(bytes(16), [0], [(0, MIB)])) == {0: [changed]}


def test_a_change_that_finds_no_room_changes_nothing(place: ServerPlace, disk: Disk) -> None:
    assert now(change(place, pattern(2 * MIB)))[0]
    before = place.object(0, OTHER)
    disk.leave(300 * KIB)
    place.store.cache.clear()
    disk.leave(300 * KIB)
    assert is_no_space(error_of(change(place, b"changed")))
    assert place.object(0, OTHER) == before
    assert not [path for path in place.store.incoming_dir.rglob("*") if path.is_file()]
    assert now(place.server.slot_readv(OTHER, [0], [(0, 4 * MIB)])) == {0: [pattern(2 * MIB)]}
    now(place.server.add_lease(OTHER, b"a" * 32, CANCEL))
    disk.leave(None)
    assert now(change(place, b"changed"))[0]
    assert now(place.server.slot_readv(OTHER, [0], [(0, 4 * MIB)]))[0][0][:10] == b"changed" + pattern(10)[7:]


def test_reads_go_on_without_copies(place: ServerPlace, disk: Disk) -> None:
    for number in range(4):
        place.add(mutable_object(pattern(200 * KIB, seed=number)), si=bytes([number]) * 16)
    disk.leave(300 * KIB)
    for number in (0, 1, 2, 3, 0):
        found = now(place.server.slot_readv(bytes([number]) * 16, [0], [(0, MIB)]))
        assert found == {0: [pattern(200 * KIB, seed=number)]}
        assert cached(place) < 300 * KIB, "a new copy takes the place of an old one"
    disk.leave(0)
    place.store.cache.clear()
    disk.leave(0)
    found = now(place.server.slot_readv(bytes(16), [0], [(0, MIB)]))
    assert found == {0: [pattern(200 * KIB, seed=0)]}


class Clients:
    """Uploads at random on a disk that another program fills and empties; what was acknowledged is remembered."""

    def __init__(self, place: ServerPlace, disk: Disk, seed: int) -> None:
        self.place, self.disk, self.chance = place, disk, random.Random(seed)
        self.open: dict[ShareId, list[Any]] = {}
        self.stored: dict[ShareId, bytes] = {}
        #: What was acknowledged last, and what failed since then, which the bucket may have all the same.
        self.slots: dict[bytes, list[bytes]] = {}
        self.refused = self.failed = 0

    def allocate(self) -> None:
        si, size = bytes([self.chance.randrange(30)]) * 16, self.chance.choice([1000, 300 * KIB, 2 * MIB])
        free = self.place.server.get_available_space() + cached(self.place)
        wanted = set(self.chance.sample(range(4), 2))
        try:
            already, writers = self.place.allocate(wanted, size, si=si)
        except Exception as error:
            self.fails(error)
            return
        for shnum, writer in writers.items():
            self.open[ShareId(si, shnum)] = [writer, pattern(size, seed=self.chance.randrange(99)), 0]
        self.refused += len(wanted - already - set(writers))
        assert len(writers) * size <= free

    def fails(self, error: BaseException) -> None:
        """What a full disk, and the index on it, may say."""
        text = str(error)
        assert is_no_space(error) or isinstance(error, S3Error) or "disk is full" in text, repr(error)
        self.failed += 1

    def write(self) -> None:
        if not self.open:
            return
        share = self.chance.choice(list(self.open))
        writer, data, written = self.open[share]
        stop = min(len(data), written + self.chance.choice([200 * KIB, MIB]))
        steps = [lambda: writer.write(written, data[written:stop])]
        if stop == len(data):
            steps.append(writer.close)
        for step in steps:
            try:
                now(step())
            except Exception as error:
                self.fails(error)
                del self.open[share]
                now(writer.abort())
                return
        self.open[share][2] = stop
        if stop == len(data):
            del self.open[share]
            self.stored[share] = data

    def change(self) -> None:
        si, data = bytes([100 + self.chance.randrange(4)]) * 16, pattern(200 * KIB, seed=self.chance.randrange(99))
        try:
            now(change(self.place, data, si))
            self.slots[si] = [data]
        except Exception as error:
            self.fails(error)
            if si in self.slots:
                self.slots[si].append(data)

    def fill(self) -> None:
        self.disk.leave(self.chance.choice([0, 100 * KIB, 600 * KIB, MIB]))

    def clean(self) -> None:
        self.disk.leave(None)

    def check(self) -> None:
        for share, data in self.stored.items():
            assert data_of(self.place, share.shnum, share.storage_index) == data
        for si, possible in self.slots.items():
            ((found,),) = now(self.place.server.slot_readv(si, [0], [(0, MIB)])).values()
            assert found in possible, "what was acknowledged last is lost"


@pytest.mark.parametrize("seed", range(2))
def test_nothing_acknowledged_is_lost(place: ServerPlace, disk: Disk, seed: int) -> None:
    print(f"seed {seed}")
    clients = Clients(place, disk, seed)
    work = [clients.allocate] * 4 + [clients.write] * 10 + [clients.change] * 2 + [clients.fill, clients.clean]
    for _ in range(300):
        clients.chance.choice(work)()
    disk.leave(None)
    clients.check()
    assert clients.failed and clients.refused and len(clients.stored) > 5 and clients.slots
    for writer, _, _ in list(clients.open.values()):
        now(writer.abort())
    clients.open.clear()
    assert not place.client.uploads
    place.upload(pattern(3 * MIB), 0, si=b"after all of it!")
    assert data_of(place, 0, b"after all of it!") == pattern(3 * MIB) and object_size(0) > 0
