# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/operation.rst tells to back up is what cannot be made again: each file of a node's folder is lost in turn,
and what the node then tells its grid, and has for its clients and its bucket, is compared with what it was.

The nodes are built by Tahoe's own code in the test's process, from a folder made by `tahoe create-node`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from allmydata import client
from allmydata.scripts.tahoe_run import identify_node_type
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tahoe_s3 import _hook, errors
from tahoe_s3.store.keys import share_key

from ..support.nodefolder import keys, stop, write_secret
from ..support.nodes import Node, create, free_endpoint
from ..support.page import Page
from ..support.s3server import S3Server
from .node_here import fresh_index

_hook.register()

PAGE = Page(Path(__file__).resolve().parents[2] / "docs" / "operation.rst")
SECTION = "What to back up"
INTRODUCER = "pb://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@tcp:127.0.0.1:1/introducer"
SECRET = "secret/of+the=test"
#: Files that hold nothing but what is there while the node runs, or that the backup leaves out.
STARTS = 3
NOT_KEPT = {"node.url", "running.process", "running.process.lock"}


def listed() -> set[str]:
    """The files in the first column of the page's table."""
    return set(re.findall(r"^``([\w./-]+)``,?  ", PAGE.section(SECTION), re.MULTILINE))


async def facts_of(folder: Path) -> dict[str, Any]:
    """What others know this node by, and what it needs of its own; it never goes on the network but to its bucket."""
    found: dict[str, Any] = {"kind": identify_node_type(str(folder))}
    node = await client.create_client(str(folder))
    try:
        (introducer,) = node.introducer_clients or (None,)
        if introducer is not None:
            found.update(introducer._outbound_announcements["storage"])
            # Anew each time; what matters of the number is that it is no lower than before.
            del found["nonce"]
            found["seqnum"] = found["seqnum"] >= STARTS
        found["key"] = node._node_public_key.public_bytes_raw()
        found["owner"] = node.get_anonymous_storage_server().my_nodeid
        found["lease secret"] = node._secret_holder._lease_secret
        found["convergence"] = node.convergence
        found["nickname"] = node.config.nickname
    finally:
        await stop(node)
    return found


@ensureDeferred
async def test_what_is_lost_with_each_file(s3server: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    port, location = free_endpoint()
    options = ("--listen=tcp", f"--port={port}", f"--location={location}", f"--introducer={INTRODUCER}")
    await deferToThread(create, "node", folder, "--nickname=the node", "--webport=", *options)
    node = Node(folder)
    node.set_options("storage", keys(s3server))
    write_secret(folder, SECRET)
    for _ in range(STARTS):
        before = await facts_of(folder)
    assert before["anonymous-storage-FURL"] and before["anonymous-storage-NURLs"], before
    s3server.bucket.put(share_key(fresh_index(), 0), b"a share, of which nobody reads a byte", now_s=1.0)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).as_posix().startswith(("storage/", "logs/"))
    )
    missed: set[str] = set()
    stopped: set[tuple[str, type]] = set()
    for name in set(names) - NOT_KEPT:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        try:
            after = await facts_of(copy)
        except errors.ConfigError as error:
            stopped.add((name, type(error)))
            after = {}
        if after != before:
            missed.add(name)
        shutil.rmtree(copy)
    assert stopped == {("private/node.pem", errors.OwnedByAnother), ("private/s3secret", errors.BadFile)}
    assert missed == listed(), "not on the page, or there without a reason"
