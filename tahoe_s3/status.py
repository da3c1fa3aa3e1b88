# SPDX-License-Identifier: GPL-2.0-or-later
"""What Tahoe's storage status page asks of the two crawlers of the disk backend, answered without crawling.

The index knows how many storage indexes have shares. Leases are kept and renewed, but this version deletes nothing
when they expire, and says so. The shapes are those of allmydata/storage/crawler.py and expirer.py, as
allmydata/web/storage.py reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.logger import Logger

from tahoe_s3.store.index import Index

_log = Logger()
_COUNTED = ("buckets", "shares", "sharebytes", "diskbytes")
_OUTCOMES = ("actual", "original", "configured", "examined")
_NO_CYCLE = {
    "cycle-in-progress": False,
    "estimated-time-per-cycle": None,
    "remaining-wait-time": 0.0,
}


class SlotCounter:
    """Takes the place of the bucket-counting crawler."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get_state(self) -> dict[str, Any]:
        return {"last-complete-bucket-count": self._index.slot_count}

    def get_progress(self) -> dict[str, Any]:
        return dict(_NO_CYCLE)


class LeaseChecker:
    """Takes the place of the lease-checking crawler: what tahoe.cfg's expire.* asks for, and that nothing was done."""

    def __init__(
        self,
        *,
        enabled: bool,
        mode: str,
        override_lease_duration: int | None,
        cutoff_date: int | None,
        sharetypes: Iterable[str],
    ) -> None:
        if mode not in ("age", "cutoff-date"):
            raise ValueError(f"GC mode '{mode}' must be 'age' or 'cutoff-date'")
        #: False, whatever was asked for: the status page must not claim that expired leases are removed.
        self.expiration_enabled = False
        self.mode = mode
        self.override_lease_duration = override_lease_duration if mode == "age" else None
        self.cutoff_date = cutoff_date if mode == "cutoff-date" else None
        self.sharetypes_to_expire = tuple(sharetypes)
        if enabled:
            _log.warn(
                "[storage]expire.enabled in tahoe.cfg is on, but this version of tahoe-s3 keeps shares whose leases "
                "have expired; leases themselves are kept and renewed, so a later version can remove them"
            )

    def get_state(self) -> dict[str, Any]:
        cycle = {
            "expiration-enabled": False,
            "configured-expiration-mode": [
                self.mode, self.override_lease_duration, self.cutoff_date, list(self.sharetypes_to_expire)
            ],
            "corrupt-shares": [],
            "lease-age-histogram": [],
            "leases-per-share-histogram": {},
            "space-recovered": _nothing_recovered(),
        }  # fmt: skip
        return {
            "history": {},
            "current-cycle": None,
            "last-cycle-finished": None,
            "cycle-to-date": cycle,
            "estimated-remaining-cycle": {"space-recovered": _nothing_recovered()},
            "estimated-current-cycle": {"space-recovered": _nothing_recovered()},
        }

    def get_progress(self) -> dict[str, Any]:
        return dict(_NO_CYCLE)


def _nothing_recovered() -> dict[str, int]:
    kinds = ("", "-mutable", "-immutable")
    return {f"{outcome}-{what}{kind}": 0 for outcome in _OUTCOMES for what in _COUNTED for kind in kinds}
