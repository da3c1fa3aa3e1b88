# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs in C: builds them, runs the null server, and bare libcurl as a contender."""
from __future__ import annotations

import os
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

from contest.authority import Certificates
from contest.load import BUCKET, Load, Payload, Site
from contest.timing import Spent

HERE = Path(__file__).resolve().parents[1]
WARNINGS = "-std=c11 -O2 -g -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror"
PROGRAMS = {
    "null_s3": (["null_s3.c", "null_s3_answers.c", "null_s3_tls.c"], ["openssl"]),
    "bare_curl": (["bare_curl.c"], ["libcurl", "libcrypto"]),
    "bare_sax": (["bare_sax.c"], ["libxml-2.0"]),
}
PRELOADED = "congestion.so"
START_S = 10


def build(folder: Path) -> None:
    """Compiles into `folder`; CalledProcessError where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("gcc") or shutil.which("cc") or "cc"
    for name, (sources, packages) in PROGRAMS.items():
        told = subprocess.run(["pkg-config", "--cflags", "--libs", *packages], capture_output=True, text=True,
                              check=True)
        paths = [str(HERE / source) for source in sources]
        subprocess.run([compiler, *WARNINGS.split(), "-o", str(folder / name), *paths, *shlex.split(told.stdout),
                        "-pthread"], check=True)
    subprocess.run([compiler, *WARNINGS.split(), "-shared", "-fPIC", "-o", str(folder / PRELOADED),
                    str(HERE / "congestion.c"), "-ldl"], check=True)


class NullServer:
    """One null_s3 process; a context manager. With `certificates` it speaks TLS."""

    def __init__(
        self, folder: Path, *, keys: int = 1_000_000, latency_ms: int = 0, object_bytes: int = 4096,
        certificates: Certificates | None = None,
    ) -> None:
        command = [str(folder / "null_s3"), "--keys", str(keys), "--latency-ms", str(latency_ms),
                   "--object-bytes", str(object_bytes)]
        if certificates is not None:
            command += ["--cert", str(certificates.cert), "--key", str(certificates.key)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.process.stdout is None:
            raise RuntimeError("null_s3 has no output")
        words = self.process.stdout.readline().split()
        if words[:2] != ["listening", "on"]:
            raise RuntimeError("null_s3 did not start")
        self.port = int(words[2])
        ca_file = str(certificates.ca_file) if certificates is not None else None
        self.url = f"{'https' if ca_file else 'http'}://127.0.0.1:{self.port}"
        self.site = Site(self.url, ca_file)
        self._context = ssl.create_default_context(cafile=ca_file) if ca_file else None

    def __enter__(self) -> NullServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait(START_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    @contextmanager
    def on_a_core_of_its_own(self) -> Generator[None, None, None]:
        """The last core is the server's; processes that are started meanwhile have the others. Where there is only
        one, all share it."""
        cores = sorted(os.sched_getaffinity(0))
        own, rest = cores[-1:], cores[:-1] or cores
        os.sched_setaffinity(self.process.pid, own)
        os.sched_setaffinity(0, rest)
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)
            os.sched_setaffinity(self.process.pid, cores)

    def fetch(self, path: str) -> bytes:
        with urlopen(self.url + path, timeout=START_S, context=self._context) as answer:
            return bytes(answer.read())

    def stats(self) -> dict[str, int]:
        """The server's counters, for instance stats()["requests"]."""
        lines = (line.split() for line in self.fetch("/__stats").decode().splitlines())
        return {name: int(value) for name, value in lines}

    def cpu_s(self) -> float:
        """CPU seconds that its one thread has used."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9


class BareCurl:
    """bare_curl.c as a contender; it measures itself, without its start. Options are those of its head comment."""

    payload: Payload = "none"

    def __init__(self, folder: Path, site: Site, name: str, options: Sequence[str] = ()) -> None:
        self.name = name
        self._program = str(folder / "bare_curl")
        self._url = site.url
        self._options = [*options, *(["--cacert", site.ca_file] if site.ca_file else [])]

    def run(self, load: Load, count: int) -> Spent:
        command = [self._program, load.method, f"{self._url}/{BUCKET}/{load.key}", str(count), str(load.parallel)]
        if load.ranged or load.method == "PUT":
            command += ["--bytes", str(load.size)]
        done = subprocess.run(command + self._options, capture_output=True, text=True, check=True)
        wall_s, cpu_s = done.stdout.split("\n", 1)[0].split()
        return Spent(float(wall_s), float(cpu_s))

    def close(self) -> None:
        """Nothing is left of it."""
