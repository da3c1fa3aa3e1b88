# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator is told of the bucket: plain data for the status page, its JSON and /statistics.

Owner: server.py and pages.py, which ask when somebody looks; nothing is kept, and no request made. Thread: the
reactor's.
Units: bytes, seconds, ISO dates in UTC, money in the configured currency. Secrets are not touched; text that others
wrote (a service's messages) is made printable and cut, and is still to be escaped by who puts it into HTML.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from typing import Any, Protocol

import allmydata

import tahoe_s3
from tahoe_s3 import _native
from tahoe_s3.metrics import BOUNDS_S, Counters, Operation, Totals
from tahoe_s3.prices import Prices
from tahoe_s3.s3errors import AccessDenied, NoSuchBucket
from tahoe_s3.store.store import Store

MAX_TEXT = 500
SHOWN_ERRORS = 10


class Writer(Protocol):
    """A share being uploaded."""

    @property
    def progress(self) -> tuple[int, int]: ...
    def allocated_size(self) -> int: ...


def printable(text: str) -> str:
    """Without line ends, control characters, direction marks and halves of characters, and not too long."""
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "\u2026"
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in cut)


def iso(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def versions() -> dict[str, str]:
    return {
        "tahoe-s3": tahoe_s3.__version__,
        "tahoe-lafs": str(allmydata.__version__),
        "libcurl": _native.LIBCURL_VERSION,
        "tls": _native.TLS_VERSION,
        "python": platform.python_version(),
    }


def knows_all(store: Store) -> bool:
    """Whether the index has all that is in the bucket: kept from the last run, or rebuilt in this one."""
    has_begun = store.mark is not None or store.problem is None
    return store.rebuild.answers_for_all and (store.index.was_kept or has_begun)


def listed_part(store: Store) -> float:
    """How much of the bucket this start has listed, from 0 to 1."""
    return store.rebuild.progress.part


def flat_statistics(store: Store) -> dict[str, int | float]:
    """Numbers by name, for Tahoe's get_stats(): letters, digits, dots and underscores only."""
    index, client, counters = store.index, store.client, store.client.counters
    found: dict[str, int | float] = {
        "tahoe_s3.shares": index.share_count,
        "tahoe_s3.used_bytes": index.used_bytes,
        "tahoe_s3.lease_bytes": index.lease_bytes,
        "tahoe_s3.foreign_keys": store.foreign_keys,
        "tahoe_s3.bucket_usable": int(store.problem is None),
    }
    if client.clock_difference_s is not None:
        found["tahoe_s3.clock_difference"] = round(client.clock_difference_s, 3)
    for name, counted in sorted(counters.by_operation.items()):
        found[f"tahoe_s3.requests.{name}"] = counted.attempts
        found[f"tahoe_s3.retries.{name}"] = counted.retries
        found[f"tahoe_s3.bytes_up.{name}"] = counted.bytes_up
        found[f"tahoe_s3.bytes_down.{name}"] = counted.bytes_down
        for code, count in sorted(counted.errors.items()):
            found[f"tahoe_s3.errors.{name}.{code}"] = count
        found.update(_flat_latency(f"tahoe_s3.latency.{name}", counted))
    for name, count in sorted(counters.errors.items()):
        found[f"tahoe_s3.errors.{name}"] = count
    for name, value in client.stats().items():
        found[f"tahoe_s3.engine.{name}"] = value
    return found


def _flat_latency(prefix: str, counted: Operation) -> dict[str, int | float]:
    found: dict[str, int | float] = {f"{prefix}.count": counted.ended, f"{prefix}.sum": counted.total_s}
    for bound_s, count in zip(BOUNDS_S, counted.cumulative()):
        found[f"{prefix}.le_{round(bound_s * 1000)}_ms"] = count
    return found


def bucket_report(
    store: Store, *, writers: Iterable[Writer], now_s: float, started_s: float, is_readonly: bool
) -> dict[str, Any]:
    """Everything at once, as in `tahoe_s3` of /storage?t=json (docs/status.rst)."""
    config, index = store.config, store.index
    prices = Prices() if config is None else config.prices
    return {
        "service": None if config is None else config.url,
        "region": store.client.region,
        "bucket": None if config is None else config.bucket,
        "prefix": None if config is None else config.prefix,
        **_state(store),
        "readonly": is_readonly,
        "owner": _owner(store),
        "counts_are_complete": knows_all(store),
        "shares": index.share_count,
        "share_bytes": index.used_bytes,
        "storage_indexes": index.slot_count,
        "lease_bytes": index.lease_bytes,
        "foreign_keys": store.foreign_keys,
        **_space(store),
        "uploads": _uploads(writers),
        "rebuild": _rebuild(store),
        "requests": _requests(store.client.counters, prices, now_s=now_s, started_s=started_s),
        "storage_cost_a_month": prices.of_month(index.used_bytes + index.lease_bytes),
        "currency": prices.currency,
        "operations": {
            name: _operation(counted) for name, counted in sorted(store.client.counters.by_operation.items())
        },
        "recent_errors": [
            {"at": iso(at_s), "text": printable(text)} for at_s, text in reversed(store.recent_errors)
        ][:SHOWN_ERRORS],
        "clock_difference": store.client.clock_difference_s,
        "versions": versions(),
    }  # fmt: skip


def _state(store: Store) -> dict[str, Any]:
    """Can the bucket be used, and if not, why; how the last requests went."""
    counters = store.client.counters
    failing = counters.last_error is not None and counters.last_error_at_s > counters.last_success_at_s
    trouble = store.health.trouble
    return {
        "usable": store.problem is None,
        "problem": None if store.problem is None else printable(store.problem),
        "trouble": None if trouble is None else printable(trouble),
        "last_request_failed": failing,
        "last_request_refused": failing and isinstance(counters.last_error, (AccessDenied, NoSuchBucket)),
        "last_error": None if counters.last_error is None else printable(str(counters.last_error)),
        "last_error_at": iso(counters.last_error_at_s) if counters.last_error is not None else None,
        "last_success_at": iso(counters.last_success_at_s) if counters.last_success_at_s else None,
        "last_answer_at": iso(counters.last_answer_at_s) if counters.last_answer_at_s else None,
    }


def _owner(store: Store) -> dict[str, str] | None:
    """The mark of this start; None while it has not been written."""
    if store.mark is None:
        return None
    return {"nodeid": store.mark.nodeid, "instance": store.mark.instance, "since": store.mark.since}


def _uploads(writers: Iterable[Writer]) -> dict[str, int]:
    count = allocated = written = arrived = 0
    for writer in writers:
        so_far = writer.progress
        count += 1
        allocated += writer.allocated_size()
        written += so_far[0]
        arrived += so_far[1]
    return {"count": count, "allocated_bytes": allocated, "written_bytes": written, "arrived_bytes": arrived}


def _space(store: Store) -> dict[str, int | None]:
    """s3.capacity, and what of it uploads under way were promised."""
    return {"capacity_bytes": store.space.capacity_bytes, "promised_bytes": store.space.promised_bytes}


def _rebuild(store: Store) -> dict[str, Any]:
    """How far the listing has come that every start makes."""
    progress = store.rebuild.progress
    return {
        "complete": progress.is_complete,
        "index_answers_for_all": progress.answers_for_all,
        "keys": progress.keys,
        "part": progress.part,
        "since": None if progress.since_s is None else iso(progress.since_s),
        "problem": None if progress.problem is None else printable(progress.problem),
    }


def _requests(counters: Counters, prices: Prices, *, now_s: float, started_s: float) -> dict[str, Any]:
    today, since_s = counters.today(now_s)
    return {
        "today": _paid_for(today, prices, since_s=since_s),
        "since_start": _paid_for(counters.totals(), prices, since_s=started_s),
    }


def _paid_for(totals: Totals, prices: Prices, *, since_s: float) -> dict[str, Any]:
    costs = {
        "put": prices.of_puts(totals.puts),
        "get": prices.of_gets(totals.gets),
        "transfer_out": prices.of_transfer(totals.bytes_down),
    }
    known = [cost for cost in costs.values() if cost is not None]
    return {
        "since": iso(since_s),
        "put": totals.puts,
        "get": totals.gets,
        "delete": totals.deletes,
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "costs": {**costs, "sum": sum(known) if known else None},
    }


def _operation(counted: Operation) -> dict[str, Any]:
    return {
        "requests": counted.attempts,
        "retries": counted.retries,
        "errors": dict(sorted(counted.errors.items())),
        "bytes_up": counted.bytes_up,
        "bytes_down": counted.bytes_down,
        "ended": counted.ended,
        "seconds": counted.total_s,
        "half_within": counted.at_most_s(0.5),
        "most_within": counted.at_most_s(0.99),
        "latency": [[bound_s, count] for bound_s, count in zip(BOUNDS_S, counted.cumulative())],
    }
