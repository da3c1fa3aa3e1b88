# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts the plug-in into Tahoe-LAFS, whoever starts it: `tahoe run`, trial, pytest, another program.

The interpreter calls register() at its start, from tahoe_s3.pth (up to Python 3.17) or tahoe_s3.start (from
3.15 on, PEP 829), both in the root of site-packages. That happens in every Python program of the virtualenv,
so this module imports only what every interpreter has built in, does nothing until somebody imports
allmydata.client, and never lets an error of its own out: what goes wrong is told as a RuntimeWarning, and
Tahoe-LAFS then runs as if tahoe-s3 were not there.

Owner: sys.meta_path holds the one finder for the life of the process. Any thread may import; importlib's own
lock makes sure that allmydata.client is executed once.
"""
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TARGET = "allmydata.client"


class _Loader:
    """Loads allmydata.client with the loader that was found for it, then hands the module to the plug-in."""

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Leaves no trace of this class in the module, so that reload and inspect see the real loader."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _install(module)


class Finder:
    """Finds allmydata.client by asking the other finders, and everything else not at all."""

    def __init__(self) -> None:
        self._asking: set[int] = set()
        """Threads inside find_spec: another finder of this kind may ask us back."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname != TARGET or get_ident() in self._asking:
            return None
        self._asking.add(get_ident())
        try:
            spec = self._ask_the_others(fullname, path, target)
        finally:
            self._asking.discard(get_ident())
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec

    def _ask_the_others(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None


FINDER = Finder()


def register() -> None:
    """Watch for the import of allmydata.client; if that has happened already, do at once what is left."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    module = sys.modules.get(TARGET)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        _install(module)


def _install(module: "ModuleType") -> None:
    try:
        from tahoe_s3 import plugin

        plugin.install(module)
    except Exception as error:
        import warnings

        warnings.warn(
            f"tahoe-s3 is left out of Tahoe-LAFS, which runs without it: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
