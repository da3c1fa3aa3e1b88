# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with a request to S3: one tree of exceptions, and how a failure becomes one of them.

Every exception carries what an operator needs to find the request in the service's log (operation, key, HTTP
status, S3 code, request ids, attempts) and what the store needs to stay right (`outcome`). None of them ever
carries a credential or a header that was sent. `tahoe_s3.client` exports all of these names.

Source of the codes: "Error responses" in the Amazon S3 API reference.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from tahoe_s3._native import Event, Failure

Outcome = Literal["not_applied", "unknown"]

MAX_MESSAGE_CHARACTERS: Final = 300
"""A service's own words are cut here: an error page of a proxy does not belong into a log whole."""


class S3Error(Exception):
    """A request to S3 that did not succeed.

    Attributes:
        operation: the S3 operation's name, for instance "PutObject".
        method: the HTTP method that was used, or "".
        key: the object's key as the caller gave it (without the client's prefix), or "" for the bucket itself.
        status: the HTTP status, 0 where there was no answer.
        code: the S3 error code ("SlowDown"), or "" where the answer had none.
        message: the service's words or the transport's, one line of at most 300 characters.
        outcome: "not_applied": the service has certainly not done it; "unknown": it may have, or may yet.
        kind: the engine's class of the failure ("service", "auth", "transport", "timeout", "protocol",
            "integrity", "changed", "cancelled", "closed", "local").
        request_id, host_id: the service's ids of the last attempt, or "".
        region: the region the service named, if any.
        server_time_s: the service's clock (seconds since 1970), if it told.
        attempts: how many times the request was sent.
        size: the whole object's, where an answer that could not be used told it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        operation: str = "",
        method: str = "",
        key: str = "",
        status: int = 0,
        code: str = "",
        outcome: Outcome = "not_applied",
        kind: str = "service",
        request_id: str = "",
        host_id: str = "",
        region: str | None = None,
        server_time_s: int | None = None,
        attempts: int = 0,
        size: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())[:MAX_MESSAGE_CHARACTERS]
        self.operation = operation
        self.method = method
        self.key = key
        self.status = status
        self.code = code
        self.outcome: Outcome = outcome
        self.kind = kind
        self.request_id = request_id
        self.host_id = host_id
        self.region = region
        self.server_time_s = server_time_s
        self.attempts = attempts
        self.size = size

    def __str__(self) -> str:
        what = f"{self.method} {self.key}" if self.key and self.method else self.operation or "S3"
        answer = " ".join(part for part in (str(self.status) if self.status else "", self.code) if part)
        if answer and self.message:
            answer = f"{answer} ({self.message})"
        text = f"{what}: {answer or self.message or self.kind}"
        if self.attempts > 1:
            text += f" after {self.attempts} attempts"
        if self.outcome == "unknown":
            text += ", may have been applied"
        if self.request_id:
            text += f", request id {self.request_id}"
        return text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class NotFound(S3Error):
    """404 for an object, said by S3 itself: the key does not exist."""


class NoSuchBucket(S3Error):
    """404 NoSuchBucket, or a 404 for the bucket itself."""


class NoSuchUpload(S3Error):
    """404 NoSuchUpload: the multipart upload was completed, aborted, or never was. Says nothing of the key."""


class AccessDenied(S3Error):
    """401 or 403: the credentials or the policy refuse. Never retried."""


class ClockSkewed(S3Error):
    """RequestTimeTooSkewed: this machine's clock and the service's (`server_time_s`) differ too much."""


class WrongRegion(S3Error):
    """The bucket is elsewhere; `region` names where, if the service told."""


class Changed(S3Error):
    """The object's ETag is not the expected one: it was replaced."""


class Throttled(S3Error):
    """The service asked for patience (SlowDown and the like), still after all attempts."""


class Unavailable(S3Error):
    """No usable answer: connection failures, timeouts, 5xx, still after all attempts."""


class Untrusted(Unavailable):
    """The service's certificate is not signed by a trusted authority, is not for this host name, or has expired."""


class BadReply(S3Error):
    """The answer was not S3's, or its body was not what its headers promised."""


class LocalError(S3Error):
    """Something on this machine failed (a file to send could not be read, memory); the service is not to blame."""


class Busy(S3Error):
    """Too many requests wait already; this one was never sent."""


class Closed(S3Error):
    """The client was closed."""


class Cancelled(S3Error):
    """The caller cancelled."""


SKEW_CODES: Final = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired"})
REGION_CODES: Final = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"})
THROTTLE_CODES: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled",
     "RequestThrottledException", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded",
     "ProvisionedThroughputExceededException", "OperationAborted", "Busy"}
)
NOT_FOUND_CODES: Final = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchVersion"})
DENIED_CODES: Final = frozenset({"XAdminUserNotFound"})
"""Said with other statuses than 401 and 403: versitygw says 404 to an access key that it does not know."""
UNTRUSTED_CODE: Final = "CertificateNotTrusted"
"""The engine's own code (ext/net/ts3_engine.h), since there is no answer that could have one."""
UNSUPPORTED_CODES: Final = frozenset(
    {"NotImplemented", "MethodNotAllowed", "UnsupportedOperation", "NotSupported", "XNotImplemented",
     "XMinioNotImplemented", "UnsupportedArgument"}
)

_BY_KIND: Final[dict[str, type[S3Error]]] = {
    "transport": Unavailable,
    "timeout": Unavailable,
    "protocol": BadReply,
    "integrity": BadReply,
    "changed": Changed,
    "cancelled": Cancelled,
    "closed": Closed,
    "local": LocalError,
}


def is_unsupported(error: S3Error) -> bool:
    """Whether the service says that it does not know this operation at all (so another way is worth a try)."""
    return error.status in (405, 501) or error.code in UNSUPPORTED_CODES


def _not_found_class(operation: str, method: str, code: str) -> type[S3Error]:
    """The class of a 404. Without an S3 code it is believed only where none can be (HEAD has no body)."""
    if code == "NoSuchBucket" or (operation == "HeadBucket" and method == "HEAD"):
        return NoSuchBucket
    if code == "NoSuchUpload":
        return NoSuchUpload
    if code in NOT_FOUND_CODES or (code == "" and method == "HEAD"):
        return NotFound
    return BadReply if code == "" else S3Error


def error_class(failure: Failure, *, operation: str, method: str) -> type[S3Error]:
    """Which exception a failure of the engine is. An error is not an absence: only S3's own 404 is NotFound."""
    if failure.kind == "transport" and failure.code == UNTRUSTED_CODE:
        return Untrusted
    by_kind = _BY_KIND.get(failure.kind)
    if by_kind is not None:
        return by_kind
    status, code = failure.status, failure.code
    if code in SKEW_CODES:
        return ClockSkewed
    if code in REGION_CODES or (status in (301, 307, 308)) or (status == 400 and failure.region):
        return WrongRegion
    if code in THROTTLE_CODES or status == 429:
        return Throttled
    if failure.kind == "auth" or status in (401, 403) or code in DENIED_CODES:
        return AccessDenied
    if status == 404:
        return _not_found_class(operation, method, code)
    if status >= 500 and status != 501:
        return Unavailable
    return S3Error


def from_event(event: Event, *, operation: str, method: str, key: str) -> S3Error:
    """The exception of a final event that has a failure."""
    failure = event.failure
    if failure is None:
        raise ValueError("the event is a success")
    return error_class(failure, operation=operation, method=method)(
        failure.message,
        operation=operation,
        method=method,
        key=key,
        status=failure.status,
        code=failure.code,
        outcome=failure.outcome,
        kind=failure.kind,
        request_id=event.request_id,
        host_id=event.host_id,
        region=failure.region,
        server_time_s=failure.server_time_s,
        attempts=event.attempts,
        size=event.size,
    )
