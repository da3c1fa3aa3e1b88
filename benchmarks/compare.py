# SPDX-License-Identifier: GPL-2.0-or-later
"""Ours and the alternatives side by side, in one run, against a null S3 server: see README.rst.

    python benchmarks/compare.py [--seconds 15] [--gigabytes 1] [--rows sign,parse,...]

Needs a C compiler, the libraries' headers, and an interpreter that has tahoe-s3 and benchmarks/requirements.txt.
`make bench-compare` sees to all of it.
"""
from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from contest.rows import list_slow, parse_row, sign_row, transfer_rows
from contest.server import NullServer, build
from contest.timing import run_row
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import react

from tahoe_s3 import _native

ROWS = (
    "sign", "parse", "list-slow", "get-small", "put-small", "get-latency", "put-latency", "get-stream", "put-stream",
)


@inlineCallbacks
def run(reactor: Any, given: argparse.Namespace) -> Generator[Deferred[Any], Any, None]:
    wanted = set(given.rows.split(",")) if given.rows else set(ROWS)
    unknown = wanted - set(ROWS)
    if unknown:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()}, libcurl {_native.LIBCURL_VERSION}, {os.cpu_count()} cores, load {load}")
    print("A ratio is our rate divided by the line's: above 1 ours is faster.")
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-bench-") as text:
        folder = Path(text)
        build(folder)
        with NullServer(folder) as server:
            if "sign" in wanted:
                yield run_row(sign_row(), given.seconds)
            if "parse" in wanted:
                yield run_row(parse_row(folder, server), given.seconds)
            yield transfer_rows(reactor, folder, server, seconds=given.seconds,
                                stream_bytes=int(given.gigabytes * 1e9), wanted=wanted)
        if "list-slow" in wanted:
            yield list_slow(reactor, folder, given.keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="for each row, about; three rounds at least")
    parser.add_argument("--gigabytes", type=float, default=1, help="of each turn of the streaming rows")
    parser.add_argument("--keys", type=int, default=1_000_000, help="of the bucket that is listed slowly")
    parser.add_argument("--rows", default="", help=f"some of {','.join(ROWS)}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    react(run, (parser.parse_args(),))


if __name__ == "__main__":
    main()
