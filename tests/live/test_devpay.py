# SPDX-License-Identifier: GPL-2.0-or-later
"""DevPay: user and product token in one signed x-amz-security-token header of every request, or none at all.

The S3 server checks each signature by itself, and refuses a request whose tokens are not exactly the expected header.
"""

from __future__ import annotations

import os
from pathlib import Path

from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from ..support.grid import ClientNode, Grid
from ..support.nodes import S3Backend
from ..support.s3server import S3Server

USER, PRODUCT = "{UserToken}AAAHVXNlclRrbgfOpSykBA==", "{ProductToken}AAAGQXBwVGtuVBsuPuBQEFE="
HEADER = "x-amz-security-token"


def store_and_fetch(client: ClientNode) -> None:
    """A whole upload, multipart included, a mutable file, and a download of both."""
    body = os.urandom(4_000_000)
    cap = client.put(body)
    assert client.get(cap) == body
    cap = client.put(b"mutable" * 100, kind="SDMF")
    client.overwrite(cap, b"changed" * 100)
    assert client.get(cap) == b"changed" * 100


def backend_for(server: S3Server, **tokens: str) -> S3Backend:
    access_key_id, secret = next(iter(server.secrets.items()))
    options = {"part_size": "1048576"}
    return S3Backend(server.url, server.bucket_name, access_key_id, secret, options=options, **tokens)


def check_every_request(server: S3Server, expected: list[str]) -> None:
    assert {"UploadPart", "CompleteMultipartUpload", "PutObject", "ListObjectsV2"} <= set(server.count())
    for seen in server.log:
        assert seen.values(HEADER) == expected, seen.operation
        signed = seen.values("authorization")[0].split("SignedHeaders=")[1].split(",")[0].split(";")
        assert (HEADER in signed) == bool(expected)
    assert not server.refused


@ensureDeferred
async def test_both_tokens_travel_with_every_request(s3server: S3Server, tmp_path: Path) -> None:
    s3server.settings.token = f"{USER},{PRODUCT}"

    def run() -> None:
        with Grid(tmp_path / "grid") as grid:
            node = grid.add_storage("storage", backend_for(s3server, usertoken=USER, producttoken=PRODUCT))
            client = grid.add_client("client", force_foolscap=False, shares=(1, 1, 1))
            store_and_fetch(client)
            # What the files say later does not matter to a node that runs.
            node.write_private("s3usertoken", "another")
            node.private("s3producttoken").unlink()
            store_and_fetch(client)

    await deferToThread(run)
    check_every_request(s3server, [f"{USER},{PRODUCT}"])


@ensureDeferred
async def test_a_user_token_alone(s3server: S3Server, tmp_path: Path) -> None:
    s3server.settings.token = USER

    def run() -> None:
        with Grid(tmp_path / "grid") as grid:
            grid.add_storage("storage", backend_for(s3server, usertoken=USER))
            store_and_fetch(grid.add_client("client", force_foolscap=True, shares=(1, 1, 1)))

    await deferToThread(run)
    check_every_request(s3server, [USER])


@ensureDeferred
async def test_without_the_files_no_request_has_the_header(s3server: S3Server, tmp_path: Path) -> None:
    def run() -> None:
        with Grid(tmp_path / "grid") as grid:
            node = grid.add_storage("storage", backend_for(s3server))
            client = grid.add_client("client", force_foolscap=False, shares=(1, 1, 1))
            store_and_fetch(client)
            # Nor when they appear later.
            node.write_private("s3usertoken", USER)
            store_and_fetch(client)

    await deferToThread(run)
    check_every_request(s3server, [])
