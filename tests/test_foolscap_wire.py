# SPDX-License-Identifier: GPL-2.0-or-later
"""The Foolscap protocol, through two real Tubs: the same results as Tahoe's own server, and none before the bucket's.

The first half is run with Tahoe's FoolscapStorageServer over its StorageServer and with ours over a HeldServer. The
second half holds answers back, lets operations fail, and breaks connections.
"""
from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Callable

import pytest
import pytest_twisted
from allmydata.storage.immutable import ShareFile
from allmydata.storage.server import FoolscapStorageServer, StorageServer
from foolscap.api import Referenceable, Tub, flushEventualQueue
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.python.reflect import qual

from tahoe_s3.foolscap import S3FoolscapStorageServer
from tahoe_s3.s3errors import Unavailable
from tahoe_s3.server import S3StorageServer
from tahoe_s3.wire import UNAVAILABLE_TEXT

from .held_server import HeldServer
from .store.helpers import Place

SI = b"storage index 01"
RENEW, CANCEL, ENABLER = b"r" * 32, b"c" * 32, b"e" * 32
DATA = bytes(range(256)) * 8
S3_DOWN = Unavailable("the proxy said no", operation="PutObject", method="PUT", key="shares/zz/zzz/0", status=503)


class Pair:
    """A server's Tub and a client's, connected through 127.0.0.1."""

    def __init__(self, server: Any, referenceable: Any) -> None:
        self.server = server
        self.referenceable = referenceable
        self._server_tub = Tub()
        self._client_tub = Tub()
        self.remote: Any = None

    async def connect(self) -> None:
        for tub in (self._server_tub, self._client_tub):
            tub.startService()
        endpoint = self._server_tub.listenOn("tcp:0:interface=127.0.0.1")
        self._server_tub.setLocation(f"127.0.0.1:{endpoint.getPortnum()}")
        furl = self._server_tub.registerReference(self.referenceable)
        self.remote = await self._client_tub.getReference(furl)
        assert self.remote.getRemoteTubID() == self._server_tub.getTubID()

    async def disconnect(self) -> None:
        """The client goes away; returns when the server knows."""
        gone: Deferred[None] = Deferred()
        (broker,) = self._server_tub.brokers.values()
        broker._notifyOnConnectionLost(lambda: gone.callback(None))
        await self._client_tub.stopService()
        await gone
        await flushEventualQueue()

    async def close(self) -> None:
        if self._client_tub.running:
            await self._client_tub.stopService()
        await self._server_tub.stopService()
        await flushEventualQueue()

    async def call(self, name: str, *args: Any) -> Any:
        return await self.begin(name, *args)

    def begin(self, name: str, *args: Any) -> Deferred[Any]:
        d: Deferred[Any] = self.remote.callRemote(name, *args)
        return d

    async def allocate(self, numbers: set[int], size: int = len(DATA)) -> tuple[set[int], dict[int, Any]]:
        answer: tuple[set[int], dict[int, Any]] = await self.begin_allocation(numbers, size)
        return answer

    def begin_allocation(self, numbers: set[int], size: int = len(DATA)) -> Deferred[Any]:
        return self.begin("allocate_buckets", SI, RENEW, CANCEL, numbers, size, Referenceable())

    async def upload(self, number: int) -> None:
        _, writers = await self.allocate({number})
        await writers[number].callRemote("write", 0, DATA)
        await writers[number].callRemote("close")

    def renew_lease(self, renew_secret: bytes) -> Deferred[Any]:
        """A method without a place in RIStorageServer, so not callable from afar."""
        return maybeDeferred(self.referenceable.remote_renew_lease, SI, renew_secret)

    def stock(self) -> Any:
        """Tahoe's storage server, which is behind ours too."""
        return getattr(self.server, "stock", self.server)

    def only_writer(self) -> Any:
        """The one upload in progress, as the server hands it out."""
        (writer,) = self.stock()._bucket_writers.values()
        return self.server.writers[writer] if isinstance(self.server, HeldServer) else writer

    def server_shares(self) -> set[int]:
        return {number for number, _ in self.server.get_shares(SI)}

    async def shares(self) -> dict[int, Any]:
        shares: dict[int, Any] = await self.call("get_buckets", SI)
        return shares


def ours(folder: Path) -> tuple[Any, Any]:
    server = HeldServer(str(folder), reactor)
    return server, S3FoolscapStorageServer(server)


def tahoes(folder: Path) -> tuple[Any, Any]:
    server = StorageServer(str(folder), b"\x00" * 20, clock=reactor)
    return server, FoolscapStorageServer(server)


@pytest.fixture
def errors() -> Any:
    """What was logged as an error, or by tahoe-s3."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace", "").startswith("tahoe_s3") or event["log_level"] >= LogLevel.error:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest_twisted.async_yield_fixture(params=[tahoes, ours])
async def either(request: Any, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(*request.param(tmp_path / "storage"))
    await pair.connect()
    yield pair
    await pair.close()


@pytest_twisted.async_yield_fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(*ours(tmp_path / "storage"))
    await pair.connect()
    yield pair
    await pair.close()


async def failure_of(d: Deferred[Any]) -> tuple[str, str]:
    """Name of the type and text of a remote failure."""
    answers: list[tuple[str, str]] = []
    d.addErrback(lambda failure: answers.append((qual(failure.type), str(failure.value))))
    result = await d
    assert answers, f"no failure, but {result!r}"
    return answers[0]


async def until(condition: Callable[[], bool]) -> None:
    """Let the reactor run until something has happened on the other side."""
    for _ in range(2000):
        if condition():
            return
        await deferLater(reactor, 0.005)
    raise AssertionError("it did not happen")


async def pause() -> None:
    """Long enough for an answer that should not come to come."""
    await deferLater(reactor, 0.05)


# As Tahoe's own


@pytest_twisted.ensureDeferred
async def test_upload(either: Pair) -> None:
    already, writers = await either.allocate({0, 1})
    assert (already, set(writers)) == (set(), {0, 1})
    assert await writers[0].callRemote("write", 0, DATA[:1000]) is None
    assert await writers[0].callRemote("write", 1000, DATA[1000:]) is None
    assert await either.shares() == {}
    assert await writers[0].callRemote("close") is None
    assert await writers[1].callRemote("abort") is None
    already, writers = await either.allocate({0, 1})
    assert (already, set(writers)) == ({0}, {1})
    shares = await either.shares()
    assert set(shares) == {0}
    for offset, length in ((0, len(DATA)), (5, 10), (2040, 100), (99999, 5)):
        assert await shares[0].callRemote("read", offset, length) == DATA[offset : offset + length]
    assert await shares[0].callRemote("advise_corrupt_share", b"bit rot") is None
    assert either.referenceable._bucket_writer_disconnect_markers.keys() == {either.only_writer()}


@pytest_twisted.ensureDeferred
async def test_pipelined_upload(either: Pair) -> None:
    """Clients up to 1.18 send writes and close without waiting; a hole is zeros."""
    _, writers = await either.allocate({0})
    sent = [writers[0].callRemote("write", i * 100, DATA[i * 100 : i * 100 + 50]) for i in range(10)]
    sent.append(writers[0].callRemote("close"))
    assert await gatherResults(sent) == [None] * 11
    expected = b"".join(DATA[i * 100 : i * 100 + 50] + bytes(50) for i in range(10)).ljust(len(DATA), b"\0")
    shares = await either.shares()
    assert await shares[0].callRemote("read", 0, 9999) == expected


@pytest_twisted.ensureDeferred
async def test_refused_writes(either: Pair) -> None:
    _, writers = await either.allocate({0}, 10)
    await writers[0].callRemote("write", 0, b"abc")
    conflict = await failure_of(writers[0].callRemote("write", 1, b"xyz"))
    assert conflict[0] == "allmydata.interfaces.ConflictingWriteError"
    too_large = await failure_of(writers[0].callRemote("write", 8, b"xyz"))
    assert too_large[0] == "allmydata.interfaces.DataTooLargeError"
    assert await writers[0].callRemote("close") is None


@pytest_twisted.ensureDeferred
async def test_leases(either: Pair) -> None:
    assert await either.call("add_lease", SI, RENEW, CANCEL) is None
    missing = await failure_of(either.renew_lease(RENEW))
    assert missing == ("builtins.IndexError", "no such lease to renew")
    await either.upload(0)
    assert await either.call("add_lease", SI, b"R" * 32, b"C" * 32) is None
    assert await either.renew_lease(b"R" * 32) is None
    wrong = await failure_of(either.renew_lease(b"x" * 32))
    assert wrong == ("builtins.IndexError", "unable to renew non-existent lease")


@pytest_twisted.ensureDeferred
async def test_mutable(either: Pair) -> None:
    secrets = (ENABLER, RENEW, CANCEL)
    change = "slot_testv_and_readv_and_writev"
    vectors: dict[int, Any] = {0: ([(0, 1, b"eq", b"")], [(0, DATA)], None)}
    assert await either.call(change, SI, secrets, vectors, [(0, 10)]) == (True, {})
    assert await either.call(change, SI, secrets, vectors, [(0, 10)]) == (False, {0: [DATA[:10]]})
    refused = await failure_of(either.begin(change, SI, (b"w" * 32, RENEW, CANCEL), vectors, []))
    assert refused[0] == "allmydata.interfaces.BadWriteEnablerError"
    assert await either.call("slot_readv", SI, [], [(0, 5), (2000, 999)]) == {0: [DATA[:5], DATA[2000:]]}
    assert await either.call("slot_readv", SI, [4], [(0, 5)]) == {}
    assert await either.call("slot_readv", b"another si 01234", [], [(0, 5)]) == {}
    assert await either.call("advise_corrupt_share", b"mutable", SI, 0, b"bit rot") is None


@pytest_twisted.ensureDeferred
async def test_version(either: Pair) -> None:
    version = await either.call("get_version")
    assert b"http://allmydata.org/tahoe/protocols/storage/v1" in version


@pytest_twisted.ensureDeferred
async def test_upload_ends_with_its_connection(either: Pair) -> None:
    _, writers = await either.allocate({0, 1})
    await writers[0].callRemote("write", 0, DATA)
    await writers[1].callRemote("close")
    await either.disconnect()
    assert either.server_shares() == {1}
    assert either.referenceable._bucket_writer_disconnect_markers == {}
    assert either.stock()._bucket_writers == {}


# Over a bucket


@pytest_twisted.ensureDeferred
async def test_nothing_is_answered_early(pair: Pair) -> None:
    """Neither a close, nor a lease, nor a change is answered before the bucket has; and no share is seen."""
    gate = pair.server.gate
    gate.hold("allocate", "close", "add_lease", "rtw", "get_buckets", "write", "abort")

    async def held(name: str, d: Deferred[Any]) -> Any:
        await until(lambda: name in gate.waiting())
        await pause()
        assert not d.called
        gate.release(name)
        return await d

    _, writers = await held("allocate", pair.begin_allocation({0, 1}))
    assert await held("write", writers[0].callRemote("write", 0, DATA)) is None
    closing = writers[0].callRemote("close")
    await until(lambda: "close" in gate.waiting())
    assert await held("get_buckets", pair.begin("get_buckets", SI)) == {}
    assert await held("close", closing) is None
    assert await held("abort", writers[1].callRemote("abort")) is None
    assert set(await held("get_buckets", pair.begin("get_buckets", SI))) == {0}
    assert await held("add_lease", pair.begin("add_lease", SI, RENEW, CANCEL)) is None


@pytest_twisted.ensureDeferred
async def test_errors_of_the_bucket(pair: Pair, errors: list[Any]) -> None:
    """The client learns that the storage failed; the log learns what, in one line."""
    gate = pair.server.gate
    told = ("tahoe_s3.wire.StorageUnavailable", UNAVAILABLE_TEXT)
    for name, call in (
        ("allocate", ("allocate_buckets", SI, RENEW, CANCEL, {5}, 10, Referenceable())),
        ("add_lease", ("add_lease", SI, RENEW, CANCEL)),
        ("get_buckets", ("get_buckets", SI)),
        ("slot_readv", ("slot_readv", SI, [], [])),
        ("rtw", ("slot_testv_and_readv_and_writev", SI, (ENABLER, RENEW, CANCEL), {}, [])),
        ("advise", ("advise_corrupt_share", b"mutable", SI, 0, b"bit rot")),
    ):
        gate.fail(name, S3_DOWN)
        assert await failure_of(pair.begin(*call)) == told, name
        assert str(formatEvent(errors.pop())).endswith(f" failed: {S3_DOWN}")
    gate.fail("renew_lease", S3_DOWN)
    assert await failure_of(pair.renew_lease(RENEW)) == told
    errors.pop()
    _, writers = await pair.allocate({0, 1, 2})
    for number, name in enumerate(("write", "abort", "close")):
        gate.fail(name, S3_DOWN)
        args = (0, DATA) if name == "write" else ()
        assert await failure_of(writers[number].callRemote(name, *args)) == told
        errors.pop()
    assert await pair.shares() == {}
    await pair.upload(3)
    reader = (await pair.shares())[3]
    gate.fail("read", S3_DOWN)
    assert await failure_of(reader.callRemote("read", 0, 5)) == told
    errors.pop()
    assert errors == []


@pytest_twisted.ensureDeferred
async def test_close_after_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the local disk refused would leave zeros: the pipelined close fails, and nothing is stored."""
    place = Place(tmp_path / "here")
    server = S3StorageServer(str(tmp_path / "here"), b"\x00" * 20, clock=reactor, backend=place.store)
    pair = Pair(server, S3FoolscapStorageServer(server))
    await pair.connect()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    try:
        _, writers = await pair.allocate({0})
        monkeypatch.setattr(ShareFile, "write_share_data", refuse)
        sent = [writers[0].callRemote("write", 0, DATA), writers[0].callRemote("close")]
        for d in [*sent, writers[0].callRemote("close")]:
            assert (await failure_of(d))[0] == "builtins.OSError"
        assert await pair.shares() == {} and not place.client.objects
        assert server._bucket_writers == {}
    finally:
        await pair.close()
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_client_that_is_gone_before_its_writers_are_made(pair: Pair) -> None:
    pair.server.gate.hold("allocate")
    pair.begin_allocation({0, 1}).addErrback(lambda _: None)
    await until(lambda: "allocate" in pair.server.gate.waiting())
    await pair.disconnect()
    pair.server.gate.release("allocate")
    await flushEventualQueue()
    assert pair.server.gate.calls.count("disconnected") == 2
    assert pair.stock()._bucket_writers == {}
    assert pair.referenceable._bucket_writer_disconnect_markers == {}


@pytest_twisted.ensureDeferred
async def test_close_survives_its_client(pair: Pair, errors: list[Any]) -> None:
    _, writers = await pair.allocate({0})
    await writers[0].callRemote("write", 0, DATA)
    pair.server.gate.hold("close", "disconnected")
    writers[0].callRemote("close").addErrback(lambda _: None)
    await until(lambda: "close" in pair.server.gate.waiting())
    await pair.disconnect()
    pair.server.gate.release("close")
    await flushEventualQueue()
    assert pair.server_shares() == {0}
    assert (errors, pair.server.gate.cancelled) == ([], [])


@pytest_twisted.ensureDeferred
async def test_failed_end_of_a_client_that_is_gone(pair: Pair, errors: list[Any]) -> None:
    """Nobody waits for it, so it is logged, and is no unhandled error."""
    await pair.allocate({0})
    pair.server.gate.fail("disconnected", S3_DOWN)
    await pair.disconnect()
    gc.collect()
    assert [formatEvent(e) for e in errors] == [
        f"ending the upload of a client that is gone failed: {S3_DOWN}"
    ]


@pytest_twisted.ensureDeferred
async def test_writer_that_ended_while_it_was_made(pair: Pair) -> None:
    """A server that stops meanwhile has closed the writer; no marker for it stays behind."""
    gate = pair.server.gate
    answer = gate.answer

    def and_stop(name: str, work: Callable[[], Any]) -> Deferred[Any]:
        d: Deferred[Any] = answer(name, work)
        if name == "allocate":
            for writer in list(pair.server.writers.values()):
                writer.stock.abort()
        return d

    gate.answer = and_stop
    await pair.allocate({0})
    assert pair.referenceable._bucket_writer_disconnect_markers == {}
