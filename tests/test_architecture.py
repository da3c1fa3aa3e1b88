# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports and includes point down only (docs/design/rooms.rst)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tahoe_s3"
EXT = ROOT / "ext"

#: Room -> rooms it may use, besides itself.
C_ROOMS = {"core": set(), "xml": {"core"}, "net": {"core", "xml"}, "py": {"core", "xml", "net"}}
#: Room -> the outside libraries whose headers it may include.
C_LIBRARIES = {
    "core": {"openssl"},
    "xml": {"libxml"},
    "net": {"curl"},
    "py": {"Python.h", "curl", "libxml"},
}
LIBRARY_HEADERS = {"openssl", "libxml", "curl", "Python.h"}

#: The floors of the Python package, top first; a module imports from its own floor or lower ones only.
FLOORS = [
    {"_hook"},
    {"plugin"},
    {"server", "foolscap", "http", "http_stream", "wire", "status", "report", "pages", "bucket_section", "openmetrics"},
    {"store"},
    {"client", "download", "transfer", "s3errors", "answers", "documents", "clientconfig", "settle", "listing",
     "metrics", "splits", "deletion"},
    {"_native"},
]
#: Used from any floor; they use none.
ASIDE = {"config", "errors", "prices", "versions", "__init__"}
#: Only these may import what of allmydata is not a share file's format.
MOVING_PARTS_ALLOWED = {
    "plugin", "server", "foolscap", "http", "http_stream", "wire", "status", "report", "pages", "bucket_section",
    "config", "errors",
}
STORE_MAY_IMPORT = re.compile(r"allmydata\.(storage\.(?!server|http|crawler|expirer)\w+|interfaces|util\.\w+)")


def c_files() -> list[Path]:
    return sorted([*EXT.glob("*/*.c"), *EXT.glob("*/*.h")])


@pytest.mark.parametrize("path", c_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_includes_point_down(path: Path) -> None:
    room = path.parent.name
    for line in path.read_text().splitlines():
        own = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if own and own[1] != "Python.h":
            target, slash, _ = own[1].partition("/")
            if not slash:
                assert (path.parent / own[1]).exists(), f"{path.name}: {own[1]} is not of its room"
                continue
            assert target == room or target in C_ROOMS[room], f"{path.name} in {room} includes {own[1]}"
        outside = re.match(r'\s*#\s*include\s+[<"]([\w.]+)', line)
        if outside and outside[1] in LIBRARY_HEADERS:
            assert outside[1] in C_LIBRARIES[room], f"{path.name} in {room} includes {outside[1]}"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """tahoe_s3.store.index -> store; tahoe_s3.client -> client."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a module imports at run time: `from a import b` gives a and a.b."""
    for node in _run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module is not None
            yield node.module
            if node.module == "tahoe_s3":
                yield from (f"tahoe_s3.{alias.name}" for alias in node.names if not alias.name.startswith("__"))


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _run_time_nodes(child)


def floor_of(room: str) -> int | None:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    own_floor = floor_of(room)
    assert own_floor is not None or room in ASIDE or room == "cli", f"{relative} has no floor: give it one here"
    for name in imports(path):
        if not name.startswith("tahoe_s3"):
            continue
        target = room_of(name)
        if target in ASIDE or target == room:
            continue
        target_floor = floor_of(target)
        assert target_floor is not None, f"{relative} imports {name}, which has no floor"
        assert own_floor is not None, f"{relative} stands aside and imports {name}"
        assert target_floor >= own_floor, f"{relative} imports {name}, which is above it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_wire_floor_imports_tahoes_moving_parts(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    for name in imports(path):
        if name.split(".")[0] not in ("allmydata", "foolscap", "klein") or room in MOVING_PARTS_ALLOWED:
            continue
        assert room == "store", f"{relative} imports {name}"
        assert STORE_MAY_IMPORT.fullmatch(name), f"{relative} imports {name}"


def test_client_knows_nothing_of_tahoe() -> None:
    for room in FLOORS[4]:
        path = PACKAGE / f"{room}.py"
        if path.exists():
            assert not [name for name in imports(path) if name.startswith("allmydata")], path.name
