# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the bucket is still ours: a node that was superseded notices, stops writing, and says so.

Every start of a node writes a fresh instance into the owner's mark (store/ownership.py). Two copies of one node's
folder, or a node that was given the bucket of another, would otherwise undo each other's changes. So the mark is read
again right before shares expire, and when something is written more than LOOK_EVERY_S after it was last seen: one GET
beside the write, which does not wait for it. An hour without a write costs nothing.

Another node's mark, or that of another start, settles it at once. One that is missing, that cannot be a mark, or that
is older than ours (some services answer with what was there before) is looked at again for GONE_AFTER_S. What has no
answer (network, 5xx) settles nothing: the next write looks again. There is no way back but a restart, which claims the
bucket anew.

Owner: the Store. Thread: the reactor's. `clock` has seconds(). Errors: look() fails with an S3Error where nobody can
tell; about_to_write() raises Unavailable once the bucket is lost. Limits: one look in the background at a time, not
more often than every AGAIN_S.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Callable, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from tahoe_s3 import errors
from tahoe_s3.client import AccessDenied, NoSuchBucket, Priority, S3Client, S3Error, Unavailable
from tahoe_s3.store.keys import OWNER_KEY
from tahoe_s3.store.ownership import OwnerMark, read_mark

#: Seconds for which the mark is believed once it was seen, while things are written.
LOOK_EVERY_S = 120.0
#: Seconds after a look that had no answer before the next write tries again.
AGAIN_S = 15.0
#: A mark that is missing is looked for this often, in seconds, and after so many the node gives up.
MISSING_EVERY_S = 60.0
GONE_AFTER_S = 180.0


class Clock(Protocol):
    """What is used of the reactor."""

    def seconds(self) -> float: ...


def place_of(bucket: str, prefix: str) -> str:
    """For people."""
    return f"the bucket '{bucket}'" + (f" below the prefix '{prefix}'" if prefix else "")


def superseded(mark: OwnerMark, ours: OwnerMark, place: str) -> str:
    """The sentence for a mark that is not ours."""
    host = f" on the host {mark.host}" if mark.host else ""
    if mark.nodeid != ours.nodeid:
        return (
            f"another node, {mark.nodeid}{host}, has taken over {place} at {mark.since}, so this node ({ours.nodeid}) "
            "has stopped writing there and answers nothing; stop it, or give it a bucket or an s3.prefix of its own"
        )
    return (
        f"this node was started a second time{host} at {mark.since} and serves {place} from there, so this instance "
        f"(started at {ours.since}) has stopped writing and answers nothing; stop it for good, or stop the other one "
        "and restart this one"
    )


class OwnerWatch:
    """See the module. `lost`: why this node may not write any more, or None; `on_lost` is called with it, once."""

    log = Logger()

    def __init__(
        self, client: S3Client, *, clock: Clock, later: Callable[[float, Callable[[], None]], None],
        in_background: Callable[[Deferred[Any]], None], on_lost: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._client = client
        self._clock = clock
        self._later = later
        self._in_background = in_background
        self._on_lost = on_lost
        self._mark: OwnerMark | None = None
        self._bucket = self._prefix = ""
        self._seen_s = self._tried_s = 0.0
        self._missing_since_s: float | None = None
        self._is_looking = False
        self.lost: str | None = None

    @property
    def place(self) -> str:
        """The bucket and prefix, for people."""
        return place_of(self._bucket, self._prefix)

    @property
    def has_begun(self) -> bool:
        return self._mark is not None

    def begin(self, mark: OwnerMark, found: OwnerMark | None, *, bucket: str, prefix: str) -> None:
        """The start has written `mark`, and `found` is what lay there at its end, just now."""
        self._mark, self._bucket, self._prefix = mark, bucket, prefix
        self._seen_s = self._tried_s = self._clock.seconds()
        self._judge(found)

    # on writes

    def about_to_write(self) -> None:
        """Something is about to change the bucket. Raises Unavailable where this node may not; may begin a look."""
        if self._mark is not None and not self._is_looking:
            now_s = self._clock.seconds()
            # A clock that was set back puts no look off.
            if not (0 <= now_s - self._seen_s < LOOK_EVERY_S or 0 <= now_s - self._tried_s < AGAIN_S):
                self._look_in_background()
        if self.lost is not None:
            raise Unavailable(self.lost, kind="local")

    def _look_in_background(self) -> None:
        if self._is_looking or self.lost is not None:
            return
        self._is_looking, self._tried_s = True, self._clock.seconds()
        looking: Deferred[Any] = self.look(priority=1)

        def ended(result: Any) -> Any:
            self._is_looking = False
            return result

        self._in_background(looking.addBoth(ended).addErrback(self._cannot_tell))

    def _cannot_tell(self, failure: Any) -> None:
        failure.trap(S3Error)
        if isinstance(failure.value, (AccessDenied, NoSuchBucket)):
            # Whoever is refused asks seldom (store/health.py).
            self._missing_since_s = None
        self.log.warn(
            "whether {place} still belongs to this node cannot be told: {error}", place=self.place,
            error=str(failure.value),
        )  # fmt: skip

    # looking

    @inlineCallbacks
    def look(self, *, priority: Priority) -> Generator[Deferred[Any], Any, str | None]:
        """One GET of the mark, whose answer tells the service's time too. Fires with None where it is ours, else with
        the reason why nothing may be deleted now. Fails with an S3Error where nobody can tell."""
        if self.lost is not None:
            return self.lost
        if self._mark is None:
            return "this node has not claimed its bucket yet"
        asked_s = self._clock.seconds()
        try:
            found = yield read_mark(self._client, bucket=self._bucket, prefix=self._prefix, priority=priority)
        except errors.NewerLayout as error:
            self.lose(f"a newer tahoe-s3 has taken over {self.place}, so this node has stopped writing there: {error}")
            return self.lost
        except errors.BadOwnerMark as error:
            return self._is_missing(asked_s, str(error))
        self._seen_s = asked_s
        return self._judge(found)

    def _judge(self, found: OwnerMark | None) -> str | None:
        assert self._mark is not None
        if self.lost is not None:
            return self.lost
        if found is None:
            why = f"the mark of this node is not in the bucket ({self._prefix}{OWNER_KEY})"
            return self._is_missing(self._clock.seconds(), why)
        if (found.nodeid, found.instance) != (self._mark.nodeid, self._mark.instance):
            sentence = superseded(found, self._mark, self.place)
            if found.since_s < self._mark.since_s:
                why = f"the mark in the bucket ({self._prefix}{OWNER_KEY}) is older than that of this node"
                return self._is_missing(self._clock.seconds(), why, sentence=sentence)
            self.lose(sentence)
            return self.lost
        self._missing_since_s = None
        return None

    def _is_missing(self, asked_s: float, why: str, *, sentence: str | None = None) -> str | None:
        """Somebody has removed or replaced it, perhaps to take the bucket over; or the service lags. `sentence`: what
        to say in the end, if it stays so."""
        since_s = self._missing_since_s
        if since_s is None or asked_s < since_s:
            self._missing_since_s = asked_s
            self.log.warn("{why}; it is looked for again", why=why)
            if since_s is None:
                self._later(MISSING_EVERY_S, self._look_again)
        elif asked_s - since_s >= GONE_AFTER_S:
            self.lose(
                sentence or
                f"the mark of this node, {self._prefix}{OWNER_KEY}, has been missing from {self.place} for minutes, so "
                "somebody may be taking the bucket over, and this node has stopped writing there and answers nothing; "
                "if nobody is, restart this node, which claims the bucket again"
            )
            return self.lost
        return why

    def _look_again(self) -> None:
        """While it is missing, whether anything is written or not."""
        if self._missing_since_s is not None and self.lost is None:
            self._later(MISSING_EVERY_S, self._look_again)
            self._look_in_background()

    def lose(self, why: str) -> None:
        """This node may not write any more, for this reason. There is no way back."""
        if self.lost is None:
            self.lost = why
            self.log.critical("{why}", why=why)
            self._on_lost(why)
