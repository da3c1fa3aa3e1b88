# SPDX-License-Identifier: GPL-2.0-or-later
"""A node's folder written by hand, for nodes that are built in the test's own process.

basedir = make_folder(tmp_path / "node", keys(s3server, s3__region="eu-west-1"))
node = await client.create_client(str(basedir)); ...; await stop(node)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred

from .s3server import S3Server
from .services import free_ports

NOWHERE = "http://127.0.0.1:1"


def make_folder(basedir: Path, storage: Mapping[str, str | None], *, secret: str | None = None) -> Path:
    """A node that listens on a free port of 127.0.0.1. `storage`: lines of [storage], None for one left out."""
    (basedir / "private").mkdir(parents=True)
    (port,) = free_ports(1)
    lines = [
        "[node]",
        "nickname = test",
        f"tub.port = tcp:{port}:interface=127.0.0.1",
        f"tub.location = tcp:127.0.0.1:{port}",
        "[storage]",
        *(f"{key} = {value}" for key, value in storage.items() if value is not None),
        "",
    ]
    (basedir / "tahoe.cfg").write_text("\n".join(lines))
    if secret is not None:
        write_secret(basedir, secret)
    return basedir


def write_secret(basedir: Path, secret: str) -> None:
    path = basedir / "private" / "s3secret"
    path.write_text(secret + "\n")
    path.chmod(0o600)


def keys(server: S3Server | None = None, **changes: str | None) -> dict[str, str | None]:
    """The lines of [storage] for this server's bucket; "__" in a name stands for a dot, None leaves a key out."""
    found: dict[str, str | None] = {
        "backend": "cloud.s3",
        "s3.access_key_id": "AKIDTESTTEST",
        "s3.bucket": "bucket",
        "s3.url": NOWHERE if server is None else server.url,
    }
    found.update({name.replace("__", "."): value for name, value in changes.items()})
    return found


async def stop(node: Any) -> None:
    """Starts and ends a node, as its services expect."""
    node.startService()
    await maybeDeferred(node.stopService)
