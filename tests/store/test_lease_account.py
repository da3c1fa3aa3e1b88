# SPDX-License-Identifier: GPL-2.0-or-later
"""When a lease is expired, and that SQL counts and schedules as Python would."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tahoe_s3.store.index import IMMUTABLE, MUTABLE, Index, OverlayRow, ShareRow
from tahoe_s3.store.lease_account import LAST, MAX_CORRUPT, LeaseAccount
from tahoe_s3.store.lease_policy import LEASE_DURATION_S, LeasePolicy, expired_shares
from tahoe_s3.store.leases import Lease, merge

DAY_S = 86400
NOW_S = 1_800_000_000
SIS = [bytes([40 * number]) * 16 for number in range(6)]


def lease(number: int, expiration_s: int) -> Lease:
    return Lease(1, b"%032d" % number, b"c" * 32, expiration_s)


def share(*expirations: int, kind: str | None = IMMUTABLE, modified_s: int = 1000, size: int = 1000) -> ShareRow:
    found = tuple(lease(number, at_s) for number, at_s in enumerate(expirations))
    return ShareRow(0, size, "etag", True, modified_s, kind, 10, found)


# when a lease is expired


@pytest.mark.parametrize(
    ("policy", "lasts_s"),
    [
        (LeasePolicy(), LEASE_DURATION_S),
        (LeasePolicy(override_lease_duration_s=60 * DAY_S), 60 * DAY_S),
        (LeasePolicy(override_lease_duration_s=DAY_S), DAY_S),
    ],
)
def test_by_age(policy: LeasePolicy, lasts_s: int) -> None:
    """Documented as (create_renew_timestamp + duration) < now, of which only the sum with 31 days is stored."""
    renewed_s = NOW_S - lasts_s
    for late_s, gone in ((-1, False), (0, False), (1, True)):
        row = share(renewed_s + LEASE_DURATION_S)
        found = expired_shares([row], None, before_s=policy.before_s(NOW_S + late_s), sharetypes=policy.sharetypes)
        assert bool(found) is gone, late_s


def test_by_date() -> None:
    policy = LeasePolicy(mode="cutoff-date", cutoff_date_s=NOW_S - DAY_S)
    for renewed_s, gone in ((NOW_S - DAY_S - 1, True), (NOW_S - DAY_S, False)):
        row = share(renewed_s + LEASE_DURATION_S)
        found = expired_shares([row], None, before_s=policy.before_s(NOW_S), sharetypes=policy.sharetypes)
        assert bool(found) is gone


def test_a_date_in_the_future_expires_nothing() -> None:
    policy = LeasePolicy(mode="cutoff-date", cutoff_date_s=NOW_S + 1)
    assert policy.why_not_at(NOW_S) and policy.why_not_at(NOW_S + 1) is None


def test_a_mode_without_its_date() -> None:
    with pytest.raises(ValueError, match="needs a date"):
        LeasePolicy(mode="cutoff-date")


OLD, FRESH = NOW_S - DAY_S, NOW_S + 40 * DAY_S


@pytest.mark.parametrize(
    ("row", "overlay", "gone"),
    [
        (share(OLD), None, True),
        (share(OLD, OLD - 5, OLD), None, True),
        (share(OLD, FRESH), None, False),
        (share(), None, False),
        (share(OLD, kind=None), None, False),
        (share(OLD, modified_s=0), None, False),
        (share(OLD, modified_s=NOW_S - DAY_S), None, False),
        (ShareRow(0, 1, "e", True, 1000, IMMUTABLE, 1, None), None, False),
        (share(OLD), OverlayRow("e", 1000, (lease(9, OLD),)), True),
        (share(OLD), OverlayRow("e", 1000, ()), True),
        (share(), OverlayRow("e", 1000, (lease(9, OLD),)), True),
        (share(OLD), OverlayRow("e", 1000, (lease(0, FRESH),)), False),
        (share(OLD), OverlayRow("e", 1000, (lease(9, FRESH),)), False),
        (share(OLD), OverlayRow("e", 1000, None), False),
        (share(OLD), OverlayRow("", 1000, (lease(9, OLD),)), False),
        (share(OLD), OverlayRow("e", 0, (lease(9, OLD),)), False),
        (share(OLD), OverlayRow("e", NOW_S - DAY_S, (lease(9, OLD),)), False),
    ],
)
def test_deleted_only_on_knowledge(row: ShareRow, overlay: OverlayRow | None, gone: bool) -> None:
    before_s = LeasePolicy().before_s(NOW_S)
    assert bool(expired_shares([row], overlay, before_s=before_s, sharetypes=(IMMUTABLE, MUTABLE))) is gone
    assert not expired_shares([row], overlay, before_s=before_s, sharetypes=(MUTABLE,))


# what SQL makes of it

times = st.sampled_from([0, 5, NOW_S - 40 * DAY_S, OLD, NOW_S - 1, NOW_S, NOW_S + DAY_S, FRESH, 2**62])
some_leases = st.one_of(
    st.none(), st.lists(st.builds(lease, st.integers(0, 3), times), max_size=4, unique_by=lambda one: one.renew_hash)
)
rows = st.builds(
    lambda size, modified_s, kind, found: ShareRow(
        0, size, "e", True, modified_s, kind, 1, None if found is None else tuple(found)
    ),
    st.integers(0, 5000), times, st.sampled_from([None, IMMUTABLE, MUTABLE]), some_leases,
)  # fmt: skip
overlays = st.builds(
    lambda etag, modified_s, found: OverlayRow(etag, modified_s, None if found is None else tuple(found)),
    st.sampled_from(["", "e"]), times, some_leases,
)  # fmt: skip
slots = st.fixed_dictionaries({si: st.tuples(st.lists(rows, max_size=3), st.none() | overlays) for si in SIS})


def fill(index: Index, content: dict[bytes, Any], *, overlay_first: bool) -> None:
    for si, (shares, overlay) in content.items():
        steps = [lambda si=si, overlay=overlay: overlay and index.put_overlay(si, overlay)]
        for shnum, row in enumerate(shares):
            numbered = ShareRow(**{**vars(row), "shnum": shnum})
            steps.append(lambda si=si, row=numbered: index.put_share(si, row))
        for step in steps if overlay_first else reversed(steps):
            step()


@settings(max_examples=120)
@given(slots, st.integers(1, 9), st.booleans(), st.sampled_from([(IMMUTABLE, MUTABLE), (IMMUTABLE,), (MUTABLE,), ()]))
def test_sql_counts_as_python_does(
    content: dict[bytes, Any], stretch: int, overlay_first: bool, sharetypes: tuple[str, ...]
) -> None:
    policy = LeasePolicy(True, override_lease_duration_s=20 * DAY_S, sharetypes=sharetypes)
    before_s = policy.before_s(NOW_S)
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder) / "index.sqlite", identity="x")
        fill(index, content, overlay_first=overlay_first)
        account = LeaseAccount(index, policy, now_s=NOW_S)
        account.begin_cycle(NOW_S)
        candidates: list[bytes] = []
        while account.position != LAST:
            upto = account.end_of_stretch(stretch)
            candidates += account.candidates(upto, before_s=before_s)
            account.count_stretch(upto, now_s=NOW_S, before_s=before_s)
        shown = account.as_tahoe_shows()
        check_counts(index, content, shown, before_s=before_s, sharetypes=sharetypes)
        assert candidates == sorted(set(candidates))
        for si, (shares, overlay) in content.items():
            if expired_shares(index.shares(si), overlay, before_s=before_s, sharetypes=sharetypes):
                assert si in candidates
            if si in candidates and shares:
                assert any(row.modified_s < before_s for row in shares), "it may not go, whatever is not known"
        index.abandon()


def check_counts(
    index: Index, content: dict[bytes, Any], shown: dict[str, Any], *, before_s: float, sharetypes: tuple[str, ...]
) -> None:
    expected: Counter[str] = Counter()
    per_share: Counter[str] = Counter()
    ages: Counter[int] = Counter()
    for si, (shares, overlay) in content.items():
        gone = expired_shares(index.shares(si), overlay, before_s=before_s, sharetypes=sharetypes)
        lapsed = []
        for row in index.shares(si):
            if row.leases is not None and (overlay is None or overlay.leases is not None):
                known = merge(row.leases, () if overlay is None else overlay.leases or ())
                per_share[str(len(known))] += 1
                for one in known:
                    ages[int((NOW_S - (min(one.expiration_s, 10**12 - 1) - LEASE_DURATION_S)) / DAY_S)] += 1
                if known and all(one.expiration_s < NOW_S for one in known):
                    lapsed.append(row)
        for outcome, found in (("examined", index.shares(si)), ("original", lapsed), ("configured", gone)):
            expected[f"{outcome}-shares"] += len(found)
            expected[f"{outcome}-sharebytes"] += sum(row.size for row in found)
            expected[f"{outcome}-buckets"] += bool(shares) and len(found) == len(shares)
    for name, count in expected.items():
        assert shown["space-recovered"][name] == count, name
    assert shown["leases-per-share-histogram"] == dict(per_share)
    assert shown["lease-age-histogram"] == [[day * DAY_S, (day + 1) * DAY_S, ages[day]] for day in sorted(ages)]


def test_kinds_are_counted_apart(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite", identity="x")
    for si, kind in zip(SIS, (IMMUTABLE, MUTABLE, MUTABLE, None)):
        index.put_share(si, share(OLD, kind=kind))
    account = LeaseAccount(index, LeasePolicy(True), now_s=NOW_S)
    account.begin_cycle(NOW_S)
    account.count_stretch(LAST, now_s=NOW_S, before_s=NOW_S - LEASE_DURATION_S)
    found = account.state.recovered
    for outcome, mutable, immutable, both in (("examined", 2, 1, 4), ("original", 2, 1, 4), ("configured", 2, 1, 3)):
        for what, times_ in (("buckets", 1), ("shares", 1), ("sharebytes", 1000), ("diskbytes", 1000)):
            names = (f"{outcome}-{what}-mutable", f"{outcome}-{what}-immutable", f"{outcome}-{what}")
            assert [found[name] for name in names] == [mutable * times_, immutable * times_, both * times_]
    index.abandon()


def test_the_state_outlives_a_clean_stop_only(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    index = Index(path, identity="x")
    account = LeaseAccount(index, LeasePolicy(True), now_s=NOW_S)
    account.begin_cycle(NOW_S)
    for number in range(MAX_CORRUPT + 5):
        for _ in range(2 if number < MAX_CORRUPT else 1):
            account.note_corrupt(SIS[0], ShareRow(number, 1, "e", True, 1, None))
    account.count_stretch(LAST, now_s=NOW_S, before_s=0)
    account.finish_cycle(NOW_S + 1)
    kept = json.dumps(vars(account.state))
    assert len(account.state.history["0"]["corrupt-shares"]) == MAX_CORRUPT
    assert account.state.history["0"]["space-recovered"]["examined-shares"] == -MAX_CORRUPT - 5
    index.close()
    index = Index(path, identity="x")
    again = LeaseAccount(index, LeasePolicy(True), now_s=NOW_S + 99)
    assert json.dumps(vars(again.state)) == kept
    index.remember("lease account", '{"nonsense": 1}')
    assert LeaseAccount(index, LeasePolicy(True), now_s=NOW_S).state.full_cycles == 0
    index.abandon()
    index = Index(path, identity="x")
    assert LeaseAccount(index, LeasePolicy(True), now_s=NOW_S).state.history == {}
    index.abandon()
