# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the tests of this folder work, and from which seed: `make pytest` gives them well under two minutes,
`make oracle EXAMPLES=n SEED=s` as many examples as one asks for. Each test prints its seed, which is all that it
takes to do the same again."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

#: Examples of the largest test in `make pytest`; the others have their share.
USUAL = 100
STEPS = 40
#: A file system without a disk: there are thousands of small folders.
IN_MEMORY = "/dev/shm"


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one example."""
    return tempfile.TemporaryDirectory(dir=IN_MEMORY if Path(IN_MEMORY).is_dir() else None)


def scaled(examples: int) -> int:
    """As many as EXAMPLES makes of what a test does as a rule."""
    return max(1, examples * int(os.environ.get("ORACLE_EXAMPLES") or USUAL) // USUAL)


def is_long() -> bool:
    return bool(os.environ.get("ORACLE_EXAMPLES"))


def new_seed(what: str) -> int:
    """SEED's, or any; printed, which pytest shows of a test that failed."""
    found = int(os.environ.get("ORACLE_SEED") or random.SystemRandom().randrange(2**32))
    print(f"{what}: seed {found} (again: make oracle SEED={found}"
          f"{' EXAMPLES=' + os.environ['ORACLE_EXAMPLES'] if is_long() else ''})")  # fmt: skip
    return found


def run_machine(machine: Any, *, examples: int, steps: int = STEPS, shrink: bool = True) -> None:
    """Run a hypothesis state machine; what it finds is shrunk and raised."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    profile = settings(
        max_examples=examples, stateful_step_count=steps, database=None, phases=phases,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    seeded = seed(new_seed(machine.__name__))(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(seeded, settings=profile)
