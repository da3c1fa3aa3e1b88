# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain calls that wait for the reactor: hypothesis knows no Deferreds, and the store stays in the reactor's thread.

    await in_greenlet(lambda: run_machine(...))     # in a test
    result = wait(deferred)                         # in what runs there
"""

from __future__ import annotations

from typing import Any, Callable

from greenlet import getcurrent, greenlet
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def in_greenlet(work: Callable[[], Any]) -> Deferred[Any]:
    """Run `work`, which may call wait(), while the reactor goes on. Fires with its result."""
    done: Deferred[Any] = Deferred()

    def run() -> None:
        try:
            result = work()
        except BaseException:
            result = Failure()
        done.callback(result)

    greenlet(run).switch()
    return done


def wait(deferred: Deferred[Any]) -> Any:
    """The result of a Deferred, when it comes; its exception is raised. Only inside in_greenlet()."""
    results: list[Any] = []
    here = getcurrent()

    def came(result: Any) -> None:
        results.append(result)
        if is_waiting:
            here.switch()

    is_waiting = False
    deferred.addBoth(came)
    while not results:
        is_waiting = True
        here.parent.switch()
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
