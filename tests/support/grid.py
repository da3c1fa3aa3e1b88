# SPDX-License-Identifier: GPL-2.0-or-later
"""A grid of real processes: an introducer, storage nodes (on disk or on cloud.s3), clients spoken to over
their web API.

    with Grid(folder) as grid:
        server = grid.add_storage("alice", S3Backend.of(service))
        client = grid.add_client("bob", force_foolscap=False)
        cap = client.put(b"...")

Blocking throughout: call from a thread other than the reactor's. Ends every process it started.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .nodes import (
    Node,
    S3Backend,
    create,
    free_endpoint,
    run_tahoe,
    wait_until,
)

REQUEST_LIMIT_S = 180
CONNECT_LIMIT_S = 90
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RequestFailed(Exception):
    """The client node answered a request with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:2000]}")
        self.status, self.text = status, text


class Introducer(Node):
    def is_ready(self) -> bool:
        """Foolscap creates the file first and writes to it then: who read it in between would join no grid."""
        return self.private("introducer.furl").exists() and self.furl != ""

    @property
    def furl(self) -> str:
        return self.private("introducer.furl").read_text().strip()


class WebNode(Node):
    """A node with a web server, whose address it writes once that serves."""

    def url(self, path: str = "") -> str:
        return (self.folder / "node.url").read_text().strip().rstrip("/") + path

    def welcome(self) -> dict[str, Any]:
        """What it says of its introducer and of the servers that it knows."""
        found: dict[str, Any] = json.loads(_get(self.url("/?t=json")))
        return found


class StorageNode(WebNode):
    def is_ready(self) -> bool:
        """Ready when its web server, the last thing to come up, has written its address."""
        return (self.folder / "node.url").exists() and self.private("storage.furl").exists()

    def status_page(self) -> str:
        return _get(self.url("/storage")).decode("utf-8")

    def bucket_report(self) -> dict[str, Any]:
        """What the status page's JSON says of the bucket."""
        found: dict[str, Any] = json.loads(_get(self.url("/storage?t=json")))["tahoe_s3"]
        return found

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(_get(self.url("/statistics?t=json")))
        return found


class ClientNode(WebNode):
    """A client; its caps are text."""

    grid: Grid

    def is_ready(self) -> bool:
        return (self.folder / "node.url").exists()

    def connected_servers(self) -> int:
        servers = self.welcome()["servers"]
        return sum(1 for server in servers if str(server["connection_status"]).lower().startswith("connected"))

    def wait_connected(self, servers: int = 1, limit_s: float = CONNECT_LIMIT_S) -> None:
        """Waits until exactly that many servers are connected."""
        what = f"{self.folder.name} to be connected to {servers} servers"
        wait_until(
            lambda: self.connected_servers() == servers,
            limit_s=limit_s,
            what=what,
            said=lambda: f"{self.grid.all_connections()}\n{self.grid.all_logs()}",
        )

    def put(self, body: bytes, *, kind: str = "CHK") -> str:
        """Stores a new file, `kind` being CHK, SDMF or MDMF; its cap."""
        return _request("PUT", self.url(f"/uri?format={kind}"), body).decode()

    def overwrite(self, cap: str, body: bytes) -> None:
        _request("PUT", self.url("/uri/" + quote(cap, safe="")), body)

    def get(self, cap: str, path: str = "") -> bytes:
        tail = "/" + quote(path) if path else ""
        return _get(self.url("/uri/" + quote(cap, safe="") + tail))

    def make_folder(self, children: Mapping[str, str]) -> str:
        """A new directory of immutable files, by name and cap; the directory's cap."""
        rows = {name: ["filenode", {"ro_uri": cap}] for name, cap in children.items()}
        body = json.dumps(rows).encode()
        return _request("POST", self.url("/uri?t=mkdir-with-children"), body).decode()

    def folder_names(self, cap: str) -> list[str]:
        listing = json.loads(_get(self.url("/uri/" + quote(cap, safe="") + "?t=json")))
        return sorted(listing[1]["children"])

    def check(self, cap: str, *, add_lease: bool = False, verify: bool = False) -> dict[str, Any]:
        """The check's results as JSON."""
        options = f"?t=check&output=json&add-lease={str(add_lease).lower()}&verify={str(verify).lower()}"
        found: dict[str, Any] = json.loads(_request("POST", self.url("/uri/" + quote(cap, safe="") + options), b""))
        return found


def _request(method: str, url: str, body: bytes | None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method)
    request.add_header("content-type", "application/octet-stream")
    try:
        with _direct.open(request, timeout=REQUEST_LIMIT_S) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        raise RequestFailed(error.code, error.read().decode("utf-8", "replace")) from None


def _get(url: str) -> bytes:
    return _request("GET", url, None)


class Grid:
    """The nodes of one grid, in one folder.

    Without an introducer, storage nodes can be spoken to, but no client finds them.
    """

    def __init__(self, folder: Path, *, with_introducer: bool = True) -> None:
        self.folder = folder
        self.with_introducer = with_introducer
        self.nodes: list[Node] = []
        self.introducer: Introducer | None = None

    def __enter__(self) -> Grid:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.with_introducer:
            self.add_introducer()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every node: all are told first, then waited for."""
        for node in self.nodes:
            if node.process is not None:
                node.process.terminate()
        for node in reversed(self.nodes):
            node.stop(limit_s=20)

    def all_connections(self) -> str:
        """What each node says of its introducer and its servers; or why it says nothing, as one that was stopped."""
        told = []
        for node in self.nodes:
            if isinstance(node, WebNode):
                try:
                    said: object = node.welcome()
                except (OSError, ValueError, RequestFailed) as error:
                    said = error
                told.append(f"===== {node.folder.name}: {said}")
        return "\n".join(told)

    def all_logs(self) -> str:
        return "\n".join(f"===== {node.folder.name}\n{node.log_end()}" for node in self.nodes)

    def add_introducer(self) -> Introducer:
        port, location = free_endpoint()
        node = Introducer(self.folder / "introducer")
        create("introducer", node.folder, "--listen=tcp", f"--port={port}", f"--location={location}")
        self.nodes.append(node)
        self.introducer = node
        node.start()
        return node

    def _join(self) -> list[str]:
        return [] if self.introducer is None else [f"--introducer={self.introducer.furl}"]

    def create_storage(self, name: str, backend: S3Backend | None = None, **options: str) -> StorageNode:
        """A storage node's folder, configured and not started; `options` go to [storage]."""
        port, location = free_endpoint()
        node = StorageNode(self.folder / name)
        listen = (f"--nickname={name}", "--listen=tcp", f"--port={port}", f"--location={location}")
        create("node", node.folder, *self._join(), *listen, "--webport=tcp:0:interface=127.0.0.1")
        node.set_options("storage", options)
        if backend is not None:
            node.use_s3(backend)
        self.nodes.append(node)
        return node

    def add_storage(self, name: str, backend: S3Backend | None = None, **options: str) -> StorageNode:
        """A running storage node: on the disk backend, or on a bucket."""
        node = self.create_storage(name, backend, **options)
        node.start()
        return node

    def add_client(
        self,
        name: str,
        *,
        force_foolscap: bool,
        shares: tuple[int, int, int] = (3, 1, 10),
        servers: int = 1,
    ) -> ClientNode:
        """A running client that is connected to `servers` servers; `shares` are needed, happy and total."""
        node = ClientNode(self.folder / name)
        node.grid = self
        needed, happy, total = shares
        encoding = (f"--shares-needed={needed}", f"--shares-happy={happy}", f"--shares-total={total}")
        create("client", node.folder, *self._join(), "--webport=tcp:0:interface=127.0.0.1", *encoding)
        node.set_options("client", {"force_foolscap": str(force_foolscap)})
        self.nodes.append(node)
        node.start()
        node.wait_connected(servers)
        return node


def dump_share(path: Path) -> str:
    """What `tahoe debug dump-share` says about a share file; NodeFailed where it refuses it."""
    return run_tahoe("debug", "dump-share", str(path))[1]


def settle(seconds: float) -> None:
    """Lets real time pass, where a test is about processes and no clock can be passed in."""
    time.sleep(seconds)
