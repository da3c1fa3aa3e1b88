# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole nodes, made by `tahoe create-node` and run by `tahoe run`, die at some of the points: a check that the smaller
nodes of the matrix die as real ones do.

Owner: matrix.py. A start takes seconds, so there are few of these runs. Each start is checked, then armed.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tahoe_s3.store.index import Index

from ..live.wire import PROTOCOLS, Peer
from ..native.processes import ELSEWHERE
from ..support.grid import Grid, StorageNode
from ..support.nodes import S3Backend
from .checker import Checker, is_marked_clean
from .living import close, connect, environment, make_certificates
from .node import KILLED_AT, dump
from .record import Record
from .service import CrashService
from .story import AT_START, AT_STOP, Told
from .work import Work

POINTS = (
    "upload.after-put", "slot.after-put", "index.marked", "multipart.before-complete", "slot.row", "list.page",
    "lease.after-put", "slot.after-delete", "upload.row", "close.engine",
)  # fmt: skip
PART = 2**20
DEATH_S = 60.0


class ArmedNode(StorageNode):
    """A storage node that is started by armed_tahoe.py."""

    armed: tuple[str, int] = ("none", 0)

    def launch(self, **_: Any) -> None:
        for stale in ("node.url", "running.process", KILLED_AT):
            (self.folder / stale).unlink(missing_ok=True)
        self._output = self.output_path.open("ab")
        name, times = self.armed
        command = [sys.executable, "-W", "ignore", "-m", "tests.crash.armed_tahoe", name, str(times), str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "run", "--allow-stdin-close", str(self.folder)], stdin=subprocess.DEVNULL, stdout=self._output,
            stderr=subprocess.STDOUT, cwd=ELSEWHERE, env=environment(),
        )  # fmt: skip

    def died_at(self, limit_s: float) -> str:
        """Waits for its death; the point, or "" where it lives on or ended otherwise."""
        assert self.process is not None
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return ""
        self._forget()
        note = self.folder / KILLED_AT
        return note.read_text() if status == -signal.SIGKILL and note.exists() else ""


class Whole:
    """One such node, its bucket, and what clients were told. Has what Work wants of a node."""

    def __init__(self, reactor: Any, folder: Path, seed: int) -> None:
        self.reactor, self.folder = reactor, folder
        self.chance = random.Random(seed)
        self.service = CrashService(reactor)
        self.service.start()
        self.peers: dict[str, Peer] = {}
        self.record = Record(duration_s=None)
        self.work = Work(self, self.record, self.chance)  # type: ignore[arg-type]
        self._certificate = make_certificates()["client"]

    @property
    def is_alive(self) -> bool:
        return self.node.process is not None and self.node.process.poll() is None

    async def make(self) -> None:
        grid = Grid(self.folder / "g", with_introducer=False)
        access_key_id, secret = next(iter(self.service.secrets.items()))
        options = {"part_size": str(PART), "region": "us-east-1"}
        backend = S3Backend(self.service.url, self.service.bucket_name, access_key_id, secret, options=options)
        await deferToThread(grid.__enter__)
        made = await deferToThread(grid.create_storage, "storage", backend)
        self.node = ArmedNode(made.folder)

    async def start(self, armed: tuple[str, int]) -> None:
        self.node.armed = armed
        await deferToThread(self.node.start)
        for protocol in PROTOCOLS:
            self.peers[protocol] = await connect(self.reactor, self.node, protocol, self._certificate)  # type: ignore[arg-type]

    async def disconnect(self) -> None:
        peers, self.peers = self.peers, {}
        for peer in peers.values():
            await close(peer)
        self.service.calm()
        await deferLater(self.reactor, 0.1)

    async def check(self) -> None:
        """After a start."""
        assert not self.service.bucket.uploads, self.service.bucket.uploads
        self.record.nobody_writes()
        checker = Checker(self.service, self.record)
        checker.check_bucket()
        checker.end()
        for protocol in PROTOCOLS:
            for si in self.work.files:
                await self.work.read_file(protocol, si)
            for si in self.work.slots:
                await self.work.read_slot(protocol, si)
        assert not self.work.failures, self.work.failures
        checker.adopt()

    async def die(self, point: str, protocol: str) -> bool:
        """Whether it died there."""
        room = point.partition(".")[0]
        if room in AT_START:
            self.node.armed = (point, 1)
            self.node.launch()
            died_at = await deferToThread(self.node.died_at, DEATH_S)
            return bool(died_at == point)
        await self.start((point, 1 if room in AT_STOP else self.chance.randint(1, 3)))
        await self.check()
        await self.work.some(1)
        if room in AT_STOP:
            assert self.node.process is not None
            self.node.process.terminate()
        else:
            await self._work_towards(point, protocol)
        died_at = await deferToThread(self.node.died_at, DEATH_S)
        self.work.failures.clear()
        await self.disconnect()
        return bool(died_at == point)

    async def _work_towards(self, point: str, protocol: str) -> None:
        work = self.work
        for _ in range(30):
            if not self.is_alive:
                return
            work.files.append(self.chance.randbytes(16))
            if point.startswith("multipart"):
                await work.upload(protocol, work.files[-1], size=PART + 5000)
            elif point.startswith("upload"):
                await work.upload(protocol, work.files[-1])
            elif point == "slot.after-delete":
                await work.write(protocol, work.slots[0])
                await work.change(protocol, work.slots[0], dict.fromkeys(range(3)))
            elif point.startswith("slot"):
                await work.write(protocol)
            else:
                await work.upload(protocol, work.files[0])
                await work.lease(protocol, work.files[0])

    async def end(self) -> None:
        """A clean stop: the index is marked, and right."""
        await self.start(("none", 0))
        await self.check()
        await self.work.some(1)
        assert not self.work.failures, self.work.failures
        await deferToThread(self.node.stop)
        await self.disconnect()
        storage = self.node.folder / "storage"
        assert is_marked_clean(storage), "a clean stop has not marked the index"
        checker = Checker(self.service, self.record)
        self.record.nobody_writes()
        checker.check_bucket()
        checker.check_index(_read_index(storage, self.folder / "copy"), kept=True)
        checker.end()


def _read_index(storage: Path, copy: Path) -> dict[str, Any]:
    """What the index of a node that does not run holds."""
    copy.mkdir()
    for path in storage.glob("index.sqlite*"):
        shutil.copy(path, copy)
    shutil.copy(copy / "index.sqlite", copy / "looked-at")
    with closing(sqlite3.connect(copy / "looked-at")) as db:
        (identity,) = db.execute("SELECT value FROM meta WHERE name='identity'").fetchone()
    index = Index(copy / "index.sqlite", identity=identity)
    # The scratch folder of read-test-writes stays, empty; uploads leave nothing.
    spool = SimpleNamespace(iterdir=lambda: [path for path in (storage / "incoming").rglob("*") if path.is_file()])
    found = dump(SimpleNamespace(index=index, problem=None, slots=SimpleNamespace(_unsure={}), incoming_dir=spool))
    index.abandon()
    return found


async def run_whole(reactor: Any, count: int, seed: int) -> Told:
    """So many deaths of one node."""
    told = Told()
    if not count:
        return told
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    whole = Whole(reactor, folder, seed)
    point = "its making"
    try:
        await whole.make()
        for number in range(count):
            point, protocol = POINTS[number % len(POINTS)], PROTOCOLS[number // 2 % 2]
            if await whole.die(point, protocol):
                told.deaths[f"{point} {protocol}"] += 1
            else:
                raise AssertionError("it did not die there")
        point = "its end"
        await whole.end()
        told.clean_restarts += 1
        shutil.rmtree(folder)
    except Exception as error:
        told.wrong.append(
            f"a whole node, seed {seed}, {point}: {type(error).__name__}: {error}\n(in {folder})\n"
            f"{whole.node.log_end(3000)}"
        )
        await deferToThread(whole.node.kill)
    await whole.disconnect()
    whole.service.clear_rules()
    await whole.service.stop()
    return told
