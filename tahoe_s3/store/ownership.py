# SPDX-License-Identifier: GPL-2.0-or-later
"""The owner's mark: ``owner.json`` says which node keeps its shares below this prefix.

The bucket has one writer, which is what lets the index be trusted and makes conditional writes unnecessary (many
services lack or break them). The mark names the node and a random instance, written at every start; a later start
of the same node elsewhere therefore supersedes the earlier one. Prefixes that contain one another count as the same
place: the marks of the prefixes above are read here, those below are met in the listing (store/opening.py).
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Callable

from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from tahoe_s3 import errors
from tahoe_s3.client import NotFound, Priority, S3Client, S3Error
from tahoe_s3.store.keys import OWNER_KEY
from tahoe_s3.store.points import reach

LAYOUT_VERSION = 1
_MAX_MARK_BYTES = 16 * 1024
#: The end of the year 9999.
_MAX_SINCE_S = 253_402_300_799
_HOST = re.compile(r"[0-9A-Za-z._-]{1,255}")
#: One look at the mark, all its attempts.
DEADLINE_S = 60.0


def host_name(name: object) -> str:
    """A host's name if it is one, else nothing: it is shown to people, and whoever can write the bucket chose it."""
    return name if isinstance(name, str) and _HOST.fullmatch(name) else ""


def this_host() -> str:
    return host_name(socket.gethostname())


@dataclass(frozen=True)
class OwnerMark:
    """nodeid: base32, as in the node's own status page; instance: fresh at each start; since_s: epoch seconds; host:
    the name of its machine, only for people, "" where it is not known."""

    nodeid: str
    instance: str
    since_s: int
    host: str = ""

    @property
    def since(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since_s))

    def to_json(self) -> bytes:
        document = {"version": LAYOUT_VERSION, "nodeid": self.nodeid, "instance": self.instance, "since": self.since_s}
        if self.host:
            document["host"] = self.host
        return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_mark(data: bytes, *, bucket: str, key: str) -> OwnerMark:
    """The mark in `data`; errors.BadOwnerMark or errors.NewerLayout where it cannot be one of ours. Fields that are
    not known are nobody's fault: a later tahoe-s3 of the same layout may add some."""
    problem = ""
    try:
        document = json.loads(data)
        version = document["version"]
        if type(version) is int and version > LAYOUT_VERSION:
            raise errors.NewerLayout(bucket=bucket, found=version, known=LAYOUT_VERSION)
        host = host_name(document.get("host"))
        mark = OwnerMark(document["nodeid"], document["instance"], document["since"], host)
        types = (type(mark.nodeid), type(mark.instance), type(mark.since_s))
        if version != LAYOUT_VERSION or types != (str, str, int) or not mark.nodeid:
            problem = "a field has a wrong value"
        elif not 0 <= mark.since_s <= _MAX_SINCE_S:
            problem = "its time is impossible"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"it cannot be read, {type(error).__name__}"
    if problem:
        raise errors.BadOwnerMark(bucket=bucket, key=key, problem=problem)
    return mark


@inlineCallbacks
def read_mark(
    client: S3Client, *, bucket: str, prefix: str, priority: Priority = 1
) -> Generator[Deferred[Any], Any, OwnerMark | None]:
    """The mark at the client's prefix (`prefix` is only for messages), or None where there is none."""
    try:
        got = yield client.get(
            OWNER_KEY, length=_MAX_MARK_BYTES, offset=0, priority=priority, deadline_s=DEADLINE_S
        )
    except NotFound:
        return None
    except S3Error as error:
        if error.status != 416:
            raise
        # An empty object has no range at all.
        return parse_mark(b"", bucket=bucket, key=f"{prefix}{OWNER_KEY}")
    return parse_mark(got.data, bucket=bucket, key=f"{prefix}{OWNER_KEY}")


def refuse_other(mark: OwnerMark | None, *, bucket: str, prefix: str, nodeid: str) -> None:
    """Raise errors.OwnedByAnother where the mark at `prefix` is another node's."""
    if mark is not None and mark.nodeid != nodeid:
        raise errors.OwnedByAnother(bucket=bucket, prefix=prefix, owner=mark.nodeid, since=mark.since, own=nodeid)


@inlineCallbacks
def claim(
    client: S3Client, mark: OwnerMark, *, bucket: str, prefix: str,
    on_found: Callable[[OwnerMark | None], Deferred[None]] = lambda _: succeed(None),
) -> Generator[Deferred[Any], Any, OwnerMark | None]:  # fmt: skip
    """Write the mark where nobody else's is, and read it back.

    Of two that start at once the first may not see the other's yet: confirm() is to be called later in the start.
    on_found: called with the mark that was there, ours or none, and waited for before ours is written.
    Fires with the mark of this node's start before this one, or None where the place was nobody's. Raises
    errors.OwnedByAnother naming the owner, or an S3Error.
    """
    before: OwnerMark | None = yield read_mark(client, bucket=bucket, prefix=prefix)
    refuse_other(before, bucket=bucket, prefix=prefix, nodeid=mark.nodeid)
    reach("claim.read")
    yield on_found(before)
    yield client.put(OWNER_KEY, mark.to_json(), content_type="application/json")
    reach("claim.put")
    after = yield read_mark(client, bucket=bucket, prefix=prefix)
    refuse_other(after, bucket=bucket, prefix=prefix, nodeid=mark.nodeid)
    reach("claim.done")
    return before


@inlineCallbacks
def confirm(
    client: S3Client, *, bucket: str, prefix: str, nodeid: str
) -> Generator[Deferred[Any], Any, OwnerMark | None]:
    """Look once more whether the mark is this node's, before anything is served. Raises as claim() does; else fires
    with what is there: another start of this node may have come in between (store/watch.py judges that)."""
    now: OwnerMark | None = yield read_mark(client, bucket=bucket, prefix=prefix)
    refuse_other(now, bucket=bucket, prefix=prefix, nodeid=nodeid)
    return now


@inlineCallbacks
def disclaim(client: S3Client, mark: OwnerMark, *, bucket: str, prefix: str) -> Generator[Deferred[Any], Any, None]:
    """Take the mark away again, if it is still this very one."""
    found = yield read_mark(client, bucket=bucket, prefix=prefix)
    if found is not None and found.instance == mark.instance:
        yield client.delete(OWNER_KEY)
