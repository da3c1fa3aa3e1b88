# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows: what is measured."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable

from twisted.internet.defer import Deferred, inlineCallbacks

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET, Contender, Load
from contest.others import installed
from contest.ours import Deferreds, Drained
from contest.server import BareCurl, NullServer
from contest.timing import Entrant, Row, Spent, run_row
from tahoe_s3 import _native
from tahoe_s3.client import ClientConfig, open_client
from tahoe_s3.store.keys import KeySplits

SMALL_BYTES = 4096
SMALL_PARALLEL = 64
WINDOW_BYTES = 8 * 1024 * 1024
WINDOW_PARALLEL = 2
SLOW_MS = 50


def _entrants(contenders: list[Contender], load: Load) -> list[Entrant]:
    def turn(contender: Contender) -> Callable[[int], Any]:
        return lambda count: contender.run(load, count)

    return [Entrant(one.name, turn(one), isinstance(one, (Drained, Deferreds))) for one in contenders]


def sign_row() -> Row:
    """A GET of a range, from Python's values to the Authorization header."""
    host, path = "bucket.s3.eu-central-1.amazonaws.com", "/shares/aa/aaaaaaaaaaaaaaaaaaaaaaaaaa/3"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    headers = [("range", "bytes=262144-524287")]

    def ours(count: int) -> None:
        for _ in range(count):
            _native.sign(method="GET", host=host, path=path, query=(), headers=headers, payload_sha256=empty,
                         time_s=int(time.time()), region=REGION, access_key_id=ACCESS_KEY_ID, secret=SECRET)

    entrants = [Entrant("ours", ours, ours=True)]
    try:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError as error:
        print(f"LEFT OUT: botocore ({error}); install benchmarks/requirements.txt")
        return Row("Signing", entrants, "signatures/s")
    auth = S3SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET), "s3", REGION)

    def botocore(count: int) -> None:
        for _ in range(count):
            auth.add_auth(AWSRequest("GET", f"https://{host}{path}", headers=dict(headers)))

    entrants.append(Entrant("botocore, add_auth", botocore))
    return Row("Signing", entrants, "signatures/s")


def parse_row(folder: Path, server: NullServer) -> Row:
    """Pages of 1,000 keys, from bytes to Python objects."""
    page = server.fetch(f"/{BUCKET}?list-type=2")
    path = folder / "page.xml"
    path.write_bytes(page)

    def ours(count: int) -> None:
        for _ in range(count):
            _native.parse_list(page)

    def sax(count: int) -> Spent:
        done = subprocess.run([str(folder / "bare_sax"), str(path), str(count)], capture_output=True, text=True,
                              check=True)
        wall_s, cpu_s = done.stdout.split()
        return Spent(float(wall_s), float(cpu_s))

    entrants = [Entrant("ours", ours, ours=True), Entrant("libxml2 SAX2 in C, bare", sax)]
    try:
        from botocore.parsers import create_parser
        from botocore.session import Session
    except ImportError as error:
        print(f"LEFT OUT: botocore ({error}); install benchmarks/requirements.txt")
        return Row("Parsing a listing", entrants, "keys/s", scale=1000)
    shape = Session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    parser = create_parser("rest-xml")

    def botocore(count: int) -> None:
        for _ in range(count):
            parser.parse({"status_code": 200, "headers": {}, "body": page}, shape)

    entrants.append(Entrant("botocore's parser", botocore))
    return Row("Parsing a listing", entrants, "keys/s", scale=1000)


@inlineCallbacks
def list_slow(reactor: Any, folder: Path, keys: int) -> Generator[Deferred[Any], Any, None]:
    """A whole bucket where each request takes SLOW_MS: one run, and what page after page must take at least."""
    with NullServer(folder, keys=keys, latency_ms=SLOW_MS) as server:
        config = ClientConfig(endpoint=server.url, region=REGION, bucket=BUCKET, access_key_id=ACCESS_KEY_ID,
                              secret=SECRET.encode())
        client = open_client(reactor, config)
        seen = 0

        def each(page: Any) -> None:
            nonlocal seen
            seen += len(page.entries)

        begun_s = time.perf_counter()
        yield client.list_all("", each, splits=KeySplits())
        spent_s = time.perf_counter() - begun_s
        yield client.close()
        requests = server.stats()["list"]
    least_s = (keys + 999) // 1000 * SLOW_MS / 1000
    print(f"\nListing {keys:,} keys at {SLOW_MS} ms a request: {spent_s:.2f} s, {requests} requests, {seen:,} keys; "
          f"page after page needs at least {least_s:.2f} s: {least_s / spent_s:.2f} times as long", flush=True)


@inlineCallbacks
def transfer_rows(
    reactor: Any, folder: Path, server: NullServer, *, seconds: float, stream_bytes: int, wanted: set[str],
) -> Generator[Deferred[Any], Any, None]:
    """Everything that goes over the network."""
    url = server.url
    bare, hop = BareCurl(folder, url), BareCurl(folder, url, hop=True)
    hashed = BareCurl(folder, url, hashed=True)
    contenders: list[Contender] = [Drained(url), Deferreds(reactor, url)]
    others = installed(url)
    small = f"small-{SMALL_BYTES}"
    windows = stream_bytes // WINDOW_BYTES
    large = f"large-{(windows + WINDOW_PARALLEL) * WINDOW_BYTES}"
    for method in ("GET", "PUT"):
        load = Load(method, small, SMALL_BYTES, SMALL_PARALLEL)
        name = method.lower()
        if f"{name}-small" in wanted:
            yield run_row(Row(f"4 KiB {method}, {SMALL_PARALLEL} in flight",
                              _entrants([*contenders, bare, *others], load), "requests/s", least=2 * SMALL_PARALLEL),
                          seconds)
        if f"{name}-latency" in wanted:
            load = load._replace(parallel=1)
            yield run_row(Row(f"4 KiB {method}, one at a time", _entrants([*contenders, bare, hop, *others], load),
                              "us each", least=20, latency=True), seconds)
        if f"{name}-stream" in wanted:
            load = Load(method, large, WINDOW_BYTES, WINDOW_PARALLEL, ranged=method == "GET")
            yardsticks = [bare, hashed] if method == "PUT" else [bare]
            title = f"{stream_bytes / 1e9:.2f} GB, {method} in 8 MiB windows, {WINDOW_PARALLEL} in flight"
            yield run_row(Row(title, _entrants([*contenders, *yardsticks, *others], load), "MB/s",
                              scale=WINDOW_BYTES / 1e6, fixed=windows, least=4), seconds)
    for contender in [*contenders, *others]:
        yield contender.close()
