# SPDX-License-Identifier: GPL-2.0-or-later
"""The S3 service of the crash tests, which outlives the nodes: strict, in memory, and with a clock that may run ahead.

A PUT may time out for its sender and be applied later, until LATE_S have passed. Where something newer had been put
under the key meanwhile, the service undoes that (`undone`). Nothing that only puts and gets can prevent it, but the
node must put it right: in time while it lives, and at its next start where it has died.

Owner: the test. Thread: the reactor's.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

from tahoe_s3.store.late import LATE_S

from ..support.s3answers import Answer, Call
from ..support.s3server import Gate, S3Server, Seen

#: More than the engine's attempts: then the node sees a failure.
ALL_ATTEMPTS = 6
WRITES = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "DeleteObject",
          "DeleteObjects")  # fmt: skip
#: What may be applied late: as often as that stands here.
LATE = ("PutObject",) * 6 + ("CompleteMultipartUpload", "DeleteObject", "DeleteObjects")
#: What the first page of a listing, and the question whether there is such a bucket, are asked with at most.
PAGE_ONE = {"list-type", "encoding-type", "prefix", "max-keys"}
READS = ("GetObject", "HeadObject", "ListObjectsV2")


class CrashService(S3Server):
    """`offset_s`: how far its clock, and the node's, are ahead of the real one."""

    def __init__(self, reactor: Any) -> None:
        self.offset_s = 0.0
        self.undone: set[str] = set()
        self.applied_late: set[str] = set()
        self._arrivals = itertools.count(1)
        self._arrival: dict[int, int] = {}
        self._newest: dict[str, int] = {}
        # What is late, and since when by this clock.
        self._late: list[tuple[float, Gate]] = []
        super().__init__(reactor, wall_s=lambda: time.time() + self.offset_s, min_part_bytes=1)

    def _verify(self, request: Any, call: Call, seen: Seen) -> None:
        # The engine signs with the real time.
        offset_s, self.offset_s = self.offset_s, 0.0
        try:
            super()._verify(request, call, seen)
        finally:
            self.offset_s = offset_s

    def _call(self, request: Any) -> tuple[Call, Seen]:
        call, seen = super()._call(request)
        self._arrival[id(seen)] = next(self._arrivals)
        return call, seen

    def _apply(self, call: Call, seen: Seen) -> Answer:
        objects = self.bucket.objects
        before = dict(objects)
        answer = super()._apply(call, seen)
        changed = [key for key in before.keys() | objects.keys() if before.get(key) is not objects.get(key)]
        arrival = self._arrival[id(seen)]
        for key in changed:
            old, new = before.get(key), objects.get(key)
            if arrival > self._newest.get(key, 0):
                self._newest[key] = arrival
            elif old is None or new is None or old.body != new.body:
                self.undone.add(key)
        return answer

    # trouble

    def worsen(self, chance: random.Random, *, late: bool) -> None:
        """The next requests of some kind fail: fewer than are tried again, or all of them."""
        times = chance.choice([1, 1, 2, ALL_ATTEMPTS])
        if late and chance.random() < 0.6:
            self.delay_puts(chance.choice([1, 2, ALL_ATTEMPTS]), operation=chance.choice(LATE))
            return
        operation = chance.choice([*WRITES, *WRITES, *READS])
        way = chance.randrange(4)
        if way == 0:
            self.fail(operation, times=times, applied=chance.random() < 0.5, status=500, code="InternalError")
        elif way == 1:
            self.fail(operation, times=1, status=503, code="ServiceUnavailable")
        elif way == 2:
            self.drop(operation, times=times, applied=chance.random() < 0.5)
        else:
            gate = self.hold(operation, times=1, applied=chance.random() < 0.5)
            self.reactor.callLater(chance.uniform(0.01, 0.1), gate.release)

    def hold_listing(self) -> None:
        """Of a listing of the whole bucket nothing comes behind the first page, which has one key."""
        self.settings.page_size = 1
        self.hold("ListObjectsV2", where=lambda seen: not (seen.query.get("prefix") or seen.query.keys() <= PAGE_ONE))

    def delay_puts(self, times: int, *, key: str | None = None, operation: str = "PutObject") -> None:
        """The next so many time out for their sender, and are applied when apply_late() is called."""
        gate = Gate()
        self._late.append((self.wall_s(), gate))
        self.drop(operation, key=key, times=times, gate=gate)

    def apply_late(self, *, before_s: float | None = None) -> list[str]:
        """Now; gives the keys that have other bytes after it. `before_s`: only what is late since before this time."""
        before = {key: stored.body for key, stored in self.bucket.objects.items()}
        due = [one for one in self._late if before_s is None or one[0] < before_s]
        self._late = [one for one in self._late if one not in due]
        for _, gate in due:
            gate.release()
        changed = [key for key, stored in self.bucket.objects.items() if before.get(key) != stored.body]
        self.applied_late.update(changed)
        return changed

    def pass_time(self, seconds: float) -> None:
        """Its clock goes ahead. What would be later than a service is thought to be comes before."""
        self.apply_late(before_s=self.wall_s() + seconds - LATE_S)
        self.offset_s += seconds

    @property
    def late_count(self) -> int:
        return sum(len(gate.held) for _, gate in self._late)

    def calm(self) -> None:
        """No more trouble. What is late stays late, what was held back goes on."""
        self.rules, rules = [], self.rules
        for rule in rules:
            if rule.gate is not None and not rule.drop:
                rule.gate.release()
