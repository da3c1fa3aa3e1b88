# SPDX-License-Identifier: GPL-2.0-or-later
"""The congestion control of a run's connections: the machine's, or one for all of them (congestion.c)."""
from __future__ import annotations

import os
import socket
from pathlib import Path

from contest.server import PRELOADED

VARIABLE = "BENCH_CONGESTION"


def _may_have(name: str) -> bool:
    with socket.socket() as one:
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


def settle(folder: Path, wanted: str) -> str:
    """For all processes that are started from here on; what to say of it. `wanted`: a name, or "" for the machine's.
    `folder` is the one that server.build() filled. SystemExit where the kernel has none of that name for this user."""
    if not wanted:
        name = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii").strip()
        return f"TCP congestion control: {name}, the machine's"
    if not _may_have(wanted):
        raise SystemExit(f"the kernel has no congestion control {wanted!r} for this user")
    before = os.environ.get("LD_PRELOAD", "")
    os.environ["LD_PRELOAD"] = ":".join([str(folder / PRELOADED), *([before] if before else [])])
    os.environ[VARIABLE] = wanted
    return f"TCP congestion control: {wanted}, for all"
