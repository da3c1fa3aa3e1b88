# SPDX-License-Identifier: GPL-2.0-or-later
"""An https server in a process of its own, for tests in which the client's process is what is tried.

    with Peer(folder) as peer:      # peer.url, peer.bundle
        ...

One thread a connection. GET answers the bytes of content(key), in the range that is asked for; PUT takes bytes and
answers their MD5 as ETag, or 400 where they are not those that x-amz-content-sha256 names. Both are paced, so that a
transfer of some MiB lasts for tenths of a second and no processor is busy. Nothing is kept and no signature is looked
at. Errors: a connection that breaks is the client's business, and ends its thread.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 16
PAUSE_S = 0.002
BLOCK = random.Random(20).randbytes(1 << 20)


def content(key: str, offset: int, length: int) -> bytes:
    """Bytes of the endless object of that name."""
    begin = (offset + int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")) % len(BLOCK)
    repeats = (begin + length) // len(BLOCK) + 1
    return (BLOCK * repeats)[begin : begin + length]


def _put(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    left = int(headers["content-length"])
    md5, sha256 = hashlib.md5(), hashlib.sha256()
    while left:
        piece = stream.read(min(left, PIECE_BYTES))
        if not piece:
            raise ConnectionError("the client went away")
        left -= len(piece)
        md5.update(piece)
        sha256.update(piece)
        time.sleep(PAUSE_S)
    if headers["x-amz-content-sha256"] not in ("UNSIGNED-PAYLOAD", sha256.hexdigest()):
        return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    return f'HTTP/1.1 200 OK\r\nETag: "{md5.hexdigest()}"\r\nContent-Length: 0\r\n\r\n'.encode()


def _get(connection: ssl.SSLSocket, key: str, headers: dict[str, str]) -> None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", "bytes=0-99"))
    assert found, headers
    first, last = int(found[1]), int(found[2])
    status = "206 Partial Content" if "range" in headers else "200 OK"
    said = f"HTTP/1.1 {status}\r\nContent-Length: {last - first + 1}\r\n" + 'ETag: "e"\r\n'
    if "range" in headers:
        said += f"Content-Range: bytes {first}-{last}/{1 << 40}\r\n"
    connection.sendall(said.encode() + b"\r\n")
    for at in range(first, last + 1, PIECE_BYTES):
        connection.sendall(content(key, at, min(PIECE_BYTES, last + 1 - at)))
        time.sleep(PAUSE_S)


def _serve(listened: socket.socket, context: ssl.SSLContext) -> None:
    try:
        listened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(listened, server_side=True) as connection, connection.makefile("rb") as stream:
            while request := stream.readline().decode():
                method, target, _ = request.split(" ")
                headers = {}
                while line := stream.readline().decode().strip():
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                if method == "PUT":
                    connection.sendall(_put(stream, headers))
                else:
                    _get(connection, target.rpartition("/")[2], headers)
    except OSError:
        return  # the client's process is gone; that is what these tests do


def main() -> None:
    """Serves with the certificate named until its input ends, after a line with the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


class Peer:
    """The server's process, which ends with the `with`."""

    def __init__(self, folder: Path) -> None:
        from .authority import Authority

        authority = Authority(folder, "peer")
        certificate = folder / "peer-server.pem"
        certificate.write_bytes(authority.server_pem("127.0.0.1"))
        self.bundle = authority.bundle
        self._process = subprocess.Popen([sys.executable, "-S", __file__, str(certificate)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"https://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("", timeout=10)


if __name__ == "__main__":
    main()
