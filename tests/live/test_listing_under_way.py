# SPDX-License-Identifier: GPL-2.0-or-later
"""A node that serves while its bucket of more than START_KEYS keys is still being listed, asked by Tahoe's own clients
over both protocols, before and behind the place that the listing has come to, where it is held up.

Every answer must be that of a node which knows everything; what it costs is one LIST for each storage index that is
asked for before the listing has come to it, shared by all who ask at the same time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from allmydata.storage.http_client import StorageClientFactory
from allmydata.storage_client import _HTTPStorageServer, _StorageServer
from foolscap.api import Tub
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.web.client import HTTPConnectionPool

from tahoe_s3.store.keys import lease_key, share_key, slot_prefix
from tahoe_s3.store.leases import Lease, hash_secret, overlay_from_json, overlay_to_json
from tahoe_s3.store.reconcile import START_KEYS
from tahoe_s3.store.store import Store
from tahoe_s3.wire import UNAVAILABLE_TEXT

from ..oracle.wires import Node
from ..store.helpers import WRITE_ENABLER, immutable_object, mutable_object, pattern
from ..support.s3server import Gate, S3Server, Seen
from .test_bad_service import until
from .wire import PROTOCOLS, Peer, RefusedByNode, plain

PAGE = 1000
COUNT = START_KEYS + 1500
#: No page from here on is answered. One that was asked for before reaches no further than a page.
HELD_FROM = START_KEYS + 300
#: Of so many before and behind, contents of their own; the last digit of the number says what lies there.
OWN = 100
SIZE = 700
RENEW, CANCEL = b"r" * 32, b"c" * 32
LIST = "ListObjectsV2"
OLD_LEASE = Lease(1, b"h" * 32, b"i" * 32, 9_000_000_000, bytes(20))
OLD, NEW = b"the old version", b"the new version"


def indexes() -> list[bytes]:
    """Storage indexes in the order in which a listing has them."""
    chance = random.Random(517)
    return sorted((chance.randbytes(16) for _ in range(COUNT)), key=slot_prefix)


def is_look_up(seen: Seen) -> bool:
    return seen.operation == LIST and seen.query.get("prefix", "").startswith("shares/")


class Place:
    """The bucket, the node, and a client for each protocol."""

    def __init__(self, s3server: S3Server) -> None:
        self.s3server = s3server
        self.sis = indexes()
        #: What this test may change, by where it lies; each is taken once.
        self.left: dict[str, list[bytes]] = {
            "before": self.sis[:OWN], "behind": self.sis[-OWN:],
        }  # fmt: skip
        self.gate: Gate
        self.node: Node
        self.peers: dict[str, Peer] = {}
        self._fill()

    def _fill(self) -> None:
        plain = immutable_object(pattern(SIZE))
        for si in self.sis:
            self._store(share_key(si, 0), plain)

    def _store(self, key: str, data: bytes) -> None:
        self.s3server.bucket.put(key, data, now_s=1_700_000_000.0)

    def take(self, where: str, what: str) -> bytes:
        """A storage index with an immutable share of its own, a mutable one, one with a lease object, or none."""
        si = self.left[where].pop()
        if what == "none":
            self.s3server.bucket.delete(share_key(si, 0))
        elif what == "mutable":
            self._store(share_key(si, 0), mutable_object(OLD))
        else:
            self._store(share_key(si, 0), immutable_object(pattern(SIZE, seed=si[0])))
        if what == "lease":
            self._store(lease_key(si), overlay_to_json([OLD_LEASE]))
        return si

    async def start(self, folder: Path) -> None:
        held_from = share_key(self.sis[HELD_FROM], 0)

        def is_far(seen: Seen) -> bool:
            query = seen.query
            token = query.get("continuation-token")
            after = bytes.fromhex(token).decode() if token else query.get("start-after", "")
            return not query.get("prefix") and after >= held_from

        self.gate = self.s3server.hold(LIST, where=is_far)
        self.node = await Node.start(self.s3server, folder)
        await until(lambda: self.gate.held, "the listing to come to where it is held")
        tub = Tub()
        tub.startService()
        reference = await tub.getReference(self.node.furl)
        self.peers["foolscap"] = Peer(reactor, _StorageServer(get_rref=lambda: reference))
        self.peers["foolscap"]._tub = tub
        pool = HTTPConnectionPool(reactor)
        pool.retryAutomatically = False
        client = await StorageClientFactory({"tcp": "tcp"}, None).create_storage_client(self.node.nurl, reactor, pool)
        self.peers["http"] = Peer(reactor, _HTTPStorageServer.from_http_client(client))
        self.peers["http"]._pool = pool
        self.s3server.forget()

    async def stop(self) -> None:
        self.s3server.clear_rules()
        for peer in self.peers.values():
            await peer.close()
        await self.node.stop()

    @property
    def store(self) -> Store:
        store: Store = self.node.server.store
        return store

    def took(self) -> dict[str, int]:
        """What was asked of the bucket since this was last asked; a look-up is counted as such."""
        counts: dict[str, int] = {}
        for seen in self.s3server.log:
            name = "look-up" if is_look_up(seen) else seen.operation
            counts[name] = counts.get(name, 0) + 1
        self.s3server.forget()
        return counts

    def leases_of(self, si: bytes) -> set[bytes]:
        return {lease.renew_hash for lease in overlay_from_json(self.s3server.bucket.get(lease_key(si)).body)}

    async def finish(self) -> None:
        """The listing goes on to its end."""
        self.s3server.clear_rules()
        await until(lambda: self.store.rebuild.is_complete, "the end of the listing")


@pytest_twisted.async_yield_fixture
async def place(s3server: S3Server) -> AsyncIterator[Place]:
    made = Place(s3server)
    yield made
    await made.stop()
    assert not s3server.refused


def own_data(si: bytes) -> bytes:
    return pattern(SIZE, seed=si[0])


def write(peer: Peer, si: bytes, expected: bytes, data: bytes) -> Deferred[Any]:
    """A read-test-write; whether it found what was expected, and what it read."""
    vectors = {0: ([(0, len(expected), expected)], [(0, data)], len(data))}
    written: Deferred[Any] = peer.storage.slot_testv_and_readv_and_writev(
        si, (WRITE_ENABLER, RENEW, CANCEL), vectors, [(0, 100)]
    )
    return written


def one_look_up(where: str) -> dict[str, int]:
    return {"look-up": 1} if where == "behind" else {}


@ensureDeferred
async def test_what_is_asked_and_read(place: Place, tmp_path: Path) -> None:
    chosen = {
        (protocol, where, what): place.take(where, what)
        for protocol in PROTOCOLS for where in ("before", "behind") for what in ("immutable", "mutable", "none")
    }  # fmt: skip
    await place.start(tmp_path)
    for (protocol, where, what), si in chosen.items():
        peer, store = place.peers[protocol], place.store
        assert store.rebuild.covers(si) is (where == "before"), "what this test is about"
        if what == "mutable":
            assert await peer.storage.slot_readv(si, [0], [(0, 100)]) == {0: [OLD]}
            assert place.took() == {"GetObject": 1, **one_look_up(where)}, (protocol, where)
        else:
            shares = await peer.shares(si)
            assert set(shares) == ({0} if what == "immutable" else set()), (protocol, where)
            assert place.took() == one_look_up(where), (protocol, where)
        if what == "immutable":
            assert await shares[0].callRemote("read", 0, SIZE) == own_data(si)
            assert await peer.read(si, 0, SIZE) == own_data(si)
            assert place.took() == {"GetObject": 1}
        assert store.rebuild.covers(si)
        await peer.shares(si) if what != "mutable" else await peer.storage.slot_readv(si, [0], [(0, 5)])
        assert place.took() == {}, "what was looked up is known"
    assert not place.store.rebuild.is_complete
    await place.finish()
    place.took()
    for (protocol, _, what), si in chosen.items():
        if what == "none":
            assert await place.peers[protocol].shares(si) == {}
    assert place.took() == {}
    assert place.store.index.share_count == COUNT - len([one for one in chosen if one[2] == "none"])


@ensureDeferred
async def test_all_who_ask_at_the_same_time_share_one_look_up(place: Place, tmp_path: Path) -> None:
    here, nothing = place.take("behind", "immutable"), place.take("behind", "none")
    await place.start(tmp_path)
    gate = place.s3server.hold(LIST, where=is_look_up)
    asked = [peer.shares(si) for si in (here, nothing) for peer in place.peers.values() for _ in range(5)]
    waiting = [Deferred.fromCoroutine(one) for one in asked]
    allocating = [Deferred.fromCoroutine(peer.allocate(here, {0, 1}, SIZE)) for peer in place.peers.values()]
    await until(lambda: len(gate.held) == 2, "both look-ups")
    # Asks that are still on their way are waited for by means of one that comes after them.
    for peer in place.peers.values():
        assert set(await peer.shares(place.sis[0])) == {0}
    assert not any(one.called for one in (*waiting, *allocating)), "an answer before the bucket has said anything"
    gate.release()
    answers = [set(found) for found in await gatherResults(waiting)]
    assert answers == [{0}] * 10 + [set()] * 10
    writers = await gatherResults(allocating)
    assert sorted(len(some) for some in writers) == [0, 1], "one of them has the writer of share 1, nobody that of 0"
    took = place.took()
    assert took.pop("look-up") == 2
    assert 1 <= took.pop("PutObject") <= 2, "the lease of share 0"
    assert took == {"GetObject": 1, "HeadObject": 2}, "what nobody knows to be absent, share 1, was asked for"


@pytest.mark.parametrize("where", ["before", "behind"])
@ensureDeferred
async def test_what_is_written(place: Place, tmp_path: Path, where: str) -> None:
    kinds = ("none", "immutable", "mutable", "lease")
    chosen = {(protocol, kind): place.take(where, kind) for protocol in PROTOCOLS for kind in kinds}
    await place.start(tmp_path)
    for protocol, peer in place.peers.items():
        fresh, there = chosen[protocol, "none"], chosen[protocol, "immutable"]
        slot, leased = chosen[protocol, "mutable"], chosen[protocol, "lease"]
        writers = await peer.allocate(fresh, {0, 5}, SIZE)
        for shnum, writer in sorted(writers.items()):
            await peer.write_and_close(writer, pattern(SIZE, seed=shnum))
        assert set(writers) == {0, 5} and place.took() == {
            "HeadObject": 2, "PutObject": 2, **one_look_up(where)
        }, (protocol, "the index began with nothing, and listings may lag")

        assert set(await peer.allocate(there, {0}, SIZE)) == set()
        assert place.took() == {"GetObject": 1, "PutObject": 1, **one_look_up(where)}, "its lease, the first one there"
        assert place.leases_of(there) == {hash_secret(b"r" * 32)}

        assert await write(peer, slot, NEW, b"x") == (False, {0: [OLD]})
        assert await write(peer, slot, OLD, NEW) == (True, {0: [OLD]})
        assert place.took() == {"GetObject": 1, "PutObject": 1, **one_look_up(where)}, protocol

        await peer.storage.add_lease(leased, RENEW, CANCEL)
        assert place.took() == {"GetObject": 1, "PutObject": 1, **one_look_up(where)}, protocol
        assert place.leases_of(leased) == {OLD_LEASE.renew_hash, hash_secret(RENEW)}
    await place.finish()
    for (protocol, kind), si in chosen.items():
        peer = place.peers[protocol]
        if kind == "mutable":
            assert await peer.storage.slot_readv(si, [0], [(0, 100)]) == {0: [NEW]}
        elif kind == "none":
            assert [await peer.read(si, shnum, SIZE) for shnum in (0, 5)] == [
                pattern(SIZE, seed=0), pattern(SIZE, seed=5)
            ]  # fmt: skip
        else:
            assert await peer.read(si, 0, SIZE) == own_data(si)
    assert place.store.index.share_count == COUNT + len(PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@ensureDeferred
async def test_a_look_up_that_fails_is_no_absence(place: Place, tmp_path: Path, protocol: str) -> None:
    here = place.take("behind", "mutable")
    await place.start(tmp_path)
    storage = place.peers[protocol].storage
    place.s3server.fail(LIST, status=400, code="InvalidRequest", where=is_look_up)
    with pytest.raises(RefusedByNode, match={"foolscap": UNAVAILABLE_TEXT, "http": "503"}[protocol]):
        await plain(maybeDeferred(storage.slot_readv, here, [0], [(0, 100)]))
    assert place.took() == {"look-up": 1}
    assert await storage.slot_readv(here, [0], [(0, 100)]) == {0: [OLD]}
    assert place.took() == {"look-up": 1, "GetObject": 1}
