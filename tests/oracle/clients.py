# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that change and read the same slots at once, and remember when they called and what they were answered.

Every content is written once, and says who wrote it. A client swaps what it saw last for something new, overwrites
without looking, deletes, or reads; each read-test-write asks for all shares too. The history of a slot is then given
to tests/support/linear.py.

Owner: a test. How a call reaches the server is the test's (`begin`); a call ends with an answer, with an error, or
never, and of the last two nobody knows whether it happened.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Callable

from twisted.internet.defer import Deferred

from ..support.linear import Call, explain

SLOTS = [b"contended-slot-a", b"contended-slot-b"]
SHNUMS = [0, 1, 2]
ENABLER, RENEW, CANCEL = b"w" * 32, b"r" * 32, b"c" * 32
SECRETS = (ENABLER, RENEW, CANCEL)
EVERYTHING = [(0, 10**6)]

#: (slot, test and write vectors or None for a read, share numbers to read) -> a Deferred of (passed, found).
Begin = Callable[[bytes, Any, list[int]], Deferred[Any]]


class History:
    """Every call of every client, by slot."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.calls: dict[bytes, list[Call]] = {slot: [] for slot in SLOTS}
        self.events = 0
        self.serial = 0
        #: What calls without an answer failed with.
        self.errors: Counter[str] = Counter()
        #: Errors that no weather explains.
        self.surprises: list[str] = []

    def moment(self) -> int:
        self.events += 1
        return self.events

    def content(self, who: str, size: int) -> bytes:
        self.serial += 1
        word = b"%06d by %s;" % (self.serial, who.encode())
        return (word * (size // len(word) + 1))[: len(word) + size]

    def check(self) -> None:
        """Every slot's answers have an order. AssertionError with the history of one where they have not."""
        assert self.surprises == [], "\n".join(self.surprises)
        for calls in self.calls.values():
            explain(calls)

    @property
    def begun(self) -> int:
        return sum(len(calls) for calls in self.calls.values())

    @property
    def answered(self) -> int:
        return sum(call.answered is not None for calls in self.calls.values() for call in calls)

    @property
    def unanswered(self) -> int:
        return sum(call.answered is None for calls in self.calls.values() for call in calls)


class Client:
    """One client with at most one call under way. `sizes`: of contents, in bytes. `may_fail`: whether a Failure is one
    that such weather brings. `reads_one`: each of its reads is of one share, as over HTTP."""

    def __init__(
        self, name: str, history: History, begin: Begin, *, sizes: list[int], may_fail: Callable[[Any], bool],
        reads_one: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.history, self.begin, self.sizes = name, history, begin, sizes
        self.may_fail = may_fail
        self.reads_one = reads_one
        self.is_busy = False
        self._seen: dict[bytes, dict[int, bytes]] = {}
        #: The call that it waits for; another where it has given that up.
        self._call: Call | None = None

    def act(self) -> Deferred[None]:
        """Begin something; fires when it has ended."""
        chance = self.history.chance
        slot = chance.choice(SLOTS)
        if chance.random() < 0.35:
            one = [chance.choice(SHNUMS)]
            return self._read(slot, one if self.reads_one else chance.choice([[], [], one, chance.sample(SHNUMS, 2)]))
        return self._write(slot, chance.sample(SHNUMS, chance.choice([1, 1, 2, 3])))

    def read_all(self, slot: bytes) -> Deferred[None]:
        return self._read(slot, [])

    @property
    def was_answered(self) -> bool:
        """Its last call was, or it has begun none."""
        return self._call is None or self._call.answered is not None

    def forget(self) -> None:
        """Its server has died: no answer will come, or none that this client still hears."""
        self.is_busy, self._call = False, None

    def _read(self, slot: bytes, shnums: list[int]) -> Deferred[None]:
        call = self._new_call(slot, asked=frozenset(shnums) if shnums else None)
        return self._follow(slot, call, self.begin(slot, None, shnums))

    def _write(self, slot: bytes, shnums: list[int]) -> Deferred[None]:
        chance, seen = self.history.chance, self._seen.get(slot, {})
        tests = {n: seen.get(n, b"") for n in shnums} if chance.random() < 0.75 else {}
        writes: dict[int, bytes | None] = {
            n: None if chance.random() < 0.15 else self.history.content(self.name, chance.choice(self.sizes))
            for n in shnums
        }
        vectors = {
            n: (
                [(0, EVERYTHING[0][1], b"eq", tests[n])] if n in tests else [],
                [] if data is None else [(0, data)],
                0 if data is None else len(data),
            )
            for n, data in writes.items()
        }
        call = self._new_call(slot, tests=tests, writes=writes)
        return self._follow(slot, call, self.begin(slot, vectors, []))

    def _new_call(self, slot: bytes, **what: Any) -> Call:
        call = Call(self.history.moment(), who=self.name, **what)
        self.history.calls[slot].append(call)
        self.is_busy, self._call = True, call
        return call

    def _follow(self, slot: bytes, call: Call, answer: Deferred[Any]) -> Deferred[None]:
        def came(result: tuple[bool, dict[int, list[bytes]]]) -> None:
            if self._call is not call:
                return
            passed, found = result
            contents = {n: pieces[0] for n, pieces in found.items()}
            call.answer(self.history.moment(), bool(passed), contents)
            known = dict(contents) if call.asked is None else {**self._seen.get(slot, {}), **contents}
            if passed:
                known.update((n, data) for n, data in call.writes.items() if data is not None)
                for n, data in call.writes.items():
                    if data is None:
                        known.pop(n, None)
            self._seen[slot] = known

        def ended(result: Any) -> None:
            if self._call is call:
                self.is_busy = False

        # An error is no answer: it may have happened, and may still happen.
        return answer.addCallback(came).addErrback(self._refused, call).addBoth(ended)

    def _refused(self, failure: Any, call: Call) -> None:
        if self._call is call and not self.may_fail(failure):
            self.history.surprises.append(f"{self.name} got {failure.type}: {failure.getErrorMessage()}")
        self.history.errors[str(failure.type).rpartition(".")[2].rstrip("'>")] += 1
