# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversations over the HTTP storage protocol, with Tahoe's server or ours, for the tests of the wire.

Owner: one test. Time is a Clock; nothing runs in threads.
"""
from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from allmydata.storage.common import si_b2a
from allmydata.storage.http_common import Secrets
from allmydata.storage.http_server import HTTPServer
from allmydata.storage.server import StorageServer
from allmydata.util import cputhreadpool
from allmydata.util.cbor import dumps
from twisted.internet import task
from twisted.internet.task import Clock, Cooperator
from twisted.trial.unittest import SynchronousTestCase

from tahoe_s3.http import S3HTTPServer
from tahoe_s3.server import S3StorageServer

from .held_server import HeldServer
from .raw_http import SWISSNUM, Answer, RawClient
from .store.helpers import Place

SI = b"storage index 01"
SI_TEXT = si_b2a(SI).decode("ascii")
IMMUTABLE = f"/storage/v1/immutable/{SI_TEXT}"
MUTABLE = f"/storage/v1/mutable/{SI_TEXT}"
LEASE = f"/storage/v1/lease/{SI_TEXT}"
LEASES = {Secrets.LEASE_RENEW: b"r" * 32, Secrets.LEASE_CANCEL: b"c" * 32}
UPLOAD = {Secrets.UPLOAD: b"upload secret"}
ENABLER = {Secrets.WRITE_ENABLER: b"e" * 32, **LEASES}
DATA = bytes(range(256)) * 8


class Talk:
    """A client's side of a conversation; remembers every answer."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.answers: list[tuple[str, Answer]] = []

    def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        answer = self.client.ask(method, path, **kwargs)
        for header in ("date", "server"):
            answer.headers.pop(header, None)
        self.answers.append((f"{method} {path} {kwargs.get('headers')}", answer))
        return answer

    def allocate(self, numbers: set[int], size: int, **kwargs: Any) -> Answer:
        body = dumps({"share-numbers": numbers, "allocated-size": size})
        return self.ask("POST", IMMUTABLE, body=body, secrets={**LEASES, **UPLOAD}, **kwargs)

    def patch(self, number: int, start: int, data: bytes, **kwargs: Any) -> Answer:
        kwargs.setdefault("secrets", UPLOAD)
        headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/*"}
        return self.ask("PATCH", f"{IMMUTABLE}/{number}", body=data, headers=headers, **kwargs)

    def get(self, path: str, span: str | None = None, method: str = "GET") -> Answer:
        return self.ask(method, path, headers={"Range": span} if span is not None else None)

    def change(self, vectors: dict[int, Any], reads: list[Any] | None = None, **kwargs: Any) -> Answer:
        """A read-test-write. `vectors`: number -> (tests, writes, new length)."""
        body = dumps(
            {
                "test-write-vectors": {
                    n: {
                        "test": [{"offset": o, "size": s, "specimen": d} for o, s, d in tests],
                        "write": [{"offset": o, "data": d} for o, d in writes],
                        "new-length": length,
                    }
                    for n, (tests, writes, length) in vectors.items()
                },
                "read-vector": [{"offset": o, "size": s} for o, s in reads or []],
            }
        )
        kwargs.setdefault("secrets", ENABLER)
        return self.ask("POST", MUTABLE + "/read-test-write", body=body, **kwargs)

    def upload(self, number: int, data: bytes) -> None:
        self.allocate({number}, len(data))
        self.patch(number, 0, data)


class HTTPTestCase(SynchronousTestCase):
    """Time is a Clock, for Twisted's pull producers too, and nothing runs in threads."""

    def setUp(self) -> None:
        self.clock = Clock()
        cooperator = Cooperator(scheduler=lambda f: self.clock.callLater(0.00001, f))
        self.patch(task, "_theCooperator", cooperator)
        self.patch(cputhreadpool, "_DISABLED", True)
        self.patch(StorageServer, "get_available_space", lambda _: 10**12)

    def folder(self) -> str:
        folder = mkdtemp()
        self.addCleanup(rmtree, folder)
        return folder

    def ours(self) -> tuple[HeldServer, RawClient]:
        server = HeldServer(self.folder(), self.clock)
        return server, RawClient(S3HTTPServer(self.clock, server, SWISSNUM).get_resource(), self.clock)

    def ours_on_a_bucket(self) -> RawClient:
        """S3HTTPServer over S3StorageServer, with a bucket in memory."""
        folder = Path(self.folder())
        place = Place(folder)
        server = S3StorageServer(str(folder), b"\x00" * 20, clock=self.clock, backend=place.store)
        self.addCleanup(server.stopService)
        for name in ("get_available_space", "get_maximum_share_size"):
            self.patch(S3StorageServer, name, lambda _: 10**12)
        return RawClient(S3HTTPServer(self.clock, server, SWISSNUM).get_resource(), self.clock)

    def tahoes(self) -> RawClient:
        server = StorageServer(self.folder(), b"\x00" * 20, clock=self.clock)
        return RawClient(HTTPServer(self.clock, server, SWISSNUM).get_resource(), self.clock)
