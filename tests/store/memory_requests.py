# SPDX-License-Identifier: GPL-2.0-or-later
"""How requests to the bucket in memory (memory_client.py) are counted, held back, made to fail and answered.

What a request does to the bucket is not known here. Answers come at once, before the call returns, unless they are
held; who waits for a write is told as the real client's callers are (before_write, on_outcome, on_write).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.python.failure import Failure

from tahoe_s3.client import Cancelled, Closed, Counters, S3Error

READS = ("Get", "Head", "List")


@dataclass
class Failing:
    operation: str
    key: str | None
    error: type[S3Error]
    outcome: str
    applied: bool
    times: int
    after_bytes: int


class Held:
    """One kind of request that is held back; `calls` are those that wait now, in the order of their coming."""

    def __init__(self, owner: Requests, operation: str, key: str | None, *, apply_first: bool) -> None:
        self._owner = owner
        self.operation = operation
        self.key = key
        self.apply_first = apply_first
        self.calls: list[Any] = []

    def __len__(self) -> int:
        return len(self.calls)

    def release(self, count: int | None = None) -> None:
        """Let the first `count` go, or all and everything that comes later."""
        if count is None:
            self._owner.holds.remove(self)
            count = len(self.calls)
        for _ in range(count):
            self.calls.pop(0).go()

    def feed(self, count: int) -> None:
        """Let so many further bytes of the first download arrive, and no more."""
        self.calls[0].feed(count)

    def fail(self, error: type[S3Error], **details: Any) -> None:
        """End the first of them with an error."""
        self.calls.pop(0).fail(error, **details)


class HeldCall:
    """A held request other than a download's."""

    def __init__(self, result: Deferred[Any], finish: Callable[[], Any], fail: Callable[..., None]) -> None:
        self.result, self._finish, self._fail = result, finish, fail

    def go(self) -> None:
        if not self.result.called:
            maybeDeferred(self._finish).chainDeferred(self.result)

    def fail(self, error: type[S3Error], **details: Any) -> None:
        if not self.result.called:
            self._fail(error, **details)


class Requests:
    """See the module. What is in the bucket is MemoryClient's."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.keys_asked: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.priorities: list[int] = []
        self.holds: list[Held] = []
        self.counters = Counters()
        self.on_write: Any = lambda key, **_: None
        self.retried: set[str] = set()  # keys whose writes succeed at the second attempt
        self.answered = False  # whether the service has answered anything; where not, nobody knows its time
        self.closed = False
        self.before_write: Any = None
        self.on_outcome: Any = None
        self._clock: Any = None
        self._writing: list[Deferred[Any]] = []
        self._failing: list[Failing] = []

    # for tests

    def forget_requests(self) -> None:
        self.requests.clear()
        self.keys_asked.clear()
        self.ranges.clear()
        self.priorities.clear()

    def hold(self, operation: str, key: str | None = None, *, apply_first: bool = False) -> Held:
        """Hold back the answers of an operation (of one key, or of all).

        apply_first: the service does it at once, only its answer waits; otherwise it does it when let go.
        """
        held = Held(self, operation, key, apply_first=apply_first)
        self.holds.append(held)
        return held

    def fail(
        self, operation: str, error: type[S3Error], *, key: str | None = None, outcome: str = "not_applied",
        applied: bool = False, times: int = 1, after_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Make the next `times` requests of an operation fail. applied: the service does it all the same.

        after_bytes: a download breaks off after so many bytes.
        """
        self._failing.append(Failing(operation, key, error, outcome, applied, times, after_bytes))

    # what the store asks of it

    def watch(self, *, before_write: Callable[[], None], on_outcome: Callable[[S3Error | None], None]) -> None:
        self.before_write, self.on_outcome = before_write, on_outcome

    def end_writes(self) -> None:
        for result in list(self._writing):
            result.cancel()

    # inside

    def tell(self, result: Any) -> Any:
        if self.on_outcome is not None:
            self.on_outcome(result.value if isinstance(result, Failure) else None)
        return result

    def count(self, operation: str, key: str) -> Failing | None:
        """Note a request; the failure that was ordered for it, if any."""
        self.answered = True
        self.requests[operation] += 1
        self.counters.ended(operation, now_s=0.0 if self._clock is None else self._clock.seconds(), attempts=1)
        self.keys_asked.append((operation, key))
        for failing in self._failing:
            if failing.operation == operation and failing.key in (None, key):
                failing.times -= 1
                if failing.times == 0:
                    self._failing.remove(failing)
                return failing
        return None

    def holding(self, operation: str, key: str, call: Any) -> Held | None:
        for held in self.holds:
            if held.operation == operation and held.key in (None, key):
                held.calls.append(call)
                return held
        return None

    def _request(self, operation: str, key: str, apply: Callable[[], Any], *, is_write: bool = False) -> Deferred[Any]:
        if self.closed:
            return maybeDeferred(self._raise_closed)
        changes = not operation.startswith(READS)
        if changes and self.before_write is not None:
            try:
                self.before_write()
            except S3Error as error:
                return fail(error)
        failing = self.count(operation, key)

        def fail_with(error: type[S3Error], **details: Any) -> None:
            result.errback(error("made to fail", operation=operation, key=key, **details))

        def cancelled(_: object) -> None:
            outcome = "unknown" if is_write else "not_applied"
            fail_with(Cancelled, outcome=outcome, kind="cancelled")

        def ended(outcome: Any) -> Any:
            if result in self._writing:
                self._writing.remove(result)
            return self.tell(outcome)

        result: Deferred[Any] = Deferred(cancelled)
        result.addBoth(ended)
        if changes:
            self._writing.append(result)
        if failing is not None:
            if failing.applied:
                apply()
            fail_with(failing.error, outcome=failing.outcome)
            return result
        answers: list[Any] = []

        def finish() -> Any:
            return answers[0] if answers else apply()

        held = self.holding(operation, key, HeldCall(result, finish, fail_with))
        if held is None:
            maybeDeferred(apply).chainDeferred(result)
        elif held.apply_first:
            try:
                answers.append(apply())
            except S3Error as error:
                result.errback(error)
        return result

    def _write(self, operation: str, key: str, keys: list[str], apply: Callable[[], Any]) -> Deferred[Any]:
        """As the real client's: on_write is told how each write has ended."""
        def ended(result: Any) -> Any:
            error = getattr(result, "value", None)
            doubts = [one for one in keys if (one in self.retried if error is None else error.outcome == "unknown")]
            for one in keys if error is None else doubts:
                self.on_write(one, is_in_doubt=one in doubts, is_answered=error is None)
            return result

        return self._request(operation, key, apply, is_write=True).addBoth(ended)

    def _raise_closed(self) -> None:
        raise Closed("the client was closed", kind="closed")
