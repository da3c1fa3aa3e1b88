# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases: hashed as Tahoe hashes them, merged without losing one, kept in objects that survive damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage import immutable_schema
from allmydata.storage.immutable import ShareFile
from allmydata.storage.lease import LeaseInfo
from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3.store.leases import (
    MAX_LEASES,
    Lease,
    OverlayError,
    hash_secret,
    merge,
    overlay_from_json,
    overlay_to_json,
    pack,
    unpack,
)

hashes = st.binary(min_size=32, max_size=32)
leases = st.builds(
    Lease,
    st.integers(0, 2**32 - 1), hashes, hashes, st.integers(0, 2**63 - 1), st.binary(min_size=20, max_size=20),
)  # fmt: skip
few_leases = st.lists(leases, max_size=6, unique_by=lambda lease: lease.renew_hash)


def of(renew: bytes, expires_s: int, owner: int = 1) -> Lease:
    return Lease.from_secrets(renew * 32, b"c" * 32, owner_num=owner, expiration_s=expires_s, nodeid=b"n" * 20)


@pytest.mark.parametrize("version", [1, 2])
def test_a_lease_is_the_same_from_either_container_version(tmp_path: Path, version: int) -> None:
    schema = next(schema for schema in immutable_schema.ALL_SCHEMAS if schema.version == version)
    share = ShareFile(str(tmp_path / "0"), max_size=3, create=True, schema=schema)
    share.add_lease(LeaseInfo(7, b"r" * 32, b"c" * 32, 1234.9, b"n" * 20))
    (found,) = map(Lease.from_tahoe, ShareFile(str(tmp_path / "0")).get_leases())
    assert (found.owner_num, found.renew_hash, found.expiration_s) == (7, hash_secret(b"r" * 32), 1234)
    assert found.cancel_hash == hash_secret(b"c" * 32)


def test_tahoe_knows_its_secrets_again() -> None:
    info = of(b"r", 99).to_tahoe()
    assert info.is_renew_secret(b"r" * 32) and info.is_cancel_secret(b"c" * 32)
    assert not info.is_renew_secret(b"x" * 32)
    assert info.get_expiration_time() == 99 and info.nodeid == b"n" * 20
    assert Lease.from_tahoe(info) == of(b"r", 99)


def test_secrets_show_nowhere() -> None:
    shown = repr(of(b"r", 99)) + repr(of(b"r", 99).to_tahoe())
    for secret in (b"r" * 32, hash_secret(b"r" * 32), hash_secret(b"c" * 32)):
        assert repr(secret)[2:20] not in shown and secret.hex()[:12] not in shown


@given(few_leases, few_leases)
def test_merging_loses_no_lease_and_shortens_none(one: list[Lease], other: list[Lease]) -> None:
    merged = {lease.renew_hash: lease for lease in merge(one, other)}
    assert len(merged) == len(merge(one, other))
    for lease in one + other:
        assert merged[lease.renew_hash].expiration_s >= lease.expiration_s
    assert merge(one, other, merge(one, other)) == merge(one, other)


def test_the_later_expiration_wins_whatever_the_order() -> None:
    old, new = of(b"r", 10), of(b"r", 20)
    assert [lease.expiration_s for lease in merge([old], [new])] == [20]
    assert [lease.expiration_s for lease in merge([new], [old])] == [20]


@given(few_leases)
def test_packed_and_written_they_are_the_same(some: list[Lease]) -> None:
    assert unpack(pack(some)) == some
    written = overlay_to_json(some)
    assert sorted(overlay_from_json(written), key=lambda lease: lease.renew_hash) == sorted(
        some, key=lambda lease: lease.renew_hash
    )
    assert overlay_to_json(reversed(some)) == written


def damage(**changes: Any) -> bytes:
    document = json.loads(overlay_to_json([of(b"r", 10)]))
    document["leases"][0].update(changes)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"[" * 200_000,
        b'{"version": 1}',
        b'{"version": 1, "leases": 3}',
        b'{"version": 1, "leases": [3]}',
        b'{"version": 1, "leases": "ab"}',
        b'{"version": 1, "leases": [{}]}',
        damage(renew="00"),
        damage(renew="zz" * 32),
        damage(renew=3),
        damage(nodeid="00" * 19),
        damage(expires=-1),
        damage(expires=2**63),
        damage(expires=1.5),
        damage(expires=True),
        damage(owner=2**32),
        damage(owner=None),
        overlay_to_json([of(b"r", 10)])[:-30],
    ],
)
def test_a_damaged_object_is_an_error_that_tells_no_secret(data: bytes) -> None:
    with pytest.raises(OverlayError) as caught:
        overlay_from_json(data)
    assert hash_secret(b"r" * 32).hex()[:12] not in str(caught.value)


def test_a_later_version_is_not_taken_for_this_one() -> None:
    with pytest.raises(OverlayError, match="version 2"):
        overlay_from_json(b'{"version": 2, "leases": []}')


def test_more_leases_than_anybody_has_are_refused() -> None:
    lease = json.loads(overlay_to_json([of(b"r", 10)]))["leases"][0]
    document = {"version": 1, "leases": [lease] * (MAX_LEASES + 1)}
    with pytest.raises(OverlayError, match="more than"):
        overlay_from_json(json.dumps(document).encode())
