# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage server that looks after leases, over a bucket in memory, with three clocks that a test sets: this
machine's, one that cannot be set, and the service's."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allmydata.storage import immutable_schema, mutable_schema
from allmydata.storage.immutable import ShareFile
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.mutable import MutableShareFile
from allmydata.web.storage import StorageStatus, StorageStatusElement
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.web.template import flattenString

from tahoe_s3.store.keys import OWNER_KEY, lease_key, share_key
from tahoe_s3.store.ownership import OwnerMark

from .helpers import NODEID, WRITE_ENABLER, now, schema_of
from .memory_client import MemoryClient
from .memory_requests import Held
from .servers import CANCEL, RENEW, ServerPlace, reborn

DAY_S = 24 * 60 * 60
START_S = 1_800_000_000.0
#: Storage indexes at a fifth, two fifths, ... of all there are.
SIS = [bytes([0x33 * number]) * 16 for number in (1, 2, 3, 4)]
DATA = b"\xff" * 1000
MARK = OwnerMark("ournodeid", "instance", int(START_S))


def renew_of(number: int) -> bytes:
    return b"%032d" % number


def container(kind: str, expirations: Sequence[float], *, version: int = 2, data: bytes = DATA) -> bytes:
    """A share as Tahoe's disk backend has it, whose leases end at these times."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "0")
        if kind == "immutable":
            share: Any = ShareFile(
                path, max_size=len(data), create=True, schema=schema_of(immutable_schema.ALL_SCHEMAS, version)
            )
            share.write_share_data(0, data)
        else:
            share = MutableShareFile(path, schema=schema_of(mutable_schema.ALL_SCHEMAS, version))
            share.create(NODEID, WRITE_ENABLER)
            share.writev([(0, data)], None)
        for number, expires_s in enumerate(expirations):
            info = LeaseInfo(number + 1, renew_of(number), b"%032d" % (number + 500), int(expires_s), NODEID)
            share.add_lease(*((info,) if kind == "immutable" else (10**9, info)))
        return Path(path).read_bytes()


class ExpiryPlace(ServerPlace):
    """See the module. `expire` are the expiration_ arguments of StorageServer without that word."""

    def __init__(
        self, folder: Path, *, client: MemoryClient | None = None, start_s: float = START_S, enabled: bool = True,
        **expire: Any,
    ) -> None:  # fmt: skip
        self.folder = folder
        #: How far this machine's clock was set ahead since the start.
        self.set_by_s = 0.0
        self._expire = {"enabled": enabled, **expire}
        super().__init__(
            folder, client=client, start_s=start_s, steady_s=lambda: self.clock.seconds() - self.set_by_s,
            **{f"expiration_{name}": value for name, value in self._expire.items()},
        )  # fmt: skip
        self.client.follow(self.clock)
        self.client.store(OWNER_KEY, MARK.to_json())
        self.store.watch.begin(MARK, MARK, bucket="bucket", prefix="")
        self.expirer = self.server._expirer
        self.checker = self.server.lease_checker

    # time

    def pass_days(self, days: float) -> None:
        """Time passes on all clocks."""
        self.clock.advance(days * DAY_S)

    def set_clock(self, by_s: float) -> None:
        """Somebody sets this machine's clock; no other one moves."""
        self.set_by_s += by_s
        self.client.ahead_s -= by_s
        self.clock.rightNow += by_s

    # cycles

    def start(self) -> None:
        self.server.startService()

    def step(self) -> None:
        """To the end of the next step, if nothing holds it."""
        assert self.expirer.next_step_s is not None
        self.clock.advance(max(0.0, self.expirer.next_step_s - self.clock.seconds()))

    def begin_cycle(self) -> None:
        """The first step of the next cycle."""
        assert not self.expirer.in_cycle
        for _ in range(100):
            self.step()
            if self.expirer.in_cycle:
                return
        raise AssertionError("no cycle begins")

    def finish_cycle(self) -> dict[str, Any]:
        """To the end of the cycle under way, or of the next one; gives its entry in the history."""
        before = self.expirer.account.state.last_finished
        for _ in range(1000):
            self.step()
            last = self.expirer.account.state.last_finished
            if last != before:
                found: dict[str, Any] = self.checker.get_state()["history"][str(last)]
                return found
        raise AssertionError(f"the cycle does not end: {self.checker.get_state()}")

    def cycles(self, count: int) -> dict[str, Any]:
        """So many whole cycles; gives the last one's entry in the history."""
        for _ in range(count - 1):
            self.finish_cycle()
        return self.finish_cycle()

    # shares and leases

    def put(
        self, si: bytes, kind: str, expirations: Sequence[float], *, shnum: int = 0, version: int = 2
    ) -> None:
        """A share of which the index knows nothing but what a listing says."""
        self.add(container(kind, expirations, version=version), shnum=shnum, si=si)

    def make_slot(self, si: bytes, data: bytes = DATA, *, renew: bytes = RENEW) -> None:
        vectors = {0: ([], [(0, data)], len(data))}
        secrets = (WRITE_ENABLER, renew, CANCEL)
        assert now(self.server.slot_testv_and_readv_and_writev(si, secrets, vectors, []))[0]

    def renew(self, si: bytes, renew: bytes = RENEW) -> None:
        assert now(self.server.add_lease(si, renew, CANCEL)) is None

    def has(self, si: bytes, shnum: int = 0) -> bool:
        """Whether the bucket has the share; the index must agree."""
        there = share_key(si, shnum) in self.client.objects
        assert there == (self.index.share(si, shnum) is not None), (si, there)
        return there

    def has_overlay(self, si: bytes) -> bool:
        return lease_key(si) in self.client.objects

    def restarted(self, **changes: Any) -> ExpiryPlace:
        """The node after a clean stop and a start, with changed settings perhaps."""
        seconds, client, ahead_s = self.clock.seconds(), self.client, self.client.ahead_s
        now(self.server.stopService())
        fresh = ExpiryPlace(self.folder, client=reborn(client), start_s=seconds, **{**self._expire, **changes})
        fresh.client.ahead_s = ahead_s
        return fresh

    def close(self) -> None:
        now(self.server.stopService())

    # what the operator sees

    def page(self) -> str:
        """The text of Tahoe's storage status page, and that its JSON is JSON."""
        html = now(flattenString(None, StorageStatusElement(self.server, "nick")))
        request = _Request()
        json.loads(StorageStatus(self.server).render_JSON(request))
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.decode()))

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(StorageStatus(self.server).render_JSON(_Request()))
        return found


Make = Callable[..., ExpiryPlace]


def making(folder: Path, **defaults: Any) -> Iterator[Make]:
    """For a fixture: makes places, and closes them."""
    made: list[ExpiryPlace] = []

    def make_one(**expire: Any) -> ExpiryPlace:
        made.append(ExpiryPlace(folder / f"place{len(made)}", **{**defaults, **expire}))
        return made[-1]

    yield make_one
    for place in made:
        if not place.store.is_closed:
            place.client.holds.clear()
            place.close()


def two_files(make: Make) -> ExpiryPlace:
    """Two files, the second with a lease object, both of which the next cycle deletes."""
    place = make(override_lease_duration=DAY_S)
    place.upload(DATA, si=SIS[0])
    place.upload(DATA, si=SIS[1])
    place.renew(SIS[1], renew_of(5))
    place.pass_days(2)
    place.start()
    place.finish_cycle()
    assert place.has(SIS[0]) and place.has(SIS[1])
    return place


def listening() -> Iterator[list[str]]:
    """For a fixture: what is logged as a warning or worse, formatted."""
    texts: list[str] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            texts.append(str(formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield texts
    globalLogPublisher.removeObserver(observe)


def begin_until(place: ExpiryPlace, operation: str, key: str | None = None) -> Held:
    """Step until the expirer's request of this kind is held back."""
    held = place.client.hold(operation, key)
    for _ in range(100):
        if len(held):
            return held
        place.step()
    raise AssertionError(f"no {operation} came")


class _Request:
    def setHeader(self, *_: object) -> None:
        """Nobody looks at it."""

