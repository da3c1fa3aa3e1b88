# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of keys in doubt, where more than one thing goes wrong."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from tahoe_s3.client import S3Error, Unavailable
from tahoe_s3.store import journal as journal_module
from tahoe_s3.store import late as late_module
from tahoe_s3.store.journal import JOURNAL, Journal
from tahoe_s3.store.keys import OWNER_KEY, share_key
from tahoe_s3.store.late import CHECKS_S, LATE_S
from tahoe_s3.store.learning import learn_overlay
from tahoe_s3.store.leases import hash_secret
from tahoe_s3.store.ownership import OwnerMark, this_host
from tahoe_s3.store.store import VANISH_CHECKS_S

from .helpers import SI, error_of, mutable_object, now
from .living import DATA, KEY, LEASES, Living
from .servers import CANCEL, reborn
from .starting import stop


@pytest.fixture
def living(tmp_path: Path) -> Living:
    return Living(tmp_path)


# doubts that are over


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_what_was_in_no_doubt_at_a_start_never_comes_back(living: Living, how: str) -> None:
    """Its row has gone, whatever the clock says at a later start."""
    living.put_in_doubt()
    clock_s = living.node.clock.seconds()
    living.node.clock.advance(LATE_S - 10)
    living.restart(how, after_s=110)
    assert living.copies == []
    living.node.clock.advance(LATE_S + 1)
    now(living.write(b"fourth"))
    living.node.clock.rightNow = clock_s
    living.restart("stop")
    assert living.there() == living.read() == b"fourth"


def test_a_clock_that_was_far_ahead_at_a_crash_leaves_no_lasting_doubt(living: Living) -> None:
    living.node.clock.advance(1e8)
    now(living.write(b"first"))
    living.restart("kill")
    living.node.clock.rightNow = 1000.0
    living.restart("stop")
    living.node.clock.advance(LATE_S + 1)
    assert not living.store.late.is_in_doubt(KEY)


@pytest.mark.parametrize("by_s", [1e9, -1e9])
def test_a_clock_that_is_set_after_a_crash_ends_no_doubt(living: Living, by_s: float) -> None:
    """As that of a machine without one of its own, after a power failure."""
    living.node.clock.advance(2e9)
    now(living.write(b"first"))
    living.restart("kill")
    living.set_clock(by_s)
    now(living.write(b"second"))
    living.restart("kill", meanwhile=lambda: living.client.store(KEY, mutable_object(b"under way")))
    assert living.there() == living.read() == b"second"


@pytest.mark.parametrize("by_s", [1e9, -1e9])
def test_nor_does_it_make_one_last(living: Living, by_s: float) -> None:
    living.node.clock.advance(2e9)
    living.put_in_doubt()
    living.set_clock(by_s)
    living.restart("stop")
    living.store.cache.clear()
    living.client.store(KEY, mutable_object(b"second"))
    assert living.there() == b"second" and living.store.late.kept(KEY) is not None
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"third"
    living.node.clock.advance(LATE_S)
    assert not living.store.late.is_in_doubt(KEY)


# a damaged journal


def rot(path: Path) -> None:
    """Its last page is no page of a database any more, though its first one is."""
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)


def half_made(path: Path) -> None:
    """As a kill leaves it between the one table and the other."""
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
    db.close()


def odd_leases(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE keys SET leases=?", (b"xyz",))
    db.close()


def odd_times(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value='nonsense' WHERE name='unclean_s'")
    db.close()


class Rotten:
    """A connection to a file that rotted while it was open."""

    def __enter__(self) -> Rotten:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def execute(self, *_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("damage", [rot, half_made, odd_leases, odd_times])
def test_a_journal_that_cannot_be_read_stops_no_start(living: Living, damage: Any) -> None:
    living.put_in_doubt()
    stop(living.store)
    damage(living.journal)
    living.node.client = reborn(living.client)
    living.store = living.node.start(has_run_before=True)
    living._serve()
    assert living.store.late.is_in_doubt(share_key(bytes(16), 7))
    now(living.write(b"fourth"))
    living.client.store(KEY, mutable_object(b"third"))
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"fourth"
    stop(living.store)


def test_a_journal_that_is_damaged_while_it_runs_is_made_anew(living: Living) -> None:
    """And has all that it had."""
    living.put_in_doubt()
    living.client.retried.add(LEASES)
    now(living.server.add_lease(SI, b"1" * 32, CANCEL))
    living.store.late._journal._db = Rotten()  # type: ignore[assignment]
    assert isinstance(error_of(living.server.add_lease(SI, b"2" * 32, CANCEL)), OSError)
    now(living.server.add_lease(SI, b"3" * 32, CANCEL))
    living.restart("kill", meanwhile=lambda: living.client.store(KEY, mutable_object(b"second")))
    assert living.there() == b"third"


# leases


def test_a_lease_that_must_be_there_counts_before_the_bucket_has_it_again(living: Living) -> None:
    """The start could not ask. Expiry goes by what the index has."""
    stale = living.put_leases_in_doubt()
    living.node.crash(living.store)
    living.client.store(LEASES, stale)
    living.client.fail("GetObject", Unavailable, key=LEASES)
    living.store = living.node.start(has_run_before=True)
    living._serve()
    now(learn_overlay(living.store, SI, priority=1))
    hashes = {lease.renew_hash for lease in living.store.index.leases(SI, 0)}
    assert hash_secret(b"2" * 32) in hashes
    living.node.clock.advance(CHECKS_S[0])
    assert hash_secret(b"2" * 32) in living.leases()


@pytest.mark.parametrize("is_gone", [True, False])
def test_so_it_does_for_who_reads_the_lease_object(living: Living, is_gone: bool) -> None:
    stale = living.put_leases_in_doubt()
    living.node.crash(living.store)
    if is_gone:
        del living.objects[LEASES]
    else:
        living.client.store(LEASES, stale)
    living.client.fail("GetObject", Unavailable, key=LEASES)
    living.store = living.node.start(has_run_before=True)
    living._serve()
    now(living.store.slots.run(SI, lambda: living.store.overlay.read(SI)))
    hashes = {lease.renew_hash for lease in living.store.index.leases(SI, 0)}
    assert hash_secret(b"2" * 32) in hashes
    living.node.clock.advance(CHECKS_S[0])
    assert hash_secret(b"2" * 32) in living.leases()


# readers and checks


def test_a_share_that_was_looked_for_and_is_an_older_one_is_put_right(living: Living) -> None:
    living.put_in_doubt()
    living.store.vanished(SI, 0)
    living.store.late._rounds.clear()
    living.client.store(KEY, mutable_object(b"second"))
    living.store.cache.clear()
    living.node.clock.advance(VANISH_CHECKS_S[0])
    assert living.read() == b"third"
    assert living.there() == b"third"


def test_a_check_goes_on_after_a_local_failure(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the share is never looked for again."""
    living.put_in_doubt()
    living.store.late._rounds.clear()
    del living.objects[KEY]
    living.store.vanished(SI, 0)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Journal, "_write_now", full)
    for delay_s in VANISH_CHECKS_S:
        living.node.clock.advance(delay_s)
    monkeypatch.undo()
    assert living.store.vanishing_count == 1
    living.node.clock.advance(VANISH_CHECKS_S[-1])
    assert living.store.vanishing_count == 0
    assert living.read() == b"third"


def test_a_damaged_copy_is_no_reason_where_there_is_another(living: Living) -> None:
    living.put_in_doubt()
    (copy,) = living.copies
    copy.write_bytes(b"x" * copy.stat().st_size)
    # Fetched again, since copy and cache were one file.
    assert living.read() == b"third"
    living.client.store(KEY, mutable_object(b"second"))
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == living.read() == b"third"


def test_an_index_that_is_made_anew_while_the_node_runs_has_the_right_version(living: Living) -> None:
    living.put_in_doubt()
    living.client.store(KEY, mutable_object(b"second"))
    living.store._mend("a test")
    living.node.clock.pump([0.0] * 20)
    assert living.store.problem is None
    living.store.cache.clear()
    assert living.read() == b"third"
    assert living.there() == b"third"


# other nodes


def other_mark(living: Living) -> OwnerMark:
    mark = living.store.mark
    assert mark is not None
    return OwnerMark(mark.nodeid, "f" * 32, mark.since_s + 1, this_host())


def test_a_node_that_was_superseded_undoes_nothing(living: Living) -> None:
    """It finds out by what it reads, and must not take that for its own older write."""
    living.put_in_doubt()
    living.client.store(OWNER_KEY, other_mark(living).to_json())
    living.client.store(KEY, mutable_object(b"theirs"))
    living.store.cache.clear()
    error_of(living.server.slot_readv(SI, [0], [(0, 10)]))
    assert living.there() == b"theirs"
    living.node.clock.advance(CHECKS_S[0])
    assert living.there() == b"theirs"


def test_leases_of_another_node_are_left_alone(living: Living) -> None:
    stale = living.put_leases_in_doubt()
    living.client.store(OWNER_KEY, other_mark(living).to_json())
    living.client.store(LEASES, stale)
    living.node.clock.advance(CHECKS_S[0])
    assert living.objects[LEASES].data == stale


def test_a_node_that_took_over_while_this_one_waited_for_its_bucket(living: Living) -> None:
    living.put_in_doubt()
    mark = other_mark(living)
    living.node.crash(living.store)
    living.client.fail("PutObject", Unavailable, key=OWNER_KEY, outcome="unknown", applied=True)
    living.store = living.node.start(has_run_before=True)
    assert living.store.problem is not None
    living.client.store(OWNER_KEY, mark.to_json())
    living.client.store(KEY, mutable_object(b"theirs"))
    living.node.clock.pump([10.0] * 12)
    assert living.store.problem is None
    living._serve()
    assert living.there() == living.read() == b"theirs"


# limits


def test_the_operator_hears_of_what_is_more_than_can_be_kept(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a while, not with each write."""
    monkeypatch.setattr(late_module, "MAX_KEYS", 2)
    living.restart("kill")
    with capturedLogs() as events:
        for shnum in range(6):
            now(living.write(b"a", shnum=shnum))
    said = [event["log_format"] for event in events if "log_format" in event]
    assert len([text for text in said if "more is in doubt" in text]) == 1, said


def test_what_a_start_asks_at_once_is_limited(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_module, "MAX_LOOKS", 3)
    sis = [bytes([number]) * 16 for number in range(10)]
    for si in sis:
        now(living.upload(si=si))
        living.client.fail("PutObject", Unavailable, outcome="unknown")
        error_of(living.server.add_lease(si, b"1" * 32, CANCEL))
    living.client.forget_requests()
    living.restart("stop")
    assert living.client.requests["GetObject"] < 3 + 5
    assert living.store.problem is None


def test_a_start_does_not_wait_long_for_a_slow_service(living: Living) -> None:
    """Who needs what is not settled yet waits for it himself."""
    living.put_in_doubt()
    living.node.crash(living.store)
    living.client.store(KEY, mutable_object(b"second"))
    held = living.client.hold("HeadObject", KEY)
    starting = living.node.begin(has_run_before=True)
    living.node.clock.advance(60.0)
    living.store = now(starting)
    living._serve()
    reading = living.server.slot_readv(SI, [0], [(0, 100)])
    assert not reading.called
    held.release()
    assert now(reading) == {0: [b"third"]}
    assert living.there() == b"third"


def test_what_is_given_up_takes_nothing_newer_with_it(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is kept anew while its last version is given up, in one batch."""
    living.put_in_doubt()
    journal = living.store.late._journal
    waiting: list[Any] = []

    def later(_: object, work: Any, *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        waiting.append((done, work, arguments))
        return done

    monkeypatch.setattr(journal_module, "off_reactor", later)

    def run_one() -> None:
        done, work, arguments = waiting.pop(0)
        done.callback(work(*arguments))

    journal.write({})
    writing = living.write(b"fourth")
    living.store.late._give_up([KEY])
    while waiting:
        run_one()
    assert now(writing)[0]
    monkeypatch.undo()
    living.restart("kill", meanwhile=lambda: living.client.store(KEY, mutable_object(b"second")))
    assert living.there() == b"fourth"


def test_deletions_in_doubt_are_limited(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_module, "MAX_KEYS", 5)
    late = living.store.late
    for number in range(20):
        keys = [share_key(bytes([number]) * 16, 0)]
        now(late.about_to_delete(keys))
        late.wrote(keys[0], is_in_doubt=True, is_answered=True)
        late.deletion_ended(keys, keys)
    assert len(late._deleting) <= 5
    with sqlite3.connect(living.folder / JOURNAL) as db:
        ((count,),) = db.execute("SELECT COUNT(*) FROM keys")
    assert count <= 5


def test_a_round_ends_where_what_is_there_cannot_be_read(living: Living) -> None:
    now(living.upload())
    living.client.retried.add(LEASES)
    now(living.server.add_lease(SI, b"1" * 32, CANCEL))
    now(living.server.add_lease(SI, b"2" * 32, CANCEL))
    living.client.store(LEASES, b"not a lease object")
    living.store.index.drop_overlay(SI)
    for delay_s in CHECKS_S:
        living.node.clock.advance(delay_s)
    assert LEASES not in living.store.late._rounds


def test_a_full_disk_at_a_start_is_said_in_a_sentence(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    living.put_in_doubt()
    living.node.crash(living.store)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Journal, "_write_now", full)
    assert "No space left" in living.node.refused(has_run_before=True)


def test_leases_of_a_slot_that_is_deleted_are_gone_without_a_failure(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    now(living.write(b"first"))
    living.client.retried.add(LEASES)
    now(living.server.add_lease(SI, b"1" * 32, CANCEL))
    now(living.server.add_lease(SI, b"2" * 32, CANCEL))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Journal, "_write_now", full)
    assert now(living.write(b"", delete=True))[0]
    assert KEY not in living.objects and LEASES not in living.objects


def test_a_stop_ends_what_a_start_still_asks(living: Living) -> None:
    sis = [bytes([number]) * 16 for number in range(3 * late_module.LOOKS_AT_ONCE)]
    for si in sis:
        living.lose(key=share_key(si, 0))
        living.client.fail("HeadObject", Unavailable, key=share_key(si, 0))
        assert isinstance(error_of(living.upload(si=si)), S3Error)
    stop(living.store)
    living.node.client = reborn(living.client)
    held = living.client.hold("HeadObject")
    starting = living.node.begin(has_run_before=True)
    living.node.clock.advance(late_module.SETTLE_S)
    living.store = now(starting)
    living.client.forget_requests()
    stopping = living.store.close()
    held.release()
    assert now(stopping) is None
    assert living.client.requests["HeadObject"] == 0


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_share_that_was_acknowledged_is_no_absence_where_the_service_lags(living: Living, how: str) -> None:
    """Nobody could have deleted it, so it is looked for over minutes, as any other share."""
    living.lose()
    assert isinstance(error_of(living.upload()), S3Error)
    now(living.upload())
    stored = living.objects[KEY]
    living.restart(how, meanwhile=lambda: living.objects.pop(KEY))
    assert set(now(living.server.get_buckets(SI))) == {0}
    living.node.clock.advance(VANISH_CHECKS_S[0])
    living.objects[KEY] = stored
    living.node.clock.advance(VANISH_CHECKS_S[1])
    assert living.store.vanishing_count == 0
    living.as_indexed()
    readers = now(living.server.get_buckets(SI))
    assert now(readers[0].read(0, 1000)) == DATA


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_one_that_is_really_gone_is_gone_after_these_minutes(living: Living, how: str) -> None:
    living.lose()
    assert isinstance(error_of(living.upload()), S3Error)
    now(living.upload())
    living.restart(how, meanwhile=lambda: living.objects.pop(KEY))
    living.node.clock.pump([10.0] * 200)
    assert not now(living.server.get_buckets(SI)) and living.store.vanishing_count == 0
    assert not living.store.late._kept


def test_a_failure_that_says_nothing_of_a_copy_gives_nothing_up(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    living.put_in_doubt()
    living.store.cache.clear()
    living.client.store(KEY, mutable_object(b"second"))

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(late_module, "file_digest", no_more)
    assert isinstance(error_of(living.server.slot_readv(SI, [0], [(0, 10)])), OSError)
    monkeypatch.undo()
    assert living.read() == b"third"


def test_a_client_that_goes_away_meanwhile_changes_nothing(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    living.put_in_doubt()
    waiting: list[Any] = []

    def later(_: object, work: Any, *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        waiting.append((done, work, arguments))
        return done

    monkeypatch.setattr(journal_module, "off_reactor", later)
    writing = living.write(b"fourth")
    writing.addErrback(lambda _: None)
    writing.cancel()
    while waiting:
        done, work, arguments = waiting.pop(0)
        done.callback(work(*arguments))
    monkeypatch.undo()
    living.restart("kill", meanwhile=lambda: living.client.store(KEY, mutable_object(b"second")))
    assert living.there() == living.read() == b"fourth"
