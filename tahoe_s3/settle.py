# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a write whose answer does not tell: a HEAD does.

Owner: tahoe_s3.client, on the reactor's thread. `head` asks for the object that was written. Errors: S3Error.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Final, Protocol, cast

from twisted.internet.defer import Deferred, inlineCallbacks

from tahoe_s3 import documents
from tahoe_s3.answers import bad_reply
from tahoe_s3.s3errors import NotFound, S3Error

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from twisted.python.failure import Failure

    from tahoe_s3._native import Event
    from tahoe_s3.download import ObjectInfo

Head = Callable[[], "Deferred[ObjectInfo]"]


class OnWrite(Protocol):
    """Hears of each end of a write or deletion: is_in_doubt where an attempt may be applied yet, since nobody knows
    what became of it; is_answered where one was done. Not called where nothing was and nothing can be."""

    def __call__(self, key: str, *, is_in_doubt: bool, is_answered: bool) -> None: ...


def tell_ended(on_write: OnWrite, result: Event | Failure, keys: Iterable[str]) -> None:
    """Tell it how a request that wrote or deleted these keys has ended."""
    error = result.value
    is_answered = not isinstance(error, BaseException)
    if isinstance(error, S3Error):
        is_in_doubt = error.outcome == "unknown"
    else:
        is_in_doubt = is_answered and cast("Event", result).attempts > 1
    if is_answered or is_in_doubt:
        for key in keys:
            on_write(key, is_in_doubt=is_in_doubt, is_answered=is_answered)


NO_CONTENT: Final = 204
OLDER_S: Final = 60
"""A service may take the time when a PUT began, or another machine's clock, for an object's LastModified."""


@inlineCallbacks
def written(
    event: Event, operation: str, key: str, size: int | None, head: Head
) -> Generator[Deferred[Any], Any, ObjectInfo]:
    """After a success without an ETag, which a page of some proxy would have as well: is the object there?

    Fails with BadReply of outcome "unknown" where it is not, or is another one: of another size, or too old. The age
    of what CompleteMultipartUpload made says nothing, since it may count from CreateMultipartUpload.
    """
    try:
        info: ObjectInfo = yield head()
        oldest_s = (event.server_time_s or 0) - OLDER_S if operation == "PutObject" else 0
        if size not in (None, info.size):
            why = "shows another size"
        elif 0 < info.modified_s < oldest_s:
            why = "shows an older one"
        else:
            return info
    except S3Error as error:
        why = f"failed ({error})"
    raise bad_reply(event, f"the answer has no ETag, and a HEAD of the object {why}", operation=operation, key=key,
                    outcome="unknown")


@inlineCallbacks
def deleted(event: Event, key: str, head: Head) -> Generator[Deferred[Any], Any, None]:
    """After a deletion that was answered: where the status is not S3's 204, which a page of some proxy would not have,
    is the object gone? Fails with BadReply of outcome "unknown" where it is not."""
    if event.status == NO_CONTENT:
        return
    try:
        yield head()
        why = "shows it still"
    except NotFound:
        return
    except S3Error as error:
        why = f"failed ({error})"
    raise bad_reply(event, f"not the answer to a deletion, and a HEAD of the object {why}", operation="DeleteObject",
                    key=key, outcome="unknown")


@inlineCallbacks
def completed_before(
    failure: Failure, parts: Sequence[tuple[int, str]], expect_size: int, head: Head
) -> Generator[Deferred[Any], Any, ObjectInfo]:
    """After NoSuchUpload: is the object there that completing would have made? Fails with `failure` where not.

    Where parts have MD5s for ETags, the object's ETag is known beforehand, and decides. Elsewhere ETags are
    opaque, and an equal size is believed only after an attempt whose answer was lost.
    """
    error = failure.value
    try:
        info: ObjectInfo = yield head()
    except NotFound:
        failure.raiseException()
        raise
    expected = documents.multipart_etag([etag for _number, etag in parts])
    same = info.etag == expected
    lost_answer = isinstance(error, S3Error) and error.attempts > 1
    if info.size == expect_size and (same or (lost_answer and not documents.is_multipart_md5(info.etag))):
        return info
    failure.raiseException()
    return info
