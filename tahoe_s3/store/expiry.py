# SPDX-License-Identifier: GPL-2.0-or-later
"""Goes through all leases twice a day, counts them, and deletes shares whose leases have all expired.

A cycle takes one stretch of storage indexes after the other. SQL picks those where something may have expired; what
the index does not know of them is asked, a few a second, at background priority; those that may go by
store/lease_policy.py are deleted in batches. Right before a batch leaves, the bucket is asked whether it is still
ours (store/watch.py), which also tells the service's time; then, in one turn of the reactor, the locks of its storage
indexes are taken and everything is judged again from the index. A storage index whose lock somebody has is left for
the next cycle, so a batch waits for nobody and a renewal that came first wins. Lease objects go last.

Nothing is looked at before the bucket was listed to its end. Nothing is deleted before the second cycle under the same
settings, while this machine's clock and the service's differ by more than MAX_DIFFERENCE_S, nor before the second
cycle after the clock was set. The earlier one of the two clocks decides what has expired.

That the node was away, for so long that clients may have missed the day on which they renew, counts as a set clock.

Owner: the storage server, which starts and stops it. Thread: the reactor's. Errors: none leave it; they are logged,
and what could not be done is tried again. Limits: SLOTS_A_STEP storage indexes a step that cost requests, and
STRETCH_ROWS rows; a step a second. Without expiry it makes no request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Callable, Final

from allmydata.storage.common import UnknownImmutableContainerVersionError, UnknownMutableContainerVersionError
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import AccessDenied, Changed, NotFound, S3Error
from tahoe_s3.store.containers import DamagedContainerError
from tahoe_s3.store.expiry_batch import MAX_KEYS, Batch
from tahoe_s3.store.keys import ShareId, share_key, si_text
from tahoe_s3.store.learning import learn_leases, learn_modified, learn_overlay
from tahoe_s3.store.lease_account import LAST, LeaseAccount
from tahoe_s3.store.lease_policy import LeasePolicy, is_known, is_overlay_expired
from tahoe_s3.store.leases import OverlayError
from tahoe_s3.store.points import reach
from tahoe_s3.store.versions import ShareGone

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: As Tahoe's lease checker: seconds from the start to the first cycle, and from one cycle's start to the next's.
SLOW_START_S = 360.0
CYCLE_S = 12 * 60 * 60.0
STEP_S = 1.0
#: Shares that are counted in one step: two milliseconds of SQL.
STRETCH_ROWS = 1000
#: Storage indexes that are looked at in one step: those that cost requests, and in all.
SLOTS_A_STEP = 16
KNOWN_SLOTS_A_STEP = 200
#: How often one that cannot be read for the service's sake is tried in a cycle.
TRIES = 3
#: Seconds until a step that failed is tried again: doubled each time, up to the last.
RETRY_S = 30.0
MAX_RETRY_S = 600.0
#: The most that this machine's clock and the service's may differ, as for signatures.
MAX_DIFFERENCE_S = 15 * 60
#: The node was away when its last cycle began longer ago than this.
AWAY_S = 2 * CYCLE_S
#: The clock was set when it moved by more than this against one that cannot be set.
JUMP_S = 60.0
BACKGROUND: Final = 2


def steady_s() -> float:
    """Seconds on a clock that nobody can set, and that goes on while the machine sleeps where there is such a one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Expirer:
    """See the module. `now_s`: this machine's time; `steady_s`: seconds on a clock that cannot be set."""

    log = Logger()

    def __init__(
        self, store: Store, policy: LeasePolicy, *, now_s: Callable[[], float], steady_s: Callable[[], float]
    ) -> None:
        self.policy = policy
        self._store = store
        self._now_s = now_s
        self._steady_s = steady_s
        self._offset_s = now_s() - steady_s()
        self.account = LeaseAccount(store.index, policy, now_s=now_s())
        self.next_step_s: float | None = None
        #: Why nothing is deleted though expiry is on, as last found.
        self.held_back: str | None = None
        self._running = False
        self._failures = 0
        # The stretch under way: its end, the storage indexes still to be looked at, how often each was tried.
        self._upto: bytes | None = None
        self._todo: deque[bytes] = deque()
        self._tries: dict[bytes, int] = {}
        # Those that may go, with the number of their shares.
        self._doomed: dict[bytes, int] = {}

    # its life

    def start(self) -> None:
        """A cycle that an earlier run began goes on, after a while."""
        if self._running:
            return
        self._running = True
        wait_s = SLOW_START_S
        started_s = self.account.state.started_s
        if self.policy.enabled and started_s is not None and self._now_s() - started_s > AWAY_S:
            self._was_away(self._now_s() - started_s)
        elif self.account.state.cycle is None and started_s is not None:
            wait_s = max(wait_s, min(CYCLE_S, started_s + CYCLE_S - self._now_s()))
        self._step_in(wait_s)

    def _was_away(self, away_s: float) -> None:
        """Nobody could renew a lease here meanwhile. (Or the clock was set while the node was stopped.)"""
        self.log.warn(
            "This node was away for {days:.1f} days, in which no lease could be renewed: nothing is deleted before a "
            "whole cycle over all leases has passed.",
            days=away_s / 86_400,
        )
        self.account.start_over(self._now_s())

    def stop(self) -> None:
        """Begin nothing more. What was begun ends: the store waits for it."""
        self._running = False

    @property
    def in_cycle(self) -> bool:
        return self.account.state.cycle is not None

    def _step_in(self, delay_s: float) -> None:
        self.next_step_s = self._now_s() + delay_s
        self._store.later(delay_s, self._begin_step)

    def _begin_step(self) -> None:
        if self._running and not self._store.is_stopping:
            step: Deferred[Any] = maybeDeferred(self._step)
            step.addCallbacks(self._went_well, self._failed)
            self._store.in_background(step.addCallback(self._step_in))

    def _went_well(self, delay_s: float) -> float:
        self._failures = 0
        return delay_s

    def _failed(self, failure: Failure) -> float:
        delay_s = min(MAX_RETRY_S, RETRY_S * 2.0**self._failures)
        self._failures += 1
        self._store.note_failure("looking after leases", failure)
        if failure.check(S3Error):
            self.log.warn(
                "looking after leases goes on in {delay_s:.0f} seconds: {error}", delay_s=delay_s,
                error=failure.getErrorMessage(),
            )  # fmt: skip
        else:
            self.log.failure("looking after leases failed", failure=failure)
        return delay_s

    # a step

    @inlineCallbacks
    def _step(self) -> Generator[Deferred[Any], Any, float]:
        """One piece of work; fires with the seconds until the next."""
        if self._store.problem is not None or not self._store.rebuild.is_complete:
            return RETRY_S
        if self._clock_was_set():
            return SLOW_START_S
        if not self.in_cycle:
            self._begin_cycle()
        if not self._is_batch_full():
            yield self._go_on()
        at_end = self._upto is None and self.account.position == LAST
        if self._doomed and (at_end or self._is_batch_full()):
            yield self._delete_some()
            if not self.in_cycle:
                return SLOW_START_S
        if at_end and not self._doomed:
            return self._finish_cycle()
        return STEP_S

    @inlineCallbacks
    def _go_on(self) -> Generator[Deferred[Any], Any, None]:
        """Look at some of the stretch under way, or begin the next."""
        if self._upto is None:
            self._begin_stretch()
        if self._todo:
            yield self._look_at_some()
        if not self._todo:
            self._finish_stretch()

    def _is_batch_full(self) -> bool:
        return sum(self._doomed.values()) >= MAX_KEYS

    def _begin_cycle(self) -> None:
        self._drop_cycle()
        self.account.begin_cycle(self._now_s())

    def _drop_cycle(self) -> None:
        self._upto, self.held_back = None, None
        self._todo.clear()
        self._doomed.clear()

    def _finish_cycle(self) -> float:
        state = self.account.state
        recovered = self.account.finish_cycle(self._now_s())
        if recovered["actual-shares"]:
            self.log.info(
                "a cycle over the leases of {examined} shares has deleted {shares} shares of {size} bytes",
                examined=recovered["examined-shares"], shares=recovered["actual-shares"],
                size=recovered["actual-sharebytes"],
            )  # fmt: skip
        assert state.started_s is not None
        return max(STEP_S, min(CYCLE_S, state.started_s + CYCLE_S - self._now_s()))

    def _begin_stretch(self) -> None:
        self._upto = self.account.end_of_stretch(STRETCH_ROWS)
        self._tries.clear()
        if self.policy.enabled:
            self._todo.extend(self.account.candidates(self._upto, before_s=self._before_s()))

    def _finish_stretch(self) -> None:
        if self._upto is not None:
            now_s = self._earlier_now_s()
            self.account.count_stretch(self._upto, now_s=now_s, before_s=self.policy.before_s(now_s))
            self._upto = None

    # time

    def _clock_was_set(self) -> bool:
        """Whether the clock has jumped since this was last asked. Then all starts over."""
        before_s, self._offset_s = self._offset_s, self._now_s() - self._steady_s()
        jump_s = self._offset_s - before_s
        if abs(jump_s) <= JUMP_S:
            return False
        self.log.warn(
            "This machine's clock was set by {jump_s:.0f} seconds: what has expired is judged anew, and nothing is "
            "deleted before a whole cycle over all leases has passed.",
            jump_s=jump_s,
        )
        self._drop_cycle()
        self.account.start_over(self._now_s())
        return True

    def _earlier_now_s(self) -> float:
        """The earlier one of this machine's time and the service's, as far as that is known."""
        return self._now_s() + min(0.0, self._store.client.clock_difference_s or 0.0)

    def _before_s(self) -> float:
        return self.policy.before_s(self._earlier_now_s())

    def why_not(self) -> str | None:
        """Why nothing may be deleted now, or None."""
        if not self.policy.enabled:
            return "expiry is off"
        if not self._store.rebuild.is_complete:
            return "the bucket is still being listed"
        if self.account.state.full_cycles < 1:
            return "nothing is deleted before the second cycle under these settings"
        difference_s = self._store.client.clock_difference_s
        if difference_s is not None and abs(difference_s) > MAX_DIFFERENCE_S:
            return f"this machine's clock and the service's differ by {abs(difference_s):.0f} seconds"
        return self.policy.why_not_at(self._earlier_now_s())

    def _may_delete(self) -> bool:
        """Whether batches may leave in this cycle. A reason that the operator should know is logged once a cycle."""
        reason = self.why_not()
        if reason is not None:
            self._hold_back(reason)
        return self.held_back is None

    def _hold_back(self, reason: str) -> None:
        if self.held_back is None and self.account.state.full_cycles:
            self.log.warn("no share is deleted in this cycle: {reason}", reason=reason)
        self.held_back = reason
        self._doomed.clear()

    # looking

    @inlineCallbacks
    def _look_at_some(self) -> Generator[Deferred[Any], Any, None]:
        """Take some of the stretch's storage indexes, and find out what is not known of them."""
        chosen: list[bytes] = []
        costly = 0
        while self._todo and len(chosen) < KNOWN_SLOTS_A_STEP and costly < SLOTS_A_STEP:
            storage_index = self._todo.popleft()
            costly += self._costs_requests(storage_index)
            chosen.append(storage_index)
        results = yield DeferredList([self._look_at(si) for si in chosen], consumeErrors=True)
        error: Failure | None = None
        for storage_index, (succeeded, result) in zip(chosen, results):
            if not succeeded and self._is_to_be_tried_again(storage_index, result):
                error = result
        if error is not None:
            error.raiseException()

    def _costs_requests(self, storage_index: bytes) -> bool:
        index = self._store.index
        overlay = index.overlay(storage_index)
        rows = index.shares(storage_index)
        if any(row.leases is None or not row.modified_s for row in rows):
            return True
        return index.may_have_missed_overlay(storage_index) if overlay is None else not is_known(overlay)

    def _is_to_be_tried_again(self, storage_index: bytes, failure: Failure) -> bool:
        """A service that is down is waited for; anything else leaves this one for the next cycle."""
        if failure.check(OverlayError):
            self.log.error("{error}; no share of it is deleted", error=failure.getErrorMessage())
            return False
        if failure.check(NotFound, Changed, ShareGone):
            return False
        if not failure.check(S3Error):
            self.log.failure("the leases of {si} cannot be judged", failure=failure, si=si_text(storage_index))
            return False
        tries = self._tries[storage_index] = self._tries.get(storage_index, 0) + 1
        if tries < TRIES:
            self._todo.append(storage_index)
        return True

    @inlineCallbacks
    def _look_at(self, storage_index: bytes) -> Generator[Deferred[Any], Any, None]:
        """Learn what is not known, and doom what may go."""
        store = self._store
        if store.slots.is_unsure(storage_index):
            return
        before_s = self._before_s()
        overlay = store.index.overlay(storage_index)
        if overlay is not None:
            yield learn_overlay(store, storage_index, priority=BACKGROUND)
            overlay = store.index.overlay(storage_index)
            if overlay is not None and not is_overlay_expired(overlay, before_s):
                return
        for row in store.index.shares(storage_index):
            if row.modified_s < before_s and (row.kind is None or row.kind in self.policy.sharetypes):
                yield self._learn_share(ShareId(storage_index, row.shnum))
        if not self._may_delete():
            return
        batch = Batch(store, self.policy, before_s=before_s)
        count = batch.count_of(storage_index)
        if count and store.index.overlay(storage_index) is None:
            # A listing may have missed it.
            is_right = yield learn_overlay(store, storage_index, priority=BACKGROUND)
            count = batch.count_of(storage_index) if is_right else 0
        if count and self.held_back is None:
            self._doomed[storage_index] = count

    @inlineCallbacks
    def _learn_share(self, share: ShareId) -> Generator[Deferred[Any], Any, None]:
        store = self._store
        try:
            yield learn_leases(store, share, priority=BACKGROUND)
            yield learn_modified(store, share, priority=BACKGROUND)
        except (
            DamagedContainerError, UnknownImmutableContainerVersionError, UnknownMutableContainerVersionError
        ) as error:  # fmt: skip
            row = store.index.share(*share)
            if row is not None:
                self.log.error(
                    "the leases of {key} cannot be read, so it is kept: {error}", key=share_key(*share),
                    error=type(error).__name__,
                )  # fmt: skip
                self.account.note_corrupt(share.storage_index, row)

    # deleting

    @inlineCallbacks
    def _delete_some(self) -> Generator[Deferred[Any], Any, None]:
        """One batch, if it may leave."""
        not_ours: str | None = yield self._store.check_still_ours(priority=BACKGROUND)
        if not_ours is not None:
            self._hold_back(not_ours)
            return
        if self._clock_was_set() or not self._may_delete() or self._store.is_stopping:
            return
        if self._store.client.clock_difference_s is None:
            self._hold_back("the service does not tell its time")
            return
        reach("expiry.confirmed")
        batch = Batch(self._store, self.policy, before_s=self._before_s())
        while self._doomed and batch.take(next(iter(self._doomed))):
            del self._doomed[next(iter(self._doomed))]
        try:
            yield batch.delete()
        except AccessDenied:
            batch.was_refused = True
        except S3Error as error:
            if error.outcome == "not_applied":
                self._doomed.update(dict.fromkeys(batch.slots, 1))
            raise
        finally:
            reach("expiry.unlocked")
            for kind, buckets, shares, size in batch.recovered():
                self.account.add("actual", kind, buckets, shares, size)
            self.account.save()
            reach("expiry.counted")
        if batch.was_refused:
            self._hold_back("the service refuses it with AccessDenied; the key may lack the permission s3:DeleteObject")
