# SPDX-License-Identifier: GPL-2.0-or-later
"""What clients were told, and what may therefore be there: the model that everything is held against.

Immutable shares: the bytes of a share follow from its name, so whatever is visible under it must be exactly these.
A share is required from the moment that somebody was told that it is stored. It may go, later, when all the leases
that somebody was told of have ended and expiry is on.

Mutable shares: every write is kept with the moments of its beginning and its end. A write may be what is there unless
an acknowledged one began after it had ended. A write that ended without an acknowledgement may have been done or not.

Leases: one that was acknowledged must be there, in the container or in the lease object, for every share that was
required then, until at least the end that it had.

Times are the service's clock, in seconds; moments are a count of events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from allmydata.storage.server import DEFAULT_RENEWAL_TIME

from tahoe_s3.store.keys import ShareId

#: The node's clock and the test's differ by this much at most, in seconds; containers keep whole ones.
CLOCKS_S = 3.0


def pattern(size: int, seed: int) -> bytes:
    """Bytes that tell where they are and of what."""
    block = b"".join(((index * 2654435761 + seed * 40503) & 0xFFFFFFFF).to_bytes(4, "big") for index in range(64))
    return (block * (size // len(block) + 1))[:size]


@dataclass
class Immutable:
    """One share that somebody tried to store. `leases`: renew secret -> the least time when it was given."""

    data: bytes
    is_required: bool = False
    leases: dict[bytes, float] = field(default_factory=dict)


@dataclass
class Write:
    """Of one mutable share: its new content, None where it was deleted."""

    content: bytes | None
    began: int
    ended: int | None = None
    is_acknowledged: bool = False


@dataclass
class Mutable:
    """One mutable share; it begins with its absence. `ever`: all contents that somebody has sent."""

    writes: list[Write] = field(default_factory=lambda: [Write(None, 0, 0, True)])
    leases: dict[bytes, float] = field(default_factory=dict)
    ever: set[bytes | None] = field(default_factory=set)

    def allowed(self) -> list[bytes | None]:
        """All contents that it may have now."""
        newest = max((write.began for write in self.writes if write.is_acknowledged), default=0)
        return [write.content for write in self.writes if write.ended is None or write.ended >= newest]


class Record:
    """All that is known. `duration_s`: how long a lease holds where expiry is on, else None."""

    def __init__(self, *, duration_s: float | None) -> None:
        self.duration_s = duration_s
        self.immutable: dict[ShareId, Immutable] = {}
        self.mutable: dict[ShareId, Mutable] = {}
        self._events = itertools.count(1)

    # immutable shares

    def attempted(self, share: ShareId, data: bytes) -> None:
        self.immutable.setdefault(share, Immutable(data))

    def stored(self, share: ShareId, renew: bytes, since_s: float) -> None:
        """A client was told that it is there, with this lease."""
        found = self.immutable[share]
        found.is_required = True
        found.leases[renew] = max(since_s, found.leases.get(renew, 0.0))

    # mutable shares

    def begin_writes(self, wanted: dict[ShareId, bytes | None]) -> list[tuple[ShareId, Write]]:
        """A read-test-write is about to be sent."""
        begun = []
        for share, content in wanted.items():
            found = self.mutable.setdefault(share, Mutable())
            write = Write(content, next(self._events))
            found.writes.append(write)
            found.ever.add(content)
            begun.append((share, write))
            if content is None:
                found.leases.clear()
        return begun

    def end_writes(
        self, begun: list[tuple[ShareId, Write]], *, acknowledged: bool, renew: bytes, since_s: float
    ) -> None:
        """It was answered, or will never be."""
        for share, write in begun:
            write.ended, write.is_acknowledged = next(self._events), acknowledged
            found = self.mutable[share]
            if write.content is None:
                found.leases.clear()
            elif acknowledged and None not in found.allowed():
                found.leases[renew] = max(since_s, found.leases.get(renew, 0.0))
            self._tidy(found)

    def refused_writes(self, begun: list[tuple[ShareId, Write]]) -> None:
        """The node said that it has not done it."""
        for share, write in begun:
            self.mutable[share].writes.remove(write)

    @staticmethod
    def _tidy(found: Mutable) -> None:
        newest = max((write.began for write in found.writes if write.is_acknowledged), default=0)
        found.writes = [write for write in found.writes if write.ended is None or write.ended >= newest]

    # leases

    def required(self, storage_index: bytes, now_s: float) -> list[ShareId]:
        """The shares that must be there now."""
        found = [
            share
            for share, one in self.immutable.items()
            if share.storage_index == storage_index and one.is_required and not self.may_expire(one.leases, now_s)
        ]
        for share, mutable in self.mutable.items():
            is_there = share.storage_index == storage_index and None not in mutable.allowed()
            if is_there and not self.may_expire(mutable.leases, now_s):
                found.append(share)
        return found

    def may_expire(self, leases: dict[bytes, float], now_s: float) -> bool:
        return self.duration_s is not None and now_s - max(leases.values(), default=0.0) > self.duration_s - CLOCKS_S

    def leased(self, shares: Iterable[ShareId], renew: bytes, since_s: float) -> None:
        """A lease on these shares, which were required when the call began, was acknowledged."""
        for share in shares:
            immutable, mutable = self.immutable.get(share), self.mutable.get(share)
            if immutable is not None and immutable.is_required:
                immutable.leases[renew] = max(since_s, immutable.leases.get(renew, 0.0))
            if mutable is not None and None not in mutable.allowed():
                mutable.leases[renew] = max(since_s, mutable.leases.get(renew, 0.0))

    # what may have changed of itself

    def may_be_gone(self, now_s: float) -> None:
        """Time has passed: what may have expired is required no more, and its leases neither."""
        for one in self.immutable.values():
            if one.is_required and self.may_expire(one.leases, now_s):
                one.is_required = False
                one.leases.clear()
        for mutable in self.mutable.values():
            if self.may_expire(mutable.leases, now_s):
                mutable.leases.clear()
                if None not in mutable.allowed():
                    # As if it might be deleted at any time from now on.
                    mutable.writes.append(Write(None, next(self._events), None))

    def nobody_writes(self) -> None:
        """Every call has ended; an expiry that may have been under way has too."""
        for mutable in self.mutable.values():
            for write in mutable.writes:
                if write.ended is None:
                    write.ended = next(self._events)


def least_end_s(given_s: float) -> float:
    """When a lease that was given then ends at the earliest."""
    return int(given_s) + DEFAULT_RENEWAL_TIME - CLOCKS_S
