# SPDX-License-Identifier: GPL-2.0-or-later
"""The named moments at which tests kill the process: the table and the code agree, and nothing but a test arms them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tahoe_s3.store import points

PACKAGE = Path(points.__file__).parent.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


def test_each_name_stands_at_one_place_and_each_place_has_a_name() -> None:
    reached: Counter[str] = Counter()
    for path, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), f"{path.name}: a name that cannot be read"
            reached[argument.value] += 1
    assert reached == Counter(points.POINTS.keys())


def test_nothing_in_the_package_arms_them() -> None:
    for path, node in nodes():
        if isinstance(node, ast.Attribute):
            assert node.attr != "on_reach", path.name
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            assert "'on_reach'" not in ast.dump(node), path.name
    assert points.on_reach is None


def test_what_a_test_puts_there_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    points.reach("open.done")
    monkeypatch.setattr(points, "on_reach", seen.append)
    points.reach("open.done")
    assert seen == ["open.done"]
