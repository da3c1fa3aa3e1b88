# SPDX-License-Identifier: GPL-2.0-or-later
"""The random operations of the oracle: a hypothesis state machine over a Pair, which shrinks what it finds.

Storage indexes are those of immutable files, of mutable ones, and one that has both. Sizes are such that shares of
two parts and more are small. Variants: protocol and bucket (test_oracle.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from allmydata.storage.mutable import MutableShareFile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tahoe_s3.store.keys import ShareId

from ..store.helpers import immutable_object, mutable_object, pattern
from .buckets import InMemory, OnEngine
from .pair import PLENTY, Pair
from .profile import new_folder

IMMUTABLE_SIS = [b"immutable-sharea", b"immutable-shareb"]
MUTABLE_SIS = [b"mutable-share--a", b"mutable-share--b"]
MIXED_SI = b"both-kinds-here!"
ALL_SIS = [*IMMUTABLE_SIS, *MUTABLE_SIS, MIXED_SI]
#: An offset that Tahoe takes no mutable data at.
TOO_LARGE = MutableShareFile.MAX_SIZE + 1

immutable_sis = st.sampled_from([*IMMUTABLE_SIS, *IMMUTABLE_SIS, MIXED_SI])
mutable_sis = st.sampled_from([*MUTABLE_SIS, *MUTABLE_SIS, MIXED_SI])
any_si = st.sampled_from(ALL_SIS)
secrets = st.integers(0, 4)
shnums = st.sampled_from([0, 1, 2, 10])
offsets = st.one_of(st.integers(0, 60), st.integers(0, 2600))
lengths = st.one_of(st.integers(1, 60), st.integers(1, 2600))
sizes = st.sampled_from([0, 1, 50, 816, 817, 1500, 2500])
uploads = st.integers(0, 9)
ranges = st.lists(st.tuples(offsets, lengths), max_size=3)

tests = st.lists(st.tuples(offsets, st.integers(0, 30), st.sampled_from([True, True, True, False])), max_size=2)
writes = st.lists(
    st.tuples(st.one_of(offsets, st.just(TOO_LARGE)), st.integers(0, 900)) | st.tuples(offsets, st.integers(0, 900)),
    max_size=3,
)
changes = st.tuples(tests, writes, st.sampled_from([None, None, None, 0, 0, 5, 700, 3000]))

#: What may be there from before: (kind, version of the container, leases, bytes of data).
old_shares = st.tuples(
    st.sampled_from(["immutable", "mutable"]), st.sampled_from([1, 2]), st.integers(0, 6),
    st.sampled_from([0, 40, 1500]),
)  # fmt: skip


class Oracle(RuleBasedStateMachine):
    """Everything that Tahoe's StorageServer can be asked, directly."""

    protocol = "direct"
    bucket: Any = InMemory

    def __init__(self) -> None:
        super().__init__()
        self._folder = new_folder()
        self.pair = Pair(Path(self._folder.name), self.bucket(), protocol=self.protocol)
        self._began = False
        self._touched: set[bytes] = set()

    @initialize(old=st.dictionaries(st.tuples(any_si, shnums), old_shares, max_size=3))
    def start(self, old: dict[tuple[bytes, int], tuple[str, int, int, int]]) -> None:
        """On a disk that was copied to the bucket."""
        for (si, shnum), (kind, version, leases, size) in old.items():
            make = immutable_object if kind == "immutable" else mutable_object
            if (si in IMMUTABLE_SIS and kind == "mutable") or (si in MUTABLE_SIS and kind == "immutable"):
                continue
            self.pair.put_both(ShareId(si, shnum), make(pattern(size, seed=shnum), leases=leases, version=version))
        self.pair.begin()
        self._began = True

    def teardown(self) -> None:
        try:
            if self._began and sys.exc_info()[0] is None:
                self.pair.compare_all()
                self.pair.restart("emptied")
                self.pair.compare_all()
        finally:
            if self._began:
                self.pair.end()
            self._folder.cleanup()

    @invariant()
    def same_slot(self) -> None:
        """What the last step named is the same on both."""
        touched, self._touched = self._touched, set()
        for si in touched:
            self.pair.compare_slot(si)
        if self._began:
            self.pair.compare_uploads()

    # uploads

    @rule(
        si=immutable_sis, secret=secrets, wanted=st.sets(shnums, max_size=3), size=sizes,
        renew=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def allocate(self, si: bytes, secret: int, wanted: set[int], size: int, renew: bool) -> None:
        self.pair.allocate(si, secret, sorted(wanted), size, renew)
        self._touched.add(si)

    @rule(si=immutable_sis, secret=secrets, wanted=st.sets(shnums, min_size=1, max_size=3), size=sizes,
          backwards=st.booleans())  # fmt: skip
    def upload(self, si: bytes, secret: int, wanted: set[int], size: int, backwards: bool) -> None:
        """Whole shares, since those that random steps make are few."""
        before = len(self.pair.uploads)
        self.pair.allocate(si, secret, sorted(wanted), size, True)
        self._touched.add(si)
        for upload in self.pair.uploads[before:]:
            self.pair.fill(upload, backwards=backwards)
            if self.pair.mine.has_close:
                self.pair.close(upload)

    def _upload(self, number: int) -> Any:
        upload = self.pair.upload(number)
        if upload is not None:
            self._touched.add(upload.share.storage_index)
        return upload

    @precondition(lambda self: self.pair.uploads)
    @rule(number=uploads, offset=offsets, length=lengths, other=st.sampled_from([False, False, True]))
    def write(self, number: int, offset: int, length: int, other: bool) -> None:
        """Anywhere, over what is written already too, and past the end."""
        upload = self._upload(number)
        self.pair.write(upload, offset, self.pair.content(upload, other=other)[offset : offset + length])

    @precondition(lambda self: self.pair.uploads)
    @rule(number=uploads, backwards=st.booleans())
    def fill(self, number: int, backwards: bool) -> None:
        self.pair.fill(self._upload(number), backwards=backwards)

    @precondition(lambda self: self.pair.uploads and self.pair.mine.has_close)
    @rule(number=uploads)
    def close(self, number: int) -> None:
        """Perhaps with holes."""
        self.pair.close(self._upload(number))

    @precondition(lambda self: self.pair.uploads)
    @rule(number=uploads)
    def abort(self, number: int) -> None:
        self.pair.give_up(self._upload(number), "abort")

    @precondition(lambda self: self.pair.uploads and self.pair.mine.has_close)
    @rule(number=uploads)
    def disconnect(self, number: int) -> None:
        self.pair.give_up(self._upload(number), "disconnect")

    @precondition(lambda self: self.pair.ended and self.pair.protocol == "direct")
    @rule(number=uploads, what=st.sampled_from(["write", "close", "abort", "disconnect"]))
    def after_the_end(self, number: int, what: str) -> None:
        self.pair.after_the_end(number, what)

    # immutable shares

    @rule(si=immutable_sis)
    def list_immutable(self, si: bytes) -> None:
        self.pair.list_immutable(si)
        self._touched.add(si)

    @rule(si=immutable_sis, shnum=shnums, offset=offsets, length=lengths)
    def read(self, si: bytes, shnum: int, offset: int, length: int) -> None:
        self.pair.read(si, shnum, offset, length)
        self._touched.add(si)

    # leases

    @rule(si=any_si, secret=secrets)
    def add_lease(self, si: bytes, secret: int) -> None:
        self.pair.add_lease(si, secret)
        self._touched.add(si)

    @precondition(lambda self: self.pair.mine.has_renew)
    @rule(si=any_si, secret=secrets)
    def renew_lease(self, si: bytes, secret: int) -> None:
        self.pair.renew_lease(si, secret)
        self._touched.add(si)

    # mutable shares

    @rule(
        si=mutable_sis, secret=secrets, wanted=st.dictionaries(shnums, changes, max_size=3), readv=ranges,
        right=st.sampled_from([True, True, True, False]), renew=st.booleans(),
    )  # fmt: skip
    def read_test_write(
        self, si: bytes, secret: int, wanted: dict[int, Any], readv: list[tuple[int, int]], right: bool, renew: bool
    ) -> None:
        self.pair.read_test_write(si, secret, right, self.pair.vectors(si, wanted), readv, renew)
        self._touched.add(si)

    @rule(si=mutable_sis, wanted=st.sets(shnums, max_size=2), readv=ranges)
    def readv(self, si: bytes, wanted: set[int], readv: list[tuple[int, int]]) -> None:
        self.pair.same("readv", si, sorted(wanted), readv)
        self._touched.add(si)

    @rule(si=any_si, shnum=shnums)
    def list_mutable(self, si: bytes, shnum: int) -> None:
        self.pair.same("list_mutable", si)
        self.pair.same("mutable_length", si, shnum)
        self._touched.add(si)

    # the rest

    @rule(si=any_si, shnum=shnums, kind=st.sampled_from(["mutable", "immutable"]))
    def advise(self, si: bytes, shnum: int, kind: str) -> None:
        self.pair.advise(si, shnum, kind, "bit rot \N{SNOWMAN}")

    @rule(space=st.sampled_from([0, 60, 2000, PLENTY, PLENTY, PLENTY]), readonly=st.sampled_from([False, False, True]))
    def space(self, space: int, readonly: bool) -> None:
        self.pair.set_space(space, readonly)

    @rule(seconds=st.sampled_from([1, 601, 1801, 2_000_000]))
    def wait(self, seconds: int) -> None:
        """Uploads that are silent for 30 minutes end."""
        self.pair.clock.advance(seconds)

    @precondition(lambda self: self.pair.protocol == "direct")
    @rule()
    def set_clock_back(self) -> None:
        """As an operator does, by an hour and a half; a lease is not shortened by that."""
        self.pair.clock.rightNow -= 5400

    @rule(how=st.sampled_from(["kept", "killed", "emptied", "index lost", "index damaged", "cache lost",
                               "from a backup"]))  # fmt: skip
    def restart(self, how: str) -> None:
        self.pair.restart(how)
        self.pair.compare_all()


class OverFoolscap(Oracle):
    protocol = "foolscap"


class OverHTTP(Oracle):
    protocol = "http"


class OverEngine(Oracle):
    """Through the extension, to a server with sockets."""

    bucket = OnEngine
