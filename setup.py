# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the C extension; everything else about the package is in pyproject.toml."""
from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
ROOMS = ("core", "xml", "net", "py")
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
    sources = sorted(str(path.relative_to(HERE)) for room in ROOMS for path in (HERE / "ext" / room).glob("*.c"))
    headers = sorted(str(path.relative_to(HERE)) for room in ROOMS for path in (HERE / "ext" / room).glob("*.h"))
    return Extension(
        "tahoe_s3._native",
        sources=sources,
        depends=headers,
        include_dirs=["ext"],
        extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", *pkg_config("--cflags")],
        extra_link_args=[*pkg_config("--libs"), "-pthread"],
    )


setup(ext_modules=[extension()])
