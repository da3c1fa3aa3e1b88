# SPDX-License-Identifier: GPL-2.0-or-later
"""Installing: what an sdist and a wheel hold, that each kind of install brings the start-up files, and uninstall
takes them away.

Built once, without optimisation, from a copy of the checkout: checkout -> sdist -> wheel. The virtualenvs see
the packages of the running one through a path file, so nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STARTUP_FILES = {"tahoe_s3.pth", "tahoe_s3.start"}
LEFT_OUT = shutil.ignore_patterns(
    ".git", "build", "dist", ".venv", ".cache", "*.egg-info", "*.so", "*.o", "__pycache__", ".*_cache", ".hypothesis"
)
BUILD_LIMIT_S = 600

pytestmark = pytest.mark.timeout(BUILD_LIMIT_S * 2)


def run(*command: str | Path, cwd: Path | None = None, limit_s: float = BUILD_LIMIT_S) -> str:
    """Runs a command to its end, which must be a good one; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["CFLAGS"] = environment.get("CFLAGS", "") + " -O0 -g0"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd or "/",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that an sdist of the checkout unpacks to."""
    folder = tmp_path_factory.mktemp("source")
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    run(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
        cwd=copy,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Made a moment ago by ourselves.
        tar.extractall(folder)
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir() and path != copy)
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source)
    (found,) = folder.glob("*.whl")
    return found


class Environment:
    """A virtualenv that has everything that the running one has, but for tahoe-s3."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        (self.site,) = (folder / "lib").glob("python*/site-packages")
        below = sysconfig.get_path("purelib")
        (self.site / "zz_below.pth").write_text(f"{below}\n")
        self.empty = self.files()

    def files(self) -> set[str]:
        return {path.name for path in self.site.iterdir()} - {"__pycache__"}

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)

    def says(self, program: str, *flags: str) -> str:
        """What a program prints; stderr must stay empty."""
        done = subprocess.run(
            [str(self.python), *flags, "-c", program],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    def hooks(self, *flags: str) -> str:
        """How many finders of ours this Python has from its start."""
        return self.says(
            "import sys; print(sum(type(f).__module__ == 'tahoe_s3._hook' for f in sys.meta_path))", *flags
        )


def test_sdist_holds_all_that_a_build_needs(source: Path) -> None:
    names = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    tracked = run("git", "-C", ROOT, "ls-files").split() if (ROOT / ".git").exists() else []
    wanted = {name for name in tracked if name.startswith(("ext/", "tahoe_s3/")) and (ROOT / name).exists()}
    assert wanted - names == set()
    wanted = STARTUP_FILES | {"setup.py", "pyproject.toml", "README.rst", "LICENSE", "NEWS"}
    assert wanted - names == set()
    assert "docs/configuration.rst" in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_holds_the_package_and_the_startup_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name for name in names if "/" not in name} == STARTUP_FILES
        for name in STARTUP_FILES:
            assert archive.read(name).decode() == (ROOT / name).read_text()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        tops = {name.split("/")[0] for name in names} - STARTUP_FILES
    assert {top.partition("-")[0] for top in tops} == {"tahoe_s3"}
    package = {name for name in names if name.startswith("tahoe_s3/")}
    expected = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / "tahoe_s3").rglob(pattern)
    }
    assert expected - package == set()
    assert [name for name in package if name.startswith("tahoe_s3/_native.") and name.endswith(".so")]
    assert "Requires-Dist: tahoe-lafs>=1.20" in metadata
    assert "License-Expression: GPL-2.0-or-later" in metadata


def test_both_startup_files_call_the_same() -> None:
    import pkgutil

    lines = (ROOT / "tahoe_s3.start").read_text().splitlines()
    (entry,) = (line for line in lines if not line.startswith("#"))
    module, _, function = entry.partition(":")
    assert callable(pkgutil.resolve_name(entry))
    assert (ROOT / "tahoe_s3.pth").read_text() == f"import {module}; {module}.{function}()\n"


def check_installed(environment: Environment) -> None:
    assert environment.hooks() == "1"
    assert environment.hooks("-I") == "1"
    assert environment.hooks("-S") == "0"
    loaded = environment.says(
        "import sys; print(*sorted(n for n in sys.modules if n.split('.')[0] in ('tahoe_s3', 'allmydata', 'twisted')))"
    )
    assert loaded == "tahoe_s3 tahoe_s3._hook"
    assert environment.says(
        "import allmydata.client as c; print(c.create_client_from_config.tahoe_s3_wraps.__name__)"
    ).endswith("create_client_from_config")
    assert environment.says("from tahoe_s3 import _native; print(_native.LIBCURL_VERSION)")


def test_installed_from_a_wheel_and_removed(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    assert environment.hooks() == "0"
    environment.pip("install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    assert environment.files() >= STARTUP_FILES
    check_installed(environment)
    environment.pip("uninstall", "--yes", "tahoe-s3")
    assert environment.files() == environment.empty
    assert environment.hooks() == "0"


def test_installed_editable_and_removed(source: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", source)
    assert environment.files() >= STARTUP_FILES
    check_installed(environment)
    assert environment.says("import tahoe_s3; print(tahoe_s3.__file__)") == str(source / "tahoe_s3" / "__init__.py")
    environment.pip("uninstall", "--yes", "tahoe-s3")
    assert environment.files() == environment.empty
    assert environment.hooks() == "0"


def test_a_package_that_vanished_breaks_no_python(tmp_path: Path) -> None:
    """As when somebody deletes the folder instead of calling pip: Python tells, and goes on."""
    environment = Environment(tmp_path / "venv")
    (environment.site / "zz_below.pth").unlink()
    shutil.copy(ROOT / "tahoe_s3.pth", environment.site)
    done = subprocess.run(
        [str(environment.python), "-c", "print('it runs')"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "it runs\n")
