# SPDX-License-Identifier: GPL-2.0-or-later
"""Uploads: the object is the disk backend's file, nobody sees it early, and every end leaves nothing behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.interfaces import ConflictingWriteError, DataTooLargeError
from allmydata.storage import immutable
from allmydata.storage.immutable import ShareFile
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tahoe_s3 import server as server_module
from tahoe_s3.client import Cancelled, Closed, LocalError, S3Error, Throttled, Unavailable
from tahoe_s3.store.containers import IMMUTABLE_HEADER_BYTES as HEADER_BYTES
from tahoe_s3.store.objects import PARTS_AT_ONCE
from tahoe_s3.store.upload import MAX_PARTS_BEHIND, ShareWriter, object_size

from .helpers import SI, error_of, now, pattern, waits
from .servers import CANCEL, RENEW, ServerPlace, open_files

PART = 1000
OVERHEAD = object_size(0)
#: Bytes of a share of which some writes must wait while nothing arrives.
TOO_LONG = (MAX_PARTS_BEHIND + 4) * PART


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ServerPlace]:
    """Checks at the end that every upload has ended without a trace on this machine."""
    made = ServerPlace(tmp_path, part_bytes=PART)
    yield made
    made.client.holds.clear()
    for writer in list(made.server._bucket_writers.values()):
        assert not writer.closing, "this one's end never came"
        now(writer.abort())
    made.assert_no_upload()
    assert made.client.uploads == {}
    made.index.abandon()
    made.store.late.abandon()
    assert open_files(tmp_path) == []


def writer_of(place: ServerPlace, size: int, shnum: int = 0) -> ShareWriter:
    writer: ShareWriter = place.allocate([shnum], size)[1][shnum]
    return writer


def disk_file(folder: Path, data: bytes, size: int, now_s: float) -> bytes:
    """What the disk backend has for this share."""
    from allmydata.storage.lease import LeaseInfo

    share = ShareFile(str(folder / "disk"), max_size=size, create=True)
    share.add_lease(LeaseInfo(0, RENEW, CANCEL, now_s + DEFAULT_RENEWAL_TIME, b"n" * 20))
    if data:
        share.write_share_data(0, data)
    return (folder / "disk").read_bytes()


# what becomes of the bytes

SIZES = [0, 1, PART - OVERHEAD - 1, PART - OVERHEAD, PART - OVERHEAD + 1, PART - HEADER_BYTES, PART,
         2 * PART - OVERHEAD, 2 * PART - OVERHEAD + 1, 2 * PART - HEADER_BYTES - 1, 2 * PART - HEADER_BYTES,
         2 * PART, 2 * PART + 1, TOO_LONG + 3]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [PART * 10, PART, 333])
def test_the_object_is_the_disk_backends_file(place: ServerPlace, tmp_path: Path, size: int, step: int) -> None:
    place.clock.advance(1_700_000_000.7)
    data = pattern(size)
    writer = writer_of(place, size)
    for start in range(0, size, step):
        finished = now(writer.write(start, data[start : start + step]))
        assert finished == (start + step >= size)
    assert not place.client.objects
    assert now(writer.close()) is None
    assert place.object() == disk_file(tmp_path, data, size, 1_700_000_000.7)
    row = place.row()
    assert (row.size, row.data_length, row.kind) == (object_size(size), size, "immutable")
    assert row.leases is not None and len(row.leases) == 1
    parts = -(-object_size(size) // PART)
    # Some services name another ETag in the answer to Complete.
    assert row.etag_is_sure == (parts == 1)
    budget = {"PutObject": 1} if parts == 1 else {
        "CreateMultipartUpload": 1, "UploadPart": parts, "CompleteMultipartUpload": 1
    }  # fmt: skip
    assert place.client.requests == budget


@st.composite
def uploads(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A size, and the (start, stop) of each write."""
    size = draw(st.integers(0, 5000))
    if not size:
        return 0, []
    places = st.tuples(st.integers(0, size - 1), st.integers(1, size))
    return size, [(min(pair), max(pair[1], pair[0] + 1)) for pair in draw(st.lists(places, max_size=12))]


@given(uploads())
@settings(max_examples=60)
def test_in_any_order_with_holes_and_repeats(
    place: ServerPlace, tmp_path: Path, upload: tuple[int, list[tuple[int, int]]]
) -> None:
    size, writes = upload
    content, source = bytearray(size), pattern(size)
    writer = writer_of(place, size, shnum=7)
    for start, stop in writes:
        content[start:stop] = source[start:stop]
        now(writer.write(start, source[start:stop]))
    now(writer.close())
    for leftover in tmp_path.glob("disk"):
        leftover.unlink()
    assert place.object(7) == disk_file(tmp_path, bytes(content), size, place.clock.seconds())
    place.client.objects.clear()
    place.index.drop_share(SI, 7)


def test_parts_leave_while_the_client_writes(place: ServerPlace) -> None:
    writer = writer_of(place, 5 * PART)
    now(writer.write(0, pattern(PART - HEADER_BYTES - 1)))
    assert not place.client.requests, "not a whole part yet"
    now(writer.write(PART - HEADER_BYTES - 1, b"x"))
    assert place.client.requests == {"CreateMultipartUpload": 1, "UploadPart": 1}
    now(writer.write(3 * PART - HEADER_BYTES, pattern(PART)))
    assert place.client.requests["UploadPart"] == 2, "the fourth part, before the second"
    assert not place.client.objects and place.index.shares(SI) == []
    now(writer.abort())
    assert place.client.requests["AbortMultipartUpload"] == 1


def test_a_byte_is_sent_once(place: ServerPlace) -> None:
    writer = writer_of(place, 3 * PART)
    data = pattern(3 * PART)
    for _ in range(3):
        now(writer.write(0, data))
    now(writer.close())
    assert place.client.requests["UploadPart"] == 4


def test_conflicts_are_tahoes(place: ServerPlace) -> None:
    writer = writer_of(place, 100)
    now(writer.write(10, b"abc"))
    assert isinstance(error_of(writer.write(12, b"xyz")), ConflictingWriteError)
    assert isinstance(error_of(writer.write(98, b"xyz")), DataTooLargeError)
    assert now(writer.write(11, b"bcd")) is False
    now(writer.abort())


# back-pressure


def test_a_write_waits_when_too_much_is_behind(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    parts = MAX_PARTS_BEHIND + 3
    writer = writer_of(place, parts * PART)
    data = pattern(parts * PART)
    writes = [writer.write(start, data[start : start + PART]) for start in range(0, len(data), PART)]
    assert len(held) == PARTS_AT_ONCE
    # The first part has the header too, so a write of PART bytes completes it; each further one the next.
    assert [write.called for write in writes] == [True] * MAX_PARTS_BEHIND + [False] * 3
    # The last write has completed two parts, its own and that of the lease: four too many are behind.
    held.release(3)
    assert [write.called for write in writes] == [True] * MAX_PARTS_BEHIND + [False] * 3
    held.release(1)
    assert all(write.called for write in writes)
    held.release()
    assert [now(write) for write in writes] == [False] * (parts - 1) + [True]
    now(writer.close())
    assert place.object()[HEADER_BYTES : HEADER_BYTES + len(data)] == data


def test_close_waits_for_all_parts(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    writer = writer_of(place, 2 * PART)
    now(writer.write(0, pattern(2 * PART)))
    closing = writer.close()
    assert waits(closing) and place.client.requests["CompleteMultipartUpload"] == 0
    held.release()
    assert now(closing) is None and place.object()


# nothing early


@pytest.mark.parametrize(("size", "last"), [(50, "PutObject"), (3 * PART, "CompleteMultipartUpload")])
@pytest.mark.parametrize("apply_first", [True, False])
def test_nothing_is_seen_before_the_answer(place: ServerPlace, size: int, last: str, apply_first: bool) -> None:
    held = place.client.hold(last, apply_first=apply_first)
    writer = writer_of(place, size)
    now(writer.write(0, pattern(size)))
    first, second = writer.close(), writer.close()
    gone = writer.abort()
    assert waits(first) and waits(second) and waits(gone) and len(held) == 1
    assert now(place.server.get_buckets(SI)) == {} and list(place.server.get_shares(SI)) == []
    assert writer.closing and not writer.closed
    assert place.allocate([0], size) == (set(), {}), "it is still being uploaded"
    held.release()
    assert now(first) is None and now(second) is None and now(gone) is None
    assert writer.closed and now(writer.close()) is None and now(writer.disconnected()) is None
    assert set(now(place.server.get_buckets(SI))) == {0}


def test_while_closing_the_same_bytes_may_come_again(place: ServerPlace) -> None:
    """A client that got no answer in time sends its last write again."""
    held = place.client.hold("PutObject")
    writer = writer_of(place, 50)
    now(writer.write(0, pattern(50)))
    closing = writer.close()
    assert now(writer.write(10, pattern(50)[10:])) is True
    assert isinstance(error_of(writer.write(0, b"other")), ConflictingWriteError)
    held.release()
    assert now(closing) is None and place.object()[HEADER_BYTES : HEADER_BYTES + 50] == pattern(50)
    assert isinstance(error_of(writer.write(0, pattern(50))), Exception)


# the bucket does not take it


def close_fails(place: ServerPlace, size: int, operation: str, **failure: Any) -> BaseException:
    writer = writer_of(place, size)
    now(writer.write(0, pattern(size)))
    place.client.fail(operation, Unavailable, **failure)
    closing, again = writer.close(), writer.close()
    error = error_of(closing)
    assert error_of(again) is error and writer.closed
    assert error_of(writer.close()) is error, "also for one who asks later"
    assert now(writer.abort()) is None
    return error


@pytest.mark.parametrize(("size", "operation"), [(50, "PutObject"), (3 * PART, "CompleteMultipartUpload")])
def test_a_refused_share_leaves_nothing(place: ServerPlace, size: int, operation: str) -> None:
    assert isinstance(close_fails(place, size, operation), Unavailable)
    assert not place.client.objects and now(place.server.get_buckets(SI)) == {}
    assert place.client.requests["HeadObject"] == 0
    place.upload(pattern(size), 0)
    assert set(now(place.server.get_buckets(SI))) == {0}


@pytest.mark.parametrize(("size", "operation"), [(50, "PutObject"), (3 * PART, "CompleteMultipartUpload")])
def test_a_lost_answer_is_settled_by_a_look(place: ServerPlace, size: int, operation: str) -> None:
    writer = writer_of(place, size)
    now(writer.write(0, pattern(size)))
    place.client.fail(operation, Unavailable, outcome="unknown", applied=True)
    assert now(writer.close()) is None
    assert place.client.requests["HeadObject"] == 1 and place.row().data_length == size
    assert now(now(place.server.get_buckets(SI))[0].read(0, size)) == pattern(size)


@pytest.mark.parametrize(("size", "operation"), [(50, "PutObject"), (3 * PART, "CompleteMultipartUpload")])
def test_a_lost_answer_of_what_was_not_done(place: ServerPlace, size: int, operation: str) -> None:
    assert isinstance(close_fails(place, size, operation, outcome="unknown"), Unavailable)
    assert not place.client.objects and now(place.server.get_buckets(SI)) == {}


@pytest.mark.parametrize(("size", "operation"), [(50, "PutObject"), (3 * PART, "CompleteMultipartUpload")])
@pytest.mark.parametrize("applied", [True, False])
def test_where_nobody_knows_the_share_is_unsure(
    place: ServerPlace, size: int, operation: str, applied: bool
) -> None:
    place.client.fail("HeadObject", Unavailable, times=2)
    assert isinstance(close_fails(place, size, operation, outcome="unknown", applied=applied), Unavailable)
    assert isinstance(error_of(place.server.get_buckets(SI)), Unavailable), "an error, not an absence"
    readers = now(place.server.get_buckets(SI))
    assert set(readers) == ({0} if applied else set())
    if applied:
        assert now(readers[0].read(0, size)) == pattern(size)
        assert place.allocate([0], size) == ({0}, {})
    else:
        place.upload(pattern(size), 0)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart"])
@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
def test_a_part_that_fails_fails_the_next_call(place: ServerPlace, operation: str, outcome: str) -> None:
    place.client.fail(operation, Throttled, outcome=outcome)
    writer = writer_of(place, 9 * PART)
    writing = writer.write(0, pattern(2 * PART))
    assert isinstance(error_of(writing), Throttled), "this very write, where the answer has come already"
    assert writer.closed and place.server.allocated_size() == 0
    assert isinstance(error_of(writer.close()), Throttled), "a pipelined close hears why, too"
    assert isinstance(error_of(writer.write(2 * PART, b"x")), Throttled)
    assert now(writer.abort()) is None and not place.client.uploads


def test_no_part_is_sent_after_one_that_failed_at_once(place: ServerPlace) -> None:
    """The file is closed by then, and its descriptor may be another file's."""
    held = place.client.hold("CreateMultipartUpload")
    writer = writer_of(place, TOO_LONG)
    data = pattern(TOO_LONG)
    writing = [writer.write(start, data[start : start + PART]) for start in range(0, len(data), PART)]
    place.client.fail("UploadPart", Throttled)
    held.release()
    assert writer.closed and place.client.requests["UploadPart"] == 1
    assert {type(error_of(one)) for one in writing[MAX_PARTS_BEHIND:]} == {Throttled}


def test_a_part_that_fails_later_fails_the_close(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    writer = writer_of(place, 3 * PART)
    now(writer.write(0, pattern(3 * PART)))
    closing = writer.close()
    held.fail(Throttled)
    assert isinstance(error_of(closing), Throttled) and writer.closed
    held.release()
    assert not place.client.objects and not place.client.uploads


def test_writes_that_wait_for_room_hear_of_a_failure(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    writer = writer_of(place, TOO_LONG)
    data = pattern(TOO_LONG)
    writes = [writer.write(start, data[start : start + PART]) for start in range(0, len(data), PART)]
    waiting = [write for write in writes if waits(write)]
    assert waiting
    held.fail(Throttled)
    assert {type(error_of(write)) for write in waiting} == {Throttled}
    assert writer.closed
    held.release()


def test_the_lock_is_not_left_to_a_failure_of_the_index(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full just as the bucket has taken the share: whoever asks next looks into the bucket."""
    writer = writer_of(place, 50)
    now(writer.write(0, pattern(50)))
    monkeypatch.setattr(place.index, "put_share", lambda *_: 1 / 0)
    assert isinstance(error_of(writer.close()), ZeroDivisionError)
    monkeypatch.undo()
    assert now(now(place.server.get_buckets(SI))[0].read(0, 50)) == pattern(50)


# ends that nobody asked for


def test_a_client_that_is_silent_for_half_an_hour_is_given_up(place: ServerPlace) -> None:
    writer = writer_of(place, 3 * PART)
    now(writer.write(0, pattern(PART)))
    place.clock.advance(29 * 60)
    now(writer.write(PART, b"still here"))
    place.clock.advance(29 * 60)
    assert not writer.closed
    place.clock.advance(61)
    assert writer.closed and place.server.allocated_size() == 0 and not place.client.uploads


def test_the_timeout_does_not_touch_an_upload_that_is_closing(place: ServerPlace) -> None:
    held = place.client.hold("PutObject")
    writer = writer_of(place, 50)
    now(writer.write(0, pattern(50)))
    closing = writer.close()
    place.clock.advance(3600)
    assert waits(closing) and not writer.closed
    held.release()
    assert now(closing) is None


def test_a_write_that_waits_when_the_time_is_over_ends_too(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    writer = writer_of(place, TOO_LONG)
    data = pattern(TOO_LONG)
    writes = [writer.write(start, data[start : start + PART]) for start in range(0, len(data), PART)]
    place.clock.advance(31 * 60)
    assert writer.closed
    assert {type(error_of(write)) for write in writes if write.called and write is writes[-1]} == {Cancelled}
    held.release()


@pytest.mark.parametrize("end", ["abort", "disconnected", "timeout", "stop"])
def test_an_end_while_the_upload_is_being_created(place: ServerPlace, end: str) -> None:
    held = place.client.hold("CreateMultipartUpload")
    writer = writer_of(place, TOO_LONG)
    data = pattern(TOO_LONG)
    writes = [writer.write(start, data[start : start + PART]) for start in range(0, len(data), PART)]
    assert any(map(waits, writes))
    ended: Deferred[Any] | None = None
    if end == "timeout":
        place.clock.advance(31 * 60)
    else:
        ended = {"abort": writer.abort, "disconnected": writer.disconnected, "stop": place.server.stopService}[end]()
    assert writer.closed and not any(map(waits, writes)), "nobody is left waiting"
    assert {type(error_of(write)) for write in writes[-3:]} == {Cancelled}
    held.release()
    assert not place.client.uploads, "the id came, and was used to remove the upload"
    assert place.client.requests["UploadPart"] == 0
    if ended is not None:
        assert now(ended) is None


def test_an_abort_with_parts_under_way(place: ServerPlace) -> None:
    held = place.client.hold("UploadPart")
    writer = writer_of(place, 3 * PART)
    now(writer.write(0, pattern(3 * PART)))
    assert now(writer.abort()) is None and now(writer.abort()) is None
    held.release()
    assert not place.client.uploads and not place.client.objects
    assert place.server.allocated_size() == 0


@pytest.mark.parametrize("size", [50, 3 * PART])
def test_a_failed_close_is_no_error_for_who_aborts(place: ServerPlace, size: int) -> None:
    last = "PutObject" if size == 50 else "CompleteMultipartUpload"
    held = place.client.hold(last)
    writer = writer_of(place, size)
    now(writer.write(0, pattern(size)))
    closing, aborting, gone = writer.close(), writer.abort(), writer.disconnected()
    held.fail(Unavailable)
    assert isinstance(error_of(closing), Unavailable)
    assert now(aborting) is None and now(gone) is None
    held.release()


def test_a_caller_of_close_that_goes_away_stops_nothing(place: ServerPlace) -> None:
    held = place.client.hold("PutObject")
    writer = writer_of(place, 50)
    now(writer.write(0, pattern(50)))
    closing = writer.close()
    closing.addErrback(lambda _: None)
    closing.cancel()
    held.release()
    assert writer.closed and set(now(place.server.get_buckets(SI))) == {0}


def test_no_room_on_the_spools_disk(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: Any) -> Any:
        if path == str(place.store.spool_path(SI, 1)):
            raise OSError(28, "No space left on device")
        return Path(path).open(*arguments)

    monkeypatch.setattr(immutable, "open", refuse, raising=False)
    writers = place.allocate([0, 1, 2], 50)[1]
    monkeypatch.undo()
    assert set(writers) == {0}, "those made before stay good"
    assert len(place.clock.getDelayedCalls()) == 1
    now(writers[0].write(0, pattern(50)))
    now(writers[0].close())


@pytest.mark.parametrize("size", [500, 3 * PART])
def test_bytes_that_the_disk_refused_are_not_zeros(
    place: ServerPlace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that pipelines sends its close before it hears: that must fail, unless the bytes came after all."""
    data = pattern(size)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for shnum, again in ((0, False), (1, True)):
        writer = writer_of(place, size, shnum)
        now(writer.write(0, data[:100]))
        monkeypatch.setattr(ShareFile, "write_share_data", refuse)
        assert isinstance(error_of(writer.write(100, data[100:300])), OSError)
        monkeypatch.undo()
        now(writer.write(300, data[300:]))
        if again:
            now(writer.write(100, data[100:300]))
            assert now(writer.close()) is None
            assert place.object(1)[HEADER_BYTES : HEADER_BYTES + size] == data
        else:
            assert isinstance(error_of(writer.close()), OSError) and writer.closed
            assert isinstance(error_of(writer.close()), OSError)
            assert not place.client.objects and not place.client.uploads


def test_what_is_not_being_sent_holds_no_file_open(
    place: ServerPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files(tmp_path)
    writers = [place.allocate(range(50), 3 * PART, si=bytes([number]) * 16)[1] for number in range(4)]
    assert open_files(tmp_path) == before and len(place.server._bucket_writers) == 200
    monkeypatch.setattr(server_module, "MAX_WRITERS", 201)
    assert set(place.allocate([0, 1, 2], 50)[1]) == {0}, "and there are not arbitrarily many"
    for made in writers:
        for writer in made.values():
            now(writer.abort())


@pytest.mark.parametrize("size", [50, 3 * PART])
def test_a_spool_file_that_cannot_be_opened_fails_the_upload(
    place: ServerPlace, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(place, size)
    now(writer.write(0, pattern(PART - HEADER_BYTES - 1)[:size]))

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    writing = writer.write(0, pattern(size))
    closing = writer.close()
    monkeypatch.undo()
    if size > PART:
        assert isinstance(error_of(writing), LocalError)
    assert isinstance(error_of(closing), (OSError, LocalError))
    assert writer.closed and not place.client.objects and not place.client.uploads


def test_an_untidy_end_is_an_end(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool file cannot be removed, and somebody's close handler raises: all who wait hear, space is free."""
    place.server.register_bucket_writer_close_handler(lambda _: 1 / 0)
    monkeypatch.setattr(place.store, "drop_spool", lambda *_: 1 / 0)
    writer = writer_of(place, 50)
    now(writer.write(0, pattern(50)))
    assert now(writer.close()) is None and place.server.allocated_size() == 0
    monkeypatch.undo()
    place.store.drop_spool(SI, 0)


def test_random_ends_leave_nothing(place: ServerPlace) -> None:
    """Failures and ends of all kinds at random, with answers held at random: all that began ends."""
    chance = random.Random(2026)
    operations = ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"]
    for number in range(120):
        size = chance.choice([40, PART, 3 * PART, 8 * PART])
        writer = writer_of(place, size, shnum=number)
        holds = [place.client.hold(operation) for operation in operations if chance.random() < 0.3]
        data, results = pattern(size), []
        for start in range(0, size, PART):
            results.append(writer.write(start, data[start : start + PART]))
            if holds and chance.random() < 0.3 and len(holds[0]):
                if chance.random() < 0.3:
                    holds[0].fail(Unavailable, outcome=chance.choice(["unknown", "not_applied"]))
                else:
                    holds[0].release(1)
        for _ in range(2):
            results.append(chance.choice([writer.close, writer.close, writer.abort, writer.disconnected])())
        place.client.fail(chance.choice(operations), Unavailable, outcome=chance.choice(["unknown", "not_applied"]),
                          applied=chance.random() < 0.5)  # fmt: skip
        for held in holds:
            held.release()
        assert writer.closed and all(result.called for result in results)
        for result in results:
            result.addErrback(lambda failure: failure.trap(S3Error, AssertionError, ConflictingWriteError, Closed))
        place.client._failing.clear()
        shares = now(place.server.get_buckets(SI))
        assert (number in shares) == (place.key(number) in place.client.objects)
        if number in shares:
            assert now(shares[number].read(0, size)) == data
    place.assert_no_upload()
