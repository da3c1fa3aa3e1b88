# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of objects: what is ours, what is foreign, and that no two shares share a name."""

from __future__ import annotations

import pytest
from allmydata.storage.common import si_b2a, storage_index_to_dir
from hypothesis import example, given
from hypothesis import strategies as st

from tahoe_s3.store.keys import (
    MAX_SHNUM,
    LeaseId,
    ShareId,
    fits_key,
    lease_key,
    parse_key,
    share_key,
    si_text,
    slot_prefix,
)

SI = bytes(range(16))
TEXT = "aaaqeayeaudaocajbifqydiob4"

storage_indexes = st.binary(min_size=16, max_size=16)
share_numbers = st.integers(min_value=0, max_value=MAX_SHNUM)


@given(storage_indexes)
@example(b"\0" * 16)
@example(b"\xff" * 16)
def test_text_is_tahoes(storage_index: bytes) -> None:
    assert si_text(storage_index) == si_b2a(storage_index).decode("ascii")


@given(storage_indexes, share_numbers)
def test_shares_lie_where_the_disk_backend_has_them(storage_index: bytes, shnum: int) -> None:
    assert share_key(storage_index, shnum) == f"shares/{storage_index_to_dir(storage_index)}/{shnum}"


@given(storage_indexes, share_numbers)
def test_keys_name_what_they_were_made_of(storage_index: bytes, shnum: int) -> None:
    assert parse_key(share_key(storage_index, shnum)) == ShareId(storage_index, shnum)
    assert parse_key(lease_key(storage_index)) == LeaseId(storage_index)


@given(st.text(alphabet="shareleas/0123456789" + TEXT, max_size=60))
def test_a_key_that_is_ours_is_the_one_we_would_write(key: str) -> None:
    found = parse_key(key)
    if isinstance(found, ShareId):
        assert share_key(*found) == key
    elif found is not None:
        assert lease_key(*found) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "owner.json",
        "shares/",
        f"shares/{TEXT[:2]}/{TEXT}",
        f"shares/{TEXT[:2]}/{TEXT}/",
        f"shares/{TEXT[:2]}/{TEXT}/00",
        f"shares/{TEXT[:2]}/{TEXT}/01",
        f"shares/{TEXT[:2]}/{TEXT}/-1",
        f"shares/{TEXT[:2]}/{TEXT}/+1",
        f"shares/{TEXT[:2]}/{TEXT}/1 ",
        f"shares/{TEXT[:2]}/{TEXT}/1\n",
        f"shares/{TEXT[:2]}/{TEXT}/1.tmp",
        f"shares/{TEXT[:2]}/{TEXT}/\u0661",
        f"shares/{TEXT[:2]}/{TEXT}/{MAX_SHNUM + 1}",
        f"shares/{TEXT[:2]}/{TEXT}/1/2",
        f"shares/zz/{TEXT}/1",
        f"shares/{TEXT[:2]}/{TEXT[:-1]}/1",
        f"shares/{TEXT[:2]}/{TEXT}a/1",
        f"shares/{TEXT[:2].upper()}/{TEXT.upper()}/1",
        f"shares/{TEXT[:2]}/{TEXT[:-1]}b/1",
        f"shares/incoming/{TEXT[:2]}/{TEXT}/1",
        f"shares/{TEXT[:2]}//{TEXT}/1",
        f"/shares/{TEXT[:2]}/{TEXT}/1",
        f"x/shares/{TEXT[:2]}/{TEXT}/1",
        f"leases/{TEXT[:2]}/{TEXT}/1",
        f"leases/{TEXT[:2]}/{TEXT}\n",
        f"leases/zz/{TEXT}",
        f"Leases/{TEXT[:2]}/{TEXT}",
    ],
)
def test_any_other_key_is_foreign(key: str) -> None:
    assert parse_key(key) is None


def test_the_prefix_of_a_slot_names_its_shares_only() -> None:
    assert share_key(SI, 1).startswith(slot_prefix(SI))
    assert slot_prefix(SI).endswith(f"{TEXT}/")


@pytest.mark.parametrize(
    ("storage_index", "shnum", "fits"),
    [(SI, 0, True), (SI, MAX_SHNUM, True), (SI, MAX_SHNUM + 1, False), (SI, -1, False),
     (SI[:15], 0, False), (b"", 0, False), (SI + b"x", 0, False)],
)  # fmt: skip
def test_only_what_a_start_finds_again_can_be_stored(storage_index: bytes, shnum: int, fits: bool) -> None:
    assert fits_key(storage_index, shnum) is fits
    if fits:
        assert parse_key(share_key(storage_index, shnum)) == ShareId(storage_index, shnum)
