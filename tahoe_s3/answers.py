# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client takes from the engine's final events. Pure functions; TypeError where an event is of another request.
"""
from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Callable, Final

from tahoe_s3._native import Page, Uploads
from tahoe_s3.download import ObjectInfo
from tahoe_s3.s3errors import NOT_FOUND_CODES, BadReply, NoSuchUpload, NotFound, Outcome, S3Error, is_unsupported

if TYPE_CHECKING:
    from twisted.python.failure import Failure as TwistedFailure

    from tahoe_s3._native import Event

NO_CONFIGURATION_CODES: Final = frozenset(
    {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFound",
     "NoSuchConfiguration", "InvalidBucketState"}
)

REFUSED_WAY_CODES: Final = frozenset({"", "BadRequest", "InvalidArgument", "InvalidRequest", "MalformedXML"})


def nothing(_event: Event) -> None:
    return None


def body_of(event: Event) -> bytes:
    if not isinstance(event.value, bytes):
        raise TypeError("the answer has no body")
    return event.value


def text_of(event: Event) -> str:
    return event.value if isinstance(event.value, str) else ""


def page_of(event: Event) -> Page:
    if not isinstance(event.value, Page):
        raise TypeError("the answer is not a listing")
    return event.value


def uploads_of(event: Event) -> Uploads:
    if not isinstance(event.value, Uploads):
        raise TypeError("the answer is not a list of uploads")
    return event.value


def bad_reply(event: Event, why: str, *, operation: str, key: str, method: str = "",
              outcome: Outcome = "not_applied") -> BadReply:
    """The error of an answer that came and does not say what it must."""
    return BadReply(why, operation=operation, method=method, key=key, status=event.status, outcome=outcome,
                    kind="protocol", request_id=event.request_id, attempts=event.attempts)


def not_deleted(event: Event, keys: Collection[str]) -> list[tuple[str, str]]:
    """(key, S3 code) of each key that DeleteObjects left there. BadReply where it tells of a failure and not of which
    key: the answers name failures only, so that one would pass for deleted."""
    if not isinstance(event.value, list):
        raise TypeError("the answer is not a list of keys")
    failures = [(key, code) for key, code in event.value if code and code not in NOT_FOUND_CODES]
    asked = frozenset(keys)
    for key, code in failures:
        if key not in asked:
            raise bad_reply(event, f"the answer tells of {code} for a key that was not asked for",
                            operation="DeleteObjects", method="POST", key=key, outcome="unknown")
    return failures


def part_etag(event: Event, key: str) -> str:
    if not event.etag:
        raise bad_reply(event, "the answer has no ETag", operation="UploadPart", method="PUT", key=key,
                        outcome="unknown")
    return event.etag


def info_of(event: Event, key: str) -> ObjectInfo:
    """What a HEAD tells. A size that is not told must not pass for that of an empty object."""
    if event.size is None:
        raise bad_reply(event, "the answer has no Content-Length", operation="HeadObject", method="HEAD", key=key)
    return ObjectInfo(key, event.size, event.etag or "", event.modified_s or 0)


def is_absence(error: S3Error) -> bool:
    """What was to be removed is not there, in S3's own words: a proxy's 404 does not count."""
    return isinstance(error, (NotFound, NoSuchUpload))


def is_unknown(error: S3Error) -> bool:
    """The service does not know this question, or has nothing to answer it with."""
    return is_unsupported(error) or error.code in NO_CONFIGURATION_CODES


def is_refused_way(error: S3Error) -> bool:
    """Whether another way of asking the same is worth a try: the service does not know this one, or finds fault with
    it in a manner that says nothing of region, credentials or clock."""
    return is_unsupported(error) or (type(error) is S3Error and error.status == 400 and error.code in REFUSED_WAY_CODES)


def none_for(harmless: Callable[[S3Error], bool]) -> Callable[[TwistedFailure], TwistedFailure | None]:
    """An errback that takes the harmless errors for None."""

    def errback(failure: TwistedFailure) -> TwistedFailure | None:
        error = failure.value
        return None if isinstance(error, S3Error) and harmless(error) else failure

    return errback
