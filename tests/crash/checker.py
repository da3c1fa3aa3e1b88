# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds the bucket, what clients were told, and a node after its start against each other.

Errors: AssertionError, which says everything that is wrong.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tahoe_s3.store.containers import Container, inspect_bytes
from tahoe_s3.store.keys import OWNER_KEY, LeaseId, ShareId, lease_key, parse_key, share_key
from tahoe_s3.store.leases import hash_secret, overlay_from_json

from .record import Record, Write, least_end_s
from .service import CrashService

Ends = dict[bytes, int]


class Checker:
    """Everything that is wrong, gathered."""

    def __init__(self, service: CrashService, record: Record) -> None:
        self.service, self.record = service, record
        self.wrong: list[str] = []
        self.containers: dict[ShareId, tuple[Container, bytes]] = {}
        self.overlays: dict[bytes, Ends] = {}

    def require(self, what: bool, text: str) -> None:
        if not what:
            self.wrong.append(text)

    def end(self) -> None:
        assert not self.wrong, "\n".join(self.wrong)

    # the bucket alone

    def look_at_bucket(self) -> None:
        for key, stored in self.service.bucket.objects.items():
            name = parse_key(key)
            if isinstance(name, ShareId):
                try:
                    container = inspect_bytes(key, stored.body)
                except Exception as error:
                    self.wrong.append(f"{key} is no container: {error!r}")
                    continue
                head = container.head
                data = stored.body[head.data_offset : head.data_offset + head.data_length]
                self.containers[name] = container, data
            elif isinstance(name, LeaseId):
                leases = overlay_from_json(stored.body)
                self.overlays[name.storage_index] = {lease.renew_hash: lease.expiration_s for lease in leases}
            else:
                self.require(key == OWNER_KEY, f"{key} is in the bucket")

    def check_bucket(self) -> None:
        """Nothing acknowledged is missing, nothing half is there."""
        self.look_at_bucket()
        for share, (_container, data) in self.containers.items():
            self._check_share(share, data)
        now_s = self.service.wall_s()
        for share, immutable in self.record.immutable.items():
            if share in self.containers:
                if immutable.is_required:
                    self._check_leases(share, immutable.leases)
            elif self.record.may_expire(immutable.leases, now_s):
                immutable.is_required = False
                immutable.leases.clear()
            else:
                self.require(not immutable.is_required, f"{share_key(*share)}: an acknowledged share is lost")
        for share, mutable in self.record.mutable.items():
            if share in self.containers:
                self._check_leases(share, mutable.leases)
            else:
                self.require(None in mutable.allowed(), f"{share_key(*share)}: an acknowledged write is lost")

    def _check_share(self, share: ShareId, data: bytes) -> None:
        key = share_key(*share)
        immutable, mutable = self.record.immutable.get(share), self.record.mutable.get(share)
        if immutable is not None:
            self.require(data == immutable.data, f"{key}: its {len(data)} bytes are not what was sent")
        elif mutable is not None:
            allowed = mutable.allowed()
            # One that was deleted may be back, or have come after its deletion: nothing is lost by that.
            is_back = None in allowed and key in self.service.applied_late and data in mutable.ever
            if data not in allowed and not is_back:
                told = [None if one is None else one[:8] for one in allowed]
                self.wrong.append(f"{key} has {data[:8]!r} and {len(data)} bytes, which is none of {told}")
        else:
            self.wrong.append(f"{key}: nobody has stored it")

    def _check_leases(self, share: ShareId, leases: dict[bytes, float]) -> None:
        """Each that was acknowledged is there."""
        there = {lease.renew_hash: lease.expiration_s for lease in self.containers[share][0].leases}
        for renew_hash, end_s in self.overlays.get(share.storage_index, {}).items():
            there[renew_hash] = max(end_s, there.get(renew_hash, 0))
        for renew, given_s in leases.items():
            end_s, least_s = there.get(hash_secret(renew), 0), least_end_s(given_s)
            if end_s < least_s:
                told = "is lost" if not end_s else f"ends {least_s - end_s:.0f} s too early"
                self.wrong.append(f"{share_key(*share)}: an acknowledged lease {told} ({renew[:1]!r})")

    # the node's index

    def check_index(self, dump: dict[str, Any], *, kept: bool | None = None) -> None:
        """After a start, with nothing under way: what the index has is what the bucket has."""
        rows = {ShareId(bytes.fromhex(row[0]), row[1]): row[2:] for row in dump["shares"]}
        self._same("shares", rows, self.containers)
        objects = self.service.bucket.objects
        for share in rows.keys() & self.containers.keys():
            key, (size, etag, kind, data_length, leases) = share_key(*share), rows[share]
            container, _ = self.containers[share]
            stored = objects[key]
            told = f"{key}: {size} bytes of ETag {etag} in the index"
            self.require(size == len(stored.body), f"{told}, {len(stored.body)} in the bucket")
            self.require(etag == stored.etag.strip('"'), f"{told}, {stored.etag} in the bucket")
            self.require(kind in (None, container.head.kind), f"{key}: {kind} in the index")
            self.require(data_length in (None, container.head.data_length), f"{key}: {data_length} bytes of data")
            ends = [[lease.renew_hash.hex(), lease.expiration_s] for lease in container.leases]
            self.require(leases in (None, sorted(ends)), f"{key}: other leases in the index")
        overlays = {bytes.fromhex(row[0]): row[1:] for row in dump["overlays"]}
        self._same("lease objects", overlays, self.overlays)
        for si in overlays.keys() & self.overlays.keys():
            etag, leases = overlays[si]
            key, there = lease_key(si), sorted([renew.hex(), end] for renew, end in self.overlays[si].items())
            self.require(etag == objects[key].etag.strip('"'), f"{key}: ETag {etag}, not {objects[key].etag}")
            self.require(leases in (None, there), f"{key}: {leases} in the index, {there} in the bucket")
        self._check_sums(dump)
        self.require(kept in (None, dump["kept"]), f"the index was {'kept' if dump['kept'] else 'not kept'}")

    def _same(self, what: str, found: Iterable[Any], there: Iterable[Any]) -> None:
        more, less = set(found) - set(there), set(there) - set(found)
        self.require(not more, f"{what} of the index that are not in the bucket: {more}")
        self.require(not less, f"{what} of the bucket that are not in the index: {less}")

    def _check_sums(self, dump: dict[str, Any]) -> None:
        sizes = [container.size for container, _ in self.containers.values()]
        slots = {share.storage_index for share in self.containers}
        sums = {"count": len(sizes), "used": sum(sizes), "slots": len(slots), "problem": None, "unsure": [], "spool": 0}
        for name, value in sums.items():
            self.require(dump[name] == value, f"{name}: {dump[name]} in the node, {value} in the bucket")

    # afterwards

    def adopt(self) -> None:
        """What is there now is what there is: of several that were possible, only that one is from here on."""
        for share, mutable in self.record.mutable.items():
            found = self.containers.get(share)
            content = None if found is None else found[1]
            began = max(write.began for write in mutable.writes)
            mutable.writes = [Write(content, began, began, True)]
            if content is None:
                mutable.leases.clear()
        self.service.applied_late.clear()


def is_marked_clean(storage_dir: Path) -> bool:
    """Whether the index on the disk of a node that is not running would be kept. Looks at a copy of the file alone,
    without what SQLite may have beside it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(storage_dir / "index.sqlite", folder)
        with closing(sqlite3.connect(copy)) as db:
            return bool(db.execute("SELECT value FROM meta WHERE name='clean'").fetchone()[0] == "1")
