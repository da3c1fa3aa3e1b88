# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs in C: builds them, runs the null server, and bare libcurl as a contender."""
from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

from contest.load import BUCKET, Load
from contest.timing import Spent

HERE = Path(__file__).resolve().parents[1]
WARNINGS = "-std=c11 -O2 -g -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror"
PROGRAMS = {
    "null_s3": (["null_s3.c", "null_s3_answers.c"], []),
    "bare_curl": (["bare_curl.c"], ["libcurl", "libcrypto"]),
    "bare_sax": (["bare_sax.c"], ["libxml-2.0"]),
}
START_S = 10


def build(folder: Path) -> None:
    """Compiles into `folder`; CalledProcessError where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    for name, (sources, packages) in PROGRAMS.items():
        flags: list[str] = []
        if packages:
            told = subprocess.run(["pkg-config", "--cflags", "--libs", *packages], capture_output=True, text=True,
                                  check=True)
            flags = shlex.split(told.stdout)
        paths = [str(HERE / source) for source in sources]
        subprocess.run([compiler, *WARNINGS.split(), "-o", str(folder / name), *paths, *flags, "-pthread"], check=True)


class NullServer:
    """One null_s3 process; a context manager."""

    def __init__(self, folder: Path, *, keys: int = 1_000_000, latency_ms: int = 0) -> None:
        command = [str(folder / "null_s3"), "--keys", str(keys), "--latency-ms", str(latency_ms)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self._process.stdout is None:
            raise RuntimeError("null_s3 has no output")
        words = self._process.stdout.readline().split()
        if words[:2] != ["listening", "on"]:
            raise RuntimeError("null_s3 did not start")
        self.port = int(words[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> NullServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(START_S)

    def fetch(self, path: str) -> bytes:
        with urlopen(self.url + path, timeout=START_S) as answer:
            return bytes(answer.read())

    def stats(self) -> dict[str, int]:
        """The server's counters, for instance stats()["requests"]."""
        lines = (line.split() for line in self.fetch("/__stats").decode().splitlines())
        return {name: int(value) for name, value in lines}


class BareCurl:
    """bare_curl.c as a contender; it measures itself, without its start. `hop`: with another thread in between."""

    def __init__(self, folder: Path, url: str, *, hop: bool = False, hashed: bool = False) -> None:
        self._program = str(folder / "bare_curl")
        self._url = url
        self._options = (["--hop"] if hop else []) + (["--hash"] if hashed else [])
        self.name = "libcurl in C" + (", one thread hop" if hop else "") + (" + SHA-256" if hashed else "")

    def run(self, load: Load, count: int) -> Spent:
        command = [self._program, load.method, f"{self._url}/{BUCKET}/{load.key}", str(count), str(load.parallel)]
        if load.ranged or load.method == "PUT":
            command += ["--bytes", str(load.size)]
        done = subprocess.run(command + self._options, capture_output=True, text=True, check=True)
        wall_s, cpu_s = done.stdout.split("\n", 1)[0].split()
        return Spent(float(wall_s), float(cpu_s))

    def close(self) -> None:
        pass
