# SPDX-License-Identifier: GPL-2.0-or-later
"""A server on a thread of its own that says exactly what it is told: the engine's tests need no reactor and no S3."""
from __future__ import annotations

import socket
import threading
from typing import Callable

Answer = Callable[[str, bytes], bytes]
"""From "METHOD /target" and the body to all the bytes of the answer; b"" leaves the client without one."""


def answer(body: bytes = b"", *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class ScriptedServer:
    """Answers every request through `respond`, one thread a connection. Ends with close()."""

    def __init__(self, respond: Answer) -> None:
        self.respond = respond
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while self._one(connection, stream.readline, stream.read):
                    pass
        except (OSError, ValueError):
            return  # the test closed it

    def _one(self, connection: socket.socket, line: Callable[[], bytes], read: Callable[[int], bytes]) -> bool:
        request = line().decode()
        if not request:
            return False
        length = 0
        while (header := line().decode().strip()) != "":
            name, _, value = header.partition(":")
            if name.lower() == "content-length":
                length = int(value)
        what = request.rpartition(" ")[0]
        self.seen.append(what)
        said = self.respond(what, read(length))
        if said:
            connection.sendall(said)
        return True
