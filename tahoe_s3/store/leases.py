# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases as the bucket holds them: in the shares' containers, and in one overlay object a storage index.

The overlay holds the leases that were added or renewed since the share objects were written, for every share of its
storage index on this server. A share's leases are the union of both by renew-secret hash, the later expiration
winning. Secrets are only ever held hashed (BLAKE2b-256, as version 2 of Tahoe's containers does:
allmydata/storage/lease_schema.py); those of version 1 containers are hashed as they are read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from allmydata.storage.lease import HashedLeaseInfo, LeaseInfo

OVERLAY_VERSION = 1
#: Leases of one storage index; a client adds one an account, so these are far beyond any use.
MAX_LEASES = 10_000
NO_NODEID = bytes(20)

_PACKED = struct.Struct(">L32s32sQ20s")


class OverlayError(ValueError):
    """An overlay object that cannot be read: damaged, or written by a later version. Its text names no secret."""


def hash_secret(secret: bytes) -> bytes:
    """The 32-byte hash under which Tahoe's version 2 containers keep a lease secret."""
    return hashlib.blake2b(secret, digest_size=32).digest()


@dataclass(frozen=True)
class Lease:
    """One lease with hashed secrets; ``expiration_s`` in whole seconds since the epoch, as containers store it."""

    owner_num: int
    renew_hash: bytes = field(repr=False)
    cancel_hash: bytes = field(repr=False)
    expiration_s: int
    nodeid: bytes = NO_NODEID

    @classmethod
    def from_secrets(
        cls, renew_secret: bytes, cancel_secret: bytes, *, owner_num: int, expiration_s: float, nodeid: bytes
    ) -> Lease:
        return cls(owner_num, hash_secret(renew_secret), hash_secret(cancel_secret), int(expiration_s), nodeid)

    @classmethod
    def from_tahoe(cls, info: Any) -> Lease:
        """From what a Tahoe container yields: a LeaseInfo (version 1, clear secrets) or a HashedLeaseInfo."""
        expiration_s = int(info.get_expiration_time())
        nodeid = info.nodeid or NO_NODEID
        if isinstance(info, HashedLeaseInfo):
            inner = info._lease_info
            return cls(inner.owner_num, inner.renew_secret, inner.cancel_secret, expiration_s, nodeid)
        return cls.from_secrets(
            info.renew_secret, info.cancel_secret, owner_num=info.owner_num, expiration_s=expiration_s, nodeid=nodeid
        )

    def until(self, expiration_s: int) -> Lease:
        """The same lease, renewed."""
        return replace(self, expiration_s=expiration_s)

    def to_tahoe(self) -> HashedLeaseInfo:
        """As Tahoe's own code shows leases (get_leases, get_slot_leases)."""
        info = LeaseInfo(self.owner_num, self.renew_hash, self.cancel_hash, self.expiration_s, self.nodeid)
        return HashedLeaseInfo(info, hash_secret)


def merge(*groups: Iterable[Lease]) -> list[Lease]:
    """The union by renew-secret hash, in order of first appearance; the later expiration wins."""
    found: dict[bytes, Lease] = {}
    for group in groups:
        for lease in group:
            known = found.get(lease.renew_hash)
            if known is None:
                found[lease.renew_hash] = lease
            elif lease.expiration_s > known.expiration_s:
                found[lease.renew_hash] = replace(known, expiration_s=lease.expiration_s)
    return list(found.values())


def pack(leases: Iterable[Lease]) -> bytes:
    """For the index: 96 bytes a lease, no secret in clear."""
    return b"".join(
        _PACKED.pack(lease.owner_num, lease.renew_hash, lease.cancel_hash, lease.expiration_s, lease.nodeid)
        for lease in leases
    )


def unpack(data: bytes) -> list[Lease]:
    return [Lease(*fields) for fields in _PACKED.iter_unpack(data)]


def overlay_to_json(leases: Iterable[Lease]) -> bytes:
    """The overlay object's bytes: sorted, so that equal leases make equal objects."""
    document = {
        "version": OVERLAY_VERSION,
        "leases": [
            {
                "owner": lease.owner_num,
                "nodeid": lease.nodeid.hex(),
                "renew": lease.renew_hash.hex(),
                "cancel": lease.cancel_hash.hex(),
                "expires": lease.expiration_s,
            }
            for lease in sorted(leases, key=lambda lease: lease.renew_hash)
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def _hex(entry: dict[str, Any], name: str, size: int) -> bytes:
    value = bytes.fromhex(entry[name])
    if len(value) != size:
        raise ValueError(name)
    return value


def _count(entry: dict[str, Any], name: str, bits: int) -> int:
    value = entry[name]
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(name)
    return value


def overlay_from_json(data: bytes) -> list[Lease]:
    """The leases of an overlay object; OverlayError where it is damaged or of a later version."""
    try:
        document = json.loads(data)
        version = document["version"]
        if version != OVERLAY_VERSION:
            raise OverlayError(f"a lease object of version {version!r}; this tahoe-s3 reads version {OVERLAY_VERSION}")
        entries = document["leases"]
        if len(entries) > MAX_LEASES:
            raise OverlayError(f"a lease object with more than {MAX_LEASES} leases")
        return [
            Lease(
                _count(entry, "owner", 32),
                _hex(entry, "renew", 32),
                _hex(entry, "cancel", 32),
                _count(entry, "expires", 63),
                _hex(entry, "nodeid", 20),
            )
            for entry in entries
        ]
    except OverlayError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OverlayError(f"a damaged lease object ({type(error).__name__})") from None
