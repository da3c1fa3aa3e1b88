# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings the index into line with the bucket at every start, while the node already serves.

The bucket is listed once, in the order of its keys. The node waits for the first pages only, so that a small bucket is
known before anybody asks. An index that a clean stop has kept answers for everything at once. Any other answers for
the storage indexes that the listing has passed; of each of the others the shares are listed by themselves when somebody
first needs it, which all who ask meanwhile share (store/slots.py waits for it before every answer and every write).

A row that was written, and a share or lease object that was deleted, since the listing began is not touched by its
pages (store/index.py). What no page showed is asked for again, minutes apart (Store.vanished). A listing that breaks
off goes on behind its last page, after a pause. A clean stop remembers how far it came; the next start begins there,
and lists what lies before afterwards, so that each start has seen the whole bucket once.

Listings of some services lag. So an index that began with nothing does not know what is absent (Index.knows_absences):
no lease object is written before it was asked for, until a whole listing has been made that began LAG_S or more after
the index did, by which time every listing shows what was written before. Where the node runs for so long it lists the
bucket once more for that, and takes from it only what it has no row of; else the next start's listing is the one. What
is written since the index began has rows. A bucket that was nobody's, and where nothing of ours is listed, has nothing
to hide.

Owner: the Store. Thread: the reactor's, one page of at most a thousand keys a turn once the node serves. Errors:
those of the listing before the node serves are begin()'s; later ones are logged and tried again. look_up() fails with
an S3Error: nobody is told that there is no share before the bucket has said so. Limits: MAX_LOOKED_UP storage indexes
are remembered as looked up. Requests: those of S3Client.list_all, once more LAG_S after an unclean stop, and one for
each storage index that is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, NoSuchBucket, Page, S3Error, Unavailable
from tahoe_s3.store.keys import (
    LEASES,
    OWNER_KEY,
    SHARES,
    STORAGE_INDEX_BYTES,
    KeySplits,
    LeaseId,
    ShareId,
    parse_key,
    slot_prefix,
    span_before,
)
from tahoe_s3.store.points import reach
from tahoe_s3.store.versions import Shared

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: The node serves when so many keys were listed, or this many seconds have passed and a page was.
START_KEYS = 10_000
START_WAIT_S = 5.0
#: Seconds until a listing that broke off goes on: doubled each time, up to the last; that at once where the service
#: refused it.
RETRY_S = 30.0
MAX_RETRY_S = 600.0
#: Storage indexes that are known to have been looked up; more are looked up again when they are asked for again.
MAX_LOOKED_UP = 100_000
#: Seconds that a client may wait until a storage index was looked up.
LOOK_UP_S = 60.0
#: Shares that no page showed and that are being asked for, at most; the others wait for PAUSE_S.
MAX_VANISHING = 5000
PAUSE_S = 60.0
#: What was written so many seconds before a listing began is shown by it, whatever the service.
LAG_S = 1800.0
#: Seconds between two lines of progress in the log.
TELL_EVERY_S = 60.0

_CHECKPOINT = "listing"
# By the service's clock: when the index began with nothing; "" once it knows absences.
_BEGAN = "the index's beginning"
# After every digit: behind all keys that begin with the prefix of a storage index's shares.
_BEHIND_DIGITS = ":"


class _Enough(Exception):
    """The listing has come to where this start began."""


class _Stopped(Exception):
    """The node stops, or the start begins anew."""


@dataclass(frozen=True)
class Progress:
    """How far the listing has come.

    is_complete: the whole bucket was listed since the start. answers_for_all: no storage index needs to be looked up
    any more, so that the counts and sums of the index are those of the bucket. keys: keys that were listed. part: of
    the key space, from 0 to 1. since_s: when it began, in seconds since the epoch; None before a start. problem: why
    it does not go on at the moment, or None.
    """

    is_complete: bool
    answers_for_all: bool
    keys: int
    part: float
    since_s: float | None
    problem: str | None


class Rebuild:
    """See the module. Complete until begin() is called."""

    log = Logger()

    def __init__(self, store: Store) -> None:
        self._store = store
        #: Another node's mark was found below our prefix: nothing may be written or answered here.
        self.refused: errors.ConfigError | None = None
        self._bucket = self._prefix = ""
        self._is_complete = True
        self._answers_for_all = True
        self._has_begun = False
        self._is_sorted = True
        # Everything up to here was applied, in order. _upto: where this listing began, if not at the first key, and it
        # has gone round since.
        self._position = ""
        self._upto = ""
        self._keys = 0
        self._part = 0.0
        self._since_s: float | None = None
        self._told_s = 0.0
        # By the service's clock: when the index began with nothing, and when the listing under way did.
        self._index_began_s = self._began_s = 0.0
        self._was_nobodys = self._has_ours = False
        self._failures = 0
        self._problem: str | None = None
        self._looked_up: set[bytes] = set()
        self._looking: dict[bytes, Shared[None]] = {}
        # One run: what it waits for, and who waits for it before the node serves.
        self._waiting: Deferred[Any] | None = None
        self._is_stopped = False
        self._starting: Deferred[None] | None = None
        self._start_timer: Any = None
        self._needs_share = False
        self._has_waited = False
        self._on_refused: Callable[[errors.NestedOwner], None] = lambda _: None

    # what is known

    @property
    def is_complete(self) -> bool:
        """Whether the whole bucket was listed since the start."""
        return self._is_complete

    @property
    def answers_for_all(self) -> bool:
        """Whether the index has all shares and lease objects, as far as this node can know."""
        return self._answers_for_all

    @property
    def progress(self) -> Progress:
        return Progress(
            self._is_complete, self._answers_for_all, self._keys, 1.0 if self._is_complete else self._part,
            self._since_s, self._problem,
        )  # fmt: skip

    def covers(self, storage_index: bytes) -> bool:
        """Whether the index knows all shares of this storage index."""
        if self.refused is not None:
            return False
        if self._answers_for_all or storage_index in self._looked_up or len(storage_index) != STORAGE_INDEX_BYTES:
            return True
        return self._is_sorted and self._position >= slot_prefix(storage_index) + _BEHIND_DIGITS

    def look_up(self, storage_index: bytes) -> Deferred[None]:
        """Fires when the index knows all shares of it; at once where it does. Lease objects are read when they are
        needed, since that there is none is not taken from the index of a share that a listing told of."""
        if self.refused is not None:
            return fail(Unavailable(str(self.refused), kind="local"))
        if self.covers(storage_index):
            return succeed(None)
        shared = self._looking.get(storage_index)
        if shared is None:
            work = self._look_up(storage_index)

            def ended(result: Any) -> Any:
                self._looking.pop(storage_index, None)
                return result

            shared = Shared(work.addBoth(ended))
            if not shared.done:
                self._looking[storage_index] = shared
        return shared.wait()

    @inlineCallbacks
    def _look_up(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        found: list[tuple[ShareId, int, str, int]] = []

        def take(page: Page) -> None:
            for entry in page.entries:
                name = parse_key(entry.key)
                if isinstance(name, ShareId) and name.storage_index == storage_index:
                    found.append((name, entry.size, entry.etag, entry.modified_s))

        yield self._store.client.list_all(slot_prefix(storage_index), take, priority=0, deadline_s=LOOK_UP_S)
        if self.covers(storage_index):
            # The listing came by meanwhile, and what has changed since then is not known to this answer.
            return
        reach("lookup.asked")
        self._store.index.confirm_shares(found)
        if len(self._looked_up) >= MAX_LOOKED_UP:
            self._looked_up.clear()
        self._looked_up.add(storage_index)
        reach("lookup.noted")

    # its life

    def begin(
        self, *, bucket: str, prefix: str, needs_share: bool, was_nobodys: bool,
        on_refused: Callable[[errors.NestedOwner], None],
    ) -> Deferred[None]:  # fmt: skip
        """List the bucket. Fires when the node may serve; fails with an S3Error or errors.NestedOwner.

        Called again, after the start failed, it goes on where it was. bucket, prefix: for messages. needs_share: the
        node must not be made before it is known whether there is any share. was_nobodys: there was no owner's mark
        before this start. on_refused is called when another node's mark is found later.
        """
        self.stop()
        if not self._has_begun:
            self._has_begun = True
            self._position, self._answers_for_all = self._checkpoint()
        if not self._is_sorted:
            self._position = ""
        self._recall_beginning()
        self._begin_listing()
        self._store.foreign_keys = 0
        self._bucket, self._prefix, self.refused = bucket, prefix, None
        self._is_stopped = self._is_complete = self._has_waited = False
        self._was_nobodys, self._keys = was_nobodys, 0
        self._needs_share, self._on_refused = needs_share, on_refused
        self._since_s = self._told_s = self._store.reactor.seconds()
        starting = self._starting = Deferred(lambda _: None)
        self._start_timer = self._store.reactor.callLater(START_WAIT_S, self._wait_no_more)
        self._store.in_background(self._run().addErrback(self._ended_badly))
        return starting

    def _begin_listing(self, *, only_adds: bool = False) -> None:
        """From the position on. only_adds: see Index.begin_listing()."""
        self._store.index.begin_listing(only_adds=only_adds)
        reach("list.begun")
        self._is_sorted, self._upto, self._has_ours = True, "", False
        self._began_s = self._service_time_s()

    def forget(self) -> None:
        """The index was emptied while the node runs: the next begin() begins with nothing."""
        self._has_begun = self._answers_for_all = False
        self._position = ""
        self._looked_up.clear()

    def stop(self) -> None:
        """End the listing, if there is one. Nothing more is written to the index by it."""
        self._is_stopped = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def remember(self) -> None:
        """Write down how far it came, for the next start. After stop()."""
        text = ""
        if not self._is_complete:
            position = self._position if self._is_sorted else ""
            text = json.dumps({"after": position, "answers_for_all": self._answers_for_all})
        self._store.index.remember(_CHECKPOINT, text)

    def _checkpoint(self) -> tuple[str, bool]:
        """Where the last run was, and whether the index was whole then."""
        index = self._store.index
        text = index.recall(_CHECKPOINT)
        if not text:
            return "", index.was_kept
        try:
            document = json.loads(text)
            after, answers_for_all = document["after"], document["answers_for_all"]
            if isinstance(after, str) and isinstance(answers_for_all, bool):
                return after, answers_for_all
        except (ValueError, KeyError, TypeError) as error:
            self.log.warn("how far the last listing came cannot be read: {error}", error=repr(error))
        return "", False

    # what listings that lag hide

    def _service_time_s(self) -> float:
        """By the service's clock, as far as it has told: this machine's may be set while the node is stopped."""
        return float(self._store.reactor.seconds()) + (self._store.client.clock_difference_s or 0.0)

    def _recall_beginning(self) -> None:
        """When the index began with nothing: now, unless it was kept."""
        index, now_s = self._store.index, self._service_time_s()
        text = index.recall(_BEGAN)
        index.knows_absences = text == ""
        try:
            # One that lies ahead would be waited for.
            self._index_began_s = min(now_s, float(text or now_s))
        except ValueError as error:
            self.log.warn("when the index began cannot be read: {error}", error=str(error))
            self._index_began_s = now_s
        if not index.knows_absences:
            index.remember(_BEGAN, repr(self._index_began_s))

    def _note_absences(self) -> None:
        """A whole listing has come. Did it begin so late that nothing can be hidden from it?"""
        is_new = self._was_nobodys and not self._has_ours
        if is_new or self._began_s - self._index_began_s >= LAG_S:
            self._store.index.knows_absences = True
            self._store.index.remember(_BEGAN, "")

    def _schedule_another(self) -> None:
        """Another listing, so late that it shows what this one may have hidden, if anything can be."""
        if not self._store.index.knows_absences:
            wait_s, began_s = self._index_began_s + LAG_S - self._service_time_s(), self._began_s
            self._store.later(max(0.0, min(wait_s, LAG_S)), lambda: self._list_once_more(began_s))

    def _list_once_more(self, began_s: float) -> None:
        if self._is_stopped or self._began_s != began_s:
            # It was begun anew meanwhile.
            return
        if self._service_time_s() < self._index_began_s + LAG_S:
            self._schedule_another()
        else:
            self._store.in_background(self._run_once_more().addErrback(self._ended_badly))

    @inlineCallbacks
    def _run_once_more(self) -> Generator[Deferred[Any], Any, None]:
        self._position = ""
        self._begin_listing(only_adds=True)
        yield self._list()
        yield self._finish()
        self._schedule_another()

    # before the node serves

    def _wait_no_more(self) -> None:
        self._start_timer = None
        self._has_waited = True
        self._maybe_serve()

    def _maybe_serve(self) -> None:
        enough = self._keys >= START_KEYS or (self._has_waited and self._keys > 0)
        if enough and (not self._needs_share or self._store.index.share_count > 0):
            self._tell_started(None)

    def _tell_started(self, result: Any) -> None:
        """The node may serve, or it may not."""
        starting, self._starting = self._starting, None
        timer, self._start_timer = self._start_timer, None
        if timer is not None:
            timer.cancel()
        if starting is not None:
            starting.callback(result)

    @property
    def _serves(self) -> bool:
        return self._starting is None

    def _ended_badly(self, failure: Failure) -> None:
        if failure.check(_Stopped):
            if not self._serves:
                self._tell_started(Failure(Unavailable("the start was given up", kind="local")))
        elif not self._serves:
            self._tell_started(failure)
        elif isinstance(failure.value, errors.NestedOwner):
            # From here on nothing is answered or written: look_up() fails, for which all of that waits.
            self.refused, self._problem = failure.value, str(failure.value)
            self._on_refused(failure.value)
        else:
            self._problem = failure.getErrorMessage()
            self.log.failure("the bucket is not listed to its end before the next start", failure=failure)

    # the listing

    @inlineCallbacks
    def _run(self) -> Generator[Deferred[Any], Any, None]:
        began_at = self._position
        yield self._list()
        if began_at:
            if self._is_sorted:
                self._answers_for_all = True
            self._upto, self._position = began_at, ""
            yield self._list()
        yield self._finish()
        self._tell_started(None)
        self._schedule_another()

    @inlineCallbacks
    def _list(self) -> Generator[Deferred[Any], Any, None]:
        """From behind the position to the end, or to where this listing began; again and again once the node serves."""
        while True:
            try:
                yield self._wait_for(
                    self._store.client.list_all("", self._take_page, after=self._position, splits=KeySplits())
                )
                return
            except _Enough:
                return
            except (_Stopped, errors.NestedOwner):
                raise
            except Exception as error:
                if not self._serves:
                    raise
                delay_s = self._delay_s(error)
                self._note_failure(error, delay_s)
            yield self._pause(delay_s)
            if not self._is_sorted:
                # Nobody knows what lies behind the last key.
                self._position = ""

    def _delay_s(self, error: Exception) -> float:
        delay_s = min(MAX_RETRY_S, RETRY_S * 2.0**self._failures)
        self._failures += 1
        return MAX_RETRY_S if isinstance(error, (AccessDenied, NoSuchBucket)) else delay_s

    def _note_failure(self, error: Exception, delay_s: float) -> None:
        self._problem = f"{type(error).__name__}: {error}"
        if isinstance(error, S3Error):
            self.log.warn(
                "listing the bucket broke off at {part:.0%}, and goes on in {delay_s:.0f} seconds: {error}",
                part=self._part, delay_s=delay_s, error=str(error),
            )  # fmt: skip
        else:
            self.log.failure("what the bucket has could not be noted; this is tried again")

    def _wait_for(self, work: Deferred[Any]) -> Deferred[Any]:
        """Wait for it unless stop() comes first, which fails with _Stopped."""
        if self._is_stopped:
            work.addErrback(lambda _: None)
            work.cancel()
            return fail(_Stopped())
        self._waiting = work

        def ended(result: Any) -> Any:
            if self._waiting is work:
                self._waiting = None
            return Failure(_Stopped()) if self._is_stopped else result

        return work.addBoth(ended)

    def _pause(self, delay_s: float) -> Deferred[None]:
        return self._wait_for(deferLater(self._store.reactor, delay_s, lambda: None))

    def _take_page(self, page: Page) -> Deferred[Any] | None:
        """The next page. Once the node serves, each has a turn of the reactor to itself."""
        if self._is_stopped:
            raise _Stopped
        if self._serves:
            return deferLater(self._store.reactor, 0, self._note_page, page)
        self._note_page(page)
        return None

    def _note_page(self, page: Page) -> None:
        """Bring the index into line with what a page shows."""
        shares: list[tuple[ShareId, int, str, int]] = []
        overlays: list[tuple[bytes, int, str, int]] = []
        foreign = 0
        last = self._position
        for entry in page.entries:
            key = entry.key
            if key <= last:
                self._is_sorted = False
            last = key
            name = parse_key(key)
            if isinstance(name, ShareId):
                shares.append((name, entry.size, entry.etag, entry.modified_s))
            elif isinstance(name, LeaseId):
                overlays.append((name.storage_index, entry.size, entry.etag, entry.modified_s))
            elif key != OWNER_KEY:
                self._refuse_owner_below(key)
                foreign += 1
        index = self._store.index
        if overlays:
            index.confirm_overlays(overlays)
        if shares:
            index.confirm_shares(shares)
        # Only now: a page that could not be noted comes again.
        self._has_ours = self._has_ours or bool(shares or overlays)
        if not self._is_complete:
            self._store.foreign_keys += foreign
            self._keys += len(page.entries)
        self._position = last
        self._failures, self._problem = 0, None
        self._note_progress()
        reach("list.page")
        if self._upto and self._is_sorted and last >= self._upto:
            raise _Enough
        if not self._serves:
            self._maybe_serve()

    def _refuse_owner_below(self, key: str) -> None:
        if key.endswith(f"/{OWNER_KEY}") and not key.startswith((SHARES, LEASES)):
            raise errors.NestedOwner(bucket=self._bucket, key=self._prefix + key)

    def _note_progress(self) -> None:
        done, began = span_before(self._position), span_before(self._upto)
        # Gone round: the part behind where it began is done.
        self._part = min(1.0, 1.0 - began + done) if self._upto else done
        now_s = self._store.reactor.seconds()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            self.log.info(
                "{keys} keys of the bucket are listed, {part:.0%} of the key space", keys=self._keys, part=self._part
            )

    @inlineCallbacks
    def _finish(self) -> Generator[Deferred[Any], Any, None]:
        """Every page was noted. What none of them showed may be the fault of a listing that lags."""
        store, index = self._store, self._store.index
        reach("list.done")
        self._note_absences()
        if index.knows_absences:
            index.end_listing()
        self._answers_for_all = True
        self._looked_up.clear()
        for overlays in index.unseen_overlays():
            for storage_index in overlays:
                index.doubt_overlay(storage_index)
            yield self._turn()
        self._is_complete = True
        reach("list.noted")
        self.log.info(
            "{count} shares of {used} bytes in the bucket {bucket}; {foreign} keys there are not ours",
            count=index.share_count, used=index.used_bytes, bucket=self._bucket, foreign=store.foreign_keys,
        )  # fmt: skip
        for shares in index.unseen_shares():
            while shares and store.vanishing_count >= MAX_VANISHING:
                # So much is gone that somebody must have emptied the bucket; the node need not wait for all of it.
                self._tell_started(None)
                yield self._pause(PAUSE_S)
            for share in shares:
                store.vanished(*share)
            yield self._turn()

    def _turn(self) -> Deferred[None]:
        """Let others have a turn, once there are others."""
        return self._pause(0) if self._serves else succeed(None)
