# SPDX-License-Identifier: GPL-2.0-or-later
"""Expiry as tahoe.cfg's documentation describes it: the cases of Tahoe's own tests for its lease checker
(allmydata/test/test_storage_web.py, LeaseCrawler), and what a bucket adds to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3.store import expiry, expiry_batch
from tahoe_s3.store.expiry import CYCLE_S, SLOW_START_S
from tahoe_s3.store.keys import ShareId, lease_key, share_key, si_text
from tahoe_s3.store.lease_policy import LEASE_DURATION_S

from .expiring import DATA, DAY_S, SIS, START_S, ExpiryPlace, Make, container, making, renew_of
from .helpers import now

I0, I1, M2, M3 = SIS

@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from making(tmp_path)


def make_shares(place: ExpiryPlace) -> None:
    """As in Tahoe's tests: two immutable and two mutable shares, of which one each has a second lease, renewed a
    while later."""
    place.upload(DATA, si=I0)
    place.upload(DATA, si=I1)
    place.make_slot(M2)
    place.make_slot(M3)


def add_leases(place: ExpiryPlace) -> None:
    place.renew(I1, renew_of(77))
    place.renew(M3, renew_of(78))


def leases(place: ExpiryPlace, si: bytes) -> int:
    return len(list(place.server.get_leases(si)))


# the cases of Tahoe's own tests


def test_basic(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "STRETCH_ROWS", 1)
    place = make(enabled=False)
    make_shares(place)
    add_leases(place)
    place.client.store("shares/not-a-share", b"I am not a share.\n")
    state = place.checker.get_state()
    assert not place.checker.get_progress()["cycle-in-progress"] and state["history"] == {}
    assert not {"cycle-to-date", "estimated-remaining-cycle", "estimated-current-cycle"} & set(state)
    place.client.forget_requests()
    place.start()
    assert "Next crawl in 6 minutes" in place.page()

    place.begin_cycle()
    state = place.checker.get_state()
    so_far = state["cycle-to-date"]
    assert so_far["expiration-enabled"] is False and state["history"] == {}
    assert so_far["configured-expiration-mode"] == ["age", None, None, ["mutable", "immutable"]]
    assert so_far["lease-age-histogram"] == [[0, DAY_S, 1]] and so_far["leases-per-share-histogram"] == {"1": 1}
    assert so_far["corrupt-shares"] == []
    recovered = so_far["space-recovered"]
    assert (recovered["examined-buckets"], recovered["examined-shares"], recovered["actual-shares"]) == (1, 1, 0)
    left = state["estimated-remaining-cycle"]["space-recovered"]
    assert left["examined-shares"] == pytest.approx(4, abs=0.1) and left["actual-shares"] == 0
    page = place.page()
    assert "So far, this cycle has examined 1 shares in 1 buckets (0 mutable / 1 immutable)" in page
    nothing = "0 shares, 0 buckets (0 mutable / 0 immutable), 0 B (0 B / 0 B)"
    assert f"and has recovered: {nothing}" in page
    assert f"If expiration were enabled, we would have recovered: {nothing} by now" in page
    assert f"and the whole cycle would probably recover: {nothing}" in page
    assert f"this cycle would be expected to recover: {nothing}" in page

    last = place.finish_cycle()
    state = place.checker.get_state()
    assert not {"cycle-to-date", "estimated-remaining-cycle", "estimated-current-cycle"} & set(state)
    start_s, end_s = last["cycle-start-finish-times"]
    assert START_S + SLOW_START_S <= start_s <= end_s < START_S + SLOW_START_S + 60
    assert last["lease-age-histogram"] == [[0, DAY_S, 6]]
    assert last["leases-per-share-histogram"] == {"1": 2, "2": 2} and last["corrupt-shares"] == []
    recovered = last["space-recovered"]
    assert (recovered["examined-buckets"], recovered["examined-shares"]) == (4, 4)
    assert {name for name, count in recovered.items() if count and not name.startswith("examined")} == set()
    assert recovered["examined-diskbytes"] == recovered["examined-sharebytes"] == place.index.used_bytes
    assert [leases(place, si) for si in SIS] == [1, 2, 1, 2]
    page = place.page()
    assert f"recovered: {nothing}" in page and "but expiration was not enabled" in page
    assert "and saw a total of 4 shares, 4 buckets (2 mutable / 2 immutable)," in page
    assert {"lease-checker", "lease-checker-progress"} <= set(place.json())
    assert place.client.requests == {}, "looking after leases asks nothing of the bucket where nothing may be deleted"


def check_two_are_gone(place: ExpiryPlace, *, original: int, mode: list[Any]) -> None:
    """Of the four shares, those with one old lease are gone after the second cycle."""
    size = sum(len(place.object(si=si)) for si in (I0, M2))
    place.start()
    dry = place.finish_cycle()
    assert all(place.has(si) for si in SIS)
    assert dry["space-recovered"]["configured-shares"] == 2 and dry["space-recovered"]["actual-shares"] == 0
    last = place.finish_cycle()
    assert [place.has(si) for si in SIS] == [False, True, False, True]
    assert last["expiration-enabled"] is True and last["configured-expiration-mode"] == mode
    assert last["leases-per-share-histogram"] == {"1": 2, "2": 2}
    found = last["space-recovered"]
    assert (found["examined-buckets"], found["examined-shares"]) == (4, 4)
    for outcome, count in (("actual", 2), ("configured", 2), ("original", original)):
        assert (found[f"{outcome}-buckets"], found[f"{outcome}-shares"]) == (count, count), outcome
        assert found[f"{outcome}-sharebytes"] == found[f"{outcome}-diskbytes"] == size * count // 2
    page = place.page()
    assert "Expiration Enabled: expired leases will be removed" in page
    assert " recovered: 2 shares, 2 buckets (1 mutable / 1 immutable), " in page
    assert [leases(place, si) for si in (I1, M3)] == [2, 2]
    assert place.index.share_count == 2 and place.index.slot_count == 2


def test_expire_age(make: Make) -> None:
    place = make(mode="age", override_lease_duration=2 * DAY_S)
    make_shares(place)
    place.pass_days(1.9)
    add_leases(place)
    place.pass_days(0.2)
    check_two_are_gone(place, original=0, mode=["age", 2 * DAY_S, None, ["mutable", "immutable"]])
    assert "Leases created or last renewed more than 2 days ago will be considered expired." in place.page()


def test_expire_age_without_an_override(make: Make) -> None:
    """As documented; Tahoe's own code never deletes here."""
    place = make(mode="age")
    make_shares(place)
    place.pass_days(20)
    add_leases(place)
    place.pass_days(11.001)
    check_two_are_gone(place, original=2, mode=["age", None, None, ["mutable", "immutable"]])
    assert "Leases will expire naturally, probably 31 days after creation or renewal." in place.page()


def test_nothing_goes_on_the_last_day(make: Make) -> None:
    place = make(mode="age")
    make_shares(place)
    place.start()
    while place.clock.seconds() < START_S + LEASE_DURATION_S:
        assert all(place.has(si) for si in SIS), place.clock.seconds() - START_S
        found = place.finish_cycle()["space-recovered"]
    assert place.clock.seconds() < START_S + LEASE_DURATION_S + CYCLE_S
    assert found["actual-shares"] == found["configured-shares"] == found["original-shares"] == 4
    assert not any(place.has(si) for si in SIS)


def test_expire_cutoff_date(make: Make) -> None:
    cutoff_s = int(START_S + 2 * DAY_S)
    place = make(mode="cutoff-date", cutoff_date=cutoff_s)
    make_shares(place)
    place.pass_days(3)
    add_leases(place)
    check_two_are_gone(place, original=0, mode=["cutoff-date", None, cutoff_s, ["mutable", "immutable"]])
    date = time.strftime("%Y-%m-%d (%d-%b-%Y) UTC", time.gmtime(cutoff_s))
    assert f"Leases created or last renewed before {date} will be considered expired." in place.page()


@pytest.mark.parametrize("only", ["immutable", "mutable"])
def test_only_one_kind(make: Make, only: str) -> None:
    place = make(mode="cutoff-date", cutoff_date=int(START_S + DAY_S), sharetypes=(only,))
    make_shares(place)
    add_leases(place)
    place.pass_days(2)
    place.start()
    place.cycles(3)
    assert [place.has(si) for si in SIS] == [only == "mutable", only == "mutable"] + 2 * [only == "immutable"]
    assert [place.has_overlay(si) for si in (I1, M3)] == [only == "mutable", only == "immutable"]
    assert f"The following sharetypes will be expired: {only}." in place.page()


def test_bad_mode(make: Make) -> None:
    with pytest.raises(ValueError, match="GC mode 'bogus' must be 'age' or 'cutoff-date'"):
        make(mode="bogus")


def test_limited_history(make: Make) -> None:
    place = make(enabled=False)
    make_shares(place)
    place.start()
    place.cycles(16)
    assert sorted(map(int, place.checker.get_state()["history"])) == list(range(6, 16))


def test_unpredictable_future(make: Make) -> None:
    place = make(override_lease_duration=DAY_S)
    make_shares(place)
    place.pass_days(2)
    held = place.client.hold("GetObject")
    place.put(SIS[0], "immutable", [START_S], shnum=3)
    place.start()
    place.begin_cycle()
    state = place.checker.get_state()
    assert len(held) and place.checker.get_progress()["cycle-complete-percentage"] == 0.0
    for name in ("estimated-remaining-cycle", "estimated-current-cycle"):
        assert set(state[name]["space-recovered"].values()) == {None}
    assert "The whole cycle is expected to examine ? shares in ? buckets" in place.page()
    held.release()


def test_no_st_blocks(make: Make) -> None:
    """An object takes as many bytes as it has; a negative duration makes all leases old."""
    place = make(enabled=False, override_lease_duration=-1000)
    make_shares(place)
    place.start()
    found = place.finish_cycle()["space-recovered"]
    assert (found["configured-buckets"], found["configured-shares"]) == (4, 4)
    assert found["configured-sharebytes"] == found["configured-diskbytes"] == place.index.used_bytes


@pytest.mark.parametrize("damage", [b"BAD MAGIC", b""])
def test_share_corruption(make: Make, damage: bytes) -> None:
    place = make(override_lease_duration=DAY_S)
    for si in SIS[1:]:
        place.put(si, "immutable", [START_S])
    place.add(damage, si=I0)
    place.pass_days(40)
    place.start()
    for last in (place.finish_cycle(), place.finish_cycle()):
        assert last["corrupt-shares"] == [[si_text(I0), 0]]
        found = last["space-recovered"]
        assert (found["examined-buckets"], found["examined-shares"]) == (4, 3)
    assert [place.has(si) for si in SIS] == [True, False, False, False]
    assert f"Corrupt shares: SI {si_text(I0)} shnum 0" in place.page()
    assert place.json()["lease-checker"]["history"]["1"]["corrupt-shares"] == [[si_text(I0), 0]]


# what a bucket adds


def test_the_page_tells_what_is_about_to_go(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "STRETCH_ROWS", 1)
    monkeypatch.setattr(expiry, "MAX_KEYS", 1)
    place = make(override_lease_duration=DAY_S)
    make_shares(place)
    place.pass_days(2)
    place.start()
    place.begin_cycle()
    assert place.json()["lease-checker"]["deletes-nothing-because"].startswith("nothing is deleted before the second")
    place.finish_cycle()
    place.begin_cycle()
    assert place.json()["lease-checker"]["deletes-nothing-because"] is None
    page = place.page()
    assert "and has recovered: 1 shares, 1 buckets (0 mutable / 1 immutable)" in page
    assert "The remainder of this cycle is expected to recover: 4 shares, 4 buckets" in page
    assert "The whole cycle is expected to examine 5 shares in 5 buckets and to recover: 5 shares, 5 buckets" in page
    assert "Current crawl 20.0% complete" in page


def test_requests_of_a_cycle(make: Make) -> None:
    """Two files whose leases ended: one was renewed once, so that its lease object is known."""
    place = make(override_lease_duration=DAY_S)
    for si in (I0, I1):
        for writer in place.allocate(range(3), len(DATA), si=si)[1].values():
            now(writer.write(0, DATA))
            now(writer.close())
    place.renew(I1)
    place.pass_days(2)
    place.start()
    place.client.forget_requests()
    place.finish_cycle()
    assert place.client.requests == {}
    place.finish_cycle()
    assert place.client.requests == {"GetObject": 1, "DeleteObjects": 2}
    assert set(place.client.objects) == {"owner.json"}
    place.client.forget_requests()
    place.cycles(2)
    assert place.client.requests == {}


def test_what_is_not_known_is_asked_in_the_background(make: Make) -> None:
    place = make(override_lease_duration=DAY_S)
    place.put(I0, "immutable", [START_S])
    place.put(I1, "immutable", [START_S] * 2)
    place.put(M2, "mutable", [START_S] * 6)
    place.pass_days(40)
    place.start()
    place.finish_cycle()
    assert place.client.requests == {"GetObject": 3} and set(place.client.priorities) == {2}
    assert [row.kind for row in (place.row(si=I0), place.row(si=M2))] == ["immutable", "mutable"]
    place.finish_cycle()
    assert [place.has(si) for si in SIS] == [False] * 4
    assert place.store.reads.stats()["gets"] == 0, "readers' memory is left alone"


@pytest.mark.parametrize("kind", ["immutable", "mutable"])
def test_only_the_ends_of_a_large_share_are_read(make: Make, kind: str) -> None:
    place = make(override_lease_duration=DAY_S)
    for version, si in ((1, I0), (2, I1)):
        place.add(expiring_large(kind, version), si=si)
    place.pass_days(40)
    place.start()
    place.finish_cycle()
    assert place.client.requests == {"GetObject": 4} and sum(length for _, _, length in place.client.ranges) < 3000
    place.finish_cycle()
    assert not place.has(I0) and not place.has(I1)


def expiring_large(kind: str, version: int) -> bytes:
    return container(kind, [START_S] * 5, version=version, data=b"x" * 200_000)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["immutable", "mutable"])
def test_the_latest_lease_of_a_container_decides(make: Make, kind: str, version: int) -> None:
    place = make()
    ends_s = START_S + 2 * DAY_S
    for si, count in ((I0, 1), (I1, 5)):
        place.put(si, kind, [START_S - DAY_S] * (count - 1) + [ends_s], version=version)
        place.client.objects[share_key(si, 0)].modified_s -= 40 * DAY_S
        place.index.put_share(si, replace(place.row(si=si), modified_s=int(START_S - 40 * DAY_S)))
    place.start()
    while place.clock.seconds() <= ends_s:
        assert place.has(I0) and place.has(I1)
        found = place.finish_cycle()["space-recovered"]
    assert found["configured-shares"] == found["actual-shares"] == 2
    assert not place.has(I0) and not place.has(I1)


def test_migrated_shares_keep_for_as_long_as_if_they_were_new(make: Make) -> None:
    """Copied from a disk with leases that ended long ago: the copy's own age counts too."""
    place = make()
    for si, kind, version in ((I0, "immutable", 1), (I1, "immutable", 2), (M2, "mutable", 1), (M3, "mutable", 2)):
        place.put(si, kind, [START_S - 300 * DAY_S, START_S - 10 * DAY_S], version=version)
    place.start()
    while place.clock.seconds() < START_S + LEASE_DURATION_S:
        assert all(place.has(si) for si in SIS), place.clock.seconds() - START_S
        place.finish_cycle()
    place.cycles(2)
    assert not any(place.has(si) for si in SIS)


def test_a_share_without_a_lease_is_kept(make: Make) -> None:
    """As the disk backend does, whatever its age."""
    place = make(override_lease_duration=DAY_S)
    place.put(I0, "immutable", [])
    place.put(M2, "mutable", [])
    place.pass_days(400)
    place.start()
    found = place.cycles(3)["space-recovered"]
    assert place.has(I0) and place.has(M2)
    assert (found["examined-shares"], found["configured-shares"], found["original-shares"]) == (2, 0, 0)


def test_a_renewal_keeps_all_shares_of_the_file(make: Make) -> None:
    place = make(override_lease_duration=3 * DAY_S)
    for shnum in range(3):
        place.upload(DATA, shnum, si=I0)
    place.start()
    for _ in range(10):
        place.pass_days(1.9)
        place.renew(I0)
        renewed_s = place.clock.seconds()
        place.finish_cycle()
    while place.clock.seconds() <= renewed_s + 3 * DAY_S:
        assert all(place.has(I0, shnum) for shnum in range(3)), place.clock.seconds() - renewed_s
        place.finish_cycle()
    assert not any(place.has(I0, shnum) for shnum in range(3)) and not place.has_overlay(I0)


def test_changed_settings_start_over(make: Make) -> None:
    place = make(enabled=False)
    make_shares(place)
    place.pass_days(40)
    place.start()
    assert place.finish_cycle()["space-recovered"]["configured-shares"] == 4
    place.cycles(2)
    for changes in ({"enabled": True}, {"override_lease_duration": DAY_S}, {"sharetypes": ("immutable",)}):
        place = place.restarted(**changes)
        place.start()
        place.finish_cycle()
        assert all(place.has(si) for si in SIS), changes
    place = place.restarted()
    place.start()
    place.finish_cycle()
    assert [place.has(si) for si in SIS] == [False, False, True, True], "the same settings go on"
    place.close()


def test_a_restart_goes_on_where_the_cycle_was(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "STRETCH_ROWS", 1)
    place = make(enabled=False)
    make_shares(place)
    place.start()
    place.finish_cycle()
    place.begin_cycle()
    place = place.restarted()
    progress = place.checker.get_progress()
    assert progress["cycle-in-progress"] and progress["cycle-complete-percentage"] == pytest.approx(20, abs=1)
    place.start()
    assert place.finish_cycle()["space-recovered"]["examined-shares"] == 4
    assert sorted(place.checker.get_state()["history"]) == ["0", "1"]
    place.close()


def test_a_cycle_begins_twice_a_day_however_often_the_node_is_restarted(make: Make) -> None:
    place = make()
    make_shares(place)
    place.start()
    first_s = place.finish_cycle()["cycle-start-finish-times"][0]
    for _ in range(5):
        place.clock.advance(600)
        place = place.restarted()
        place.start()
    assert place.finish_cycle()["cycle-start-finish-times"][0] == pytest.approx(first_s + CYCLE_S, abs=2)
    place.close()


def test_an_emptied_index_never_makes_anything_go_earlier(make: Make) -> None:
    """After a crash nothing is known: neither leases, nor how long expiry has been on."""
    place = make(override_lease_duration=DAY_S)
    make_shares(place)
    place.pass_days(1.5)
    place.renew(I1)
    place.start()
    place.finish_cycle()
    objects = dict(place.client.objects)
    place.index.path.unlink()
    place.store.problem = "crashed"
    place.close()
    place = make(override_lease_duration=DAY_S, client=place.client.__class__(), start_s=place.clock.seconds())
    place.client.objects.update(objects)
    for key, stored in objects.items():
        si = next((si for si in SIS if key == share_key(si, 0)), None)
        if si is not None:
            place.index.confirm_shares([(ShareId(si, 0), len(stored.data), stored.etag, stored.modified_s)])
    # The listing was behind: the lease object of I1 was not in it.
    place.start()
    place.finish_cycle()
    assert all(place.has(si) for si in SIS)
    place.finish_cycle()
    assert [place.has(si) for si in SIS] == [False, True, False, False]
    assert leases(place, I1) == 1


def test_a_leftover_lease_object_goes(make: Make) -> None:
    """The node died between deleting the shares and their lease object."""
    place = make(override_lease_duration=DAY_S)
    for si in SIS[:2]:
        place.upload(DATA, si=si)
        place.renew(si)
        del place.client.objects[share_key(si, 0)]
        place.index.drop_share(si, 0)
    place.pass_days(0.9)
    stored = place.client.store(lease_key(M2), place.client.objects[lease_key(I0)].data)
    place.index.confirm_overlays([(M2, len(stored.data), stored.etag, stored.modified_s)])
    place.pass_days(0.2)
    place.start()
    place.finish_cycle()
    assert all(place.has_overlay(si) for si in (I0, I1, M2))
    place.finish_cycle()
    assert [place.has_overlay(si) for si in (I0, I1, M2)] == [False, False, True]
    place.pass_days(0.9)
    place.finish_cycle()
    assert not place.has_overlay(M2) and place.index.overlay(M2) is None


def test_more_shares_than_a_batch_takes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "MAX_KEYS", 7)
    monkeypatch.setattr(expiry_batch, "MAX_KEYS", 7)
    place = make(override_lease_duration=DAY_S)
    for number in range(30):
        for shnum in range(1 + number % 3):
            place.upload(DATA, shnum, si=bytes([8 * number]) * 16)
    place.pass_days(2)
    place.start()
    place.finish_cycle()
    place.client.forget_requests()
    found = place.finish_cycle()["space-recovered"]
    assert set(place.client.objects) == {"owner.json"}
    assert (found["actual-shares"], found["actual-buckets"]) == (60, 30)
    # Ten batches of at most seven shares, and their lease objects.
    assert place.client.requests == {"GetObject": 10, "DeleteObjects": 20}


def test_nothing_is_asked_and_little_is_done_while_all_is_well(make: Make) -> None:
    """Leases that are valid cost nothing but counting."""
    place = make()
    make_shares(place)
    add_leases(place)
    place.start()
    place.client.forget_requests()
    place.cycles(20)
    assert place.client.requests == {} and now(place.server.get_buckets(I0))
