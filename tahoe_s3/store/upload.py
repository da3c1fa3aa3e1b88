# SPDX-License-Identifier: GPL-2.0-or-later
"""One immutable share being uploaded: Tahoe's own BucketWriter on a spool file, whose bytes go to the bucket.

The spool file is the share object, byte for byte: header, data (a hole reads as zeros), and the one lease of its
allocation. Conflicting writes, sizes and the 30-minute timeout are BucketWriter's. An object that fits one part
leaves as one PUT at close; of a larger one every part leaves as soon as it is written, since written bytes never
change, and a write waits while too many have not arrived, so that a slow bucket is felt early and not at close.

Nothing is visible before the PUT or the Complete was answered. Closing is a state with one shared outcome: a second
close, an abort, a disconnect and a stop wait for it.

The spool file stays whole until the end, since a write that comes again is compared with it. What the writer was
promised of the bucket (store/space.py) it keeps until the index counts the share, or the bucket has nothing of it.

Owner: the storage server (one for each allocated share, until closed). Thread: the reactor's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from allmydata.interfaces import ConflictingWriteError
from allmydata.storage.immutable import BucketWriter, ShareFile
from allmydata.util.assertutil import precondition
from twisted.internet.defer import Deferred, fail, inlineCallbacks, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tahoe_s3.client import Cancelled, FileRegion, LocalError, ObjectInfo, S3Error
from tahoe_s3.store.containers import IMMUTABLE_HEADER_BYTES
from tahoe_s3.store.index import IMMUTABLE, ShareRow
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.leases import Lease
from tahoe_s3.store.objects import PARTS_AT_ONCE, abort_quietly, part_size_for
from tahoe_s3.store.points import reach
from tahoe_s3.store.space import Promise

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

#: Parts that are under way or ready for it, above which a write waits.
MAX_PARTS_BEHIND = PARTS_AT_ONCE + 1
#: Seconds until the removal of parts that the bucket did not confirm is asked for again; till then they count as paid.
REMOVE_AGAIN_S = 600.0
#: Seconds that a client has to send again what the local disk refused; a Tahoe client gives the share up at once.
REFUSED_GRACE_S = 60.0


class WriterOwner(Protocol):
    """What BucketWriter wants of the storage server."""

    def add_latency(self, category: str, latency: float) -> None: ...
    def count(self, name: str, delta: int = 1) -> None: ...
    def bucket_writer_closed(self, bw: BucketWriter, consumed_size: int) -> None: ...


def object_size(data_length: int) -> int:
    """Bytes of a share object that holds `data_length` bytes and the lease of its allocation."""
    return IMMUTABLE_HEADER_BYTES + data_length + int(ShareFile.LEASE_SIZE)


class Spool:
    """The file of one share while it is uploaded, opened when the first byte of it leaves: of the very many that
    clients may have allocated, most are not being sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def region(self, offset: int, length: int) -> FileRegion:
        """OSError where the file cannot be opened."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return FileRegion(self._fd, offset, length)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Parts:
    """The multipart upload of one spool file: which parts are ready, under way, and arrived."""

    def __init__(self, store: Store, key: str, spool: Spool, *, size: int, part_size: int) -> None:
        self._store = store
        self._key = key
        self._spool = spool
        self._size = size
        self.part_size = part_size
        self.count = -(-size // part_size)
        self.etags: dict[int, str] = {}
        self.upload_id: str | None = None
        self.failure: S3Error | None = None
        self._queued: set[int] = set()
        self._ready: deque[int] = deque()
        self._under_way: dict[int, Deferred[Any]] = {}
        self._creating: Deferred[Any] | None = None
        self._waiters: list[tuple[int, Deferred[None]]] = []
        self._stopped = False

    def region(self, number: int) -> tuple[int, int]:
        """First byte and length in the object of part `number`, counted from 1."""
        start = (number - 1) * self.part_size
        return start, min(self.part_size, self._size - start)

    @property
    def arrived_bytes(self) -> int:
        return sum(self.region(number)[1] for number in self.etags)

    def is_queued(self, number: int) -> bool:
        return number in self._queued

    def add(self, number: int) -> None:
        """All bytes of this part are in the spool."""
        if number not in self._queued:
            self._queued.add(number)
            self._ready.append(number)
            self._send()

    @property
    def behind(self) -> int:
        """Parts that are ready and have not arrived."""
        return len(self._ready) + len(self._under_way)

    def when_behind_at_most(self, most: int) -> Deferred[None]:
        """Fires when no more than `most` ready parts have not arrived; fails when the upload did."""
        waiter: Deferred[None] = Deferred(lambda _: None)
        self._waiters.append((most, waiter))
        self._wake()
        return waiter

    def _wake(self) -> None:
        waiting, self._waiters = self._waiters, []
        for most, waiter in waiting:
            if waiter.called:
                continue
            if self.failure is not None:
                waiter.errback(self.failure)
            elif self.behind <= most:
                waiter.callback(None)
            else:
                self._waiters.append((most, waiter))

    @property
    def _is_over(self) -> bool:
        return self._stopped or self.failure is not None

    def _send(self) -> None:
        if self._is_over:
            return
        if self.upload_id is None:
            if self._creating is None:
                reach("multipart.before-create")
                self._creating = self._store.client.create_multipart(self._key)
                self._creating.addCallbacks(self._created, self._failed)
            return
        # A part may fail before the call returns, and with it the upload: then its file is closed already.
        while not self._is_over and self._ready and len(self._under_way) < PARTS_AT_ONCE:
            number = self._ready.popleft()
            sent = maybeDeferred(self._send_one, number)
            self._under_way[number] = sent
            reach("multipart.part-sent")
            sent.addCallbacks(self._arrived, self._failed, callbackArgs=(number,))
            sent.addBoth(self._ended, number)

    def _send_one(self, number: int) -> Deferred[str]:
        assert self.upload_id is not None
        region = self._spool.region(*self.region(number))
        return self._store.client.upload_part(self._key, self.upload_id, number, region)

    def _created(self, upload_id: str) -> None:
        self.upload_id = upload_id
        reach("multipart.created")
        self._send()

    def _arrived(self, etag: str, number: int) -> None:
        self.etags[number] = etag
        reach("multipart.part-arrived")
        if len(self.etags) == self.count:
            reach("multipart.last-part")

    def _failed(self, failure: Any) -> None:
        error = failure.value
        if not isinstance(error, S3Error):
            error = LocalError(f"{type(error).__name__}: {error}", operation="UploadPart", key=self._key, kind="local")
        # What became of a part says nothing of the object, which only Complete makes.
        error.outcome = "not_applied"
        if self.failure is None:
            self.failure = error
        self._wake()

    def _ended(self, _: object, number: int) -> None:
        self._under_way.pop(number, None)
        self._send()
        self._wake()

    def stop(self) -> Deferred[bool]:
        """Send no more, cancel what is under way, remove the upload from the bucket. Never fails; fires with whether
        nothing of it is left there. Where something is, it may be called again."""
        self._stopped = True
        if self.failure is None:
            self.failure = Cancelled("the upload was given up", operation="UploadPart", key=self._key, kind="cancelled")
        for sent in list(self._under_way.values()):
            sent.cancel()
        # Writes that wait for room would otherwise wait for ever.
        self._wake()
        if self._creating is None:
            return succeed(True)
        if self.upload_id is None:
            # Its answer is still to come, and with it the id to remove.
            return self._creating.addCallback(lambda _: self._remove())
        return self._remove()

    def _remove(self) -> Deferred[bool]:
        if self.upload_id is None:
            return succeed(True)
        return abort_quietly(self._store.client, self._key, self.upload_id)


class ShareWriter(BucketWriter):
    """See the module. `write`, `close`, `abort` and `disconnected` return Deferreds."""

    log = Logger()

    def __init__(
        self,
        store: Store,
        ss: WriterOwner,
        *,
        promise: Promise,
        max_size: int,
        lease_info: Any,
        clock: Any,
    ) -> None:
        """Makes the spool file; OSError where the disk cannot take it, and then the promise is still the caller's."""
        storage_index, shnum = promise.share
        self.storage_index = storage_index
        self.shnum = shnum
        self._promise = promise
        self.key = share_key(storage_index, shnum)
        self.closing = False
        self._store = store
        self._lease = Lease.from_tahoe(lease_info)
        self._outcome: list[Deferred[None]] = []
        # Ranges of the data that the local disk refused to take, and how it said so.
        self._refused: list[tuple[int, int, OSError]] = []
        path = store.spool_path(storage_index, shnum)
        super().__init__(ss, str(path), self.key, max_size, lease_info, clock)
        store.upload_began(storage_index)
        self._spool = Spool(path)
        self._result: Any = None
        self._size = object_size(max_size)
        part_size = part_size_for(self._size, store.part_size_bytes)
        self._parts: Parts | None = None
        if self._size > part_size:
            self._parts = Parts(store, self.key, self._spool, size=self._size, part_size=part_size)
        reach("upload.spooled")

    def __repr__(self) -> str:
        return f"<ShareWriter {self.key}>"

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes of the data have been written, and how many of the object have arrived in the bucket."""
        return self._written_bytes, 0 if self._parts is None else self._parts.arrived_bytes

    @property
    def _written_bytes(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self._already_written.ranges())

    # writing

    def write(self, offset: int, data: bytes) -> Deferred[bool]:
        """Write locally, now; fires with whether all bytes have been written, when the next write is welcome."""
        if self.closed and isinstance(self._result, Failure):
            return fail(self._result)
        try:
            if self.closing:
                self._check_same(offset, data)
                return succeed(True)
            if self._parts is not None and self._parts.failure is not None:
                return self._discard_failed(self._parts.failure)
            finished = self._write_here(offset, data)
            reach("upload.written")
        except OSError as error:
            self._refused.append((offset, offset + len(data), error))
            self._store.health.note(f"the spool: {error}")
            self._hurry()
            return fail()
        except Exception:
            return fail()
        self._hurry()
        if self._parts is None:
            return succeed(finished)
        self._queue_parts(offset, offset + len(data))
        room = self._parts.when_behind_at_most(MAX_PARTS_BEHIND)
        return room.addCallbacks(lambda _: finished, lambda failure: self._discard_failed(failure.value))

    def _write_here(self, offset: int, data: bytes) -> bool:
        """Into the spool, if the disk has room for all of it: a write that it refuses half way takes what is left."""
        if not self.closed:
            self._store.make_disk_room(len(data))
        finished = super().write(offset, data)
        self._store.space.spooled(self._promise, self._written_bytes)
        return bool(finished)

    def _hurry(self) -> None:
        """While bytes are missing that the disk refused, a silent client is not waited for: the disk is needed."""
        if self._refused and self._timeout.active() and self._disk_failure() is not None:
            self._timeout.reset(REFUSED_GRACE_S)

    def _check_same(self, offset: int, data: bytes) -> None:
        """A write that arrives twice: the second may come after everything was written and the close began."""
        precondition(not self.closed)
        if self._sharefile.read_share_data(offset, len(data)) != data:
            raise ConflictingWriteError(f"Chunk {offset}-{offset + len(data)} doesn't match already written data.")

    def _queue_parts(self, start: int, stop: int) -> None:
        """Hand over the parts that this write (of data bytes start to stop) has completed."""
        parts = self._parts
        assert parts is not None
        first = (IMMUTABLE_HEADER_BYTES + start) // parts.part_size + 1
        last = (IMMUTABLE_HEADER_BYTES + max(start, stop - 1)) // parts.part_size + 1
        for number in range(first, min(last, parts.count) + 1):
            if not parts.is_queued(number) and self._is_written(*parts.region(number)):
                parts.add(number)

    def _is_written(self, object_start: int, length: int) -> bool:
        start = max(0, object_start - IMMUTABLE_HEADER_BYTES)
        stop = min(self._max_size, object_start + length - IMMUTABLE_HEADER_BYTES)
        return stop <= start or self._has_data(start, stop)

    def _has_data(self, start: int, stop: int) -> bool:
        written = sum(chunk.stop - chunk.start for chunk in self._already_written.ranges(start, stop))
        return bool(written == stop - start)

    def _disk_failure(self) -> OSError | None:
        """Why bytes are missing that a client has sent: the disk refused them, and they were not sent again since.

        They would be zeros in the share. A client that pipelines sends its close before it hears of that.
        """
        return next((error for start, stop, error in self._refused if not self._has_data(start, stop)), None)

    # the end, well or not

    def close(self) -> Deferred[None]:
        """Store the share; fires when the bucket has it. Called again, it gives the same outcome."""
        if not self.closing:
            if self.closed:
                return fail(self._why_over())
            refused = self._disk_failure()
            if refused is not None:
                self._discard()
                return fail(refused)
            self.closing = True
            if self._timeout.active():
                self._timeout.cancel()
            start = self._clock.seconds()
            outcome = self._when_parts_arrived()
            outcome.addCallback(lambda _: self._store.slots.run(self.storage_index, self._store_object))
            outcome.addCallbacks(self._stored, self._not_stored, callbackArgs=(start,))
        return self._share_outcome()

    def _why_over(self) -> Exception:
        """For a call that comes after the end."""
        if isinstance(self._result, Failure) and isinstance(self._result.value, Exception):
            return self._result.value
        failure = None if self._parts is None else self._parts.failure
        return self._disk_failure() or failure or AssertionError(f"{self!r} has ended")

    def _share_outcome(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred(lambda _: None)
        if self.closed:
            waiter.callback(self._result)
        else:
            self._outcome.append(waiter)
        return waiter

    def _end(self, result: Any, *, consumed_size: int) -> None:
        """Over, well (None) or not (a Failure): give back spool and space, then tell all who wait, whatever happens."""
        self._result, self.closed = result, True
        for step in (self._release, lambda: self.ss.bucket_writer_closed(self, consumed_size)):
            try:
                step()
            except Exception:
                self.log.failure("the end of {key} was not tidy", key=self.key)
        reach("upload.before-answer")
        waiters, self._outcome = self._outcome, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(result)

    def _when_parts_arrived(self) -> Deferred[None]:
        if self._parts is None:
            return succeed(None)
        for number in range(1, self._parts.count + 1):
            self._parts.add(number)
        return self._parts.when_behind_at_most(0)

    @inlineCallbacks
    def _store_object(self) -> Generator[Deferred[Any], Any, ObjectInfo]:
        """Under the lock: make the object, or know that it was not made, or mark it unsure."""
        must_keep, is_ours = self._store.late.must_keep(self.key), True
        try:
            info: ObjectInfo = yield self._put_or_complete()
            # What Complete says of the ETag is no more than a hint on some services (S3Proxy, gofakes3).
            is_sure = self._parts is None
        except S3Error as error:
            if error.outcome == "not_applied" or self._store.watch.lost is not None:
                # Where another serves the bucket, what it does not know of is not stored.
                raise
            found = yield self._look_after(error)
            info, is_sure = ObjectInfo(self.key, found.size, found.etag, found.modified_s), found.etag_is_sure
            is_ours = not must_keep
        reach("upload.after-put")
        if must_keep:
            yield self._keep(info)
        known = (IMMUTABLE, self._max_size, (self._lease,))
        row = ShareRow(self.shnum, self._size, info.etag, is_sure, info.modified_s, *known)
        try:
            self._store.index.put_share(self.storage_index, row)
        except Exception:
            # The bucket has it, and nobody will know: the next who asks must look.
            self._store.slots.mark_unsure(self.storage_index, self.shnum)
            raise
        self._store.space.end(self._promise)
        reach("upload.row")
        self._store.share_changed(self.storage_index, self.shnum)
        if not is_ours:
            # An earlier upload's, perhaps, whose container has another lease.
            yield self._store.overlay.write(self.storage_index, [self._lease])
        return info

    @inlineCallbacks
    def _keep(self, info: ObjectInfo) -> Generator[Deferred[Any], Any, None]:
        """An older write of this share may yet be applied; a deletion would leave nobody with its bytes."""
        late = self._store.late
        path = self._spool.path if late.may_be_deleted(self.key) else None
        try:
            yield late.keep(self.key, etag=info.etag, size=self._size, leases=(self._lease,), path=path)
        except OSError:
            self._store.slots.mark_unsure(self.storage_index, self.shnum)
            raise

    def _put_or_complete(self) -> Deferred[ObjectInfo]:
        client = self._store.client
        if self._parts is None:
            reach("upload.before-put")
            return client.put(self.key, self._spool.region(0, self._size))
        assert self._parts.upload_id is not None
        etags = sorted(self._parts.etags.items())
        reach("multipart.before-complete")
        return client.complete_multipart(self.key, self._parts.upload_id, etags, expect_size=self._size)

    @inlineCallbacks
    def _look_after(self, error: S3Error) -> Generator[Deferred[Any], Any, ShareRow]:
        """No answer to the write: the bucket itself tells. Raises `error` where the share is not there, or unknown."""
        slots = self._store.slots
        slots.mark_unsure(self.storage_index, self.shnum)
        if self._parts is None:
            # What the bucket says of the object says all; of a larger one it may have the parts instead.
            self._store.space.end(self._promise)
        try:
            yield slots.settle(self.storage_index)
        except S3Error:
            raise error from None
        row = self._store.index.share(self.storage_index, self.shnum)
        if row is None or row.size != self._size:
            raise error
        return row

    def _stored(self, _: ObjectInfo, start: float) -> None:
        self.ss.add_latency("close", self._clock.seconds() - start)
        self.ss.count("close")
        self._end(None, consumed_size=self._size)

    def _not_stored(self, failure: Any) -> None:
        self.log.error("could not store {key}: {error}", key=self.key, error=failure.getErrorMessage())
        self._store.note_failure(f"storing {self.key}", failure)
        self._discard(failure)

    def _discard_failed(self, error: S3Error) -> Deferred[Any]:
        """A part could not be stored, so the share cannot be: free its space now, and tell."""
        if not self.closed and not self.closing:
            self._discard()
        return fail(error)

    def _discard(self, result: Any = None) -> None:
        """End it without a share. The upload is removed from the bucket in the background."""
        # First, since writes that wait for a part are told by stop(), and would end it once more.
        self._result, self.closed = result, True
        reach("upload.aborting")
        if self._parts is None:
            self._store.space.end(self._promise)
        else:
            self._remove_parts(self._parts)
        self._end(result, consumed_size=0)

    def _remove_parts(self, parts: Parts) -> None:
        """Again and again, until the bucket says that there are none: they are paid for, and so stay promised."""

        def stopped(are_gone: bool) -> None:
            if are_gone:
                self._store.space.end(self._promise)
            elif self._store.watch.lost is None:
                self._store.later(REMOVE_AGAIN_S, lambda: self._remove_parts(parts))

        self._store.in_background(parts.stop().addCallback(stopped))

    def _release(self) -> None:
        """Give back the spool file and the timer."""
        self._sharefile: Any = None
        self._store.upload_ended(self.storage_index)
        if self._timeout.active():
            self._timeout.cancel()
        self._spool.close()
        self._store.drop_spool(self.storage_index, self.shnum)
        self._store.space.left_the_disk(self._promise)

    def give_up(self, error: S3Error) -> None:
        """This node may not write any more: it ends here, and is left as it is in the bucket. One that is closing
        hears of it from there."""
        if not self.closed and not self.closing:
            self._discard(Failure(error))

    def abort(self) -> Deferred[None]:
        """Forget the upload. While closing it waits for the outcome instead, which it cannot change."""
        self.ss.count("abort")
        if self.closing:
            # The one who called close is told of a failure; here it has ended, which is what was wanted.
            return self._share_outcome().addErrback(lambda _: None)
        if not self.closed:
            self._discard()
        return succeed(None)

    def disconnected(self) -> Deferred[None]:
        """The client's connection has ended."""
        if self.closed:
            return succeed(None)
        return self.abort()
