# SPDX-License-Identifier: GPL-2.0-or-later
"""Uploads within TLS: records wait for those behind them while the body goes on, here and in the kernel."""
from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3._native import Engine, Event, FileRegion

from ..support.authority import Authority
from .test_engine import wait

MIB = 1024 * 1024
RECEIVE_BYTES = 64 * 1024
"""The server's buffer, so that what the engine can be rid of is bounded."""


class Server:
    """Takes bodies, and answers with their SHA-256 for an ETag."""

    def __init__(self, folder: Path, pem: bytes) -> None:
        (folder / "server.pem").write_bytes(pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._threads.append(threading.Thread(target=self._serve, args=(raw,), daemon=True))
            self._threads[-1].start()

    def _serve(self, raw: socket.socket) -> None:
        with self._context.wrap_socket(raw, server_side=True) as connection, connection.makefile("rb") as stream:
            while (length := self._head(stream)) is not None:
                digest = hashlib.sha256()
                for piece in self.pieces(length):
                    digest.update(stream.read(piece))
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "%b"\r\nContent-Length: 0\r\n\r\n'
                                   % digest.hexdigest().encode())

    def pieces(self, length: int) -> Iterator[int]:
        """A body is read in these."""
        yield length

    def _head(self, stream: Any) -> int | None:
        """The length of the body that follows; None at the connection's end."""
        length = 0
        while (line := stream.readline()) not in (b"", b"\r\n"):
            name, _, value = line.decode().partition(":")
            if name.lower() == "content-length":
                length = int(value)
        return length if line else None

    def close(self) -> None:
        """When the other side has closed its connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


class Reluctant(Server):
    """Takes a MiB of the first body, and the rest when told to; what follows, at once."""

    def __init__(self, folder: Path, pem: bytes) -> None:
        self.midway, self.go_on = threading.Event(), threading.Event()
        super().__init__(folder, pem)

    def pieces(self, length: int) -> Iterator[int]:
        if not self.midway.is_set():
            yield MIB
            self.midway.set()
            self.go_on.wait(60)
            length -= MIB
        yield length


def corked(port: int) -> list[int]:
    """TCP_CORK of each socket of this process that is connected to the port."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(path.name))) as one:
                if one.getpeername()[1] == port:
                    found.append(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
        except (OSError, ValueError, IndexError):
            continue  # no socket, not connected, or the listing's own descriptor
    return found


def final(engine: Engine) -> Event:
    return wait(engine, limit_s=60)[-1]


def etag(event: Event) -> str | None:
    assert event.failure is None, event.failure
    return event.etag


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def engine_at(port: int, authority: Authority) -> Engine:
    engine = Engine(endpoint=f"https://127.0.0.1:{port}", region="r", bucket="b", path_style=True,
                    ca_file=str(authority.bundle))
    engine.set_credentials("id", b"secret")
    return engine


def test_a_body_that_goes_on_is_corked_and_one_that_has_ended_is_not(tmp_path: Path, authority: Authority) -> None:
    server = Reluctant(tmp_path, authority.server_pem("127.0.0.1"))
    engine = engine_at(server.port, authority)
    body = os.urandom(32 * MIB)
    engine.submit("PUT", "large", body=body)
    assert server.midway.wait(60)
    assert corked(server.port) == [1]
    server.go_on.set()
    assert etag(final(engine)) == hashlib.sha256(body).hexdigest()
    assert corked(server.port) == [0], "the connection lies idle"
    engine.submit("PUT", "small", body=b"x" * 1000)
    assert final(engine).failure is None
    engine.close()
    server.close()


def test_a_file_that_is_read_while_it_is_sent(tmp_path: Path, authority: Authority) -> None:
    """Its chunks come from workers, and between two of them sending may pause: that ends corking for the while."""
    server = Reluctant(tmp_path, authority.server_pem("127.0.0.1"))
    path = tmp_path / "body"
    body = os.urandom(40 * MIB)
    path.write_bytes(body)
    engine = engine_at(server.port, authority)
    with path.open("rb") as file:
        engine.submit("PUT", "large", body=FileRegion(file.fileno(), 0, 40 * MIB))
    assert server.midway.wait(60)
    server.go_on.set()
    assert etag(final(engine)) == hashlib.sha256(body).hexdigest()
    assert corked(server.port) == [0]
    engine.close()
    server.close()


def test_more_bodies_at_once_than_may_gather(tmp_path: Path, authority: Authority) -> None:
    """Of lengths about those at which something ends; each byte arrives, and each request, also the next one on a
    connection."""
    server = Server(tmp_path, authority.server_pem("127.0.0.1"))
    engine = engine_at(server.port, authority)
    edges = [unit + more for unit in (64 * 1024, 128 * 1024, 160 * 1024, 256 * 1024, MIB) for more in (-1, 0, 1)]
    for _ in range(3):
        bodies = {size: os.urandom(size) for size in [*edges, 3 * MIB, 5 * MIB + 7]}
        wanted = {engine.submit("PUT", "k", body=body): body for body in bodies.values()}
        for event in wait(engine, len(wanted), limit_s=60):
            assert etag(event) == hashlib.sha256(wanted.pop(event.id)).hexdigest()
        assert not wanted
    assert engine.stats()["connections_opened"] <= len(edges) + 2
    engine.close()
    server.close()
