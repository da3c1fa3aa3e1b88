# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/errors.rst has every sentence that the product can say to its operator, with its cause and its cure.

The sentences are read out of the source: the classes of errors.py, what is logged as a warning or worse, the problems
that keep a node from answering, the warnings of config.py, and what is raised locally. A sentence is on the page when
its fixed words stand, in their order, in one literal block of a section that says "Cause:" and "Cure:". What fails
here says what to write, and where. Nothing is run but the parser, so it takes no time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.rst"
SOURCES = sorted((ROOT / "tahoe_s3").rglob("*.py"))
LEVELS = {"warn", "warning", "error", "critical", "failure"}

#: Where each class of errors.py is provoked for real: a file of tests, and the function or the Case of
#: test_refusals.py that does it.
REFUSALS = "tests/live/test_refusals.py"
PROVOKED = {
    "BadFile": (REFUSALS, 'Case("empty secret"'),
    "BadOwnerMark": ("tests/test_start.py", "def test_marks_that_are_not_ours("),
    "BadValue": (REFUSALS, 'Case("url with a path"'),
    "BrokenInstall": ("tests/test_plugin.py", "def test_an_extension_that_does_not_load_is_told("),
    "Conflict": (REFUSALS, 'Case("debug_discard"'),
    "DiskShares": ("tests/live/test_migration.py", "def test_from_disk_to_bucket_and_back("),
    "KeysWithoutBackend": (REFUSALS, 'Case("keys without backend"'),
    "MissingKey": ("tests/test_config.py", "def test_required_keys("),
    "NestedOwner": (REFUSALS, "def test_a_longer_prefix_that_belongs_to_another_node("),
    "NewerLayout": ("tests/test_start.py", "def test_marks_that_are_not_ours("),
    "NoSuchBucket": (REFUSALS, 'Case("no such bucket"'),
    "NotPrepared": ("tests/test_plugin.py", "def test_a_node_made_by_hand_says_so("),
    "NotS3": (REFUSALS, "def test_something_that_is_not_s3("),
    "ObjectLocked": (REFUSALS, 'Case("object lock"'),
    "OwnedByAnother": (REFUSALS, "def test_a_bucket_that_belongs_to_another_node("),
    "RefusedCredentials": (REFUSALS, 'Case("wrong secret"'),
    "UnknownBackend": (REFUSALS, 'Case("unknown backend"'),
    "UnknownKey": (REFUSALS, 'Case("unknown key"'),
    "Unreachable": (REFUSALS, "def test_the_first_start_needs_an_answer("),
    "UnsupportedTahoe": ("tests/test_hook.py", "def test_a_tahoe_without_the_hook_points_"),
    "UntrustedCertificate": ("tests/test_tls.py", "def test_a_first_start_without_an_authority("),
    "UnusableFolder": ("tests/store/test_local_state.py", "errors.UnusableFolder"),
    "WrongClock": (REFUSALS, 'Case("wrong clock"'),
    "WrongRegion": (REFUSALS, 'Case("wrong region"'),
}

#: Problems that nobody is ever shown, and why.
NEVER_SHOWN = {
    "the start failed": "it only keeps close() from marking the index clean; the error itself is what is shown",
}


@dataclass(frozen=True)
class Sentence:
    """Something that is said. `words`: its fixed pieces, between what is filled in."""

    where: str
    text: str
    words: tuple[str, ...]

    def is_in(self, block: str) -> bool:
        at = 0
        for piece in self.words:
            at = block.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return True


@dataclass(frozen=True)
class Section:
    """A part of the page: the anchors before its title, its literal blocks, each on one line, and all its text."""

    title: str
    anchors: tuple[str, ...]
    blocks: tuple[str, ...]
    text: str

    @property
    def is_whole(self) -> bool:
        return "\nCause:" in self.text and "\nCure:" in self.text


def one_line(text: str) -> str:
    return " ".join(text.split())


def sections(page: str) -> list[Section]:
    lines = page.splitlines()
    starts = [
        number - 1
        for number in range(1, len(lines))
        if re.fullmatch(r"([=~-])\1{3,}", lines[number]) and lines[number - 1].strip()
    ]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        anchors = []
        for line in reversed(lines[:start]):
            match = re.fullmatch(r"\.\. _(\w+):", line)
            if match:
                anchors.append(match[1])
            elif line.strip():
                break
        text = "\n".join(lines[start:end]) + "\n"
        blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
        found.append(Section(lines[start], tuple(anchors), tuple(map(one_line, blocks)), text))
    return found


SECTIONS = sections(PAGE.read_text(encoding="utf-8"))


# reading the source


def template(node: ast.expr) -> str | None:
    """The text of a string constant or an f-string, with {} where something is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def sentence(text: str, where: str) -> Sentence:
    pieces = (one_line(piece) for piece in re.split(r"\{[^{}]*\}", text))
    return Sentence(where, text, tuple(piece for piece in pieces if re.search(r"\w", piece)))


def place(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """(call, name of what is called, name of what it is called on)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node, node.func.attr, ast.unparse(node.func.value).rpartition(".")[2]
            elif isinstance(node.func, ast.Name):
                yield node, node.func.id, ""


def is_said(name: str, on: str) -> bool:
    return (name in LEVELS and on in ("log", "_log")) or (name == "append" and on == "warnings")


def said_in(path: Path, tree: ast.AST) -> Iterator[Sentence]:
    for call, name, on in calls(tree):
        is_local = any(key.arg == "kind" and template(key.value) == "local" for key in call.keywords)
        if is_said(name, on):
            text = template(call.args[0])
            assert text is not None, f"{place(path, call)}: let the sentence be a string right there"
        elif is_local and call.args:
            texts = [text for text in map(template, call.args) if text is not None]
            text = texts[0] if texts else ""
        else:
            continue
        found = sentence(text, place(path, call))
        # One that consists of what is filled in only is said elsewhere: a problem, or a warning of config.py.
        if found.words:
            yield found


def problems_in(path: Path, tree: ast.AST) -> Iterator[Sentence]:
    """What keeps a node from answering: what an attribute called `problem` is set to. And from deleting: what
    `_hold_back` is told, and functions called why_not... give back."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Attribute) and target.attr == "problem" for target in node.targets
        ):
            text = template(node.value)
            if text is not None and text not in NEVER_SHOWN:
                yield sentence(text, place(path, node))
    for call, name, _ in calls(tree):
        text = template(call.args[0]) if name == "_hold_back" else None
        if text is not None:
            yield sentence(text, place(path, call))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("why_not"):
            given = (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value is not None)
            yield from (sentence(text, place(path, node)) for text in map(template, given) if text is not None)


def all_said() -> list[Sentence]:
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [*said_in(path, tree), *problems_in(path, tree)]
    return found


def error_classes() -> dict[str, Sentence]:
    """Name and sentence of every class in errors.py that says one."""
    path = ROOT / "tahoe_s3" / "errors.py"
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for call, name, _ in calls(node):
                text = template(call.args[0]) if name == "__init__" and call.args else None
                if text is not None:
                    found[node.name] = sentence(text, place(path, node))
    return found


ERRORS = error_classes()


# the tests


def test_the_classes_are_all_seen() -> None:
    from tahoe_s3 import errors

    made = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ConfigError) and value is not errors.ConfigError
    }
    assert made == set(ERRORS), "let __init__ of each class in errors.py call super().__init__() with its sentence"


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_that_stops_the_start(name: str) -> None:
    error = ERRORS[name]
    section = next((section for section in SECTIONS if name in section.anchors), None)
    todo = (
        f"docs/errors.rst: errors.{name} wants a section below a line '.. _{name}:' with an example of its sentence "
        f"in a literal block, 'Cause: ...' and 'Cure: ...'.\nIts sentence ({error.where}): {error.text}"
    )
    assert section is not None, todo
    assert section.is_whole, f"a paragraph is missing\n{todo}"
    assert any(map(error.is_in, section.blocks)), f"the example there does not have its words\n{todo}"


@pytest.mark.parametrize("said", all_said(), ids=lambda said: said.where)
def test_a_line_of_the_log(said: Sentence) -> None:
    todo = (
        f"docs/errors.rst: what {said.where} says wants an example in a literal block of the section 'In the log of "
        f"a running node', with 'Cause: ...' and 'Cure: ...' below it; sentences of one cause may share a section.\n"
        f"The sentence: {said.text}"
    )
    where = [section for section in SECTIONS if any(map(said.is_in, section.blocks))]
    assert where, todo
    assert any(section.is_whole for section in where), f"a paragraph is missing\n{todo}"


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_each_error_is_provoked_for_real(name: str) -> None:
    assert name in PROVOKED, (
        f"errors.{name}: write a test that provokes it as an operator would (a Case of {REFUSALS} costs two seconds), "
        f"and name it in PROVOKED, {Path(__file__).relative_to(ROOT)}"
    )
    file, words = PROVOKED[name]
    assert words in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {words} that provokes errors.{name}"


def test_what_is_on_the_page_twice_or_no_more() -> None:
    anchors = [anchor for section in SECTIONS for anchor in section.anchors]
    assert sorted(anchors) == sorted(set(anchors))
    assert not set(anchors) - set(ERRORS), "docs/errors.rst explains a class that errors.py no longer has"
    texts = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert not [text for text in NEVER_SHOWN if text not in texts]


def test_a_missing_sentence_would_be_found() -> None:
    """The parser of this test, on a page and a source that it must tell apart."""
    page = sections("Title\n-----\n\n::\n\n    the key a/b/0 is\n    gone: 404\n\nCause: x\n\nCure: y\n")
    (said,) = said_in(ROOT / "x.py", ast.parse('self.log.warn("the key {key} is gone: {error}", key=1)'))
    assert said.words == ("the key", "is gone:")
    assert page[0].is_whole
    assert said.is_in(page[0].blocks[0])
    assert not said.is_in("the key a/b/0 has gone: 404")
    assert not said.is_in("is gone: the key")
    (problem,) = problems_in(ROOT / "x.py", ast.parse('self._store.problem = f"the bucket cannot be used: {error}"'))
    assert problem.words == ("the bucket cannot be used:",)
    (local,) = said_in(ROOT / "x.py", ast.parse('Busy(f"{count} requests wait", kind="local")'))
    assert local.words == ("requests wait",)
