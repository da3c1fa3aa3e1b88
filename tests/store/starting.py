# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops of a node on a bucket in memory, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from tahoe_s3 import errors
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.reconcile import LAG_S
from tahoe_s3.store.store import Store

from .helpers import SI, error_of, immutable_object, now, pattern
from .memory_client import MemoryClient
from .servers import open_files, open_place, reborn

DATA = pattern(3000)


class Turns(Clock):
    """A clock that can also go through one turn of a reactor: what is due now, but not what that makes due."""

    def turn(self) -> None:
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            if call in self.calls:
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


class Node:
    """One node's folder and clock; every start sees the same bucket through a client of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Turns()
        self.client = MemoryClient()
        #: An object that a test took away.
        self.hidden: Any = None

    def begin(self, **options: Any) -> Any:
        """The Deferred of a start. What was ordered of self.client (failures, holds) befalls it."""
        if self.client.closed:
            self.client = reborn(self.client)
        return open_place(self.client, self.folder, self.clock, **options)

    def start(self, **options: Any) -> Store:
        store: Store = now(self.begin(**options))
        return store

    def refused(self, **options: Any) -> str:
        """The sentence of a start that is refused, which must leave nothing open."""
        error = error_of(self.begin(**options))
        assert isinstance(error, errors.ConfigError), repr(error)
        assert self.client.closed and open_files(self.folder) == [] and self.clock.getDelayedCalls() == []
        return str(error)

    def crash(self, store: Store) -> None:
        """The process ends where it stands."""
        store.index.abandon()
        store.late.abandon()
        self.client = reborn(self.client)
        self.clock = Turns()

    def put(self, data: bytes = DATA, *, si: bytes = SI, shnum: int = 0, **options: Any) -> None:
        self.client.store(share_key(si, shnum), immutable_object(data), **options)


def due_soon(node: Node) -> list[Any]:
    """What the clock will call, but for the listing that is made once more where the index began with nothing."""
    return [call for call in node.clock.getDelayedCalls() if call.getTime() < node.clock.seconds() + LAG_S / 2]


def stop(store: Store) -> None:
    assert now(store.close()) is None
