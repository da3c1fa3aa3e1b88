# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of every kind that a client has stored on real nodes, and what must come back of them, whatever happens to the
node in between. Blocks; limits and errors are the client's (support/grid.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..support.grid import ClientNode


class StoredFiles:
    """An immutable file of each of `sizes`, one SDMF and one MDMF file, and a folder with three files."""

    def __init__(self, client: ClientNode, *sizes: int) -> None:
        self.client = client
        self.immutable: dict[str, bytes] = {}
        self.mutable: dict[str, bytes] = {}
        for size in sizes:
            self.store(size)
        for kind in ("SDMF", "MDMF"):
            body = os.urandom(2000)
            self.mutable[client.put(body, kind=kind)] = body
        self.children = {f"child {number}": os.urandom(500) for number in range(3)}
        self.folder = client.make_folder({name: client.put(body) for name, body in self.children.items()})

    def store(self, size: int) -> None:
        body = os.urandom(size)
        self.immutable[self.client.put(body)] = body

    def read_all(self) -> None:
        for cap, body in {**self.immutable, **self.mutable}.items():
            assert self.client.get(cap) == body
        for name, body in self.children.items():
            assert self.client.get(self.folder, name) == body

    def renew(self, caps: Iterable[str]) -> None:
        for cap in caps:
            assert self.client.check(cap, add_lease=True, verify=True)["results"]["healthy"]

    def change_all(self) -> None:
        """Every mutable file changes."""
        for cap in self.mutable:
            self.mutable[cap] = os.urandom(3000)
            self.client.overwrite(cap, self.mutable[cap])
