# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cycle over all leases has seen and done, counted by SQL, and kept in the index.

A cycle goes through the storage indexes in order, a stretch of rows at a time, and every stretch is counted by a few
statements in C: a million shares are never walked through in Python. The counts are those of Tahoe's lease checker
(allmydata/storage/expirer.py), whose status page shows them (tahoe_s3/status.py). "diskbytes" are the bytes of the
objects, as on a disk without block counts. A share whose leases are not known counts as examined only.

Owner: the Expirer. Thread: the reactor's. Times are seconds since the epoch. The state is lost with the index; then
counting starts anew, and so does the time that expiry must have been on before anything is deleted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from twisted.logger import Logger

from tahoe_s3.store.index import EXPIRATION_DIGITS, KIND_NUMBERS, Index, ShareRow
from tahoe_s3.store.keys import si_text
from tahoe_s3.store.lease_policy import LEASE_DURATION_S, LeasePolicy

DAY_S = 24 * 60 * 60
#: Cycles that the status page can look back on, as in Tahoe.
HISTORY_CYCLES = 10
#: Shares that could not be read which are named; more are only logged.
MAX_CORRUPT = 1000
#: What a stretch ends with where it goes to the end: behind every storage index of 16 bytes.
LAST = b"\xff" * 17

_NAME = "lease account"
_KINDS = {number: kind for kind, number in KIND_NUMBERS.items()}
_OUTCOMES = ("actual", "original", "configured", "examined")
_COUNTED = ("buckets", "shares", "sharebytes", "diskbytes")

# A share and whether its leases have expired: by their own duration (lapsed), and as configured (expired).
_SHARES = """
    SELECT s.si AS si, s.kind AS kind, s.size AS size,
        COALESCE(s.expirations != '' AND s.latest_s < :lapsed, 0) AS lapsed,
        COALESCE(s.expirations != '' AND s.latest_s < :expired AND s.kind IN (:kind_1, :kind_2)
            AND s.modified_s > 0 AND s.modified_s < :before
            AND (o.si IS NULL OR (o.etag != '' AND o.modified_s > 0 AND o.modified_s < :before)), 0) AS expired
    FROM shares s LEFT JOIN overlays o ON o.si = s.si WHERE s.si > :after AND s.si <= :upto
"""
_COUNT = f"""
    SELECT kind, COUNT(*), SUM(shares), SUM(bytes), SUM(lapsed = shares), SUM(lapsed), SUM(lapsed_bytes),
        SUM(expired = shares), SUM(expired), SUM(expired_bytes)
    FROM (SELECT MAX(kind) AS kind, COUNT(*) AS shares, SUM(size) AS bytes, SUM(lapsed) AS lapsed,
            SUM(lapsed * size) AS lapsed_bytes, SUM(expired) AS expired, SUM(expired * size) AS expired_bytes
        FROM ({_SHARES}) GROUP BY si)
    GROUP BY kind
"""
_LEASES_PER_SHARE = f"""
    SELECT LENGTH(expirations) / {EXPIRATION_DIGITS}, COUNT(*) FROM shares
    WHERE si > :after AND si <= :upto AND expirations IS NOT NULL GROUP BY 1
"""
# One row for each lease: the first of the string, then that of what is left of it.
_LEASE_AGES = f"""
    WITH RECURSIVE each(ends) AS (
        SELECT expirations FROM shares WHERE si > :after AND si <= :upto AND expirations != ''
        UNION ALL SELECT SUBSTR(ends, {EXPIRATION_DIGITS + 1}) FROM each WHERE LENGTH(ends) > {EXPIRATION_DIGITS})
    SELECT (:now - CAST(SUBSTR(ends, 1, {EXPIRATION_DIGITS}) AS INTEGER) + {LEASE_DURATION_S}) / {DAY_S}, COUNT(*)
    FROM each GROUP BY 1
"""
# Storage indexes of which something may be deleted, as far as is known: what is not known may turn out either way.
_CANDIDATES = """
    SELECT DISTINCT s.si FROM shares s LEFT JOIN overlays o ON o.si = s.si
    WHERE s.si > :after AND s.si <= :upto AND s.modified_s < :before AND s.kind IN (0, :kind_1, :kind_2)
        AND (s.expirations IS NULL OR (s.expirations != '' AND s.latest_s < :expired))
        AND (o.si IS NULL OR (o.modified_s < :before AND (o.latest_s IS NULL OR o.latest_s < :expired)))
    UNION SELECT o.si FROM overlays o LEFT JOIN shares s ON s.si = o.si
    WHERE o.si > :after AND o.si <= :upto AND s.si IS NULL
        AND o.modified_s < :before AND (o.latest_s IS NULL OR o.latest_s < :expired)
    ORDER BY 1
"""
_END_OF_STRETCH = "SELECT si FROM shares WHERE si > :after ORDER BY si, shnum LIMIT 1 OFFSET :rows"


def nothing_recovered() -> dict[str, int]:
    """The shape of "space-recovered", all zeros."""
    kinds = ("", "-mutable", "-immutable")
    return {f"{outcome}-{what}{kind}": 0 for outcome in _OUTCOMES for what in _COUNTED for kind in kinds}


@dataclass
class State:
    """What is kept. `settings` are those that everything here was counted under.

    full_cycles: cycles that went from the first share to the last since these settings came and the clock was last
    set. position: the last storage index that the cycle under way is through with, in hexadecimal. lease_ages: days
    to leases; leases_per_share: leases to shares; both keyed by text, as JSON has it.
    """

    settings: list[Any]
    since_s: float
    full_cycles: int = 0
    cycle: int | None = None
    last_finished: int | None = None
    started_s: float | None = None
    last_took_s: float | None = None
    position: str = ""
    recovered: dict[str, int] = field(default_factory=nothing_recovered)
    lease_ages: dict[str, int] = field(default_factory=dict)
    leases_per_share: dict[str, int] = field(default_factory=dict)
    corrupt: list[list[Any]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)


class LeaseAccount:
    """The account of one index under one policy."""

    log = Logger()

    def __init__(self, index: Index, policy: LeasePolicy, *, now_s: float) -> None:
        """Goes on where an earlier run left off, if its settings were the same."""
        self._index = index
        self._policy = policy
        self._kinds = tuple(KIND_NUMBERS[kind] for kind in policy.sharetypes) or (-1,)
        self.state = self._load() or State(policy.settings, now_s)
        if self.state.settings != policy.settings:
            # What was seen under other settings says nothing of these; what is past stays past.
            old, self.state = self.state, State(policy.settings, now_s)
            self.state.last_finished, self.state.history = old.last_finished, old.history

    def _load(self) -> State | None:
        text = self._index.recall(_NAME)
        if text is None:
            return None
        try:
            return State(**json.loads(text))
        except (ValueError, TypeError) as error:
            self.log.warn("what was known of earlier cycles over the leases cannot be read: {error}", error=str(error))
            return None

    def save(self) -> None:
        self._index.remember(_NAME, json.dumps(asdict(self.state)))

    # cycles

    @property
    def position(self) -> bytes:
        return bytes.fromhex(self.state.position)

    @property
    def progress(self) -> float:
        """The part of the cycle under way that is done, from 0 to 1: storage indexes are hashes."""
        return int.from_bytes((self.position + bytes(8))[:8], "big") / 2**64

    def start_over(self, now_s: float) -> None:
        """Expiry counts as switched on now; a cycle under way is dropped."""
        state = self.state
        state.since_s, state.full_cycles, state.cycle, state.position = now_s, 0, None, ""
        self.save()

    def begin_cycle(self, now_s: float) -> None:
        state = self.state
        state.cycle = 0 if state.last_finished is None else state.last_finished + 1
        state.started_s, state.position = now_s, ""
        state.recovered, state.lease_ages, state.leases_per_share = nothing_recovered(), {}, {}
        state.corrupt = []
        self.save()

    def finish_cycle(self, now_s: float) -> dict[str, int]:
        """Into the history with it; gives what was recovered."""
        state = self.state
        assert state.cycle is not None and state.started_s is not None
        state.history[str(state.cycle)] = {
            "cycle-start-finish-times": [state.started_s, now_s],
            "expiration-enabled": self._policy.enabled,
            "configured-expiration-mode": self._policy.as_tahoe_shows,
            **self.as_tahoe_shows(),
        }
        for old in sorted(map(int, state.history))[:-HISTORY_CYCLES]:
            del state.history[str(old)]
        state.last_finished, state.cycle, state.position = state.cycle, None, ""
        state.last_took_s = now_s - state.started_s
        state.full_cycles += 1
        self.save()
        return state.recovered

    def as_tahoe_shows(self) -> dict[str, Any]:
        """The counts of the cycle, in the shape of Tahoe's lease checker."""
        state = self.state
        ages = sorted((int(day), count) for day, count in state.lease_ages.items())
        return {
            "lease-age-histogram": [[day * DAY_S, (day + 1) * DAY_S, count] for day, count in ages],
            "leases-per-share-histogram": dict(state.leases_per_share),
            "corrupt-shares": list(state.corrupt),
            "space-recovered": dict(state.recovered),
        }

    # stretches

    def end_of_stretch(self, rows: int) -> bytes:
        """The last storage index of the stretch of about so many shares that comes next."""
        found = self._index.query(_END_OF_STRETCH, {"after": self.position, "rows": rows - 1})
        return bytes(found[0][0]) if found else LAST

    def candidates(self, upto: bytes, *, before_s: float) -> list[bytes]:
        """The storage indexes of the stretch at which somebody has to look."""
        where = self._where(upto, before_s=before_s)
        return [bytes(si) for (si,) in self._index.query(_CANDIDATES, where)]

    def _where(self, upto: bytes, *, before_s: float) -> dict[str, Any]:
        return {
            "after": self.position, "upto": upto, "before": before_s, "expired": before_s + LEASE_DURATION_S,
            "kind_1": self._kinds[0], "kind_2": self._kinds[-1],
        }  # fmt: skip

    def count_stretch(self, upto: bytes, *, now_s: float, before_s: float) -> None:
        """Count it, as it is known now, and be through with it."""
        state = self.state
        where = {**self._where(upto, before_s=before_s), "now": int(now_s), "lapsed": now_s}
        for kind, *sums in self._index.query(_COUNT, where):
            examined, lapsed, expired = sums[:3], sums[3:6], sums[6:9]
            for outcome, counts in (("examined", examined), ("original", lapsed), ("configured", expired)):
                self.add(outcome, _KINDS[kind], *counts)
        for leases, shares in self._index.query(_LEASES_PER_SHARE, where):
            _add(state.leases_per_share, str(leases), shares)
        for day, leases in self._index.query(_LEASE_AGES, where):
            _add(state.lease_ages, str(day), leases)
        state.position = upto.hex()
        self.save()

    def add(self, outcome: str, kind: str | None, buckets: int, shares: int, size: int) -> None:
        """Add to one of the counts; a kind that is not known counts in the sum only."""
        for name, count in (("buckets", buckets), ("shares", shares), ("sharebytes", size), ("diskbytes", size)):
            for suffix in ("", f"-{kind}") if kind else ("",):
                _add(self.state.recovered, f"{outcome}-{name}{suffix}", count)

    def note_corrupt(self, storage_index: bytes, row: ShareRow) -> None:
        """This share cannot be read, so it will not count as examined, as in Tahoe. More than once changes nothing."""
        which = [si_text(storage_index), row.shnum]
        if which in self.state.corrupt:
            return
        if len(self.state.corrupt) < MAX_CORRUPT:
            self.state.corrupt.append(which)
        self.add("examined", row.kind, 0, -1, -row.size)


def _add(counts: dict[str, int], name: str, count: int) -> None:
    counts[name] = counts.get(name, 0) + count
