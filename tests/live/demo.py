# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, shown with real processes: SeaweedFS, an introducer, a storage node on cloud.s3, two clients.

    python -m tests.live.demo [--on SERVICE]

Stores files of several sizes, an SDMF and an MDMF file that change twice, and a directory of 20 children;
reads all back byte for byte over both protocols, again after the node was restarted, and again after its
local storage folder was deleted. Prints what lies in the bucket, the S3 requests by operation (counted by a
proxy in front of the service) beside the budget, and the seconds. Exit status 0 only if every byte and every write's
budget was right. Another service than SeaweedFS is one of tests/support/others.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tahoe_s3.store.keys import OWNER_KEY
from tahoe_s3.store.watch import LOOK_EVERY_S

from ..support.grid import ClientNode, Grid, StorageNode, dump_share
from ..support.nodes import S3Backend
from ..support.others import INSTALLED, OTHERS, service_named
from ..support.proxy import CountingProxy
from ..support.services import Service
from . import budget

SIZES_BYTES = (0, 100, 55_000, 5_000_000, 60_000_000)
MUTABLE_BYTES = 40_000
CHILDREN = 20
CHILD_BYTES = 2_000
SHARES = (3, 1, 10)
BUCKET = "tahoe-demo"


class Wrong(Exception):
    """Something did not come out as stored."""


class Demo:
    """One run; `files` are caps and what must come out of them."""

    def __init__(self, service: Service, proxy: CountingProxy, grid: Grid) -> None:
        self.service, self.proxy, self.grid = service, proxy, grid
        self.files: dict[str, bytes] = {}
        self.children: dict[str, bytes] = {}
        self.folder_cap = ""
        self.stored: dict[str, list[str]] = {"CHK": [], "SDMF": [], "MDMF": []}
        """Keys of the share objects by the kind of file they belong to."""
        self.within_budget = True
        backend = S3Backend(proxy.url, BUCKET, service.access_key_id, service.secret)
        with self.phase("start the node on an empty bucket"):
            self.server: StorageNode = grid.add_storage("storage", backend)
        say("starting a client that speaks HTTP and one that speaks Foolscap")
        self.http: ClientNode = grid.add_client("client-http", force_foolscap=False, shares=SHARES)
        self.foolscap: ClientNode = grid.add_client("client-foolscap", force_foolscap=True, shares=SHARES)

    @contextmanager
    def phase(self, title: str, *, exact: bool = False) -> Iterator[Counter[str]]:
        """Times and counts what happens inside; the caller fills in the budget, or leaves it empty."""
        allowed: Counter[str] = Counter()
        self.proxy.forget()
        started = time.monotonic()
        yield allowed
        seconds = time.monotonic() - started
        counted = Counter(self.proxy.count())
        # One look at the owner's mark every two minutes of writing (store/watch.py), beside the budget.
        looks = sum(1 for seen in self.proxy.log if seen == ("GetObject", OWNER_KEY)) if exact else 0
        require(looks <= 1 + seconds / LOOK_EVERY_S, f"{looks} looks at the owner's mark in {seconds:.0f} s")
        counted -= Counter(GetObject=looks)
        if not exact and not allowed:
            cells = ", ".join(f"{name} {number}" for name, number in sorted(counted.items()))
            say(f"{title}\n  {seconds:6.1f} s  {cells or 'no request'}")
            return
        line, kept = budget.table(counted, allowed, exact=exact, seconds=seconds)
        self.within_budget = self.within_budget and kept
        say(f"{title}\n  {line}")

    def objects(self) -> dict[str, int]:
        """Keys and sizes, asked of the service itself, not through the proxy."""
        return self.service.objects(BUCKET)

    def note_new(self, kind: str, before: dict[str, int]) -> list[int]:
        """Remembers the keys that were not there before; their sizes."""
        new = {key: size for key, size in self.objects().items() if key not in before}
        self.stored[kind] += new
        return list(new.values())

    def store_files(self) -> None:
        for size in SIZES_BYTES:
            # Both protocols upload: the odd one out goes over Foolscap.
            client = self.foolscap if size == 5_000_000 else self.http
            over = "Foolscap" if client is self.foolscap else "HTTP"
            before, body = self.objects(), os.urandom(size)
            with self.phase(f"store a file of {size:,} bytes over {over}", exact=True) as allowed:
                self.files[client.put(body)] = body
                allowed.update(budget.of_upload(self.note_new("CHK", before)))
                if self.service.completes_with == "nothing":
                    allowed["HeadObject"] = allowed["CompleteMultipartUpload"]

    def store_mutable(self, kind: str) -> None:
        body, before = os.urandom(MUTABLE_BYTES), self.objects()
        with self.phase(f"create an {kind} file of {MUTABLE_BYTES:,} bytes", exact=True) as allowed:
            cap = self.http.put(body, kind=kind)
            allowed["PutObject"] = SHARES[2]
        self.note_new(kind, before)
        for client, over in ((self.http, "HTTP"), (self.foolscap, "Foolscap")):
            body = os.urandom(MUTABLE_BYTES + 1000)
            with self.phase(f"change it over {over}", exact=True) as allowed:
                client.overwrite(cap, body)
                allowed["PutObject"] = SHARES[2]
        self.files[cap] = body

    def store_folder(self) -> None:
        self.children = {f"child {number:02}": os.urandom(CHILD_BYTES) for number in range(CHILDREN)}
        with self.phase(f"store a directory of {CHILDREN} files", exact=True) as allowed:
            before = self.objects()
            caps = {name: self.http.put(body) for name, body in self.children.items()}
            self.note_new("CHK", before)
            before = self.objects()
            self.folder_cap = self.http.make_folder(caps)
            self.note_new("SDMF", before)
            allowed["PutObject"] = (CHILDREN + 1) * SHARES[2]

    def read_all(self, when: str, *, first: str = "HTTP") -> None:
        """Everything, over both protocols; the second may find the first one's shares in the node's cache."""
        clients = {"HTTP": self.http, "Foolscap": self.foolscap}
        for over in sorted(clients, key=lambda name: name != first):
            client = clients[over]
            with self.phase(f"read all back over {over}, {when}") as allowed:
                for cap, body in self.files.items():
                    require(client.get(cap) == body, f"{len(body)} bytes over {over}, {when}")
                require(client.folder_names(self.folder_cap) == sorted(self.children), "names in the directory")
                for name, body in self.children.items():
                    require(client.get(self.folder_cap, name) == body, f"{name} over {over}, {when}")
                allowed.update(self.read_budget())

    def read_budget(self) -> dict[str, int]:
        """A client reads as many shares of an immutable file as it needs, and looks at every share of a mutable one."""
        sizes, read = self.objects(), []
        for kind, keys in self.stored.items():
            slots: dict[str, list[int]] = {}
            for key in keys:
                slots.setdefault(key.rpartition("/")[0], []).append(sizes[key])
            for slot in slots.values():
                read += slot[: SHARES[0]] if kind == "CHK" else slot
        return budget.of_reads(read)

    def restart(self, *, without_local_state: bool) -> None:
        self.server.stop()
        for client in (self.http, self.foolscap):
            client.wait_connected(0)
        if without_local_state:
            self.server.lose_local_state()
        title = "start the node, its local storage folder deleted" if without_local_state else "restart the node"
        with self.phase(title):
            self.server.start()
        for client in (self.http, self.foolscap):
            client.wait_connected(1)

    def show_bucket(self) -> None:
        objects = self.objects()
        slots: dict[str, list[int]] = {}
        for key, size in objects.items():
            slots.setdefault(key.rpartition("/")[0], []).append(size)
        say(f"in the bucket: {len(objects)} objects, {sum(objects.values()):,} bytes")
        shown = sorted(slots.items(), key=lambda item: -max(item[1]))
        for place, sizes in [*shown[:6], *shown[-3:]]:
            say(f"  {place or '(top)'}/: {len(sizes)} of {min(sizes):,} to {max(sizes):,} bytes")
        say(f"  ... and {max(len(shown) - 9, 0)} storage indexes like these")

    def dump_shares(self, folder: Path) -> None:
        """One share of each kind, fetched as an object, is a share file to Tahoe's own tool."""
        for kind, keys in self.stored.items():
            path = folder / keys[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.service.read(BUCKET, keys[-1]))
            told = dump_share(path)
            cap = next((line.strip() for line in told.splitlines() if "verify-cap: URI:" in line), "")
            require(bool(cap), f"dump-share of {keys[-1]}")
            say(f"tahoe debug dump-share of {keys[-1]} ({kind}): {cap}")

    def run(self, folder: Path) -> None:
        self.store_files()
        self.store_mutable("SDMF")
        self.store_mutable("MDMF")
        self.store_folder()
        self.read_all("at once")
        self.show_bucket()
        self.restart(without_local_state=False)
        self.read_all("after a restart", first="Foolscap")
        self.restart(without_local_state=True)
        self.read_all("after losing the local storage folder")
        self.dump_shares(folder / "fetched")


def require(right: bool, what: str) -> None:
    if not right:
        raise Wrong(f"not as stored: {what}")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.live.demo", description="The main job, shown.")
    parser.add_argument("--on", choices=[*INSTALLED, *OTHERS], default="seaweedfs", metavar="SERVICE")
    kind = service_named(parser.parse_args().on)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-demo-") as text:
        folder = Path(text)
        say(f"starting {kind.name}")
        with kind(folder / "service") as service:
            service.make_bucket(BUCKET)
            where = urlsplit(service.url)
            with (
                CountingProxy(str(where.hostname), int(where.port or 80)) as proxy,
                Grid(folder / "grid") as grid,
            ):
                demo = Demo(service, proxy, grid)
                demo.run(folder)
    kept = "every request budget kept" if demo.within_budget else "A REQUEST BUDGET WAS EXCEEDED"
    say(f"demo: everything read back byte for byte, {kept}, {time.monotonic() - started:.0f} s")
    return 0 if demo.within_budget else 1


if __name__ == "__main__":
    sys.exit(main())
