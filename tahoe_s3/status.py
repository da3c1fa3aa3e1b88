# SPDX-License-Identifier: GPL-2.0-or-later
"""What Tahoe's storage status page asks of the two crawlers of the disk backend.

The index knows how many storage indexes have shares; store/expiry.py goes through the leases. The shapes are those of
allmydata/storage/crawler.py and expirer.py, as allmydata/web/storage.py reads them.
"""

from __future__ import annotations

from typing import Any, Callable

from tahoe_s3.store.expiry import Expirer
from tahoe_s3.store.index import Index
from tahoe_s3.store.lease_account import nothing_recovered

_NO_CYCLE = {
    "cycle-in-progress": False,
    "estimated-time-per-cycle": None,
    "remaining-wait-time": 0.0,
}


class SlotCounter:
    """Takes the place of the bucket-counting crawler. `knows_all`: whether the index has the whole bucket;
    `listed_part`: how much of the bucket this start has listed, from 0 to 1."""

    def __init__(
        self, index: Index, *, knows_all: Callable[[], bool], listed_part: Callable[[], float]
    ) -> None:
        self._index = index
        self._knows_all = knows_all
        self._listed_part = listed_part

    def get_state(self) -> dict[str, Any]:
        """The count is None, "not computed yet", while only a part of the bucket is known."""
        return {"last-complete-bucket-count": self._index.slot_count if self._knows_all() else None}

    def get_progress(self) -> dict[str, Any]:
        """The listing that a start makes counts as a crawl; after it the count is always that of the moment."""
        part = self._listed_part()
        if part >= 1:
            return dict(_NO_CYCLE)
        return {
            "cycle-in-progress": True, "cycle-complete-percentage": 100.0 * part, "remaining-sleep-time": 0.0,
            "estimated-cycle-complete-time-left": None, "estimated-time-per-cycle": None,
        }  # fmt: skip


class LeaseChecker:
    """Takes the place of the lease-checking crawler: what the Expirer does, has done and is about to do."""

    def __init__(self, expirer: Expirer, *, now_s: Callable[[], float]) -> None:
        policy = expirer.policy
        self.expiration_enabled = policy.enabled
        self.mode = policy.mode
        self.override_lease_duration = policy.override_lease_duration_s
        self.cutoff_date = policy.cutoff_date_s
        self.sharetypes_to_expire = policy.sharetypes
        self._expirer = expirer
        self._account = expirer.account
        self._now_s = now_s

    def get_state(self) -> dict[str, Any]:
        """The keys with "cycle" in their names that hold counts are there during a cycle only, as in Tahoe.

        "deletes-nothing-because" is ours: why shares whose leases have expired are kept at the moment, or None.
        """
        state = self._account.state
        shown = {
            "version": 1,
            "last-cycle-finished": state.last_finished,
            "current-cycle": state.cycle,
            "current-cycle-start-time": state.started_s,
            "history": dict(state.history),
            "deletes-nothing-because": self._expirer.held_back or self._expirer.why_not(),
        }
        if state.cycle is not None:
            so_far = self._account.as_tahoe_shows()
            so_far["expiration-enabled"] = self.expiration_enabled
            so_far["configured-expiration-mode"] = self._expirer.policy.as_tahoe_shows
            remaining, whole = self._estimates()
            shown["cycle-to-date"] = so_far
            shown["estimated-remaining-cycle"] = {"space-recovered": remaining}
            shown["estimated-current-cycle"] = {"space-recovered": whole}
        return shown

    def _estimates(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the rest of the cycle and all of it will have seen and recovered; None before anything is known."""
        done = self._account.progress
        if not done:
            unknown = dict.fromkeys(nothing_recovered())
            return unknown, dict(unknown)
        so_far = self._account.state.recovered
        remaining = {name: count * (1 - done) / done for name, count in so_far.items()}
        return remaining, {name: count + remaining[name] for name, count in so_far.items()}

    def get_progress(self) -> dict[str, Any]:
        """See ShareCrawler.get_progress."""
        state, next_s, now_s = self._account.state, self._expirer.next_step_s, self._now_s()
        wait_s = None if next_s is None else max(0.0, next_s - now_s)
        if state.cycle is None or state.started_s is None:
            return {
                "cycle-in-progress": False, "next-crawl-time": next_s, "remaining-wait-time": wait_s,
                "estimated-time-per-cycle": state.last_took_s,
            }  # fmt: skip
        done, elapsed_s = self._account.progress, max(0.0, now_s - state.started_s)
        return {
            "cycle-in-progress": True,
            "cycle-complete-percentage": 100.0 * done,
            "estimated-cycle-complete-time-left": elapsed_s * (1 - done) / done if done else None,
            "remaining-sleep-time": wait_s,
            "estimated-time-per-cycle": state.last_took_s or (elapsed_s / done if done else None),
        }
