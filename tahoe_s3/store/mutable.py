# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutable shares: reading their data, and Tahoe's read-test-write on local copies.

A read-test-write brings all shares of the slot to a scratch folder of the shape of Tahoe's storage directory, lets
Tahoe's own code work there, and then makes the bucket the same: first what changed is put, then what went away is
deleted. It is answered when the bucket has all of it. Nothing is written where Tahoe's code raises, nor where shares
would grow by more than there is room for. Where a PUT fails, the call fails; shares whose outcome is unknown are
unsure (store/slots.py), the others are what the index says.

Owner: the Store. Thread: the reactor's; large files are copied and hashed in its thread pool. Errors: S3Error, the
exceptions of Tahoe's own code, CapacityReached, DamagedContainerError, OSError where the scratch folder cannot be
written.
Limits: FETCHES_AT_ONCE shares of a slot are fetched at once, FETCH_BYTES a request; the scratch folder holds a copy
of the shares that a call names and links to the others, until the call ends.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar

from allmydata.storage.common import UnknownMutableContainerVersionError
from allmydata.util.assertutil import precondition
from twisted.internet.defer import Deferred, DeferredSemaphore, inlineCallbacks, maybeDeferred
from twisted.logger import Logger

from tahoe_s3.client import Changed, GetResult, ObjectInfo, S3Error, Unavailable
from tahoe_s3.store.cache import Copy, copy_file, file_digest, is_full
from tahoe_s3.store.containers import (
    HEAD_BYTES,
    MUTABLE_DATA_OFFSET,
    Container,
    inspect_bytes,
    inspect_file,
    needed_head_bytes,
    parse_head,
    require_mutable,
)
from tahoe_s3.store.disk import off_reactor
from tahoe_s3.store.hidden import look_locked
from tahoe_s3.store.index import IMMUTABLE, MUTABLE, ShareRow
from tahoe_s3.store.keys import ShareId, share_key, si_text, slot_prefix
from tahoe_s3.store.objects import PIECE_BYTES, another_version, get_pieces, put_file
from tahoe_s3.store.points import reach
from tahoe_s3.store.readahead import SMALL_OBJECT_BYTES
from tahoe_s3.store.scratch import Scratch
from tahoe_s3.store.space import CapacityReached, Promise
from tahoe_s3.store.versions import MAX_RESTARTS, Restart, Shared, ShareGone, all_of

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

R = TypeVar("R")
T = TypeVar("T")

#: The scratch folder's name in incoming/, which no storage index's can be.
SCRATCH = "slots"
FETCHES_AT_ONCE = 4
PUTS_AT_ONCE = 8
#: An object up to this size is fetched for a write with one GET, a larger one in pieces of it.
FETCH_BYTES = PIECE_BYTES
#: Files beyond this are copied and hashed off the reactor's thread.
INLINE_BYTES = 1024 * 1024

ReadVector = Sequence[tuple[int, int]]
Ranges = Callable[[int, int], list[tuple[int, int]]]
"""(data offset, data length) -> (offset, length) of the object."""


def data_ranges(data_offset: int, data_length: int, readv: ReadVector) -> list[tuple[int, int]]:
    """What a read vector asks for as ranges of the object, cut at the end of the data as MutableShareFile does."""
    ranges = []
    for offset, length in readv:
        precondition(offset >= 0)
        precondition(length >= 0)
        ranges.append((data_offset + offset, max(0, min(length, data_length - offset))))
    return ranges


@dataclass
class _Local:
    """One share as it was brought to the scratch folder."""

    shnum: int
    sha256: str


@dataclass
class _Changed:
    """A share that is to be put, and what became of it."""

    shnum: int
    path: Path
    sha256: str
    container: Container
    info: ObjectInfo | None = None
    error: BaseException | None = None
    promise: Promise | None = None


class _Deleted(NamedTuple):
    """What became of a share that was to be deleted."""

    share: ShareId
    error: BaseException | None


class MutableSlots:
    """All mutable slots of the store."""

    log = Logger()

    def __init__(self, store: Store) -> None:
        self._store = store
        self._scratch = Scratch(store.incoming_dir / SCRATCH)
        self._fetching: dict[tuple[ShareId, str, int], Shared[bytes]] = {}

    # reading

    @inlineCallbacks
    def readv(
        self, storage_index: bytes, shnums: Collection[int], readv: ReadVector
    ) -> Generator[Deferred[Any], Any, dict[int, list[bytes]]]:
        """The ranges of each of these shares that is here (of all, where none is named), as they were at one moment:
        a read-test-write of several shares is seen whole or not at all."""
        for _ in range(MAX_RESTARTS):
            yield self._store.slots.settle(storage_index)
            self._store.require_service()
            before = self._snapshot(storage_index, shnums)
            answers = yield all_of([self._readv_one(share, readv) for share in before])
            if self._snapshot(storage_index, shnums) == before:
                return {share.shnum: answer for share, answer in zip(before, answers) if answer is not None}
        raise Changed("it was overwritten again and again while it was read",
                      operation="GetObject", key=slot_prefix(storage_index), kind="changed")  # fmt: skip

    def _snapshot(self, storage_index: bytes, shnums: Collection[int]) -> dict[ShareId, object]:
        """Equal as long as these shares (all, where none is named) are the same versions."""
        rows = self._store.index.shares(storage_index)
        shares = [ShareId(storage_index, row.shnum) for row in rows if not shnums or row.shnum in shnums]
        return {share: self._store.slots.generation(*share) for share in shares}

    @inlineCallbacks
    def length(self, storage_index: bytes, shnum: int) -> Generator[Deferred[Any], Any, int]:
        """The length of a share's data. KeyError where there is no such share."""
        yield self._store.slots.settle(storage_index)
        self._store.require_service()
        share = ShareId(storage_index, shnum)
        row = self._store.index.share(*share)
        if row is None:
            raise KeyError("No such storage index or share number")
        self._require_mutable_row(share, row)
        if row.kind == MUTABLE and row.data_length is not None:
            return row.data_length
        lengths: list[int] = []

        def look(_: int, data_length: int) -> list[tuple[int, int]]:
            lengths[:] = [data_length]
            return []

        yield self._read_ranges(share, look)
        return lengths[0]

    @inlineCallbacks
    def _readv_one(
        self, share: ShareId, readv: ReadVector
    ) -> Generator[Deferred[Any], Any, list[bytes] | None]:
        try:
            pieces: list[bytes] = yield self._read_ranges(
                share, lambda data_offset, data_length: data_ranges(data_offset, data_length, readv)
            )
        except ShareGone:
            # Deleted meanwhile; or the index was thrown away, which says nothing of the share.
            self._store.require_service()
            return None
        return pieces

    def _read_ranges(
        self, share: ShareId, ranges: Ranges
    ) -> Deferred[list[bytes]]:
        """The ranges of the object that `ranges` makes of where its data is, all of one version."""
        return self._store.reads.versions.with_row(share, lambda row: self._read_version(share, row, ranges))

    @inlineCallbacks
    def _read_version(
        self, share: ShareId, row: ShareRow, ranges: Ranges
    ) -> Generator[Deferred[Any], Any, list[bytes]]:
        self._require_mutable_row(share, row)
        key = share_key(*share)
        copy = self._store.cache.find_verified(share, row.etag)
        if copy is not None:
            return _read_file(key, copy.path, ranges)
        if row.size <= SMALL_OBJECT_BYTES:
            data: bytes = yield self._fetch_small(share, row)
            head = parse_head(key, data[:HEAD_BYTES], object_size=len(data))
            wanted = ranges(head.data_offset, head.data_length)
            return [data[offset : offset + length] for offset, length in wanted]
        if row.kind != MUTABLE or row.data_length is None or not row.etag_is_sure:
            row = yield self._read_head(share, row)
        assert row.data_length is not None
        wanted = ranges(MUTABLE_DATA_OFFSET, row.data_length)
        pieces = yield all_of([self._store.reads.read_version(share, row, *piece) for piece in wanted])
        return list(pieces)

    @inlineCallbacks
    def _read_head(self, share: ShareId, row: ShareRow) -> Generator[Deferred[Any], Any, ShareRow]:
        """Look at the head of a large object. Fires with its row, which is sure and knows the container now."""
        store, key = self._store, share_key(*share)
        generation = store.slots.generation(*share)
        start: bytes = yield store.reads.read_version(share, row, 0, needed_head_bytes(row.size))
        require_mutable(key, start)
        head = parse_head(key, start, object_size=row.size)
        now = store.index.share(*share)
        if now is None or now.size != row.size or store.slots.generation(*share) != generation:
            raise Restart
        store.reads.versions.learn(
            share, generation, etag=now.etag, size=now.size, kind=head.kind, data_length=head.data_length
        )
        return replace(now, kind=head.kind, data_length=head.data_length)

    def _require_mutable_row(self, share: ShareId, row: ShareRow) -> None:
        if row.kind == IMMUTABLE:
            raise UnknownMutableContainerVersionError(share_key(*share), IMMUTABLE)

    # fetching whole objects

    def _fetch_small(self, share: ShareId, row: ShareRow) -> Deferred[bytes]:
        """A whole object for a reader, one GET for all who ask at the same time. Its copy is kept."""
        where = (share, row.etag, self._store.slots.generation(*share))
        shared = self._fetching.get(where)
        if shared is None:
            work: Deferred[bytes] = self._fetch_whole(share, row)

            def ended(result: Any) -> Any:
                self._fetching.pop(where, None)
                return result

            shared = Shared(work.addBoth(ended))
            if not shared.done:
                self._fetching[where] = shared
        return shared.wait()

    @inlineCallbacks
    def _fetch_whole(self, share: ShareId, row: ShareRow) -> Generator[Deferred[Any], Any, bytes]:
        """One GET of the object, of the version that the row names. Learns what it shows."""
        store, key = self._store, share_key(*share)
        generation = store.slots.generation(*share)
        expect = row.etag if row.etag_is_sure else None
        got: GetResult = yield store.client.get(key, expect_etag=expect, priority=0)
        if got.size != row.size or len(got.data) != got.size:
            raise another_version(key, f"{got.size} bytes, not {row.size}")
        require_mutable(key, got.data)
        container = inspect_bytes(key, got.data)
        if expect is None and store.reads.versions.is_unanswered(share, got.etag):
            raise Restart
        current = store.reads.versions.learn(
            share, generation, etag=got.etag, size=got.size, modified_s=got.modified_s, kind=container.head.kind,
            data_length=container.head.data_length, leases=container.leases,
        )  # fmt: skip
        if current:
            store.cache.put_bytes(share, got.etag, got.data)
        return got.data

    @inlineCallbacks
    def _fetch_pieces(self, share: ShareId, row: ShareRow, target: Path) -> Generator[Deferred[Any], Any, str]:
        """A large object into a new file, piece by piece, all of one version. Fires with the version's ETag."""
        key = share_key(*share)
        with target.open("wb") as file:

            def take(piece: bytes) -> None:
                if file.tell() == 0:
                    require_mutable(key, piece)
                file.write(piece)

            expect = row.etag if row.etag_is_sure else None
            etag: str | None = yield get_pieces(
                self._store.client, key, size=row.size, etag=expect, take=take, piece_bytes=FETCH_BYTES
            )
        return etag or ""

    # read-test-write

    def read_test_write(
        self, storage_index: bytes, *, touched: Collection[int], execute: Callable[[str], R]
    ) -> Deferred[R]:
        """Run `execute` on a folder that has the slot's shares as Tahoe's disk backend would, then make the bucket
        the same. `touched`: the share numbers that it may write. Fires with what `execute` returned."""
        return self._store.slots.run(
            storage_index, lambda: self._read_test_write(storage_index, frozenset(touched), execute)
        )

    @inlineCallbacks
    def _read_test_write(
        self, storage_index: bytes, touched: frozenset[int], execute: Callable[[str], R]
    ) -> Generator[Deferred[Any], Any, R]:
        """Where the disk is full the copies in the cache are given up for it; nothing has been put by then."""
        worked_out: tuple[R, list[_Changed], set[int], Path]
        try:
            worked_out = yield self._work_out(storage_index, touched, execute)
        except OSError as error:
            if not is_full(error) or not self._store.shed_copies():
                raise
            worked_out = yield self._work_out(storage_index, touched, execute)
        result, changed, gone, folder = worked_out
        try:
            self._promise_growth(storage_index, changed)
            yield self._apply(storage_index, changed, gone)
            reach("slot.before-answer")
        finally:
            for one in changed:
                if one.promise is not None:
                    self._store.space.end(one.promise)
            self._scratch.give_back(folder)
        return result

    @inlineCallbacks
    def _work_out(
        self, storage_index: bytes, touched: frozenset[int], execute: Callable[[str], R]
    ) -> Generator[Deferred[Any], Any, tuple[R, list[_Changed], set[int], Path]]:
        """What `execute` gives, and what it changes and removes; the changed files are in the folder, which is the
        caller's to give back."""
        folder = self._scratch.take(storage_index)
        try:
            before: list[_Local] = yield self._bring(storage_index, touched, folder)
            reach("slot.brought")
            result = execute(str(self._scratch.sharedir))
            reach("slot.executed")
            after = {int(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
            changed: list[_Changed] = yield self._find_changed(
                storage_index, {local.shnum: local.sha256 for local in before}, after & touched, folder
            )
        except BaseException:
            self._scratch.give_back(folder)
            raise
        return result, changed, {local.shnum for local in before} - after, folder

    def _promise_growth(self, storage_index: bytes, changed: list[_Changed]) -> None:
        """Room for what the shares grow by, all of them or none: CapacityReached, or Unavailable while nobody knows."""
        space = self._store.space
        for one in changed:
            row = self._store.index.share(storage_index, one.shnum)
            growth = max(0, one.container.size - (0 if row is None else row.size))
            one.promise = space.promise(ShareId(storage_index, one.shnum), bucket_bytes=growth)
            if one.promise is None and not space.is_known:
                raise Unavailable("the bucket is being listed, so nobody knows yet what it has room for", kind="local")
            if one.promise is None:
                raise CapacityReached(f"no room for {growth} bytes more of a mutable share: s3.capacity is reached")

    @inlineCallbacks
    def _bring(
        self, storage_index: bytes, touched: frozenset[int], folder: Path
    ) -> Generator[Deferred[Any], Any, list[_Local]]:
        """All shares of the slot into `folder`, each a file whose bytes are those of the bucket."""
        yield look_locked(self._store, storage_index, touched)
        rows = self._store.index.shares(storage_index)
        gate = DeferredSemaphore(FETCHES_AT_ONCE)
        versions = self._store.reads.versions

        def bring(shnum: int) -> Deferred[_Local]:
            share, target = ShareId(storage_index, shnum), folder / str(shnum)
            return versions.with_row(
                share, lambda row: self._bring_one(share, row, target, is_touched=shnum in touched), locked=True
            )

        brought: list[_Local] = yield all_of([gate.run(bring, row.shnum) for row in rows])
        return brought

    @inlineCallbacks
    def _bring_one(
        self, share: ShareId, row: ShareRow, target: Path, *, is_touched: bool
    ) -> Generator[Deferred[Any], Any, _Local]:
        self._require_mutable_row(share, row)
        copy = self._store.cache.find(share, row.etag)
        if copy is not None:
            placed = yield self._place(share, copy, target, is_touched=is_touched)
            if not placed:
                copy = None
        if copy is None:
            sha256: str = yield self._bring_new(share, row, target, is_touched=is_touched)
        else:
            sha256 = copy.sha256
        self._learn_file(share, target)
        return _Local(share.shnum, sha256)

    @inlineCallbacks
    def _place(
        self, share: ShareId, copy: Copy, target: Path, *, is_touched: bool
    ) -> Generator[Deferred[Any], Any, bool]:
        """A cached copy into the scratch folder: its own file where it may be written, else a link. False where it
        turned out to be damaged; then it is dropped."""
        try:
            if is_touched:
                digest = yield self._off_reactor(copy.size, copy_file, copy.path, target)
            else:
                os.link(copy.path, target)
                digest = yield self._off_reactor(copy.size, file_digest, target)
            right = digest == copy.sha256
        except FileNotFoundError:
            # Pushed out of the cache meanwhile.
            return False
        if not right:
            self._store.cache.damaged(share, copy)
            target.unlink()
        return bool(right)

    @inlineCallbacks
    def _bring_new(
        self, share: ShareId, row: ShareRow, target: Path, *, is_touched: bool
    ) -> Generator[Deferred[Any], Any, str]:
        """Fetch it into the scratch folder, and into the cache if it fits. Fires with its SHA-256."""
        if row.size <= FETCH_BYTES:
            data = yield self._fetch_whole(share, row)
            target.write_bytes(data)
            digest: str = yield self._off_reactor(len(data), file_digest, target)
            return digest
        etag = yield self._fetch_pieces(share, row, target)
        digest = yield self._off_reactor(row.size, file_digest, target)
        generation = self._store.slots.generation(*share)
        self._store.reads.versions.learn(share, generation, etag=etag, size=row.size)
        if not is_touched:
            spare = target.with_name(f"{target.name}.spare")
            os.link(target, spare)
            if self._store.cache.adopt(share, etag, spare, sha256=digest) is None:
                spare.unlink(missing_ok=True)
        return digest

    def _learn_file(self, share: ShareId, path: Path) -> None:
        """What the container says, where the index does not know it; and whether it is a mutable one at all."""
        key, store = share_key(*share), self._store
        row = store.index.share(*share)
        if row is None or (row.kind == MUTABLE and row.data_length is not None and row.leases is not None):
            return
        with path.open("rb") as file:
            require_mutable(key, file.read(HEAD_BYTES))
        container = inspect_file(key, path)
        store.reads.versions.learn(
            share, store.slots.generation(*share), etag=row.etag, size=row.size, kind=container.head.kind,
            data_length=container.head.data_length, leases=container.leases,
        )  # fmt: skip

    @inlineCallbacks
    def _find_changed(
        self, storage_index: bytes, before: dict[int, str], shnums: Iterable[int], folder: Path
    ) -> Generator[Deferred[Any], Any, list[_Changed]]:
        changed = []
        for shnum in sorted(shnums):
            path = folder / str(shnum)
            sha256 = yield self._off_reactor(path.stat().st_size, file_digest, path)
            if before.get(shnum) != sha256:
                container = inspect_file(share_key(storage_index, shnum), path)
                changed.append(_Changed(shnum, path, sha256, container))
        return changed

    # making the bucket the same

    @inlineCallbacks
    def _apply(
        self, storage_index: bytes, changed: list[_Changed], gone: set[int]
    ) -> Generator[Deferred[Any], Any, None]:
        gate = DeferredSemaphore(PUTS_AT_ONCE)
        yield all_of([gate.run(self._put, storage_index, one) for one in changed])
        reach("slot.all-put")
        ends: list[_Deleted] = []
        if all(one.error is None for one in changed):
            ends = yield all_of([gate.run(self._delete, ShareId(storage_index, shnum)) for shnum in sorted(gone)])
        # In one turn of the reactor, so that nobody reads some of it.
        for one in changed:
            share = ShareId(storage_index, one.shnum)
            unnoted = self._note(share, partial(self._adopt, share, one))
            one.error = one.error or unnoted
        errors = [one.error for one in changed]
        errors += [self._note(end.share, partial(self._adopt_deleted, end)) or end.error for end in ends]
        for error in errors:
            if error is not None:
                raise error
        if gone and not self._store.index.shares(storage_index):
            reach("slot.before-leases")
            try:
                yield self._store.overlay.delete(storage_index)
            except (S3Error, OSError) as error:
                # The shares are gone, which is what was asked for.
                self.log.warn(
                    "the lease object of {si} is left over: {error}", si=si_text(storage_index), error=str(error)
                )

    def _note(self, share: ShareId, note: Callable[[], None]) -> Exception | None:
        """What the bucket has done, into the index. Where that fails nobody will know: whoever asks next must look."""
        try:
            note()
        except Exception as error:
            self._store.slots.mark_unsure(*share)
            self._store.cache.drop(share)
            self._store.reads.forget(share)
            return error
        return None

    @inlineCallbacks
    def _put(self, storage_index: bytes, one: _Changed) -> Generator[Deferred[Any], Any, None]:
        store, key = self._store, share_key(storage_index, one.shnum)
        must_keep = store.late.must_keep(key)
        reach("slot.before-put")
        try:
            info: ObjectInfo = yield maybeDeferred(
                put_file, store.client, key, one.path, part_size_bytes=store.part_size_bytes
            )
            if must_keep:
                size = one.container.size
                yield store.late.keep(key, etag=info.etag, size=size, path=one.path, sha256=one.sha256)
            one.info = info
        except Exception as error:
            # Raised when all have ended: what was put must be noted whatever became of the others.
            one.error = error
        else:
            reach("slot.after-put")

    def _adopt(self, share: ShareId, one: _Changed) -> None:
        """Note what became of one PUT."""
        store = self._store
        if one.info is None:
            store.cache.drop(share)
            if not isinstance(one.error, S3Error) or one.error.outcome != "not_applied":
                store.slots.mark_unsure(*share)
            store.reads.forget(share)
            return
        row = ShareRow(
            share.shnum, one.container.size, one.info.etag, True, one.info.modified_s, MUTABLE,
            one.container.head.data_length, one.container.leases,
        )  # fmt: skip
        store.index.put_share(share.storage_index, row)
        if one.promise is not None:
            store.space.end(one.promise)
        reach("slot.row")
        store.share_changed(*share)
        store.cache.adopt(share, one.info.etag, one.path, sha256=one.sha256)
        reach("slot.cached")

    @inlineCallbacks
    def _delete(self, share: ShareId) -> Generator[Deferred[Any], Any, _Deleted]:
        reach("slot.before-delete")
        try:
            yield self._store.client.delete(share_key(*share))
            reach("slot.after-delete")
            yield self._store.late.forget(share_key(*share))
        except Exception as error:
            return _Deleted(share, error)
        return _Deleted(share, None)

    def _adopt_deleted(self, end: _Deleted) -> None:
        """Note what became of one delete."""
        store, share, error = self._store, end.share, end.error
        if error is None:
            store.share_deleted(share)
        elif not isinstance(error, S3Error) or error.outcome != "not_applied":
            store.slots.mark_unsure(*share)
            store.cache.drop(share)
            store.reads.forget(share)

    def _off_reactor(self, size: int, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run it in the reactor's thread pool if it is long."""
        if size <= INLINE_BYTES:
            return maybeDeferred(work, *arguments)
        return off_reactor(self._store.reactor, work, *arguments)


def _read_file(key: str, path: Path, ranges: Ranges) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.pread(fd, HEAD_BYTES, 0)
        require_mutable(key, start)
        head = parse_head(key, start, object_size=os.fstat(fd).st_size)
        wanted = ranges(head.data_offset, head.data_length)
        return [os.pread(fd, length, offset) for offset, length in wanted]
    finally:
        os.close(fd)
