# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage server with a million shares: its starts, memory and answers, next to Tahoe's disk backend.

    python benchmarks/million.py [--parts fast,slow,disk] [--keys 1000000] [--latency-ms 50] [--disk-seconds 60]

Each line of the table is a process of its own (million_child.py) that imports what a node imports, has the storage
server, and ends. The bucket is null_s3 (benchmarks/README.rst), which lists so many keys: once as fast as it can
("fast"), so that the processor is what is measured, and once with a service's latency ("slow"). First the local folder
is empty, so that the index is built from the listing; then it is as that run's clean stop left it. Tahoe's own
StorageServer ("disk") gets files of the same storage indexes, as many as there are keys, or as can be made in
--disk-seconds.

Wants gcc and what the C extension was built with. Takes about three minutes; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest.server import NullServer, build

CHILD = Path(__file__).resolve().parent / "million_child.py"
CHILD_S = 900
PARTS = ("fast", "slow", "disk")


def child(*arguments: object) -> dict[str, Any]:
    """What one process has measured. CalledProcessError where it failed."""
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=CHILD_S)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def cell(value: object, digits: int = 2) -> str:
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return "-" if value is None else f"{value:,}"


ROWS = (
    ("shares", "shares", 0),
    ("memory before the start, MB", "before_mb", 1),
    ("memory at the end, MB", "rss_mb", 1),
    ("memory at most, MB", "peak_mb", 1),
    ("start until it serves, s", "serves_s", 2),
    ("start until all is listed, s", "complete_s", 2),
    ("processor until then, s", "cpu_s", 2),
    ("longest stall of the reactor while it serves, ms", "stall_ms", 1),
    ("  of which Python's garbage collector at most, ms", "collector_ms", 1),
    ("  99% of all turns are late by less, ms", "stall_99_ms", 1),
    ("get_buckets asked meanwhile", "asked", 0),
    ("their median, ms", "asked_median_ms", 2),
    ("the longest, ms", "asked_max_ms", 1),
    ("get_buckets a second, of shares that are there", "there_per_s", 0),
    ("get_buckets a second, of shares that are not", "nowhere_per_s", 0),
    ("clean stop, s", "stop_s", 2),
    ("bytes of the index, MB", "index_mb", 1),
    ("LISTs of the listing", "lists", 0),
    ("  the budget: n/1000, an eighth more, 20", "lists_budget", 0),
    ("LISTs of storage indexes looked up meanwhile", "look_ups", 0),
    ("other requests", "others", 0),
    ("  the budget", "others_budget", 0),
    ("requests of the get_buckets after that", "late_requests", 0),
)


def print_table(columns: list[tuple[str, dict[str, Any]]]) -> None:
    rows = [row for row in ROWS if any(row[1] in found for _, found in columns)]
    width = max(len(title) for title, *_ in rows)
    widths = [max(15, len(name)) for name, _ in columns]
    print(" " * width, *(f"{name:>{wide}}" for (name, _), wide in zip(columns, widths)), sep="  ")
    for title, name, digits in rows:
        cells = [cell(found.get(name), digits) for _, found in columns]
        print(f"{title:<{width}}", *(f"{text:>{wide}}" for text, wide in zip(cells, widths)), sep="  ")


def verdict(columns: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether the requests are within the budget."""
    good = True
    for name, found in columns:
        for what in ("lists", "others"):
            if found.get(what, 0) > found.get(f"{what}_budget", 0):
                good = False
                print(f"NOT within the budget: {name}, {what}: {found[what]} of {found[f'{what}_budget']}")
        if found.get("late_requests"):
            good = False
            print(f"NOT within the budget: {name}: {found['late_requests']} requests for get_buckets")
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=int, default=50)
    parser.add_argument("--disk-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; Python {platform.python_version()}, "
          f"{os.cpu_count()} cores; load before the run {load}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="million-"))
    columns: list[tuple[str, dict[str, Any]]] = []
    try:
        build(folder / "bin")
        for part, latency_ms in (("fast", 0), ("slow", arguments.latency_ms)):
            if part not in parts:
                continue
            with NullServer(folder / "bin", keys=arguments.keys, latency_ms=latency_ms) as server:
                for start in ("rebuild", "kept"):
                    print(f"  {start} at {latency_ms} ms a request", flush=True)
                    columns.append((
                        f"{start}, {latency_ms} ms",
                        child("s3", server.url, folder / f"node-{latency_ms}", arguments.keys, start),
                    ))  # fmt: skip
        if "disk" in parts:
            print("  Tahoe's disk backend", flush=True)
            found = child("disk", folder / "disk", arguments.keys, arguments.disk_seconds)
            columns.append(("disk backend", found))
        print_table(columns)
        good = verdict(columns)
        if parts != ["disk"]:
            print("all requests are within the budget" if good else "the budget was exceeded")
        sys.stdout.flush()
    finally:
        # Which takes as long as making the files did.
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
