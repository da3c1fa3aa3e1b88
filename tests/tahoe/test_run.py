# SPDX-License-Identifier: GPL-2.0-or-later
"""The runners of Tahoe's suites and of everything tell a failure from a success, and notice what never ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..run_all import Step, count
from .run import groups_of, read_outcome

PASSED = (
    "allmydata.test.test_x\n  A\n    test_a ... [OK]\n\n---\nRan 3 tests in 1.2s\n\nPASSED (skips=1, successes=2)\n"
)
LINE = "=" * 79
RACE = f"""\
{LINE}
[ERROR]
Traceback (most recent call last):
  File "fetcher.py", line 73, in add_shares
builtins.AttributeError: 'SegmentFetcher' object has no attribute '_shares'

allmydata.test.test_system.HTTPSystemTest.test_upload
{LINE}
[FAIL]
Traceback (most recent call last):
twisted.trial.unittest.FailTest: not equal

allmydata.test.test_system.HTTPSystemTest.test_{{name}}
-------------------------------------------------------------------------------
Ran 2 tests in 9.9s

FAILED (failures=1, errors=1)
"""


def outcome_of(text: str, folder: Path, *, ended_well: bool = False):  # type: ignore[no-untyped-def]
    log = folder / "log.txt"
    log.write_text(text)
    return read_outcome("x", log, seconds=1.0, ended_well=ended_well)


def test_a_run_that_passed(tmp_path: Path) -> None:
    found = outcome_of(PASSED, tmp_path, ended_well=True)
    assert (found.ran, found.skipped, list(found.failed), found.ended_well) == (3, 1, [], True)


def test_a_process_that_died_did_not_pass(tmp_path: Path) -> None:
    assert not outcome_of("Killed\n", tmp_path, ended_well=True).ended_well
    assert not outcome_of(PASSED, tmp_path, ended_well=False).ended_well


def test_only_the_clients_races_get_a_second_chance(tmp_path: Path) -> None:
    both = outcome_of(RACE.format(name="download"), tmp_path)
    assert len(both.failed) == 2
    assert [name.rpartition(".")[2] for name in both.client_races] == ["test_upload"]
    # The same test failing in both ways counts as one, with the trace of the race.
    same = outcome_of(RACE.format(name="upload"), tmp_path)
    assert list(same.failed) == list(same.client_races)


def test_slow_classes_have_a_process_each() -> None:
    counts = {f"allmydata.test.test_system.{name}": 1 for name in ("SystemTest", "HTTPSystemTest")}
    counts.update({f"allmydata.test.test_istorageserver.{name}": 5 for name in ("A", "B")})
    assert sorted(len(group) for group in groups_of(counts)) == [1, 1, 2]


@pytest.mark.parametrize(
    ("sums", "lines", "status", "expected"),
    [
        ("", ["All checks passed!"], 0, (1, 0, 0)),
        ("", ["Found 1 error."], 1, (0, 1, 0)),
        ("line", ["core: 5 passed, 0 failed", "12 passed, 0 failed"], 0, (12, 0, 0)),
        ("line", ["12 passed, 2 failed", "make: *** [check] Error 1"], 2, (12, 2, 0)),
        ("line", ["make: *** no rule"], 2, (0, 1, 0)),
        ("pytest", ["300 passed, 2 skipped, 1 warning in 65.31s (0:01:05)"], 0, (300, 0, 2)),
        ("pytest", ["== 2 failed, 3 passed, 1 error in 1.00s =="], 1, (3, 3, 0)),
        ("pytest", ["INTERNALERROR> boom"], 3, (0, 1, 0)),
        ("pytest", ["5 passed in 1.00s"], 1, (5, 1, 0)),
    ],
)
def test_sums(sums: str, lines: list[str], status: int, expected: tuple[int, int, int]) -> None:
    assert count(Step("x", ["x"], sums), lines, status=status) == expected
