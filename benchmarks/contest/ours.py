# SPDX-License-Identifier: GPL-2.0-or-later
"""Ours: the engine itself (submit and drain, on the caller's thread), and S3Client's Deferreds."""
from __future__ import annotations

import select
from typing import Any

from twisted.internet.defer import Deferred

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET, THREADS, Load, Payload, Site, check
from tahoe_s3._native import Engine, Window
from tahoe_s3.client import ClientConfig, S3Client

CONNECTIONS = THREADS + THREADS // 4
"""Some places are kept for interactive requests, and these here are ordinary ones."""
BUDGET_BYTES = 256 * 1024 * 1024
DRAIN_EVENTS = 64


def make_engine(site: Site, *, signed: bool = True, budget_bytes: int = BUDGET_BYTES) -> Engine:
    """One with credentials. `signed` False sends UNSIGNED-PAYLOAD, over https alone."""
    engine = Engine(endpoint=site.url, region=REGION, bucket=BUCKET, ca_file=site.ca_file,
                    max_connections=CONNECTIONS, buffer_budget_bytes=budget_bytes, sign_payload=signed)
    engine.set_credentials(ACCESS_KEY_ID, SECRET.encode())
    return engine


def make_client(reactor: Any, site: Site, *, signed: bool = True, budget_bytes: int = BUDGET_BYTES) -> S3Client:
    """S3Client on such an engine."""
    config = ClientConfig(endpoint=site.url, region=REGION, bucket=BUCKET, access_key_id=ACCESS_KEY_ID,
                          secret=SECRET.encode(), ca_file=site.ca_file, max_connections=CONNECTIONS,
                          buffer_budget_bytes=budget_bytes)
    return S3Client(reactor, make_engine(site, signed=signed, budget_bytes=budget_bytes), config)


class Drained:
    """submit() and drain(), with poll() on the engine's descriptor."""

    name = "ours, submit and drain"

    def __init__(self, site: Site, *, signed: bool = True) -> None:
        self.payload: Payload = "signed" if signed or not site.https else "unsigned"
        self._engine = make_engine(site, signed=signed)
        self._poll = select.poll()
        self._poll.register(self._engine.fileno(), select.POLLIN)
        self._windows: dict[int, Window] = {}

    def _submit(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            self._engine.submit("PUT", load.key, body=body)
        elif load.ranged:
            window = self._engine.window(load.size, whole=True)
            self._windows[self._engine.submit("GET", load.key, into=window, offset=index * load.size)] = window
        else:
            self._engine.submit("GET", load.key, parse="bytes", max_answer_bytes=load.size)

    def _ended(self, load: Load, event: Any) -> None:
        if event.failure is not None:
            raise RuntimeError(event.failure.message)
        if load.ranged and load.method == "GET":
            window = self._windows.pop(event.id)
            check(load, window.read(0, load.size))
            window.close()
        elif load.method == "GET":
            check(load, event.value)

    def run(self, load: Load, count: int) -> None:
        body = load.body
        begun = min(count, load.parallel)
        for index in range(begun):
            self._submit(load, index, body)
        ended = 0
        while ended < count:
            self._poll.poll()
            for event in self._engine.drain(DRAIN_EVENTS):
                ended += 1
                self._ended(load, event)  # first: the next one's bytes may land where these have been
                if begun < count:
                    self._submit(load, begun, body)
                    begun += 1

    def close(self) -> None:
        self._engine.close()


class Deferreds:
    """S3Client, as the storage server uses it."""

    name = "ours, Deferreds"

    def __init__(self, reactor: Any, site: Site, *, signed: bool = True) -> None:
        self.payload: Payload = "signed" if signed or not site.https else "unsigned"
        self._client = make_client(reactor, site, signed=signed)

    def run(self, load: Load, count: int) -> Deferred[None]:
        body = load.body
        client = self._client
        result: Deferred[None] = Deferred()
        begun = ended = 0

        def start(_: object) -> None:
            nonlocal begun
            if begun == count or result.called:
                return
            index, begun = begun, begun + 1
            d: Deferred[Any]
            if load.method == "PUT":
                d = client.put(load.key, body)
            elif load.ranged:
                d = client.get(load.key, offset=index * load.size, length=load.size)
            else:
                d = client.get(load.key)
            d.addCallback(arrived)
            d.addCallback(start)
            d.addErrback(lambda failure: None if result.called else result.errback(failure))

        def arrived(got: Any) -> None:
            nonlocal ended
            if load.method == "GET":
                check(load, got.data)
            ended += 1
            if ended == count:
                result.callback(None)

        for _ in range(min(count, load.parallel)):
            start(None)
        return result

    def close(self) -> Deferred[None]:
        return self._client.close()
