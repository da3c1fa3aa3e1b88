# SPDX-License-Identifier: GPL-2.0-or-later
"""One storage server spoken to over both protocols: Foolscap through real Tubs, HTTP through raw requests.

    async with TwoWires(server) as wires:
        pending = [wire.allocate(index, {0}, 500) for wire in wires.both]
        answers = [await one() for one in pending]

Each call is begun at once; awaiting what it returns gives the answer. What a server refuses or fails is Refused with
the name or status that the client was told. Owner: one test, whose monkeypatch keeps the HTTP side off threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable
from typing import Any, Callable

import pytest
from allmydata.storage.common import si_b2a
from allmydata.storage.http_common import Secrets
from allmydata.util import cputhreadpool
from allmydata.util.cbor import dumps
from cbor2 import loads
from foolscap.api import Referenceable
from twisted.internet import task
from twisted.internet.task import Clock, Cooperator
from twisted.python.reflect import qual

from tahoe_s3.foolscap import S3FoolscapStorageServer
from tahoe_s3.http import S3HTTPServer

from .raw_http import SWISSNUM, Exchange, RawClient
from .test_foolscap_wire import Pair

RENEW, CANCEL, ENABLER = b"r" * 32, b"c" * 32, b"w" * 32
LEASES = {Secrets.LEASE_RENEW: RENEW, Secrets.LEASE_CANCEL: CANCEL}
Answer = Callable[[], Awaitable[Any]]
Vectors = dict[int, tuple[list[Any], list[tuple[int, bytes]], Any]]


class Refused(Exception):
    """What the server answered in place of a result: the name of an exception, or an HTTP status."""


def _taken(deferred: Any) -> Answer:
    """The answer of a remote call, whose failure nobody else has to look at."""
    deferred.addErrback(lambda failure: Refused(qual(failure.type)))

    async def answer() -> Any:
        result = await deferred
        if isinstance(result, Refused):
            raise result
        return result

    return answer


class OverFoolscap:
    """A client that keeps its connection until disconnect()."""

    name = "foolscap"

    def __init__(self, server: Any) -> None:
        self._server = server
        self._pair: Any = None

    async def connect(self) -> None:
        self._pair = Pair(self._server, S3FoolscapStorageServer(self._server))
        await self._pair.connect()

    async def disconnect(self) -> None:
        """Its uploads end with it; the next call is made on a connection of its own."""
        await self._pair.disconnect()
        await self._pair.close()
        await self.connect()

    async def close(self) -> None:
        await self._pair.close()

    def allocate(self, index: bytes, shnums: set[int], size: int) -> Answer:
        return _taken(self._pair.begin("allocate_buckets", index, RENEW, CANCEL, shnums, size, Referenceable()))

    def write(self, upload: Any, start: int, data: bytes) -> Answer:
        return _taken(upload.callRemote("write", start, data))

    def close_share(self, upload: Any) -> Answer:
        return _taken(upload.callRemote("close"))

    def abort(self, upload: Any) -> Answer:
        return _taken(upload.callRemote("abort"))

    def add_lease(self, index: bytes, renew: bytes) -> Answer:
        return _taken(self._pair.begin("add_lease", index, renew, CANCEL))

    def change(self, index: bytes, vectors: Vectors) -> Answer:
        call = "slot_testv_and_readv_and_writev"
        return _taken(self._pair.begin(call, index, (ENABLER, RENEW, CANCEL), vectors, []))

    async def version(self) -> Any:
        return await _taken(self._pair.begin("get_version"))()


class OverHTTP:
    """A client with a connection for each request; an upload is (path, secret)."""

    name = "http"

    def __init__(self, server: Any, clock: Clock) -> None:
        self._client = RawClient(S3HTTPServer(clock, server, SWISSNUM).get_resource(), clock)
        self._serial = itertools.count()

    def _taken(self, exchange: Exchange, *statuses: int) -> Answer:
        async def answer() -> Any:
            found = exchange.answer()
            if found.status not in statuses:
                raise Refused(str(found.status))
            return loads(found.body) if found.body else None

        return answer

    def allocate(self, index: bytes, shnums: set[int], size: int) -> Answer:
        secret = {Secrets.UPLOAD: b"upload %d" % next(self._serial)}
        path = f"/storage/v1/immutable/{si_b2a(index).decode('ascii')}"
        body = dumps({"share-numbers": shnums, "allocated-size": size})
        answer = self._taken(self._client.begin("POST", path, body=body, secrets={**LEASES, **secret}), 200)

        async def with_uploads() -> tuple[set[int], dict[int, Any]]:
            found = await answer()
            return set(found["already-have"]), {n: (f"{path}/{n}", secret) for n in found["allocated"]}

        return with_uploads

    def write(self, upload: Any, start: int, data: bytes) -> Answer:
        path, secret = upload
        headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/*"}
        return self._taken(self._client.begin("PATCH", path, body=data, headers=headers, secrets=secret), 200, 201)

    def close_share(self, upload: Any) -> Answer:
        """The last write has closed it."""

        async def answer() -> None:
            return None

        return answer

    def abort(self, upload: Any) -> Answer:
        path, secret = upload
        return self._taken(self._client.begin("PUT", path + "/abort", secrets=secret), 200)

    def add_lease(self, index: bytes, renew: bytes) -> Answer:
        secrets = {**LEASES, Secrets.LEASE_RENEW: renew}
        path = f"/storage/v1/lease/{si_b2a(index).decode('ascii')}"
        return self._taken(self._client.begin("PUT", path, secrets=secrets), 204)

    def change(self, index: bytes, vectors: Vectors) -> Answer:
        body = {
            "test-write-vectors": {
                shnum: {"test": [], "write": [{"offset": o, "data": d} for o, d in writes], "new-length": length}
                for shnum, (_, writes, length) in vectors.items()
            },
            "read-vector": [],
        }
        path = f"/storage/v1/mutable/{si_b2a(index).decode('ascii')}/read-test-write"
        secrets = {Secrets.WRITE_ENABLER: ENABLER, **LEASES}
        return self._taken(self._client.begin("POST", path, body=dumps(body), secrets=secrets), 200)

    async def version(self) -> Any:
        return await self._taken(self._client.begin("GET", "/storage/v1/version"), 200)()


class TwoWires:
    """Both clients of one server."""

    def __init__(self, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        cooperator = Cooperator(scheduler=lambda call: clock.callLater(0.00001, call))
        monkeypatch.setattr(task, "_theCooperator", cooperator)
        monkeypatch.setattr(cputhreadpool, "_DISABLED", True)
        self.foolscap = OverFoolscap(server)
        self.http = OverHTTP(server, clock)
        self.both: tuple[Any, Any] = (self.foolscap, self.http)

    async def __aenter__(self) -> TwoWires:
        await self.foolscap.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.foolscap.close()
