# SPDX-License-Identifier: GPL-2.0-or-later
"""_native.pyi says all that the module has, and nothing else; what the module returns is of the types it names.

mypy's stubtest (`make types`) compares the same two with rules of its own. Here the stub is read as the Python that it
is, so that nothing but the standard library judges it.
"""
from __future__ import annotations

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3 import _native

from .entry_points import ERROR, LISTING, ROWS, Scene

STUB = Path(_native.__file__ or "").with_name("_native.pyi")
TREE = ast.parse(STUB.read_text())
ALIASES = {"Kind", "Method", "Pairs", "Parse", "Text"}
"""Names for types, which exist in the stub only (tests/native/stubtest.txt has them too)."""
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}


def methods(name: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}


def fields(name: str) -> list[str]:
    return [node.target.id for node in CLASSES[name].body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]


def public(names: typing.Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, object]]:
    """(name, kind, default) of each, but for self or cls."""
    arguments = function.args
    plain = [*[(given.arg, "positional only") for given in arguments.posonlyargs],
             *[(given.arg, "positional or keyword") for given in arguments.args]]
    plain_defaults = [inspect.Parameter.empty] * (len(plain) - len(arguments.defaults)) + [
        ast.literal_eval(default) for default in arguments.defaults]
    found = [(name, kind, default) for (name, kind), default in zip(plain, plain_defaults)]
    for given, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        found.append((given.arg, "keyword-only", value))
    return [parameter for parameter in found if parameter[0] not in ("self", "cls")]


def of_the_module(function: Any) -> list[tuple[str, str, object]]:
    signature = inspect.signature(function)
    return [(given.name, given.kind.description.replace("positional-only", "positional only"), given.default)
            for given in signature.parameters.values() if given.name != "self"]


def test_the_names_are_the_module_s() -> None:
    constants = {node.target.id for node in TREE.body
                 if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    assigned = {target.id for node in TREE.body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)}
    assert assigned == ALIASES
    assert constants | set(CLASSES) | set(FUNCTIONS) == public(dir(_native))
    assert isinstance(_native.LIBCURL_VERSION, str) and isinstance(_native.TLS_VERSION, str)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_s_parameters(name: str) -> None:
    assert parameters(FUNCTIONS[name]) == of_the_module(getattr(_native, name))


@pytest.mark.parametrize("name", ["Engine", "Window"])
def test_a_type_s_members(name: str) -> None:
    stub, type_ = methods(name), getattr(_native, name)
    assert public(stub) == public(dir(type_))
    properties = {member for member, node in stub.items() if any(getattr(mark, "id", "") == "property"
                                                                 for mark in node.decorator_list)}
    assert properties == {member for member in public(dir(type_))
                          if isinstance(getattr(type_, member), types.GetSetDescriptorType)}
    for member in public(stub) - properties:
        assert parameters(stub[member]) == of_the_module(getattr(type_, member)), member
    with pytest.raises(TypeError):  # final, as the stub says
        type("Derived", (type_,), {})


@pytest.mark.skipif(sys.version_info < (3, 10), reason="inspect finds no signatures of built-in types before")
def test_the_constructor_s_parameters() -> None:
    assert parameters(methods("Engine")["__new__"]) == of_the_module(_native.Engine)
    with pytest.raises(TypeError):
        _native.Window()


@pytest.mark.parametrize("name", ROWS)
def test_a_named_tuple_s_fields(name: str) -> None:
    type_ = getattr(_native, name)
    assert fields(name) == list(type_._fields)
    assert type_._field_defaults == {}
    assert (type_.__module__, type_.__doc__ is None) == ("tahoe_s3._native", False)


def test_the_exceptions_bases() -> None:
    found = {name: [base.id for base in node.bases if isinstance(base, ast.Name)] for name, node in CLASSES.items()
             if isinstance(getattr(_native, name), type) and issubclass(getattr(_native, name), Exception)}
    assert found == {name: [base.__name__ for base in getattr(_native, name).__bases__] for name in found}
    assert len(found) == 5


def test_everything_is_explained() -> None:
    for name, node in {**CLASSES, **FUNCTIONS}.items():
        assert ast.get_docstring(node), name
    for name in ("Engine", "Window"):
        for member, node in methods(name).items():
            assert member.startswith("__") or ast.get_docstring(node), member


# ---- what comes back ----

def fits(value: object, hint: Any) -> bool:
    """Whether the value is of the type, as far down as there are items."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is None or hint is type(None):
        return hint is Any or value is None
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, getattr(types, "UnionType", typing.Union)):
        return any(fits(value, choice) for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(all(map(fits, item, inner)) for item in value.items())
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if hasattr(hint, "_fields"):
        given = typing.get_type_hints(hint)
        same = type(value).__name__ == hint.__name__
        return same and all(fits(getattr(value, field), given[field]) for field in given)
    return type(value) is hint


@pytest.fixture(scope="module")
def stub() -> dict[str, Any]:
    if sys.version_info < (3, 10):
        pytest.skip("the stub's `str | bytes` is no expression before Python 3.10")
    names: dict[str, Any] = {"__name__": "stub"}
    exec(compile(TREE, str(STUB), "exec", annotations.compiler_flag, dont_inherit=True), names)
    sys.modules["stub"] = types.ModuleType("stub")
    vars(sys.modules["stub"]).update(names)
    return names


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def returns(stub: dict[str, Any], function: Any) -> Any:
    return typing.get_type_hints(function, stub)["return"]


def test_functions_return_what_the_stub_says(stub: dict[str, Any]) -> None:
    page = _native.parse_list(LISTING)
    assert fits(page, returns(stub, stub["parse_list"])), page
    error = _native.parse_error(ERROR)
    assert fits(error, returns(stub, stub["parse_error"])), error
    assert not fits(error, returns(stub, stub["parse_list"]))


@pytest.mark.parametrize("kind", ["bytes", "list", "deleted", "create", "complete", "copy", "uploads", "none", "error"])
def test_events_are_what_the_stub_says(stub: dict[str, Any], scene: Scene, kind: str) -> None:
    assert kind == "error" or kind in typing.get_args(stub["Parse"])
    scene.engine.submit("POST" if kind == "deleted" else "GET", kind, parse="list" if kind == "error" else kind)
    events = scene.done()
    assert fits(events, returns(stub, stub["Engine"].drain)), events
    assert (events[0].failure is not None) == (kind == "error")


def test_methods_return_what_the_stub_says(stub: dict[str, Any], scene: Scene) -> None:
    engine, window = scene.engine, scene.window
    for method, value in [("region", engine.region()), ("stats", engine.stats()), ("fileno", engine.fileno())]:
        assert fits(value, returns(stub, getattr(stub["Engine"], method))), method
    for method, value in [("arm", window.arm(0)), ("read", window.read(0, 0))]:
        assert fits(value, returns(stub, getattr(stub["Window"], method))), method
    assert type(engine.window(1)) is _native.Window
    assert (type(window.size), type(window.ready)) == (int, int)


def test_every_choice_is_one_of_the_stub_s(stub: dict[str, Any], scene: Scene) -> None:
    """And one that it does not name is refused."""
    for method in typing.get_args(stub["Method"]):
        scene.engine.submit(method, "none")
        scene.done()
    for parse in (*typing.get_args(stub["Parse"]), None):
        if parse is None:
            with pytest.raises(ValueError, match="is not known"):
                scene.engine.submit("GET", "none", parse="some")  # type: ignore[arg-type]
        else:
            scene.engine.submit("GET", "none", parse=parse, attempts=1)
            scene.done()
    source = (Path(__file__).parents[2] / "ext/py/ts3_py_module.c").read_text()
    kinds = source.partition("KINDS[TS3_PY_KINDS] = {")[2].partition("}")[0]
    assert sorted(re.findall(r'"(\w+)"', kinds)) == sorted(typing.get_args(stub["Kind"]))


def test_the_numbers_of_stats_are_named(scene: Scene) -> None:
    text = " ".join((ast.get_docstring(methods("Engine")["stats"]) or "").split())
    named = re.sub(r"requests_get \(([^)]*)\)", lambda found: ", ".join(
        f"requests_{method}" for method in ("get", *found[1].split(", "))), text.partition(": ")[2])
    assert set(re.findall(r"\w+_\w+|\w+", re.sub(r"\([^)]*\)", "", named))) == set(scene.engine.stats())
