# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the objects in the bucket (docs/layout.rst), all below ``s3.prefix``, which the client layer adds.

``shares/<first two of SI>/<SI>/<shnum>`` and ``leases/<first two of SI>/<SI>``, where SI is the storage index in
Tahoe's base32 (26 characters, allmydata/storage/common.py) and shnum a decimal number. A key of any other form is
foreign: left alone and counted.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Union

from allmydata.storage.common import si_a2b, si_b2a

OWNER_KEY = "owner.json"
SHARES = "shares/"
LEASES = "leases/"

#: Share numbers have at most this many digits, so that they fit SQLite's 64-bit integers.
MAX_SHNUM_DIGITS = 18

_SHARE = re.compile(r"shares/([a-z2-7]{2})/([a-z2-7]{26})/(0|[1-9][0-9]{0,17})")
_LEASE = re.compile(r"leases/([a-z2-7]{2})/([a-z2-7]{26})")


class ShareId(NamedTuple):
    """One share: its storage index (16 bytes) and share number."""

    storage_index: bytes
    shnum: int


class LeaseId(NamedTuple):
    """The overlay of one storage index (16 bytes)."""

    storage_index: bytes


def si_text(storage_index: bytes) -> str:
    """The storage index as it stands in keys, logs and Tahoe's own tools."""
    text: bytes = si_b2a(storage_index)
    return text.decode("ascii")


def slot_prefix(storage_index: bytes) -> str:
    """The common prefix of the keys of one storage index's shares, with the closing slash.

    Without the slash a prefix of share 1 would also name shares 10 to 19.
    """
    text = si_text(storage_index)
    return f"{SHARES}{text[:2]}/{text}/"


def share_key(storage_index: bytes, shnum: int) -> str:
    return f"{slot_prefix(storage_index)}{shnum}"


def lease_key(storage_index: bytes) -> str:
    text = si_text(storage_index)
    return f"{LEASES}{text[:2]}/{text}"


def fits_key(shnum: int) -> bool:
    """Whether a share of this number can be stored at all."""
    return 0 <= shnum < 10**MAX_SHNUM_DIGITS


def _storage_index(start: str, text: str) -> Union[bytes, None]:
    """The 16 bytes, or None where the text is not what si_b2a would have written for any."""
    if not text.startswith(start):
        return None
    try:
        storage_index: bytes = si_a2b(text.encode("ascii"))
    except (AssertionError, ValueError):
        return None
    return storage_index if si_text(storage_index) == text else None


def parse_key(key: str) -> Union[ShareId, LeaseId, None]:
    """What a listed key is, or None for a foreign one (and for ``owner.json``)."""
    share = _SHARE.fullmatch(key)
    if share is not None:
        storage_index = _storage_index(share[1], share[2])
        return None if storage_index is None else ShareId(storage_index, int(share[3]))
    lease = _LEASE.fullmatch(key)
    if lease is not None:
        storage_index = _storage_index(lease[1], lease[2])
        return None if storage_index is None else LeaseId(storage_index)
    return None
