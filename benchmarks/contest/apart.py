# SPDX-License-Identifier: GPL-2.0-or-later
"""Each contender in a process of its own, kept over all rounds, so that nobody's threads, memory or modules are
another's; and so that the kernel meets each alike. libcurl in C is a program of its own anyway.

    python -m contest.apart KIND URL CA_FILE SIGNED

is the other side: it makes the contender of that kind (OURS, OTHERS), says its name and what its PUTs say of their
payload, and then, for each line with a load, how long that took. Lines are JSON.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Callable

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.task import react

from contest import newer, pycurls
from contest.load import Contender, Load, Payload, Site
from contest.others import AwsCrt, Boto3, Minio, Obstore
from contest.ours import Deferreds, Drained
from contest.server import HERE
from contest.timing import Spent
from tahoe_s3 import _native

END_S = 20
"""How long a contender may take to close what it has."""
Maker = Callable[[Any, Site, bool], Contender]
OURS: dict[str, Maker] = {
    "drained": lambda reactor, site, signed: Drained(site, signed=signed),
    "deferreds": lambda reactor, site, signed: Deferreds(reactor, site, signed=signed),
}
OTHERS: dict[str, Maker] = {
    "boto3": lambda reactor, site, signed: Boto3(site, signed=signed),
    "awscrt": lambda reactor, site, signed: AwsCrt(site),
    "obstore": lambda reactor, site, signed: Obstore(site, signed=signed),
    "minio": lambda reactor, site, signed: Minio(site),
    "pycurl": lambda reactor, site, signed: pycurls.PyCurl(site, pycurls.wheel(), "wheel"),
    "pycurl with SIGV4": lambda reactor, site, signed: pycurls.PyCurl(site, pycurls.wheel(), "wheel", sigv4=True),
    "pycurl on the system's libcurl": lambda reactor, site, signed: pycurls.PyCurl(site, pycurls.from_system(),
                                                                                   "system"),
}
"""`signed` is asked of those that let one choose."""


def environment(first: Path | None = None) -> dict[str, str]:
    """Of a process that runs a module of this package, and looks for others in `first` before all else."""
    told = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [*([str(first)] if first else []), str(HERE), *[path for path in told if path]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Apart:
    """The contender of a kind, here. ImportError where it is not installed. `on_newer`: one of ours, from the package
    in newer.folder()."""

    def __init__(self, kind: str, site: Site, *, signed: bool, on_newer: bool = False) -> None:
        self.ours = kind in OURS
        self.on_newer = on_newer
        self._process = subprocess.Popen(
            [sys.executable, "-m", "contest.apart", kind, site.url, site.ca_file or "", "signed" if signed else ""],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(newer.folder() if on_newer else None),
        )
        told = self._hear()
        if "missing" in told:
            self.close()
            raise ImportError(told["missing"])
        self.name: str = f"{newer.NAMES_OF_OURS[kind]}, libcurl {told['libcurl']}" if on_newer else told["name"]
        self.payload: Payload = told["payload"]

    def _hear(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"its process ended with status {self._process.wait(END_S)}")
        told: dict[str, Any] = json.loads(line)
        return told

    def run(self, load: Load, count: int) -> Spent:
        if self._process.stdin is None:
            raise RuntimeError("its process hears nothing")
        self._process.stdin.write(json.dumps([*load, count]) + "\n")
        self._process.stdin.flush()
        told = self._hear()
        if "error" in told:
            raise RuntimeError(told["error"])
        return Spent(told["wall_s"], told["cpu_s"])

    def close(self) -> None:
        """Its process has ended when this returns."""
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


@inlineCallbacks
def _serve(reactor: Any, kind: str, site: Site, signed: bool) -> Generator[Deferred[Any], Any, None]:
    """Nothing else is going on while it waits for a line, so the reactor may wait too."""
    try:
        contender = {**OURS, **OTHERS}[kind](reactor, site, signed)
    except ImportError as error:
        _say(missing=str(error))
        return
    _say(name=contender.name, payload=contender.payload, libcurl=_native.LIBCURL_VERSION)
    for line in sys.stdin:
        *what, count = json.loads(line)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield maybeDeferred(contender.run, Load(*what), count)
        except Exception as error:  # whatever it is, it is the row's to tell
            _say(error=f"{type(error).__name__}: {error}")
            continue
        _say(wall_s=time.perf_counter() - wall_s, cpu_s=time.process_time() - cpu_s)
    yield maybeDeferred(contender.close)


if __name__ == "__main__":
    react(_serve, (sys.argv[1], Site(sys.argv[2], sys.argv[3] or None), bool(sys.argv[4])))
