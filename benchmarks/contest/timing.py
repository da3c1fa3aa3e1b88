# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes turns and tells the outcome.

All contenders of a row run in every round, each time beginning with another one, so that all meet the same machine.
Spread is the first and third quartile over the rounds. A ratio is that of ours to another's rate within one round,
so that a machine that grows slow during a run does not decide it.
"""
from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable, NamedTuple, Optional

MIN_ROUNDS = 3
MAX_ROUNDS = 50
SLICE_S = 0.15
"""What one contender's turn of a round is made to last, where its amount of work is free."""


class Spent(NamedTuple):
    """Seconds of a turn, where the contender knows them better than this process does (another process)."""

    wall_s: float
    cpu_s: float


Turn = Callable[[int], Optional[Spent]]
"""Does the given number of things."""


@dataclass
class Entrant:
    """One line of a row. `rates` are things a second, `cpu` CPU seconds a thing, and `busy` the part of the time that
    the null server's thread was running, one of each for every round. `note` is printed behind the name. `signs`:
    it is a client of S3, whose requests are signed. `heads`: the row has a column for it."""

    name: str
    turn: Turn
    ours: bool = False
    note: str = ""
    signs: bool = True
    heads: bool = False
    count: int = 0
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    broken: str = ""


@dataclass
class Row:
    """`scale` and `unit` turn things a second into what is printed. `fixed`: how many things a turn is, 0 to find a
    number that lasts SLICE_S; never fewer than `least`. `latency`: microseconds a thing are printed instead.
    `server_cpu_s` tells the CPU seconds of the server that the row runs against."""

    key: str
    title: str
    entrants: list[Entrant]
    unit: str
    scale: float = 1.0
    fixed: int = 0
    least: int = 1
    latency: bool = False
    server_cpu_s: Callable[[], float] | None = None

    def able(self) -> list[Entrant]:
        """Those that worked."""
        return [entrant for entrant in self.entrants if not entrant.broken]


def _turn(entrant: Entrant, count: int) -> Spent:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    spent = entrant.turn(count)
    here = Spent(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    return here if spent is None else spent


def _warm(row: Row, entrant: Entrant) -> None:
    """Opens connections, and finds out how many things a turn shall be."""
    try:
        count = min(row.fixed, row.least) if row.fixed else row.least
        while True:
            spent = _turn(entrant, count)
            if row.fixed or spent.wall_s > SLICE_S / 4:
                break
            count *= 4
        entrant.count = row.fixed or max(row.least, int(count * SLICE_S / spent.wall_s))
    except Exception as error:  # one that does not work must not end the others' contest
        entrant.broken = f"{type(error).__name__}: {error}"


def _round(row: Row, entrants: list[Entrant]) -> None:
    for entrant in entrants:
        before_s, begun_s = row.server_cpu_s() if row.server_cpu_s else 0.0, time.perf_counter()
        try:
            spent = _turn(entrant, entrant.count)
        except Exception as error:  # as in _warm
            entrant.broken = f"{type(error).__name__}: {error}"
            continue
        wall_s = time.perf_counter() - begun_s
        entrant.rates.append(entrant.count / spent.wall_s)
        entrant.cpu.append(spent.cpu_s / entrant.count)
        entrant.busy.append((row.server_cpu_s() - before_s) / wall_s if row.server_cpu_s else 0.0)


def run_row(row: Row, seconds: float) -> Row:
    """At least MIN_ROUNDS rounds, and more until the seconds are over. The row comes back with its figures."""
    started = time.monotonic()
    for entrant in row.entrants:
        _warm(row, entrant)
    rounds = 0
    while rounds < MIN_ROUNDS or (time.monotonic() - started < seconds and rounds < MAX_ROUNDS):
        able = row.able()
        first = rounds % max(1, len(able))
        _round(row, able[first:] + able[:first])
        rounds += 1
    show(row, rounds)
    return row


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def ratios(ours: Entrant, other: Entrant) -> list[float]:
    """How many times the other's rate ours is, in each round."""
    return [a / b for a, b in zip(ours.rates, other.rates)]


def told(values: Sequence[float]) -> str:
    """Median and quartiles of ratios."""
    low, middle, high = quartiles(values)
    return f"{_number(middle)} ({_number(low)} to {_number(high)})"


def _line(row: Row, entrant: Entrant, also: list[Entrant]) -> str:
    values = [1e6 / rate if row.latency else rate * row.scale for rate in entrant.rates]
    streams = row.unit == "MB/s"
    cpu = f"{statistics.median(entrant.cpu) * 1000 / row.scale:.2f}" if streams else ""
    busy = f"{statistics.median(entrant.busy):.0%}" if row.server_cpu_s else ""
    against = "".join(f"{told(ratios(one, entrant)) if one is not entrant else '':>26}" for one in also)
    return f"  {entrant.name:<33}{entrant.note:<9}{told(values):>30}{cpu:>9}{busy:>7}{against}".rstrip()


def show(row: Row, rounds: int) -> None:
    also = [one for one in row.able() if one.heads]
    print(f"\n{row.title}   [{row.unit}; median (quartiles) of {rounds} rounds]")
    cpu, busy = "CPU s/GB" if row.unit == "MB/s" else "", "server" if row.server_cpu_s else ""
    heads = "".join(f"{'x ' + one.name:>26}" for one in also)
    print(f"  {'':<33}{'':<9}{'':>30}{cpu:>9}{busy:>7}{heads}")
    for entrant in row.entrants:
        if entrant.broken:
            print(f"  {entrant.name:<33}DID NOT WORK: {entrant.broken}")
        else:
            print(_line(row, entrant, also), flush=True)
