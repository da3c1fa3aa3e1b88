# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk backend as the oracle: the same operations on Tahoe's StorageServer and on ours have the same answers, and
leave the same bytes.

Leases that are added or renewed later lie in the overlay here and in the container there, so containers are compared
as they were written, and leases by themselves: no share may have fewer or shorter ones than on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from allmydata.storage.common import storage_index_to_dir
from allmydata.storage.immutable import ShareFile
from allmydata.storage.mutable import MutableShareFile
from allmydata.storage.server import StorageServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.leases import Lease

from .helpers import NODEID, now, pattern
from .memory_client import MemoryClient
from .servers import open_place, reborn

IMMUTABLE_SIS = [b"immutable-sharea", b"immutable-shareb"]
MUTABLE_SIS = [b"mutable-share--a", b"mutable-share--b"]
SECRETS = [bytes([65 + number]) * 32 for number in range(3)]
PART = 900

secrets = st.integers(0, 2)
shnums = st.integers(0, 2)
offsets = st.integers(0, 2500)
lengths = st.integers(0, 1500)
some_si = st.integers(0, 1)

test_vectors = st.lists(st.tuples(offsets, st.integers(0, 30), st.booleans()), max_size=2)
write_vectors = st.lists(st.tuples(offsets, st.integers(0, 900)), max_size=3)
share_vectors = st.tuples(test_vectors, write_vectors, st.sampled_from([None, None, None, 0, 5, 700]))

operations = st.one_of(
    st.tuples(st.just("allocate"), some_si, st.sets(shnums, max_size=3), st.sampled_from([1, 50, 1500]), secrets,
              st.booleans()),
    st.tuples(st.just("write"), st.integers(0, 9), offsets, lengths, st.booleans()),
    st.tuples(st.just("fill"), st.integers(0, 9)),
    st.tuples(st.just("close"), st.integers(0, 9)),
    st.tuples(st.just("abort"), st.integers(0, 9)),
    st.tuples(st.just("read"), some_si, shnums, offsets, lengths),
    st.tuples(st.just("add_lease"), some_si, st.booleans(), secrets),
    st.tuples(st.just("renew_lease"), some_si, st.booleans(), secrets),
    st.tuples(st.just("rtw"), some_si, st.dictionaries(shnums, share_vectors, max_size=2), secrets, st.booleans(),
              st.booleans()),
    st.tuples(st.just("readv"), some_si, st.sets(shnums, max_size=2),
              st.lists(st.tuples(offsets, lengths), max_size=3)),
    st.tuples(st.just("lengths"), some_si, shnums),
    st.tuples(st.just("advance"), st.sampled_from([1, 600, 2_000_000])),
    st.tuples(st.just("restart"), st.booleans()),
)  # fmt: skip


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, Any]:
    """("answer", value) or ("error", name of the exception), of stock's calls and of ours."""
    try:
        value = call(*arguments, **options)
        if hasattr(value, "addBoth"):
            value = now(value)
        return ("error", type(value.value).__name__) if isinstance(value, Failure) else ("answer", value)
    except Exception as error:
        return "error", type(error).__name__


class Both:
    """The two servers, on one clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self.clock.advance(1_700_000_000.5)
        self.client = MemoryClient()
        self.stock = self.new_stock()
        self.ours: S3StorageServer = self.new_ours(self.client)
        self.writers: list[tuple[bytes, int, Any, Any, int]] = []
        #: Bytes of immutable share objects, as they were closed.
        self.closed: dict[tuple[bytes, int], bytes] = {}
        #: Storage indexes whose disk files have leases that the objects need not have.
        self.leased_later: set[bytes] = set()

    def new_stock(self) -> Any:
        return StorageServer(str(self.folder / "disk"), NODEID, clock=self.clock)

    def new_ours(self, client: MemoryClient) -> S3StorageServer:
        store = now(open_place(client, self.folder / "s3", self.clock, part_bytes=PART))
        return S3StorageServer(str(self.folder / "s3"), NODEID, clock=self.clock, backend=store)

    def same(self, name: str, *arguments: Any, **options: Any) -> tuple[str, Any]:
        theirs = outcome(getattr(self.stock, name), *arguments, **options)
        mine = outcome(getattr(self.ours, name), *arguments, **options)
        assert mine == theirs, name
        return mine

    # operations

    def allocate(self, which: int, wanted: set[int], size: int, secret: int, renew: bool) -> None:
        si = IMMUTABLE_SIS[which]
        arguments = (si, SECRETS[secret], SECRETS[secret], wanted, size)
        theirs = self.stock.allocate_buckets(*arguments, renew_leases=renew)
        mine = now(self.ours.allocate_buckets(*arguments, renew_leases=renew))
        assert mine[0] == theirs[0] and set(mine[1]) == set(theirs[1])
        if theirs[0] and renew:
            self.leased_later.add(si)
        for shnum in sorted(mine[1]):
            self.writers.append((si, shnum, theirs[1][shnum], mine[1][shnum], size))

    def writer(self, number: int) -> tuple[bytes, int, Any, Any, int] | None:
        for one in self.writers:
            assert one[2].closed == one[3].closed
        self.writers = [one for one in self.writers if not one[2].closed]
        return self.writers[number % len(self.writers)] if self.writers else None

    def write(self, number: int, offset: int, length: int, other: bool) -> None:
        found = self.writer(number)
        if found is not None:
            _, shnum, theirs, mine, _ = found
            data = pattern(5000, seed=shnum + 9 * other)[offset : offset + length]
            assert outcome(mine.write, offset, data) == outcome(theirs.write, offset, data)
            assert list(mine.required_ranges().ranges()) == list(theirs.required_ranges().ranges())

    def fill(self, number: int) -> None:
        """Write what is missing."""
        found = self.writer(number)
        if found is not None:
            _, shnum, theirs, mine, _ = found
            for gap in list(theirs.required_ranges().ranges()):
                data = pattern(5000, seed=shnum)[gap.start : gap.stop]
                assert outcome(mine.write, gap.start, data) == outcome(theirs.write, gap.start, data)

    def close(self, number: int) -> None:
        found = self.writer(number)
        if found is not None:
            si, shnum, theirs, mine, _ = found
            theirs.close()
            assert now(mine.close()) is None
            self.closed[si, shnum] = self.on_disk(si, shnum)
            assert self.in_bucket(si, shnum) == self.closed[si, shnum]

    def abort(self, number: int) -> None:
        found = self.writer(number)
        if found is not None:
            found[2].abort()
            assert now(found[3].abort()) is None

    def read(self, which: int, shnum: int, offset: int, length: int) -> None:
        si = IMMUTABLE_SIS[which]
        theirs, mine = self.stock.get_buckets(si), now(self.ours.get_buckets(si))
        assert set(mine) == set(theirs)
        assert {n for n, _ in self.ours.get_shares(si)} == {n for n, _ in self.stock.get_shares(si)}
        if shnum in mine:
            assert now(mine[shnum].read(offset, length)) == theirs[shnum].read(offset, length)
            assert now(mine[shnum].get_length()) == theirs[shnum].get_length()

    def add_lease(self, which: int, mutable: bool, secret: int) -> None:
        si = (MUTABLE_SIS if mutable else IMMUTABLE_SIS)[which]
        self.same("add_lease", si, SECRETS[secret], SECRETS[secret])
        self.leased_later.add(si)

    def renew_lease(self, which: int, mutable: bool, secret: int) -> None:
        si = (MUTABLE_SIS if mutable else IMMUTABLE_SIS)[which]
        renew_hash = Lease.from_secrets(SECRETS[secret], b"", owner_num=0, expiration_s=0, nodeid=b"").renew_hash
        having = [renew_hash in self.disk_leases(si, shnum) for shnum in self.disk_shares(si)]
        theirs = outcome(self.stock.renew_lease, si, SECRETS[secret])
        mine = outcome(self.ours.renew_lease, si, SECRETS[secret])
        overlay = self.ours.store.index.overlay(si)
        in_overlay = overlay is not None and renew_hash in {one.renew_hash for one in overlay.leases or ()}
        if having and not all(having) and (any(having) or in_overlay):
            # Stock gives up at the first share without that lease; here a lease is the storage index's.
            assert mine == ("answer", None)
        else:
            assert mine == theirs
        self.leased_later.add(si)

    def rtw(self, which: int, vectors: dict[int, Any], secret: int, renew: bool, match: bool) -> None:
        si = MUTABLE_SIS[which]
        current = self.stock.slot_readv(si, [], [(0, 5000)])
        made = {}
        for shnum, (tests, writes, new_length) in vectors.items():
            now_there = current.get(shnum, [b""])[0]
            made[shnum] = (
                [(offset, length, b"eq", now_there[offset : offset + length] if match or good else b"else")
                 for offset, length, good in tests],
                [(offset, pattern(length, seed=offset)) for offset, length in writes],
                new_length,
            )  # fmt: skip
        enabler = b"w" * 32 if secret else b"x" * 32
        self.same("slot_testv_and_readv_and_writev", si, (enabler, SECRETS[secret], SECRETS[secret]), made,
                  [(0, 20), (100, 2000)], renew_leases=renew)  # fmt: skip

    def readv(self, which: int, wanted: set[int], vector: list[tuple[int, int]]) -> None:
        self.same("slot_readv", MUTABLE_SIS[which], sorted(wanted), vector)

    def lengths(self, which: int, shnum: int) -> None:
        self.same("enumerate_mutable_shares", MUTABLE_SIS[which])
        self.same("get_mutable_share_length", MUTABLE_SIS[which], shnum)

    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    def restart(self, keep: bool) -> None:
        """Both stop and start again; ours perhaps without anything on local disk."""
        for writer in list(self.stock._bucket_writers.values()):
            writer.disconnected()
        self.stock = self.new_stock()
        now(self.ours.stopService())
        if not keep:
            for path in sorted((self.folder / "s3").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        self.client = reborn(self.client)
        self.ours = self.new_ours(self.client)

    # what there is

    def on_disk(self, si: bytes, shnum: int) -> bytes:
        return self.disk_path(si, shnum).read_bytes()

    def disk_path(self, si: bytes, shnum: int) -> Path:
        return Path(self.stock.sharedir) / storage_index_to_dir(si) / str(shnum)

    def disk_shares(self, si: bytes) -> list[int]:
        return sorted(shnum for shnum, _ in self.stock.get_shares(si))

    def disk_leases(self, si: bytes, shnum: int) -> dict[bytes, int]:
        path = str(self.disk_path(si, shnum))
        share = MutableShareFile(path) if si in MUTABLE_SIS else ShareFile(path)
        leases = map(Lease.from_tahoe, share.get_leases())
        return {lease.renew_hash: lease.expiration_s for lease in leases}

    def in_bucket(self, si: bytes, shnum: int) -> bytes:
        return self.client.objects[share_key(si, shnum)].data

    def our_leases(self, si: bytes, shnum: int) -> dict[bytes, int]:
        now(self.ours.store.overlay.read(si))
        now(self.ours.store.learn_leases(si, shnum))
        leases = self.ours.store.index.leases(si, shnum)
        return {lease.renew_hash: lease.expiration_s for lease in leases}

    def compare(self) -> None:
        """At the end: the same shares, bytes and leases."""
        for si in IMMUTABLE_SIS + MUTABLE_SIS:
            shares = self.disk_shares(si)
            assert sorted(shnum for shnum, _ in self.ours.get_shares(si)) == shares
            for shnum in shares:
                theirs, mine = self.on_disk(si, shnum), self.in_bucket(si, shnum)
                if si in IMMUTABLE_SIS:
                    assert mine == self.closed[si, shnum]
                elif si not in self.leased_later:
                    assert mine == theirs
                else:
                    self.compare_mutable(mine, theirs)
                leases = self.our_leases(si, shnum)
                for renew_hash, expiration_s in self.disk_leases(si, shnum).items():
                    assert leases.get(renew_hash, 0) >= expiration_s
        listed = {key for key in self.client.objects if key.startswith("shares/")}
        assert len(listed) == self.ours.store.index.share_count
        used = sum(len(self.client.objects[key].data) for key in listed)
        assert self.ours.store.index.used_bytes == used
        assert self.client.uploads == {} or self.ours._bucket_writers

    @staticmethod
    def compare_mutable(mine: bytes, theirs: bytes) -> None:
        """All but the leases: these were added to the file on disk, and lie in the overlay here."""
        assert mine[:100] == theirs[:100]
        length = int.from_bytes(mine[84:92], "big")
        assert mine[468 : 468 + length] == theirs[468 : 468 + length]


@given(st.lists(operations, min_size=1, max_size=25))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_same_answers_same_bytes(steps: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        both = Both(Path(folder))
        try:
            for name, *arguments in steps:
                getattr(both, name)(*arguments)
            both.compare()
            both.restart(keep=False)
            both.compare()
        finally:
            now(both.ours.stopService())
