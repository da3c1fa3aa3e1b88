# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows that are no transfers: signing, parsing, listing a bucket."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET
from contest.server import NullServer
from contest.timing import Entrant, Row, Spent
from tahoe_s3 import _native
from tahoe_s3.client import ClientConfig, open_client
from tahoe_s3.store.keys import KeySplits

SLOW_MS = 50


def sign_row() -> Row:
    """A GET of a range, from Python's values to the Authorization header."""
    host, path = "bucket.s3.eu-central-1.amazonaws.com", "/shares/aa/aaaaaaaaaaaaaaaaaaaaaaaaaa/3"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    headers = [("range", "bytes=262144-524287")]

    def ours(count: int) -> None:
        for _ in range(count):
            _native.sign(method="GET", host=host, path=path, query=(), headers=headers, payload_sha256=empty,
                         time_s=int(time.time()), region=REGION, access_key_id=ACCESS_KEY_ID, secret=SECRET)

    entrants = [Entrant("ours", ours, ours=True, heads=True)]
    try:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError as error:
        print(f"LEFT OUT: botocore ({error}); install benchmarks/requirements.txt")
        return Row("sign", "Signing", entrants, "signatures/s")
    auth = S3SigV4Auth(Credentials(ACCESS_KEY_ID, SECRET), "s3", REGION)

    def botocore(count: int) -> None:
        for _ in range(count):
            auth.add_auth(AWSRequest("GET", f"https://{host}{path}", headers=dict(headers)))

    entrants.append(Entrant("botocore, add_auth", botocore))
    return Row("sign", "Signing", entrants, "signatures/s")


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

    entrants = [Entrant("ours", ours, ours=True, heads=True), Entrant("libxml2 SAX2 in C, bare", sax)]
    try:
        from botocore.parsers import create_parser
        from botocore.session import Session
    except ImportError as error:
        print(f"LEFT OUT: botocore ({error}); install benchmarks/requirements.txt")
        return Row("parse", "Parsing a listing", entrants, "keys/s", scale=1000)
    shape = Session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    parser = create_parser("rest-xml")

    def botocore(count: int) -> None:
        for _ in range(count):
            parser.parse({"status_code": 200, "headers": {}, "body": page}, shape)

    entrants.append(Entrant("botocore's parser", botocore))
    return Row("parse", "Parsing a listing", entrants, "keys/s", scale=1000)


@inlineCallbacks
def list_slow(reactor: Any, folder: Path, keys: int) -> Generator[Deferred[Any], Any, float]:
    """A whole bucket where each request takes SLOW_MS: one run, and what page after page must take at least. Gives
    how many times as long that is."""
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
    return least_s / spent_s
