# SPDX-License-Identifier: GPL-2.0-or-later
"""Sees to it that a run on stock Tahoe is one: every node made has Tahoe's own storage server, and no
other.
"""

from __future__ import annotations

from typing import Any

from allmydata import client
from allmydata.storage.server import StorageServer
from twisted.internet.defer import Deferred


def require_stock() -> None:
    """From here on, making a node fails the test unless its storage server is exactly Tahoe's class."""
    original = client.create_client

    def create_client(*args: Any, **kwargs: Any) -> Deferred[Any]:
        made: Deferred[Any] = original(*args, **kwargs)
        return made.addCallback(_checked)

    client.create_client = create_client


def _checked(node: Any) -> Any:
    # A node may have no storage at all.
    server = node.namedServices.get(StorageServer.name)
    if server is not None and type(server) is not StorageServer:
        raise AssertionError(f"{server!r} is not the stock storage server")
    return node
