# SPDX-License-Identifier: GPL-2.0-or-later
"""An S3 server for tests, on the test's reactor: strict about signatures, counting, and as unpleasant as
asked for.

    server = S3Server(reactor, bucket="b", secrets={"AK": "SK"})
    server.start(); ...; await server.stop()

It checks every signature independently (sigcheck.py), keeps one bucket in memory (s3model.py), logs every
request (`server.log`, `server.count()`), and does what rules say: fail(), hold(), drop(). Rules are tried
in the order they were made, each for its operation (S3's name of it, or None), its key (a substring, or
None) and what else a test asks of it (`where`), `times` times. Owner: the test; thread: the reactor's
only. Limits: memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, unquote

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from . import s3answers
from .s3answers import Answer, Call
from .s3model import Bucket
from .sigcheck import Denied, verify


@dataclass(frozen=True)
class Seen:
    """One request as it came; header names are lower-case, in the order received."""

    operation: str
    key: str
    method: str
    uri: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int
    at_s: float

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.uri.partition("?")[2]))


class Gate:
    """Holds back the requests that met a hold() rule until release().

    `reached` fires with the first of them; `held` lists those waiting. release() lets them, and later ones,
    go on.
    """

    def __init__(self) -> None:
        self.reached: Deferred[Seen] = Deferred()
        self.held: list[Seen] = []
        self.open = False
        self._waiting: list[Deferred[None]] = []

    def _arrive(self, seen: Seen) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self.held.append(seen)
        self._waiting.append(waiter)
        if not self.reached.called:
            self.reached.callback(seen)
        return waiter

    async def passage(self, seen: Seen) -> None:
        if not self.open:
            await self._arrive(seen)

    def release(self) -> None:
        self.open = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)


@dataclass
class Rule:
    """What happens to matching requests: `error` is answered, or the connection dropped, or `gate` waited
    at.
    """

    operation: str | None
    key: str | None
    times: int | None
    applied: bool = False
    error: Denied | None = None
    gate: Gate | None = None
    drop: bool = False
    body_limit_bytes: int | None = None
    where: Callable[[Seen], bool] | None = None
    met: int = 0

    def matches(self, seen: Seen) -> bool:
        if self.times is not None and self.met >= self.times:
            return False
        if self.operation not in (None, seen.operation) or (self.key is not None and self.key not in seen.key):
            return False
        return self.where is None or self.where(seen)


@dataclass
class Settings:
    """How this service behaves; tests change them at any time."""

    region: str | None = "us-east-1"
    token: str | None = None
    allow_unsigned: bool = False
    page_size: int = 1000
    versioning: str = ""
    object_lock: bool = False
    list_v2: bool = True
    multi_delete: bool = True
    conditional_writes: bool = True
    escape_slash: bool = False
    delete_errors: dict[str, str] = field(default_factory=dict)


class S3Server:
    """One bucket behind HTTP on 127.0.0.1. `wall_s` is the server's clock, which tests may set wrong."""

    def __init__(
        self,
        reactor: Any,
        *,
        bucket: str = "bucket",
        secrets: Mapping[str, str] | None = None,
        wall_s: Callable[[], float] = time.time,
        min_part_bytes: int = 5 * 2**20,
    ) -> None:
        self.reactor = reactor
        self.bucket_name = bucket
        self.secrets = dict(secrets or {"AKIDTESTTEST": "secret/of+the=test"})
        self.wall_s = wall_s
        self.bucket = Bucket(min_part_bytes=min_part_bytes)
        self.settings = Settings()
        self.log: list[Seen] = []
        self.refused: list[Denied] = []
        self.rules: list[Rule] = []
        self._port: Any = None
        self._scheme = "http"
        self._site: Any = None
        self._open: set[Any] = set()

    def start(self, port: int = 0, *, tls: Any = None) -> str:
        """Listens, on `port` or any free one, with `tls` (authority.py) behind TLS; returns the URL."""
        self._site = Site(_Root(self), timeout=60)
        self._scheme = "http" if tls is None else "https"
        if tls is None:
            self._port = self.reactor.listenTCP(port, self._site, interface="127.0.0.1")
        else:
            self._port = self.reactor.listenSSL(port, self._site, tls, interface="127.0.0.1")
        return self.url

    @property
    def port(self) -> int:
        number: int = self._port.getHost().port
        return number

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Opens all gates, drops every connection and stops listening."""
        for rule in self.rules:
            if rule.gate is not None:
                rule.gate.release()
        if self._port is not None:
            port, self._port = self._port, None
            await port.stopListening()
        for channel in list(self._open):
            # Behind TLS one that has ended cannot be ended again: the socket below it tells.
            if getattr(channel, "transport", channel).connected:
                channel.abortConnection()

    def count(self) -> dict[str, int]:
        """Requests by operation since the start or the last forget()."""
        return dict(Counter(seen.operation for seen in self.log))

    def forget(self) -> None:
        self.log.clear()

    def shares(self) -> dict[str, bytes]:
        return {key: stored.body for key, stored in self.bucket.objects.items() if "shares/" in key}

    def fail(
        self,
        operation: str | None,
        *,
        key: str | None = None,
        status: int = 503,
        code: str = "SlowDown",
        times: int | None = 1,
        applied: bool = False,
        where: Callable[[Seen], bool] | None = None,
    ) -> Rule:
        """Answers with an error document; with `applied` the operation happens all the same."""
        error = Denied(status, code, "as the test asked")
        return self._rule(operation, key, times, applied=applied, error=error, where=where)

    def hold(
        self,
        operation: str | None,
        *,
        key: str | None = None,
        times: int | None = None,
        applied: bool = False,
        where: Callable[[Seen], bool] | None = None,
    ) -> Gate:
        """Holds requests back: before the operation happens, or (`applied`) after it and before the
        answer.
        """
        gate = Gate()
        self._rule(operation, key, times, applied=applied, gate=gate, where=where)
        return gate

    def drop(
        self,
        operation: str | None,
        *,
        key: str | None = None,
        times: int | None = 1,
        applied: bool = False,
        body_limit_bytes: int | None = None,
        gate: Gate | None = None,
    ) -> Rule:
        """Closes the connection instead of answering.

        With `applied` the operation happens; with `body_limit_bytes` the answer goes out up to there; with
        `gate` the operation happens later, when the gate is released.
        """
        return self._rule(
            operation, key, times, applied=applied, drop=True, body_limit_bytes=body_limit_bytes, gate=gate
        )

    def _rule(self, operation: str | None, key: str | None, times: int | None, **what: Any) -> Rule:
        rule = Rule(operation, key, times, **what)
        self.rules.append(rule)
        return rule

    def clear_rules(self) -> None:
        """Forgets the rules and lets everything held go on."""
        rules, self.rules = self.rules, []
        for rule in rules:
            if rule.gate is not None:
                rule.gate.release()

    # One request, from the wire to the answer.

    def _call(self, request: Request) -> tuple[Call, Seen]:
        headers = tuple(
            (name.decode("ascii").lower(), value.decode("utf-8", "surrogateescape"))
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        )
        path, _, query = request.uri.partition(b"?")
        pairs = [piece.partition("=") for piece in query.decode("ascii").split("&") if piece]
        names = [unquote(segment) for segment in path.decode("ascii").lstrip("/").split("/", 1)]
        call = Call(
            method=request.method.decode("ascii"),
            bucket=names[0],
            key=names[1] if len(names) > 1 else "",
            query={unquote(name): unquote(value) for name, _, value in pairs},
            headers=dict(headers),
            body=request.content.read(),
            now_s=self.wall_s(),
        )
        seen = Seen(
            operation=s3answers.operation_of(call),
            key=call.key,
            method=call.method,
            uri=request.uri.decode("ascii"),
            headers=headers,
            body_bytes=len(call.body),
            at_s=time.monotonic(),
        )
        return call, seen

    def _verify(self, request: Request, call: Call, seen: Seen) -> None:
        try:
            verify(
                method=call.method,
                uri=request.uri,
                headers=seen.headers,
                body=call.body,
                secrets=self.secrets,
                region=self.settings.region,
                now_s=self.wall_s(),
                token=self.settings.token,
                allow_unsigned=self.settings.allow_unsigned,
            )
        except Denied as denied:
            self.refused.append(denied)
            raise

    def _apply(self, call: Call, seen: Seen) -> Answer:
        try:
            return s3answers.answer(self, call, seen.operation)
        except Denied as denied:
            return s3answers.error_document(denied, call)

    async def _serve(self, request: Request) -> None:
        call, seen = self._call(request)
        self.log.append(seen)
        rule = next((rule for rule in self.rules if rule.matches(seen)), None)
        try:
            self._verify(request, call, seen)
        except Denied as denied:
            self._send(request, call, s3answers.error_document(denied, call))
            return
        if rule is None:
            self._send(request, call, self._apply(call, seen))
            return
        rule.met += 1
        answer = self._apply(call, seen) if rule.applied else None
        if rule.drop and rule.body_limit_bytes is None:
            request.transport.abortConnection()
        if rule.gate is not None:
            await rule.gate.passage(seen)
        if rule.drop and rule.body_limit_bytes is None:
            if rule.gate is not None and answer is None:
                self._apply(call, seen)
            return
        if rule.error is not None:
            answer = s3answers.error_document(rule.error, call)
        self._send(request, call, answer or self._apply(call, seen), limit_bytes=rule.body_limit_bytes)

    def _send(self, request: Request, call: Call, answer: Answer, *, limit_bytes: int | None = None) -> None:
        if request.transport is None or request.channel is None or request._disconnected:
            return
        request.setResponseCode(answer.status)
        request.setHeader("date", formatdate(self.wall_s(), usegmt=True))
        request.setHeader("x-amz-request-id", f"{len(self.log):016X}")
        for name, value in answer.headers.items():
            request.setHeader(name, value.encode("utf-8"))
        size = len(answer.body) if answer.length is None else answer.length
        self._say_length(request, call, size)
        if call.method != "HEAD":
            request.write(answer.body if limit_bytes is None else answer.body[:limit_bytes])
        if limit_bytes is not None:
            # The channel is its transport's producer; while that is paused, losing the connection waits for it.
            request.channel.transport.unregisterProducer()
            request.transport.loseConnection()
            return
        request.finish()

    def _say_length(self, request: Request, call: Call, size: int) -> None:
        request.setHeader("content-length", str(size))


class _Root(Resource):
    """Hands every request to the server; `isLeaf`, since keys may look like anything."""

    isLeaf = True

    def __init__(self, server: S3Server) -> None:
        super().__init__()
        self.server = server

    def render(self, request: Request) -> int:
        channel = request.channel
        if channel is not None:
            self.server._open.add(channel.transport)
        request.notifyFinish().addErrback(lambda _: None)
        served = ensureDeferred(self.server._serve(request))
        served.addErrback(self._broken, request)
        return NOT_DONE_YET

    @staticmethod
    def _broken(failure: Any, request: Request) -> None:
        failure.printTraceback()
        if request.transport is not None:
            request.transport.abortConnection()
