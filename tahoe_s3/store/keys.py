# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the objects in the bucket (docs/layout.rst), all below ``s3.prefix``, which the client layer adds.

``shares/<first two of SI>/<SI>/<shnum>`` and ``leases/<first two of SI>/<SI>``, where SI is the storage index in
Tahoe's base32 (26 characters, allmydata/storage/common.py) and shnum a decimal number. A key of any other form is
foreign: left alone and counted.
"""

from __future__ import annotations

import re
from base64 import b32encode
from bisect import bisect_left
from typing import NamedTuple

OWNER_KEY = "owner.json"
SHARES = "shares/"
LEASES = "leases/"

STORAGE_INDEX_BYTES = 16
#: Share numbers have at most 18 digits, so that they fit SQLite's 64-bit integers.
MAX_SHNUM = 10**18 - 1

_SHNUM = re.compile("0|[1-9][0-9]{0,17}")


_DIGITS = "234567abcdefghijklmnopqrstuvwxyz"
_DIGIT_BITS = 5
_SPLIT_DIGITS = 4
_SI_LENGTH = 26
# Where it lies in a key; "shares/" and "leases/" are as long.
_SI_START = 10
_SI_END = _SI_START + _SI_LENGTH
# From the digits of base32 to those of int(), and from all else to what is none. The last of the 26 characters carries
# three bits, so the number they make has two more at its end, which are 0.
_BASE32 = b"abcdefghijklmnopqrstuvwxyz234567"
_AS_DIGITS = bytes(b"0123456789abcdefghijklmnopqrstuv"[_BASE32.index(c)] if c in _BASE32 else 33 for c in range(256))


class KeySplits:
    """Where a listing of the bucket may be cut (Splits of tahoe_s3/splits.py): storage indexes are hashes, so about
    as many shares lie behind any four characters as behind any other, and likewise leases."""

    _each = 1 << (_DIGIT_BITS * _SPLIT_DIGITS)

    def __len__(self) -> int:
        return 2 * self._each

    def __getitem__(self, index: int, /) -> str:
        folder, number = divmod(index, self._each)
        if not 0 <= folder < 2:
            raise IndexError(index)
        shifts = range(_DIGIT_BITS * (_SPLIT_DIGITS - 1), -1, -_DIGIT_BITS)
        text = "".join(_DIGITS[number >> shift & 31] for shift in shifts)
        return f"{(LEASES, SHARES)[folder]}{text[:2]}/{text}"


def span_before(key: str) -> float:
    """What part of all storage indexes' shares comes before this key in a listing, from 0 to 1."""
    if not key.startswith(SHARES):
        return 0.0 if key < SHARES else 1.0
    number = 0
    for character in (key[7:9] + key[12:14]).ljust(_SPLIT_DIGITS):
        number = number << _DIGIT_BITS | min(31, bisect_left(_DIGITS, character))
    return number / (1 << (_DIGIT_BITS * _SPLIT_DIGITS))


class ShareId(NamedTuple):
    """One share: its storage index (16 bytes) and share number."""

    storage_index: bytes
    shnum: int


class LeaseId(NamedTuple):
    """The overlay of one storage index (16 bytes)."""

    storage_index: bytes


def si_text(storage_index: bytes) -> str:
    """The storage index as it stands in keys, logs and Tahoe's own tools.

    The same as Tahoe's si_b2a, many times faster: a start parses every key of the bucket.
    """
    return b32encode(storage_index).decode("ascii").rstrip("=").lower()


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


def fits_key(storage_index: bytes, shnum: int) -> bool:
    """Whether such a share can be stored at all: under any other key the next start would not find it again.

    Foolscap lets clients send storage indexes of fewer than 16 bytes.
    """
    return len(storage_index) == STORAGE_INDEX_BYTES and 0 <= shnum <= MAX_SHNUM


def _storage_index(folder: str, text: str) -> bytes | None:
    """The 16 bytes that `text` says, where it lies in the right folder and is what si_text() writes."""
    if len(text) != _SI_LENGTH or not text.startswith(folder) or not text.isascii():
        return None
    try:
        # As a number in Python's digits: many times faster than b32decode, and there is a million of them at a start.
        number = int(text.encode("ascii").translate(_AS_DIGITS), 32)
    except ValueError:
        return None
    return None if number & 3 else (number >> 2).to_bytes(STORAGE_INDEX_BYTES, "big")


def parse_key(key: str) -> ShareId | LeaseId | None:
    """What a listed key is, or None for a foreign one (and for ``owner.json``)."""
    if key.startswith(SHARES):
        if key[9:10] != "/" or key[_SI_END : _SI_END + 1] != "/" or _SHNUM.fullmatch(key, _SI_END + 1) is None:
            return None
        storage_index = _storage_index(key[7:9], key[_SI_START:_SI_END])
        return None if storage_index is None else ShareId(storage_index, int(key[_SI_END + 1 :]))
    if key.startswith(LEASES) and key[9:10] == "/":
        storage_index = _storage_index(key[7:9], key[_SI_START:])
        return None if storage_index is None else LeaseId(storage_index)
    return None
