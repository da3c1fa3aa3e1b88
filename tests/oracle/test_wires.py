# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients at once on the same slots through real sockets: Tahoe's own, over Foolscap and HTTP, to a node on the real
engine, while the bucket fails, drops and delays answers, clients hang up, and the node restarts. Every answer is
explained by some order of the calls.

A seed repeats what the clients and the weather do, though not when the sockets bring it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from ..support.s3server import S3Server
from .clients import SLOTS, Client, History
from .profile import is_long, new_folder, new_seed, scaled
from .wires import FoolscapWire, HTTPWire, Node

pytestmark = pytest.mark.timeout(0 if is_long() else 300)

SIZES = [30, 30, 9000, 50_000]
CALLS = 40
OPERATIONS = ["PutObject", "GetObject", "HeadObject", "DeleteObject", "UploadPart", "CompleteMultipartUpload", None]
#: So many calls, of all clients, are begun between two changes of the weather.
CALLS_A_CHANGE = 2, 6
#: Seconds, at most, that a client waits after a call without an answer.
PAUSE = 0.1
#: How often the engine tries a request.
ATTEMPTS = 5


class Weather:
    """What befalls the bucket's answers, the clients and the node. It changes with the calls that were begun, not with
    time: else a slow machine has more of it for every call, and a quick one next to none."""

    def __init__(self, node: Node, history: History) -> None:
        self.node, self.history, self.chance = node, history, history.chance
        self.is_over = False
        self.restarts = 0

    async def run(self) -> None:
        changes_at = 0
        while not self.is_over:
            await deferLater(reactor, self.chance.uniform(0, 0.02))
            if self.history.begun < changes_at:
                continue
            changes_at = self.history.begun + self.chance.randint(*CALLS_A_CHANGE)
            if self.chance.random() < 0.06:
                self.restarts += 1
                await self._restart()
            else:
                self._worsen()

    def _worsen(self) -> None:
        """The next requests of some kind fail: fewer than are tried again, or all; or they take their time."""
        server, chance = self.node.s3server, self.chance
        operation, applied = chance.choice(OPERATIONS), chance.random() < 0.5
        times = chance.choice([1, 1, 1, 1, 1, ATTEMPTS])
        kind = chance.choice(["drop", "fail", "hold", "hold"])
        if kind == "drop":
            server.drop(operation, key="/", times=times, applied=applied)
        elif kind == "fail":
            server.fail(operation, key="/", times=times, applied=applied, status=500, code="InternalError")
        else:
            gate = server.hold(operation, key="/", times=3, applied=applied)
            reactor.callLater(chance.uniform(0.01, 0.15), gate.release)  # type: ignore[attr-defined]

    async def _restart(self) -> None:
        self.node.s3server.clear_rules()
        how = self.chance.choice(["kept", "emptied"])
        await self.node.restart(how, politely=self.chance.random() < 0.5)


async def work(client: Client, wire: Any, weather: Weather) -> None:
    chance = weather.chance
    for _ in range(CALLS):
        acting = client.act()
        if chance.random() < 0.05:
            reactor.callLater(chance.uniform(0, 0.05), acting.cancel)  # type: ignore[attr-defined]
        await acting
        # A node that is down, or waits for its bucket, refuses at once: whoever goes on asking has no calls left later.
        if not client.was_answered:
            await deferLater(reactor, chance.uniform(0, PAUSE))
        if chance.random() < 0.05 and isinstance(wire, HTTPWire):
            await wire.hang_up()


def new_client(name: str, history: History, wire: Any) -> Client:
    return Client(name, history, wire.begin, sizes=SIZES, may_fail=wire.may_fail, reads_one=wire.reads_one)


async def read_in_good_weather(name: str, node: Node, history: History) -> None:
    """A client that comes anew is answered at once: one that was there may have to notice first that the connection
    it has is to a process that has gone."""
    wire = FoolscapWire(node)
    client = new_client(name, history, wire)
    before = history.errors.copy()
    for slot in SLOTS:
        await client.read_all(slot)
        assert client.was_answered, f"a read failed in good weather: {history.errors - before}"
    await wire.close()


async def run(s3server: S3Server, folder: Path, seed: int) -> tuple[History, int]:
    """One run. AssertionError with its seed where the answers have no order."""
    history, node = History(seed), await Node.start(s3server, folder)
    wires: list[Any] = [FoolscapWire(node), FoolscapWire(node), FoolscapWire(node), HTTPWire(node), HTTPWire(node)]
    clients = [new_client(f"{type(wire).__name__[0]}{n}", history, wire) for n, wire in enumerate(wires)]
    weather = Weather(node, history)
    blowing = Deferred.fromCoroutine(weather.run())
    working = [Deferred.fromCoroutine(work(client, wire, weather)) for client, wire in zip(clients, wires)]
    await gatherResults(working, consumeErrors=True)
    weather.is_over = True
    await blowing
    s3server.clear_rules()
    for n in range(2):
        await read_in_good_weather(f"R{n}", node, history)
        await node.restart("emptied", politely=True)
    for wire in wires:
        await wire.close()
    await node.stop()
    try:
        history.check()
    except AssertionError as error:
        raise AssertionError(f"run {seed}: {error}") from error
    return history, weather.restarts


@ensureDeferred
async def test_every_answer_is_explained_over_the_wires() -> None:
    first = new_seed("clients over both protocols")
    answered = unanswered = restarts = 0
    errors: Counter[str] = Counter()
    for number in range(scaled(3)):
        s3server = S3Server(reactor, min_part_bytes=1)
        s3server.start()
        with new_folder() as folder:
            history, times = await run(s3server, Path(folder) / "storage", first + number)
        await s3server.stop()
        answered, unanswered, restarts = answered + history.answered, unanswered + history.unanswered, restarts + times
        errors += history.errors
    print(f"  {answered} answers, {unanswered} calls without one, {restarts} restarts; {dict(errors)}")
    assert answered > 3 * unanswered > 0, "too quiet, or too wild to tell anything"
