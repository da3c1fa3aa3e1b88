# SPDX-License-Identifier: GPL-2.0-or-later
"""Who takes part on a site. One that is not installed is told of, once, and left out."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from contest import pycurls
from contest.load import Contender, Site
from contest.others import AwsCrt, Boto3, Minio, Obstore
from contest.ours import Deferreds, Drained
from contest.server import BareCurl

BARE = "libcurl in C"
PERFORM = "libcurl in C, multi_perform"
FRESH = "libcurl in C, own memory"
HOP = "libcurl in C, one thread hop"
HASHED = "libcurl in C, hash then send"
HEADED = "libcurl in C, S3's headers"
HEADED_HOP = "libcurl in C, hop and headers"

_told: set[str] = set()


def bare_ways(folder: Path, site: Site) -> dict[str, BareCurl]:
    """bare_curl.c's ways, by name: own memory is for GETs, the hash for PUTs."""
    options = {BARE: [], PERFORM: ["--perform"], FRESH: ["--fresh"], HOP: ["--hop"], HASHED: ["--hash"],
               HEADED: ["--headers"], HEADED_HOP: ["--hop", "--headers"]}
    return {name: BareCurl(folder, site, name, given) for name, given in options.items()}


def ours(reactor: Any, site: Site, *, signed: bool = True) -> list[Contender]:
    return [Drained(site, signed=signed), Deferreds(reactor, site, signed=signed)]


def others(site: Site, *, signed: bool = True) -> list[Contender]:
    """All that can be imported. `signed` is asked of those that let one choose."""
    kinds: tuple[tuple[str, Callable[[], Contender]], ...] = (
        ("boto3", lambda: Boto3(site, signed=signed)),
        ("awscrt", lambda: AwsCrt(site)),
        ("obstore", lambda: Obstore(site, signed=signed)),
        ("minio", lambda: Minio(site)),
        ("pycurl", lambda: pycurls.PyCurl(site, pycurls.wheel(), "wheel")),
        ("pycurl with SIGV4", lambda: pycurls.PyCurl(site, pycurls.wheel(), "wheel", sigv4=True)),
        ("pycurl on the system's libcurl", lambda: pycurls.PyCurl(site, pycurls.from_system(), "system")),
    )
    found: list[Contender] = []
    for name, make in kinds:
        try:
            found.append(make())
        except ImportError as error:
            if name not in _told:
                print(f"LEFT OUT: {name} ({error}); make bench-compare installs it", flush=True)
            _told.add(name)
    return found
