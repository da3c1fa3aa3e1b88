# SPDX-License-Identifier: GPL-2.0-or-later
"""One storage server, Tahoe's or ours, behind the same calls: straight, through the Foolscap wrappers, or through HTTP.

Each call gives an Outcome, ("answer", value) or ("error", name), which is equal for both servers where they agree.
Uploads are named by the handles that allocate() adds to `writers`.

Owner: Pair. `settle` waits for a Deferred and gives its result or raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

from allmydata.storage.common import si_b2a
from allmydata.storage.http_common import Secrets
from allmydata.storage.http_server import HTTPServer
from allmydata.storage.server import FoolscapStorageServer
from allmydata.util.cbor import dumps
from cbor2 import loads
from twisted.internet.defer import Deferred

from tahoe_s3.foolscap import S3FoolscapStorageServer
from tahoe_s3.http import S3HTTPServer
from tahoe_s3.server import S3StorageServer

from ..raw_http import SWISSNUM, RawClient

Outcome = tuple[str, Any]
Settle = Callable[[Any], Any]
Vectors = dict[int, tuple[list[Any], list[Any], Any]]

#: Renew and cancel secrets by number; the write enablers by whether it is the right one.
RENEWS = [bytes([65 + number]) * 32 for number in range(5)]
CANCELS = [bytes([97 + number]) * 32 for number in range(5)]
ENABLERS = {True: b"w" * 32, False: b"x" * 32}


class Direct:
    """The server's own methods."""

    #: What only some protocols have.
    has_close = True
    has_renew = True
    has_choice_of_leases = True

    def __init__(self, server: Any, settle: Settle) -> None:
        self.server = server
        self.settle = settle
        self.writers: list[Any] = []

    def outcome(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
        try:
            value = call(*arguments, **options)
            return "answer", self.settle(value) if isinstance(value, Deferred) else value
        except Exception as error:
            return "error", type(error).__name__

    def _allocate(
        self, si: bytes, secret: int, shnums: Iterable[int], size: int, renew: bool
    ) -> tuple[Iterable[int], dict[int, Any]]:
        arguments = (si, RENEWS[secret], CANCELS[secret], shnums, size)
        answer: tuple[Iterable[int], dict[int, Any]] = self.wait(
            self.server.allocate_buckets(*arguments, renew_leases=renew)
        )
        return answer

    def wait(self, value: Any) -> Any:
        return self.settle(value) if isinstance(value, Deferred) else value

    def allocate(self, si: bytes, secret: int, shnums: Iterable[int], size: int, renew: bool) -> Outcome:
        """Fires with (numbers that are here, numbers that may be written)."""
        kind, value = self.outcome(self._allocate, si, secret, shnums, size, renew)
        if kind == "answer":
            got, writers = value
            self.writers += [writers[shnum] for shnum in sorted(writers)]
            value = (set(got), set(writers))
        return kind, value

    def write(self, handle: int, offset: int, data: bytes) -> Outcome:
        return self.outcome(self.writers[handle].write, offset, data)

    def close(self, handle: int) -> Outcome:
        return self.outcome(self.writers[handle].close)

    def abort(self, handle: int) -> Outcome:
        return self.outcome(self.writers[handle].abort)

    def disconnect(self, handle: int) -> Outcome:
        return self.outcome(self.writers[handle].disconnected)

    def list_immutable(self, si: bytes) -> Outcome:
        kind, value = self.outcome(self.server.get_buckets, si)
        return kind, set(value) if kind == "answer" else value

    def read(self, si: bytes, shnum: int, offset: int, length: int) -> Outcome:
        def read() -> Any:
            reader = self.wait(self.server.get_buckets(si))[shnum]
            return self.wait(reader.read(offset, length)), self.wait(reader.get_length())

        return self.outcome(read)

    def list_mutable(self, si: bytes) -> Outcome:
        return self.outcome(self.server.enumerate_mutable_shares, si)

    def mutable_length(self, si: bytes, shnum: int) -> Outcome:
        return self.outcome(self.server.get_mutable_share_length, si, shnum)

    def readv(self, si: bytes, shnums: list[int], readv: list[tuple[int, int]]) -> Outcome:
        return self.outcome(self.server.slot_readv, si, shnums, readv)

    def read_test_write(
        self, si: bytes, secret: int, right: bool, vectors: Vectors, readv: list[tuple[int, int]], renew: bool
    ) -> Outcome:
        secrets = (ENABLERS[right], RENEWS[secret], CANCELS[secret])
        return self.outcome(
            self.server.slot_testv_and_readv_and_writev, si, secrets, vectors, readv, renew_leases=renew
        )

    def add_lease(self, si: bytes, secret: int) -> Outcome:
        return self.outcome(self.server.add_lease, si, RENEWS[secret], CANCELS[secret])

    def renew_lease(self, si: bytes, secret: int) -> Outcome:
        return self.outcome(self.server.renew_lease, si, RENEWS[secret])

    def advise(self, si: bytes, shnum: int, kind: str, reason: str) -> Outcome:
        return self.outcome(self.server.advise_corrupt_share, kind.encode(), si, shnum, reason.encode())


class _Canary:
    """The client's end of a Foolscap connection, as an allocation gets it."""

    def __init__(self) -> None:
        self._watchers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._serial = 0

    def notifyOnDisconnect(self, callback: Callable[..., Any], *arguments: Any) -> int:
        self._serial += 1
        self._watchers[self._serial] = (callback, arguments)
        return self._serial

    def dontNotifyOnDisconnect(self, marker: int) -> None:
        # As in Foolscap, nothing where the connection has ended.
        self._watchers.pop(marker, None)

    def break_off(self) -> None:
        for marker, (callback, arguments) in list(self._watchers.items()):
            self._watchers.pop(marker, None)
            callback(*arguments)


class Foolscap(Direct):
    """The remote_ methods of the objects that a Tub would publish."""

    has_choice_of_leases = False

    def __init__(self, server: Any, settle: Settle) -> None:
        super().__init__(server, settle)
        wrapper = S3FoolscapStorageServer if isinstance(server, S3StorageServer) else FoolscapStorageServer
        self.remote = wrapper(server)
        self.canaries: dict[Any, _Canary] = {}  # by writer

    def _allocate(
        self, si: bytes, secret: int, shnums: Iterable[int], size: int, renew: bool
    ) -> tuple[Iterable[int], dict[int, Any]]:
        canary = _Canary()
        arguments = (si, RENEWS[secret], CANCELS[secret], shnums, size, canary)
        got, writers = self.wait(self.remote.remote_allocate_buckets(*arguments))
        self.canaries.update((writer, canary) for writer in writers.values())
        return got, writers

    def write(self, handle: int, offset: int, data: bytes) -> Outcome:
        return self.outcome(self.writers[handle].remote_write, offset, data)

    def close(self, handle: int) -> Outcome:
        return self.outcome(self.writers[handle].remote_close)

    def abort(self, handle: int) -> Outcome:
        return self.outcome(self.writers[handle].remote_abort)

    def disconnect(self, handle: int) -> Outcome:
        """Ends the connection of this upload, and with it the others of the same allocation."""
        return self.outcome(self.canaries[self.writers[handle]].break_off)

    def list_immutable(self, si: bytes) -> Outcome:
        kind, value = self.outcome(self.remote.remote_get_buckets, si)
        return kind, set(value) if kind == "answer" else value

    def read(self, si: bytes, shnum: int, offset: int, length: int) -> Outcome:
        def read() -> Any:
            reader = self.wait(self.remote.remote_get_buckets(si))[shnum]
            return self.wait(reader.remote_read(offset, length))

        return self.outcome(read)

    def readv(self, si: bytes, shnums: list[int], readv: list[tuple[int, int]]) -> Outcome:
        return self.outcome(self.remote.remote_slot_readv, si, shnums, readv)

    def read_test_write(
        self, si: bytes, secret: int, right: bool, vectors: Vectors, readv: list[tuple[int, int]], renew: bool
    ) -> Outcome:
        secrets = (ENABLERS[right], RENEWS[secret], CANCELS[secret])
        return self.outcome(self.remote.remote_slot_testv_and_readv_and_writev, si, secrets, vectors, readv)

    def add_lease(self, si: bytes, secret: int) -> Outcome:
        return self.outcome(self.remote.remote_add_lease, si, RENEWS[secret], CANCELS[secret])

    def renew_lease(self, si: bytes, secret: int) -> Outcome:
        return self.outcome(self.remote.remote_renew_lease, si, RENEWS[secret])

    def advise(self, si: bytes, shnum: int, kind: str, reason: str) -> Outcome:
        return self.outcome(self.remote.remote_advise_corrupt_share, kind.encode(), si, shnum, reason.encode())


class Http(Direct):
    """Requests and answers, byte for byte. An answer is (status, headers, body); one of 400 and more is an error."""

    has_close = False
    has_renew = False
    has_choice_of_leases = False

    def __init__(self, server: Any, settle: Settle) -> None:
        super().__init__(server, settle)
        wrapper = S3HTTPServer if isinstance(server, S3StorageServer) else HTTPServer
        clock = server._clock
        self.client = RawClient(wrapper(clock, server, SWISSNUM).get_resource(), clock)
        # Its connections are never closed, and would fill the clock.
        self.client._site.timeOut = None
        self.allocations = 0

    def ask(self, method: str, path: str, **options: Any) -> Outcome:
        answer = self.client.ask(method, path, **options)
        for header in ("date", "server"):
            answer.headers.pop(header, None)
        is_cbor = answer.headers.get("content-type") == ["application/cbor"]
        # A set has no order.
        body = loads(answer.body) if is_cbor else answer.body
        return "answer" if answer.status < 400 else "error", (answer.status, answer.headers, body, answer.complete)

    @staticmethod
    def path(kind: str, si: bytes) -> str:
        return f"/storage/v1/{kind}/{si_b2a(si).decode('ascii')}"

    @staticmethod
    def leases(secret: int) -> dict[Secrets, bytes]:
        return {Secrets.LEASE_RENEW: RENEWS[secret], Secrets.LEASE_CANCEL: CANCELS[secret]}

    def allocate(self, si: bytes, secret: int, shnums: Iterable[int], size: int, renew: bool) -> Outcome:
        self.allocations += 1
        upload = {Secrets.UPLOAD: b"upload %d" % self.allocations}
        path = self.path("immutable", si)
        kind, answer = self.ask(
            "POST", path, secrets={**self.leases(secret), **upload},
            body=dumps({"share-numbers": set(shnums), "allocated-size": size}),
        )  # fmt: skip
        if kind == "error":
            return kind, answer
        found = answer[2]
        self.writers += [(f"{path}/{shnum}", upload) for shnum in sorted(found["allocated"])]
        return kind, (found["already-have"], found["allocated"])

    def write(self, handle: int, offset: int, data: bytes) -> Outcome:
        path, upload = self.writers[handle]
        headers = {"Content-Range": f"bytes {offset}-{offset + len(data) - 1}/*"}
        return self.ask("PATCH", path, body=data, headers=headers, secrets=upload)

    def abort(self, handle: int) -> Outcome:
        path, upload = self.writers[handle]
        return self.ask("PUT", path + "/abort", secrets=upload)

    def list_immutable(self, si: bytes) -> Outcome:
        return self.ask("GET", self.path("immutable", si) + "/shares")

    def read(self, si: bytes, shnum: int, offset: int, length: int) -> Outcome:
        span = {"Range": f"bytes={offset}-{offset + length - 1}"}
        return self.ask("GET", f"{self.path('immutable', si)}/{shnum}", headers=span)

    def list_mutable(self, si: bytes) -> Outcome:
        return self.ask("GET", self.path("mutable", si) + "/shares")

    def readv(self, si: bytes, shnums: list[int], readv: list[tuple[int, int]]) -> Outcome:
        """HTTP reads one range of one share: the first of both."""
        (offset, length) = readv[0] if readv else (0, 10)
        span = {"Range": f"bytes={offset}-{offset + length - 1}"}
        return self.ask("GET", f"{self.path('mutable', si)}/{shnums[0] if shnums else 0}", headers=span)

    def read_test_write(
        self, si: bytes, secret: int, right: bool, vectors: Vectors, readv: list[tuple[int, int]], renew: bool
    ) -> Outcome:
        body = {
            "test-write-vectors": {
                shnum: {
                    "test": [{"offset": o, "size": n, "specimen": data} for o, n, _, data in tests],
                    "write": [{"offset": o, "data": data} for o, data in writes],
                    "new-length": length,
                }
                for shnum, (tests, writes, length) in vectors.items()
            },
            "read-vector": [{"offset": o, "size": n} for o, n in readv],
        }
        secrets = {**self.leases(secret), Secrets.WRITE_ENABLER: ENABLERS[right]}
        return self.ask("POST", self.path("mutable", si) + "/read-test-write", body=dumps(body), secrets=secrets)

    def add_lease(self, si: bytes, secret: int) -> Outcome:
        return self.ask("PUT", self.path("lease", si), secrets=self.leases(secret))

    def advise(self, si: bytes, shnum: int, kind: str, reason: str) -> Outcome:
        return self.ask("POST", f"{self.path(kind, si)}/{shnum}/corrupt", body=dumps({"reason": reason}))


PROTOCOLS: dict[str, type[Direct]] = {"direct": Direct, "foolscap": Foolscap, "http": Http}
