# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes that a service applies long after their sender has given them up, over what was put there since.

A PUT or DELETE that got no answer may still be under way inside the service. Nothing that only puts and gets can keep
it from undoing a later write of the same key, so it is found and made good. A key is in doubt for LATE_S after a write
of it of which some attempt had no answer; and every key is for LATE_S after a start that no clean stop went before,
since nobody knows what was under way when the node died.

What is written to a key in doubt is kept (store/journal.py) before it is acknowledged: a mutable share as a copy, a
lease object and the lease of an immutable share's container as their leases, a whole immutable share where an expiry's
deletion of it may be under way. From then on that version is what must be in the bucket, also after a restart. The
bucket is asked at each start, before anything is answered, and after each of CHECKS_S, the last time when the doubt has
ended; and wherever something else than it turns up before, it is put right at once (store/undone.py): what had no
answer then never happened.

Without retries, failures and crashes there is no request, and nothing is kept.

Owner: the Store. Thread: the reactor's. Errors: keep() and forget() fail with OSError where the journal cannot be
written; then the write must not be acknowledged. Limits: MAX_KEYS keys and COPIES_BYTES of copies, the oldest forgotten
first; three HEADs a key, in the background.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from twisted.internet.defer import Deferred, DeferredSemaphore, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import S3Error, Unavailable
from tahoe_s3.store.cache import file_digest
from tahoe_s3.store.disk import off_reactor
from tahoe_s3.store.journal import Entry, Journal, Kept
from tahoe_s3.store.keys import LeaseId, ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import Lease
from tahoe_s3.store.points import reach
from tahoe_s3.store.undone import Undone
from tahoe_s3.store.versions import all_of

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: How long a write without an answer is thought to be possible still, in seconds.
LATE_S = 1800.0
#: Seconds after which a key is looked at, and looked at again; for the last time when nothing can be late any more.
CHECKS_S = (60.0, 300.0, LATE_S - 300.0)
MAX_KEYS = 10_000
#: Bytes of all copies; as long as the cache has one of the same version too, both are one file.
COPIES_BYTES = 512 * 1024 * 1024
#: Starts of this node, one after the other, that ended before they served.
MAX_INSTANCES = 100
#: Keys that a start looks at, at once, and in all before the node serves; others are looked at when they are needed.
LOOKS_AT_ONCE = 8
MAX_LOOKS = 2000
#: Seconds that a start waits for them. Whoever needs one of them later waits for it himself.
SETTLE_S = 30.0
#: The clock was set when it moved by more than this against one that cannot be set, in seconds.
JUMP_S = 60.0


class LateWrites:
    """See the module."""

    log = Logger()

    def __init__(self, store: Store, *, local_dir: Path) -> None:
        self._store = store
        self._journal = Journal(local_dir, identity=store.index.identity, reactor=store.reactor)
        self.undone = Undone(store, self)
        #: Key -> when a write of it had no answer, the oldest first.
        self._doubts: OrderedDict[str, float] = OrderedDict()
        #: Key -> the version that was acknowledged while it was in doubt, the oldest first.
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._copies_bytes = 0
        #: Key -> when its deletion began, of which nobody knows whether it has ended.
        self._deleting: dict[str, float] = {}
        #: Key -> the number of its latest round of checks.
        self._rounds: dict[str, int] = {}
        #: Keys of which a new version is being written down.
        self._keeping: set[str] = set()
        #: Key -> what its row says, which counts no more; these rows go before this run writes to the bucket.
        self._over: dict[str, Kept | None] = {}
        self._serial = 0
        #: Whether the log says already that there is too much.
        self._has_told = False
        self._is_sweeping = False
        self._steady_s: Callable[[], float] = store.reactor.seconds
        self._offset_s = 0.0
        self._recall()

    def _recall(self) -> None:
        """What the last run left. Who is too old is in no doubt any more, whatever the clock says later."""
        now_s = self._now_s()
        entries = sorted(self._journal.entries.items(), key=lambda one: one[1].doubted_s)
        for key, entry in entries:
            if self._is_young(entry.doubted_s) and parse_key(key) is not None:
                self._doubts[key] = min(entry.doubted_s, now_s)
                if entry.kept is not None:
                    self._kept[key] = entry.kept
                    self._copies_bytes += _copy_bytes(entry.kept)
                if entry.may_be_deleted:
                    self._deleting[key] = self._doubts[key]
            else:
                self._over[key] = entry.kept
        self._journal.entries = {}
        unclean_s = self._journal.unclean_s
        if unclean_s is not None:
            self._journal.unclean_s = min(unclean_s, now_s) if self._is_young(unclean_s) else None

    # what is in doubt

    def follow(self, steady_s: Callable[[], float]) -> None:
        """A clock that cannot be set: by it a clock that is set ends no doubt, such as that of a machine that has just
        come back from a power failure."""
        self._steady_s, self._offset_s = steady_s, float(self._store.reactor.seconds()) - steady_s()

    def _now_s(self) -> float:
        self._note_clock()
        return float(self._store.reactor.seconds())

    def _note_clock(self) -> None:
        """Where the clock was set, all that was noted by it before goes with it."""
        jump_s = float(self._store.reactor.seconds()) - self._steady_s() - self._offset_s
        if abs(jump_s) <= JUMP_S:
            return
        self._offset_s += jump_s
        for times_s in (self._doubts, self._deleting):
            times_s.update({key: since_s + jump_s for key, since_s in times_s.items()})
        journal = self._journal
        if journal.unclean_s is not None:
            journal.unclean_s += jump_s
        if journal.is_made:
            rows = {key: self._entry_of(key) for key in {**self._kept, **self._deleting} if key not in self._keeping}
            self._store.in_background(self._write(rows))

    def _is_young(self, since_s: float | None) -> bool:
        """A clock that was set back while the node was stopped makes doubts last longer, never shorter."""
        return since_s is not None and float(self._store.reactor.seconds()) - since_s < LATE_S

    def is_in_doubt(self, key: str) -> bool:
        """Whether the service may yet apply an older write of it."""
        self._note_clock()
        return self._is_young(self._journal.unclean_s) or self._is_young(self._doubts.get(key))

    def may_be_deleted(self, key: str) -> bool:
        """Whether a deletion of it by this node may be under way yet."""
        self._note_clock()
        return self._is_young(self._deleting.get(key))

    def wrote(self, key: str, *, is_in_doubt: bool, is_answered: bool) -> None:
        """A write of the key has ended. is_in_doubt: some attempt may be applied yet. is_answered: one was."""
        was_in_doubt = self.is_in_doubt(key)
        if is_in_doubt:
            self._doubts.pop(key, None)
            self._doubts[key] = self._now_s()
            if len(self._doubts) > MAX_KEYS:
                self._doubts.popitem(last=False)
        elif not was_in_doubt:
            self._doubts.pop(key, None)
        if was_in_doubt or not is_answered:
            self._begin_round(key)

    # what is kept

    def kept(self, key: str) -> Kept | None:
        """The version that must be in the bucket; None where any may."""
        return self._kept.get(key)

    def kept_leases(self, storage_index: bytes) -> tuple[Lease, ...]:
        """Those that must be in the lease object, as far as it is in doubt."""
        kept = self._kept.get(lease_key(storage_index))
        return () if kept is None or kept.leases is None else kept.leases

    def copy_of(self, kept: Kept) -> Path | None:
        return None if kept.file is None else self._journal.copy_path(kept.file)

    def digest_of(self, path: Path) -> Deferred[str]:
        """SHA-256 of a file that may be large."""
        return off_reactor(self._store.reactor, file_digest, path)

    def must_keep(self, key: str) -> bool:
        """Before a write: whether its outcome has to be kept."""
        return self.is_in_doubt(key) or key in self._kept

    @inlineCallbacks
    def keep(
        self, key: str, *, etag: str, size: int, leases: Collection[Lease] | None = None, path: Path | None = None,
        sha256: str | None = None,
    ) -> Generator[Deferred[Any], Any, None]:  # fmt: skip
        """The bucket has this version, and nobody else has heard of it: where must_keep() was true before it was
        written. Under the lock. Fires when it may be acknowledged.

        leases: of a lease object or an immutable share. path: a file with the object's bytes, which will not change;
        it may be moved afterwards. sha256: its digest.
        """
        kept = Kept(etag, size, None if leases is None else tuple(leases))
        if path is not None and size <= COPIES_BYTES:
            if sha256 is None:
                sha256 = yield self.digest_of(path)
            kept = replace(kept, file=self._journal.keep_file(path), sha256=sha256)
            reach("late.linked")
        try:
            yield self.keep_again(key, kept)
        except OSError:
            self._journal.drop_file(kept.file)
            raise
        self._limit()

    @inlineCallbacks
    def keep_again(self, key: str, kept: Kept) -> Generator[Deferred[Any], Any, None]:
        """The same, with a copy that is here already: the same version may have another ETag now."""
        self._keeping.add(key)
        try:
            yield self._write({key: self._entry(key, kept)})
        finally:
            self._keeping.discard(key)
        reach("late.kept")
        self._replace(key, kept)

    def _write(self, changes: Mapping[str, Entry | None]) -> Deferred[None]:
        """To the journal: with all that is known, where it was damaged and is made anew."""
        journal = self._journal
        if not journal.was_damaged:
            return journal.write(changes)
        journal.was_damaged = False
        known = {key: self._entry_of(key) for key in {**self._kept, **self._deleting}}

        def not_yet(failure: Failure) -> Failure:
            journal.was_damaged = True
            return failure

        return journal.write({**known, **changes}).addErrback(not_yet)

    def _entry(self, key: str, kept: Kept | None) -> Entry:
        # Of a key that is in doubt since a crash it counts from now: the crash's own time passes by itself.
        return Entry(self._doubts.get(key, self._now_s()), key in self._deleting, kept)

    def _entry_of(self, key: str) -> Entry | None:
        """The row of a key that was not written."""
        kept = self._kept.get(key)
        return self._entry(key, kept) if kept is not None or key in self._deleting else None

    def _replace(self, key: str, kept: Kept | None) -> None:
        old = self._kept.pop(key, None)
        self._copies_bytes += _copy_bytes(kept) - _copy_bytes(old)
        if kept is not None:
            self._kept[key] = kept
            self._sweep_later()
        if old is not None and (kept is None or old.file != kept.file):
            self._journal.drop_file(old.file)

    def _limit(self) -> None:
        """Keep no more than may be kept: the oldest go first."""
        size, count, too_many = self._copies_bytes, len(self._kept), []
        if count <= MAX_KEYS and size <= COPIES_BYTES:
            return
        for key, kept in self._kept.items():
            if count <= MAX_KEYS and (size <= COPIES_BYTES or kept.file is None):
                continue
            too_many.append(key)
            count -= 1
            size -= _copy_bytes(kept)
        if not self._has_told:
            self._has_told = True
            self.log.warn(
                "more is in doubt than can be kept ({count} objects, {size} bytes of copies): what was written first "
                "is given up, which an older write may yet undo", count=len(self._kept), size=self._copies_bytes,
            )  # fmt: skip
        self._give_up(too_many)

    def shed(self) -> bool:
        """Give all copies up, since the disk is wanted for more than them. Whether any went."""
        keys = [key for key, kept in self._kept.items() if kept.file is not None]
        if keys:
            self.log.warn(
                "the local disk is full: copies of {count} shares are given up, which an older write may yet undo",
                count=len(keys),
            )  # fmt: skip
            for key in keys:
                self._journal.drop_file(self._kept[key].file)
            self._give_up(keys)
        return bool(keys)

    def _give_up(self, keys: list[str]) -> None:
        if keys:
            self._store.in_background(self.forget(*keys))

    @inlineCallbacks
    def forget(self, *keys: str) -> Generator[Deferred[Any], Any, None]:
        """These were deleted, or nobody has a copy of what they should be: the bucket is believed. Fires when that may
        be acknowledged."""
        # Not those of which a newer version is being written down: its row would go.
        known = {key: self._kept[key] for key in keys if key in self._kept and key not in self._keeping}
        if not known:
            return
        yield self._write({key: self._entry(key, None) if key in self._deleting else None for key in known})
        reach("late.forgotten")
        for key, kept in known.items():
            if self._kept.get(key) is kept:
                self._replace(key, None)

    # deletions by this node

    def about_to_delete(self, keys: Collection[str]) -> Deferred[None]:
        """Nobody has a copy of these immutable shares: who stores them again meanwhile keeps theirs. Fires when that
        is known for the time after a crash, too; fails with Unavailable."""
        now_s = self._now_s()
        self._deleting.update(dict.fromkeys(keys, now_s))
        written = self._write({key: Entry(now_s, True, self._kept.get(key)) for key in keys})

        def cannot(failure: Failure) -> Failure:
            failure.trap(OSError)
            self._end_deleting(keys)
            return Failure(Unavailable(f"cannot note what is to be deleted: {failure.value}", kind="local"))

        return written.addErrback(cannot)

    def deletion_ended(self, keys: Collection[str], gone: Collection[str]) -> None:
        """It has an outcome, and these are `gone`; of which nobody knows, is in doubt."""
        self._end_deleting([key for key in keys if key not in self._doubts])
        too_many = list(self._deleting)[: max(0, len(self._deleting) - MAX_KEYS)]
        self._end_deleting(too_many)
        self._store.in_background(self._write({key: self._entry_of(key) for key in [*too_many, *keys]}))
        self._give_up([key for key in gone if key in self._kept])
        if self._deleting:
            self._sweep_later()

    def _end_deleting(self, keys: Collection[str]) -> None:
        for key in keys:
            self._deleting.pop(key, None)

    # the end of doubts

    def _sweep_later(self) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            self._store.later(LATE_S, self._sweep)

    def _sweep(self) -> None:
        """What is in doubt no more is not kept, but for what is to be looked at once more before."""
        self._is_sweeping = self._has_told = False
        old = [key for key in {**self._kept, **self._deleting} if not self.is_in_doubt(key)]
        if old:
            self._end_deleting(old)
            only_deleted = [key for key in old if key not in self._kept and key not in self._keeping]
            self._store.in_background(self._write(dict.fromkeys(only_deleted)))
            self._give_up([key for key in old if key in self._kept and key not in self._rounds])
        if self._kept or self._deleting:
            self._sweep_later()

    # checks

    def _begin_round(self, key: str) -> None:
        """From now on the key is looked at after each of CHECKS_S; an earlier round of it ends."""
        if parse_key(key) is None or (len(self._rounds) >= MAX_KEYS and key not in self._rounds):
            return
        self._serial += 1
        self._rounds[key] = self._serial
        self._schedule(key, self._serial, 0)

    def _schedule(self, key: str, serial: int, number: int) -> None:
        self._store.later(CHECKS_S[number], lambda: self._check(key, serial, number))

    def _check(self, key: str, serial: int, number: int) -> None:
        if self._rounds.get(key) != serial or self._store.is_stopping:
            return

        def ended(result: Any) -> Any:
            self._checked(key, serial, number, is_to_repeat=result is False)
            return result

        self._store.in_background(self._look(key).addBoth(ended))

    def _look(self, key: str) -> Deferred[bool]:
        """Under its lock, with the bucket in order. Errors are logged; False where the service could not be asked, and
        may be another time."""
        name = parse_key(key)
        assert name is not None

        def look() -> Deferred[None]:
            self._store.require_ready()
            return self.undone.look(name)

        looked = self._store.slots.run(name.storage_index, look)
        return looked.addCallbacks(lambda _: True, self._cannot_tell, errbackArgs=(key,))

    def _cannot_tell(self, failure: Failure, key: str) -> bool:
        what = failure.trap(S3Error, OSError, ValueError)
        self.log.warn("cannot tell whether {key} is as it was written: {error}", key=key, error=str(failure.value))
        return what is ValueError

    def _checked(self, key: str, serial: int, number: int, *, is_to_repeat: bool) -> None:
        if self._rounds.get(key) != serial:
            return
        is_kept = key in self._kept
        if number + 1 < len(CHECKS_S):
            self._schedule(key, serial, number + 1)
        elif is_to_repeat and is_kept:
            # The copy stays until the service can be asked.
            self._schedule(key, serial, number)
        else:
            del self._rounds[key]
            if is_kept and not self.is_in_doubt(key):
                self._give_up([key])

    # the start and the stop

    def judge(self, instance: str | None) -> None:
        """At a start: the mark in the bucket is this instance's, or there is none. Where no run of ours has written it,
        another node was at work since, and what must be in the bucket is its."""
        if self._kept and instance not in self._journal.instances:
            self.log.warn(
                "{count} objects of which an older write may be applied yet are left as they are: since they were "
                "written, another node has had the bucket", count=len(self._kept),
            )  # fmt: skip
            self._over.update(self._kept)
            self._kept.clear()
            self._copies_bytes = 0

    @inlineCallbacks
    def about_to_claim(self, instance: str) -> Generator[Deferred[Any], Any, None]:
        """This run's mark is about to be written. Fires when a start that finds it will know that it was ours, and
        will not believe what counts no more."""
        journal, over = self._journal, dict(self._over)
        if instance not in journal.instances:
            journal.instances = [*journal.instances[-MAX_INSTANCES:], instance]
        if journal.is_made:
            yield journal.write(dict.fromkeys(over))
        for kept in over.values():
            journal.drop_file(None if kept is None else kept.file)
        self._over.clear()

    @inlineCallbacks
    def begin(self, *, is_unclean: bool) -> Generator[Deferred[Any], Any, None]:
        """At a start, when the bucket is known to be ours and its listing has begun, before anything is answered.

        is_unclean: nobody knows what was under way when the node last ended. What cannot be settled now stays unsure.
        """
        self._journal.instances = self._journal.instances[-1:]
        if is_unclean or self._journal.was_damaged:
            yield self._journal.note_unclean(self._now_s())
            self._journal.was_damaged = False
        elif self._journal.is_made:
            yield self._journal.write({})
        for key in list(self._doubts):
            self._begin_round(key)
        if self._kept or self._deleting:
            self._sweep_later()
        self.mark_undone()
        yield self._settle_all()
        reach("open.settled")

    def _settle_all(self) -> Deferred[None]:
        """What is unsure, for SETTLE_S at most; then the rest goes on while the node serves."""
        store, gate = self._store, DeferredSemaphore(LOOKS_AT_ONCE)
        unsure = [(self._settle, si) for si in store.slots.unsure]
        in_doubt = [(self._settle_leases, si) for si in store.index.doubted_overlays]
        waiter: Deferred[None] = Deferred(lambda _: None)
        timer = store.reactor.callLater(SETTLE_S, waiter.callback, None)

        def ended(result: Any) -> Any:
            if waiter.called:
                return result
            timer.cancel()
            waiter.callback(result if isinstance(result, Failure) else None)
            return None

        settled = all_of([gate.run(settle, si) for settle, si in [*unsure, *in_doubt][:MAX_LOOKS]])
        store.in_background(settled.addBoth(ended))
        return waiter

    def mark_undone(self) -> None:
        """What must be in the bucket and may not be there is unsure, until the bucket was asked."""
        index, slots = self._store.index, self._store.slots
        for key, kept in self._kept.items():
            name = parse_key(key)
            if isinstance(name, ShareId):
                row = index.share(*name)
                if row is not None and row.etag == kept.etag and index.has_seen(name):
                    # Not by what a listing says alone: who reads must notice another.
                    index.put_share(name.storage_index, replace(row, etag_is_sure=True))
                else:
                    slots.mark_unsure(*name)
            elif isinstance(name, LeaseId):
                self._mark_leases(name.storage_index, kept)

    def _mark_leases(self, storage_index: bytes, kept: Kept) -> None:
        index = self._store.index
        row = index.overlay(storage_index)
        if row is not None and row.etag == kept.etag and index.has_seen(LeaseId(storage_index)):
            index.put_overlay(storage_index, replace(row, leases=kept.leases))
        else:
            index.doubt_overlay(storage_index, was_deleted=True)

    def _settle(self, storage_index: bytes) -> Deferred[None]:
        if self._store.is_stopping:
            # The next start asks.
            return succeed(None)
        settled = self._store.slots.run(storage_index, lambda: succeed(None))
        return settled.addErrback(self._cannot_settle, storage_index)

    def _settle_leases(self, storage_index: bytes) -> Deferred[None]:
        if self._store.is_stopping:
            return succeed(None)
        settled = self._store.slots.run(storage_index, lambda: self._store.overlay.settle(storage_index))
        return settled.addErrback(self._cannot_settle, storage_index)

    def _cannot_settle(self, failure: Failure, storage_index: bytes) -> None:
        failure.trap(S3Error, OSError, ValueError)
        self.log.warn("what is unsure of {key} stays so: {error}", key=share_key(storage_index, 0).rpartition("/")[0],
                      error=str(failure.value))  # fmt: skip

    @inlineCallbacks
    def close(self) -> Generator[Deferred[Any], Any, None]:
        """Leave what is in doubt to the next start. When nothing is under way any more."""
        journal, keys = self._journal, {*self._doubts, *self._kept, *self._deleting}
        rows = {key: self._entry(key, self._kept.get(key)) if self.is_in_doubt(key) else None for key in keys}
        if journal.unclean_s is not None and not self._is_young(journal.unclean_s):
            journal.unclean_s = None
        if journal.is_made or any(row is not None for row in rows.values()):
            try:
                yield journal.write(rows)
            except OSError:
                journal.abandon()
                raise
        for key, row in rows.items():
            if row is None and key in self._kept:
                journal.drop_file(self._kept[key].file)
        journal.close()

    def abandon(self) -> None:
        """Without a word, as a crash would."""
        self._journal.abandon()


def _copy_bytes(kept: Kept | None) -> int:
    """Of its copy, if there is one."""
    return 0 if kept is None or kept.file is None else kept.size
