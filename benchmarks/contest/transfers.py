# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of GETs and PUTs: small ones, one at a time, streams; plain and over TLS.

What a PUT says of its body decides whom it may be compared with: lines of a row of PUTs have "signed" (its SHA-256
was computed), "unsigned" (UNSIGNED-PAYLOAD) or "none" (no signature at all) behind the name. Lines of a row of GETs
have "no S3" there where requests are not signed.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from contest.entrants import BARE, FRESH, HASH_ALONE, HASHED, HEADED, HEADED_HOP, HOP, PERFORM, bare_ways, others, ours
from contest.load import Contender, Load
from contest.server import NullServer
from contest.timing import Entrant, Row, run_row
from tahoe_s3.store.objects import PARTS_AT_ONCE

SMALL_BYTES = 4096
SMALL_PARALLEL = 64
WINDOW_BYTES = 8 * 1024 * 1024
WINDOW_PARALLEL = {"GET": 2, "PUT": PARTS_AT_ONCE}
"""As the storage server has them: what a reader is at and what is fetched ahead of it; the parts of one share."""

LATENCY_ROWS = ("get-latency", "put-latency")
PLAIN_ROWS = (*LATENCY_ROWS, "get-small", "put-small", "get-stream", "put-stream")
TLS_ROWS = ("tls-get-stream", "tls-put-stream", "tls-put-unsigned")


def _entrants(contenders: Sequence[Contender], load: Load) -> list[Entrant]:
    def turn(contender: Contender) -> Callable[[int], Any]:
        return lambda count: contender.run(load, count)

    return [
        Entrant(one.name, turn(one), getattr(one, "ours", False), signs=one.payload != "none",
                heads=getattr(one, "ours", False) and not getattr(one, "on_newer", False),
                note=one.payload if load.method == "PUT" else "no S3" if one.payload == "none" else "")
        for one in contenders
    ]


def _small_row(key: str, method: str, contenders: Sequence[Contender], server: NullServer) -> Row:
    load = Load(method, f"small-{SMALL_BYTES}", SMALL_BYTES, SMALL_PARALLEL)
    return Row(key, f"4 KiB {method}, {SMALL_PARALLEL} in flight", _entrants(contenders, load), "requests/s",
               least=2 * SMALL_PARALLEL, server_cpu_s=server.cpu_s)


def _latency_row(key: str, method: str, contenders: Sequence[Contender], server: NullServer) -> Row:
    load = Load(method, f"small-{SMALL_BYTES}", SMALL_BYTES, 1)
    return Row(key, f"4 KiB {method}, one at a time", _entrants(contenders, load), "us each", least=20, latency=True,
               server_cpu_s=server.cpu_s)


def _stream_row(
    key: str, method: str, contenders: Sequence[Contender], server: NullServer, stream_bytes: int,
) -> Row:
    windows, parallel = max(1, stream_bytes // WINDOW_BYTES), WINDOW_PARALLEL[method]
    large = f"large-{(windows + parallel) * WINDOW_BYTES}"
    load = Load(method, large, WINDOW_BYTES, parallel, ranged=method == "GET")
    where = "TLS" if server.site.https else "plain"
    kind = " without a hash of the payload" if key.endswith("unsigned") else ""
    title = f"{stream_bytes / 1e9:.2f} GB, {method} over {where}{kind}, 8 MiB windows, {parallel} in flight"
    return Row(key, title, _entrants(contenders, load), "MB/s", scale=WINDOW_BYTES / 1e6, fixed=windows,
               least=2 * parallel, server_cpu_s=server.cpu_s)


def _close(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        contender.close()


def _latency_rows(folder: Path, server: NullServer, seconds: float, wanted: set[str]) -> list[Row]:
    """With the server on a core of its own. Where a client that waits for an answer shares the server's core, neither
    waits for another core to wake up, which is most of such a request, and which of them the kernel puts there is a
    matter of chance: pycurl had 18 us so, and 64 us otherwise, for a whole run. A service is on no client's core."""
    rows = []
    with server.on_a_core_of_its_own():
        bare = bare_ways(folder, server.site)
        started = [*ours(server.site), *others(server.site)]
        for method in ("GET", "PUT"):
            key = f"{method.lower()}-latency"
            if key in wanted:
                entrants = [*started, bare[BARE], bare[HOP], bare[HEADED_HOP]]
                rows.append(run_row(_latency_row(key, method, entrants, server), seconds))
    _close(started)
    return rows


def plain_rows(
    folder: Path, server: NullServer, *, seconds: float, stream_bytes: int, wanted: set[str],
) -> list[Row]:
    """PLAIN_ROWS, of which those that are wanted."""
    rows: list[Row] = []
    if wanted & set(LATENCY_ROWS):
        rows += _latency_rows(folder, server, seconds, wanted)
    if not wanted & (set(PLAIN_ROWS) - set(LATENCY_ROWS)):
        return rows
    bare = bare_ways(folder, server.site)
    mine, rest = ours(server.site), others(server.site)
    unsigned = [one for one in others(server.site, signed=False) if one.name.startswith("obstore")]
    for method in ("GET", "PUT"):
        name = method.lower()
        if f"{name}-small" in wanted:
            entrants = [*mine, bare[BARE], bare[PERFORM], bare[HEADED], *rest]
            rows.append(run_row(_small_row(f"{name}-small", method, entrants, server), seconds))
        if f"{name}-stream" in wanted:
            entrants = [*mine, *_yardsticks(bare, method), *rest, *(unsigned if method == "PUT" else [])]
            rows.append(run_row(_stream_row(f"{name}-stream", method, entrants, server, stream_bytes), seconds))
    _close([*mine, *rest, *unsigned])
    return rows


def _yardsticks(bare: dict[str, Any], method: str) -> list[Contender]:
    return [bare[BARE], bare[FRESH]] if method == "GET" else [bare[BARE], bare[HASHED], bare[HASH_ALONE]]


def tls_rows(
    folder: Path, server: NullServer, *, seconds: float, stream_bytes: int, wanted: set[str],
) -> list[Row]:
    """TLS_ROWS, of which those that are wanted. Those who hash the payload and those who do not have a row each."""
    rows: list[Row] = []
    bare = bare_ways(folder, server.site)
    for key in TLS_ROWS:
        if key not in wanted:
            continue
        method = "GET" if "get" in key else "PUT"
        signed = not key.endswith("unsigned")
        mine, rest = ours(server.site, signed=signed), others(server.site, signed=signed)
        yardsticks = _yardsticks(bare, method) if signed else [bare[BARE]]
        fitting = [one for one in rest if method == "GET" or (one.payload == "signed") == signed]
        row = _stream_row(key, method, [*mine, *yardsticks, *fitting], server, stream_bytes)
        rows.append(run_row(row, seconds))
        _close([*mine, *rest])
    return rows
