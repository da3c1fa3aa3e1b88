# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's StorageServer on a disk and ours on a bucket, on one clock: every operation is done on both, and every
answer compared.

What may differ is in differences.py; where this file allows one of them it first looks whether that case is there,
and then expects what ours promises instead. After each operation the storage index that it named is compared (shares,
bytes, leases, index), at the end all of them.

Owner: a machine (machine.py). Thread: the reactor's.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

from allmydata.storage.common import si_b2a
from allmydata.storage.mutable import MutableShareFile
from allmydata.storage.server import DEFAULT_RENEWAL_TIME, StorageServer
from allmydata.util import cputhreadpool, fileutil
from twisted.internet import task
from twisted.internet.task import Cooperator

from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import ShareId, share_key, si_text
from tahoe_s3.store.leases import hash_secret
from tahoe_s3.store.store import VANISH_CHECKS_S

from ..store.helpers import NODEID, pattern
from .buckets import InMemory, OnEngine
from .differences import intended
from .shares import Comparison, Disk, Leases, all_of, is_mutable, union
from .sides import CANCELS, PROTOCOLS, RENEWS, Direct, Outcome, Vectors

START_S = 1_700_000_000.5
PLENTY = 10**12
#: Errors of the disk backend in the middle of a read-test-write.
HALF_WAY = ("NoSpace", "DataTooLargeError")
WRONG_KIND = ("UnknownImmutableContainerVersionError", "UnknownMutableContainerVersionError")


@dataclass(frozen=True)
class Upload:
    """A share that both servers gave a writer for. `handle` names it to the sides."""

    share: ShareId
    size: int
    handle: int


class Pair:
    """Both servers. `begin` makes them, after the shares of put_both() were put."""

    def __init__(self, folder: Path, bucket: InMemory | OnEngine, *, protocol: str = "direct") -> None:
        self.folder, self.bucket, self.clock = folder, bucket, bucket.clock
        self.clock.advance(START_S)
        self.protocol = protocol
        self.space, self.readonly = PLENTY, False
        self.uploads: list[Upload] = []
        #: Uploads that have ended, and how: "closed" or "dropped".
        self.ended: list[tuple[Upload, str]] = []
        self.advisories: list[tuple[bytes, int, str, str]] = []
        self.restarts = 0
        self.disk = Disk(folder / "disk" / "shares")
        self.shares = Comparison(self.disk, folder / "copy")
        self._patches = ExitStack()
        self._patches.enter_context(patch.object(fileutil, "get_available_space", lambda *_: self.space))
        if protocol == "http":
            cooperator = Cooperator(scheduler=lambda call: self.clock.callLater(0.00001, call))
            self._patches.enter_context(patch.object(task, "_theCooperator", cooperator))
            self._patches.enter_context(patch.object(cputhreadpool, "_DISABLED", True))

    @property
    def here(self) -> Path:
        """The local folder of ours."""
        return self.folder / "s3"

    def put_both(self, share: ShareId, data: bytes) -> None:
        """A share that is there from before."""
        self.disk.put(share, data)
        self.bucket.put(share_key(*share), data)
        if not is_mutable(data):
            self.shares.closed[share] = data

    def begin(self) -> None:
        """Start both."""
        self.stock = StorageServer(str(self.folder / "disk"), NODEID, clock=self.clock)
        backend = self.bucket.open(self.here)
        self.ours = S3StorageServer(str(self.here), NODEID, clock=self.clock, backend=backend)
        for server in (self.stock, self.ours):
            server.readonly_storage = self.readonly
        side = PROTOCOLS[self.protocol]
        self.theirs: Direct = side(self.stock, self.bucket.settle)
        self.mine: Direct = side(self.ours, self.bucket.settle)
        assert self.stock.have_shares() is True or not self.ours.have_shares()

    def end(self) -> None:
        """Stop both, whatever was found."""
        try:
            for writer in list(self.stock._bucket_writers.values()):
                writer.disconnected()
            self.bucket.settle(self.ours.stopService())
        finally:
            self._patches.close()
            self.bucket.close()

    # asking both

    def ask(self, name: str, *arguments: Any) -> tuple[Outcome, Outcome]:
        """What the disk backend answers, and what ours does, at the same time of the clock."""
        at_s = self.clock.seconds()
        theirs = getattr(self.theirs, name)(*arguments)
        self.clock.rightNow = at_s
        mine = getattr(self.mine, name)(*arguments)
        self.clock.rightNow = at_s
        return theirs, mine

    def same(self, name: str, *arguments: Any) -> Outcome:
        """Ask both; the answers are the same."""
        theirs, mine = self.ask(name, *arguments)
        self.agree(theirs, mine, name, arguments)
        return mine

    @staticmethod
    def agree(theirs: Outcome, mine: Outcome, name: str, arguments: Any) -> None:
        assert mine == theirs, f"{name}{arguments}: the disk backend says {theirs}, ours {mine}"

    def refused(self, outcome: Outcome, name: str) -> bool:
        """Whether it is an error of that class; HTTP tells no more than 500."""
        kind, value = outcome
        return kind == "error" and (value[0] == 500 if self.protocol == "http" else value == name)

    def has_unknown_kinds(self, si: bytes) -> bool:
        return any(row.kind is None for row in self.ours.store.index.shares(si))

    def is_mixed(self, si: bytes) -> bool:
        """Whether it has a mutable share; a question for immutable ones is then a wrong one."""
        return any(is_mutable(self.disk.bytes(ShareId(si, shnum))) for shnum in self.disk.numbers(si))

    @property
    def _is_full(self) -> bool:
        return self.readonly or self.space < PLENTY

    # leases

    def _new_lease(self, secret: int) -> Leases:
        expires_s = int(self.clock.seconds() + DEFAULT_RENEWAL_TIME)
        return {hash_secret(RENEWS[secret]): (hash_secret(CANCELS[secret]), expires_s)}

    def _leased(self, si: bytes, leases: Leases) -> None:
        """Ours was told of a lease for this storage index, and took it if there are shares."""
        if self.disk.numbers(si):
            self.shares.later[si] = union(self.shares.later.get(si, {}), leases)

    def _is_leased_everywhere(self, si: bytes, renew: bytes) -> bool:
        return all(renew in self.disk.leases(ShareId(si, shnum)) for shnum in self.disk.numbers(si))

    def _is_leased(self, si: bytes, renew: bytes) -> bool:
        return any(renew in self.shares.expected(ShareId(si, shnum)) for shnum in self.disk.numbers(si))

    def add_lease(self, si: bytes, secret: int) -> None:
        theirs, mine = self.ask("add_lease", si, secret)
        if self.refused(theirs, "NoSpace") and self._is_full:
            intended("a lease needs no room here")
            assert mine[0] == "answer" and self.disk.numbers(si), mine
        else:
            self.agree(theirs, mine, "add_lease", (si, secret))
        if mine[0] == "answer":
            self._leased(si, self._new_lease(secret))

    def renew_lease(self, si: bytes, secret: int) -> None:
        renew = hash_secret(RENEWS[secret])
        is_leased, everywhere = self._is_leased(si, renew), self._is_leased_everywhere(si, renew)
        theirs, mine = self.ask("renew_lease", si, secret)
        if is_leased and not everywhere:
            intended("a lease belongs to the storage index")
            assert (theirs, mine) == (("error", "IndexError"), ("answer", None)), (theirs, mine)
        else:
            self.agree(theirs, mine, "renew_lease", (si, secret))
        if mine[0] == "answer":
            self._leased(si, self._new_lease(secret))

    # uploads

    def allocate(self, si: bytes, secret: int, shnums: list[int], size: int, renew: bool) -> None:
        had, mixed, unknown = self.disk.numbers(si), self.is_mixed(si), self.has_unknown_kinds(si)
        handle = len(self.mine.writers)
        theirs, mine = self.ask("allocate", si, secret, shnums, size, renew)
        if mixed and unknown and self.refused(theirs, WRONG_KIND[0]) and mine[0] == "answer":
            intended("a kind that nobody has read yet")
            self._take_back(mine, had)
        elif self.refused(theirs, "NoSpace") and had and self._is_full and not mixed:
            intended("a lease needs no room here")
            self._take_back(mine, had)
        else:
            self.agree(theirs, mine, "allocate", (si, secret, shnums, size, renew))
            if mine[0] == "answer":
                shares = [ShareId(si, shnum) for shnum in sorted(mine[1][1])]
                self.uploads += [Upload(share, size, handle + number) for number, share in enumerate(shares)]
        if mine[0] == "answer" and had and (renew or not self.mine.has_choice_of_leases):
            self._leased(si, self._new_lease(secret))

    def _take_back(self, mine: Outcome, had: list[int]) -> None:
        """Ours has allocated and the disk backend has not: that must have been right, and is undone."""
        assert mine[0] == "answer" and set(mine[1][0]) == set(had), mine
        for _ in mine[1][1]:
            assert self.mine.abort(len(self.mine.writers) - 1)[0] == "answer"
            self.mine.writers.pop()

    def upload(self, number: int) -> Upload | None:
        return self.uploads[number % len(self.uploads)] if self.uploads else None

    @staticmethod
    def content(upload: Upload, *, other: bool = False) -> bytes:
        return pattern(5000, seed=upload.share.shnum + 9 * other)

    def write(self, upload: Upload, offset: int, data: bytes) -> None:
        answer = self.same("write", upload.handle, offset, data)
        if not self.mine.has_close and answer[0] == "answer" and answer[1][0] == 201:
            self._closed(upload)

    def fill(self, upload: Upload, *, backwards: bool) -> None:
        """Write all that is missing, in pieces that are no parts."""
        (theirs,) = [one for one in self.stock._bucket_writers.values() if self._share_of(one) == upload.share]
        pieces = [(at, min(at + 700, stop)) for start, stop in _gaps(theirs) for at in range(start, stop, 700)]
        for start, stop in reversed(pieces) if backwards else pieces:
            self.write(upload, start, self.content(upload)[start:stop])

    def close(self, upload: Upload) -> None:
        if self.same("close", upload.handle) == ("answer", None):
            self._closed(upload)

    def _closed(self, upload: Upload) -> None:
        self.shares.closed[upload.share] = self.disk.bytes(upload.share)
        self._ended(upload, "closed")

    def _ended(self, upload: Upload, how: str) -> None:
        self.uploads.remove(upload)
        self.ended.append((upload, how))

    def give_up(self, upload: Upload, how: str) -> None:
        """abort or disconnect."""
        self.same(how, upload.handle)

    def after_the_end(self, number: int, what: str) -> None:
        """A call that comes late."""
        if not self.ended:
            return
        upload, how = self.ended[number % len(self.ended)]
        if what in ("abort", "disconnect"):
            self.same(what, upload.handle)
            return
        arguments = (0, self.content(upload)[: upload.size]) if what == "write" else ()
        theirs, mine = self.ask(what, upload.handle, *arguments)
        intended("an upload that has ended")
        assert theirs[0] == "error", theirs
        if what == "close" and how == "closed":
            assert mine == ("answer", None), mine
        else:
            assert mine[0] == "error", mine

    def _share_of(self, writer: Any) -> ShareId:
        """Of Tahoe's BucketWriter."""
        path = Path(writer.incominghome)
        (si,) = [si for si in self.known if si_b2a(si).decode("ascii") == path.parent.name]
        return ShareId(si, int(path.name))

    def compare_uploads(self) -> None:
        """The same uploads are under way, with the same bytes still to come, and the same space is taken."""
        theirs = {self._share_of(writer): writer for writer in self.stock._bucket_writers.values()}
        mine = {ShareId(one.storage_index, one.shnum): one for one in self.ours._bucket_writers.values()}
        assert set(theirs) == set(mine), f"uploads of {set(theirs)} on the disk, of {set(mine)} here"
        for upload in [upload for upload in self.uploads if upload.share not in mine]:
            self._ended(upload, "dropped")
        assert {upload.share for upload in self.uploads} == set(mine)
        for share, writer in mine.items():
            assert _gaps(writer) == _gaps(theirs[share]), f"other bytes of {share} are still to come"
        assert self.ours.allocated_size() == self.stock.allocated_size()
        spooled = {path.name for path in self.ours.store.incoming_dir.iterdir() if path.is_file()}
        assert spooled == {f"{si_text(si)}.{shnum}" for si, shnum in mine}, "the spool has other files"
        if not mine:
            self.bucket.finish(self.ours.store)
            assert self.bucket.uploads == 0, "parts that are paid for and belong to nothing"

    # reading

    def list_immutable(self, si: bytes) -> None:
        self._ask_immutable(si, "list_immutable")

    def read(self, si: bytes, shnum: int, offset: int, length: int) -> None:
        self._ask_immutable(si, "read", shnum, offset, length)

    def _ask_immutable(self, si: bytes, name: str, *arguments: Any) -> None:
        mixed, unknown = self.is_mixed(si), self.has_unknown_kinds(si)
        theirs, mine = self.ask(name, si, *arguments)
        if mixed and unknown and self.refused(theirs, WRONG_KIND[0]) and mine != theirs:
            intended("a kind that nobody has read yet")
            if name == "read" and mine[0] == "answer":
                assert not is_mutable(self.disk.bytes(ShareId(si, arguments[0]))), "a mutable share was read as another"
        else:
            self.agree(theirs, mine, name, (si, *arguments))

    # mutable shares

    def read_test_write(
        self, si: bytes, secret: int, right: bool, vectors: Vectors, readv: list[tuple[int, int]], renew: bool
    ) -> None:
        arguments = (si, secret, right, vectors, readv, renew)
        kept = self.disk.keep(si)
        theirs, mine = self.ask("read_test_write", *arguments)
        if any(self.refused(theirs, name) for name in HALF_WAY) and self.disk.put_back(si, kept):
            intended("all or nothing")
            if mine[0] == "answer" and self._is_full:
                # Here its container has fewer leases, and so there was room for one more: as on a larger disk.
                intended("a lease needs no room here")
                full = self.space, self.readonly
                self.set_space(PLENTY, False)
                theirs = self.theirs.read_test_write(*arguments)
                self.set_space(*full)
        if theirs != mine and self._has_two_reasons(si, theirs, mine):
            intended("which of two errors")
        else:
            self.agree(theirs, mine, "read_test_write", arguments)
        if not self.disk.numbers(si):
            self.shares.later.pop(si, None)
        for shnum in kept:
            if shnum not in self.disk.numbers(si):
                self.shares.closed.pop(ShareId(si, shnum), None)

    def _has_two_reasons(self, si: bytes, theirs: Outcome, mine: Outcome) -> bool:
        kinds = {is_mutable(self.disk.bytes(ShareId(si, shnum))) for shnum in self.disk.numbers(si)}
        errors = {"BadWriteEnablerError", WRONG_KIND[1]}
        if kinds != {True, False} or (theirs[0], mine[0]) != ("error", "error"):
            return False
        return self.protocol == "http" or {theirs[1], mine[1]} == errors

    def vectors(self, si: bytes, wanted: dict[int, Any]) -> Vectors:
        """Test vectors that succeed, or fail where they are marked so, and what is written."""
        made: Vectors = {}
        for shnum, (tests, writes, length) in wanted.items():
            data = self._mutable_data(ShareId(si, shnum))
            made[shnum] = (
                [(at, size, b"eq", data[at : at + size] if good else b"else") for at, size, good in tests],
                [(at, pattern(size, seed=at + 7 * shnum)) for at, size in writes],
                length,
            )
        return made

    def _mutable_data(self, share: ShareId) -> bytes:
        path = self.disk.path(share)
        if not path.exists() or not is_mutable(path.read_bytes()):
            return b""
        data: bytes = MutableShareFile(str(path)).readv([(0, 10_000)])[0]
        return data

    # advice and space

    def advise(self, si: bytes, shnum: int, kind: str, reason: str) -> None:
        theirs, mine = self.ask("advise", si, shnum, kind, reason)
        if self.protocol == "http" and self.is_mixed(si) and self.has_unknown_kinds(si) and theirs != mine:
            intended("a kind that nobody has read yet")
            self._forget_advisories()
        else:
            self.agree(theirs, mine, "advise", (si, shnum, kind, reason))

    def _reports(self, server: Any) -> list[tuple[str, str]]:
        """Names without their time, and what they say."""
        found = Path(server.corruption_advisory_dir).iterdir()
        return sorted((path.name.partition("--")[2], path.read_text("utf-8")) for path in found)

    def _forget_advisories(self) -> None:
        for server in (self.stock, self.ours):
            for path in Path(server.corruption_advisory_dir).iterdir():
                path.unlink()

    def set_space(self, space: int, readonly: bool) -> None:
        self.space, self.readonly = space, readonly
        for server in (self.stock, self.ours):
            server.readonly_storage = readonly
        assert self.ours.get_available_space() == self.stock.get_available_space()

    # the node's life

    def restart(self, how: str) -> None:
        """Both stop and start again; ours with what the word says of its local folder."""
        kept = self.folder / f"kept-{self.restarts}"
        self.restarts += 1
        for writer in list(self.stock._bucket_writers.values()):
            writer.disconnected()
        if how == "killed" and self.bucket.can_kill:
            self.ours.store.index.abandon()
            self.ours.store.late.abandon()
            self.clock.calls.clear()
        else:
            self.bucket.settle(self.ours.stopService())
            assert self.bucket.uploads == 0, "a clean stop left parts in the bucket"
            shutil.copytree(self.here, kept)
        self.uploads.clear()
        self.ended.clear()
        LOCAL_STATES[how](self)
        self.begin()
        # The operator's reports are in the local folder, and go and come with it.
        self._forget_advisories()
        if how == "from a backup":
            self._let_vanish()

    def _let_vanish(self) -> None:
        """What an old index has and a listing has not is asked for over some minutes, and then no longer shown."""
        for delay_s in VANISH_CHECKS_S:
            self.clock.advance(delay_s)
            self.bucket.finish(self.ours.store)

    def _put_back_oldest(self) -> None:
        """The whole folder as an earlier stop left it, say from a backup."""
        oldest = min(self.folder.glob("kept-*"), key=lambda path: int(path.name.partition("-")[2]))
        shutil.rmtree(self.here)
        shutil.copytree(oldest, self.here)

    def _damage_index(self) -> None:
        with (self.here / "index.sqlite").open("r+b") as file:
            file.seek(60)
            file.write(b"\xff" * 4000)

    # comparing

    @property
    def known(self) -> set[bytes]:
        """All storage indexes that a machine uses."""
        from .machine import ALL_SIS

        return set(ALL_SIS)

    def compare_slot(self, si: bytes) -> None:
        objects = self.bucket.objects
        self.shares.compare_slot(si, objects)
        self.shares.compare_index(si, objects, self.ours.store.index)
        theirs = sorted(shnum for shnum, _ in self.stock.get_shares(si))
        assert sorted(shnum for shnum, _ in self.ours.get_shares(si)) == theirs

    def compare_all(self) -> None:
        """Everything that both servers have."""
        self.compare_uploads()
        assert all_of(self.bucket.objects) <= self.known
        for si in self.known:
            self.compare_slot(si)
        self.shares.compare_totals(self.bucket.objects, self.ours.store.index)
        assert self._reports(self.ours) == self._reports(self.stock)
        self.ask_for_leases()

    def ask_for_leases(self) -> None:
        """What the servers' own code is told of leases, once the index knows all."""
        for si in self.known:
            rows = self.ours.store.index.shares(si)
            self.bucket.settle(self.ours.store.slots.run(si, lambda si=si: self.ours.store.overlay.read(si)))
            for row in rows:
                self.bucket.settle(self.ours.store.learn_leases(si, row.shnum))
            self.shares.compare_index(si, self.bucket.objects, self.ours.store.index)
            if rows:
                expected = self.shares.expected(ShareId(si, rows[0].shnum))
                told = {one._lease_info.renew_secret: one.get_expiration_time() for one in self.ours.get_leases(si)}
                assert told == {renew: expires_s for renew, (_, expires_s) in expected.items()}


def _gaps(writer: Any) -> list[tuple[int, int]]:
    """What a writer still wants; Tahoe's own code cannot be asked of a share without data."""
    if writer.allocated_size() == 0:
        return []
    return [(gap.start, gap.stop) for gap in writer.required_ranges().ranges()]


def _nothing(_: Pair) -> None:
    """The local folder is as it was left."""


#: What becomes of our local folder between a stop and the next start.
LOCAL_STATES: dict[str, Callable[[Pair], None]] = {
    "kept": _nothing,
    "killed": _nothing,
    "emptied": lambda pair: shutil.rmtree(pair.here),
    "index lost": lambda pair: [path.unlink() for path in pair.here.glob("index.sqlite*")] and None,
    "index damaged": Pair._damage_index,
    "cache lost": lambda pair: shutil.rmtree(pair.here / "cache"),
    "from a backup": Pair._put_back_oldest,
}
