# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator pays the service, as tahoe.cfg says, and what something costs at that. No price is built in.

Owner: config.py reads it once at the node's start; the status page multiplies. Errors: errors.BadValue. Limits: a price
is a plain number of one currency; what the service gives away, rounds up or charges otherwise is not known here.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable

from tahoe_s3 import errors

GB = 2**30
"""What S3 bills by (Amazon S3 FAQs, "How will I be charged": 100 GB are 107,374,182,400 bytes)."""
REQUESTS = 1000

_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,12})?")
_CURRENCY = re.compile(r"[^\W\d_]{1,8}|[$\u20ac\u00a3\u00a5]")
_FIELDS = {
    "s3.price.put_requests": "put_requests",
    "s3.price.get_requests": "get_requests",
    "s3.price.storage": "storage",
    "s3.price.transfer_out": "transfer_out",
}
_CURRENCY_KEY = "s3.price.currency"
KEYS = (_CURRENCY_KEY, *_FIELDS)


@dataclass(frozen=True)
class Prices:
    """None: not given, so nothing is said of it.

    put_requests: of 1,000 PUT, COPY, POST and LIST requests; get_requests: of 1,000 others; deletions are free.
    storage: of a GB for a month. transfer_out: of a GB sent by the service. currency: a word to write behind, or "".
    """

    put_requests: float | None = None
    get_requests: float | None = None
    storage: float | None = None
    transfer_out: float | None = None
    currency: str = ""

    def of_puts(self, count: int) -> float | None:
        return None if self.put_requests is None else self.put_requests * count / REQUESTS

    def of_gets(self, count: int) -> float | None:
        return None if self.get_requests is None else self.get_requests * count / REQUESTS

    def of_transfer(self, size_bytes: int) -> float | None:
        return None if self.transfer_out is None else self.transfer_out * size_bytes / GB

    def of_month(self, size_bytes: int) -> float | None:
        """What keeping so much for a month costs."""
        return None if self.storage is None else self.storage * size_bytes / GB


def read_prices(get: Callable[[str], str | None]) -> Prices:
    """The prices among the keys of [storage]; `get` gives a key's value, or None."""
    found: dict[str, float] = {}
    for key, field in _FIELDS.items():
        value = get(key)
        if not value:
            continue
        if not _NUMBER.fullmatch(value):
            raise errors.BadValue(
                key=key,
                problem=f"is '{value}'",
                instead="write only a number, such as 0.0054 (the word for the currency goes to s3.price.currency)",
            )
        found[field] = float(value)
    currency = get(_CURRENCY_KEY) or ""
    if currency and not _CURRENCY.fullmatch(currency):
        raise errors.BadValue(
            key=_CURRENCY_KEY, problem=f"is '{currency}'", instead="write one word of letters, such as EUR"
        )
    return Prices(**found, currency=currency)
