# SPDX-License-Identifier: GPL-2.0-or-later
"""What both wire protocols share: operations that outlive their client, and errors as clients see them.

Owner: foolscap.py and http.py. Everything here runs on the reactor's thread and keeps no state.
Clients are told that the storage behind the server did not answer, and nothing more: keys, service ids and
the service's own words are for the operator's log.
"""
from __future__ import annotations

from typing import Callable, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.s3errors import S3Error
from tahoe_s3.store.space import CapacityReached

T = TypeVar("T")

UNAVAILABLE_TEXT: Final = "The storage behind this server did not answer as it should; try again later."

_log = Logger(namespace="tahoe_s3.wire")


class StorageUnavailable(Exception):
    """What a Foolscap client gets instead of an S3Error; its text is UNAVAILABLE_TEXT."""


def log_failure(what: str, failure: Failure) -> None:
    """Write a failure down: one line for an error of the bucket, a traceback for what nobody foresaw.

    `what` names the operation, for instance "closing a share".
    """
    if failure.check(S3Error, CapacityReached):
        _log.warn("{what} failed: {error}", what=what, error=str(failure.value))
    elif not failure.check(CancelledError):
        _log.failure("{what} failed", failure=failure, what=what)


def logged(deferred: Deferred[T], what: str) -> None:
    """Let an operation run for which nobody waits; a failure goes to the log."""
    deferred.addCallbacks(lambda _: None, lambda failure: log_failure(what, failure))


def shield(deferred: Deferred[T], what: str) -> Deferred[T]:
    """A Deferred with the same outcome whose cancellation does not reach the operation behind it.

    An HTTP client that hangs up cancels what its request waits for (klein/_resource.py), but a close or a
    read-test-write that has begun must reach its end. A failure after the cancellation is logged as `what`.
    """
    waiting = True

    def abandon(_: Deferred[T]) -> None:
        nonlocal waiting
        waiting = False

    waiter: Deferred[T] = Deferred(abandon)

    def succeeded(result: T) -> None:
        if waiting:
            waiter.callback(result)

    def failed(failure: Failure) -> None:
        if waiting:
            waiter.errback(failure)
        else:
            log_failure(what, failure)

    deferred.addCallbacks(succeeded, failed)
    return waiter


def for_foolscap(what: str) -> Callable[[Failure], Failure]:
    """An errback: errors of the bucket are logged as `what` and become StorageUnavailable, others stay."""

    def translate(failure: Failure) -> Failure:
        if not failure.check(S3Error):
            return failure
        log_failure(what, failure)
        return Failure(StorageUnavailable(UNAVAILABLE_TEXT))

    return translate
