# SPDX-License-Identifier: GPL-2.0-or-later
"""Times a put and a get: through the engine, through botocore, and through a node, on one SeaweedFS.

    python benchmarks/put_get.py [--rounds 20]

Engine and botocore take turns, one request at a time, so that both meet the same machine; a node's figures are of
whole files through a client's web API. Prints median and spread (first and third quartile) in milliseconds, and the
ratio of the medians. Figures of one run can be compared with each other only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Callable

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import react

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tahoe_s3.client import ClientConfig, S3Client, open_client
from tests.support.grid import Grid
from tests.support.nodes import S3Backend
from tests.support.services import SeaweedFS

OBJECT_BYTES = (4096, 2**20, 8 * 2**20)
FILE_BYTES = (100_000, 10_000_000)


def show(title: str, times_s: Sequence[float], *, size: int, other_s: Sequence[float] | None = None) -> None:
    """One line: median, quartiles, throughput, and how much longer `other_s` took."""
    quarter, median, three_quarters = (1000 * value for value in statistics.quantiles(times_s, n=4))
    line = f"{title:<34} {median:9.2f} ms ({quarter:.2f} to {three_quarters:.2f})  {size / median / 1000:8.1f} MB/s"
    if other_s is not None:
        line += f"  botocore takes {1000 * statistics.median(other_s) / median:.2f} times as long"
    print(line, flush=True)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@inlineCallbacks
def engine_and_botocore(
    client: S3Client, service: SeaweedFS, bucket: str, rounds: int
) -> Generator[Deferred[Any], Any, None]:
    boto = service.client()
    for size in OBJECT_BYTES:
        body = os.urandom(size)
        puts: list[float] = []
        gets: list[float] = []
        boto_puts: list[float] = []
        boto_gets: list[float] = []
        for number in range(rounds + 2):
            key = f"ours/{size}/{number}"
            started = time.perf_counter()
            yield client.put(key, body)
            puts.append(time.perf_counter() - started)
            started = time.perf_counter()
            got = yield client.get(key)
            gets.append(time.perf_counter() - started)
            if got.data != body:
                raise SystemExit(f"{key} came back changed")
            key = f"botocore/{size}/{number}"
            boto_puts.append(timed(lambda: boto.put_object(Bucket=bucket, Key=key, Body=body)))  # noqa: B023
            boto_gets.append(timed(lambda: boto.get_object(Bucket=bucket, Key=key)["Body"].read()))  # noqa: B023
        # The first two rounds open connections and make the service's files.
        show(f"engine, put {size:,} bytes", puts[2:], size=size, other_s=boto_puts[2:])
        show(f"engine, get {size:,} bytes", gets[2:], size=size, other_s=boto_gets[2:])


def node(service: SeaweedFS, folder: Path, rounds: int) -> None:
    """Whole files through a client and a storage node, one share of one, so that the figures are the bucket's."""
    with Grid(folder) as grid:
        grid.add_storage("storage", S3Backend.of(service))
        client = grid.add_client("client", force_foolscap=False, shares=(1, 1, 1))
        for size in FILE_BYTES:
            bodies = [os.urandom(size) for _ in range(rounds + 1)]
            caps: list[str] = []
            puts = [timed(lambda: caps.append(client.put(body))) for body in bodies]  # noqa: B023
            gets = [timed(lambda: client.get(cap)) for cap in caps]  # noqa: B023
            show(f"node, put a file of {size:,} bytes", puts[1:], size=size)
            show(f"node, get a file of {size:,} bytes", gets[1:], size=size)


@inlineCallbacks
def run(reactor: Any, rounds: int) -> Generator[Deferred[Any], Any, None]:
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-bench-") as text:
        folder = Path(text)
        with SeaweedFS(folder / "seaweedfs") as service:
            bucket = service.make_bucket()
            config = ClientConfig(
                endpoint=service.url,
                region=service.region,
                bucket=bucket,
                access_key_id=service.access_key_id,
                secret=service.secret.encode(),
            )
            client = open_client(reactor, config)
            yield engine_and_botocore(client, service, bucket, rounds)
            yield client.close()
            node(service, folder / "grid", max(rounds // 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    react(run, (given.rounds,))


if __name__ == "__main__":
    main()
