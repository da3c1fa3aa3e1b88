# SPDX-License-Identifier: GPL-2.0-or-later
"""The package once more, linked with the libcurl and the OpenSSL that pycurl's wheel brings: what the engine is on a
newer system than Debian 12, and what can be held against that pycurl line by line.

    PYTHONPATH=benchmarks python -m contest.newer FOLDER

builds it into FOLDER (make bench-compare does). Headers are the system's, so what newer ones would offer is not used.
"""
from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

from contest.server import HERE

FOLDER_VARIABLE = "BENCH_NEWER"
"""Names the folder that it was built into."""
NAMES = {"libcurl": ["libcurl"], "openssl": ["libssl", "libcrypto"]}
"""The pkg-config packages that setup.py asks for, and the files of the wheel that stand for them."""
NAMES_OF_OURS = {"drained": "ours, drained", "deferreds": "ours, Deferreds"}
"""What lines of it are called, before the version of its libcurl."""


def folder() -> Path | None:
    """Where the package is, None where it was not built."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named and (Path(named) / "tahoe_s3").is_dir() else None


def _package(name: str, version: str, libraries: Path) -> str:
    """What pkg-config reads of one."""
    files = [found.name for prefix in NAMES[name] for found in sorted(libraries.glob(f"{prefix}-*.so.*"))]
    if len(files) != len(NAMES[name]):
        raise FileNotFoundError(f"{name} is not among the libraries of pycurl's wheel")
    flags = subprocess.run(["pkg-config", "--cflags", name], capture_output=True, text=True, check=True).stdout.strip()
    links = " ".join(f"-l:{file}" for file in files)
    return (f"Name: {name}\nDescription: that of pycurl's wheel\nVersion: {version}\nCflags: {flags}\n"
            f"Libs: -L{libraries} {links} -Wl,-rpath,{libraries} -Wl,-rpath-link,{libraries}\n")


def build(target: Path) -> None:
    """ImportError and FileNotFoundError where pycurl is not there, or has no libraries with it; CalledProcessError."""
    pycurl = importlib.import_module("pycurl")
    versions = dict(re.findall(r"(libcurl|openssl)/([0-9.]+)", pycurl.version.lower()))
    libraries = Path(pycurl.__file__).resolve().parents[1] / "pycurl.libs"
    packages = target / "pkgconfig"
    packages.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (packages / f"{name}.pc").write_text(_package(name, versions[name], libraries), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade",
         "--target", str(target), str(HERE.parent)],
        env={**os.environ, "PKG_CONFIG_PATH": str(packages)}, check=True,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
