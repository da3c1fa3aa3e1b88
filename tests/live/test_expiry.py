# SPDX-License-Identifier: GPL-2.0-or-later
"""Expiry switched on in tahoe.cfg: Tahoe's own code builds the node, the engine talks HTTP to the test's S3 server,
and only the time is the test's. Forty days ago files were stored; one was renewed since."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allmydata import client
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tahoe_s3 import _hook
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.late import CHECKS_S

from ..support.nodefolder import keys, make_folder, stop
from ..support.s3server import S3Server
from .node_here import ClockedReactor, NodeHere, fresh_index

_hook.register()

DAY_S = 24 * 60 * 60
WAIT_S = 20.0
SECRET = "secret/of+the=test"


async def open_node(folder: Path, clock: ClockedReactor, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, NodeHere]:
    """The node as `tahoe run` builds it, with this clock."""
    monkeypatch.setattr(client, "reactor", clock)
    node = await client.create_client(str(folder))
    monkeypatch.undo()
    server = node.get_anonymous_storage_server()
    server._clock = clock
    server._expirer._steady_s = clock.seconds
    server._expirer._offset_s = 0.0
    server.startService()
    return node, NodeHere(server, clock)


async def finish_cycle(here: NodeHere) -> dict[str, Any]:
    """Let the clock run to the end of the next cycle over the leases."""
    expirer = here.server._expirer
    before = expirer.account.state.last_finished
    while expirer.account.state.last_finished == before:
        due_s = expirer.next_step_s
        here.clock.advance(max(0.0, due_s - here.clock.seconds()))
        await until(lambda due_s=due_s: expirer.next_step_s != due_s)
    history: dict[str, Any] = here.server.lease_checker.get_state()["history"]
    return dict(history[str(expirer.account.state.last_finished)]["space-recovered"])


async def until(happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end_s, "it does not happen"
        await deferLater(reactor, 0.01)


@pytest.mark.parametrize("multi_delete", [True, False])
@ensureDeferred
async def test_files_that_nobody_renewed_go(
    s3server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multi_delete: bool
) -> None:
    s3server.settings.multi_delete = multi_delete
    storage = keys(s3server, expire__enabled="true", expire__mode="age", expire__mutable="true")
    folder = make_folder(tmp_path / "node", storage, secret=SECRET)
    clock = ClockedReactor(reactor)
    clock.rightNow = time.time() - 40 * DAY_S
    old, large, slot, renewed = (fresh_index() for _ in range(4))
    node, here = await open_node(folder, clock, monkeypatch)
    await here.upload(old, {0: b"o" * 5000, 3: b"p" * 5000})
    await here.upload(large, {1: b"l" * 300_000})
    await here.upload(renewed, {2: b"r" * 5000})
    assert await here.write_slot(slot, [0], b"mutable")
    await here.server.add_lease(old, b"s" * 32, b"c" * 32)
    await stop(node)

    # What was stored that day; the machine is a new one, which knows only the bucket.
    for key, stored in list(s3server.bucket.objects.items()):
        s3server.bucket.objects[key] = replace(stored, modified_s=stored.modified_s - 40 * DAY_S)
    for path in (folder / "storage").glob("index.sqlite*"):
        path.unlink()
    clock.rightNow = time.time()
    s3server.wall_s = clock.seconds
    node, here = await open_node(folder, clock, monkeypatch)
    await here.server.add_lease(renewed, here.renew, here.cancel)
    s3server.forget()
    found = await finish_cycle(here)
    assert (found["configured-shares"], found["actual-shares"]) == (4, 0)
    assert len(s3server.shares()) == 5, "the first cycle only looks"
    # Without its index the node cannot know what was under way at its end: it looks after the one lease it wrote.
    assert set(s3server.count()) == {"GetObject", "HeadObject"}
    assert s3server.count()["HeadObject"] <= len(CHECKS_S)

    reader = (await here.server.get_buckets(old))[0]
    found = await finish_cycle(here)
    assert (found["actual-shares"], found["actual-buckets"], found["actual-shares-mutable"]) == (4, 3, 1)
    assert set(s3server.bucket.objects) == {"owner.json", share_key(renewed, 2), lease_key(renewed)}
    assert ("DeleteObject" in s3server.count()) is not multi_delete
    with pytest.raises(KeyError):
        await reader.read(0, 100)
    assert await here.read(renewed, 2, [(0, 5000)]) == [b"r" * 5000]
    assert await here.upload(old, {0: b"n" * 100}) == set(), "it can be stored again"
    assert await here.read(old, 0, [(0, 100)]) == [b"n" * 100]
    await finish_cycle(here)
    assert len(s3server.shares()) == 2
    await stop(node)
