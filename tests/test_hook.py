# SPDX-License-Identifier: GPL-2.0-or-later
"""The start-up hook: what it costs other programs, when it acts, and that no error of its own gets out.

Each test is a Python of its own without site-packages' .pth files (-S), so that an installed hook does not take
part; tests/test_packaging.py looks at the installed files.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(program: str, *flags: str, first: Path | None = None) -> str:
    """What a fresh Python prints; it must end well and keep stderr empty."""
    path = [str(ROOT), *(entry for entry in sys.path if entry)]
    if first is not None:
        path.insert(0, str(first))
    preamble = f"import sys; sys.path[:0] = {path!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", *flags, "-c", preamble + textwrap.dedent(program)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_it_loads_nothing_but_itself() -> None:
    said = run(
        """
        before = set(sys.modules)
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        print(sorted(set(sys.modules) - before))
        """
    )
    assert said == "['tahoe_s3', 'tahoe_s3._hook']\n"


def test_it_costs_next_to_nothing() -> None:
    """Against the import of one small module of the standard library, as timings of this machine vary."""
    said = run(
        """
        import time
        def seconds(work):
            best = 1e9
            for _ in range(7):
                for name in [n for n in sys.modules if n.startswith("tahoe_s3") or n in ("argparse", "gettext")]:
                    del sys.modules[name]
                sys.meta_path[:] = [f for f in sys.meta_path if "tahoe" not in type(f).__module__]
                start = time.perf_counter()
                work()
                best = min(best, time.perf_counter() - start)
            return best
        def ours():
            import tahoe_s3._hook
            tahoe_s3._hook.register()
        def theirs():
            import argparse
        print(seconds(ours) / seconds(theirs))
        """
    )
    assert float(said) < 1.0


def test_it_does_not_hold_up_other_imports() -> None:
    said = run(
        """
        import timeit
        from tahoe_s3._hook import FINDER
        print(timeit.timeit(lambda: FINDER.find_spec("json", None, None), number=100_000) / 100_000)
        """
    )
    assert float(said) < 20e-6


def test_the_plugin_is_in_after_the_import_and_not_before() -> None:
    said = run(
        """
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        import allmydata.node
        print("tahoe_s3.plugin" in sys.modules)
        import allmydata.client
        print("tahoe_s3.plugin" in sys.modules)
        print(hasattr(allmydata.client.create_client_from_config, "tahoe_s3_wraps"))
        print(type(allmydata.client.__loader__).__name__, type(allmydata.client.__spec__.loader).__name__)
        print([name for name in sys.modules if name in ("tahoe_s3.server", "tahoe_s3._native")])
        """
    )
    assert said.split("\n") == [
        "False",
        "True",
        "True",
        "SourceFileLoader SourceFileLoader",
        "[]",
        "",
    ]


def test_tahoe_run_finds_it_however_it_imports() -> None:
    """`tahoe run` names the module as text, tests import from it."""
    said = run(
        """
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        from twisted.python.reflect import namedAny
        create_client = namedAny("allmydata.client.create_client")
        from allmydata.client import config_from_string
        print(config_from_string.keywords["_valid_config"].is_valid_item("storage", "s3.bucket"))
        print(create_client.__globals__["create_client_from_config"].tahoe_s3_wraps.__name__)
        """
    )
    assert said == "True\ncreate_client_from_config\n"


def test_registering_again_or_late_or_reloading() -> None:
    said = run(
        """
        import allmydata.client, importlib
        import tahoe_s3._hook
        for _ in range(3):
            tahoe_s3._hook.register()
        def depth(function):
            count = 0
            while hasattr(function, "tahoe_s3_wraps"):
                function, count = function.tahoe_s3_wraps, count + 1
            return count
        def show():
            import allmydata.protocol_switch
            print(
                depth(allmydata.client.create_client_from_config),
                depth(allmydata.client._Client.get_anonymous_storage_server),
                depth(allmydata.client.FoolscapStorageServer),
                depth(allmydata.protocol_switch.HTTPServer),
            )
        show()
        print(sum(type(finder).__module__ == "tahoe_s3._hook" for finder in sys.meta_path))
        importlib.reload(allmydata.client)
        show()
        """
    )
    assert said == "1 1 1 1\n1\n1 1 1 1\n"


def test_another_finder_of_the_same_kind_does_not_loop() -> None:
    said = run(
        """
        class Other:
            def find_spec(self, name, path=None, target=None):
                for finder in sys.meta_path:
                    spec = None if finder is self else finder.find_spec(name, path, target)
                    if spec is not None:
                        return spec
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        sys.meta_path.insert(0, Other())
        import allmydata.client
        print(hasattr(allmydata.client.create_client_from_config, "tahoe_s3_wraps"))
        """
    )
    assert said == "True\n"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("sys.modules['tahoe_s3.plugin'] = None", "ModuleNotFoundError"),
        ("import tahoe_s3.plugin; tahoe_s3.plugin.install = lambda client: 1 / 0", "ZeroDivisionError"),
    ],
)
def test_its_own_errors_leave_stock_tahoe_behind(damage: str, reason: str) -> None:
    said = run(
        f"""
        import warnings
        import tahoe_s3._hook
        {damage}
        tahoe_s3._hook.register()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import allmydata.client
        ours = [w for w in caught if "tahoe-s3" in str(w.message)]
        print([w.category.__name__ for w in ours], "{reason}" in str(ours[0].message))
        print(hasattr(allmydata.client.create_client_from_config, "tahoe_s3_wraps"))
        """
    )
    assert said == "['RuntimeWarning'] True\nFalse\n"


def test_an_error_inside_tahoe_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "allmydata").mkdir()
    (tmp_path / "allmydata" / "__init__.py").write_text("")
    (tmp_path / "allmydata" / "client.py").write_text("raise LookupError('Tahoe itself is broken')\n")
    said = run(
        """
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        try:
            import allmydata.client
        except LookupError as error:
            print(error, "allmydata.client" in sys.modules)
        """,
        first=tmp_path,
    )
    assert said == "Tahoe itself is broken False\n"


def test_without_tahoe_an_import_fails_as_ever(tmp_path: Path) -> None:
    (tmp_path / "allmydata").mkdir()
    (tmp_path / "allmydata" / "__init__.py").write_text("")
    said = run(
        """
        import tahoe_s3._hook
        tahoe_s3._hook.register()
        try:
            import allmydata.client
        except ModuleNotFoundError as error:
            print(error)
        """,
        first=tmp_path,
    )
    assert said == "No module named 'allmydata.client'\n"


def test_a_tahoe_without_the_hook_points_serves_stock_nodes_and_tells_others(tmp_path: Path) -> None:
    """As a Tahoe-LAFS would be that had no FoolscapStorageServer in its client module."""
    (tmp_path / "private").mkdir()
    said = run(
        f"""
        import tahoe_s3._hook, tahoe_s3.plugin
        tahoe_s3.plugin.HOOK_POINTS += ("SomethingThatIsNotThere",)
        tahoe_s3._hook.register()
        from pathlib import Path
        import allmydata.client as client
        folder = Path({str(tmp_path)!r})
        (folder / "tahoe.cfg").write_text("[storage]\\nreserved_space = 1G\\n")
        print(type(client.read_config(str(folder), "client.port")).__name__)
        print(hasattr(client.create_client_from_config, "tahoe_s3_wraps"))
        for line in ("backend = cloud.s3", "s3.bucket = b", "bakend = cloud.s3"):
            (folder / "tahoe.cfg").write_text(f"[storage]\\n{{line}}\\n")
            try:
                client.read_config(str(folder), "client.port")
            except client.configutil.UnknownConfigError as error:
                print(type(error).__name__, error)
        """
    )
    lines = said.splitlines()
    assert lines[:2] == ["_Config", "False"]
    for line in lines[2:4]:
        assert line == (
            "UnsupportedTahoe backend = cloud.s3 works with Tahoe-LAFS 1.20.0, but Tahoe-LAFS 1.20.0 is installed, "
            "which lacks allmydata.client.SomethingThatIsNotThere; install tahoe-lafs==1.20.0, or a newer tahoe-s3."
        )
    assert lines[4].startswith("UnknownConfigError ")
    assert lines[4].endswith("unknown option 'bakend'")
