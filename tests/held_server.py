# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage server with the surface of S3StorageServer, for tests of the wire protocols.

Behind it is Tahoe's own StorageServer on a temporary folder; what it answers comes as Deferreds that a test can hold
back, fail, or let through. Owner: one test.
"""
from __future__ import annotations

from typing import Any, Callable

from allmydata.storage.server import StorageServer
from twisted.internet.defer import Deferred, fail, succeed


class Gate:
    """Decides when an operation is answered, and how.

    calls: names of the operations, in the order of their beginning. cancelled: names of those whose Deferred was
    cancelled, which the wire protocols should never do.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self._held: set[str] = set()
        self._waiting: list[tuple[str, Deferred[Any], Callable[[], Any]]] = []
        self._failures: dict[str, list[BaseException | None]] = {}

    def hold(self, *names: str) -> None:
        self._held.update(names)

    def fail(self, name: str, error: BaseException, *, after: int = 0) -> None:
        """Let the call of this name fail that comes after `after` good ones."""
        self._failures[name] = [*([None] * after), error]

    def waiting(self) -> list[str]:
        return [name for name, _, _ in self._waiting]

    def answer(self, name: str, work: Callable[[], Any]) -> Deferred[Any]:
        """The operation `work`, done when its answer is let through."""
        self.calls.append(name)
        failures = self._failures.get(name)
        error = failures.pop(0) if failures else None
        if error is not None:
            work = _raiser(error)
        if name not in self._held:
            return _call(work)
        d: Deferred[Any] = Deferred(lambda _: self.cancelled.append(name))
        self._waiting.append((name, d, work))
        return d

    def release(self, name: str) -> None:
        """Answer the oldest held operation of this name."""
        for entry in self._waiting:
            if entry[0] == name:
                self._waiting.remove(entry)
                _call(entry[2]).addBoth(entry[1].callback)
                return
        raise LookupError(f"nothing called {name} is held back; waiting: {self.waiting()}")


def _raiser(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


def _call(work: Callable[[], Any]) -> Deferred[Any]:
    try:
        return succeed(work())
    except Exception:
        return fail()


class HeldWriter:
    """The surface of ShareWriter over a stock BucketWriter."""

    def __init__(self, gate: Gate, stock: Any) -> None:
        self._gate = gate
        self.stock = stock
        self.closing = False
        self._waiters: list[Deferred[None]] = []

    @property
    def closed(self) -> bool:
        return bool(self.stock.closed)

    def write(self, offset: int, data: bytes) -> Deferred[bool]:
        try:
            finished = self.stock.write(offset, data)
        except Exception:
            return fail()
        return self._gate.answer("write", lambda: finished)

    def close(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        if not self.closing:
            self.closing = True
            self._gate.answer("close", self.stock.close).addBoth(self._ended)
        return waiter

    def _ended(self, result: Any) -> None:
        if not self.stock.closed:
            self.stock.abort()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)

    def abort(self) -> Deferred[None]:
        if self.closing and not self.closed:
            return self.close().addErrback(lambda _: None)
        return self._gate.answer("abort", self.stock.abort)

    def disconnected(self) -> Deferred[None]:
        return self._gate.answer("disconnected", self.stock.disconnected)

    def required_ranges(self) -> Any:
        return self.stock.required_ranges()


class HeldReader:
    """The surface of ShareReader over a stock BucketReader."""

    def __init__(self, gate: Gate, stock: Any) -> None:
        self._gate = gate
        self._stock = stock

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return self._gate.answer("read", lambda: self._stock.read(offset, length))

    def get_length(self) -> Deferred[int]:
        return self._gate.answer("get_length", self._stock.get_length)

    def advise_corrupt_share(self, reason: bytes) -> Deferred[None]:
        return self._gate.answer("advise", lambda: self._stock.advise_corrupt_share(reason))


class HeldServer:
    """The surface of S3StorageServer. `stock` is the server behind it, `gate` what holds its answers back."""

    def __init__(self, folder: str, clock: Any) -> None:
        self.gate = Gate()
        self.stock = StorageServer(folder, b"\x00" * 20, clock=clock)
        self.writers: dict[Any, HeldWriter] = {}
        self._handlers: list[Callable[[Any], object]] = []
        self.stock.register_bucket_writer_close_handler(self._closed)

    def _closed(self, stock_writer: Any) -> None:
        writer = self.writers[stock_writer]
        for handler in self._handlers:
            handler(writer)

    def register_bucket_writer_close_handler(self, handler: Callable[[Any], object]) -> None:
        self._handlers.append(handler)

    def get_version(self) -> Any:
        return self.stock.get_version()

    def get_shares(self, storage_index: bytes) -> Any:
        return self.stock.get_shares(storage_index)

    def allocate_buckets(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        def work() -> Any:
            already, stock_writers = self.stock.allocate_buckets(*args, **kwargs)
            writers = {n: HeldWriter(self.gate, w) for n, w in stock_writers.items()}
            self.writers.update({w.stock: w for w in writers.values()})
            return already, writers

        return self.gate.answer("allocate", work)

    def get_buckets(self, storage_index: bytes) -> Deferred[Any]:
        def work() -> Any:
            return {n: HeldReader(self.gate, r) for n, r in self.stock.get_buckets(storage_index).items()}

        return self.gate.answer("get_buckets", work)

    def add_lease(self, *args: Any) -> Deferred[None]:
        return self.gate.answer("add_lease", lambda: self.stock.add_lease(*args))

    def renew_lease(self, *args: Any) -> Deferred[None]:
        return self.gate.answer("renew_lease", lambda: self.stock.renew_lease(*args))

    def slot_readv(self, *args: Any) -> Deferred[Any]:
        return self.gate.answer("slot_readv", lambda: self.stock.slot_readv(*args))

    def slot_testv_and_readv_and_writev(self, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return self.gate.answer("rtw", lambda: self.stock.slot_testv_and_readv_and_writev(*args, **kwargs))

    def enumerate_mutable_shares(self, storage_index: bytes) -> Deferred[Any]:
        return self.gate.answer("enumerate", lambda: self.stock.enumerate_mutable_shares(storage_index))

    def get_mutable_share_length(self, storage_index: bytes, number: int) -> Deferred[int]:
        return self.gate.answer("length", lambda: self.stock.get_mutable_share_length(storage_index, number))

    def advise_corrupt_share(self, *args: Any) -> Deferred[None]:
        return self.gate.answer("advise", lambda: self.stock.advise_corrupt_share(*args))
