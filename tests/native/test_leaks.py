# SPDX-License-Identifier: GPL-2.0-or-later
"""No entry point leaves anything behind, whether it succeeds or fails: references (in a debug build of Python),
blocks of Python's memory, bytes of malloc's, descriptors."""
from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from .entry_points import CASES, Scene, found
from .leaks import left_behind
from .processes import run_python


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_every_entry_point_is_tried() -> None:
    assert set(CASES) == found()


@pytest.mark.parametrize("name", sorted(set(CASES) - {"_stop_engines"}))
def test_nothing_is_left_behind(scene: Scene, name: str) -> None:
    for number, call in enumerate(CASES[name]):
        wrong = left_behind(call, scene)
        assert not wrong, f"call {number} of {name}: {wrong}"


def in_a_process(what: str) -> str:
    done = run_python("-m", "tests.native.leaks", what, limit_s=110)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_stopping_all_engines_leaves_nothing_behind() -> None:
    in_a_process("stop")


@pytest.mark.skipif(hasattr(sys, "gettotalrefcount"), reason="a debug build asserts that allocations succeed")
def test_every_allocation_may_fail() -> None:
    pytest.importorskip("_testcapi", reason="this Python comes without CPython's own test modules")
    assert int(in_a_process("no-memory").split()[0]) > 500
