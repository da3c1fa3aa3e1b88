# SPDX-License-Identifier: GPL-2.0-or-later
"""What each contender really sends, as the null server counts it: so that equals are compared with equals."""
from __future__ import annotations

from pathlib import Path

from contest.entrants import BARE, bare_ways, others, ours
from contest.load import Contender, Load
from contest.server import NullServer

PUTS = 8
LOAD = Load("PUT", "audit-1000000", 1_000_000, 2)
KINDS = {"put_hashed": "signed", "put_unsigned": "unsigned", "put_streaming": "streaming", "put_bare": "none"}
FURTHER = {"put_md5": "Content-MD5", "put_checksum": "x-amz-checksum", "put_trailer": "trailer",
           "put_expect": "Expect: 100-continue"}


def _seen(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    return {name: value for name, value in grown.items() if value > 0}


def _ask(contender: Contender, server: NullServer) -> None:
    before = server.stats()
    try:
        contender.run(LOAD, PUTS)
    except Exception as error:  # the others' turn comes all the same
        print(f"  {contender.name:<33}DID NOT WORK: {type(error).__name__}: {error}")
        return
    seen = _seen(before, server.stats())
    own = 1  # the connection that asks for the counters
    kinds = [word for name, word in KINDS.items() if name in seen]
    further = [word for name, word in FURTHER.items() if name in seen]
    ciphers = sorted(name for name in seen if name.startswith(("TLS_", "ECDHE")))
    wrong = "" if kinds == [contender.payload] else f"   NOT {contender.payload} AS THE ROWS SAY"
    print(f"  {contender.name:<33}{'+'.join(kinds):<11}{', '.join(further) or '-':<24}"
          f"{seen.get('connections', own) - own:>11}  {', '.join(ciphers) or '-'}{wrong}", flush=True)


def audit(folder: Path, server: NullServer) -> None:
    """PUTs of 1 MB, two in flight, of everyone, on this server."""
    print(f"\nWhat a PUT says of its payload, over {'TLS' if server.site.https else 'plain HTTP'}   "
          f"[{PUTS} of 1 MB, 2 in flight]")
    print(f"  {'':<33}{'payload':<11}{'further sums':<24}{'connections':>11}  cipher")
    mine = ours(server.site)
    rest = others(server.site)
    if server.site.https:
        mine += ours(server.site, signed=False)
    rest += [one for one in others(server.site, signed=False)
             if one.payload == "unsigned" and one.name not in [known.name for known in rest if
                                                               known.payload == "unsigned"]]
    for contender in [*mine, bare_ways(folder, server.site)[BARE], *rest]:
        _ask(contender, server)
    for contender in [*mine, *rest]:
        contender.close()
