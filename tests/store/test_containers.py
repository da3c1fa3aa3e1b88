# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers read from bytes: the same as Tahoe's own classes say of the same file."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from allmydata.storage.common import UnknownImmutableContainerVersionError, UnknownMutableContainerVersionError
from allmydata.storage.immutable import ShareFile
from allmydata.storage.mutable import MutableShareFile
from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3.store.containers import (
    HEAD_BYTES,
    DamagedContainerError,
    inspect_bytes,
    inspect_file,
    kind_of,
    parse_head,
    require_immutable,
    require_mutable,
)
from tahoe_s3.store.index import IMMUTABLE, MUTABLE
from tahoe_s3.store.leases import Lease

from .helpers import WRITE_ENABLER, immutable_object, mutable_object, pattern


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("leases", [0, 1, 7])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_immutable_is_what_tahoe_sees(tmp_path: Path, version: int, leases: int, size: int) -> None:
    data = immutable_object(pattern(size), leases=leases, version=version)
    path = tmp_path / "0"
    path.write_bytes(data)
    theirs = ShareFile(str(path))
    ours = inspect_bytes("k", data)
    assert (ours.head.kind, ours.head.version, ours.size) == (IMMUTABLE, version, len(data))
    assert ours.head.data_length == theirs.get_length() == size
    assert data[ours.head.data_offset :][:size] == theirs.read_share_data(0, size)
    assert list(ours.leases) == [Lease.from_tahoe(info) for info in theirs.get_leases()]
    assert len(ours.leases) == leases
    assert inspect_file("k", path) == ours


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("leases", [0, 1, 4, 9])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_mutable_is_what_tahoe_sees(tmp_path: Path, version: int, leases: int, size: int) -> None:
    data = mutable_object(pattern(size), leases=leases, version=version)
    path = tmp_path / "0"
    path.write_bytes(data)
    theirs = MutableShareFile(str(path))
    ours = inspect_bytes("k", data)
    assert (ours.head.kind, ours.head.version, ours.size) == (MUTABLE, version, len(data))
    assert ours.head.data_length == theirs.get_length() == size
    assert [data[ours.head.data_offset :][:size]] == theirs.readv([(0, size)])
    assert list(ours.leases) == [Lease.from_tahoe(info) for info in theirs.get_leases()]
    assert len(ours.leases) == leases
    assert inspect_file("k", path) == ours


def test_secrets_of_version_1_are_hashed_and_equal_those_of_version_2() -> None:
    for make in (immutable_object, mutable_object):
        assert inspect_bytes("k", make(b"d", version=1)).leases == inspect_bytes("k", make(b"d", version=2)).leases


def test_a_mutable_share_that_shrank_keeps_its_container(tmp_path: Path) -> None:
    path = tmp_path / "0"
    path.write_bytes(mutable_object(pattern(3000), leases=6))
    MutableShareFile(str(path)).writev([], 100)
    ours = inspect_file("k", path)
    assert (ours.head.data_length, len(ours.leases), ours.size) == (100, 6, path.stat().st_size)


@pytest.mark.parametrize("make", [immutable_object, mutable_object])
def test_every_truncation_is_a_clear_error_or_a_shorter_share(make: object) -> None:
    data = make(pattern(700), leases=5)  # type: ignore[operator]
    for size in range(len(data)):
        try:
            ours = inspect_bytes("the key", data[:size])
        except (DamagedContainerError, UnknownImmutableContainerVersionError) as error:
            # A mutable container's magic cut short is a version that nobody knows, as for Tahoe.
            assert "the key" in str(error)
        else:
            # An immutable container has no length of its own: the leases are what is at the end.
            assert ours.head.kind == IMMUTABLE
            assert ours.head.data_length == size - 12 - 5 * 72


@given(st.binary(max_size=700))
def test_any_bytes_are_a_container_or_a_named_error(data: bytes) -> None:
    with contextlib.suppress(DamagedContainerError, UnknownImmutableContainerVersionError):
        inspect_bytes("k", data)


@given(st.binary(max_size=80), st.integers(0, 900))
def test_any_header_behind_a_mutable_magic_is_a_container_or_a_named_error(noise: bytes, size: int) -> None:
    good = mutable_object(pattern(200), leases=5)
    data = (good[:32] + noise + good[32 + len(noise) :] + bytes(900))[:size]
    try:
        ours = inspect_bytes("k", data)
    except (DamagedContainerError, UnknownImmutableContainerVersionError):
        return
    assert ours.head.data_offset + ours.head.data_length <= ours.size


def test_absurd_lease_counts() -> None:
    with pytest.raises(DamagedContainerError, match="4294967295 leases"):
        inspect_bytes("k", struct.pack(">LLL", 2, 0, 2**32 - 1))
    data = bytearray(mutable_object(b"data"))
    data[472:476] = b"\xff" * 4
    with pytest.raises(DamagedContainerError, match="leases"):
        inspect_bytes("k", bytes(data))


def test_unknown_versions_raise_as_tahoe_does_and_show_no_secret() -> None:
    with pytest.raises(UnknownImmutableContainerVersionError) as raised:
        parse_head("k", struct.pack(">LLL", 3, 0, 0) + bytes(100), object_size=112)
    assert (raised.value.filename, raised.value.version) == ("k", 3)
    share = mutable_object(b"data")
    assert WRITE_ENABLER in share[:HEAD_BYTES]
    newer = share.replace(b"container v2", b"container v9", 1)
    with pytest.raises(UnknownMutableContainerVersionError) as raised_mutable:
        require_mutable("k", newer)
    assert WRITE_ENABLER.decode() not in str(raised_mutable.value)
    with pytest.raises(UnknownImmutableContainerVersionError) as raised_other:
        require_immutable("k", share)
    assert raised_other.value.version == int.from_bytes(b"Taho", "big")
    with pytest.raises(UnknownMutableContainerVersionError):
        require_mutable("k", immutable_object(b"data"))


def test_kinds() -> None:
    assert kind_of(immutable_object(b"d")) == IMMUTABLE
    assert kind_of(mutable_object(b"d")) == MUTABLE
    assert kind_of(b"") is None
    assert kind_of(b"<html>this is not a share</html>") is None
