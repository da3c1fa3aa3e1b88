# SPDX-License-Identifier: GPL-2.0-or-later
"""Every named point once: a small part of what `make crashes` does."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from tahoe_s3.store.points import POINTS

from ..native.processes import ELSEWHERE
from .living import environment
from .matrix import PROTOCOLS, TROUBLES, plan

#: It takes some 40 seconds on two free cores.
LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 10)
def test_the_node_dies_at_every_point_and_nothing_is_lost() -> None:
    runs = ["--runs", str(len(POINTS)), "--seed", str(int(time.time()))]
    command = [sys.executable, "-W", "ignore", "-m", "tests.crash.matrix", *runs]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ELSEWHERE,
                          check=False, timeout=LIMIT_S, env=environment())  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    assert done.stdout.splitlines()[-1] == f"{len(POINTS)} passed, 0 failed"


def test_a_thousand_runs_have_every_point_over_both_protocols_in_every_trouble() -> None:
    runs = [run for story in plan(1000, random.Random(1)) for run in story]
    assert len(runs) == 1000
    had = {(run.point, run.protocol, run.trouble) for run in runs}
    assert had == {(name, protocol, trouble) for name in POINTS for protocol in PROTOCOLS for trouble in TROUBLES}
