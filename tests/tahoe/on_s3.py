# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts every node that Tahoe's SystemTestMixin makes on a bucket of its own, without touching Tahoe's files.

Each node's tahoe.cfg gets `backend = cloud.s3` just before the node is made from it, its private/ the
secret, and the node that comes out must have an S3StorageServer. The tests that look at share files on the
disk look at a mirror of the buckets instead (mirror.py).
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from allmydata import client
from allmydata.storage.server import StorageServer
from twisted.internet.defer import Deferred

from ..support.services import Service
from . import mirror

SECTION = "[storage]\n"


class Buckets:
    """The service, and the bucket of each node's folder."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.of_folder: dict[Path, str] = {}

    def bucket_of(self, folder: Path) -> str:
        """The bucket of a node; made at the first question."""
        if folder not in self.of_folder:
            self.of_folder[folder] = self.service.make_bucket(f"node-{uuid.uuid4().hex[:16]}")
        return self.of_folder[folder]

    def configure(self, folder: Path) -> None:
        """Writes the keys and the secret, unless they are there from an earlier start or storage is off."""
        config = folder / "tahoe.cfg"
        text = config.read_text(encoding="utf-8")
        if "backend = cloud.s3" in text or "enabled = false" in text:
            return
        lines = {
            "backend": "cloud.s3",
            "s3.access_key_id": self.service.access_key_id,
            "s3.bucket": self.bucket_of(folder),
            "s3.url": self.service.url,
            "s3.region": self.service.region,
        }
        keys = "".join(f"{name} = {value}\n" for name, value in lines.items())
        text = text.replace(SECTION, SECTION + keys) if SECTION in text else f"{text}\n{SECTION}{keys}"
        config.write_text(text, encoding="utf-8")
        secret = folder / "private" / "s3secret"
        secret.write_text(self.service.secret + "\n")
        secret.chmod(0o600)


def _checked(node: Any) -> Any:
    from tahoe_s3.server import S3StorageServer

    # A node may have no storage at all.
    server = node.namedServices.get(StorageServer.name)
    if server is not None and not isinstance(server, S3StorageServer):
        raise AssertionError(f"{server!r} keeps no shares in a bucket")
    return node


def install(url: str, access_key_id: str, secret: str, region: str) -> None:
    """Patches this process; there is no way back."""
    service = Service(Path())
    service.url, service.access_key_id, service.secret, service.region = url, access_key_id, secret, region
    buckets = Buckets(service)
    original = client.create_client

    def create_client(basedir: str = ".", *args: Any, **kwargs: Any) -> Deferred[Any]:
        buckets.configure(Path(basedir).absolute())
        made: Deferred[Any] = original(basedir, *args, **kwargs)
        return made.addCallback(_checked)

    client.create_client = create_client
    mirror.install(buckets)
    from . import http_fixture

    http_fixture.install(service)
