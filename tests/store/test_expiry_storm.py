# SPDX-License-Identifier: GPL-2.0-or-later
"""Expiry over months in which the node is restarted, crashes, and loses its local folder, its listings lag behind, and
requests fail with and without being done: no acknowledged share goes early, and no acknowledged lease is lost.

What the bucket holds is read out of its objects, not asked of the node. A seed repeats; failures name it.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tahoe_s3.client import Page, S3Error, Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.containers import inspect_bytes
from tahoe_s3.store.expiry import CYCLE_S
from tahoe_s3.store.keys import ShareId, lease_key, parse_key, si_text
from tahoe_s3.store.lease_policy import LEASE_DURATION_S
from tahoe_s3.store.leases import hash_secret, merge, overlay_from_json
from tahoe_s3.store.versions import ShareGone

from .expiring import DATA, DAY_S, START_S, renew_of
from .helpers import NODEID, WRITE_ENABLER, now
from .memory_client import MemoryClient, Stored
from .memory_requests import Held
from .servers import CANCEL, open_place

LIFETIME_S = 2 * DAY_S
#: A listing may not show what was written in the last so many seconds: lease objects, or shares too, if the index was
#: kept. (Shares that no index knows and no listing shows are not there for anybody, which is the service's word.)
LAG_S = 600.0
FILES = [bytes([17 * number]) * 16 for number in range(8)]
SLOTS = [bytes([17 * number + 1]) * 16 for number in range(4)]
SHARES = 3
CLIENTS = 3
OPERATIONS = ("DeleteObjects", "PutObject", "GetObject", "HeadObject", "DeleteObject")


class LaggingClient(MemoryClient):
    """A process's sight of the bucket, whose listings may lag behind in what is new below some prefixes."""

    lagging: tuple[str, ...] = ()

    def list_page(self, prefix: str, **options: Any) -> Deferred[Page]:
        page: Deferred[Page] = super().list_page(prefix, **options)
        return page.addCallback(self._as_of_before)

    def _as_of_before(self, page: Page) -> Page:
        new_s = self._clock.seconds() - LAG_S
        seen = [entry for entry in page.entries if not entry.key.startswith(self.lagging) or entry.modified_s <= new_s]
        return page._replace(entries=seen)


class Bucket(dict[str, Stored]):
    """The objects; whoever deletes a share is checked by the oracle."""

    on_delete: Callable[[str], None] | None = None

    def pop(self, key: str, *default: Any) -> Any:
        if self.on_delete is not None and key in self:
            self.on_delete(key)
        return super().pop(key, *default)

    def leases_of(self, si: bytes) -> dict[bytes, int]:
        """Renew hash to expiration, of all shares there together."""
        groups = [
            inspect_bytes(key, stored.data).leases
            for key, stored in self.items()
            if isinstance(name := parse_key(key), ShareId) and name.storage_index == si
        ]
        if groups and lease_key(si) in self:
            groups.append(tuple(overlay_from_json(self[lease_key(si)].data)))
        return {lease.renew_hash: lease.expiration_s for lease in merge(*groups)}

    def has_share(self, si: bytes) -> bool:
        return any(isinstance(name := parse_key(key), ShareId) and name.storage_index == si for key in self)


class World:
    """The bucket, the node of the moment, and what its clients were told."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.folder = seed, folder
        self.chance = random.Random(seed)
        self.objects = Bucket()
        self.objects.on_delete = self._check_delete
        self.uploads: dict[str, Any] = {}
        self.now_s = START_S
        #: Storage index to renew hash to the time of the call whose success gave it.
        self.told: dict[bytes, dict[bytes, float]] = {}
        #: Slots that clients are deleting.
        self.deleting: Counter[bytes] = Counter()
        self.deleted = self.crashes = 0
        self.wrong: list[str] = []
        self.held: list[Held] = []
        # Kept, since what a generator does when it is thrown away would happen in the folder of the living.
        self.dead: list[Any] = []
        self.start()

    # the node

    def start(self, *, knows_shares: bool = False) -> None:
        self.clock = Clock()
        self.clock.advance(self.now_s)
        self.client = LaggingClient()
        self.client.objects, self.client.uploads = self.objects, self.uploads
        self.client.follow(self.clock)
        if self.chance.random() < 0.5:
            self.client.lagging = ("leases/", "shares/") if knows_shares else ("leases/",)
        store = now(open_place(self.client, self.folder, self.clock, has_run_before=True))
        self.client.lagging = ()
        self.server = S3StorageServer(
            str(self.folder), NODEID, clock=self.clock, backend=store, steady_s=self.clock.seconds,
            expiration_enabled=True, expiration_override_lease_duration=LIFETIME_S,
        )  # fmt: skip
        self.server.startService()

    def stop(self) -> None:
        """As an operator does: everything that was begun ends first."""
        self.release()
        self.pass_time(0.5)
        stopping = self.server.stopService()
        for _ in range(100):
            self.pass_time(0.5)
        now(stopping)

    def crash(self) -> None:
        """Some of the requests under way have reached the service and some not; nobody hears of it."""
        for held in self.held:
            is_write = held.operation not in ("GetObject", "HeadObject")
            for call in held.calls:
                if is_write and not held.apply_first and self.chance.random() < 0.5:
                    call.result.callback = call.result.errback = lambda _: None
                    call.go()
        self.dead.append((self.server, self.client, self.held))
        self.held = []
        self.client.objects, self.client.uploads = Bucket(), {}
        self.client.closed = True
        self.deleting = Counter()
        self.server.store.index.abandon()
        self.server.store.late.abandon()
        self.crashes += 1

    def restart(self) -> None:
        kind = self.chance.randrange(3)
        if kind == 0:
            self.stop()
        else:
            self.crash()
        if kind == 2:
            shutil.rmtree(self.folder)
        self.start(knows_shares=kind == 0)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.now_s = self.clock.seconds()

    def release(self) -> None:
        held, self.held = self.held, []
        for each in held:
            each.release()

    # the oracle

    def tell(self, si: bytes, renew: bytes, given_s: float) -> None:
        leases = self.told.setdefault(si, {})
        key = hash_secret(renew)
        leases[key] = max(given_s, leases.get(key, 0.0))

    def _check_delete(self, key: str) -> None:
        name = parse_key(key)
        if isinstance(name, ShareId) and self.deleting[name.storage_index]:
            self.told.pop(name.storage_index, None)
        elif isinstance(name, ShareId):
            self.deleted += 1
            for given_s in self.told.get(name.storage_index, {}).values():
                if self.clock.seconds() - given_s <= LIFETIME_S:
                    age_s = self.clock.seconds() - given_s
                    self.wrong.append(f"{key} was deleted {age_s:.0f} seconds after a lease was given")

    def check_leases(self, when: str) -> None:
        """Every lease that a client was told it has, and that has not run out, is in the bucket for as long."""
        for si, leases in self.told.items():
            current = {key: given_s for key, given_s in leases.items() if self.now_s - given_s <= LIFETIME_S}
            found = self.objects.leases_of(si)
            for key, given_s in current.items():
                if found.get(key, 0) < int(given_s) + LEASE_DURATION_S:
                    self.wrong.append(f"{when}: {si_text(si)} lost a lease that was given {self.now_s - given_s} s ago")

    # what clients do

    def act(self) -> None:
        client = renew_of(self.chance.randrange(CLIENTS))
        action = self.chance.randrange(8)
        if action <= 1:
            self.upload(self.chance.choice(FILES), client)
        elif action <= 3:
            self.renew(self.chance.choice(FILES + SLOTS), client, add=True)
        elif action == 4:
            self.renew(self.chance.choice(FILES + SLOTS), client, add=False)
        elif action <= 6:
            self.write(self.chance.choice(SLOTS), client)
        elif self.chance.random() < 0.3:
            self.delete(self.chance.choice(SLOTS), client)
        else:
            self.server.get_buckets(self.chance.choice(FILES)).addErrback(_expected)

    def upload(self, si: bytes, client: bytes) -> None:
        """Share numbers that are there already get the lease; the others are uploaded."""
        given_s, server = self.now_s, self.server
        shnum = self.chance.randrange(SHARES)

        def stored() -> None:
            if server is self.server:
                self.tell(si, client, given_s)

        def allocated(answer: Any) -> None:
            had, writers = answer
            if had:
                stored()
            for writer in writers.values():
                writer.write(0, DATA).addErrback(_expected)
                writer.close().addCallbacks(lambda _: stored(), _expected)

        server.allocate_buckets(si, client, CANCEL, [shnum], len(DATA)).addCallback(allocated).addErrback(_expected)

    def renew(self, si: bytes, client: bytes, *, add: bool) -> None:
        given_s, server = self.now_s, self.server

        def done(_: object) -> None:
            # Adding to nothing succeeds, as in Tahoe, and says nothing.
            if server is self.server and (not add or server.store.index.shares(si)):
                self.tell(si, client, given_s)

        asked = server.add_lease(si, client, CANCEL) if add else server.renew_lease(si, client)
        asked.addCallbacks(done, _expected)

    def _change(self, si: bytes, client: bytes, length: int) -> Any:
        vectors = {0: ([], [(0, b"m" * length)] if length else [], length)}
        return self.server.slot_testv_and_readv_and_writev(si, (WRITE_ENABLER, client, CANCEL), vectors, [])

    def write(self, si: bytes, client: bytes) -> None:
        given_s, server = self.now_s, self.server

        def done(answer: Any) -> None:
            if server is self.server and answer[0]:
                self.tell(si, client, given_s)

        self._change(si, client, self.chance.randrange(1, 2000)).addCallbacks(done, _expected)

    def delete(self, si: bytes, client: bytes) -> None:
        """It takes its turn, and whatever leases the slot has by then go with it."""
        deleting = self.deleting
        deleting[si] += 1

        def done(_: object) -> None:
            deleting[si] -= 1

        self._change(si, client, 0).addErrback(_expected).addCallback(done)

    def step(self) -> None:
        chance = self.chance
        if chance.random() < 0.2:
            outcome, applied = chance.choice([("unknown", True), ("unknown", False), ("not_applied", False)])
            self.client.fail(chance.choice(OPERATIONS), Unavailable, outcome=outcome, applied=applied)
        if chance.random() < 0.5:
            held = self.client.hold(chance.choice(OPERATIONS), apply_first=chance.random() < 0.3)
            self.held.append(held)
        for _ in range(chance.randrange(1, 4)):
            self.act()
        self.pass_time(chance.choice([0.5, 60, 3600, CYCLE_S / 2]))
        if chance.random() < 0.04:
            self.restart()
            self.check_leases("after a start")
        self.release()
        for _ in range(4):
            self.pass_time(0.5)


def _expected(failure: Any) -> None:
    failure.trap(S3Error, IndexError, ShareGone)


@pytest.mark.parametrize("seed", range(3))
def test_months_of_bad_luck_cost_no_share_and_no_lease(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path / "node", seed)
    for _ in range(400):
        world.step()
        assert not world.wrong, f"seed {seed}: {world.wrong}"
    world.client._failing.clear()
    world.stop()
    world.check_leases("in the end")
    assert not world.wrong, f"seed {seed}: {world.wrong}"
    assert world.deleted > 10 and world.crashes > 2, f"seed {seed}: {world.deleted} deleted, {world.crashes} crashes"
    assert sum(map(world.objects.has_share, FILES + SLOTS)) > 2
