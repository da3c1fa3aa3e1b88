# SPDX-License-Identifier: GPL-2.0-or-later
"""Ours and the alternatives side by side, in one run, against a null S3 server: see README.rst.

    python benchmarks/compare.py [--seconds 20] [--gigabytes 1] [--congestion cubic] [--rows sign,parse,...]

Needs a C compiler, the libraries' headers, and an interpreter that has tahoe-s3 and benchmarks/requirements.txt.
`make bench-compare` sees to all of it. Ends with a table of the goals; the exit status does not depend on them.
"""
from __future__ import annotations

import argparse
import os
import platform
import ssl
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from contest import congestion, goals
from contest.audit import audit
from contest.authority import make_certificates
from contest.looptime import loop_time
from contest.memory import memory_rows
from contest.rows import list_slow, parse_row, sign_row
from contest.server import NullServer, build
from contest.timing import run_row
from contest.transfers import PLAIN_ROWS, TLS_ROWS, plain_rows, tls_rows
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import react

from tahoe_s3 import _native

ROWS = ("audit", "sign", "parse", *PLAIN_ROWS, *TLS_ROWS, "list-slow", "loop", "memory")
LIST_GOAL = 6.0


def machine() -> str:
    """What a reader must know of the machine; nothing that names it."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown processor")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores; Linux {platform.release().split('-')[0]}; load before the run {load}"


def wanted_rows(given: str) -> set[str]:
    wanted = set(given.split(",")) if given else set(ROWS)
    unknown = wanted - set(ROWS)
    if unknown:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return wanted


def transfers(folder: Path, given: argparse.Namespace, wanted: set[str]) -> list[goals.Outcome]:
    """All rows against one plain and one TLS server."""
    how = {"seconds": given.seconds, "stream_bytes": int(given.gigabytes * 1e9), "wanted": wanted}
    rows = []
    with NullServer(folder) as server:
        if "audit" in wanted:
            audit(folder, server)
        if "sign" in wanted:
            rows.append(run_row(sign_row(), given.seconds))
        if "parse" in wanted:
            rows.append(run_row(parse_row(folder, server), given.seconds))
        rows += plain_rows(folder, server, **how)
    with NullServer(folder, certificates=make_certificates(folder)) as server:
        if "audit" in wanted:
            audit(folder, server)
        rows += tls_rows(folder, server, **how)
    return [outcome for row in rows for outcome in goals.of_row(row)]


@inlineCallbacks
def run(reactor: Any, given: argparse.Namespace) -> Generator[Deferred[Any], Any, None]:
    wanted = wanted_rows(given.rows)
    begun_s = time.monotonic()
    print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; {machine()}")
    print(f"Python {platform.python_version()}, libcurl {_native.LIBCURL_VERSION}, {ssl.OPENSSL_VERSION}")
    print("A ratio is our rate divided by the line's: above 1 ours is faster. All of it: benchmarks/README.rst")
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-bench-") as text:
        folder = Path(text)
        build(folder)
        print(congestion.settle(folder, given.congestion), flush=True)
        outcomes = transfers(folder, given, wanted)
        if "list-slow" in wanted:
            times = yield list_slow(reactor, folder, given.keys)
            outcomes.append(goals.Outcome("list-slow: ours / one page after the other", f"{times:.2f}",
                                          f">= {LIST_GOAL:g}", times >= LIST_GOAL))
        if "loop" in wanted:
            outcomes += loop_time(folder, make_certificates(folder))
        if "memory" in wanted:  # at the end: the kernel is busy for a while with what it frees
            outcomes += memory_rows(folder, make_certificates(folder))
    goals.show(outcomes)
    print(f"The run took {(time.monotonic() - begun_s) / 60:.1f} minutes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each row, about; three rounds at least")
    parser.add_argument("--gigabytes", type=float, default=1, help="of each turn of the streaming rows")
    parser.add_argument("--keys", type=int, default=1_000_000, help="of the bucket that is listed slowly")
    parser.add_argument("--congestion", default="", metavar="NAME",
                        help="TCP congestion control of everyone's connections, the machine's where it is not given")
    parser.add_argument("--rows", default="", help=f"some of {','.join(ROWS)}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    react(run, (parser.parse_args(),))


if __name__ == "__main__":
    main()
