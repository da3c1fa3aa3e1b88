# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service applies late is put right after a restart too, by what the journal has of keys in doubt."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from allmydata.interfaces import NoSpace

from tahoe_s3.client import S3Error, Unavailable
from tahoe_s3.store import late as late_module
from tahoe_s3.store.journal import COPIES, JOURNAL
from tahoe_s3.store.keys import share_key
from tahoe_s3.store.late import CHECKS_S, LATE_S
from tahoe_s3.store.leases import hash_secret

from .expiring import SIS, ExpiryPlace, making, two_files
from .helpers import SI, error_of, immutable_object, mutable_object, now
from .living import DATA, HOW, KEY, LEASES, OTHER, Living
from .memory_client import MemoryClient
from .servers import CANCEL, RENEW, reborn
from .starting import stop


@pytest.fixture
def living(tmp_path: Path) -> Living:
    return Living(tmp_path)




# what was undone before a start


@HOW
def test_an_acknowledged_version_is_back_before_anybody_asks(living: Living, how: str) -> None:
    living.put_in_doubt()
    living.restart(how, meanwhile=lambda: living.client.store(KEY, mutable_object(b"second")))
    assert living.there() == b"third"
    living.as_indexed()
    assert living.read() == b"third"


@HOW
def test_also_where_the_service_had_deleted_it(living: Living, how: str) -> None:
    now(living.write(b"first"))
    living.lose("DeleteObject")
    assert isinstance(error_of(living.write(b"", delete=True)), S3Error)
    now(living.write(b"third"))
    living.restart(how, meanwhile=lambda: living.objects.pop(KEY))
    assert living.there() == living.read() == b"third"


@HOW
def test_leases_are_back(living: Living, how: str) -> None:
    now(living.upload())
    living.lose(key=LEASES)
    assert isinstance(error_of(living.server.add_lease(SI, b"1" * 32, CANCEL)), S3Error)
    now(living.server.add_lease(SI, b"2" * 32, CANCEL))
    living.restart(how, meanwhile=lambda: living.client.store(LEASES, b'{"version":1,"leases":[]}'))
    assert hash_secret(b"2" * 32) in living.leases()
    now(living.server.add_lease(SI, b"3" * 32, CANCEL))
    assert living.leases() >= {hash_secret(b"2" * 32), hash_secret(b"3" * 32)}


@HOW
def test_a_lease_object_that_is_gone_is_back(living: Living, how: str) -> None:
    living.put_leases_in_doubt()
    living.restart(how, meanwhile=lambda: living.objects.pop(LEASES))
    assert living.leases() == {hash_secret(b"1" * 32), hash_secret(b"2" * 32)}


@HOW
def test_the_lease_of_an_upload_survives_an_earlier_upload(living: Living, how: str) -> None:
    living.lose()
    assert isinstance(error_of(living.upload()), S3Error)
    now(living.upload(renew=OTHER))
    theirs = living.objects[KEY].data.replace(hash_secret(OTHER), hash_secret(RENEW))
    living.restart(how, meanwhile=lambda: living.client.store(KEY, theirs))
    assert living.leases() == {hash_secret(OTHER)}
    readers = now(living.server.get_buckets(SI))
    assert now(readers[0].read(0, 1000)) == DATA


# and after it


@HOW
def test_checks_go_on_after_a_restart(living: Living, how: str) -> None:
    living.put_in_doubt()
    living.restart(how)
    living.client.store(KEY, mutable_object(b"second"))
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"third"


def test_what_was_under_way_at_a_crash_undoes_nothing(living: Living) -> None:
    """Nobody knows of it: so everything that is written for a while is looked after."""
    now(living.write(b"first"))
    living.restart("kill")
    now(living.write(b"second"))
    living.client.store(KEY, mutable_object(b"under way"))
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"second"


def test_nor_after_one_more_crash(living: Living) -> None:
    now(living.write(b"first"))
    living.restart("kill")
    now(living.write(b"second"))
    living.restart("kill", meanwhile=lambda: living.client.store(KEY, mutable_object(b"under way")))
    assert living.there() == living.read() == b"second"


def test_after_a_crash_that_lasts_no_longer_than_a_write_can_be_late(living: Living) -> None:
    now(living.write(b"first"))
    living.restart("kill")
    living.node.clock.advance(LATE_S + 1)
    living.client.forget_requests()
    now(living.write(b"second"))
    living.node.clock.advance(LATE_S)
    assert living.client.requests["HeadObject"] == 0 and living.copies == []


def test_a_doubt_of_the_last_run_counts_after_a_clean_stop(living: Living) -> None:
    living.retried(b"first")
    living.restart("stop")
    now(living.write(b"second"))
    living.client.store(KEY, mutable_object(b"first"))
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"second"


# while it lives


def test_a_reader_that_meets_the_older_version_gets_the_right_one(living: Living) -> None:
    living.put_in_doubt()
    living.store.cache.clear()
    living.client.store(KEY, mutable_object(b"second"))
    assert living.read() == b"third"
    assert living.there() == b"third"
    living.as_indexed()


def test_a_write_builds_on_the_right_version(living: Living) -> None:
    living.put_in_doubt()
    living.store.cache.clear()
    living.client.store(KEY, mutable_object(b"second"))
    secrets = (b"w" * 32, RENEW, CANCEL)
    passed, read = now(living.server.slot_testv_and_readv_and_writev(
        SI, secrets, {0: ([(0, 5, b"eq", b"third")], [(5, b"!")], None)}, [(0, 100)]
    ))  # fmt: skip
    assert passed and read == {0: [b"third"]}
    assert living.there() == b"third!"


def test_who_has_no_answer_may_never_have_written(living: Living) -> None:
    """Of two that had none nobody knows which one the bucket shows; the acknowledged one is right."""
    living.put_in_doubt()
    living.lose()
    assert isinstance(error_of(living.write(b"fourth")), S3Error)
    living.client.store(KEY, mutable_object(b"second"))
    assert living.read() == b"third"
    assert living.there() == b"third"


def test_a_share_that_is_deleted_stays_deleted(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    now(living.write(b"", delete=True))
    living.restart("kill")
    assert KEY not in living.objects and living.store.index.share(SI, 0) is None
    assert living.copies == []


def test_a_deletion_of_which_nobody_knows_leaves_what_was_acknowledged(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    living.lose("DeleteObject")
    assert isinstance(error_of(living.write(b"", delete=True)), S3Error)
    living.objects.pop(KEY)
    assert living.read() == b"second"


# expiry


@HOW
def test_a_share_that_is_stored_again_survives_the_deletion_of_the_one_before(tmp_path: Path, how: str) -> None:
    """An attempt of an expiry's deletion is applied after somebody has stored the share again. Of an immutable share
    nobody but the client had the bytes."""
    making_places = making(tmp_path)
    place = two_files(next(making_places))
    key = share_key(SIS[0], 0)
    place.client.fail("DeleteObjects", Unavailable, outcome="unknown", applied=True)
    while not place.client.requests["DeleteObjects"]:
        place.step()
    assert not now(place.server.get_buckets(SIS[0]))
    place.upload(DATA, si=SIS[0])
    body = place.client.objects[key].data
    if how == "kill":
        place.store.index.abandon()
        place.store.late.abandon()
        clock_s = place.clock.seconds()
        place = ExpiryPlace(place.folder, client=reborn(place.client), start_s=clock_s + 5)
        del place.client.objects[key]
        now(place.store.late.begin(is_unclean=True))
    else:
        del place.client.objects[key]
        place.clock.advance(CHECKS_S[0])
    assert place.client.objects[key].data == body
    assert now(now(place.server.get_buckets(SIS[0]))[0].read(0, 1000)) == DATA
    place.close()


def test_a_deletion_that_is_answered_leaves_nothing_behind(tmp_path: Path) -> None:
    place = two_files(next(making(tmp_path)))
    place.cycles(2)
    assert place.client.requests["DeleteObjects"] and not place.has(SIS[0])
    place.upload(DATA, si=SIS[0])
    assert not list(tmp_path.rglob(f"{COPIES}/*"))
    place.close()
    assert not list(tmp_path.rglob(f"{JOURNAL}*"))


# the journal itself


def test_without_trouble_there_is_none(living: Living) -> None:
    now(living.write(b"first"))
    now(living.write(b"second"))
    now(living.upload(si=bytes(16)))
    stop(living.store)
    assert not living.journal.exists() and living.copies == []


def test_it_goes_when_the_doubts_have_gone(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    assert living.journal.exists() and len(living.copies) == 1
    living.node.clock.pump([1.0] * int(2 * LATE_S + 2))
    assert living.copies == []
    stop(living.store)
    assert list(living.folder.glob(f"{JOURNAL}*")) == []


def test_it_goes_after_a_last_look_at_what_came_as_late_as_can_be(living: Living) -> None:
    living.put_in_doubt()
    living.node.clock.pump([1.0] * int(LATE_S - 1))
    living.client.store(KEY, mutable_object(b"second"))
    living.node.clock.pump([1.0] * 120)
    assert living.there() == b"third" and living.copies == []


def test_it_stays_until_the_service_could_be_asked(living: Living) -> None:
    living.put_in_doubt()
    living.node.clock.pump([1.0] * int(LATE_S - 1))
    living.client.store(KEY, mutable_object(b"second"))
    living.client.fail("HeadObject", Unavailable, key=KEY, times=2)
    living.node.clock.pump([1.0] * int(sum(CHECKS_S)))
    assert living.there() == b"second" and len(living.copies) == 1
    living.node.clock.pump([1.0] * int(sum(CHECKS_S)))
    assert living.there() == b"third" and living.copies == []


def test_where_it_cannot_be_written_nothing_is_acknowledged(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    living.retried(b"first")
    now(living.write(b"second"))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(type(living.store.late._journal), "_write_now", full)
    assert isinstance(error_of(living.write(b"third")), OSError)
    monkeypatch.undo()
    # What counts is what it was before, since that is what the journal has.
    assert living.read() == b"second"
    assert living.there() == b"second"
    assert len(living.copies) == 1


def test_a_clock_that_is_set_back_brings_no_older_version_back(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    living.node.clock.advance(2 * LATE_S + 2)
    now(living.write(b"third"))
    living.node.clock.rightNow -= 2 * LATE_S
    living.restart("kill")
    assert living.there() == living.read() == b"third"


def test_a_damaged_one_is_made_anew_and_everything_is_in_doubt(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    stop(living.store)
    living.journal.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    living.node.client = reborn(living.client)
    living.store = living.node.start(has_run_before=True)
    assert living.store.late.is_in_doubt(share_key(bytes(16), 7))
    stop(living.store)


def test_another_buckets_is_not_believed(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    stop(living.store)
    living.node.client = MemoryClient()
    living.store = living.node.start(bucket="another-bucket", has_run_before=False)
    assert KEY not in living.objects and living.copies == []
    stop(living.store)


def test_it_is_a_database_that_anybody_can_look_at(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    living.node.crash(living.store)
    with sqlite3.connect(living.journal) as db:
        ((key, etag, file),) = db.execute("SELECT key, etag, file FROM keys")
    assert (key, etag) == (KEY, living.objects[KEY].etag)
    assert (living.folder / COPIES / file).read_bytes() == living.objects[KEY].data


def test_no_more_is_kept_than_may_be(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_module, "MAX_KEYS", 3)
    living.restart("kill")
    for shnum in range(6):
        now(living.write(b"a", shnum=shnum))
    assert list(living.store.late._kept) == [share_key(SI, shnum) for shnum in (3, 4, 5)]
    assert len(living.copies) == 3
    monkeypatch.setattr(late_module, "COPIES_BYTES", len(mutable_object(b"a")) + 10)
    now(living.write(b"b", shnum=6))
    assert len(living.copies) == 1


def test_copies_are_given_up_for_a_full_disk(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    free = iter([10, 10])
    monkeypatch.setattr(type(living.store), "_disk_free_bytes", lambda _: next(free, 10**9))
    living.store.make_disk_room(100)
    assert living.copies == []
    monkeypatch.undo()
    living.client.store(KEY, mutable_object(b"first"))
    assert living.read() == b"first"


# what a clean stop leaves unsure


def test_what_is_unsure_at_a_stop_is_known_after_the_next_start(living: Living) -> None:
    """Not only when somebody asks: the node's counts are the bucket's."""
    living.lose()
    living.client.fail("HeadObject", Unavailable, key=KEY)
    assert isinstance(error_of(living.upload()), S3Error)
    living.lose(key=LEASES)
    living.client.store(KEY, immutable_object(DATA))
    living.restart("stop")
    assert living.store.slots.unsure == []
    living.as_indexed()
    living.lose(key=LEASES)
    assert isinstance(error_of(living.server.add_lease(SI, OTHER, CANCEL)), (S3Error, NoSpace))
    assert LEASES not in living.objects
    living.restart("stop")
    row = living.store.index.overlay(SI)
    assert living.leases() == {hash_secret(OTHER)}
    assert row is not None and row.etag == living.objects[LEASES].etag


def test_what_cannot_be_settled_stays_unsure_and_stops_nobody(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    living.node.crash(living.store)
    living.node.clock.advance(1)
    living.client.store(KEY, mutable_object(b"first"))
    living.client.fail("PutObject", Unavailable, key=KEY, outcome="unknown")
    living.store = living.node.start(has_run_before=True)
    living._serve()
    assert living.store.slots.unsure == [SI]
    assert living.read() == b"second"


# other nodes


def test_what_another_node_has_written_since_is_left_alone(living: Living, tmp_path: Path) -> None:
    """The bucket was taken over, from another folder, and back."""
    living.retried(b"first")
    now(living.write(b"second"))
    living.node.crash(living.store)
    home, living.node.folder = living.folder, tmp_path / "elsewhere"
    living.store = living.node.start()
    living._serve()
    now(living.write(b"third"))
    stop(living.store)
    living.node.folder, living.node.client = home, reborn(living.client)
    living.store = living.node.start(has_run_before=True)
    living._serve()
    assert living.there() == living.read() == b"third"
    stop(living.store)


@pytest.mark.parametrize("operation", ["ListObjectsV2", "PutObject"])
def test_starts_of_its_own_that_failed_are_no_other_node(living: Living, operation: str) -> None:
    living.put_in_doubt()
    living.node.crash(living.store)
    living.client.store(KEY, mutable_object(b"second"))
    living.client.fail(operation, Unavailable, outcome="unknown", applied=operation == "PutObject")
    failed = living.node.start(has_run_before=True)
    assert failed.problem is not None and living.there() == b"second"
    living.node.crash(failed)
    living.store = living.node.start(has_run_before=True)
    living._serve()
    assert living.there() == living.read() == b"third"


def test_a_share_that_vanishes_while_it_is_in_doubt_is_put_again(living: Living) -> None:
    living.retried(b"first")
    now(living.write(b"second"))
    body = living.objects.pop(KEY).data
    living.store.vanished(SI, 0)
    # The checks of the doubt itself come later than the last of these.
    living.store.late._rounds.clear()
    living.node.clock.pump([1.0] * 600)
    assert living.objects[KEY].data == body
    living.as_indexed()
