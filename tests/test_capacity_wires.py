# SPDX-License-Identifier: GPL-2.0-or-later
"""What the bucket holds and what is under way stay within s3.capacity, whatever clients do over both protocols.

The server is the real one, its bucket is in memory, and its bytes are counted there: the objects of all shares, the
parts of all uploads that the bucket still has, what every open upload may still add, and what a service may still apply
of a write whose outcome nobody knows.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tahoe_s3.client import NotFound, Throttled, Unavailable
from tahoe_s3.store.keys import ShareId, parse_key, share_key
from tahoe_s3.store.upload import REMOVE_AGAIN_S, object_size

from .store.helpers import KIB, now, pattern
from .store.memory_client import MemoryClient
from .store.servers import ServerPlace
from .test_foolscap_wire import until
from .two_wires import CANCEL, RENEW, Refused, TwoWires

PART = 1000
WRITES = ["PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "AbortMultipartUpload"]
MUTABLE_OVERHEAD = 100 + 4 * 92 + 4


class LateClient(MemoryClient):
    """A bucket that may take a PUT without an answer later, as long as nobody has asked whether it did."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[ShareId, bytes]] = []
        #: Uploads whose removal was asked for and not confirmed so far.
        self.unconfirmed: set[str] = set()

    def put(self, key: str, body: Any, **options: Any) -> Deferred[Any]:
        data = self._bytes(body)
        answer = super().put(key, data, **options)
        share = parse_key(key)

        def failed(failure: Any) -> Any:
            stored = self.objects.get(key)
            was_applied = stored is not None and stored.data == data
            if failure.value.outcome == "unknown" and isinstance(share, ShareId) and not was_applied:
                self.late.append((share, data))
            return failure

        return answer.addErrback(failed)

    def head(self, key: str, **options: Any) -> Deferred[Any]:
        asked = super().head(key, **options)
        return asked.addBoth(self._asked, key)

    def _asked(self, result: Any, key: str) -> Any:
        if not isinstance(result, Failure) or result.check(NotFound):
            self.late = [one for one in self.late if share_key(*one[0]) != key]
        return result

    def abort_multipart(self, key: str, upload_id: str, **options: Any) -> Deferred[None]:
        self.unconfirmed.add(upload_id)
        removing = super().abort_multipart(key, upload_id, **options)
        return removing.addCallback(lambda _: self.unconfirmed.discard(upload_id))


class Bucket:
    """The server, and what its bucket holds."""

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.client = LateClient()
        self.place = ServerPlace(folder, client=self.client, part_bytes=PART, capacity_bytes=capacity_bytes)
        self.server, self.space, self.slots = self.place.server, self.place.store.space, self.place.store.slots

    @property
    def share_bytes(self) -> int:
        return sum(len(stored.data) for key, stored in self.client.objects.items() if key.startswith("shares/"))

    @property
    def under_way_bytes(self) -> int:
        """Of open uploads, of parts that are left of others, and of writes that may still be applied."""
        found = sum(object_size(writer.allocated_size()) for writer in self.server._bucket_writers.values())
        mine = {writer.key for writer in self.server._bucket_writers.values()}
        for upload in self.client.uploads.values():
            if upload.key not in mine:
                found += sum(map(len, upload.parts.values()))
        for share, data in self.client.late:
            stored = self.client.objects.get(share_key(*share))
            found += max(0, len(data) - (len(stored.data) if stored else 0))
        return found

    @property
    def left_bytes(self) -> int:
        """Leases are not limited, but count where others are."""
        leases = sum(len(stored.data) for key, stored in self.client.objects.items() if key.startswith("leases/"))
        return self.capacity_bytes - self.share_bytes - leases - self.under_way_bytes

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is unsure, and the bucket has said of every failed upload that it is gone."""
        return not self.client.unconfirmed and not self.slots._unsure

    @property
    def is_exact(self) -> bool:
        """Whether what is left is known to the byte, leases included."""
        return self.is_quiet and not self.place.index.query("SELECT 1 FROM overlays WHERE etag=''", {})

    def check(self) -> None:
        held, under_way = self.share_bytes, self.under_way_bytes
        assert held + under_way <= self.capacity_bytes, f"{held} in the bucket, {under_way} under way"
        if self.is_quiet:
            assert self.place.index.used_bytes == held
            assert self.space.promised_bytes == under_way, "a promise without its upload, or the other way round"

    def apply_late(self, chance: random.Random) -> None:
        if self.client.late:
            share, data = self.client.late.pop(chance.randrange(len(self.client.late)))
            self.client.store(share_key(*share), data)


@ensureDeferred
async def test_two_hundred_allocations_at_the_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the lease that it gives to a share which is here already; then they all go on in any order."""
    chance = random.Random(1)
    size, start = 2500, object_size(10)
    bucket = Bucket(tmp_path, 200 * start + 90 * object_size(size) + object_size(size) // 2)
    indexes = [bytes([number]) * 16 for number in range(200)]
    for index in indexes:
        bucket.place.upload(pattern(10), 9, si=index)
        now(bucket.server.add_lease(index, RENEW, CANCEL))
    left = bucket.space.left_bytes
    assert left is not None and left % object_size(size)
    room_for = left // object_size(size)
    held = bucket.client.hold("PutObject")
    async with TwoWires(bucket.server, monkeypatch) as wires:
        pending = [
            (wires.both[number % 2], wires.both[number % 2].allocate(index, {0, 1, 9}, size))
            for number, index in enumerate(indexes)
        ]
        await until(lambda: len(held) == 200)
        while held.calls:
            chance.shuffle(held.calls)
            held.release(1)
            bucket.check()
        held.release()
        uploads: list[tuple[Any, Any]] = []
        accepted: Counter[str] = Counter()
        for wire, answer in pending:
            already, allocated = await answer()
            assert already == {9}
            uploads += [(wire, upload) for upload in allocated.values()]
            accepted[wire.name] += len(allocated)
        assert sum(accepted.values()) == room_for > 50 and all(accepted.values()), accepted
        for wire in wires.both:
            told = (await wire.version())[b"http://allmydata.org/tahoe/protocols/storage/v1"]
            assert 0 < told[b"available-space"] < object_size(size) < told[b"maximum-immutable-share-size"]
            with pytest.raises(Refused) as refused:
                await wire.change(b"a mutable file's", {0: ([], [(0, pattern(size))], None)})()
            assert str(refused.value) == {"foolscap": "tahoe_s3.store.space.CapacityReached", "http": "507"}[wire.name]
        chance.shuffle(uploads)
        for wire, upload in uploads:
            for begin in range(0, size, 700):
                await wire.write(upload, begin, pattern(size)[begin : begin + 700])()
                bucket.check()
            await wire.close_share(upload)()
            bucket.check()
    assert bucket.share_bytes == 200 * start + room_for * object_size(size) and bucket.space.promised_bytes == 0
    now(bucket.server.stopService())


class Life:
    """Clients at random, by seed; what they were told is remembered."""

    def __init__(self, bucket: Bucket, wires: TwoWires, seed: int) -> None:
        self.bucket, self.wires, self.chance = bucket, wires, random.Random(seed)
        self.client = bucket.client
        self.immutable = [bytes([number]) * 16 for number in range(8)]
        self.mutable = [bytes([100 + number]) * 16 for number in range(3)]
        #: Open uploads: (wire, upload, data, bytes written).
        self.open: dict[ShareId, list[Any]] = {}
        self.stored: dict[ShareId, bytes] = {}
        self.seen: Counter[str] = Counter()

    async def told(self, answer: Any) -> Any:
        """The answer, or the name of what came instead."""
        try:
            return await answer()
        except Refused as error:
            self.seen[f"error {error}"] += 1
            return error

    async def allocate(self) -> None:
        wire, index = self.chance.choice(self.wires.both), self.chance.choice(self.immutable)
        shnums = set(self.chance.sample(range(6), self.chance.randint(1, 4)))
        size = self.chance.choice([1, 100, 700, 2500, 2500])
        before = set(self.open)
        answer = await self.told(wire.allocate(index, shnums, size))
        if isinstance(answer, Refused):
            return
        already, allocated = answer
        for shnum, upload in allocated.items():
            self.open[ShareId(index, shnum)] = [wire, upload, pattern(size, seed=self.chance.randrange(999)), 0]
        refused = {n for n in shnums - already - set(allocated) if ShareId(index, n) not in before}
        self.seen["accepted"] += len(allocated)
        self.seen["refused"] += len(refused)
        if refused and self.bucket.is_exact:
            left = self.bucket.left_bytes
            assert left < object_size(size), f"{refused} of {size} bytes were refused, and {left} are left"

    async def write(self, *, whole: bool = False) -> None:
        if not self.open:
            return
        share = self.chance.choice(list(self.open))
        wire, upload, data, written = self.open[share]
        stop = len(data) if whole else min(len(data) - 1, written + self.chance.randint(1, 1200))
        answer = None
        if stop > written:
            answer = await self.told(wire.write(upload, written, data[written:stop]))
            self.open[share][3] = stop
        if whole and not isinstance(answer, Refused):
            answer = await self.told(wire.close_share(upload))
        if isinstance(answer, Refused):
            await self.abort(share)
        elif whole:
            del self.open[share]
            self.stored[share] = data
            self.seen["stored"] += 1

    async def finish(self) -> None:
        await self.write(whole=True)

    async def abort(self, share: ShareId | None = None) -> None:
        if self.open:
            wire, upload, _, _ = self.open.pop(share or self.chance.choice(list(self.open)))
            await self.told(wire.abort(upload))

    async def lease(self) -> None:
        wire, index = self.chance.choice(self.wires.both), self.chance.choice(self.immutable)
        await self.told(wire.add_lease(index, bytes([self.chance.randrange(3)]) * 32))

    async def change(self) -> None:
        wire, index = self.chance.choice(self.wires.both), self.chance.choice(self.mutable)
        vectors: dict[int, Any] = {}
        for shnum in self.chance.sample(range(3), self.chance.randint(1, 2)):
            # One PUT each: the parts of a larger one lie beside the old object until it is complete.
            data = pattern(self.chance.choice([10, 200, 500]), seed=self.chance.randrange(999))
            vectors[shnum] = ([], [(0, data)], self.chance.choice([None, None, len(data), 0]))
        grows = sum(
            max(0, MUTABLE_OVERHEAD + len(writes[0][1]) - self.size(index, shnum))
            for shnum, (_, writes, length) in vectors.items() if length != 0
        )  # fmt: skip
        is_exact, left = self.bucket.is_exact, self.bucket.left_bytes
        answer = await self.told(wire.change(index, vectors))
        if str(answer) in ("507", "tahoe_s3.store.space.CapacityReached"):
            self.seen["not grown"] += 1
            assert not is_exact or grows > left, f"{grows} more were refused, and {left} are left"
        elif not isinstance(answer, Refused):
            self.seen["changed"] += 1

    def size(self, index: bytes, shnum: int) -> int:
        stored = self.client.objects.get(share_key(index, shnum))
        return 0 if stored is None else len(stored.data)

    async def worsen(self) -> None:
        """The next request of some kind fails, perhaps after it was done; asking what became of it may fail too."""
        outcome, applied = self.chance.choice([("not_applied", False), ("unknown", False), ("unknown", True)])
        error = self.chance.choice([Unavailable, Throttled])
        self.client.fail(self.chance.choice(WRITES), error, outcome=outcome, applied=applied)
        if self.chance.random() < 0.5:
            self.client.fail("HeadObject", Unavailable, times=self.chance.randint(1, 3))

    async def late(self) -> None:
        self.bucket.apply_late(self.chance)

    async def settle(self) -> None:
        """Somebody asks for shares, so the bucket is asked about what is unsure."""
        server = self.bucket.server
        asked = [server.get_buckets(index) for index in self.immutable]
        asked += [server.enumerate_mutable_shares(index) for index in self.mutable]
        for answer in asked:
            answer.addErrback(lambda failure: failure.trap(Unavailable))

    async def break_off(self) -> None:
        await self.wires.foolscap.disconnect()
        self.open = {share: one for share, one in self.open.items() if one[0] is not self.wires.foolscap}

    async def idle(self) -> None:
        self.bucket.place.clock.advance(31 * 60)
        self.open.clear()

    async def live(self, steps: int) -> None:
        often = [self.allocate] * 6 + [self.write] * 6 + [self.finish] * 5 + [self.abort] * 2 + [self.change] * 5
        rare = [self.lease, self.worsen, self.worsen, self.late, self.settle, self.idle]
        for step in range(steps):
            action = self.chance.choice(often + rare) if step % 60 != 59 else self.break_off
            await action()
            try:
                self.bucket.check()
            except AssertionError as error:
                raise AssertionError(f"after step {step}, {action.__name__}: {error}") from error

    async def end(self) -> None:
        """Good weather: everything is settled, every upload given up, and nothing is owed any more."""
        self.client._failing.clear()
        for share in list(self.open):
            await self.abort(share)
        await self.settle()
        self.bucket.place.clock.advance(REMOVE_AGAIN_S)
        self.bucket.check()
        space = self.bucket.space
        assert self.bucket.is_quiet
        assert not any(upload.parts for upload in self.client.uploads.values()), "paid for, and nobody's"
        assert (space.promised_bytes, space.spooled_bytes, space.spool_bytes, space._held) == (0, 0, 0, {})
        assert self.bucket.place.index.used_bytes == self.bucket.share_bytes
        for share, data in self.stored.items():
            readers = now(self.bucket.server.get_buckets(share.storage_index))
            assert now(readers[share.shnum].read(0, len(data) + 1)) == data, "an acknowledged share is lost"


@pytest.mark.parametrize("seed", range(5))
@ensureDeferred
async def test_nothing_that_clients_do_exceeds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    print(f"seed {seed}")
    bucket = Bucket(tmp_path, [7, 9, 12][seed % 3] * KIB)
    async with TwoWires(bucket.server, monkeypatch) as wires:
        life = Life(bucket, wires, seed)
        await life.live(240)
        await life.end()
    now(bucket.server.stopService())
    for what in ("accepted", "refused", "stored", "changed", "not grown"):
        assert life.seen[what], f"nothing was {what}: {life.seen}"
