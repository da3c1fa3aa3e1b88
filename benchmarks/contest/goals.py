# SPDX-License-Identifier: GPL-2.0-or-later
"""The goals, held against what was measured, in one table at the end of a run.

A goal on a row is on ratios taken within each round; what is compared is their median. Where a goal names several
others ("ahead of all others"), the best of them counts, and is named.

Behind a goal that was missed stands how far another one came that has less to do: bare libcurl with the same work, or
all cores, never idle, with libcurl's share of it. That is no bound: ours is ahead of bare libcurl in some rows. It says
how much of what is missing libcurl, the TLS library and the machine explain.
"""
from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from contest.entrants import BARE, FRESH, HASH_ALONE, HASHED, HEADED, HEADED_HOP, HOP, PERFORM, is_yardstick
from contest.newer import NAMES_OF_OURS
from contest.timing import Entrant, Row, quartiles, ratios, told

DRAINED = "ours, submit and drain"
DEFERREDS = "ours, Deferreds"
NEWER = {DRAINED: NAMES_OF_OURS["drained"], DEFERREDS: NAMES_OF_OURS["deferreds"]}
ONE_SLOWER = 1.15
"""How much longer one request at a time may take than bare libcurl with a thread hop."""
CPU_MORE = 1.10


class Reference(NamedTuple):
    """What another one has of the rival's rate, and who."""

    ratio: float
    who: str


class Outcome(NamedTuple):
    """One line of the table. `met` None: it could not be measured. `reference`: how far another one came."""

    what: str
    measured: str
    goal: str
    met: bool | None
    reference: Reference | None = None


def _find(row: Row, name: str) -> Entrant | None:
    return next((one for one in row.able() if one.name == name and one.rates), None)


def _best(row: Row, ours: Entrant, rivals: Iterable[Entrant]) -> Entrant | None:
    """The one that ours is least ahead of."""
    return min(rivals, key=lambda one: statistics.median(ratios(ours, one)), default=None)


def _of_bare(row: Row, rival: Entrant, bare: str) -> Reference | None:
    """What bare libcurl, doing the same, has of the rival's rate."""
    yard = _find(row, bare)
    return Reference(statistics.median(ratios(yard, rival)), f"{bare} has") if yard is not None else None


def _of_cores(row: Row, rival: Entrant, least: str) -> Reference | None:
    """What all cores would carry, never idle, of what one line costs in processor time: the client's and the
    server's."""
    work = _find(row, least)
    cores = len(os.sched_getaffinity(0))
    if work is None or row.server_cpu_s is None:
        return None
    carried = [cores / (cpu + busy / rate) for cpu, busy, rate in zip(work.cpu, work.busy, work.rates)]
    most = statistics.median(rate / other for rate, other in zip(carried, rival.rates))
    return Reference(most, f"{cores} cores that do nothing but {least} would have")


Referring = Callable[[Row, Entrant], Optional[Reference]]


def at_least(
    row: Row, ours: str, others: Iterable[str], goal: float, words: str = "", *, refer: Referring | None = None,
) -> Outcome:
    """Ours is `goal` times the best of these lines. `refer` tells how far another one came."""
    mine = _find(row, ours)
    rivals = [one for name in others if (one := _find(row, name)) is not None]
    rival = _best(row, mine, rivals) if mine is not None else None
    if mine is None or rival is None:
        return Outcome(f"{row.key}: {ours}", "not measured", f">= {goal:.2f}", None)
    got = ratios(mine, rival)
    reference = refer(row, rival) if refer is not None else None
    return Outcome(f"{row.key}: {ours} / {rival.name}{words}", told(got), f">= {goal:.2f}",
                   statistics.median(got) >= goal, reference)


def ahead(row: Row, ours: str, *, payload: str = "", refer: Referring | None = None) -> list[Outcome]:
    """Ours is ahead of all that is neither ours nor a yardstick, or of those whose PUTs are of one kind. Where the
    best of them is no client of S3 (pycurl without a signature), a second line is for the best that is one."""
    rivals = [one for one in row.able()
              if not one.ours and not is_yardstick(one.name) and payload in ("", one.note)]
    mine = _find(row, ours)
    best = _best(row, mine, rivals) if mine is not None else None
    made = [at_least(row, ours, [one.name for one in rivals], 1.0, ", the best other", refer=refer)]
    if best is not None and not best.signs:
        names = [one.name for one in rivals if one.signs]
        made.append(at_least(row, ours, names, 1.0, ", the best other of S3", refer=refer))
    return made


def _begins(row: Row, words: str) -> str:
    """The name of the line that begins so, of pycurl's the one that does not sign; the words where there is none."""
    return next((one.name for one in row.able() if one.name.startswith(words) and "SIGV4" not in one.name), words)


def alike(row: Row, *ours: str) -> list[Outcome]:
    """Ours is ahead of pycurl on the same libcurl: the system's, and that of pycurl's wheel."""
    pairs = [pair for name in ours
             for pair in ((name, "pycurl, system "), (f"{NEWER[name]}, libcurl ", "pycurl, wheel "))]
    return [at_least(row, _begins(row, mine), [_begins(row, theirs)], 1.0, ", on the same libcurl")
            for mine, theirs in pairs]


def cpu_within(row: Row, ours: str, bare: str, *, hashing: str | None = None) -> Outcome:
    """CPU seconds a GB: at most CPU_MORE times the yardstick's, after those of hashing were taken off where a line
    for it is given."""
    mine, yard = _find(row, ours), _find(row, bare)
    extra = _find(row, hashing) if hashing else None
    goal = f"<= {CPU_MORE:.2f}"
    what = f"{row.key}: CPU{' less the hash' if hashing else ''}, {ours} / {bare}"
    if mine is None or yard is None or (hashing and extra is None):
        return Outcome(what, "not measured", goal, None)
    less = extra.cpu if extra is not None else [0.0] * len(mine.cpu)
    got = [(one - hashed) / other for one, hashed, other in zip(mine.cpu, less, yard.cpu)]
    return Outcome(what, told(got), goal, statistics.median(got) <= CPU_MORE)


def _bare(name: str) -> Referring:
    return lambda row, rival: _of_bare(row, rival, name)


def _cores(row: Row, rival: Entrant) -> Reference | None:
    return _of_cores(row, rival, HASHED)


def _small(row: Row) -> list[Outcome]:
    return [
        at_least(row, DEFERREDS, ["boto3 (botocore)"], 15),
        at_least(row, DEFERREDS, ["obstore"], 1.5),
        *ahead(row, DEFERREDS, refer=_bare(HEADED)),
        *alike(row, DRAINED, DEFERREDS),
        at_least(row, DRAINED, [BARE, PERFORM], 0.75, refer=_bare(HEADED)),
        at_least(row, DRAINED, [HEADED], 0.75),
    ]


def _latency(row: Row) -> list[Outcome]:
    hops = [at_least(row, DRAINED, [name], 1 / ONE_SLOWER) for name in (HOP, HEADED_HOP)]
    return [*hops, *ahead(row, DRAINED, refer=_bare(HEADED_HOP)), *alike(row, DRAINED)]


def _get_stream(row: Row) -> list[Outcome]:
    made = [at_least(row, name, [yard], 0.95) for name in (DRAINED, DEFERREDS) for yard in (FRESH, BARE)]
    made += [cpu_within(row, name, FRESH) for name in (DRAINED, DEFERREDS)]
    return [*made, *ahead(row, DRAINED, refer=_bare(FRESH)), *ahead(row, DEFERREDS, refer=_bare(FRESH))]


def _put_stream(row: Row) -> list[Outcome]:
    names = (DRAINED, DEFERREDS)
    made = [at_least(row, name, [BARE], 0.95, refer=_cores) for name in names]
    made += [at_least(row, name, [HASHED], 0.95) for name in names]
    made += [cpu_within(row, name, BARE, hashing=HASH_ALONE) for name in names]
    return [*made, *(one for name in names for one in ahead(row, name, payload="signed", refer=_cores))]


def _put_unsigned(row: Row) -> list[Outcome]:
    made = [at_least(row, name, [BARE], 0.95) for name in (DRAINED, DEFERREDS)]
    made += [cpu_within(row, name, BARE) for name in (DRAINED, DEFERREDS)]
    made += [*ahead(row, DRAINED, refer=_bare(BARE)), *ahead(row, DEFERREDS, refer=_bare(BARE))]
    return [*made, *alike(row, DRAINED, DEFERREDS)]


def _tls_put(row: Row) -> list[Outcome]:
    more = [at_least(row, name, [HASHED], 1.4, refer=_cores) for name in (DRAINED, DEFERREDS)]
    return [*_put_stream(row), *more]


RULES: dict[str, Callable[[Row], list[Outcome]]] = {
    "sign": lambda row: [at_least(row, "ours", ["botocore, add_auth"], 40)],
    "parse": lambda row: [at_least(row, "ours", ["botocore's parser"], 50),
                          at_least(row, "ours", ["libxml2 SAX2 in C, bare"], 0.5)],
    "get-small": _small,
    "put-small": _small,
    "get-latency": _latency,
    "put-latency": _latency,
    "get-stream": _get_stream,
    "put-stream": _put_stream,
    "tls-get-stream": _get_stream,
    "tls-put-stream": _tls_put,
    "tls-put-unsigned": _put_unsigned,
}


def of_row(row: Row) -> list[Outcome]:
    return RULES[row.key](row)


def at_most(what: str, values: list[float], goal: float, unit: str) -> Outcome:
    """The largest of some values that were measured, against a limit."""
    if not values:
        return Outcome(what, "not measured", f"<= {goal:g} {unit}", None)
    low, middle, high = quartiles(values) if len(values) > 1 else (values[0],) * 3
    spread = f"; median {middle:.2f} ({low:.2f} to {high:.2f}) of {len(values)}" if len(values) > 1 else ""
    return Outcome(what, f"{max(values):.2f} {unit}{spread}", f"<= {goal:g} {unit}", max(values) <= goal)


def _verdict(one: Outcome) -> str:
    if one.met:
        return "met"
    if one.met is None:
        return "NOT met (not measured)"
    return "NOT met" if one.reference is None else f"NOT met ({one.reference.who} {one.reference.ratio:.2f})"


def show(outcomes: list[Outcome]) -> None:
    """The table; what could not be measured is not met either."""
    if not outcomes:
        return
    width = max(len(one.what) for one in outcomes)
    print("\nGoals   [median (quartiles) of what was measured; rate ratios but where it says CPU]")
    for one in outcomes:
        print(f"  {one.what:<{width}}  {one.measured:>26}   goal {one.goal}: {_verdict(one)}")
    print(f"{sum(1 for one in outcomes if one.met)} of {len(outcomes)} met", flush=True)
