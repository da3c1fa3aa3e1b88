# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP proxy that counts the S3 requests going through it, byte for byte unchanged.

    with CountingProxy("127.0.0.1", 8333) as proxy:
        ... proxy.url ...; proxy.count()

It reads the requests' heads on the way by and knows nothing else of HTTP, so signatures and Host headers
arrive as they were sent. It runs an asyncio loop in a thread of its own; count(), forget() and log may be
used from any thread. Limits: request heads of 64 KiB, bodies with Content-Length only (S3 clients that
stream in chunks are counted wrong, and the proxy says so by dropping them).
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any
from urllib.parse import unquote

from .s3answers import Call, operation_of

HEAD_LIMIT_BYTES = 64 * 1024
_CHUNK_BYTES = 256 * 1024


def describe(head: bytes) -> tuple[str, str, int]:
    """(S3 operation, key, length of the body) of a request's head."""
    first, *rest = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise ValueError("a request body in chunks")
    path, _, query = target.partition("?")
    bucket, _, key = path.lstrip("/").partition("/")
    call = Call(
        method=method,
        bucket=bucket,
        key=unquote(key),
        query={unquote(piece.partition("=")[0]): piece.partition("=")[2] for piece in query.split("&") if piece},
        headers=headers,
        body=b"",
        now_s=0.0,
    )
    return operation_of(call), call.key, int(headers.get("content-length", "0"))


class CountingProxy:
    """One listening port in front of one service."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.log: list[tuple[str, str]] = []
        self.bytes_up = 0
        self.bytes_down = 0
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def start(self) -> None:
        self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self.url = f"http://127.0.0.1:{future.result(10)}"

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> CountingProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def count(self) -> dict[str, int]:
        with self._lock:
            return dict(Counter(operation for operation, _ in self.log))

    def forget(self) -> None:
        with self._lock:
            self.log.clear()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _shut(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        down = asyncio.ensure_future(self._answers(up_reader, writer))
        try:
            await self._requests(reader, up_writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # the client went away or spoke something else: both connections end
        except asyncio.CancelledError:
            return  # stop(); asyncio's streams would log a task that ends cancelled
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            for each in (writer, up_writer):
                each.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            operation, key, left = describe(head[:-4])
            with self._lock:
                self.log.append((operation, key))
                self.bytes_up += left
            writer.write(head)
            while left:
                piece = await reader.read(min(left, _CHUNK_BYTES))
                if not piece:
                    return
                left -= len(piece)
                writer.write(piece)
                await writer.drain()
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(_CHUNK_BYTES):
                with self._lock:
                    self.bytes_down += len(piece)
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()
