# SPDX-License-Identifier: GPL-2.0-or-later
"""What clients do: random work by seed, over both protocols, each call noted in the record.

A call that fails is noted as one of which nobody knows the outcome. Owner: the test, for one story.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred

from tahoe_s3.store.keys import ShareId, lease_key, share_key

from ..live.wire import PROTOCOLS, Peer, plain
from .living import Node, Stuck, within
from .record import Record, pattern

ENABLER, CANCEL = b"w" * 32, b"c" * 32
SECRETS = [bytes([65 + number]) * 32 for number in range(4)]
SMALL_BYTES, LARGE_BYTES, PIECE_BYTES = 300, 2600, 700
CALL_LIMIT_S = 25.0
Step = Callable[[str], Awaitable[None]]


class Wrong(AssertionError):
    """A client saw what must not be."""


class Work:
    """Random work on one node. `protocol` of a step: which of the node's two clients does it."""

    def __init__(self, node: Node, record: Record, chance: random.Random) -> None:
        self.node, self.record, self.chance = node, record, chance
        self.failures: list[str] = []
        self._serial = 0
        self.files = [self._fresh_index() for _ in range(5)]
        self.slots = [self._fresh_index() for _ in range(4)]

    def _fresh_index(self) -> bytes:
        return self.chance.randbytes(16)

    def now_s(self) -> float:
        return self.node.service.wall_s()

    async def call(self, what: str, deferred: Deferred[Any]) -> tuple[bool, Any]:
        """(succeeded, result). A call that is not answered at all is an error of the node."""
        try:
            return True, await within(self.node.reactor, plain(deferred), what, CALL_LIMIT_S)
        except (Stuck, AssertionError):
            raise
        except Exception as error:
            # Tahoe's client over HTTP asks which shares there are, and then for one that was deleted meanwhile.
            if not (what.endswith("readv") and "(404" in str(error)):
                self.failures.append(f"{what}: {error}")
            return False, None

    def peer(self, protocol: str) -> Peer | None:
        return self.node.peers.get(protocol)

    # the steps

    async def any(self, protocol: str) -> None:
        steps: list[Step] = [
            self.upload, self.upload, self.lease, self.write, self.write, self.read_file, self.read_slot, self.delete,
        ]  # fmt: skip
        await self.chance.choice(steps)(protocol)

    def size_of(self, storage_index: bytes) -> int:
        return LARGE_BYTES if storage_index[0] % 2 else SMALL_BYTES

    async def upload(
        self, protocol: str, storage_index: bytes | None = None, *, abort: bool = False, size: int | None = None
    ) -> None:
        """Some shares of a file, one after the other."""
        si = storage_index or self.chance.choice(self.files)
        peer = self.peer(protocol)
        if peer is None:
            return
        shnums = set(self.chance.sample(range(4), self.chance.randint(1, 3)))
        renew, since_s, size = self.chance.choice(SECRETS), self.now_s(), size or self.size_of(si)
        for shnum in shnums:
            self.record.attempted(ShareId(si, shnum), pattern(size, si[1] * 256 + shnum))
        allocating = peer.storage.allocate_buckets(si, renew, CANCEL, shnums, size, peer.canary)
        succeeded, answer = await self.call(f"{protocol} allocate", allocating)
        if not succeeded:
            return
        got, writers = answer
        for shnum in got:
            self._seen(ShareId(si, shnum))
            self.record.stored(ShareId(si, shnum), renew, since_s)
        for shnum, writer in writers.items():
            if not await self._write_share(peer, protocol, ShareId(si, shnum), writer, abort=abort):
                continue
            self.record.stored(ShareId(si, shnum), renew, since_s)

    async def _write_share(self, peer: Peer, protocol: str, share: ShareId, writer: Any, *, abort: bool) -> bool:
        data = self.record.immutable[share].data
        fate, piece = self.chance.random(), max(PIECE_BYTES, len(data) // 4)
        if abort or fate < 0.1:
            data = data[: self.chance.randrange(1, len(data))]
            for start in range(0, len(data), piece):
                await self.call("write", writer.callRemote("write", start, data[start : start + piece]))
            if abort or fate < 0.07:
                await self.call("abort", writer.callRemote("abort"))
            return False
        writing = peer.write_and_close(writer, data, piece_bytes=piece)
        return (await self.call(f"{protocol} upload", writing))[0]

    def _seen(self, share: ShareId) -> None:
        if share not in self.record.immutable and share not in self.record.mutable:
            raise Wrong(f"{share} is there, and nobody has stored it")

    async def lease(self, protocol: str, storage_index: bytes | None = None) -> None:
        """On whatever is there."""
        si = storage_index or self.chance.choice(self.files + self.slots)
        peer = self.peer(protocol)
        if peer is None:
            return
        renew, since_s = self.chance.choice(SECRETS), self.now_s()
        shares = self.record.required(si, since_s)
        adding = peer.storage.add_lease(si, renew, CANCEL)
        if (await self.call(f"{protocol} add_lease", adding))[0]:
            self.record.leased(shares, renew, since_s)

    def content(self, *, small: bool = False) -> bytes:
        self._serial += 1
        size = 40 if small else self.chance.choice([40, 200, 1500, LARGE_BYTES])
        return b"%8d" % self._serial + pattern(size, self._serial)

    async def write(
        self, protocol: str, storage_index: bytes | None = None, *, large: bool = False, delete: tuple[int, ...] = ()
    ) -> None:
        """Create or overwrite shares of a slot, and perhaps delete others in the same call."""
        wanted: dict[int, bytes | None] = dict.fromkeys(delete)
        for shnum in self.chance.sample(range(3), self.chance.randint(1, 3)):
            if shnum not in wanted:
                wanted[shnum] = self.content() + bytes(LARGE_BYTES * large)
        await self.change(protocol, storage_index or self.chance.choice(self.slots), wanted)

    async def delete(self, protocol: str, storage_index: bytes | None = None) -> None:
        """Delete one share, or all of them; others may be written in the same call."""
        shnums = tuple(self.chance.sample(range(3), self.chance.choice([1, 1, 3])))
        if self.chance.random() < 0.5:
            await self.write(protocol, storage_index, delete=shnums)
        else:
            await self.change(protocol, storage_index or self.chance.choice(self.slots), dict.fromkeys(shnums))

    async def change(self, protocol: str, si: bytes, wanted: dict[int, bytes | None]) -> None:
        peer = self.peer(protocol)
        if peer is None:
            return
        renew, since_s = self.chance.choice(SECRETS), self.now_s()
        vectors: dict[int, Any] = {
            shnum: ([], [], 0) if content is None else ([], [(0, content)], len(content))
            for shnum, content in wanted.items()
        }
        begun = self.record.begin_writes({ShareId(si, shnum): content for shnum, content in wanted.items()})
        secrets = (ENABLER, renew, CANCEL)
        writing = peer.storage.slot_testv_and_readv_and_writev(si, secrets, vectors, [(0, 99999)])
        succeeded, answer = await self.call(f"{protocol} read-test-write", writing)
        if succeeded and not answer[0]:
            raise Wrong("a write without a test was refused")
        self.record.end_writes(begun, acknowledged=succeeded, renew=renew, since_s=since_s)

    async def read_file(self, protocol: str, storage_index: bytes | None = None) -> None:
        """Every share that is shown is whole, with the right bytes."""
        si = storage_index or self.chance.choice(self.files)
        peer = self.peer(protocol)
        if peer is None:
            return
        succeeded, readers = await self.call(f"{protocol} get_buckets", peer.storage.get_buckets(si))
        for shnum, reader in (readers if succeeded else {}).items():
            share = ShareId(si, shnum)
            self._seen(share)
            data = self.record.immutable[share].data
            done, read = await self.call(f"{protocol} read", reader.callRemote("read", 0, len(data) + 10))
            if done and read != data:
                raise Wrong(f"{protocol}: {len(read)} bytes of {share} are not what was stored")

    async def read_slot(self, protocol: str, storage_index: bytes | None = None) -> None:
        """Every share is one of the versions that it had."""
        si = storage_index or self.chance.choice(self.slots)
        peer = self.peer(protocol)
        if peer is None:
            return
        before = {
            share.shnum: mutable.allowed()
            for share, mutable in self.record.mutable.items() if share.storage_index == si
        }  # fmt: skip
        succeeded, answer = await self.call(f"{protocol} readv", peer.storage.slot_readv(si, [], [(0, 99999)]))
        for shnum, (data,) in (answer if succeeded else {}).items():
            share = ShareId(si, shnum)
            self._seen(share)
            mutable, service = self.record.mutable[share], self.node.service
            versions = [*before.get(shnum, []), *(write.content for write in mutable.writes)]
            if share_key(*share) in service.applied_late and None in versions:
                versions += mutable.ever
            if data not in versions:
                raise Wrong(f"{protocol}: {share} has {data[:8]!r} and {len(data)} bytes, which nobody wrote")

    # the service

    def apply_late(self) -> None:
        """PUTs that had timed out are applied now."""
        self.node.service.apply_late()

    # together

    async def some(self, count: int) -> None:
        """`count` steps by each of three clients at once, until the node dies."""
        async def one(number: int) -> None:
            for _ in range(count):
                if not self.node.is_alive:
                    return
                if self.chance.random() < 0.1:
                    self.apply_late()
                await self.any(PROTOCOLS[(number + self.chance.randrange(2)) % 2])

        await together([one(number) for number in range(3)])

    def with_overlay(self) -> list[bytes]:
        """Storage indexes that have a lease object."""
        return [si for si in self.files + self.slots if lease_key(si) in self.node.service.bucket.objects]


async def together(work: list[Any]) -> None:
    """Wait for all, then raise what the first that failed has raised."""
    results: list[Any] = []
    for one in [Deferred.fromCoroutine(each) for each in work]:
        try:
            results.append(await one)
        except Exception as error:
            results.append(error)
    for result in results:
        if isinstance(result, Exception):
            raise result
