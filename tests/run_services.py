# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's tests, a node's life, the demo and Tahoe's own suites on each service of tests/support/others.py that is
installed.

    python -m tests.run_services [--jobs 2] [NAME...]

Prints what each step of each service said last, the services that are not installed with the programs they lack, and a
line of sums. A name that is given and not installed is a failure. Exit status 0 only if nothing failed, and something
ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .support.others import OTHERS

ROOT = Path(__file__).resolve().parents[1]
STEP_LIMIT_S = 1800
LAST_LINES = 30


def steps(name: str, jobs: int) -> Iterator[tuple[str, Sequence[str]]]:
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--disable-warnings"]
    yield "client and a node's life", [*pytest, "tests/test_client_services.py", "tests/live/test_other_services.py"]
    yield "demo", [python, "-m", "tests.live.demo", f"--on={name}"]
    yield "Tahoe's suites", [python, "-m", "tests.tahoe.run", f"--on={name}", f"--jobs={jobs}"]


def run(name: str, title: str, command: Sequence[str]) -> bool:
    """One step; where it failed, what it said at the end is shown."""
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TAHOE_S3_SERVICES": name}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=STEP_LIMIT_S,
    )  # fmt: skip
    lines = done.stdout.splitlines() or ["nothing"]
    well = done.returncode == 0
    word = "well" if well else "FAILED"
    print(f"{name}, {title}: {word}, {time.monotonic() - started:.0f} s: {lines[-1]}", flush=True)
    if not well:
        print("\n".join(f"    {line}" for line in lines[-LAST_LINES:]), flush=True)
    return well


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.run_services", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(OTHERS)}; those that are installed unless given")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(OTHERS))
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}")
    well: list[bool] = []
    for name in given.names or OTHERS:
        missing = OTHERS[name].missing()
        if missing:
            print(f"{name} is not installed: no {', '.join(missing)}", flush=True)
            well += [False] if given.names else []
        else:
            well += [run(name, title, command) for title, command in steps(name, given.jobs)]
    print(f"{sum(well)} passed, {len(well) - sum(well)} failed")
    return 0 if well and all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
