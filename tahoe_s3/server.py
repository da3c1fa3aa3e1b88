# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's storage server on a bucket: the same methods, most of which return Deferreds.

A subclass, since Tahoe finds its storage server by that; but nothing of the stock constructor runs, which would make
folders of shares and crawlers over them. What a share means stays Tahoe's own code (BucketWriter, MutableShareFile,
and the stock read-test-write on local copies); what stock does by walking folders is answered by the store.

Owner: the node (a child of its service). Thread: the reactor's. Errors: Tahoe's own exceptions, and S3Error where the
bucket did not do it; a request that failed never looks like a share that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

from allmydata.interfaces import NoSpace
from allmydata.storage.common import UnknownImmutableContainerVersionError
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.server import DEFAULT_RENEWAL_TIME, StorageServer
from allmydata.util import fileutil, idlib
from twisted.application import service
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, maybeDeferred
from twisted.logger import Logger

from tahoe_s3.client import S3Error
from tahoe_s3.config import NodeSettings, S3Config
from tahoe_s3.report import bucket_report, flat_statistics, knows_all, listed_part
from tahoe_s3.status import LeaseChecker, SlotCounter
from tahoe_s3.store.containers import mutable_instead
from tahoe_s3.store.expiry import Expirer, steady_s
from tahoe_s3.store.hidden import look_for_hidden
from tahoe_s3.store.index import IMMUTABLE, MUTABLE
from tahoe_s3.store.keys import ShareId, fits_key, share_key, si_text
from tahoe_s3.store.lease_policy import AGE, CUTOFF_DATE, LeasePolicy
from tahoe_s3.store.leases import Lease, hash_secret
from tahoe_s3.store.objects import MAX_OBJECT_BYTES
from tahoe_s3.store.opening import open_store
from tahoe_s3.store.points import reach
from tahoe_s3.store.reader import ShareReader
from tahoe_s3.store.store import Store
from tahoe_s3.store.upload import ShareWriter, object_size

#: Seconds between two lines in the log that say that a share was refused for lack of room.
TELL_OF_NO_ROOM_S = 3600
#: Shares that may be uploaded at once; more are not accepted, as on a full disk. Abandoned ones end after 30 minutes.
MAX_WRITERS = 10_000

_PROTOCOL = b"http://allmydata.org/tahoe/protocols/storage/v1"

_log = Logger()


def open_storage(
    reactor: Any, config: S3Config, *, nodeid: bytes, storage_dir: Path, settings: NodeSettings
) -> Deferred[Store]:
    """Everything that must be known before the node is made. Fails with an errors.ConfigError."""
    return open_store(
        reactor,
        config,
        nodeid=idlib.nodeid_b2a(nodeid),
        local_dir=storage_dir,
        has_run_before=settings.has_permutation_seed,
    )


class S3StorageServer(StorageServer):
    """See the module. `backend` is the Store that open_storage made; the server closes it when it stops."""

    def __init__(
        self,
        storedir: str,
        nodeid: bytes,
        reserved_space: int = 0,
        discard_storage: bool = False,
        readonly_storage: bool = False,
        stats_provider: Any = None,
        expiration_enabled: bool = False,
        expiration_mode: str = "age",
        expiration_override_lease_duration: int | None = None,
        expiration_cutoff_date: int | None = None,
        expiration_sharetypes: Iterable[str] = ("mutable", "immutable"),
        clock: Any = default_reactor,
        *,
        backend: Store,
        steady_s: Callable[[], float] = steady_s,
    ) -> None:
        service.MultiService.__init__(self)
        self.my_nodeid = nodeid
        self.storedir = storedir
        self.store = backend
        # Stock code that is reused asks the disk below this folder for its free space: the spool's.
        self.sharedir = str(backend.incoming_dir)
        self.incomingdir = self.sharedir
        self.corruption_advisory_dir = str(Path(storedir) / "corruption-advisories")
        fileutil.make_dirs(self.corruption_advisory_dir)
        self.reserved_space = int(reserved_space)
        self.no_storage = False
        self.readonly_storage = readonly_storage
        self.stats_provider = stats_provider
        if self.stats_provider:
            self.stats_provider.register_producer(self)
        categories = ["allocate", "write", "close", "read", "get", "writev", "readv", "add-lease", "renew", "cancel"]
        self.latencies: dict[str, list[float]] = {category: [] for category in categories}
        self.bucket_counter = SlotCounter(
            backend.index, knows_all=lambda: knows_all(backend), listed_part=lambda: listed_part(backend)
        )
        self._clock = clock
        self._started_s = self._now_s()
        policy = LeasePolicy(
            enabled=expiration_enabled,
            mode=expiration_mode,
            override_lease_duration_s=expiration_override_lease_duration if expiration_mode == AGE else None,
            cutoff_date_s=expiration_cutoff_date if expiration_mode == CUTOFF_DATE else None,
            sharetypes=tuple(expiration_sharetypes),
        )
        self._expirer = Expirer(backend, policy, now_s=self._now_s, steady_s=steady_s)
        backend.late.follow(steady_s)
        self.lease_checker = LeaseChecker(self._expirer, now_s=self._now_s)
        #: Spool path -> writer, as in stock.
        self._bucket_writers: dict[str, ShareWriter] = {}
        self._call_on_bucket_writer_close: list[Callable[[ShareWriter], None]] = []
        backend.give_up = self._give_up
        self._local = _LocalServer(self)
        self._told_of_no_room_s = -math.inf

    def __repr__(self) -> str:
        return f"<S3StorageServer {idlib.shortnodeid_b2a(self.my_nodeid)}>"

    def _now_s(self) -> float:
        """By the clock of this moment, since tests put another in its place."""
        return float(self._clock.seconds())

    def startService(self) -> None:
        service.MultiService.startService(self)
        self._expirer.start()

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """Uploads that are closing get their outcome, others end; what has begun ends; then the engine stops."""
        self.store.refuse_more()
        reach("stop.begun")
        self._expirer.stop()
        ending = [maybeDeferred(writer.disconnected) for writer in list(self._bucket_writers.values())]
        yield DeferredList(ending, consumeErrors=True)
        reach("stop.uploads-ended")
        yield maybeDeferred(service.MultiService.stopService, self)
        yield self.store.close()

    def _give_up(self, error: S3Error) -> None:
        """This node may not write any more: uploads end."""
        for writer in list(self._bucket_writers.values()):
            writer.give_up(error)

    def have_shares(self) -> bool:
        return self.store.index.share_count > 0

    # space and numbers

    def disk_free_bytes(self) -> int:
        """What the spool's disk has beyond reserved_space."""
        space = fileutil.get_available_space(self.sharedir, self.reserved_space)
        # None is a platform without statvfs; stock then advertises 2**64, which breaks clients' schema.
        return MAX_OBJECT_BYTES if space is None else int(space)

    def _disk_bytes(self) -> int:
        """What the spool's disk could have for shares if it were empty."""
        try:
            total = int(fileutil.get_disk_stats(self.sharedir, self.reserved_space)["total"])
        except (AttributeError, OSError):
            return MAX_OBJECT_BYTES
        return total - self.reserved_space

    def get_available_space(self) -> int:
        """Bytes that there are for new shares: what s3.capacity leaves beside the uploads under way, and what the
        spool's disk has free; 0 when read-only."""
        if self.readonly_storage:
            return 0
        return min(self.store.space.room_bytes(self.disk_free_bytes()), MAX_OBJECT_BYTES)

    def get_version(self) -> dict[bytes, Any]:
        """As stock, but the largest share is what there may be room for, not what there is room for now.

        Clients ask once a connection over Foolscap and offer nothing larger until the next, so a server that was full
        for a moment would stay empty for them (allmydata/immutable/upload.py). What does not fit is not allocated.
        """
        version: dict[bytes, Any] = super().get_version()
        version[_PROTOCOL][b"maximum-immutable-share-size"] = self.get_maximum_share_size()
        return version

    def get_maximum_share_size(self) -> int:
        """Bytes of data of the largest share there could be room for; 0 when read-only."""
        if self.readonly_storage:
            return 0
        return max(0, self.store.space.most_bytes(min(self._disk_bytes(), MAX_OBJECT_BYTES)) - object_size(0))

    def _accepts_shares(self) -> bool:
        store = self.store
        is_ready = store.problem is None and not store.is_stopping and store.space.is_known
        return is_ready and self.get_available_space() > object_size(0)

    def get_stats(self) -> dict[str, Any]:
        """Stock's numbers (disk_*: of the spool's disk), and ours under tahoe_s3."""
        stats: dict[str, Any] = super().get_stats()
        space = self.store.space
        stats["storage_server.accepting_immutable_shares"] = int(self._accepts_shares())
        stats["tahoe_s3.available_bytes"] = self.get_available_space()
        stats["tahoe_s3.promised_bytes"] = space.promised_bytes
        stats["tahoe_s3.spooled_bytes"] = space.spooled_bytes
        if space.capacity_bytes is not None:
            stats["tahoe_s3.capacity_bytes"] = space.capacity_bytes
        stats.update(flat_statistics(self.store))
        return stats

    def bucket_report(self) -> dict[str, Any]:
        """What the status page says of the bucket (report.py)."""
        return bucket_report(
            self.store,
            writers=self._bucket_writers.values(),
            now_s=self._now_s(),
            started_s=self._started_s,
            is_readonly=self.readonly_storage,
        )

    def _timed(self, category: str, work: Callable[[], Any]) -> Deferred[Any]:
        """Run it; count it and add its latency, the wait for the bucket included, if it succeeds."""
        start = self._clock.seconds()

        def succeeded(result: Any) -> Any:
            self.count(category)
            self.add_latency(category, self._clock.seconds() - start)
            return result

        return maybeDeferred(work).addCallbacks(succeeded, self._failed, errbackArgs=(category,))

    def _failed(self, failure: Any, category: str) -> Any:
        self.store.note_failure(category, failure)
        return failure

    # shares of either kind

    def get_shares(self, storage_index: bytes) -> Iterator[tuple[int, str]]:
        """(share number, key) of what the index knows."""
        self.store.require_ready()
        rows = self.store.index.shares(storage_index)
        return iter([(row.shnum, share_key(storage_index, row.shnum)) for row in rows])

    def get_leases(self, storage_index: bytes) -> Iterator[Any]:
        """The leases of the first share, as far as the index knows them (see stock; not for clients)."""
        for row in self.store.index.shares(storage_index):
            return iter([lease.to_tahoe() for lease in self.store.index.leases(storage_index, row.shnum)])
        return iter([])

    def get_slot_leases(self, storage_index: bytes) -> Iterator[Any]:
        return self.get_leases(storage_index)

    def _new_lease(self, owner_num: int, renew_secret: bytes, cancel_secret: bytes) -> LeaseInfo:
        expiration_s = self._clock.seconds() + DEFAULT_RENEWAL_TIME
        return LeaseInfo(owner_num, renew_secret, cancel_secret, expiration_s, self.my_nodeid)

    def add_lease(
        self, storage_index: bytes, renew_secret: bytes, cancel_secret: bytes, owner_num: int = 1
    ) -> Deferred[None]:
        """Add or renew; nothing, and no request, where there is no share."""
        lease = Lease.from_tahoe(self._new_lease(owner_num, renew_secret, cancel_secret))
        return self._timed("add-lease", lambda: self._add_lease(storage_index, lease))

    def _add_lease(self, storage_index: bytes, lease: Lease) -> Deferred[None]:
        self.store.require_ready()
        return self.store.overlay.add(storage_index, lease)

    def renew_lease(self, storage_index: bytes, renew_secret: bytes) -> Deferred[None]:
        """Renew the lease of this secret; IndexError where no share has one."""
        return self._timed("renew", lambda: self._renew_lease(storage_index, renew_secret))

    @inlineCallbacks
    def _renew_lease(self, storage_index: bytes, renew_secret: bytes) -> Generator[Deferred[Any], Any, None]:
        self.store.require_ready()
        yield self.store.slots.settle(storage_index)
        self.store.require_service()
        rows = self.store.index.shares(storage_index)
        if not rows:
            raise IndexError("no such lease to renew")
        yield self.store.slots.run(storage_index, lambda: self.store.overlay.read(storage_index))
        wanted = hash_secret(renew_secret)
        found = self._find_lease(storage_index, wanted)
        for row in rows:
            if found is None and row.leases is None:
                yield self.store.learn_leases(storage_index, row.shnum)
                found = self._find_lease(storage_index, wanted)
        if found is None:
            raise IndexError("unable to renew non-existent lease")
        yield self.store.overlay.add(storage_index, found.until(int(self._clock.seconds() + DEFAULT_RENEWAL_TIME)))
        if not self.store.index.shares(storage_index):
            # Their other leases had all expired, and they went before this one's turn came.
            raise IndexError("no such lease to renew")

    def _find_lease(self, storage_index: bytes, renew_hash: bytes) -> Lease | None:
        """The lease of any share there, as far as the index knows them."""
        for row in self.store.index.shares(storage_index):
            for lease in self.store.index.leases(storage_index, row.shnum):
                if lease.renew_hash == renew_hash:
                    return lease
        return None

    def advise_corrupt_share(
        self, share_type: bytes, storage_index: bytes, shnum: int, reason: bytes
    ) -> Deferred[None]:
        """Stock's own: a report in the node's folder, if we have the share."""
        stock = self._local.advise_corrupt_share
        known = self.store.slots.settle(storage_index)
        return known.addCallback(lambda _: stock(share_type, storage_index, shnum, reason))

    # immutable shares

    def allocate_buckets(
        self,
        storage_index: bytes,
        renew_secret: bytes,
        cancel_secret: bytes,
        sharenums: Iterable[int],
        allocated_size: int,
        owner_num: int = 0,
        renew_leases: bool = True,
    ) -> Deferred[tuple[set[int], dict[int, ShareWriter]]]:
        """As stock. Shares that are here get the lease first (one PUT), then writers are made for the others."""
        lease_info = self._new_lease(owner_num, renew_secret, cancel_secret)
        return self._timed(
            "allocate", lambda: self._allocate(storage_index, lease_info, sharenums, allocated_size, renew_leases)
        )

    @inlineCallbacks
    def _allocate(
        self,
        storage_index: bytes,
        lease_info: LeaseInfo,
        sharenums: Iterable[int],
        allocated_size: int,
        renew_leases: bool,
    ) -> Generator[Deferred[Any], Any, tuple[set[int], dict[int, ShareWriter]]]:
        self.store.require_ready()
        sharenums = list(sharenums)
        yield self.store.slots.settle(storage_index)
        yield look_for_hidden(self.store, storage_index, sharenums)
        self._refuse_mutable(storage_index)
        if renew_leases and self.store.index.shares(storage_index):
            yield self.store.overlay.add(storage_index, Lease.from_tahoe(lease_info))
        # Nobody would end a writer that is made after the node began to stop.
        self.store.require_ready()
        existing = {row.shnum for row in self.store.index.shares(storage_index)}
        wanted = [shnum for shnum in sharenums if shnum not in existing and fits_key(storage_index, shnum)]
        return existing, self._make_writers(storage_index, wanted, allocated_size, lease_info)

    def _make_writers(
        self, storage_index: bytes, sharenums: list[int], allocated_size: int, lease_info: LeaseInfo
    ) -> dict[int, ShareWriter]:
        """Writers while there is room, one by one; none for a share that is being uploaded already. In one turn of the
        reactor, so that what is given to one is not there for another."""
        writers: dict[int, ShareWriter] = {}
        if object_size(allocated_size) > MAX_OBJECT_BYTES:
            return writers
        # Read-only is a disk with nothing free, as in stock.
        disk_free_bytes = self._local.get_available_space()
        for shnum in sharenums:
            path = str(self.store.spool_path(storage_index, shnum))
            if path in self._bucket_writers:
                continue
            if len(self._bucket_writers) >= MAX_WRITERS:
                _log.warn("{count} shares are being uploaded already", count=MAX_WRITERS)
                break
            if allocated_size > disk_free_bytes - self.store.space.spool_bytes and not self.readonly_storage:
                disk_free_bytes = self._shed_copies(allocated_size, disk_free_bytes)
            promise = self.store.space.promise(
                ShareId(storage_index, shnum),
                bucket_bytes=object_size(allocated_size),
                spool_bytes=allocated_size,
                disk_free_bytes=disk_free_bytes,
            )
            if promise is None:
                self._tell_of_no_room(allocated_size)
                break
            try:
                writer = ShareWriter(
                    self.store, self, promise=promise, max_size=allocated_size, lease_info=lease_info, clock=self._clock
                )
            except OSError as error:
                self.store.space.left_the_disk(promise)
                self.store.space.end(promise)
                self.store.drop_spool(storage_index, shnum)
                _log.error("no room to spool {key}: {error}", key=share_key(storage_index, shnum), error=str(error))
                break
            writers[shnum] = self._bucket_writers[path] = writer
        return writers

    def _shed_copies(self, wanted_bytes: int, disk_free_bytes: int) -> int:
        """Give up copies of mutable shares, if their place is all that a share wants. What the disk has free then."""
        missing = wanted_bytes - (disk_free_bytes - self.store.space.spool_bytes)
        if missing <= self.store.cache.size_bytes and self.store.cache.shed(missing):
            return self.disk_free_bytes()
        return disk_free_bytes

    def _tell_of_no_room(self, size_bytes: int) -> None:
        """In the log, once an hour at most."""
        now_s = self._now_s()
        if self.readonly_storage or now_s - self._told_of_no_room_s < TELL_OF_NO_ROOM_S:
            return
        self._told_of_no_room_s = now_s
        space = self.store.space
        _log.warn(
            "no room for a share of {size} bytes: the bucket holds {used} and {promised} more are promised to uploads, "
            "s3.capacity is {capacity}; the disk has {free} beyond reserved_space",
            size=size_bytes, used=space.used_bytes if space.is_known else "a number of bytes that is not known yet",
            promised=space.promised_bytes,
            capacity="not set" if space.capacity_bytes is None else space.capacity_bytes,
            free=self.disk_free_bytes(),
        )  # fmt: skip

    def get_buckets(self, storage_index: bytes) -> Deferred[dict[int, ShareReader]]:
        """Readers of the shares of an immutable file, with no request."""
        return self._timed("get", lambda: self._get_buckets(storage_index))

    @inlineCallbacks
    def _get_buckets(self, storage_index: bytes) -> Generator[Deferred[Any], Any, dict[int, ShareReader]]:
        self.store.require_ready()
        yield self.store.slots.settle(storage_index)
        self.store.require_service()
        self._refuse_mutable(storage_index)
        return {row.shnum: self._reader(storage_index, row.shnum) for row in self.store.index.shares(storage_index)}

    def _refuse_mutable(self, storage_index: bytes) -> None:
        """UnknownImmutableContainerVersionError where a share is mutable, as Tahoe raises, which opens them all. Of a
        kind that is not known yet nobody is told before the share is read: asking for shares costs no request."""
        for row in self.store.index.shares(storage_index):
            if row.kind == MUTABLE:
                raise UnknownImmutableContainerVersionError(share_key(storage_index, row.shnum), mutable_instead())

    def _reader(self, storage_index: bytes, shnum: int) -> ShareReader:
        def advise(reason: bytes) -> Deferred[None]:
            return self.advise_corrupt_share(IMMUTABLE.encode("ascii"), storage_index, shnum, reason)

        return ShareReader(self.store, storage_index, shnum, on_read=self._count_read, advise=advise)

    def _count_read(self, latency_s: float) -> None:
        self.add_latency("read", latency_s)
        self.count("read")

    @inlineCallbacks
    def get_immutable_share_length(
        self, storage_index: bytes, share_number: int
    ) -> Generator[Deferred[Any], Any, int]:
        readers = yield self.get_buckets(storage_index)
        length: int = yield readers[share_number].get_length()
        return length

    # mutable shares

    @inlineCallbacks
    def enumerate_mutable_shares(self, storage_index: bytes) -> Generator[Deferred[Any], Any, set[int]]:
        self.store.require_ready()
        yield self.store.slots.settle(storage_index)
        self.store.require_service()
        return {row.shnum for row in self.store.index.shares(storage_index)}

    @inlineCallbacks
    def get_mutable_share_length(self, storage_index: bytes, share_number: int) -> Generator[Deferred[Any], Any, int]:
        """KeyError where there is no such share."""
        self.store.require_ready()
        length: int = yield self.store.mutable.length(storage_index, share_number)
        return length

    def slot_readv(
        self, storage_index: bytes, shares: Iterable[int], readv: list[tuple[int, int]]
    ) -> Deferred[dict[int, list[bytes]]]:
        return self._timed("readv", lambda: self._readv(storage_index, set(shares), readv))

    def _readv(
        self, storage_index: bytes, shares: set[int], readv: list[tuple[int, int]]
    ) -> Deferred[dict[int, list[bytes]]]:
        self.store.require_ready()
        answer: Deferred[dict[int, list[bytes]]] = self.store.mutable.readv(storage_index, shares, readv)
        return answer

    def slot_testv_and_readv_and_writev(
        self,
        storage_index: bytes,
        secrets: tuple[bytes, bytes, bytes],
        test_and_write_vectors: dict[int, Any],
        read_vector: list[tuple[int, int]],
        renew_leases: bool = True,
    ) -> Deferred[tuple[bool, dict[int, list[bytes]]]]:
        """Tahoe's own read-test-write on local copies; answered when the bucket has what it changed."""

        def execute(scratch_sharedir: str) -> tuple[bool, dict[int, list[bytes]]]:
            return self._local.execute(
                scratch_sharedir,
                (storage_index, secrets, test_and_write_vectors, read_vector, renew_leases),
            )

        return self._timed(
            "writev", lambda: self._read_test_write(storage_index, set(test_and_write_vectors), execute)
        )

    def _read_test_write(
        self, storage_index: bytes, touched: set[int], execute: Callable[[str], Any]
    ) -> Deferred[tuple[bool, dict[int, list[bytes]]]]:
        self.store.require_ready()
        for shnum in touched:
            if not fits_key(storage_index, shnum):
                raise NoSpace(f"a share {shnum} of {si_text(storage_index)} cannot be stored")
        answer: Deferred[tuple[bool, dict[int, list[bytes]]]] = self.store.mutable.read_test_write(
            storage_index, touched=touched, execute=execute
        )
        return answer


class _LocalServer(StorageServer):
    """What stock code does on local files: read-test-write on a scratch folder that is shaped like a storage directory,
    and reports of corruption. Whether there is room is a question for the disk here, not for the bucket.

    It has only what those two use: the clock, node id, shares and log are the real server's, and what it counts is
    counted by the real one after the bucket has answered.
    """

    def __init__(self, server: S3StorageServer) -> None:
        self._server = server
        self.my_nodeid = server.my_nodeid
        self.corruption_advisory_dir = server.corruption_advisory_dir

    def execute(self, sharedir: str, arguments: tuple[Any, ...]) -> tuple[bool, dict[int, list[bytes]]]:
        self.sharedir = sharedir
        self._clock = self._server._clock
        result: tuple[bool, dict[int, list[bytes]]] = self.slot_testv_and_readv_and_writev(*arguments)
        return result

    def get_shares(self, storage_index: bytes) -> Iterator[tuple[int, str]]:
        return self._server.get_shares(storage_index)

    def get_available_space(self) -> int:
        return 0 if self._server.readonly_storage else self._server.disk_free_bytes()

    def count(self, name: str, delta: int = 1) -> None:
        """The real server counts, on success."""

    def add_latency(self, category: str, latency: float) -> None:
        """Likewise."""
