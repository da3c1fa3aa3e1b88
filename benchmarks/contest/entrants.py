# SPDX-License-Identifier: GPL-2.0-or-later
"""Who takes part on a site. One that is not installed is told of, once, and left out."""
from __future__ import annotations

from pathlib import Path

from contest import newer
from contest.apart import OTHERS, OURS, Apart
from contest.load import Site
from contest.server import BareCurl

BARE = "libcurl in C"
PERFORM = "libcurl in C, multi_perform"
FRESH = "libcurl in C, own memory"
HOP = "libcurl in C, one thread hop"
HASHED = "libcurl in C, hash then send"
HASH_ALONE = "SHA-256 alone, in C"
HEADED = "libcurl in C, S3's headers"
HEADED_HOP = "libcurl in C, hop and headers"

_told: set[str] = set()


def is_yardstick(name: str) -> bool:
    """Whether a line is none of the alternatives that users know, but what they are held against."""
    return name == HASH_ALONE or name.startswith(BARE)


def bare_ways(folder: Path, site: Site) -> dict[str, BareCurl]:
    """bare_curl.c's ways, by name: own memory is for GETs, the hash for PUTs."""
    options = {BARE: [], PERFORM: ["--perform"], FRESH: ["--fresh"], HOP: ["--hop"], HASHED: ["--hash"],
               HASH_ALONE: ["--hash-alone"], HEADED: ["--headers"], HEADED_HOP: ["--hop", "--headers"]}
    return {name: BareCurl(folder, site, name, given) for name, given in options.items()}


def ours(site: Site, *, signed: bool = True) -> list[Apart]:
    """On the system's libraries, and on those of pycurl's wheel where the package was built so."""
    found = [Apart(kind, site, signed=signed) for kind in OURS]
    if newer.folder() is None:
        _leave_out("ours on a newer libcurl", f"{newer.FOLDER_VARIABLE} names no folder with it")
        return found
    return [*found, *(Apart(kind, site, signed=signed, on_newer=True) for kind in OURS)]


def _leave_out(kind: str, why: str) -> None:
    if kind not in _told:
        print(f"LEFT OUT: {kind} ({why}); make bench-compare installs it", flush=True)
    _told.add(kind)


def others(site: Site, *, signed: bool = True) -> list[Apart]:
    """All that can be imported."""
    found: list[Apart] = []
    for kind in OTHERS:
        try:
            found.append(Apart(kind, site, signed=signed))
        except ImportError as error:
            _leave_out(kind, str(error))
    return found
