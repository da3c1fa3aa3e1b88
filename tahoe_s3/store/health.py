# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service's answers say about the service: whether it answers, and whether it still knows this node.

A service that is down makes calls fail after their retries, and is not treated otherwise: the next call tries again,
so everything heals by itself. It is said once, and once that it is over. Credentials that are refused, and a bucket
that is not there any more, are another matter: services lock out who comes back with bad credentials, and nothing will
change before somebody has mended it. So when a request was refused the owner's mark is asked for; if that is
refused too, `problem` is set, every call fails at once without a request, and only the mark is asked for again every
RETRY_REFUSED_S, until it is answered.

`recent_errors` has the last troubles of whatever kind, for the status page.

Owner: the Store. Thread: the reactor's. Errors: none leave it. Limits: RECENT errors; one look at a time, none sooner
than SUSPECT_EVERY_S after another that found nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import AccessDenied, Busy, Cancelled, Closed, LocalError, NoSuchBucket, S3Error
from tahoe_s3.store.watch import Clock

RECENT = 20
#: Characters of one of them at most.
MAX_CHARACTERS = 400
#: Requests that fail one after the other until the service counts as down.
DOWN_AFTER = 3
#: Seconds between two looks at the mark because something was refused.
SUSPECT_EVERY_S = 60.0
#: Seconds until a service that refuses this node is asked again.
RETRY_REFUSED_S = 600.0


class Health:
    """See the module.

    problem: why no call can be served, or None. trouble: what is wrong with the service's answers at the moment, or
    None: `problem`, or that nothing comes. `look` asks for the owner's mark, and fails with an S3Error.
    """

    log = Logger()

    def __init__(
        self, *, clock: Clock, later: Callable[[float, Callable[[], None]], None],
        in_background: Callable[[Deferred[Any]], None], look: Callable[[], Deferred[Any]], place: Callable[[], str],
    ) -> None:  # fmt: skip
        self._clock = clock
        self._later = later
        self._in_background = in_background
        self._look = look
        self._place = place
        self._failed = 0
        self._down_since_s: float | None = None
        self._is_looking = False
        self._looked_s: float | None = None
        self.problem: str | None = None
        self._down: str | None = None
        #: (when by the clock, what), the newest last.
        self.recent_errors: deque[tuple[float, str]] = deque(maxlen=RECENT)

    @property
    def trouble(self) -> str | None:
        return self.problem or self._down

    def note(self, sentence: str) -> None:
        """Something went wrong. No secret may be in the sentence."""
        self.recent_errors.append((self._clock.seconds(), " ".join(sentence.split())[:MAX_CHARACTERS]))

    def heard(self, error: S3Error | None) -> None:
        """What became of a request, after all its attempts."""
        if error is None or (error.status == 404 and not isinstance(error, NoSuchBucket)):
            self._answered()
        elif not isinstance(error, (Cancelled, Closed, Busy)):
            self.note(str(error))
            if isinstance(error, (AccessDenied, NoSuchBucket)):
                self._answered()
                self._suspect()
            elif not isinstance(error, LocalError):
                self._unanswered(error)

    # a service that is down

    def _answered(self) -> None:
        self._failed = 0
        if self._down_since_s is not None:
            self.log.warn(
                "the S3 service answers again, after {down_s:.0f} seconds",
                down_s=max(0.0, self._clock.seconds() - self._down_since_s),
            )  # fmt: skip
            self._down = self._down_since_s = None

    def _unanswered(self, error: S3Error) -> None:
        self._failed += 1
        if self._failed >= DOWN_AFTER and self._down_since_s is None:
            self._down_since_s = self._clock.seconds()
            self._down = f"the S3 service gives no usable answer ({error.code or error.message or error.kind})"
            self.log.error(
                "{trouble}: clients get errors until it does, which needs nobody's help here; the last request was "
                "{error}", trouble=self._down, error=str(error),
            )  # fmt: skip

    # a service that refuses

    def _suspect(self) -> None:
        """Is it only this request that is refused, or this node?"""
        now_s = self._clock.seconds()
        if self._is_looking or self.problem is not None:
            return
        if self._looked_s is not None and 0 <= now_s - self._looked_s < SUSPECT_EVERY_S:
            return
        self._look_now()

    def _look_now(self) -> None:
        self._is_looking, self._looked_s = True, self._clock.seconds()
        self._in_background(self._look().addCallbacks(self._welcome, self._unwelcome))

    def _look_again(self) -> None:
        if self.problem is not None and not self._is_looking:
            self._look_now()

    def _welcome(self, _: object) -> None:
        self._is_looking = False
        if self.problem is not None:
            self.problem = None
            self.log.warn("{place} can be used again", place=self._place())

    def _unwelcome(self, failure: Failure) -> None:
        self._is_looking = False
        error: Any = failure.value
        failure.trap(S3Error)
        why = self._why(error)
        if why is not None and why != self.problem:
            self.problem = why
            self.note(why)
            self.log.critical("{why}", why=why)
        elif self.problem is not None:
            self.log.warn("{place} still cannot be used: {error}", place=self._place(), error=str(error))
        if self.problem is not None:
            self._later(RETRY_REFUSED_S, self._look_again)

    def _why(self, error: S3Error) -> str | None:
        """The sentence for a refusal; None for what may pass by itself."""
        again = f"it is asked again every {RETRY_REFUSED_S / 60:.0f} minutes, and until then clients get errors"
        if isinstance(error, NoSuchBucket):
            return f"{self._place()} is not there any more (NoSuchBucket); {again}; see that it comes back"
        if isinstance(error, AccessDenied):
            return (
                f"the service refuses this node's credentials for {self._place()} ({error.status} "
                f"{error.code or 'no reason given'}); {again}; allow this access key to get, put, list and delete, or "
                "put another into tahoe.cfg and private/s3secret and restart the node"
            )
        return None
