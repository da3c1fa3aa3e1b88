# SPDX-License-Identifier: GPL-2.0-or-later
"""The test's side of a node that may die at any moment: starting it, talking to it, its clients, its end.

Owner: the test. Thread: the reactor's. Errors: Died where the node ended while something was asked of it; Stuck where
it did not answer within LIMIT_S.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foolscap.api import Tub, flushEventualQueue
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineOnlyReceiver

from ..live.wire import PROTOCOLS, Peer
from ..native.processes import ELSEWHERE, PACKAGES, ROOT
from ..support.services import plain_environment
from .node import KILLED_AT
from .service import CrashService

LIMIT_S = 30.0

def environment() -> dict[str, str]:
    """For processes that start ELSEWHERE: with the package as it is installed, not the sources beside these tests,
    which lack the extension."""
    return {**plain_environment(), "PYTHONPATH": f"{PACKAGES}:{ROOT}"}


class Died(Exception):
    """The node ended before it answered."""


class Stuck(Exception):
    """Something did not happen in time."""


def within(reactor: Any, deferred: Deferred[Any], what: str, limit_s: float = LIMIT_S) -> Deferred[Any]:
    """The same, but it fails with Stuck after a while."""

    def late(_: object, __: float) -> None:
        raise Stuck(f"{what} took more than {limit_s:.0f} s")

    return deferred.addTimeout(limit_s, reactor, onTimeoutCancel=late)


class Forker(ProcessProtocol):
    """The process of forking.py. One node at a time."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._lines = b""
        self._waiting: deque[Deferred[Any]] = deque()
        self._gone: Deferred[None] = Deferred()
        self._ending = False

    async def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.crash.forking"]
        self.reactor.spawnProcess(
            self, sys.executable, command, env=environment(), path=ELSEWHERE, childFDs={0: "w", 1: "r", 2: 2}
        )
        await within(self.reactor, self._next(), "a Python with everything imported", 120)

    def _next(self) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def fork(self, order: dict[str, Any]) -> Deferred[int]:
        """Fires with the node's wait status when it has ended."""
        assert not self._waiting, "there is a node already"
        ended = self._next()
        self.transport.write(json.dumps(order).encode() + b"\n")
        return ended.addCallback(lambda told: told["ended"])

    def outReceived(self, data: bytes) -> None:
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._waiting.popleft().callback(json.loads(line))

    def processEnded(self, reason: Any) -> None:
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.errback(Died(f"the forking process ended: {reason.getErrorMessage()}"))
        self._gone.callback(None)

    async def stop(self) -> None:
        self.transport.closeStdin()
        await within(self.reactor, self._gone, "the end of the forking process")


class _Control(LineOnlyReceiver):
    """A node's control socket."""

    delimiter = b"\n"
    MAX_LENGTH = 2**24

    def __init__(self) -> None:
        self.answers: deque[dict[str, Any]] = deque()
        self.waiting: deque[Deferred[dict[str, Any]]] = deque()
        self.is_lost = False

    def lineReceived(self, line: bytes) -> None:
        answer = json.loads(line)
        if self.waiting:
            self.waiting.popleft().callback(answer)
        else:
            self.answers.append(answer)

    def next(self) -> Deferred[dict[str, Any]]:
        waiter: Deferred[dict[str, Any]] = Deferred(lambda _: None)
        if self.answers:
            waiter.callback(self.answers.popleft())
        elif self.is_lost:
            waiter.errback(Died("the control socket is closed"))
        else:
            self.waiting.append(waiter)
        return waiter

    def connectionLost(self, reason: Any = None) -> None:
        self.is_lost = True
        waiting, self.waiting = self.waiting, deque()
        for waiter in waiting:
            if not waiter.called:
                waiter.errback(Died("the node died"))


class Node:
    """One node's folder, and the process that runs it now and then. `expire_s`: see node.py."""

    def __init__(
        self, reactor: Any, forker: Forker, service: CrashService, folder: Path, *, certificates: dict[str, bytes],
        expire_s: float | None,
    ) -> None:  # fmt: skip
        self.reactor, self.forker, self.service, self.folder = reactor, forker, service, folder
        self.expire_s = expire_s
        self.peers: dict[str, Peer] = {}
        self.ended: Deferred[int] | None = None
        self._control: _Control | None = None
        self._pid = 0
        self._certificates = certificates
        (folder / "private").mkdir(parents=True)
        self.private("node.pem").write_bytes(certificates["node"])

    def private(self, name: str) -> Path:
        return self.folder / "private" / name

    @property
    def is_alive(self) -> bool:
        return self._control is not None and not self._control.is_lost

    def log_end(self, limit: int = 6000) -> str:
        path = self.folder / "output.log"
        return path.read_text(errors="replace")[-limit:] if path.exists() else ""

    async def start(self, armed: tuple[str, int] | None = None, *, start_keys: int | None = None) -> bool:
        """Whether it came up; False where it died at the point that it was armed with. start_keys: how many keys are
        listed before it serves, where that is to be fewer than it always is."""
        (self.folder / KILLED_AT).unlink(missing_ok=True)
        arrived: Deferred[_Control] = Deferred()

        class Arriving(_Control):
            def connectionMade(self) -> None:
                arrived.callback(self)

        # The path of a unix socket must be short.
        path = f"{self.folder}/c"
        Path(path).unlink(missing_ok=True)
        listening = await UNIXServerEndpoint(self.reactor, path).listen(Factory.forProtocol(Arriving))
        access_key_id, secret = next(iter(self.service.secrets.items()))
        s3 = {"url": self.service.url, "bucket": self.service.bucket_name, "key": access_key_id, "secret": secret}
        self.ended = self.forker.fork(
            {"folder": str(self.folder), "control": path, "s3": s3, "offset_s": self.service.offset_s,
             "armed": armed, "expire_s": self.expire_s, "start_keys": start_keys}
        )  # fmt: skip
        self._control = await within(self.reactor, arrived, "a fork")
        await listening.stopListening()
        try:
            answer = await within(self.reactor, self._control.next(), "a start")
        except Died:
            await self.await_death()
            return False
        if "up" not in answer or answer["problem"]:
            raise AssertionError(f"the node does not start: {answer}\n{self.log_end()}")
        self._pid = answer["up"]
        return True

    async def connect(self) -> None:
        """A client of each protocol. Died where the node does not live to see it."""
        try:
            for protocol in PROTOCOLS:
                self.peers[protocol] = await within(
                    self.reactor, maybe(connect(self.reactor, self, protocol, self._certificates["client"])),
                    f"a connection over {protocol}",
                )  # fmt: skip
        except Stuck:
            raise
        except Exception as error:
            await self._or_death(error)

    async def _or_death(self, error: Exception) -> None:
        """An error whose reason may be that the node has died."""
        await deferLater(self.reactor, 0.2)
        if self.is_alive:
            raise error
        raise Died(str(error))

    async def ask(self, **command: Any) -> dict[str, Any]:
        if self._control is None or self._control.is_lost:
            raise Died("there is no node")
        self._control.sendLine(json.dumps(command).encode())
        answer: dict[str, Any] = await within(self.reactor, self._control.next(), f"{command}")
        if "failed" in answer:
            raise AssertionError(f"{command}: {answer['failed']}\n{self.log_end()}")
        return answer

    async def travel(self, seconds: float) -> None:
        """All clocks go ahead."""
        self.service.pass_time(seconds)
        await self.ask(travel=seconds)

    async def await_death(self) -> str:
        """After SIGKILL: the point that it died at, or "" where somebody else killed it."""
        assert self.ended is not None
        status = await within(self.reactor, self.ended, "a death")
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise AssertionError(f"the node ended with wait status {status}\n{self.log_end()}")
        await self._forget()
        note = self.folder / KILLED_AT
        return note.read_text() if note.exists() else ""

    async def stop(self) -> dict[str, int]:
        """A clean stop; how often each point was reached. Died where it died on its way."""
        try:
            answer = await self.ask(stop=0)
        except Died:
            await self.await_death()
            raise
        assert self.ended is not None
        status = await within(self.reactor, self.ended, "an end")
        assert status == 0, f"wait status {status}\n{self.log_end()}"
        await self._forget()
        counts: dict[str, int] = answer["stopped"]
        return counts

    async def kill(self) -> None:
        """From outside, at whatever moment this is."""
        if self._control is None or self._control.is_lost:
            return
        os.kill(self._pid, signal.SIGKILL)
        await self.await_death()

    def abandon(self) -> None:
        """Leave it, in whatever state: it ends when its control socket is closed."""
        if self._control is not None:
            self._control.transport.loseConnection()

    async def _forget(self) -> None:
        self.ended = self._control = None
        peers, self.peers = self.peers, {}
        for peer in peers.values():
            await close(peer)


async def connect(reactor: Any, node: Node, protocol: str, certificate: bytes) -> Peer:
    """A client. Its Tub's key is made once, since that takes longer than all else."""
    where: Any = SimpleNamespace(private=node.private)
    return await Peer.connect(reactor, where, protocol=protocol, certificate=certificate)


async def close(peer: Peer) -> None:
    if peer._tub is not None:
        await maybeDeferred(peer._tub.stopService)
        await flushEventualQueue()
    if peer._pool is not None:
        await peer._pool.closeCachedConnections()


def maybe(coroutine: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


def make_certificates() -> dict[str, bytes]:
    """Keys of the node's and the client's Tubs."""
    return {name: Tub().getCertData() for name in ("node", "client")}
