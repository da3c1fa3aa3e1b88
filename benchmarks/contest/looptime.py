# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop's own iteration time, cancel and close, under what must not hold them up (loop_child.py)."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from contest.authority import Certificates
from contest.goals import Outcome, at_most
from contest.loop_child import BURST, LANES, NAMELESS
from contest.memory import child

SECONDS = 10
P999_MS, MAX_MS, CANCEL_MS, CLOSE_MS = 2.0, 20.0, 10.0, 1000.0
NAMES = {"busy": f"{LANES} transfers, {BURST} new TLS connections", "nameless": f"{NAMELESS} waiting for a name"}
TITLE = "The loop under load"


def _unshare() -> tuple[str, ...] | None:
    """How to get namespaces of one's own here, or None."""
    program = shutil.which("unshare")
    for more in ([], ["--map-root-user"]):
        command = [program or "unshare", *more, "--mount", "--net"]
        if program and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return tuple(command)
    return None


def _loop_outcomes(told: dict[str, Any], name: str) -> list[Outcome]:
    loop = told["loop"][name]
    where = f"loop, {NAMES[name]}"
    p999 = [loop["loop_p999_us"] / 1e3] if "loop_p999_us" in loop else []
    return [at_most(f"{where}: p99.9 of a turn", p999, P999_MS, "ms"),
            at_most(f"{where}: longest turn", [loop["loop_max_us"] / 1e3], MAX_MS, "ms"),
            at_most(f"{where}: p99.9 of a turn, CPU", [loop["loop_cpu_p999_us"] / 1e3], P999_MS, "ms"),
            at_most(f"{where}: longest turn, CPU", [loop["loop_cpu_max_us"] / 1e3], MAX_MS, "ms"),
            at_most(f"{where}: cancel to final event", told["cancel_ms"][name], CANCEL_MS, "ms"),
            at_most(f"{where}: close without a network", told["close_ms"][name], CLOSE_MS, "ms")]


def loop_time(folder: Path, certificates: Certificates) -> list[Outcome]:
    """Prints the row; gives what it says of the goals."""
    print(f"\n{TITLE}   [{SECONDS} s; a name server that does not answer]")
    before = _unshare()
    names = list(NAMES)
    try:
        if before is None:
            raise RuntimeError("it needs network and mount namespaces of its own (unshare, as root)")
        told = child("contest.loop_child", str(folder), *(str(path) for path in certificates), str(SECONDS),
                     before=before)
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"  LEFT OUT: {error}", flush=True)
        return [Outcome(f"loop, {NAMES[name]}", "not measured", "", None) for name in names]
    print(f"  {told['ended']} transfers ended, {told['handshakes']} TLS handshakes; "
          f"{os.cpu_count()} cores for both loops, their workers, Python and the server")
    if told["failures"]:
        print(f"  failures, which there should be none of but for names: {told['failures']}")
    outcomes = []
    for name in names:
        turns = told["loop"][name].get("loop_turns")
        print(f"  {NAMES[name]}: " + (f"{turns} turns" if turns is not None else "turns are not counted"))
        for outcome in _loop_outcomes(told, name):
            print(f"    {outcome.what.split(': ', 1)[1]:<26}{outcome.measured}")
            outcomes.append(outcome)
    return outcomes
