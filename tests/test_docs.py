# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages for operators and developers hold together: what they link to, name and show as an example is there.

The commands of docs/operation.rst and docs/moving.rst are run by tests/live/test_recovery.py and test_migration.py.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from allmydata import client

from tahoe_s3 import _hook, config

_hook.register()

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.rst"
PAGES = [README, *sorted((ROOT / "docs").glob("*.rst")), *sorted((ROOT / "docs" / "design").glob("*.rst"))]
_LINK = re.compile(r"`[^`<]*<([^`>]+)>`_")
#: What Tahoe-LAFS calls its own tests; C and shell have tests too.
ELSEWHERE = {"test_storage_web", "test_only_immutable", "test_deserialize_pickle"}


def anchors(page: Path) -> set[str]:
    """What may stand behind # in a link to it: its titles, as GitHub and docutils make them."""
    lines = page.read_text(encoding="utf-8").splitlines()
    titles = [line for line, below in zip(lines, lines[1:]) if line.strip() and re.fullmatch(r"([=~-])\1{3,}", below)]
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            there = page if not name else page.parent / name
            assert there.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {target}; there are {anchors(there)}"


def test_the_readme_links_to_every_page() -> None:
    linked = set(_LINK.findall(README.read_text(encoding="utf-8")))
    missing = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.rst")} - linked
    assert not missing, f"README.rst, section More, wants a line for {sorted(missing)}"


def test_the_tests_that_are_named_are_there() -> None:
    named = set(re.findall(r"\btest_[a-z_0-9]*[a-z0-9]\b", (ROOT / "docs" / "testing.rst").read_text(encoding="utf-8")))
    files = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".c", ".sh")]
    known = {path.stem for path in files}
    for path in files:
        known |= set(re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8")))
    missing = {name for name in named - known - ELSEWHERE if not any(each.startswith(name) for each in known)}
    assert not missing


def test_the_example_of_the_readme_is_a_right_configuration(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"\.\. code-block:: ini\n\n((?:    .*\n|\n)+)", text)
    assert found
    (tmp_path / "private").mkdir()
    secret = tmp_path / "private" / "s3secret"
    secret.write_text("a-secret\n")
    secret.chmod(0o600)
    node = client.config_from_string(str(tmp_path), "client.port", textwrap.dedent(found[1]))
    assert config.wants_s3(node)
    settings = config.read_s3_config(node)
    assert (settings.bucket, settings.url, settings.warnings) == ("my-shares", "https://s3.amazonaws.com", ())


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", makefile, re.MULTILINE)
    names = {name for line in targets for name in line.split()}
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for command in re.findall(r"(?:``|^    )make ([a-z][a-z-]+(?: [a-z][a-z-]+)*)", pages, re.MULTILINE):
        assert set(command.split()) <= names, f"make {command}"
