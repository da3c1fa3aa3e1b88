# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that `make test` means, step by step, and one line of sums at the end.

    python -m tests.run_all [--jobs 2] [--only NAME]

A step that only checks (ruff, mypy, the warning-free build) counts as one. A later step runs although an earlier one
failed, so that one run tells all. Exit status 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMS = re.compile(r"^(?:.*: )?(\d+) passed, (\d+) failed$")
PYTEST = re.compile(r"^=*\s*(.*?) in [\d.]+s(?: \([\d:]+\))?\s*=*$")
#: There is no mypy for an older Python (pyproject.toml), and no need to look at types on each.
HAS_MYPY = (3, 10)


@dataclass(frozen=True)
class Step:
    """A command; `sums` says whose last line tells how many tests passed and failed ("" for a mere check).

    `with_next`: runs at the same time as the step behind it, since it mostly waits for processes to start.
    """

    name: str
    command: Sequence[str]
    sums: str = ""
    with_next: bool = False


@dataclass(frozen=True)
class Result:
    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def steps(jobs: int) -> list[Step]:
    tools = Path(sys.executable).parent
    python = sys.executable
    suites = [python, "-m", "tests.tahoe.run", f"--jobs={jobs}", "--on=disk", "--on=moto", "--on=seaweedfs",
              "--on=rclone"]
    pytest = [str(tools / "pytest"), "-q", "-p", "no:cacheprovider", "--disable-warnings", "--durations=5"]
    c_tests = ["make", "--no-print-directory", f"-j{jobs}", "-C", "tests/c"]
    types = [
        Step("mypy --strict", [str(tools / "mypy")]),
        Step("the extension's types", [python, "-m", "mypy.stubtest", "--allowlist", "tests/native/stubtest.txt",
                                       "tahoe_s3._native"]),
    ]
    return [
        Step("ruff", [str(tools / "ruff"), "check", "."]),
        *(types if sys.version_info >= HAS_MYPY else []),
        Step("warning-free C", ["make", "--no-print-directory", "cwarn", f"VENV={tools.parent}"]),
        Step("C tests", [*c_tests, "check"], "line"),
        Step("C tests under ASan and UBSan", [*c_tests, "sanitize"], "line"),
        Step("the extension under ASan and UBSan",
             ["make", "--no-print-directory", "sanitize-python-quick", f"VENV={tools.parent}"], "pytest"),
        Step("pytest of tests/live", [*pytest, "tests/live"], "pytest", with_next=True),
        Step("pytest of all else", [*pytest, "--ignore=tests/live"], "pytest"),
        Step("Tahoe's own suites", suites, "line"),
        Step("the demo", [python, "-m", "tests.live.demo"]),
    ]


def count(step: Step, lines: Sequence[str], *, status: int) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a step that ended; what ended badly without saying so counts as one failure."""
    passed = failed = skipped = 0
    if not step.sums:
        passed = int(status == 0)
    elif step.sums == "line":
        found = next((found for found in map(SUMS.match, reversed(lines)) if found), None)
        passed, failed = (int(found[1]), int(found[2])) if found else (0, 0)
    else:
        found = next((found for found in map(PYTEST.match, reversed(lines)) if found), None)
        words = re.findall(r"(\d+) (\w+)", found[1]) if found else []
        numbers = {word: int(number) for number, word in words}
        passed, skipped = numbers.get("passed", 0), numbers.get("skipped", 0)
        failed = numbers.get("failed", 0) + numbers.get("error", 0) + numbers.get("errors", 0)
    if (status != 0 or not passed) and not failed:
        failed = 1
    return passed, failed, skipped


def run(step: Step, *, quiet: bool = False) -> Result:
    """Runs a step, its output going on to ours: line by line, or (`quiet`) when it has ended."""
    title = f"\n--- {step.name}: {' '.join(step.command)}"
    if not quiet:
        print(title, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if not quiet:
            print(lines[-1], flush=True)
    passed, failed, skipped = count(step, lines, status=process.wait())
    if quiet:
        print("\n".join([title, *lines]), flush=True)
    return Result(step.name, passed, failed, skipped, time.monotonic() - started)


def run_steps(chosen: Sequence[Step], *, jobs: int) -> list[Result]:
    """One after the other, but for those that are to run together where there is more than one core."""
    results: list[Result] = []
    waiting = list(chosen)
    while waiting:
        together = [waiting.pop(0)]
        while jobs > 1 and together[-1].with_next and waiting:
            together.append(waiting.pop(0))
        if len(together) == 1:
            results.append(run(together[0]))
            continue
        names = " and ".join(step.name for step in together)
        print(f"\n--- at the same time, each one's output when it has ended: {names}", flush=True)
        with ThreadPoolExecutor(len(together)) as pool:
            results += pool.map(lambda step: run(step, quiet=True), together)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", help="names of steps")
    given = parser.parse_args()
    chosen = [step for step in steps(given.jobs) if not given.only or step.name in given.only]
    started = time.monotonic()
    results = run_steps(chosen, jobs=given.jobs)
    print()
    for result in results:
        skipped = f", {result.skipped} skipped" if result.skipped else ""
        print(f"{result.name}: {result.passed} passed, {result.failed} failed{skipped}, {result.seconds:.0f} s")
    passed, failed = sum(result.passed for result in results), sum(result.failed for result in results)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"make test: {passed} passed, {failed} failed, in {minutes} min {seconds} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
