# SPDX-License-Identifier: GPL-2.0-or-later
"""A bucket in memory that fails by chance, and whose answers come late and in any order.

Owner: one test, whose random source decides everything, so that a seed repeats it.
"""

from __future__ import annotations

import random
from typing import Any

from tahoe_s3.client import NotFound, Throttled, Unavailable

from .memory_client import MemoryClient
from .memory_requests import Failing, Held

WRITES = {"PutObject", "DeleteObject", "CompleteMultipartUpload", "UploadPart", "CreateMultipartUpload"}
#: What a start may fail with for good is not a storm's matter.
SPARED = {"owner.json", ""}


class StormyClient(MemoryClient):
    """Fails by chance: before or after doing it, with and without an answer, and denies what is there for once."""

    def __init__(self, chance: random.Random, *, rate: float) -> None:
        super().__init__()
        self.chance, self.rate = chance, rate
        #: The chance that an answer comes late, and those that are still to come.
        self.lateness = 0.0
        self.late: list[Held] = []

    def holding(self, operation: str, key: str, call: Any) -> Held | None:
        if key in SPARED or self.chance.random() >= self.lateness:
            return super().holding(operation, key, call)
        held = Held(self, operation, key, apply_first=self.chance.random() < 0.5)
        held.calls.append(call)
        self.late.append(held)
        return held

    def answer_one(self) -> None:
        """One of the late answers comes, whichever."""
        if self.late:
            held = self.late.pop(self.chance.randrange(len(self.late)))
            if held.calls:
                held.calls.pop(0).go()

    def count(self, operation: str, key: str) -> Failing | None:
        failing = super().count(operation, key)
        if failing is not None or key in SPARED or self.chance.random() >= self.rate:
            return failing
        if operation in WRITES:
            outcome, applied = self.chance.choice([("not_applied", False), ("unknown", False), ("unknown", True)])
            return Failing(operation, key, self.chance.choice([Unavailable, Throttled]), outcome, applied, 1, 0)
        errors = [Unavailable, NotFound] if operation in ("HeadObject", "GetObject") else [Unavailable]
        return Failing(operation, key, self.chance.choice(errors), "not_applied", False, 1, 0)
