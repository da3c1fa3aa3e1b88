# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests as Deferreds: the engine's events on one side, Twisted on the other.

Owner: `tahoe_s3.client`. Everything here runs on the reactor's thread. The engine never blocks and never queues
without limit, so this is where a request waits when the engine is full: one bounded queue for each priority,
emptied in order of priority whenever something of the engine's has ended.
"""
from __future__ import annotations

from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Callable, Final, Literal, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from tahoe_s3._native import BudgetExhausted, Engine, EngineClosed, EngineForked, QueueFull, Window
from tahoe_s3.metrics import Counters
from tahoe_s3.s3errors import Busy, Cancelled, Closed, LocalError, S3Error, Unavailable, from_event

if TYPE_CHECKING:
    from tahoe_s3._native import Event, Method

Priority = Literal[0, 1, 2]
"""0: someone waits for it (interactive); 1: ordinary; 2: read-ahead and other work in the background."""

READS: Final = ("GET", "HEAD")
PRIORITIES: Final = 3
EVENTS_A_TURN: Final = 128
"""Events handled in one turn of the reactor, so that a flood of answers does not starve other readers."""
NO_MEMORY_PAUSE_S: Final = 0.5
SKEW_TOLD_S: Final = 60
"""A difference of clocks is worth a line in the log when it changed by this much."""


class DelayedCall(Protocol):
    """What is used of Twisted's IDelayedCall."""

    def active(self) -> bool: ...
    def cancel(self) -> None: ...


class ReactorLike(Protocol):
    """What is used of the reactor; twisted.internet.reactor and a test's own both have it."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, f: Callable[..., object], *args: object) -> Any: ...
    def addReader(self, reader: Any) -> object: ...
    def removeReader(self, reader: Any) -> object: ...


class Call:
    """One request, from the client's method to its final event.

    `deferred` fires with the final Event, or fails with an S3Error. `window` is there from the moment the request
    was handed to the engine, and belongs to whoever made the call: it must be closed.
    """

    __slots__ = (
        "deadline_at_s", "deferred", "ended", "id", "key", "method", "native_key", "on_progress", "operation",
        "options", "owner", "priority", "timer", "whole", "window", "window_bytes",
    )

    def __init__(
        self, owner: Transfers, operation: str, method: Method, key: str, *, native_key: str, priority: Priority,
        options: dict[str, Any], window_bytes: int, whole: bool, on_progress: Callable[[Call], None] | None,
    ) -> None:
        self.owner = owner
        self.operation = operation
        self.method = method
        self.key = key
        self.native_key = native_key
        self.priority = priority
        self.options = options
        self.window_bytes = window_bytes
        self.whole = whole
        self.on_progress = on_progress
        self.window: Window | None = None
        self.deferred: Deferred[Event] = Deferred(self._cancelled)
        self.id = 0
        self.ended = False
        self.deadline_at_s: float | None = None
        self.timer: DelayedCall | None = None

    def _cancelled(self, _deferred: Deferred[Event]) -> None:
        self.owner.cancel(self)

    def fail_with(self, error: type[S3Error], message: str, *, kind: str) -> None:
        """End it without an event. What was handed to the engine and is not a read may have been applied."""
        unknown = self.id != 0 and self.method not in ("GET", "HEAD")
        self.finish(error(message, operation=self.operation, method=self.method, key=self.key, kind=kind,
                          outcome="unknown" if unknown else "not_applied"))

    def finish(self, result: Event | S3Error) -> None:
        """Fire the Deferred, once."""
        if self.ended:
            return
        self.ended = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None
        if isinstance(result, S3Error):
            self.deferred.errback(result)
        else:
            self.deferred.callback(result)


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


@implementer(IReadDescriptor)
class Transfers:
    """Submits to one Engine, waits where it is full, fires Deferreds as its events arrive.

    Limits: at most `max_waiting` requests wait here; one more fails at once with Busy.
    Errors: every Deferred fails with an S3Error and nothing else.
    """

    log = Logger()

    def __init__(self, reactor: ReactorLike, engine: Engine, *, max_waiting: int) -> None:
        self._reactor = reactor
        self._engine = engine
        self._max_waiting = max_waiting
        # Requests that need budget wait apart: one that waits for memory must not hold up a DELETE.
        self._queues: list[tuple[deque[Call], deque[Call]]] = [(deque(), deque()) for _ in range(PRIORITIES)]
        self._waiting = 0
        self._in_flight: dict[int, Call] = {}
        self._closed = False
        self._submitting = False
        self._skew_s = 0
        self.clock_difference_s: float | None = None
        self.counters = Counters()
        self.on_budget_wait: Callable[[int], None] | None = None
        self.before_write: Callable[[], None] | None = None
        self.on_outcome: Callable[[S3Error | None], None] | None = None
        reactor.addReader(self)

    # IReadDescriptor

    def fileno(self) -> int:
        """The engine's descriptor, readable while there are events; -1 once closed."""
        return -1 if self._closed else self._engine.fileno()

    def logPrefix(self) -> str:
        """The name Twisted gives this reader in its log."""
        return "tahoe-s3"

    def connectionLost(self, reason: object) -> None:
        """The reactor drops its readers as it stops: nobody would hand out events any more."""
        self.close()

    def doRead(self) -> None:
        """Hand out what the engine has to say."""
        if self._closed:
            return
        try:
            events = self._engine.drain(EVENTS_A_TURN)
        except MemoryError:
            self._reactor.callLater(NO_MEMORY_PAUSE_S, self.doRead)  # nothing was lost: the engine keeps them
            return
        for event in events:
            try:
                self._handle(event)
            except Exception:
                # Whatever went wrong with one request, the reactor must not drop this reader for it.
                self.log.failure("an event of the engine could not be handled")
        if self._waiting:
            self.submit_waiting()

    def _handle(self, event: Event) -> None:
        if event.final:
            call = self._in_flight.pop(event.id, None)
            if call is not None:
                self._final(call, event)
        else:
            call = self._in_flight.get(event.id)
            if call is not None and call.on_progress is not None and not call.ended:
                self._progress(call)

    def _progress(self, call: Call) -> None:
        try:
            if call.on_progress is not None:
                call.on_progress(call)
        except Exception:
            self.log.failure("what waits for a download failed")

    def _final(self, call: Call, event: Event) -> None:
        counters, now_s = self.counters, self._reactor.seconds()
        name = call.operation
        failure = event.failure
        counters.ended(name, now_s=now_s, attempts=event.attempts, total_us=event.total_us, bytes_up=event.bytes_up,
                       bytes_down=event.bytes_down, well=failure is None)
        if event.server_time_s is not None:
            counters.last_answer_at_s = now_s
            self.clock_difference_s = event.server_time_s - now_s
        if abs(event.skew_s - self._skew_s) > SKEW_TOLD_S:
            self._tell_skew(event.skew_s)
        if failure is None:
            self._tell(None)
            call.finish(event)
            return
        error = from_event(event, operation=name, method=call.method, key=call.key)
        counters.failed(error, now_s)
        self._tell(error)
        call.finish(error)

    def _tell(self, outcome: S3Error | None) -> None:
        """What became of one request, to whoever keeps an eye on the service."""
        try:
            if self.on_outcome is not None:
                self.on_outcome(outcome)
        except Exception:
            self.log.failure("whoever keeps an eye on the service failed")

    def _tell_skew(self, skew_s: int) -> None:
        """The service refused this machine's time; the engine signs with the service's from now on."""
        self._skew_s = skew_s
        here = self._reactor.seconds()
        self.log.warn(
            "This machine's clock ({here}) and that of the S3 service ({there}) differ by {skew_s} seconds. Requests "
            "are signed with the service's time; set this machine's clock right.",
            here=_utc(here), there=_utc(here + skew_s), skew_s=skew_s,
        )

    # requests

    def request(
        self, operation: str, method: Method, key: str, *, native_key: str, priority: Priority = 1,
        deadline_s: float | None = None, window_bytes: int = 0, whole: bool = False,
        on_progress: Callable[[Call], None] | None = None, **options: Any,
    ) -> Call:
        """Send a request, now or when there is room. `options` are Engine.submit's; `key` is what errors name,
        `native_key` what is sent. With `window_bytes` the body lands in a Window of that size (`whole`: see
        Engine.window()).
        """
        call = Call(self, operation, method, key, native_key=native_key, priority=priority, options=options,
                    window_bytes=window_bytes, whole=whole, on_progress=on_progress)
        if self._closed:
            call.fail_with(Closed, "the client is closed", kind="closed")
            return call
        if self.before_write is not None and method not in READS:
            try:
                self.before_write()
            except S3Error as error:
                call.finish(error)
                return call
        if deadline_s is not None:
            call.deadline_at_s = self._reactor.seconds() + deadline_s
        queue = self._queues[priority][1 if window_bytes else 0]
        if queue or not self._submit(call):
            self._wait(call, queue)
        return call

    def _wait(self, call: Call, queue: deque[Call]) -> None:
        if self._waiting >= self._max_waiting:
            call.fail_with(Busy, f"{self._waiting} requests to S3 wait already", kind="local")
            return
        queue.append(call)
        self._waiting += 1
        if call.deadline_at_s is not None:
            delay_s = max(0.0, call.deadline_at_s - self._reactor.seconds())
            call.timer = self._reactor.callLater(delay_s, self._late, call)
        if call.window_bytes and self.on_budget_wait is not None:
            try:
                self.on_budget_wait(call.window_bytes)
            except Exception:
                self.log.failure("whoever was asked for memory failed")

    def _late(self, call: Call) -> None:
        call.timer = None
        self._forget_waiting(call)
        call.fail_with(Unavailable, "the deadline passed before there was room to send it", kind="timeout")
        self.submit_waiting()

    def _forget_waiting(self, call: Call) -> None:
        queue = self._queues[call.priority][1 if call.window_bytes else 0]
        if call in queue:
            queue.remove(call)
            self._waiting -= 1

    def _submit(self, call: Call) -> bool:
        """Hand it to the engine; False where the engine has no room now. A hopeless one is ended here."""
        options = call.options
        if call.deadline_at_s is not None:
            left_ms = int((call.deadline_at_s - self._reactor.seconds()) * 1000)
            options["deadline_ms"] = max(1, left_ms)
        try:
            if call.window_bytes and call.window is None:
                call.window = self._engine.window(call.window_bytes, whole=call.whole)
                options["into"] = call.window
            call.id = self._engine.submit(call.method, call.native_key, priority=call.priority, **options)
        except (QueueFull, BudgetExhausted):
            self._release(call)
            return False
        except (EngineClosed, EngineForked) as error:
            self._release(call)
            call.fail_with(Closed, str(error), kind="closed")
            return True
        except (OSError, MemoryError, ValueError, OverflowError) as error:
            self._release(call)
            call.fail_with(LocalError, str(error), kind="local")
            return True
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        self._in_flight[call.id] = call
        if call.on_progress is not None:
            self._progress(call)
        return True

    def _release(self, call: Call) -> None:
        if call.window is not None:
            call.window.close()
            call.window = None
            del call.options["into"]

    def submit_waiting(self) -> None:
        """Send what waits, in order of priority, until the engine is full again. Called when room may be there."""
        if self._submitting or self._closed:
            return
        self._submitting = True
        try:
            blocked = [False, False]
            for queues in self._queues:
                for kind, queue in enumerate(queues):
                    while queue and not blocked[kind]:
                        # Taken out first: a call that ends in here may add to the queue or take from it.
                        call = queue.popleft()
                        self._waiting -= 1
                        if not self._submit(call):
                            queue.appendleft(call)
                            self._waiting += 1
                            blocked[kind] = True
        finally:
            self._submitting = False

    def end_writes(self) -> None:
        """Cancel every request that would change the bucket: those that wait here, and those the engine has."""
        calls = [call for queues in self._queues for queue in queues for call in queue]
        calls.extend(self._in_flight.values())
        for call in calls:
            if call.method not in READS:
                self.cancel(call)

    def cancel(self, call: Call) -> None:
        """End it now for the caller; the engine's own final event comes later and is only counted."""
        if call.ended:
            return
        if call.id:
            self._engine.cancel(call.id)
            call.fail_with(Cancelled, "cancelled by the caller", kind="cancelled")
        else:
            self._forget_waiting(call)
            call.fail_with(Cancelled, "cancelled by the caller", kind="cancelled")
            self.submit_waiting()

    # the end

    @property
    def waiting(self) -> int:
        """How many requests wait here for room."""
        return self._waiting

    @property
    def in_flight(self) -> int:
        """How many requests the engine has."""
        return len(self._in_flight)

    def close(self) -> None:
        """Stop everything. Joins the engine's thread, which is bounded by the engine to well under a second.

        Every open Deferred fails with Closed. Idempotent.
        """
        if self._closed:
            return
        self._reactor.removeReader(self)
        self._closed = True
        self._engine.close()
        calls = list(self._in_flight.values())
        for queues in self._queues:
            for queue in queues:
                calls.extend(queue)
                queue.clear()
        self._in_flight.clear()
        self._waiting = 0
        for call in calls:
            call.fail_with(Closed, "the client was closed", kind="closed")
