# SPDX-License-Identifier: GPL-2.0-or-later
"""`pip install .` into a fresh virtualenv of each Python, then a node there that stores and fetches a file.

    python -m tests.installs                 Python 3.9, 3.11, 3.12 and 3.13
    python -m tests.installs 3.12            only that one

Run from the checkout, by a Python that has what the tests need (SeaweedFS). Each virtualenv gets tahoe-s3 from
an sdist of the checkout and everything else from the package index, as an operator's would. A Python that this
machine does not have is named, and the run then fails, unless --skip-missing is given.

The nodes are run by tests/support/grid.py inside the virtualenv, from a copy of tests/, so that nothing of the
checkout's own tahoe_s3 is found there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .support.grid import Grid
from .support.nodes import S3Backend
from .support.services import SeaweedFS

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.9", "3.11", "3.12", "3.13")
INSTALL_LIMIT_S = 1200
RUN_LIMIT_S = 600
SIZES_BYTES = (100, 55_000, 12_000_000)


class Failed(Exception):
    """A step that did not do what it should, with the end of what it said."""


def run(*command: str | Path, cwd: Path, limit_s: float) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def find_python(version: str) -> Path | None:
    """An interpreter of this version: on the PATH, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        if candidate is None:
            continue
        answer = subprocess.run([str(candidate), "-c", ask], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return Path(candidate)
    return None


def make_sdist(folder: Path) -> Path:
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", program, cwd=ROOT, limit_s=INSTALL_LIMIT_S)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def check(python: Path, archive: Path, service: SeaweedFS, folder: Path) -> str:
    """Installs and tries; what the node's side had to say."""
    environment = folder / "venv"
    run(python, "-m", "venv", environment, cwd=folder, limit_s=INSTALL_LIMIT_S)
    inner = environment / "bin" / "python"
    run(inner, "-m", "pip", "install", "--quiet", archive, cwd=folder, limit_s=INSTALL_LIMIT_S)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "_work"))
    bucket = service.make_bucket()
    words = ("--inside", service.url, bucket, service.access_key_id, service.secret)
    said = run(inner, "-m", "tests.installs", *words, cwd=folder, limit_s=RUN_LIMIT_S)
    shares = [key for key in service.objects(bucket) if key.startswith("shares/")]
    if not shares:
        raise Failed(f"the bucket holds no shares; the node said:\n{said}")
    return f"{said.strip()}, {len(shares)} shares in the bucket"


def store_and_fetch(backend: S3Backend) -> str:
    """Inside the virtualenv: a storage node on the bucket, and clients of both protocols."""
    from tahoe_s3 import _native

    bodies = [os.urandom(size_bytes) for size_bytes in SIZES_BYTES]
    with tempfile.TemporaryDirectory(prefix="ts3") as folder, Grid(Path(folder) / "grid") as grid:
        server = grid.add_storage("server", backend)
        for force_foolscap in (False, True):
            client = grid.add_client(f"client{force_foolscap:d}", force_foolscap=force_foolscap)
            caps = [client.put(body) for body in bodies]
            for cap, body in zip(caps, bodies):
                if client.get(cap) != body:
                    raise Failed(f"a file of {len(body)} bytes came back changed; {grid.all_logs()}")
        server.restart()
        client.wait_connected()
        if client.get(caps[-1]) != bodies[-1]:
            raise Failed(f"a file came back changed after a restart; {grid.all_logs()}")
    return f"stored and fetched {len(bodies)} files over each protocol, libcurl {_native.LIBCURL_VERSION}"


def check_all(versions: list[str], *, skip_missing: bool) -> int:
    failures = 0
    with tempfile.TemporaryDirectory(prefix="ts3") as scratch:
        top = Path(scratch)
        (top / "sdist").mkdir()
        (top / "service").mkdir()
        archive = make_sdist(top / "sdist")
        with SeaweedFS(top / "service") as service:
            for version in versions:
                python = find_python(version)
                if python is None:
                    print(f"Python {version}: NOT FOUND on this machine, so not tried", flush=True)
                    failures += not skip_missing
                    continue
                folder = top / version
                folder.mkdir()
                start_s = time.monotonic()
                try:
                    said = check(python, archive, service, folder)
                except (Failed, subprocess.TimeoutExpired) as error:
                    failures += 1
                    said = f"FAILED: {error}"
                print(f"Python {version}: {said} ({time.monotonic() - start_s:.0f} s)", flush=True)
                shutil.rmtree(folder, ignore_errors=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.installs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=list(VERSIONS), help="such as 3.12")
    parser.add_argument("--skip-missing", action="store_true", help="a Python that is not here is no failure")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(store_and_fetch(S3Backend(*options.versions)))
        return 0
    return 1 if check_all(options.versions, skip_missing=options.skip_missing) else 0


if __name__ == "__main__":
    sys.exit(main())
