# SPDX-License-Identifier: GPL-2.0-or-later
"""Peak memory of many transfers at once, each contender in a process of its own (memory_child.py), over TLS."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contest.apart import environment
from contest.authority import Certificates
from contest.goals import Outcome
from contest.memory_child import BUDGET_BYTES, MIB, READERS, TRANSFER_BYTES, TRANSFERS
from contest.server import NullServer
from tahoe_s3.store.objects import PARTS_AT_ONCE

ALLOWED_MIB = 16
"""Beyond the budget."""
TIMEOUT_S = 120
WHATS = {
    "get": f"{TRANSFERS} GETs of {TRANSFER_BYTES // 10**6} MB",
    "put": f"{TRANSFERS} PUTs of files of {TRANSFER_BYTES // 10**6} MB",
    "readers": f"{READERS} open readers",
}
CASES = (("ours", "get"), ("boto3", "get"), ("obstore", "get"), ("ours", "put"), ("boto3", "put"), ("obstore", "put"),
         ("ours", "readers"))


def child(module: str, *arguments: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """Runs a module of this package as a program of its own and takes the JSON of its last line. RuntimeError."""
    done = subprocess.run(
        [*before, sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S,
        env=environment(), check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RuntimeError(why)
    told: dict[str, Any] = json.loads(lines[-1])
    return told


def _one(who: str, what: str, server: NullServer) -> float:
    """Prints a line; gives MiB above the baseline."""
    with tempfile.TemporaryDirectory(prefix="tahoe-s3-memory-") as folder:
        told = child("contest.memory_child", who, what, server.url, server.site.ca_file or "", folder,
                     str(PARTS_AT_ONCE))
    above: float = (told["peak"] - told["baseline"]) / MIB
    budget = f"{BUDGET_BYTES / MIB:.0f}" if who == "ours" else "-"
    print(f"  {WHATS[what]:<30}{who:<10}{above:>14.1f}{budget:>10}{told['baseline'] / MIB:>10.1f}"
          f"{told['moved'] / 1e6 / told['seconds']:>9.0f}", flush=True)
    return above


def memory_rows(folder: Path, certificates: Certificates) -> list[Outcome]:
    """The rows and what they say of the goal: the budget and ALLOWED_MIB."""
    print("\nPeak memory over TLS   [MiB of the client's process; one run each]")
    print(f"  {'':<30}{'':<10}{'above baseline':>14}{'budget':>10}{'baseline':>10}{'MB/s':>9}")
    goal = BUDGET_BYTES // MIB + ALLOWED_MIB
    outcomes = []
    with NullServer(folder, certificates=certificates, object_bytes=TRANSFER_BYTES) as server:
        for who, what in CASES:
            if who != "ours" and importlib.util.find_spec(who) is None:
                continue
            above = None
            try:
                above = _one(who, what, server)
            except (RuntimeError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
                print(f"  {WHATS[what]:<30}{who:<10}DID NOT WORK: {error}", flush=True)
            if who == "ours":
                measured = "not measured" if above is None else f"{above:.1f} MiB"
                outcomes.append(Outcome(f"memory: {WHATS[what]}, above the baseline", measured, f"<= {goal} MiB",
                                        None if above is None else above <= goal))
    return outcomes
