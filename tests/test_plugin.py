# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plug-in changes in allmydata for a node that asks for cloud.s3, and that other nodes stay stock.

In process, on a bucket of tests/support/s3server.py; `tahoe run` as a process of its own at the end.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from allmydata import client, protocol_switch
from allmydata.storage.http_server import HTTPServer
from allmydata.storage.server import FoolscapStorageServer, StorageServer
from allmydata.util.configutil import UnknownConfigError
from allmydata.web import storage
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.web.test.requesthelper import DummyRequest

from tahoe_s3 import _hook, errors, plugin

from .support.nodefolder import keys, make_folder, stop
from .support.nodes import Node, S3Backend, create, free_endpoint
from .support.s3server import S3Server

_hook.register()

SECRET = "secret/of+the=test"
_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes node folders: folder(lines of [storage], secret=...)."""

    def make(storage: dict[str, str | None], *, secret: str | None = SECRET) -> Path:
        return make_folder(tmp_path / f"node{next(_numbers)}", storage, secret=secret)

    return make


@ensureDeferred
async def test_a_stock_node_is_stock(folder: Callable[..., Path]) -> None:
    node = await client.create_client(str(folder({"reserved_space": "1M"})))
    server = node.get_anonymous_storage_server()
    assert type(server) is StorageServer
    assert server.reserved_space == 1_000_000
    assert type(client.FoolscapStorageServer(server)) is FoolscapStorageServer
    assert type(protocol_switch.HTTPServer(None, server, b"swissnum")) is HTTPServer
    await stop(node)


@ensureDeferred
async def test_stock_errors_are_stock(folder: Callable[..., Path]) -> None:
    basedir = folder({"bakend": "x"})
    with pytest.raises(UnknownConfigError) as caught:
        await client.create_client(str(basedir))
    assert type(caught.value) is UnknownConfigError
    assert str(caught.value) == f"'{basedir}/tahoe.cfg' section [storage] contains unknown option 'bakend'"
    with pytest.raises(UnknownConfigError) as caught:
        client.config_from_string(str(basedir), "client.port", "[storage]\ns4.bucket = x\n")
    assert str(caught.value) == "'<string>' section [storage] contains unknown option 's4.bucket'"
    with pytest.raises(UnknownConfigError) as caught:
        client.config_from_string(str(basedir), "client.port", "[node]\nbackend = x\n")
    assert str(caught.value) == "'<string>' section [node] contains unknown option 'backend'"


def test_the_wrappers_look_like_what_they_wrap() -> None:
    assert client.FoolscapStorageServer.__name__ == "FoolscapStorageServer"
    assert client.FoolscapStorageServer.__wrapped__ is FoolscapStorageServer
    assert protocol_switch.HTTPServer.__wrapped__ is HTTPServer
    assert client.create_client_from_config.__doc__.strip().startswith("Creates a new client instance")
    assert client.StorageServer is StorageServer


@pytest.mark.parametrize(
    ("changes", "secret", "error"),
    [
        ({"backend": "cloud.s4"}, SECRET, errors.UnknownBackend),
        ({"backend": None}, SECRET, errors.KeysWithoutBackend),
        ({"s3__buket": "x"}, SECRET, errors.UnknownKey),
        ({"s3__bucket": None}, SECRET, errors.MissingKey),
        ({"s3__url": "s3.example"}, SECRET, errors.BadValue),
        ({}, None, errors.BadFile),
        ({"debug_discard": "true"}, SECRET, errors.Conflict),
        ({"plugins": "privatestorageio-zkapauthz-v2"}, SECRET, errors.Conflict),
        ({"expire__enabled": "true"}, SECRET, errors.BadValue),
    ],
)
@ensureDeferred
async def test_configuration_errors_stop_the_node_before_it_is_built(
    folder: Callable[..., Path],
    changes: dict[str, str | None],
    secret: str | None,
    error: type[errors.ConfigError],
) -> None:
    basedir = folder(keys(**changes), secret=secret)
    with pytest.raises(UnknownConfigError) as caught:
        await client.create_client(str(basedir))
    assert type(caught.value) is error
    assert not (basedir / "node.pubkey").exists()
    assert not (basedir / "storage").exists()


@ensureDeferred
async def test_disabled_storage_needs_no_bucket(folder: Callable[..., Path], s3server: S3Server) -> None:
    basedir = folder(keys(s3server, enabled="false"), secret=None)
    node = await client.create_client(str(basedir))
    assert s3server.log == []
    assert list(node.services) != []
    assert not (basedir / "storage").exists()
    await stop(node)


@ensureDeferred
async def test_a_node_on_a_bucket(folder: Callable[..., Path], s3server: S3Server) -> None:
    from tahoe_s3.foolscap import S3FoolscapStorageServer
    from tahoe_s3.http import S3HTTPServer
    from tahoe_s3.server import S3StorageServer

    basedir = folder(
        keys(
            s3server,
            reserved_space="2M",
            readonly="true",
            expire__enabled="true",
            expire__mode="cutoff-date",
            expire__cutoff_date="2020-01-01",
            expire__mutable="false",
        )
    )
    node = await client.create_client(str(basedir))
    server = node.get_anonymous_storage_server()
    assert type(server) is S3StorageServer
    assert node.get_anonymous_storage_server() is server
    assert server.my_nodeid == node.nodeid
    assert server.reserved_space == 2_000_000
    assert server.readonly_storage is True
    checker = server.lease_checker
    assert (checker.mode, checker.cutoff_date) == ("cutoff-date", 1577836800)
    assert tuple(checker.sharetypes_to_expire) == ("immutable",)
    assert type(client.FoolscapStorageServer(server)) is S3FoolscapStorageServer
    assert type(protocol_switch.HTTPServer(None, server, b"swissnum")) is S3HTTPServer
    assert client.StorageServer is StorageServer
    assert "owner.json" in s3server.bucket.objects
    assert (basedir / "permutation-seed").exists()
    await stop(node)


@ensureDeferred
async def test_the_web_pages_of_a_node_on_a_bucket(folder: Callable[..., Path], s3server: S3Server) -> None:
    basedir = folder(keys(s3server, s3__prefix="grids/storage1"))
    config = basedir / "tahoe.cfg"
    config.write_text(config.read_text().replace("[storage]", "web.port = tcp:0:interface=127.0.0.1\n[storage]"))
    node = await client.create_client(str(basedir))
    node.get_anonymous_storage_server()
    root = node.getServiceNamed("webish").root
    request = DummyRequest([b""])
    request.args, request.dont_apply_extra_processing = {b"t": [b"json"]}, True
    page = storage.StorageStatus(node.getServiceNamed("storage"), "as web.root does it")
    report = json.loads(page.render(request))["tahoe_s3"]
    assert (report["bucket"], report["prefix"]) == ("bucket", "grids/storage1/")
    counted = {name: row["requests"] for name, row in report["operations"].items()}
    assert counted == s3server.count(), "also those above the prefix"
    request.args = {b"t": [b"openmetrics"]}
    assert b"\ntahoe_s3_bucket_usable 1\n" in root.children[b"statistics"].render(request)
    await stop(node)


@ensureDeferred
async def test_the_bucket_is_closed_when_the_node_cannot_be_built(
    folder: Callable[..., Path], s3server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tahoe_s3 import server

    opened = []
    open_storage = server.open_storage

    def remember(*args: Any, **kwargs: Any) -> Any:
        return open_storage(*args, **kwargs).addCallback(lambda store: opened.append(store) or store)

    monkeypatch.setattr(server, "open_storage", remember)
    with pytest.raises(ValueError, match="lots"):
        await client.create_client(str(folder(keys(s3server, reserved_space="lots"))))
    (store,) = opened
    assert store.is_closed


@ensureDeferred
async def test_a_node_made_by_hand_says_so(folder: Callable[..., Path]) -> None:
    config = client.read_config(str(folder(keys())), "client.port")

    class ByHand(client._Client):  # type: ignore[misc]
        def __init__(self) -> None:
            self.config = config

    with pytest.raises(errors.NotPrepared):
        ByHand().get_anonymous_storage_server()
    assert isinstance(errors.NotPrepared(), UnknownConfigError)


def test_an_unknown_argument_of_a_later_tahoe_is_refused() -> None:
    factory = plugin._ServerFactory("storage", None)  # type: ignore[arg-type]
    assert factory.name == "storage"
    with pytest.raises(
        errors.UnsupportedTahoe, match="gives its storage server the unknown argument frobnicate"
    ):
        factory("/nowhere", b"x" * 20, reserved_space=0, frobnicate=1)


def test_an_extension_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("tahoe_s3.")]:
        if name in ("tahoe_s3.server", "tahoe_s3._native"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tahoe_s3.server", None)
    with pytest.raises(errors.BrokenInstall, match="tahoe-s3 does not load in this virtualenv"):
        plugin._load("server")


@ensureDeferred
async def test_another_nodes_bucket_is_refused(folder: Callable[..., Path], s3server: S3Server) -> None:
    first = await client.create_client(str(folder(keys(s3server))))
    with pytest.raises(errors.OwnedByAnother) as caught:
        await client.create_client(str(folder(keys(s3server))))
    owner = first.get_long_tubid()
    assert f"which belongs to the node {owner.decode() if isinstance(owner, bytes) else owner}" in str(
        caught.value
    )
    await stop(first)


def _tahoe_run(basedir: Path) -> tuple[int, str]:
    node = Node(basedir)
    node.launch()
    return node.wait_ended()


def _told(output: str) -> str:
    """The one sentence of a start that failed; there must be nothing else between heading and end."""
    assert "Traceback" not in output
    _, found, rest = output.partition("Configuration error:\n")
    assert found, output
    lines = [line for line in rest.splitlines() if line and "twisted" not in line]
    assert len(lines) == 1, output
    return lines[0]


@pytest.fixture(scope="module")
def made_node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    basedir = tmp_path_factory.mktemp("run") / "node"
    port, location = free_endpoint()
    create("node", basedir, "--listen=tcp", f"--port={port}", f"--location={location}", "--webport=none")
    return basedir


def _configure(basedir: Path, server: S3Server, **changes: str | None) -> Node:
    node = Node(basedir)
    node.use_s3(S3Backend(server.url, "bucket", "AKIDTESTTEST", SECRET))
    node.set_options("storage", {name.replace("__", "."): value for name, value in changes.items()})
    return node


@ensureDeferred
async def test_tahoe_run_prints_one_sentence(made_node: Path, s3server: S3Server) -> None:
    node = _configure(made_node, s3server, s3__buket="x")
    status, output = await deferToThread(_tahoe_run, made_node)
    assert status == 1
    assert _told(output) == (
        "[storage]s3.buket in tahoe.cfg is not a key of tahoe-s3; write s3.bucket, the nearest one that is, or "
        "remove the line."
    )
    node.set_options("storage", {"s3.buket": None, "backend": "cloud.s4"})
    status, output = await deferToThread(_tahoe_run, made_node)
    assert status == 1
    assert _told(output).startswith("[storage]backend in tahoe.cfg is 'cloud.s4'")
    assert s3server.log == []


@ensureDeferred
async def test_tahoe_run_prints_what_the_bucket_says(made_node: Path, s3server: S3Server) -> None:
    node = _configure(made_node, s3server, s3__bucket="no-such-bucket")
    status, output = await deferToThread(_tahoe_run, made_node)
    assert status == 1
    assert _told(output).startswith(
        "[storage]s3.bucket in tahoe.cfg is 'no-such-bucket', but http://127.0.0.1:"
    )
    node.set_options("storage", {"s3.bucket": "bucket"})
    node.write_private("s3secret", "not-the-secret")
    status, output = await deferToThread(_tahoe_run, made_node)
    assert status == 1
    assert "(SignatureDoesNotMatch)" in _told(output)
    assert "not-the-secret" not in output
