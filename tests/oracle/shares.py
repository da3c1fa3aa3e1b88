# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies on the disk and what lies in the bucket: bytes and leases of every share, and whether they are the same.

Leases are read by Tahoe's own code on either side (of the bucket: on a copy of the object), and from the lease object
as JSON, so that what our index says can be compared too. Owner: Pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allmydata.storage.common import storage_index_to_dir
from allmydata.storage.immutable import ShareFile
from allmydata.storage.lease import HashedLeaseInfo
from allmydata.storage.mutable import MutableShareFile

from tahoe_s3.store.keys import ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import hash_secret

#: Renew hash -> (cancel hash, expiration).
Leases = dict[bytes, tuple[bytes, int]]
#: A mutable container: the leases' slots lie between these, and the data ends where the extra leases begin.
SLOTS_AT, DATA_AT, EXTRA_AT = 100, 468, slice(92, 100)


def is_mutable(container: bytes) -> bool:
    return bool(MutableShareFile.is_valid_header(container[:100]))


def leases_of(path: Path) -> Leases:
    """By Tahoe's own code."""
    share = MutableShareFile(str(path)) if is_mutable(path.read_bytes()) else ShareFile(str(path))
    found: Leases = {}
    for lease in share.get_leases():
        expires_s = int(lease.get_expiration_time())
        if isinstance(lease, HashedLeaseInfo):
            inner = lease._lease_info
            found[inner.renew_secret] = (inner.cancel_secret, expires_s)
        else:
            found[hash_secret(lease.renew_secret)] = (hash_secret(lease.cancel_secret), expires_s)
    return found


def union(*groups: Leases) -> Leases:
    """Of two leases with one renew secret, the later expiration with the older cancel secret, as Tahoe renews."""
    found: Leases = {}
    for group in groups:
        for renew, (cancel, expires_s) in group.items():
            known = found.get(renew, (cancel, 0))
            found[renew] = (known[0], max(known[1], expires_s))
    return found


def without_leases(container: bytes) -> tuple[bytes, ...]:
    """All bytes of a container but those of its leases and their number."""
    if is_mutable(container):
        return container[:SLOTS_AT], container[DATA_AT : int.from_bytes(container[EXTRA_AT], "big")]
    leases = int.from_bytes(container[8:12], "big")
    return container[:8], container[12 : len(container) - 72 * leases]


class Disk:
    """Tahoe's storage directory."""

    def __init__(self, sharedir: Path) -> None:
        self._sharedir = sharedir

    def folder(self, si: bytes) -> Path:
        return self._sharedir / storage_index_to_dir(si)

    def path(self, share: ShareId) -> Path:
        return self.folder(share.storage_index) / str(share.shnum)

    def numbers(self, si: bytes) -> list[int]:
        folder = self.folder(si)
        return sorted(int(path.name) for path in folder.iterdir()) if folder.is_dir() else []

    def bytes(self, share: ShareId) -> bytes:
        return self.path(share).read_bytes()

    def leases(self, share: ShareId) -> Leases:
        return leases_of(self.path(share))

    def keep(self, si: bytes) -> dict[int, bytes]:
        """What there is, for put_back()."""
        return {shnum: self.bytes(ShareId(si, shnum)) for shnum in self.numbers(si)}

    def put_back(self, si: bytes, kept: dict[int, bytes]) -> bool:
        """Undo what was done since keep(). Whether there was anything to undo."""
        if self.keep(si) == kept:
            return False
        for shnum in self.numbers(si):
            self.path(ShareId(si, shnum)).unlink()
        for shnum, data in kept.items():
            self.put(ShareId(si, shnum), data)
        return True

    def put(self, share: ShareId, data: bytes) -> None:
        self.path(share).parent.mkdir(parents=True, exist_ok=True)
        self.path(share).write_bytes(data)


class Comparison:
    """The disk beside the bucket. `later`: leases of a storage index that came after its shares, as ours keeps them;
    `closed`: the bytes of each immutable share when it was stored."""

    def __init__(self, disk: Disk, scratch: Path) -> None:
        self.disk = disk
        self.later: dict[bytes, Leases] = {}
        self.closed: dict[ShareId, bytes] = {}
        self._scratch = scratch

    def expected(self, share: ShareId) -> Leases:
        """The share's leases on the disk, and those that belong to its storage index here."""
        return union(self.disk.leases(share), self.later.get(share.storage_index, {}))

    def _in_bucket(self, share: ShareId, objects: dict[str, Any]) -> Leases:
        self._scratch.write_bytes(objects[share_key(*share)])
        in_container = leases_of(self._scratch)
        overlay = json.loads(objects.get(lease_key(share.storage_index), b'{"leases": []}'))
        later = {
            bytes.fromhex(entry["renew"]): (bytes.fromhex(entry["cancel"]), entry["expires"])
            for entry in overlay["leases"]
        }
        return union(in_container, later)

    def compare_slot(self, si: bytes, objects: dict[str, bytes]) -> None:
        """The shares of one storage index: their numbers, bytes and leases."""
        here = sorted(found.shnum for key in objects if isinstance(found := parse_key(key), ShareId)
                      and found.storage_index == si)  # fmt: skip
        assert here == self.disk.numbers(si), f"shares {here} in the bucket, {self.disk.numbers(si)} on the disk"
        for shnum in here:
            share = ShareId(si, shnum)
            mine, theirs = objects[share_key(*share)], self.disk.bytes(share)
            assert without_leases(mine) == without_leases(theirs), f"share {shnum} of {si!r} has other bytes"
            if not is_mutable(mine):
                assert mine == self.closed[share], f"share {shnum} of {si!r} is not what was stored"
            leases = self._in_bucket(share, objects)
            assert leases == self.expected(share), f"share {shnum} of {si!r} has other leases"

    def compare_index(self, si: bytes, objects: dict[str, bytes], index: Any) -> None:
        """What the index says of this storage index is what lies in the bucket, as far as it knows."""
        rows = index.shares(si)
        assert [row.shnum for row in rows] == self.disk.numbers(si)
        for row in rows:
            data = objects[share_key(si, row.shnum)]
            assert row.size == len(data)
            if row.kind is not None:
                assert (row.kind == "mutable") == is_mutable(data)
            if row.data_length is not None:
                assert row.data_length == data_length(data)
            if row.leases is not None and self._knows_overlay(si, objects, index):
                known = {one.renew_hash: (one.cancel_hash, one.expiration_s) for one in index.leases(si, row.shnum)}
                assert known == self.expected(ShareId(si, row.shnum)), "the index has other leases than the bucket"

    @staticmethod
    def _knows_overlay(si: bytes, objects: dict[str, bytes], index: Any) -> bool:
        overlay = index.overlay(si)
        return lease_key(si) not in objects or (overlay is not None and overlay.leases is not None)

    def compare_totals(self, objects: dict[str, bytes], index: Any) -> None:
        """The numbers that the operator sees."""
        shares = [data for key, data in objects.items() if isinstance(parse_key(key), ShareId)]
        assert index.share_count == len(shares)
        assert index.used_bytes == sum(map(len, shares))


def data_length(container: bytes) -> int:
    if is_mutable(container):
        return int.from_bytes(container[84:92], "big")
    return len(container) - 12 - 72 * int.from_bytes(container[8:12], "big")


def all_of(objects: Iterable[str]) -> set[bytes]:
    """The storage indexes that have anything in the bucket."""
    found = map(parse_key, objects)
    return {one.storage_index for one in found if one is not None and hasattr(one, "storage_index")}
