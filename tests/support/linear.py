# SPDX-License-Identifier: GPL-2.0-or-later
"""Is there an order of the operations that explains every answer?

After Wing and Gong (Testing and Verifying Concurrent Objects, 1993): operations are put one after the other, each at a
moment between its call and its answer, and a model says what it may have answered then and which state it leaves. What
was tried once (a set of operations done, a state) is not tried again, as Lowe proposed.

An operation without an answer may have happened at any moment after its call, or never. Owner: a test. Limits: a slot
may need time that doubles with every operation without an answer; more than MAX_TRIED places are an error.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Protocol

#: Places of the search that are tried for one history.
MAX_TRIED = 300_000

FOREVER = float("inf")


class Undecided(Exception):
    """The search was given up."""


class Operation(Protocol):
    """One call. `called` and `answered` are numbers of events; `answered` is None where no answer came."""

    called: int
    answered: int | None

    def outcomes(self, state: Any) -> Iterable[Hashable]:
        """The states that it may leave, if it happens in `state` and has the answer that it has; none if it cannot."""


def find_order(operations: Sequence[Operation], initial: Hashable) -> list[Operation] | None:
    """An order that explains all answers, or None. Undecided where the search took too long."""
    waiting = sorted(operations, key=lambda one: FOREVER if one.answered is None else one.answered)
    bits = {id(one): 1 << number for number, one in enumerate(waiting)}
    certain = sum(bits[id(one)] for one in waiting if one.answered is not None)
    tried: set[tuple[int, Hashable]] = {(0, initial)}
    order: list[Operation] = []
    path: list[tuple[int, Hashable, Iterator[tuple[Operation, Hashable]]]] = [
        (0, initial, _next_steps(waiting, bits, 0, initial))
    ]
    if not certain:
        return order
    while path:
        done, _, steps = path[-1]
        step = next(steps, None)
        if step is None:
            path.pop()
            if order:
                order.pop()
            continue
        operation, state = step
        now_done = done | bits[id(operation)]
        if (now_done, state) in tried:
            continue
        if len(tried) >= MAX_TRIED:
            raise Undecided(f"{len(operations)} operations, {len(tried)} places tried")
        tried.add((now_done, state))
        order.append(operation)
        if now_done & certain == certain:
            return order
        path.append((now_done, state, _next_steps(waiting, bits, now_done, state)))
    return None


def _next_steps(
    waiting: Sequence[Operation], bits: dict[int, int], done: int, state: Hashable
) -> Iterator[tuple[Operation, Hashable]]:
    """What may come next: an operation that was called before the first answer among those that are left."""
    left = [one for one in waiting if not done & bits[id(one)]]
    first_answer = min((one.answered for one in left if one.answered is not None), default=FOREVER)
    for one in left:
        if one.called < first_answer:
            for after in one.outcomes(state):
                yield one, after


# A slot of mutable shares.

#: Share number and content of each share that is there, in order.
State = tuple[tuple[int, bytes], ...]


def state_of(shares: dict[int, bytes]) -> State:
    return tuple(sorted(shares.items()))


class Call:
    """A read-test-write, or a read. Contents are whole: a test is (number -> content, b"" for none), a write is
    (number -> content, None to delete).

    called, answered: numbers of events. passed, found: the answer; `found` has the shares that a call names in `asked`
    (None: all).
    """

    def __init__(
        self, called: int, *, tests: dict[int, bytes] | None = None, writes: dict[int, bytes | None] | None = None,
        asked: frozenset[int] | None = None, who: str = "",
    ) -> None:  # fmt: skip
        self.called = called
        self.answered: int | None = None
        self.tests, self.writes, self.asked = tests or {}, writes or {}, asked
        self.passed: bool | None = None
        self.found: dict[int, bytes] = {}
        self.who = who

    def answer(self, at: int, passed: bool, found: dict[int, bytes]) -> None:
        self.answered, self.passed, self.found = at, passed, found

    def outcomes(self, state: State) -> Iterator[State]:
        shares = dict(state)
        passes = all(shares.get(shnum, b"") == content for shnum, content in self.tests.items())
        if self.answered is None:
            if passes:
                yield from (_changed(shares, part) for part in self._parts())
            return
        seen = {n: data for n, data in shares.items() if self.asked is None or n in self.asked}
        if passes == self.passed and seen == self.found:
            yield _changed(shares, self.writes) if passes else state

    def _parts(self) -> Iterator[dict[int, bytes | None]]:
        """What of its writes may have happened where it has failed: shares are put each for itself, and deleted when
        all were put."""
        puts = {n: data for n, data in self.writes.items() if data is not None}
        gone = [n for n in self.writes if n not in puts]
        for size in range(1, len(puts) + 1):
            for some in combinations(puts, size):
                yield {n: puts[n] for n in some}
        for size in range(1, len(gone) + 1):
            for some in combinations(gone, size):
                yield {**puts, **dict.fromkeys(some)}

    def __repr__(self) -> str:
        asked = "all" if self.asked is None else sorted(self.asked)
        writes = f"tests {_short(self.tests)} writes {_short(self.writes)}"
        what = writes if self.writes or self.tests else f"reads {asked}"
        answer = "no answer" if self.answered is None else f"{self.answered}: {self.passed} {_short(self.found)}"
        return f"<{self.who} {self.called}: {what} -> {answer}>"


def _changed(shares: dict[int, bytes], writes: dict[int, bytes | None]) -> State:
    after: dict[int, Any] = {**shares, **writes}
    return state_of({n: data for n, data in after.items() if data is not None})


def _short(contents: dict[int, Any]) -> str:
    return ", ".join(f"{n}={data[:8]!r}" if data is not None else f"{n} gone" for n, data in contents.items())


def seen_calls(calls: Sequence[Call]) -> list[Call]:
    """All but the calls without an answer of whose contents nothing was ever seen: since every content is written
    once, and every answered call shows all that it finds, these cannot explain any answer (unless they delete)."""
    seen = {data for call in calls if call.answered is not None for data in (*call.found.values(),)}
    return [
        call for call in calls
        if call.answered is not None
        or any(data is None or data in seen for data in call.writes.values())
    ]  # fmt: skip


def explain(calls: Sequence[Call], initial: dict[int, bytes] | None = None) -> list[Call]:
    """An order of one slot's calls; AssertionError with the history where there is none."""
    order = find_order(seen_calls(calls), state_of(initial or {}))
    if order is None:
        history = "\n".join(f"  {call!r}" for call in sorted(calls, key=lambda call: call.called))
        raise AssertionError(f"no order explains these answers:\n{history}")
    return order  # type: ignore[return-value]
