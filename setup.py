# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the C extension and installs the start-up files; the rest about the package is in pyproject.toml."""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build import build

HERE = Path(__file__).parent
ROOMS = ("core", "xml", "net", "py")
STARTUP_FILES = ("tahoe_s3.pth", "tahoe_s3.start")
LIBRARIES = {"libcurl": "7.87", "openssl": "3.0", "libxml-2.0": "2.9.14"}


def pkg_config(*options: str) -> list[str]:
    """The words pkg-config answers, or one sentence that says what to install."""
    tool = os.environ.get("PKG_CONFIG", "pkg-config")
    wanted = [f"{name} >= {version}" for name, version in LIBRARIES.items()]
    try:
        done = subprocess.run([tool, *options, *wanted], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(
            "tahoe-s3: pkg-config is not installed; on Debian or Ubuntu: "
            "apt install build-essential pkg-config python3-dev libcurl4-openssl-dev libssl-dev libxml2-dev"
        ) from None
    if done.returncode != 0:
        raise SystemExit(
            "tahoe-s3: a C library is missing or too old (on Debian or Ubuntu: apt install "
            "libcurl4-openssl-dev libssl-dev libxml2-dev):\n" + done.stderr
        )
    return shlex.split(done.stdout)


def extension() -> Extension:
    folders = [HERE / "ext" / room for room in ROOMS]
    sources = sorted(str(path.relative_to(HERE)) for folder in folders for path in folder.glob("*.c"))
    headers = sorted(str(path.relative_to(HERE)) for folder in folders for path in folder.glob("*.h"))
    return Extension(
        "tahoe_s3._native",
        sources=sources,
        depends=headers,
        include_dirs=["ext"],
        extra_compile_args=[
            # gcc 12 takes a head of a list for unchanged, by its type, when an inlined function has changed it
            # through a member (the workers' list of jobs: it took the same job three times).
            "-std=c11", "-fno-strict-aliasing", "-Wall", "-Wextra", "-fvisibility=hidden", *pkg_config("--cflags"),
        ],
        extra_link_args=[*pkg_config("--libs"), "-pthread"],
    )


class BuildStartup(Command):
    """Puts the files that the interpreter reads at its start into the root of site-packages.

    A wheel installs what lies in the root of the built library there. An editable wheel holds only what lies
    in the folder that setuptools gives to `install` as its library (setuptools/command/editable_wheel.py).
    """

    description = "copy the start-up files to the root of the built library"
    user_options = [("build-lib=", "d", "folder to copy to")]  # noqa: RUF012 (setuptools wants a list)

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        folder = self.build_lib
        if self.editable_mode:
            folder = self.get_finalized_command("install").install_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in STARTUP_FILES:
            shutil.copy(HERE / name, folder)

    def get_source_files(self) -> list[str]:
        return list(STARTUP_FILES)

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else [str(Path(self.build_lib, name)) for name in STARTUP_FILES]

    def get_output_mapping(self) -> dict[str, str]:
        return {} if self.editable_mode else {str(Path(self.build_lib, name)): name for name in STARTUP_FILES}


class Build(build):
    sub_commands = build.sub_commands + [("build_startup", None)]  # noqa: RUF005


setup(ext_modules=[extension()], cmdclass={"build": Build, "build_startup": BuildStartup})
