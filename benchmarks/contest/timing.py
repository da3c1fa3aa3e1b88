# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes turns and tells the outcome.

All contenders of a row run in every round, each time beginning with another one, so that all meet the same machine.
Spread is the first and third quartile over the rounds. A ratio is that of ours to another's rate within one round,
so that a machine that grows slow during a run does not decide it.
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Union

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred

MIN_ROUNDS = 3
MAX_ROUNDS = 50
SLICE_S = 0.15
"""What one contender's turn of a round is made to last, where its amount of work is free."""


class Spent(NamedTuple):
    """Seconds of a turn, where the contender knows them better than this process does (another process)."""

    wall_s: float
    cpu_s: float


Turn = Callable[[int], Union[Spent, "Deferred[Any]", None]]
"""Does the given number of things; may return a Deferred."""


@dataclass
class Entrant:
    """One line of a row. `rates` are things a second and `cpu` CPU seconds a thing, one of each for every round."""

    name: str
    turn: Turn
    ours: bool = False
    count: int = 0
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    broken: str = ""


@dataclass
class Row:
    """`scale` and `unit` turn things a second into what is printed. `fixed`: how many things a turn is, 0 to find a
    number that lasts SLICE_S; never fewer than `least`. `latency`: microseconds a thing are printed instead."""

    title: str
    entrants: list[Entrant]
    unit: str
    scale: float = 1.0
    fixed: int = 0
    least: int = 1
    latency: bool = False


@inlineCallbacks
def _turn(entrant: Entrant, count: int) -> Generator[Deferred[Any], Any, Spent]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    spent = yield maybeDeferred(entrant.turn, count)
    here = Spent(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    return spent if isinstance(spent, Spent) else here


@inlineCallbacks
def _warm(row: Row, entrant: Entrant) -> Generator[Deferred[Any], Any, None]:
    """Opens connections, and finds out how many things a turn shall be."""
    try:
        count = min(row.fixed, row.least) if row.fixed else row.least
        while True:
            spent = yield _turn(entrant, count)
            if row.fixed or spent.wall_s > SLICE_S / 4:
                break
            count *= 4
        entrant.count = row.fixed or max(row.least, int(count * SLICE_S / spent.wall_s))
    except Exception as error:  # one that does not work must not end the others' contest
        entrant.broken = f"{type(error).__name__}: {error}"


@inlineCallbacks
def run_row(row: Row, seconds: float) -> Generator[Deferred[Any], Any, None]:
    """At least MIN_ROUNDS rounds, and more until the seconds are over."""
    started = time.monotonic()
    for entrant in row.entrants:
        yield _warm(row, entrant)
    able = [entrant for entrant in row.entrants if not entrant.broken]
    rounds = 0
    while rounds < MIN_ROUNDS or (time.monotonic() - started < seconds and rounds < MAX_ROUNDS):
        first = rounds % max(1, len(able))
        for entrant in able[first:] + able[:first]:
            spent = yield _turn(entrant, entrant.count)
            entrant.rates.append(entrant.count / spent.wall_s)
            entrant.cpu.append(spent.cpu_s / entrant.count)
        rounds += 1
    show(row, rounds)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _against(ours: Entrant, other: Entrant) -> str:
    """How many times the other's rate ours is."""
    low, middle, high = _quartiles([a / b for a, b in zip(ours.rates, other.rates)])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def show(row: Row, rounds: int) -> None:
    also = [one for one in row.entrants if one.ours and not one.broken]
    print(f"\n{row.title}   [{row.unit}; median (quartiles) of {rounds} rounds]")
    heads = "".join(f"{'x ' + one.name:>28}" for one in also)
    print(f"  {'':<28}{'':>32}{'CPU s/GB' if row.unit == 'MB/s' else '':>10}{heads}")
    for entrant in row.entrants:
        if entrant.broken:
            print(f"  {entrant.name:<28}DID NOT WORK: {entrant.broken}")
            continue
        values = [1e6 / rate if row.latency else rate * row.scale for rate in entrant.rates]
        low, middle, high = (_number(value) for value in _quartiles(values))
        cpu = f"{statistics.median(entrant.cpu) * 1000 / row.scale:10.2f}" if row.unit == "MB/s" else " " * 10
        ratios = "".join(f"{_against(one, entrant):>28}" if entrant is not one else f"{'':>28}" for one in also)
        rate = f"{middle} ({low} to {high})"
        print(f"  {entrant.name:<28}{rate:>32}{cpu}{ratios}".rstrip(), flush=True)
