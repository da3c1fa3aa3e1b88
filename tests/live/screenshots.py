# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of the status page for docs/status.rst, made with real processes: SeaweedFS, a grid, Debian's chromium.

    python -m tests.live.screenshots docs/images

Takes the page of a node under load, and of one whose bucket was deleted under it. Wants chromium and Pillow, which
`make screenshots` installs. Each picture is cropped, and has a palette, so that it stays below MAX_BYTES.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..support.grid import ClientNode, Grid, RequestFailed, StorageNode
from ..support.nodes import S3Backend
from ..support.services import SeaweedFS
from .demo import say

BUCKET = "my-shares"
SHARES = (3, 1, 10)
MAX_BYTES = 100_000
WIDTH, HEIGHT = 1000, 2400
MARGIN = 12
LIMIT_S = 120
PRICES = {
    "price.put_requests": "0.0054", "price.get_requests": "0.00043", "price.storage": "0.0245",
    "price.transfer_out": "0.09", "price.currency": "USD",
}  # fmt: skip


def take(url: str, path: Path, *, height: int = HEIGHT) -> None:
    """A picture of a page as wide as a browser's window, down to the end of what is on it, or `height`."""
    from PIL import Image, ImageChops

    with tempfile.TemporaryDirectory(prefix="tahoe-s3-browser-") as folder:
        raw = Path(folder) / "page.png"
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
             f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={raw}", url],
            check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        page = Image.open(raw).convert("RGB")
        white = Image.new("RGB", page.size, (255, 255, 255))
        _, _, _, bottom = ImageChops.difference(page, white).getbbox() or (0, 0, WIDTH, HEIGHT)
        cropped = page.crop((0, 0, WIDTH, min(height, bottom + MARGIN)))
        # Few colours, and rare ones among them.
        small = cropped.quantize(48, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MAX_BYTES}")
    say(f"{path}: {small.size[0]} x {small.size[1]}, {size:,} bytes")


def wait_for(node: StorageNode, what: str, happened: Callable[[dict[str, Any]], bool]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not happened(node.bucket_report()):
        if time.monotonic() > end_s:
            told = json.dumps(node.bucket_report(), indent=1)
            raise SystemExit(f"waited {LIMIT_S} s for {what}: {told}\n{node.log_end()}")
        time.sleep(0.05)


class Load:
    """A client that stores and reads, over and over, on threads of its own, until it is ended."""

    def __init__(self, client: ClientNode) -> None:
        self._client = client
        self._ended = threading.Event()
        self.failures = 0
        self._threads = [
            threading.Thread(target=self._work, args=(size,)) for size in (60_000_000, 2_000_000, 40_000)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, size: int) -> None:
        while not self._ended.is_set():
            body = os.urandom(size)
            try:
                assert self._client.get(self._client.put(body)) == body
            except RequestFailed:
                self.failures += 1

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def under_load(node: StorageNode, client: ClientNode, path: Path) -> None:
    say("storing and reading")
    mutable = client.put(b"a mutable file", kind="SDMF")
    client.overwrite(mutable, b"changed")
    load = Load(client)
    try:
        wait_for(node, "load", lambda report: report["requests"]["today"]["put"] > 60)
        wait_for(node, "uploads under way", lambda report: report["uploads"]["arrived_bytes"] > 0)
        take(node.url() + "/storage", path)
    finally:
        load.end()
    if load.failures:
        raise SystemExit(f"{load.failures} requests of the client failed\n{node.log_end()}")


def without_bucket(service: SeaweedFS, node: StorageNode, client: ClientNode, path: Path) -> None:
    say("deleting the bucket under the node")
    cap = client.put(os.urandom(3_000_000))
    s3 = service.client()
    for key in service.objects(BUCKET):
        s3.delete_object(Bucket=BUCKET, Key=key)
    s3.delete_bucket(Bucket=BUCKET)
    for attempt in (lambda: client.put(os.urandom(100_000)), lambda: client.get(cap)):
        try:
            attempt()
        except RequestFailed:
            continue
        raise SystemExit("the client was served without a bucket")
    wait_for(node, "a sentence on the page", lambda report: report["last_request_failed"] or not report["usable"])
    take(node.url() + "/storage", path, height=1500)


def main() -> int:
    images = Path(sys.argv[1])
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-screenshots-") as text:
        folder = Path(text)
        with SeaweedFS(folder / "seaweedfs") as service, Grid(folder / "grid") as grid:
            service.make_bucket(BUCKET)
            backend = S3Backend.of(service, BUCKET, part_size="5MiB", prefix="grids/storage1", **PRICES)
            node = grid.add_storage("storage", backend)
            client = grid.add_client("client", force_foolscap=False, shares=SHARES)
            under_load(node, client, images / "status-under-load.png")
            without_bucket(service, node, client, images / "status-bucket-gone.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
