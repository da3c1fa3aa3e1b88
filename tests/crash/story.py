# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of one node's folder and bucket by one seed: it dies at one point after the other, and is checked each time.

A run is one death and all that is checked after it. Owner: matrix.py. Errors: what is wrong is an AssertionError with
the seed, the point and the end of the node's log.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tahoe_s3.store.keys import lease_key, share_key, slot_prefix
from tahoe_s3.store.late import CHECKS_S, LATE_S
from tahoe_s3.store.store import VANISH_CHECKS_S

from ..live.wire import PROTOCOLS
from .checker import Checker, is_marked_clean
from .living import Died, Forker, Node
from .record import Record
from .service import ALL_ATTEMPTS, CrashService
from .work import Work

DAY_S = 24 * 60 * 60.0
#: How often clients do what should bring the node to the point, and how often the whole run is tried.
TRIES = 25
TIMES_A_RUN = 5
#: Points that come once after a start.
RARE = ("lease.before-get", "lease.after-get")
PUTTING_RIGHT = ("late.before-put", "late.after-put", "late.kept")
#: Rooms of points that are reached by starting and by stopping.
AT_START = ("open", "claim", "list")
AT_STOP = ("stop", "close", "cache", "index")


@dataclass(frozen=True)
class Run:
    """What one death is to be like. `protocol`: of the client whose call comes to the point. `trouble`: "" (a service
    that does all it is asked), "errors" (it fails at times), "late" (its PUTs time out at times and are applied later).
    """

    point: str
    protocol: str
    trouble: str = ""

    @property
    def room(self) -> str:
        return self.point.partition(".")[0]


@dataclass
class Told:
    """What came of some runs. `deaths`: by point and protocol."""

    deaths: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    clean_restarts: int = 0
    calls_failed: int = 0
    put_right: int = 0
    put_right_at_start: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Told) -> None:
        self.deaths += other.deaths
        self.missed += other.missed
        self.clean_restarts += other.clean_restarts
        self.calls_failed += other.calls_failed
        self.put_right += other.put_right
        self.put_right_at_start += other.put_right_at_start
        self.wrong += other.wrong


class Story:
    """One folder, one bucket, and the runs that it is given, in their order."""

    def __init__(
        self, reactor: Any, forker: Forker, runs: Sequence[Run], seed: int, *, certificates: dict[str, bytes]
    ) -> None:
        self.reactor, self.runs, self.seed = reactor, runs, seed
        self.chance = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="crash-"))
        self.service = CrashService(reactor)
        self._page_size = self.service.settings.page_size = self.chance.choice([3, 1000])
        self.service.start()
        expires = any(run.room == "expiry" for run in runs)
        self.record = Record(duration_s=DAY_S if expires else None)
        self.node = Node(
            reactor, forker, self.service, self.folder / "n", certificates=certificates,
            expire_s=DAY_S if expires else None,
        )  # fmt: skip
        self.work = Work(self.node, self.record, self.chance)
        self.told = Told()
        self._run: Run | None = None

    async def live(self) -> Told:
        """All runs, then a clean stop and a start that keeps the index."""
        try:
            for run in self.runs:
                self._run = run
                for _ in range(TIMES_A_RUN):
                    if await self._live_once(run):
                        break
                else:
                    self.told.missed.append(str(run))
            self._run = None
            await self._end_well()
            shutil.rmtree(self.folder)
        except Exception as error:
            self.told.wrong.append(
                f"seed {self.seed}, {self._run}: {type(error).__name__}: {error}\n(in {self.folder})\n"
                f"{self.node.log_end(3000)}"
            )
            self.node.abandon()
        finally:
            self.service.clear_rules()
            await self.service.stop()
        return self.told

    # one run

    async def _live_once(self, run: Run) -> bool:
        """Whether it died where it was to."""
        await self._stand_up()
        is_rare = run.point in RARE or (run.room in ("late", "expiry") and run.point != "expiry.row-dropped")
        times = 1 if is_rare else self.chance.choice([1, 1, 1, 2, 3])
        armed = (run.point, times)
        try:
            if run.room in AT_START:
                died_at = await self._die_starting(armed)
            elif run.point in PUTTING_RIGHT and self.chance.random() < 0.5:
                died_at = await self._die_putting_right(armed[0])
            elif run.room in AT_STOP:
                died_at = await self._die_stopping(run, armed)
            else:
                died_at = await self._die_working(run, armed)
        finally:
            self.service.calm()
            self.service.settings.page_size = self._page_size
        if died_at == run.point:
            self.told.deaths[f"{run.point} {run.protocol}"] += 1
        return died_at == run.point

    async def _stand_up(self) -> None:
        """A node that runs, has clients, and was checked after its start."""
        if not self.node.is_alive:
            if self.chance.random() < 0.5:
                self.work.apply_late()
            await self._start_after_death()
            await self._check()
        if not self.node.peers:
            await self.node.connect()

    async def _start_after_death(self) -> None:
        """Before it answers anybody, a node puts right what late PUTs have undone."""
        undone, self.service.undone = self.service.undone, set()
        objects = self.service.bucket.objects
        before = {key: objects.get(key) for key in undone}
        await self.node.start()
        await self._until_idle()
        self.told.put_right_at_start += sum(1 for key in undone if objects.get(key) is not before[key])

    async def _check(self, *, kept: bool | None = None) -> None:
        """The node was started just now, and nobody has asked it anything."""
        await self._until_idle()
        self.record.nobody_writes()
        assert not self.service.bucket.uploads, f"left behind: {self.service.bucket.uploads}"
        checker = Checker(self.service, self.record)
        dump = await self.node.ask(index=0)
        checker.check_bucket()
        checker.check_index(dump, kept=kept)
        checker.end()
        await self._check_as_client()
        if not self.service.late_count:
            checker.adopt()

    async def _check_as_client(self) -> None:
        """What clients see is what the bucket has: shares, and their bytes."""
        await self.node.connect()
        protocol = self.chance.choice(PROTOCOLS)
        peer, objects = self.node.peers[protocol], self.service.bucket.objects
        before = len(self.work.failures)
        for si in self.work.files:
            there = {shnum for shnum in range(4) if share_key(si, shnum) in objects}
            shown = set(await peer.shares(si))
            assert shown == there, f"{protocol} shows shares {shown}, there are {there}"
            await self.work.read_file(protocol, si)
        for si in self.work.slots:
            await self.work.read_slot(protocol, si)
        assert len(self.work.failures) == before, self.work.failures[before:]

    def _trouble(self, run: Run) -> None:
        if run.trouble:
            for _ in range(self.chance.randint(1, 4)):
                self.service.worsen(self.chance, late=run.trouble == "late")

    # dying while it starts

    async def _die_starting(self, armed: tuple[str, int]) -> str:
        await self._some_work(1)
        if self.chance.random() < 0.5:
            await self.node.kill()
        else:
            await self.node.stop()
        if armed[0] == "open.upload-removed":
            for number in range(3):
                key = share_key(self.work.files[0], number)
                self.service.bucket.create_upload(key, now_s=self.service.wall_s(), metadata={})
        if await self.node.start(armed):
            await self.node.kill()
            if await self.node.start((armed[0], 1)):
                return ""
        return armed[0]

    async def _die_putting_right(self, point: str) -> str:
        """At a start that finds an acknowledged write undone."""
        await self._lose_to_a_late_put(self.work.slots[0])
        await self.node.kill()
        self.work.apply_late()
        if await self.node.start((point, 1)):
            await self.node.kill()
            return ""
        return point

    async def _lose_to_a_late_put(self, si: bytes) -> None:
        """Of the second of three writes one attempt is late."""
        protocol = self.chance.choice(PROTOCOLS)
        # A container never shrinks, and this one is to fit one PUT.
        await self.work.change(protocol, si, {0: None})
        await self.work.change(protocol, si, {0: self.work.content(small=True)})
        self.service.delay_puts(1, key=share_key(si, 0))
        await self.work.change(protocol, si, {0: self.work.content(small=True)})
        await self.work.change(protocol, si, {0: self.work.content(small=True)})

    # dying while it stops

    async def _die_stopping(self, run: Run, armed: tuple[str, int]) -> str:
        await self._some_work(1)
        await self.node.ask(arm=(armed[0], 1))
        self._trouble(run)
        try:
            await self._stop_under_way()
        except Died:
            return armed[0]
        return ""

    async def _stop_under_way(self) -> None:
        """Stop while clients work."""
        working = Deferred.fromCoroutine(self.work.some(2))
        await deferLater(self.reactor, self.chance.choice([0.0, 0.02, 0.05]))
        stopping = Deferred.fromCoroutine(self.node.stop())
        try:
            await stopping
        finally:
            await working

    # dying at work

    async def _some_work(self, count: int) -> None:
        """In quiet times no call may fail."""
        before = len(self.work.failures)
        await self.work.some(count)
        failed = self.work.failures[before:]
        if failed and self.node.is_alive:
            await deferLater(self.reactor, 0.2)
        assert not failed or not self.node.is_alive or self.service.late_count or self.service.rules, failed

    async def _die_working(self, run: Run, armed: tuple[str, int]) -> str:
        await self._some_work(1)
        await self._prepare(run)
        await self.node.ask(arm=armed)
        self._trouble(run)
        bring = self._way_to(run)
        try:
            for _ in range(TRIES):
                if not self.node.is_alive:
                    break
                await (bring() if run.room == "expiry" else self._beside(bring, run))
        except Died:
            return await self._died()
        finally:
            self.told.calls_failed += len(self.work.failures)
            self.work.failures.clear()
        await deferLater(self.reactor, 0.05 * self.node.is_alive)
        if self.node.is_alive:
            await self.node.kill()
            return ""
        return await self._died()

    async def _died(self) -> str:
        return await self.node.await_death() if self.node.ended is not None else self._noted()

    def _noted(self) -> str:
        note = self.node.folder / "killed-at"
        return note.read_text() if note.exists() else ""

    async def _beside(self, bring: Callable[[], Awaitable[None]], run: Run) -> None:
        """The call that comes to the point, and other clients at work beside it."""
        from .work import together

        other = PROTOCOLS[PROTOCOLS.index(run.protocol) - 1]
        await together([bring(), self.work.any(run.protocol), self.work.any(other)])
        if run.trouble:
            self._trouble(run)

    async def _prepare(self, run: Run) -> None:
        """What must be there before."""
        work = self.work
        if run.point in RARE:
            while not work.with_overlay():
                await work.upload(run.protocol, self.chance.choice(work.files))
                await work.lease(run.protocol)
            # A lease object that is in doubt is known at the next start.
            await self._let_pass(LATE_S + 1)
            await self.node.kill()
            await self._stand_up()
        if run.room == "vanish":
            # What is in doubt is looked for over a restart, too.
            await self._let_pass(LATE_S + 1)
        if run.room == "lookup":
            await self._prepare_look_ups(run)
        if run.room == "expiry":
            await self._prepare_expiry(run)
        elif self.service.undone and self.chance.random() < 0.5:
            # Else it lies there until the node has died.
            await self._put_right()

    async def _prepare_look_ups(self, run: Run) -> None:
        """A node that serves while its listing is held up behind the first key."""
        for _ in range(3):
            await self.work.upload(run.protocol, self._fresh_file())
        await self.node.kill()
        self.service.hold_listing()
        await self.node.start(start_keys=1)
        await self.node.connect()

    async def _prepare_expiry(self, run: Run) -> None:
        """Shares of which some will have expired and some not, and a cycle over them all."""
        work = self.work
        for _ in range(3):
            si = self._fresh_file()
            await work.upload(run.protocol, si)
            await work.lease(run.protocol, si)
        await self._let_pass(1.5 * DAY_S)
        await work.lease(run.protocol, work.files[0])
        await work.upload(run.protocol, work.files[1])
        self.record.may_be_gone(self.service.wall_s())

    def _fresh_file(self) -> bytes:
        """A file that nobody has stored, among those that are looked at."""
        self.work.files.append(self.chance.randbytes(16))
        return self.work.files[-1]

    def _way_to(self, run: Run) -> Callable[[], Awaitable[None]]:
        """What brings a client's call to the point, in one call or a few."""
        work, protocol, chance = self.work, run.protocol, self.chance

        def file(*, large: bool) -> bytes:
            si = self._fresh_file()
            si = work.files[-1] = bytes([si[0] | 1 if large else si[0] & 0xFE]) + si[1:]
            return si

        async def upload() -> None:
            await work.upload(protocol, file(large=chance.random() < 0.3))

        async def upload_small() -> None:
            await work.upload(protocol, file(large=False))

        async def upload_large() -> None:
            await work.upload(protocol, file(large=True))

        async def give_up() -> None:
            await work.upload(protocol, file(large=chance.random() < 0.6), abort=True)

        async def write() -> None:
            await work.write(protocol)

        async def write_large() -> None:
            await work.write(protocol, large=True)

        async def fail_part() -> None:
            self.service.fail("UploadPart", status=500, code="InternalError", times=None)
            await work.write(protocol, large=True)
            self.service.calm()

        async def delete() -> None:
            await work.write(protocol, work.slots[0])
            await work.write(protocol, work.slots[0], delete=(chance.randrange(3),))

        async def delete_all() -> None:
            si = work.slots[chance.randrange(2)]
            await work.write(protocol, si)
            await work.lease(protocol, si)
            await work.change(protocol, si, dict.fromkeys(range(3)))

        async def lease() -> None:
            await work.upload(protocol, work.files[0])
            await work.lease(protocol, chance.choice([work.files[0], chance.choice(work.slots)]))

        async def lease_unknown() -> None:
            await work.lease(protocol, chance.choice(work.with_overlay() or work.files))

        async def lose_answer() -> None:
            applied = chance.random() < 0.5 and run.point != "unsure.asked"
            self.service.drop("PutObject", key="shares/", times=ALL_ATTEMPTS, applied=applied)
            if chance.random() < 0.5:
                await upload_small()
            else:
                await work.change(protocol, work.slots[3], {0: work.content(small=True)})
            self.service.calm()
            await work.read_slot(protocol, work.slots[3])

        async def forget() -> None:
            await self._lose_to_a_late_put(work.slots[0])
            await work.change(protocol, work.slots[0], {0: None})

        async def look_up() -> None:
            await work.read_file(protocol, chance.choice(work.files))
            await work.read_slot(protocol, chance.choice(work.slots))
            await work.upload(protocol, self._fresh_file())

        async def undo() -> None:
            await self._lose_to_a_late_put(work.slots[0])
            work.apply_late()
            await self._let_pass(CHECKS_S[0] + 1)

        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "upload.aborting": give_up, "upload.before-put": upload_small, "file.aborting": fail_part,
            "slot.before-delete": delete, "slot.after-delete": delete, "slot.before-leases": delete_all,
            "store.row-dropped": delete, "lease.before-delete": delete_all, "lease.after-delete": delete_all,
            "late.forgotten": forget, "lease.before-get": lease_unknown, "lease.after-get": lease_unknown,
        }  # fmt: skip
        rooms: dict[str, Callable[[], Awaitable[None]]] = {
            "upload": upload, "multipart": upload_large, "file": write_large, "slot": write, "lease": lease,
            "unsure": lose_answer, "expiry": self._pass_time, "late": undo,
            "lookup": look_up, "vanish": self._lose_a_share,
        }  # fmt: skip
        return ways.get(run.point) or rooms[run.room]

    async def _pass_time(self) -> None:
        """The node's timers one after the other, with as much time as they need; a renewal now and then."""
        for _ in range(40):
            self.record.may_be_gone(self.service.wall_s() + 1)
            told = await self.node.ask(timer=0)
            if not told["busy"]:
                await self.node.travel(min(told["timer"], DAY_S) + 0.01)
            await deferLater(self.reactor, 0.002)
            if self.chance.random() < 0.03:
                await self.work.lease(self.chance.choice(PROTOCOLS))
            if not self.node.is_alive:
                return

    async def _lose_a_share(self) -> None:
        """The service loses what it had: somebody reads it, and the node looks for it again and again."""
        si, work = self.chance.randbytes(16), self.work
        assert self._run is not None
        await work.upload(self._run.protocol, si)
        for share, immutable in self.record.immutable.items():
            if share.storage_index == si:
                immutable.is_required = False
                immutable.leases.clear()
                self.service.bucket.delete(share_key(*share))
        peer = work.peer(self._run.protocol)
        if peer is None:
            return
        _, readers = await work.call("shares", Deferred.fromCoroutine(peer.shares(si)))
        for reader in (readers or {}).values():
            reading = work.call("read", reader.callRemote("read", 0, 100))
            ended = Deferred.fromCoroutine(reading)
            while not ended.called and self.node.is_alive:
                await self.node.travel(1.0)
                await deferLater(self.reactor, 0.002)
            await ended
        for after_s in VANISH_CHECKS_S:
            await self._let_pass(after_s + 1)

    # what the service applied late

    async def _let_pass(self, seconds: float) -> None:
        """So long, with what the node does meanwhile: a node that is killed on the way has not lived as long."""
        await self.node.travel(seconds)
        await self._until_idle()

    async def _until_idle(self) -> None:
        while (await self.node.ask(timer=0))["busy"]:
            await deferLater(self.reactor, 0.002)

    async def _be_undone(self) -> None:
        """Clients work on while PUTs time out at times and are applied later, over newer ones too."""
        for _ in range(4):
            self.service.delay_puts(self.chance.choice([1, 2, 3, ALL_ATTEMPTS]))
            await self.work.some(2)
            if self.chance.random() < 0.5:
                self.work.apply_late()
        self.service.calm()
        await self.work.some(1)
        await self._undo_each(self.chance.choice(PROTOCOLS))
        self.work.failures.clear()
        await self._put_right()

    async def _undo_each(self, protocol: str) -> None:
        """Something of each kind is undone, with nobody to write it again: a mutable share, leases, and the share of
        an upload that failed and was begun again."""
        work, slot, file = self.work, self.work.slots[1], self._fresh_file()
        await work.change(protocol, slot, {0: work.content(small=True)})
        self.service.delay_puts(1, key=share_key(slot, 0))
        await work.change(protocol, slot, {0: work.content(small=True)})
        await work.change(protocol, slot, {0: work.content(small=True)})
        self.service.delay_puts(1, key=lease_key(slot))
        for _ in range(4):
            await work.lease(protocol, slot)
        self.service.delay_puts(ALL_ATTEMPTS, key=slot_prefix(file))
        await work.upload(protocol, file)
        self.service.calm()
        for _ in range(3):
            await work.upload(protocol, file)
        work.apply_late()

    async def _put_right(self) -> None:
        """The node lives, and knows of the PUTs that had no answer: what they have undone it makes good in time."""
        undone, self.service.undone = self.service.undone, set()
        objects = self.service.bucket.objects
        before = {key: objects.get(key) for key in undone}
        for after_s in CHECKS_S:
            await self._let_pass(after_s + 1)
        checker = Checker(self.service, self.record)
        checker.check_bucket()
        checker.end()
        self.told.put_right += sum(1 for key in undone if objects.get(key) is not before[key])

    # the end

    async def _end_well(self) -> None:
        """A clean stop; the index that is kept is right, before and after the next start."""
        if self.node.is_alive:
            await self.node.kill()
        self.work.apply_late()
        await self._start_after_death()
        await self._check()
        await self._some_work(1)
        if any(run.trouble == "late" for run in self.runs):
            await self._be_undone()
        self.record.may_be_gone(self.service.wall_s())
        await self.node.stop()
        storage = self.node.folder / "storage"
        assert is_marked_clean(storage), "a clean stop has not marked the index"
        await self.node.start()
        await self._check(kept=True)
        await self.node.stop()
        left = [path for path in (storage / "incoming").rglob("*") if path.is_file()]
        assert not left, left
        self.told.clean_restarts += 1
