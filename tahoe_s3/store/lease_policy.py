# SPDX-License-Identifier: GPL-2.0-or-later
"""When a lease counts as expired: what ``expire.*`` in tahoe.cfg says, as Tahoe's documentation describes it.

Tahoe's docs/garbage-collection.rst: a lease is expired when it was created or last renewed longer ago than its
duration of 31 days (mode "age"), or than expire.override_lease_duration; or before expire.cutoff_date (mode
"cutoff-date"). Containers store only when a lease ends, so the time of its renewal is 31 days before that, as in
allmydata/storage/lease.py. Tahoe's own code never removes anything in mode "age" without an override, since it
compares an age with a date; here it is as documented.

Pure functions and values; times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tahoe_s3.store.index import IMMUTABLE, MUTABLE, OverlayRow, ShareRow
from tahoe_s3.store.leases import merge

#: How long every lease lasts (allmydata/storage/server.py, DEFAULT_RENEWAL_TIME).
LEASE_DURATION_S = 31 * 24 * 60 * 60
AGE = "age"
CUTOFF_DATE = "cutoff-date"


@dataclass(frozen=True)
class LeasePolicy:
    """What tahoe.cfg says. override_lease_duration_s counts in mode "age" only, cutoff_date_s in the other."""

    enabled: bool = False
    mode: str = AGE
    override_lease_duration_s: int | None = None
    cutoff_date_s: int | None = None
    sharetypes: tuple[str, ...] = (MUTABLE, IMMUTABLE)

    def __post_init__(self) -> None:
        """ValueError as Tahoe's own."""
        if self.mode not in (AGE, CUTOFF_DATE):
            raise ValueError(f"GC mode '{self.mode}' must be 'age' or 'cutoff-date'")
        if self.mode == CUTOFF_DATE and self.cutoff_date_s is None:
            raise ValueError("GC mode 'cutoff-date' needs a date")

    @property
    def settings(self) -> list[Any]:
        """As JSON can hold them, to tell whether they are the same as before."""
        return [self.enabled, *self.as_tahoe_shows]

    @property
    def as_tahoe_shows(self) -> list[Any]:
        """The value of "configured-expiration-mode" in the state of Tahoe's lease checker."""
        return [self.mode, self.override_lease_duration_s, self.cutoff_date_s, list(self.sharetypes)]

    def before_s(self, now_s: float) -> float:
        """A lease that was created or last renewed before this time is expired at the time `now_s`."""
        if self.mode == CUTOFF_DATE:
            assert self.cutoff_date_s is not None
            return self.cutoff_date_s
        duration_s = LEASE_DURATION_S if self.override_lease_duration_s is None else self.override_lease_duration_s
        return now_s - duration_s

    def why_not_at(self, now_s: float) -> str | None:
        """Why nothing is to be removed at this time whatever its leases, or None."""
        if self.mode == CUTOFF_DATE and self.before_s(now_s) > now_s:
            return "the cutoff date lies in the future, so that leases given today would count as expired"
        return None


def is_known(overlay: OverlayRow) -> bool:
    """Whether the lease object was read, and the bucket has told when it was written."""
    return overlay.leases is not None and bool(overlay.etag) and overlay.modified_s > 0


def is_overlay_expired(overlay: OverlayRow, before_s: float) -> bool:
    """Whether all that is in the lease object is expired, and the object itself is as old."""
    return is_known(overlay) and overlay.modified_s < before_s and _all_expired(overlay.leases or (), before_s)


def expired_shares(
    rows: Iterable[ShareRow], overlay: OverlayRow | None, *, before_s: float, sharetypes: Collection[str]
) -> list[ShareRow]:
    """Those shares of a storage index that may be deleted.

    `overlay` None: it is known that there is no lease object. A share may go when its kind, its container's leases
    and the lease object are known, it has at least one lease, all are expired, and both objects were last written
    that long ago too (so that one that was copied here, or that an index was rebuilt from, does not go early).
    """
    if overlay is not None and not is_overlay_expired(overlay, before_s):
        return []
    more = () if overlay is None else overlay.leases or ()
    return [
        row
        for row in rows
        if row.kind in sharetypes
        and row.leases is not None
        and 0 < row.modified_s < before_s
        and merge(row.leases, more)
        and _all_expired(row.leases, before_s)
    ]


def _all_expired(leases: Iterable[Any], before_s: float) -> bool:
    return all(lease.expiration_s - LEASE_DURATION_S < before_s for lease in leases)
