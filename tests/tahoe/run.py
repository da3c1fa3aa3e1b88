# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs Tahoe's own suites: on stock Tahoe (disk) and on S3 services; all of their tests, a few classes at a time.

    python -m tests.tahoe.run --on disk --on moto --on seaweedfs [--jobs 2] [NAME...]

Every class of tests runs in a process of its own (suite.py), the slow ones first. The number of tests that
ran is compared with the number that the modules contain. Prints one line a class and one a backend; the log
of what failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..support.others import INSTALLED, OTHERS, service_named
from ..support.services import Service

SUITES = ("test_system", "test_istorageserver", "test_storage_http", "test_introducer")
"""test_system and test_istorageserver are all that start nodes through Tahoe's SystemTestMixin;
test_introducer has nodes of its own, and test_storage_http runs a storage server behind its HTTP interface
without a node."""
SLOW = ("HTTPSystemTest", "SystemTest", "HTTPConnections", "Connections")
CLASS_LIMIT_S = 900
# What is Tahoe's own, not a server's, and shows now and then on a busy machine or where answers are slower than a
# local disk's. A test that failed with such a trace, and with no other, gets a second chance.
CLIENT_RACES = (
    # mutable/servermap.py, _got_results: shares are forgotten when one server holds two of a slot, and a partial
    # update of an MDMF file then fails.
    (r"\.test_mutable_mdmf$", r"NotEnoughServersError|KeyError"),
    # immutable/downloader/fetcher.py: stop() deletes _shares, and a share found before the node has taken the
    # finished segment's blocks is then added to it.
    (r"\.test_", r"'SegmentFetcher' object has no attribute '_shares'"),
    # common_system.py, getConnectionWithTimeout: a TLS connection between nodes that share one process must be made
    # within one second.
    (r"\.HTTP\w+\.test_", r"ConnectingCancelledError"),
)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How one process ended; `failed` are the names of tests."""

    name: str
    ran: int
    skipped: int
    failed: Sequence[str]
    client_races: Sequence[str]
    seconds: float
    log: Path
    ended_well: bool


def classes_of(names: Sequence[str]) -> dict[str, int]:
    """The test classes in Tahoe's modules, in the order to run them, with the number of their tests."""
    code = (
        "import sys; from twisted.trial.runner import TestLoader\n"
        "from twisted.trial.unittest import TestSuite\n"
        "def cases(s):\n"
        "    for t in s:\n"
        "        yield from (cases(t) if hasattr(t, '__iter__') else [t])\n"
        "for n in sys.argv[1:]:\n"
        "    for t in cases(TestLoader().loadByName('allmydata.test.' + n, recurse=True)): print(t.id())\n"
    )
    told = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, timeout=120)
    counts: dict[str, int] = {}
    for line in told.stdout.split():
        name = line.rpartition(".")[0]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: _rank(item[0])))


def _rank(name: str) -> int:
    last = name.rpartition(".")[2]
    return SLOW.index(last) if last in SLOW else len(SLOW)


def groups_of(counts: dict[str, int]) -> list[list[str]]:
    """Classes that share a process: the slow ones alone, all others of a module together."""
    groups = [[name] for name in counts if _rank(name) < len(SLOW)]
    modules: dict[str, list[str]] = {}
    for name in counts:
        if _rank(name) == len(SLOW):
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    return groups + list(modules.values())


def run_group(names: Sequence[str], service: Service | None, folder: Path) -> Outcome:
    """One process with some classes; its output goes to a log in `folder`."""
    title = names[0] if len(names) == 1 else names[0].rpartition(".")[0]
    title = title.removeprefix("allmydata.test.")
    place = Path(tempfile.mkdtemp(prefix=f"{title}-", dir=folder))
    command = [sys.executable, "-m", "tests.tahoe.suite", f"--folder={place}"]
    if service is not None:
        command.append(f"--service={service.url},{service.access_key_id},{service.secret},{service.region}")
    started, log = time.monotonic(), place / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *names], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT
        )
        try:
            process.wait(CLASS_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return read_outcome(title, log, seconds=time.monotonic() - started, ended_well=process.returncode == 0)


def read_outcome(title: str, log: Path, *, seconds: float, ended_well: bool) -> Outcome:
    """What trial's last lines and its list of failures say."""
    text = log.read_text(errors="replace")
    ran = re.findall(r"^Ran (\d+) tests in", text, re.MULTILINE)
    skipped = re.findall(r"^(?:PASSED|FAILED) \(.*?skips=(\d+)", text, re.MULTILINE)
    blocks = re.findall(r"^=+\n\[(?:FAIL|ERROR)\]\n.*?(?=^=+\n|^-{30,}\n)", text, re.MULTILINE | re.DOTALL)
    told: dict[str, str] = {}
    for block in blocks:
        for name in re.findall(r"^(allmydata\.test\.\S+)$", block, re.MULTILINE):
            told[name] = told.get(name, "") + block
    races = [
        name
        for name, trace in told.items()
        if any(re.search(which, name) and re.search(what, trace) for which, what in CLIENT_RACES)
    ]
    return Outcome(
        name=title,
        ran=int(ran[-1]) if ran else 0,
        skipped=int(skipped[-1]) if skipped else 0,
        failed=sorted(told),
        client_races=sorted(races),
        seconds=seconds,
        log=log,
        ended_well=ended_well and bool(ran),
    )


def with_second_chance(names: Sequence[str], service: Service | None, folder: Path) -> list[Outcome]:
    """Runs a group; where every failure is one of the client's races, those tests again, once."""
    outcome = run_group(names, service, folder)
    report(outcome)
    again = outcome.client_races
    if outcome.ended_well or not again or len(again) < len(outcome.failed):
        return [outcome]
    print(f"    once more, since Tahoe's client is known to fail so now and then: {', '.join(again)}", flush=True)
    second = run_group(again, service, folder)
    report(second)
    if not second.ended_well:
        return [outcome]
    return [replace(outcome, failed=(), client_races=(), ended_well=True)]


def report(outcome: Outcome) -> None:
    word = "passed" if outcome.ended_well else "FAILED"
    skipped = f", {outcome.skipped} skipped by Tahoe" if outcome.skipped else ""
    print(f"  {word} {outcome.name}: {outcome.ran} tests{skipped}, {outcome.seconds:.0f} s", flush=True)
    if not outcome.ended_well:
        print(outcome.log.read_text(errors="replace")[-6000:], flush=True)


@contextmanager
def backend(name: str, folder: Path) -> Iterator[Service | None]:
    """The service called `name`, running; None for the disk."""
    if name == "disk":
        yield None
        return
    with service_named(name)(folder / "service") as service:
        yield service


def run_on(name: str, counts: dict[str, int], *, jobs: int) -> tuple[int, int]:
    """All classes on one backend; (tests passed, tests failed or lost)."""
    print(f"Tahoe's suites on {name}:", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"tahoe-suites-{name}-") as text:
        folder = Path(text)
        with backend(name, folder) as service, ThreadPoolExecutor(jobs) as pool:
            work = [pool.submit(with_second_chance, group, service, folder) for group in groups_of(counts)]
            outcomes = [outcome for each in work for outcome in each.result()]
    ran, total = sum(outcome.ran for outcome in outcomes), sum(counts.values())
    failed = sum(max(len(outcome.failed), 1) for outcome in outcomes if not outcome.ended_well)
    lost = max(total - ran, 0) if not failed else 0
    skipped = sum(outcome.skipped for outcome in outcomes)
    seconds = time.monotonic() - started
    print(
        f"Tahoe's suites on {name}: {ran} of {total} tests ran, {skipped} of them skipped by Tahoe itself, "
        f"{failed} failed, {seconds:.0f} s",
        flush=True,
    )
    return ran - failed - skipped, failed + lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", action="append", choices=["disk", *INSTALLED, *OTHERS], required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*", default=list(SUITES), help="modules of allmydata.test, or classes")
    given = parser.parse_args()
    counts = classes_of(given.names)
    results = [run_on(name, counts, jobs=given.jobs) for name in given.on]
    passed, failed = (sum(column) for column in zip(*results))
    print(f"Tahoe's own suites: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
