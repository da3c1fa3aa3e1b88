# SPDX-License-Identifier: GPL-2.0-or-later
"""A thousand processes that end in the middle of TLS transfers, and a hundred forks: `make exits`.

    python -m tests.native.exits [--exits 1000] [--forks 100] [--seed N] [--jobs 4] [--way NAME]

Each process must end with the status that its way has (exiting.py), write nothing to stderr but an expected
traceback, and be gone within LIMIT_S of its wish to end. The last line is "N passed, N failed". What a seed chose, it
chooses again; only the moments depend on the machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..support.tls_peer import Peer
from .exiting import STATUS, WAYS
from .processes import environment

HERE = Path(__file__).parent
LIMIT_S = 5.0
"""The engine's own end takes less than a second; the rest is for machines with more to do than this."""
GIVEN_UP_S = 30.0
MODES: Sequence[Sequence[str]] = ((), ("-X", "dev"), ("-X", "faulthandler", "-O"))


@dataclass(frozen=True)
class Run:
    """One process. `wrong` is "" or says what was."""

    way: str
    seed: int
    took_s: float
    wrong: str


def python(script: str, *arguments: str, mode: Sequence[str] = ()) -> list[str]:
    """A command that runs one of the scripts here, without site-packages' start-up files."""
    return [sys.executable, "-S", *mode, "-W", "error", str(HERE / script), *arguments]


def run_one(peer: Peer, way: str, seed: int) -> Run:
    command = python("exiting.py", way, peer.url, str(peer.bundle), str(seed), mode=MODES[seed % len(MODES)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIVEN_UP_S, check=False,
                              env=environment())
    except subprocess.TimeoutExpired as error:
        return Run(way, seed, GIVEN_UP_S, f"did not end; {error.stderr!r}")
    ended = time.time()
    expected = STATUS.get(way, 0)
    said = done.stderr.strip()
    if expected in (1, -2):  # a traceback, whose last line is the exception
        said = "" if said.splitlines()[-1:][0].startswith(("RuntimeError: expected", "KeyboardInterrupt")) else said
    wrong = ""
    if done.returncode != expected or said or not done.stdout:
        wrong = f"status {done.returncode} instead of {expected}; {done.stderr}"
    took_s = ended - float(done.stdout or ended)
    if took_s > LIMIT_S:
        wrong = wrong or f"took {took_s:.1f} s to end"
    return Run(way, seed, took_s, wrong)


def run_exits(peer: Peer, count: int, seed: int, *, jobs: int = 4, only: str = "") -> list[Run]:
    """Every way equally often, in a random order."""
    ways = [only] if only else list(WAYS)
    chosen = [ways[number % len(ways)] for number in range(count)]
    random.Random(seed).shuffle(chosen)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda pair: run_one(peer, pair[1], seed + pair[0]), enumerate(chosen)))


def run_forks(peer: Peer, count: int, seed: int) -> Run:
    """One process that forks so often in the middle of its transfers."""
    began = time.monotonic()
    command = python("forking.py", peer.url, str(peer.bundle), str(seed), str(count), mode=("-X", "faulthandler"))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 2 * count, check=False,
                              env=environment())
    except subprocess.TimeoutExpired as error:
        return Run("forks", seed, time.monotonic() - began, f"did not end; {error.stdout!r} {error.stderr!r}")
    wrong = "" if done.returncode == 0 and not done.stderr else f"status {done.returncode}; {done.stderr}"
    if done.stdout:
        print(done.stdout.strip())
    return Run("forks", seed, time.monotonic() - began, wrong)


def report(runs: Sequence[Run]) -> int:
    for run in runs:
        if run.wrong:
            print(f"{run.way} with seed {run.seed}: {run.wrong}")
    exits = sorted(run.took_s for run in runs if run.way != "forks")
    if exits:
        print(f"{len(exits)} ends: median {statistics.median(exits) * 1000:.0f} ms, longest {exits[-1] * 1000:.0f} ms")
    failed = sum(bool(run.wrong) for run in runs)
    print(f"{len(runs) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exits", type=int, default=1000)
    parser.add_argument("--forks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--way", default="", choices=["", *WAYS])
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Peer(Path(folder)) as peer:
        runs = run_exits(peer, given.exits, given.seed, jobs=given.jobs, only=given.way)
        if given.forks:
            runs.append(run_forks(peer, given.forks, given.seed))
    return report(runs)


if __name__ == "__main__":
    sys.exit(main())
