# SPDX-License-Identifier: GPL-2.0-or-later
"""The kill -9 matrix: `make crashes`.

    python -m tests.crash.matrix [--runs 1000] [--seed N] [--jobs 2] [--only POINT] [--story NUMBER]

Every point of tahoe_s3/store/points.py, over both protocols, on a service that is well, one that fails at times, and
one whose PUTs time out at times and are applied later; as many times as there are runs. A story is a folder and a
bucket that live through some runs. A seed chooses the same again; only the moments depend on the machine. The last line
is "N passed, N failed".
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from tahoe_s3.store.points import POINTS

from ..live.wire import PROTOCOLS
from ..native.processes import ELSEWHERE
from .living import Forker, environment, make_certificates
from .story import Run, Story, Told
from .whole import run_whole

RUNS_A_STORY = 8
TROUBLES = ("", "errors", "late")


def plan(count: int, chance: random.Random, *, only: str = "") -> list[list[Run]]:
    """Stories of so many runs in all: each point equally often, its protocols and troubles in turn."""
    names = [name for name in POINTS if only in name]
    runs = []
    while len(runs) < count:
        turn = len(runs) // len(names)
        batch = [
            Run(name, PROTOCOLS[(turn + number) % 2], TROUBLES[(turn // 2 + number) % 3])
            for number, name in enumerate(names)
        ]
        runs += batch[: count - len(runs)]
    chance.shuffle(runs)
    # Time travels in stories of expiry, which would be too old for others.
    expiring = [run for run in runs if run.room == "expiry"]
    others = [run for run in runs if run.room != "expiry"]
    return [
        group[start : start + RUNS_A_STORY]
        for group in (expiring, others) for start in range(0, len(group), RUNS_A_STORY)
    ]  # fmt: skip


async def run_stories(reactor: Any, stories: Sequence[Sequence[Run]], seed: int, *, whole: int) -> Told:
    """One after the other, in this process, and so many deaths of a whole node. Story number n has the seed + n."""
    certificates = make_certificates()
    forker = Forker(reactor)
    await forker.start()
    told = Told()
    for number, runs in enumerate(stories):
        if not runs:
            continue
        found = await Story(reactor, forker, runs, seed + number, certificates=certificates).live()
        told.add(found)
        if found.wrong:
            found.wrong[-1] = f"--- story {number}\n{found.wrong[-1]}"
            # What a broken story has left behind must not disturb the next.
            await forker.stop()
            forker = Forker(reactor)
            await forker.start()
    await forker.stop()
    told.add(await run_whole(reactor, whole, seed))
    return told


def run_here(stories: Sequence[Sequence[Run]], seed: int, *, whole: int) -> Told:
    """The same, with the reactor of this process, which ends with it."""
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    # What Twisted says of connections that broke: they were to break.
    globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False, discardBuffer=True)
    result: list[Any] = []

    def begin() -> None:
        going = Deferred.fromCoroutine(run_stories(reactor, stories, seed, whole=whole))
        going.addBoth(result.append)
        going.addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]

    reactor.callWhenRunning(begin)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    if not isinstance(result[0], Told):
        result[0].printTraceback(sys.stderr)
        sys.exit(1)
    return result[0]


def run_in_jobs(arguments: Sequence[str], seed: int, jobs: int) -> Told:
    """So many processes, each with its part of the stories."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.crash.matrix", *arguments, "--seed", str(seed)]
    processes = [
        subprocess.Popen([*command, "--jobs", str(jobs), "--job", str(job)], stdout=subprocess.PIPE, text=True,
                         cwd=ELSEWHERE, env=environment(), stdin=subprocess.DEVNULL)
        for job in range(jobs)
    ]  # fmt: skip
    told = Told()
    for process in processes:
        said, _ = process.communicate()
        last = (said.splitlines() or [""])[-1]
        if process.returncode or not last.startswith("{"):
            told.wrong.append(f"a process ended with {process.returncode}: {last}")
        else:
            found = json.loads(last)
            told.add(Told(**{**found, "deaths": Counter(found["deaths"])}))
            print("".join(f"{wrong}\n" for wrong in found["wrong"]), end="", flush=True)
    return told


def summary(told: Told, wanted: set[str]) -> str:
    """The last lines. A point that no run came to is a failure."""
    points = Counter[str]()
    for name, times in told.deaths.items():
        points[name.partition(" ")[0]] += times
    deaths, never = sum(points.values()), sorted(wanted - points.keys())
    least = 0 if never else min(points.values(), default=0)
    protocols = {name: sum(told.deaths[key] for key in told.deaths if key.endswith(name)) for name in PROTOCOLS}
    lines = [
        *(f"never reached: {name}" for name in never),
        *(f"did not come to its point: {run}" for run in told.missed),
        f"{deaths} deaths ({', '.join(f'{times} over {name}' for name, times in protocols.items())}) at {len(points)} "
        f"of {len(wanted)} points, each at least {least} times; {told.clean_restarts} restarts after a clean stop; "
        f"{told.calls_failed} calls without an answer; {told.put_right} objects that a late PUT had undone were put "
        f"right in service, {told.put_right_at_start} at a start after the node had died",
        f"{deaths} passed, {len(told.wrong) + len(never)} failed",
    ]
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The kill -9 matrix")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--job", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--whole", type=int, default=0, help="so many deaths more, of nodes that `tahoe run` starts")
    parser.add_argument("--only", default="", help="only points whose name contains this")
    parser.add_argument("--story", type=int, default=None, help="only the story of this number")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    stories = plan(options.runs, random.Random(seed), only=options.only)
    if options.story is not None:
        stories = [runs if number == options.story else [] for number, runs in enumerate(stories)]
        options.jobs, options.job = 1, 0
    if options.job is not None:
        mine = [runs if number % options.jobs == options.job else [] for number, runs in enumerate(stories)]
        # The first of several has the whole node.
        told = run_here(mine, seed, whole=0 if options.job else options.whole)
        print(json.dumps(vars(told)))
        return 0
    print(f"seed {seed}", flush=True)
    text = summary(run_in_jobs(arguments, seed, options.jobs), {run.point for runs in stories for run in runs})
    print(text)
    return 0 if text.endswith(" 0 failed") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
