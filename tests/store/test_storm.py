# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing that was acknowledged is ever lost: random work on a bucket that fails at random, and on a node that is
stopped, killed and emptied at random.

What a client was told is the model. A share whose upload was acknowledged has its bytes for ever; a mutable share has
what the last acknowledged write left, or what one of the failed ones after it would have; a lease that was
acknowledged is there, in the container or the overlay, for every share of its storage index. All of it is looked up
again from the bucket alone at the end.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tahoe_s3.client import S3Error
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.keys import ShareId, parse_key
from tahoe_s3.store.leases import hash_secret
from tahoe_s3.store.store import VANISH_CHECKS_S

from .helpers import NODEID, now, pattern
from .servers import open_place
from .stormy_client import StormyClient

IMMUTABLE_SIS = [b"immutable-sharea", b"immutable-shareb"]
MUTABLE_SIS = [b"mutable-share--a", b"mutable-share--b"]
SECRETS = [bytes([65 + number]) * 32 for number in range(4)]
ENABLER = b"w" * 32
PART = 700


class Storm:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.client = StormyClient(self.chance, rate=0.0)
        self.immutable: dict[ShareId, bytes] = {}
        #: All contents that a mutable share may have; None: it may be absent.
        self.mutable: dict[ShareId, list[bytes | None]] = {}
        #: Of each share: renew hash to the least expiration.
        self.leases: dict[ShareId, dict[bytes, int]] = {}
        self.serial = 0
        self.server = self.start()

    def start(self) -> S3StorageServer:
        store = now(open_place(self.client, self.folder, self.clock, part_bytes=PART))
        return S3StorageServer(str(self.folder), NODEID, clock=self.clock, backend=store)

    def settle(self, deferred: Deferred[Any]) -> tuple[bool, Any]:
        """(succeeded, result or exception), with as much time as it takes."""
        results: list[tuple[bool, Any]] = []
        deferred.addCallbacks(
            lambda result: results.append((True, result)), lambda failure: results.append((False, failure.value))
        )
        for _ in range(2000):
            if results:
                return results[0]
            self.client.answer_one()
            self.clock.advance(0.1)
        raise AssertionError("it hangs")

    def expect(self, deferred: Deferred[Any]) -> tuple[bool, Any]:
        succeeded, result = self.settle(deferred)
        assert succeeded or isinstance(result, S3Error), repr(result)
        return succeeded, result

    # work

    def upload(self) -> None:
        si, secret = self.chance.choice(IMMUTABLE_SIS), self.chance.choice(SECRETS)
        shnums = self.chance.sample(range(4), self.chance.randint(1, 3))
        size = self.chance.choice([20, PART, 4 * PART])
        succeeded, answer = self.expect(self.server.allocate_buckets(si, secret, secret, shnums, size))
        if not succeeded:
            return
        got, writers = answer
        for shnum in got:
            assert self.exists(ShareId(si, shnum))
        self.leased(si, got, secret)
        allocated_s = self.clock.seconds()
        closing = []
        for shnum, writer in writers.items():
            data = pattern(size, seed=shnum)
            if all(self.expect(writer.write(start, data[start : start + PART]))[0] for start in range(0, size, PART)):
                closing.append((shnum, data, writer, writer.close()))
            else:
                self.expect(writer.abort())
        for shnum, data, writer, close in closing:
            if self.expect(close)[0]:
                self.immutable[ShareId(si, shnum)] = data
                self.leased(si, [shnum], secret, since_s=allocated_s)
            assert writer.closed

    def exists(self, share: ShareId) -> bool:
        return any(parse_key(key) == share for key in self.client.objects)

    def leased(self, si: bytes, shnums: Iterable[int], secret: bytes, *, since_s: float | None = None) -> None:
        """A lease on these shares was acknowledged; the clock may have gone on while its call waited."""
        expires_s = int(self.clock.seconds() - 200 if since_s is None else since_s - 200) + DEFAULT_RENEWAL_TIME
        for shnum in shnums:
            self.leases.setdefault(ShareId(si, shnum), {})[hash_secret(secret)] = expires_s

    def here(self, si: bytes) -> list[int]:
        return [shnum for shnum, _ in self.server.get_shares(si)]

    def lease(self) -> None:
        si = self.chance.choice(IMMUTABLE_SIS + MUTABLE_SIS)
        secrets = self.chance.sample(SECRETS, 2)
        for secret, call in [(one, self.server.add_lease(si, one, one)) for one in secrets]:
            if self.expect(call)[0]:
                self.leased(si, self.here(si), secret)

    def renew(self) -> None:
        si, secret = self.chance.choice(IMMUTABLE_SIS + MUTABLE_SIS), self.chance.choice(SECRETS)
        succeeded, result = self.settle(self.server.renew_lease(si, secret))
        if succeeded:
            self.leased(si, self.here(si), secret)
        elif isinstance(result, IndexError):
            for shnum in self.here(si):
                assert hash_secret(secret) not in self.leases.get(ShareId(si, shnum), {}), "a lease is lost"
        else:
            assert isinstance(result, S3Error), repr(result)

    def write(self) -> None:
        self.end_write(*self.begin_write(self.chance.choice(MUTABLE_SIS)))

    def begin_write(self, si: bytes) -> tuple[bytes, dict[ShareId, bytes | None], Deferred[Any]]:
        """Overwrite, create or delete shares of a slot."""
        vectors: dict[int, Any] = {}
        wanted: dict[ShareId, bytes | None] = {}
        for shnum in self.chance.sample(range(3), self.chance.randint(1, 2)):
            if self.chance.random() < 0.15:
                vectors[shnum], wanted[ShareId(si, shnum)] = ([], [], 0), None
            else:
                self.serial += 1
                content = b"%8d" % self.serial + pattern(self.chance.choice([30, 3 * PART]), seed=self.serial)
                vectors[shnum] = ([], [(0, content)], len(content))
                wanted[ShareId(si, shnum)] = content
        secrets = (ENABLER, SECRETS[0], SECRETS[0])
        return si, wanted, self.server.slot_testv_and_readv_and_writev(si, secrets, vectors, [(0, 9999)])

    def end_write(self, si: bytes, wanted: dict[ShareId, bytes | None], writing: Deferred[Any]) -> None:
        succeeded, answer = self.expect(writing)
        if succeeded:
            self.look({ShareId(si, shnum): found[0] for shnum, found in answer[1].items()}, si)
        for share, content in wanted.items():
            self.mutable[share] = [content] if succeeded else [*self.mutable.get(share, [None]), content]
            if content is None:
                # Its leases go with it, and it may be gone even where the call failed.
                self.leases.pop(share, None)
            elif succeeded:
                self.leased(si, [share.shnum], SECRETS[0])

    def burst(self) -> None:
        """Many calls for one slot at once: writes take effect in the order of the calls, reads see one of them."""
        si = self.chance.choice(MUTABLE_SIS)
        possible = {share: list(contents) for share, contents in self.mutable.items()}
        writes, reads = [], []
        for _ in range(self.chance.randint(2, 6)):
            if self.chance.random() < 0.5:
                reads.append(self.server.slot_readv(si, [], [(0, 9999)]))
            else:
                writes.append(self.begin_write(si))
                for share, content in writes[-1][1].items():
                    possible.setdefault(share, [None]).append(content)
            self.client.answer_one()
        for write in writes:
            self.end_write(*write)
        for succeeded, answer in map(self.expect, reads):
            for shnum, found in answer.items() if succeeded else ():
                assert found[0] in possible[ShareId(si, shnum)]

    def look(self, found: dict[ShareId, bytes], si: bytes) -> None:
        """What was read of a slot must be what was written, and settles what was not known."""
        for share, contents in self.mutable.items():
            if share.storage_index == si:
                content = found.get(share)
                assert content in contents, f"share {share.shnum} is {content and content[:8]!r}"

    def read(self) -> None:
        si = self.chance.choice(MUTABLE_SIS)
        succeeded, answer = self.expect(self.server.slot_readv(si, [], [(0, 9999)]))
        if succeeded:
            self.look({ShareId(si, shnum): found[0] for shnum, found in answer.items()}, si)

    def fetch(self) -> None:
        si = self.chance.choice(IMMUTABLE_SIS)
        succeeded, readers = self.expect(self.server.get_buckets(si))
        if not succeeded:
            return
        for share, data in self.immutable.items():
            if share.storage_index == si:
                assert share.shnum in readers, "an acknowledged share is missing"
                succeeded, result = self.settle(readers[share.shnum].read(0, len(data) + 5))
                assert (result == data) if succeeded else isinstance(result, S3Error), repr(result)

    # the node's life

    def pause(self) -> None:
        self.clock.advance(self.chance.choice([1, 400, 3000]))

    def restart(self) -> None:
        """Stopped, killed, or stopped and its folder lost; the new process sees the bucket only."""
        how = self.chance.choice(["stopped", "killed", "emptied"])
        rate, self.client.rate = self.client.rate, 0.0
        lateness, self.client.lateness = self.client.lateness, 0.0
        for _ in range(len(self.client.late)):
            self.client.answer_one()
        if how == "killed":
            self.server.store.index.abandon()
            self.server.store.late.abandon()
            self.clock = Clock()
            self.clock.advance(1_700_900_000 + 100_000 * self.serial)
        else:
            assert self.settle(self.server.stopService()) == (True, None)
            assert self.clock.getDelayedCalls() == []
        if how == "emptied":
            shutil.rmtree(self.folder)
        fresh = StormyClient(self.chance, rate=0.0)
        fresh.objects, fresh.uploads, fresh.now_s = self.client.objects, self.client.uploads, self.client.now_s
        self.client = fresh
        self.server = self.start()
        fresh.rate, fresh.lateness = rate, lateness

    def check(self) -> None:
        """All that was acknowledged, from the bucket alone, in good weather."""
        self.client.rate = self.client.lateness = 0.0
        self.restart()
        assert self.client.uploads == {}, "parts that are paid for and belong to nothing"
        store = self.server.store
        for delay in VANISH_CHECKS_S:
            # A share whose delete had no answer when the node stopped stays listed until it is known to be gone.
            self.clock.advance(delay)
        for share, data in self.immutable.items():
            reader = now(self.server.get_buckets(share.storage_index))[share.shnum]
            assert now(reader.read(0, len(data) + 5)) == data
        for si in MUTABLE_SIS:
            answer = now(self.server.slot_readv(si, [], [(0, 9999)]))
            self.look({ShareId(si, shnum): found[0] for shnum, found in answer.items()}, si)
        for share, expected in self.leases.items():
            now(store.overlay.read(share.storage_index))
            now(store.learn_leases(*share))
            if store.index.share(*share) is not None:
                known = {lease.renew_hash: lease.expiration_s for lease in store.index.leases(*share)}
                for renew_hash, expires_s in expected.items():
                    assert known.get(renew_hash, 0) >= expires_s, "a lease is lost or shorter"


@pytest.mark.parametrize("seed", range(40))
def test_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    storm = Storm(tmp_path / "storage", seed)
    storm.client.rate = [0.0, 0.05, 0.2, 0.4][seed % 4]
    storm.client.lateness = [0.0, 0.5][seed // 4 % 2]
    work = [storm.upload, storm.lease, storm.renew, storm.write, storm.burst, storm.read, storm.fetch, storm.pause]
    try:
        for _ in range(50):
            storm.chance.choice([*work, *work, storm.restart])()
        storm.check()
    finally:
        storm.client.rate = storm.client.lateness = 0.0
        storm.settle(storm.server.stopService())
