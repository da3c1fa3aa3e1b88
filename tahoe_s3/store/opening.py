# SPDX-License-Identifier: GPL-2.0-or-later
"""From a configuration to a Store: is the bucket there and ours, and what lies in it?

At every start the mark is claimed, the bucket is listed once (store/reconcile.py; the node waits for the first pages
only), and multipart uploads that a crash left are removed before any of its own can begin. What the operator must mend
is raised as an errors.ConfigError. A bucket that cannot be reached stops only a node that has never run before; any
other starts, answers errors, and keeps trying.

Requests of a start over n objects: n/1000 LISTs (up to an eighth more where there are many, see listing.py) and eight
others, and two for each folder of s3.prefix.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3 import errors
from tahoe_s3.client import (
    AccessDenied,
    BadReply,
    ClientConfig,
    ClockSkewed,
    NoSuchBucket,
    S3Client,
    S3Error,
    Throttled,
    Untrusted,
    WrongRegion,
    open_client,
)
from tahoe_s3.config import S3Config
from tahoe_s3.store import ownership
from tahoe_s3.store.index import Index
from tahoe_s3.store.keys import OWNER_KEY, SHARES, ShareId, parse_key
from tahoe_s3.store.objects import abort_quietly
from tahoe_s3.store.points import reach
from tahoe_s3.store.store import INDEX, Store

#: One request of a start, all its attempts.
DEADLINE_S = 60.0
#: Seconds until a bucket that could not be reached is tried again.
RETRY_S = 30.0
#: Likewise, where it was reached and refused this node.
RETRY_REFUSED_S = 600.0

MakeClient = Callable[[Any, ClientConfig], S3Client]

# In the index: the instance in the owner's mark of the start that it belongs to.
_INSTANCE = "instance"

_DISK_SHARE = re.compile(r"[0-9]+")
_log = Logger()


@dataclass(frozen=True)
class Place:
    """Where one node keeps its shares: for messages, and to tell one bucket's index from another's."""

    config: S3Config
    nodeid: str
    local_dir: Path

    @property
    def identity(self) -> str:
        config = self.config
        return f"{self.nodeid} {config.url} {config.bucket} {config.prefix}"


def client_config(config: S3Config, *, prefix: str | None = None) -> ClientConfig:
    """What the client layer needs of the node's configuration; another `prefix` to look elsewhere in the bucket."""
    return ClientConfig(
        endpoint=config.url,
        region=config.region,
        bucket=config.bucket,
        access_key_id=config.access_key_id,
        secret=config.secret,
        token=config.token,
        addressing="path" if config.path_style else "virtual",
        prefix=config.prefix if prefix is None else prefix,
        ca_file=None if config.ca_bundle is None else str(config.ca_bundle),
        max_connections=config.max_connections,
    )


def refuse_disk_shares(place: Place) -> None:
    """Raise errors.DiskShares where the disk backend left shares: they would silently vanish from the grid."""
    shares = place.local_dir / "shares"
    for folder in shares.glob("[a-z2-7][a-z2-7]/*") if shares.is_dir() else ():
        if folder.is_dir() and any(_DISK_SHARE.fullmatch(found.name) for found in folder.iterdir()):
            raise errors.DiskShares(
                storage_dir=str(place.local_dir), bucket=place.config.bucket, prefix=place.config.prefix
            )


def explain(error: S3Error, config: S3Config) -> errors.ConfigError | None:
    """The sentence for an answer that only the operator can do something about; None for a passing failure."""
    if isinstance(error, NoSuchBucket):
        return errors.NoSuchBucket(bucket=config.bucket, url=config.url, region=config.region)
    if isinstance(error, AccessDenied):
        return errors.RefusedCredentials(
            bucket=config.bucket, url=config.url, code=error.code, access_key_id=config.access_key_id
        )
    if isinstance(error, ClockSkewed):
        return errors.WrongClock(url=config.url, own_time_s=int(time.time()), server_time_s=error.server_time_s)
    if isinstance(error, WrongRegion):
        actual = error.region or ""
        return errors.WrongRegion(bucket=config.bucket, configured=config.region, actual=actual)
    if isinstance(error, Throttled):
        return None
    if isinstance(error, BadReply) or (error.kind == "service" and 0 < error.status < 500):
        detail = f"HTTP status {error.status}" if error.status else "no S3 answer"
        return errors.NotS3(url=config.url, detail=f"{detail}, {error.code or error.message or 'no error code'}")
    return None


def why_no_answer(error: S3Error, config: S3Config) -> errors.ConfigError:
    """The sentence for a first start without an answer. Later starts go on without one: a certificate may expire."""
    if isinstance(error, Untrusted):
        bundle = None if config.ca_bundle is None else str(config.ca_bundle)
        return errors.UntrustedCertificate(url=config.url, detail=error.message, ca_bundle=bundle)
    return errors.Unreachable(url=config.url, detail=error.message or error.kind)


def _not_told(failure: Failure) -> None:
    """Many policies do not let a node ask about the bucket's settings, and many services do not know the question,
    each refusing in its own way; what is asked is only good to know."""
    error = failure.value
    refused = isinstance(error, S3Error) and 400 <= error.status < 500 and not isinstance(error, Throttled)
    if not (refused or isinstance(error, AccessDenied)):
        failure.raiseException()
    _log.info("the bucket's settings cannot be asked about: {error}", error=str(failure.value))


class Opening:
    """Brings a Store to the point where it can answer; again and again while the bucket cannot be reached."""

    def __init__(
        self, reactor: Any, place: Place, store: Store, make_client: MakeClient, *, has_run_before: bool
    ) -> None:
        self._reactor = reactor
        self._has_run_before = has_run_before
        self._make_client = make_client
        self._place = place
        self._store = store
        self._client: S3Client = store.client
        self._mark = ownership.OwnerMark(place.nodeid, secrets.token_hex(16), int(time.time()), ownership.this_host())

    @inlineCallbacks
    def run(self) -> Generator[Deferred[Any], Any, None]:
        """Raises errors.ConfigError, or an S3Error where the bucket could not be asked."""
        try:
            yield self._check_bucket()
            was_nobodys = yield self._claim()
            try:
                # Once more, now that our mark is there: of two that start at once, one above the other, at least one
                # sees the other's mark, here or in its listing.
                yield self._refuse_owners_above()
                yield self._begin_listing(was_nobodys=was_nobodys)
            except (errors.NestedOwner, errors.OwnedByAnother):
                if was_nobodys:
                    yield self._disclaim()
                raise
            yield self._confirm()
            reach("open.confirmed")
            was_there = not was_nobodys or self._store.index.share_count > 0
            yield self._store.late.begin(is_unclean=was_there and not self._store.index.was_kept)
            yield self._remove_uploads()
        except S3Error as error:
            sentence = explain(error, self._place.config)
            if sentence is not None:
                raise sentence from None
            raise
        except OSError as error:
            # What is kept of keys in doubt can be neither read nor written.
            raise errors.UnusableFolder(storage_dir=str(self._place.local_dir), detail=str(error)) from None
        rebuild = self._store.rebuild
        if rebuild.refused is not None:
            # Found in a page that came meanwhile.
            raise rebuild.refused
        self._store.problem = None
        reach("open.done")
        self._store.mark = self._mark
        if not rebuild.is_complete:
            known = "all of the index is trusted" if rebuild.answers_for_all else "what is not listed yet is looked up"
            _log.info(
                "the bucket {bucket} is large: the node serves while it is listed, and {known}",
                bucket=self._place.config.bucket, known=known,
            )  # fmt: skip

    @inlineCallbacks
    def _check_bucket(self) -> Generator[Deferred[Any], Any, None]:
        config = self._place.config
        yield self._client.probe(deadline_s=DEADLINE_S)
        region = self._client.region
        if config.region_is_explicit and region != config.region:
            raise errors.WrongRegion(bucket=config.bucket, configured=config.region, actual=region)
        if (yield self._client.get_object_lock(deadline_s=DEADLINE_S).addErrback(_not_told)) == "Enabled":
            raise errors.ObjectLocked(bucket=config.bucket)
        if (yield self._client.get_versioning(deadline_s=DEADLINE_S).addErrback(_not_told)) == "Enabled":
            _log.warn(
                "the bucket {bucket} keeps old versions of objects, so the space it takes never shrinks and you pay "
                "for shares that are long gone; switch versioning off, or add a lifecycle rule for old versions",
                bucket=config.bucket,
            )

    @inlineCallbacks
    def _claim(self) -> Generator[Deferred[Any], Any, bool]:
        """Fires with whether the place was nobody's before."""
        config = self._place.config
        yield self._refuse_owners_above()
        # Since when it is ours: of a node that waited for its bucket, not since its start.
        self._mark = replace(self._mark, since_s=int(time.time()))
        before: ownership.OwnerMark | None = yield ownership.claim(
            self._client, self._mark, bucket=config.bucket, prefix=config.prefix, on_found=self._found_mark
        )
        self._forget_what_is_outlived(before)
        return before is None

    def _forget_what_is_outlived(self, before: ownership.OwnerMark | None) -> None:
        """An index that a clean stop has left, and the copies beside it, are right only where that run was the last one
        on this bucket: of what a later one has done they know nothing, and would be believed until it is listed. There
        was one where the folder comes from a backup, or a copy of it was started."""
        store, index = self._store, self._store.index
        if index.was_kept and (before is None or before.instance != index.recall(_INSTANCE)):
            _log.warn(
                "the bucket {bucket} was served from elsewhere since this node's last clean stop here: the index is "
                "made anew from the bucket", bucket=self._place.config.bucket,
            )  # fmt: skip
            index.start_over(identity=self._place.identity)
            store.rebuild.forget()
            store.cache.clear()
        index.remember(_INSTANCE, self._mark.instance)

    def _found_mark(self, found: ownership.OwnerMark | None) -> Deferred[None]:
        """A start that failed behind this point, and is made again, finds its own mark, or who came meanwhile."""
        self._store.late.judge(None if found is None else found.instance)
        return self._store.late.about_to_claim(self._mark.instance)

    @inlineCallbacks
    def _confirm(self) -> Generator[Deferred[Any], Any, None]:
        config = self._place.config
        found: ownership.OwnerMark | None = yield ownership.confirm(
            self._client, bucket=config.bucket, prefix=config.prefix, nodeid=self._place.nodeid
        )
        self._store.watch.begin(self._mark, found, bucket=config.bucket, prefix=config.prefix)

    @inlineCallbacks
    def _disclaim(self) -> Generator[Deferred[Any], Any, None]:
        """The node below would find our mark above its own at its next start, and refuse to start."""
        config = self._place.config
        try:
            yield ownership.disclaim(self._client, self._mark, bucket=config.bucket, prefix=config.prefix)
        except (S3Error, errors.ConfigError) as error:
            _log.error("the mark of this node at {prefix}{key} should be deleted, but it could not be: {error}",
                       prefix=config.prefix, key=OWNER_KEY, error=str(error))  # fmt: skip

    def _begin_listing(self, *, was_nobodys: bool) -> Deferred[None]:
        config = self._place.config
        return self._store.rebuild.begin(
            bucket=config.bucket, prefix=config.prefix, needs_share=not self._has_run_before, was_nobodys=was_nobodys,
            on_refused=lambda error: self._met_owner_below(error, was_nobodys=was_nobodys),
        )  # fmt: skip

    def _met_owner_below(self, error: errors.NestedOwner, *, was_nobodys: bool) -> None:
        """In a page that came while the node serves, which it would not have begun to do had it been the first."""
        self._store.problem = str(error)
        why = f"{error} This node has stopped writing and answers nothing."
        # Our mark goes first, since nothing can be written after.
        gone: Deferred[None] = self._disclaim() if was_nobodys else succeed(None)
        self._store.in_background(gone.addCallback(lambda _: self._store.watch.lose(why)))

    @inlineCallbacks
    def _refuse_owners_above(self) -> Generator[Deferred[Any], Any, None]:
        names = self._place.config.prefix.split("/")[:-1]
        for depth in range(len(names)):
            yield self._refuse_owner_above("".join(f"{name}/" for name in names[:depth]))

    @inlineCallbacks
    def _refuse_owner_above(self, prefix: str) -> Generator[Deferred[Any], Any, None]:
        """A node that owns a prefix above ours would take our shares for foreign keys, and we its own."""
        config = self._place.config
        other = self._make_client(self._reactor, client_config(config, prefix=prefix))
        try:
            mark = yield ownership.read_mark(other, bucket=config.bucket, prefix=prefix)
        except AccessDenied:
            # Credentials that may see our prefix only: then nobody could have given them the one above either.
            return
        finally:
            self._client.counters.add(other.counters, self._reactor.seconds())
            yield other.close()
        if mark is not None:
            raise errors.OwnedByAnother(
                bucket=config.bucket, prefix=prefix, owner=mark.nodeid, since=mark.since, own=self._place.nodeid
            )

    @inlineCallbacks
    def _remove_uploads(self) -> Generator[Deferred[Any], Any, None]:
        """Multipart uploads of ours that never ended: they are invisible, and paid for."""
        try:
            uploads = yield self._client.list_multiparts(SHARES)
        except S3Error as error:
            # They cost money, but nothing depends on their absence, and not every policy lets us ask.
            _log.warn("cannot look for uploads that never ended: {error}", error=str(error))
            return
        for upload in uploads:
            if isinstance(parse_key(upload.key), ShareId):
                yield abort_quietly(self._client, upload.key, upload.upload_id)
                reach("open.upload-removed")

    def keep_trying(self, error: S3Error) -> None:
        """The node starts without its bucket: every call gets an error until this has succeeded."""
        place = self._place.config.url
        self._store.problem = f"the S3 service at {place} could not be reached since the node's start"
        told = why_no_answer(error, self._place.config) if isinstance(error, Untrusted) else error
        _log.error("{problem}: {error}", problem=self._store.problem, error=str(told))
        self._store.later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._store.in_background(self.run().addErrback(self._still_not))

    def _still_not(self, failure: Any) -> None:
        self._store.problem = f"the bucket cannot be used: {failure.getErrorMessage()}"
        _log.error("{problem}", problem=self._store.problem)
        # What the operator must mend takes time; and services lock out who comes back with bad credentials.
        refused = failure.check(errors.ConfigError)
        self._store.later(RETRY_REFUSED_S if refused else RETRY_S, self._try_again)


    # an index that turned out to be damaged while the node runs

    def mend_index(self, why: str) -> None:
        """Throw it away and list the bucket again, until that succeeds. The mark is not claimed again: where it is
        another's now, this node is not to take it back."""
        self._store.in_background(self._mend_index().addErrback(self._not_mended, why))

    @inlineCallbacks
    def _mend_index(self) -> Generator[Deferred[Any], Any, None]:
        self._store.index.start_over(identity=self._place.identity)
        self._store.index.remember(_INSTANCE, self._mark.instance)
        self._store.rebuild.forget()
        yield self._begin_listing(was_nobodys=False)
        self._store.late.mark_undone()
        doubt: str | None = yield self._store.check_still_ours(priority=1)
        self._store.mended()
        _log.warn(
            "the index was rebuilt: {count} shares of {used} bytes{doubt}", count=self._store.index.share_count,
            used=self._store.index.used_bytes, doubt=f" ({doubt})" if doubt else "",
        )  # fmt: skip

    def _not_mended(self, failure: Failure, why: str) -> None:
        failure.trap(S3Error, errors.ConfigError, sqlite3.Error, OSError)
        self._store.problem = f"the index was damaged ({why}) and cannot be rebuilt yet: {failure.getErrorMessage()}"
        _log.error("{problem}", problem=self._store.problem)
        self._store.later(RETRY_S, lambda: self.mend_index(why))


@inlineCallbacks
def open_store(
    reactor: Any,
    config: S3Config,
    *,
    nodeid: str,
    local_dir: Path,
    has_run_before: bool,
    make_client: MakeClient = open_client,
) -> Generator[Deferred[Any], Any, Store]:
    """The Store of this node. Raises errors.ConfigError, one sentence for the operator.

    Args:
        nodeid: base32, as the owner's mark has it.
        local_dir: the node's storage folder.
        has_run_before: whether the node may start while the bucket cannot be reached.
    """
    place = Place(config, nodeid, local_dir)
    try:
        refuse_disk_shares(place)
        local_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UnusableFolder(storage_dir=str(local_dir), detail=str(error)) from None
    client = make_client(reactor, client_config(config))
    index = None
    try:
        index = Index(local_dir / INDEX, identity=place.identity)
        reach("open.index")
        store = Store(
            reactor=reactor, client=client, index=index, local_dir=local_dir, part_size_bytes=config.part_size_bytes,
            capacity_bytes=config.capacity_bytes,
        )  # fmt: skip
    except BaseException as error:
        if index is not None:
            index.abandon()
        yield client.close()
        if isinstance(error, (OSError, sqlite3.Error)):
            detail = f"{local_dir / INDEX}: {error}" if isinstance(error, sqlite3.Error) else str(error)
            raise errors.UnusableFolder(storage_dir=str(local_dir), detail=detail) from None
        raise
    reach("open.tidied")
    store.config = config
    opening = Opening(reactor, place, store, make_client, has_run_before=has_run_before)
    store.mend_index = opening.mend_index
    try:
        yield opening.run()
    except S3Error as error:
        if not has_run_before:
            yield _give_up(store)
            raise why_no_answer(error, config) from None
        opening.keep_trying(error)
    except BaseException:
        yield _give_up(store)
        raise
    return store


def _give_up(store: Store) -> Deferred[None]:
    store.problem = "the start failed"
    return store.close()
