# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage node in a process of its own, without the rest of Tahoe's node: the store, the storage server, and both
real wire protocols on one port, as Tahoe makes them. It does what is asked over a control socket, and dies where it was
told.

An order (JSON): folder, control (the path of a unix socket), s3 {url, bucket, key, secret}, offset_s (how far its
clock is ahead), armed (null or [point, how many times it is reached before it kills]), expire_s (null, or the
override_lease_duration of expiry), start_keys (null, or how many keys are listed before it serves).

It says {"up": its process id} or {"failed": text} once, then answers each command, a line of JSON, with one:

    {"arm": [point, times]}     arms, or with null disarms
    {"timer": 0}                seconds until its next timer, and whether it has something under way
    {"travel": seconds}         its clock jumps ahead, and what is due then happens
    {"index": 0}                what the index holds, and what the store knows
    {"counts": 0}               how often it has reached each point
    {"stop": 0}                 a clean stop; its answer comes when all is closed
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tahoe_s3.store import points, reconcile

#: How exact the node's timers are, in real seconds.
TICK_S = 0.02
KILLED_AT = "killed-at"
NODE_ID = b"\x01" * 20
PART_BYTES = 1000
_preloaded: Any = None


def preload() -> Any:
    """Import all that a node needs. Nothing of it may start a thread."""
    global _preloaded
    if _preloaded is None:
        from allmydata import protocol_switch
        from foolscap.api import Tub
        from twisted.internet import endpoints, task
        from twisted.protocols.basic import LineOnlyReceiver

        from tahoe_s3.foolscap import S3FoolscapStorageServer
        from tahoe_s3.http import S3HTTPServer
        from tahoe_s3.server import S3StorageServer, open_storage

        from ..live import node_here

        protocol_switch.HTTPServer = S3HTTPServer
        _preloaded = SimpleNamespace(
            protocol_switch=protocol_switch, Tub=Tub, endpoints=endpoints, task=task, Lines=LineOnlyReceiver,
            foolscap=S3FoolscapStorageServer, storage=S3StorageServer, open_storage=open_storage, here=node_here,
        )  # fmt: skip
    return _preloaded


class Killer:
    """Counts what is reached, and ends this process at once where it is armed."""

    def __init__(self, folder: Path) -> None:
        self._note = folder / KILLED_AT
        self.counts: Counter[str] = Counter()
        self._name, self._times = "", 0

    def arm(self, armed: Any) -> None:
        self._name, self._times = armed or ("", 0)

    def reach(self, name: str) -> None:
        assert name in points.POINTS, name
        self.counts[name] += 1
        if name == self._name:
            self._times -= 1
            if self._times <= 0:
                self._note.write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)


class LiveNode:
    """What the module says, once."""

    def __init__(self, order: dict[str, Any]) -> None:
        from twisted.internet import reactor

        self.order, self.reactor, self.parts = order, reactor, preload()
        self.folder = Path(order["folder"])
        self.killer = Killer(self.folder)
        points.on_reach = self.killer.reach
        self.killer.arm(order["armed"])
        self.clock = self.parts.here.ClockedReactor(reactor)
        self.offset_s = order["offset_s"]
        self.clock.rightNow = time.time() + self.offset_s
        self.server: Any = None
        self.tub: Any = None

    def run(self) -> None:
        self.reactor.callWhenRunning(self._begin)
        self.reactor.run(installSignalHandlers=False)

    def _begin(self) -> None:
        ticking = self.parts.task.LoopingCall(self._tick)
        ticking.start(TICK_S).addErrback(self._broken)
        node = self

        class Control(self.parts.Lines):  # type: ignore[name-defined,misc]
            delimiter = b"\n"

            def connectionMade(self) -> None:
                node.control = self
                node._open().addErrback(node._failed)

            def lineReceived(self, line: bytes) -> None:
                node._obey(json.loads(line))

            def connectionLost(self, reason: Any = None) -> None:
                # Whoever started this node has gone.
                os._exit(71)

        where = self.parts.endpoints.UNIXClientEndpoint(self.reactor, self.order["control"])
        connecting = self.parts.endpoints.connectProtocol(where, Control())
        connecting.addErrback(self._broken)

    def _tick(self) -> None:
        # May go back by nothing: real time does not.
        self.clock.advance(max(0.0, time.time() + self.offset_s - self.clock.seconds()))

    def _broken(self, failure: Any) -> None:
        failure.printTraceback(sys.stderr)
        sys.stderr.flush()
        os._exit(72)

    def _failed(self, failure: Any) -> None:
        failure.printTraceback(sys.stderr)
        self._say({"failed": failure.getErrorMessage()})

    def _say(self, what: dict[str, Any]) -> None:
        self.control.sendLine(json.dumps(what).encode())

    # the node

    def _open(self) -> Any:
        from twisted.internet.defer import ensureDeferred

        return ensureDeferred(self._open_all())

    async def _open_all(self) -> None:
        parts, s3 = self.parts, self.order["s3"]
        service = SimpleNamespace(url=s3["url"], bucket_name=s3["bucket"], secrets={s3["key"]: s3["secret"]})
        config = parts.here.config_for(service, part_size_bytes=PART_BYTES)
        settings = parts.here.NodeSettings(has_permutation_seed=True)
        storage_dir = self.folder / "storage"
        reconcile.START_KEYS = self.order["start_keys"] or reconcile.START_KEYS
        store = await parts.open_storage(
            self.clock, config, nodeid=NODE_ID, storage_dir=storage_dir, settings=settings
        )
        expire_s = self.order["expire_s"]
        self.server = parts.storage(
            str(storage_dir), NODE_ID, clock=self.clock, backend=store, steady_s=self.clock.seconds,
            expiration_enabled=expire_s is not None, expiration_override_lease_duration=expire_s,
        )  # fmt: skip
        self._listen()
        self.server.startService()
        self._say({"up": os.getpid(), "problem": store.problem})

    def _listen(self) -> None:
        """As node.py and client.py of Tahoe do it: one Tub, whose port takes HTTPS too."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        listening.setblocking(False)
        port = listening.getsockname()[1]
        tub = self.tub = self.parts.protocol_switch.create_tub_with_https_support(
            certFile=str(self.folder / "private" / "node.pem")
        )
        for name, value in {"logLocalFailures": True, "logRemoteFailures": True, "accept-gifts": False,
                            "expose-remote-exception-types": False}.items():  # fmt: skip
            tub.setOption(name, value)
        tub.setLocation(f"tcp:127.0.0.1:{port}")
        tub.listenOn(
            self.parts.endpoints.AdoptedStreamServerEndpoint(self.reactor, listening.fileno(), socket.AF_INET)
        )
        furl_file = str(self.folder / "private" / "storage.furl")
        furl = tub.registerReference(self.parts.foolscap(self.server), furlFile=furl_file)
        tub.negotiationClass.add_storage_server(self.server, furl.rpartition("/")[2].encode("ascii"))
        tub.startService()

    # commands

    def _obey(self, command: dict[str, Any]) -> None:
        ((name, value),) = command.items()
        if name == "arm":
            self.killer.arm(value)
            self._say({})
        elif name == "timer":
            due = [call.getTime() - self.clock.seconds() for call in self.clock.getDelayedCalls()]
            store = self.server.store
            is_busy = bool(store._background or store.slots._locks or store.client._transfers.in_flight)
            self._say({"timer": max(0.0, min(due, default=1.0)), "busy": is_busy})
        elif name == "travel":
            self.offset_s += value
            self.clock.advance(value)
            self._say({})
        elif name == "index":
            self._say(dump(self.server.store))
        elif name == "counts":
            self._say(dict(self.killer.counts))
        elif name == "stop":
            self._stop().addCallbacks(lambda _: self._stopped(), self._failed)
        else:
            raise AssertionError(name)

    def _stop(self) -> Any:
        from twisted.internet.defer import DeferredList, maybeDeferred

        # A node's services are stopped together, as MultiService does it.
        return DeferredList([maybeDeferred(self.tub.stopService), maybeDeferred(self.server.stopService)],
                            fireOnOneErrback=True)  # fmt: skip

    def _stopped(self) -> None:
        line = json.dumps({"stopped": dict(self.killer.counts)}).encode() + b"\n"
        self.control.transport.getHandle().setblocking(True)
        self.control.transport.getHandle().sendall(line)
        sys.stderr.flush()
        os._exit(0)


def dump(store: Any) -> dict[str, Any]:
    """The index's rows and sums; bytes as hexadecimal."""
    index = store.index
    shares, overlays = [], []
    for si, shnum in index.query("SELECT si, shnum FROM shares ORDER BY si, shnum", {}):
        row = index.share(si, shnum)
        leases = None if row.leases is None else _leases(row.leases)
        shares.append([si.hex(), shnum, row.size, row.etag, row.kind, row.data_length, leases])
    for (si,) in index.query("SELECT si FROM overlays ORDER BY si", {}):
        overlay = index.overlay(si)
        overlays.append([si.hex(), overlay.etag, None if overlay.leases is None else _leases(overlay.leases)])
    return {
        "shares": shares, "overlays": overlays, "count": index.share_count, "used": index.used_bytes,
        "slots": index.slot_count, "kept": index.was_kept, "problem": store.problem,
        "unsure": sorted(si.hex() for si in store.slots._unsure), "spool": len(list(store.incoming_dir.iterdir())),
    }  # fmt: skip


def _leases(leases: Any) -> list[list[Any]]:
    return sorted([lease.renew_hash.hex(), lease.expiration_s] for lease in leases)


def run(order: dict[str, Any]) -> None:
    """Be that node until the end. Never returns but at a clean stop."""
    folder = Path(order["folder"])
    output = os.open(folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    from twisted.logger import globalLogBeginner, textFileLogObserver

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    LiveNode(order).run()
