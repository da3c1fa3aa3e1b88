# SPDX-License-Identifier: GPL-2.0-or-later
"""Many keys deleted: a thousand a request, or one after the other where the service refuses that or gives an answer
that nobody can read, or a key cannot be said in XML.

Owner: S3Client.delete_many. Thread: the reactor's. Errors: the first batch that fails as a whole, or the first single
deletion that fails other than by a refusal of its key, ends it; its outcome is that of all keys together.
"""
from __future__ import annotations

from collections.abc import Generator
from typing import Any, Callable, Final

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks

from tahoe_s3.answers import is_refused_way
from tahoe_s3.documents import NOT_XML
from tahoe_s3.s3errors import AccessDenied, BadReply, S3Error

BATCH_KEYS: Final = 1000
"""Most keys that DeleteObjects takes in one request."""
SINGLE_AT_ONCE: Final = 16

Failures = list[tuple[str, str]]
"""The keys that were not deleted, each with S3's code."""
Batch = Callable[[list[str]], "Deferred[Failures]"]
"""Deletes so many at once."""
Single = Callable[[str], "Deferred[None]"]


class Deletions:
    """Of one client: remembers that the service refuses batches, or does not say what became of them."""

    def __init__(self) -> None:
        self._refuses_batches = False

    @inlineCallbacks
    def run(self, keys: list[str], batch: Batch, single: Single) -> Generator[Deferred[Any], Any, Failures]:
        batched = [key for key in keys if not NOT_XML.search(key)]
        others = [key for key in keys if NOT_XML.search(key)]
        failures: Failures = []
        count = len(batched)
        while batched and not self._refuses_batches:
            try:
                failures += yield batch(batched[:BATCH_KEYS])
            except S3Error as error:
                # A deletion may be done twice, so an answer that says nothing is no reason to stop.
                if not is_refused_way(error) and not isinstance(error, BadReply):
                    if len(batched) < count:
                        error.outcome = "unknown"
                    raise
                self._refuses_batches = True
            else:
                batched = batched[BATCH_KEYS:]
        failures += yield _one_by_one(batched + others, single)
        return failures


@inlineCallbacks
def _one_by_one(keys: list[str], single: Single) -> Generator[Deferred[Any], Any, Failures]:
    """Refusals of single keys are told; anything else ends it."""
    failures: Failures = []
    ended: list[S3Error] = []
    left = iter(keys)

    @inlineCallbacks
    def one_after_the_other() -> Generator[Deferred[Any], Any, None]:
        for key in left:
            try:
                yield single(key)
            except S3Error as error:
                if type(error) not in (S3Error, AccessDenied):
                    ended.append(error)
                failures.append((key, error.code or str(error.status)))
            if ended:
                return

    yield gatherResults([one_after_the_other() for _ in range(min(len(keys), SINGLE_AT_ONCE))])
    if ended:
        ended[0].outcome = "unknown"
        raise ended[0]
    return failures
