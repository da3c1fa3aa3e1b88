# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw requests to a web resource without a network: the test sees the bytes, pauses the transport, breaks it off.

Owner: one test. Time is a Clock that the test moves; Twisted's pull producers run on it too.
"""
from __future__ import annotations

from base64 import b64encode
from typing import Any, NamedTuple

from allmydata.storage.http_common import Secrets
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site

SWISSNUM = b"swiss number of a test"


class Answer(NamedTuple):
    """What a client makes of an answer. `complete` is False when the body breaks off."""

    status: int
    headers: dict[str, list[str]]
    body: bytes
    complete: bool


class Transport(StringTransport):
    """Knows whether it was aborted, and, like a real one, tells its protocol of that later."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, site: Site, clock: Clock, request: bytes, *, head: bool) -> None:
        self._clock = clock
        self._head = head
        self.transport = Transport()
        self.channel: Any = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        self.channel.dataReceived(request)
        self.run()

    def run(self) -> None:
        """Let things happen that were put off, but no second pass."""
        for _ in range(100):
            self._clock.advance(0.0001)

    def answered(self) -> bool:
        return b"\r\n\r\n" in self.transport.value()

    def answer(self) -> Answer:
        self.run()
        raw = self.transport.value()
        assert b"\r\n\r\n" in raw, f"no answer, only {raw!r}"
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
        status = int(lines[0].split(" ")[1])
        if self._head or status in (204, 304):
            return Answer(status, headers, rest, True)
        if headers.get("transfer-encoding") == ["chunked"]:
            body, complete = _dechunk(rest)
            return Answer(status, headers, body, complete)
        length = int(headers["content-length"][0])
        return Answer(status, headers, rest, len(rest) == length)

    def pause(self) -> None:
        """The client does not read."""
        self.transport.producer.pauseProducing()

    def resume(self) -> None:
        self.transport.producer.resumeProducing()
        self.run()

    def hang_up(self) -> None:
        """The connection breaks."""
        producer = self.transport.producer
        if producer is not None:
            producer.stopProducing()
        self.channel.connectionLost(Failure(ConnectionLost()))
        self.run()


def _dechunk(raw: bytes) -> tuple[bytes, bool]:
    body = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(body), True
        body.append(raw[:length])
        raw = raw[length + 2 :]
    return b"".join(body), False


class RawClient:
    """Sends requests to a resource. `secrets` of a request are sent as X-Tahoe-Authorization headers."""

    def __init__(self, resource: Any, clock: Clock) -> None:
        self._clock = clock
        self._site = Site(resource, reactor=clock)
        self._site.doStart()

    def begin(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        secrets: dict[Secrets, bytes] | None = None,
        swissnum: bytes | None = SWISSNUM,
    ) -> Exchange:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        if swissnum is not None:
            lines.append("Authorization: Tahoe-LAFS " + b64encode(swissnum).decode("ascii"))
        for name, secret in (secrets or {}).items():
            lines.append(f"X-Tahoe-Authorization: {name.value} {b64encode(secret).decode('ascii')}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        request = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body
        return Exchange(self._site, self._clock, request, head=method == "HEAD")

    def ask(self, method: str, path: str, **kwargs: Any) -> Answer:
        return self.begin(method, path, **kwargs).answer()
