# SPDX-License-Identifier: GPL-2.0-or-later
"""The checker of orders: it accepts what one slot at a time could have answered, and rejects what none could."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from . import linear
from .linear import Call, Undecided, explain, find_order, state_of

A, B, C = b"a", b"b", b"c"


def write(span: tuple[int, int | None], writes: dict[int, bytes | None], *, tests: dict[int, bytes] | None = None,
          found: dict[int, bytes] | None = None, passed: bool = True) -> Call:  # fmt: skip
    """A read-test-write that lasts from the first event to the second; without the second it has no answer."""
    call = Call(span[0], tests=tests, writes=writes)
    if span[1] is not None:
        call.answer(span[1], passed, found or {})
    return call


def read(span: tuple[int, int], found: dict[int, bytes], *, asked: set[int] | None = None) -> Call:
    call = Call(span[0], asked=None if asked is None else frozenset(asked))
    call.answer(span[1], True, found)
    return call


GOOD = {
    "one after the other": [write((1, 2), {0: A}), write((3, 4), {0: B}, found={0: A}), read((5, 6), {0: B})],
    "of two that swap at once one wins": [
        write((1, 2), {0: A}),
        write((3, 6), {0: B}, tests={0: A}, found={0: A}),
        write((4, 5), {0: C}, tests={0: A}, found={0: B}, passed=False),
        read((7, 8), {0: B}),
    ],
    "a read beside a write sees either": [
        write((1, 2), {0: A}),
        write((3, 8), {0: B}, found={0: A}),
        read((4, 5), {0: A}),
        read((6, 7), {0: B}),
    ],
    "no answer, and it happened later": [
        write((1, 2), {0: A}), write((3, None), {0: B}), read((4, 5), {0: A}), read((6, 7), {0: B}),
    ],
    "no answer, and it never happened": [
        write((1, 2), {0: A}), write((3, None), {0: B}), read((4, 5), {0: A}),
        write((6, 7), {0: C}, tests={0: A}, found={0: A}), read((8, 9), {0: C}),
    ],
    "an error after one share of two": [
        write((1, 2), {0: A, 1: A}), write((3, None), {0: B, 1: C}), read((4, 5), {0: B, 1: A}),
    ],
    "a share that is deleted": [
        write((1, 2), {0: A, 1: B}), write((3, 4), {0: None}, found={0: A, 1: B}), read((5, 6), {1: B}),
        write((7, 8), {0: C}, tests={0: b""}, found={1: B}),
    ],
    "a read of one share": [write((1, 2), {0: A, 1: B}), read((3, 4), {1: B}, asked={1, 2})],
    "nothing was answered": [write((1, None), {0: A})],
}  # fmt: skip

BAD = {
    "a lost update": [
        write((1, 2), {0: A}),
        write((3, 4), {0: B}, tests={0: A}, found={0: A}),
        write((5, 6), {0: C}, tests={0: A}, found={0: A}),
    ],
    "a lost update, both at once": [
        write((1, 2), {0: A}),
        write((3, 6), {0: B}, tests={0: A}, found={0: A}),
        write((4, 5), {0: C}, tests={0: A}, found={0: A}),
    ],
    "a stale read": [write((1, 2), {0: A}), write((3, 4), {0: B}, found={0: A}), read((5, 6), {0: A})],
    "a write that is seen and then gone": [
        write((1, 2), {0: A}), write((3, None), {0: B}), read((4, 5), {0: B}), read((6, 7), {0: A}),
    ],
    "an acknowledged write that is gone": [write((1, 2), {0: A}), read((3, 4), {})],
    "a test that should have succeeded": [
        write((1, 2), {0: A}), write((3, 4), {0: B}, tests={0: A}, found={0: A}, passed=False),
    ],
    "a content that nobody wrote": [write((1, 2), {0: A}), read((3, 4), {0: B})],
    "a content from the future": [read((1, 2), {0: A}), write((3, 4), {0: A}, found={0: A})],
    "half of an acknowledged write": [
        write((1, 2), {0: A, 1: A}), write((3, 8), {0: B, 1: B}, found={0: A, 1: A}), read((4, 5), {0: B, 1: A}),
    ],
    "two halves in two orders": [
        write((1, 2), {0: A, 1: A}), write((3, 20), {0: B}, found={0: A, 1: A}),
        write((4, 21), {1: B}, found={0: B, 1: A}), read((5, 10), {0: A, 1: B}),
    ],
    "without an answer, but its test never held": [
        write((1, 2), {0: A}), write((3, None), {0: B}, tests={0: C}), read((4, 5), {0: B}),
    ],
    "a delete before the shares were put": [
        write((1, 2), {0: A, 1: A}), write((3, None), {0: B, 1: None}), read((4, 5), {0: A}),
    ],
    "gone and back": [
        write((1, 2), {0: A}), write((3, 4), {0: None}, found={0: A}), read((5, 6), {0: A}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be(name: str) -> None:
    assert explain(GOOD[name]) is not None


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be(name: str) -> None:
    with pytest.raises(AssertionError, match="no order explains"):
        explain(BAD[name])


def test_an_order_explains_every_answer() -> None:
    """What is returned is such an order, from the call to the answer of each."""
    calls = GOOD["of two that swap at once one wins"]
    order = explain(calls)
    assert sorted(order, key=id) == sorted(calls, key=id)
    assert_explains(order)


def assert_explains(order: list[Call]) -> None:
    states = {state_of({})}
    for number, call in enumerate(order):
        assert all(later.answered is None or later.answered > call.called for later in order[number:])
        states = {after for state in states for after in call.outcomes(state)}
        assert states


def random_history(chance: random.Random) -> list[Call]:
    """Clients at once on a slot that works, but now and then gives one wrong answer."""
    shares: dict[int, bytes] = {}
    moments = chance.sample(range(1000), 15)
    calls = []
    for number in range(5):
        begin, happens, end = sorted(moments[3 * number : 3 * number + 3])
        calls.append((happens, begin, end, number))
    made = []
    for _, begin, end, number in sorted(calls):
        shnum = chance.randrange(2)
        tests = {shnum: chance.choice([shares.get(shnum, b""), b"", b"0"])} if chance.random() < 0.6 else {}
        writes: dict[int, bytes | None] = {shnum: b"%d" % number if chance.random() < 0.8 else None}
        call = Call(begin, tests=tests, writes=writes)
        passed, found = all(shares.get(n, b"") == data for n, data in tests.items()), dict(shares)
        if passed:
            shares = {n: data for n, data in {**shares, **writes}.items() if data is not None}
        if chance.random() < 0.15:
            passed = not passed
        if chance.random() < 0.15:
            found.pop(0, None)
        if chance.random() < 0.85:
            call.answer(end, passed, found)
        made.append(call)
    return made


def by_trying_all(calls: list[Call]) -> bool:
    """Every order of every choice of the calls without an answer."""
    certain = [call for call in calls if call.answered is not None]
    others = [call for call in calls if call.answered is None]
    for choice in range(1 << len(others)):
        chosen = certain + [call for bit, call in enumerate(others) if choice >> bit & 1]
        for order in permutations(chosen):
            if any(later.answered is not None and later.answered < one.called
                   for at, one in enumerate(order) for later in order[at:]):  # fmt: skip
                continue
            states = {state_of({})}
            for call in order:
                states = {after for state in states for after in call.outcomes(state)}
            if states:
                return True
    return False


@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_trying_all_orders(seed: int) -> None:
    chance = random.Random(seed)
    verdicts = set()
    for _ in range(40):
        calls = random_history(chance)
        order = find_order(calls, state_of({}))
        if order is not None:
            assert_explains(order)  # type: ignore[arg-type]
        assert (order is not None) == by_trying_all(calls), calls
        verdicts.add(order is not None)
    assert verdicts == {True, False}, "only one kind of history was tried"


def test_a_search_that_takes_too_long_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_TRIED", 50)
    calls = [write((number, None), {number: A}) for number in range(10)]
    with pytest.raises(Undecided):
        find_order([*calls, read((20, 21), {0: B})], state_of({}))


def test_a_long_history() -> None:
    """Hundreds of calls, eight at a time, as the tests of the server make them."""
    chance = random.Random(5)
    shares: dict[int, bytes] = {}
    calls, clock, under_way = [], 0, []
    for number in range(400):
        clock += 1
        call = Call(clock, tests={number % 3: shares.get(number % 3, b"")}, writes={number % 3: b"%d" % number})
        found, shares = dict(shares), {**shares, number % 3: b"%d" % number}
        under_way.append((call, found))
        calls.append(call)
        if len(under_way) == 8:
            chance.shuffle(under_way)
            for call, found in under_way:
                clock += 1
                call.answer(clock, True, found)
            under_way = []
    assert_explains(explain(calls))
