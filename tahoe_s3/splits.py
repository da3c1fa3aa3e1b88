# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a range of keys is cut in two, so that the second part can be listed while the first still is.

A cut is a guess: that the keys ahead lie as densely as those of the page before. It need not be a key of the bucket,
and a bad one costs a request, never a key. Pure functions; nothing here knows a bucket. Keys are compared as S3
services compare them, by the bytes of their UTF-8 (Amazon's ListObjectsV2 page).
"""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

DIGITS: Final = 6
"""How many characters behind the common beginning of a page's keys tell how far the page reaches."""


class Splits(Protocol):
    """Ascending keys with about as many objects between any two neighbours: a list, or made when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> str: ...


class Span(NamedTuple):
    """First and last key of a page: how far one page reaches."""

    first: str
    last: str


def order(key: str) -> bytes:
    """What keys are sorted by. Bytes that are no UTF-8 stand in a str as surrogates, which sort elsewhere."""
    return key.encode("utf-8", "surrogateescape")


def choose_cut(
    splits: Splits, span: Span, cursor: str, end: str | None, *, pages: int, below: str, sample: Sequence[str],
) -> str | None:
    """Where a range that has got to `cursor` is cut, about so many pages ahead; None where it is not worth it.

    Worth it: half as much again must be left before `end` (None: the range goes on to the last key).
    span: of the page before. below: the prefix of all keys. sample: some keys, for the characters they have.
    """
    step = bisect_right(splits, span.last) - bisect_right(splits, span.first)
    here = bisect_right(splits, cursor)
    if step > 0:
        target = here + pages * step
        limit = len(splits) if end is None else bisect_right(splits, end)
        return _between(splits[target], cursor, end) if target + pages * step // 2 < limit else None
    # The page lies between two neighbours: it is for its own keys to tell.
    edge = _between(splits[here], cursor, end) if here < len(splits) else None
    return by_digits(alphabet_of(sample), span, cursor, edge or end, pages=pages, below=below) or edge


def alphabet_of(keys: Iterable[str]) -> str:
    """The characters of these keys that a cut may have, ascending: some services take none but printable ones."""
    return "".join(sorted(char for char in set("".join(keys)) if char.isprintable() and char != " "))


def by_digits(alphabet: str, span: Span, cursor: str, end: str | None, *, pages: int, below: str) -> str | None:
    """The same where nothing is known of the keys but a page: keys are read as numbers.

    Where the number grows too long for its digits, the character before them is counted up, and so on up to the
    prefix `below`, which all keys have.
    """
    if not alphabet:
        return None
    level = _common(span.first, span.last)
    tail = level + DIGITS
    step = _number(span.last[level:tail], DIGITS, alphabet) - _number(span.first[level:tail], DIGITS, alphabet)
    if step <= 0:
        return None
    for start in range(min(level, len(cursor)), len(below) - 1, -1):
        width = tail - start
        target = _number(cursor[start:tail], width, alphabet) + pages * step
        if target >= len(alphabet) ** width:
            continue
        if end is not None and end[:start] == cursor[:start]:
            left = _number(end[start:tail], width, alphabet) - target
            if left <= pages * step // 2:
                return None
        found = _between(cursor[:start] + _text(target, width, alphabet), cursor, end)
        return found if found is not None and found.startswith(below) else None
    return None


def _between(key: str, cursor: str, end: str | None) -> str | None:
    """The key, if it can be sent and lies strictly between the others."""
    try:
        sent = key.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return key if order(cursor) < sent and (end is None or sent < order(end)) else None


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)


def _number(text: str, width: int, alphabet: str) -> int:
    """Text as a number of `width` digits: a character's place in the alphabet, or that of the next lower one.

    No character counts as the lowest: hardly any key ends where others go on.
    """
    number = 0
    for at in range(width):
        place = bisect_right(alphabet, text[at]) - 1 if at < len(text) else 0
        number = number * len(alphabet) + max(0, place)
    return number


def _text(number: int, width: int, alphabet: str) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    return "".join(reversed(digits))
