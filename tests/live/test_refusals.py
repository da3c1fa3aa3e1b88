# SPDX-License-Identifier: GPL-2.0-or-later
"""What stops a start does so with one clear sentence and exit status 1: `tahoe run`, as an operator meets it.

tests/test_config.py holds each sentence; here it is seen that it reaches the operator's terminal, and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Site

from ..support.grid import Grid, StorageNode
from ..support.nodes import S3Backend
from ..support.s3server import S3Server
from ..support.services import SeaweedFS, free_ports


class Setting:
    """A configured node that never ran, and the S3 server it would use."""

    def __init__(self, server: S3Server, grid: Grid, node: StorageNode) -> None:
        self.server, self.grid, self.node = server, grid, node

    @property
    def backend(self) -> S3Backend:
        access_key_id, secret = next(iter(self.server.secrets.items()))
        return S3Backend(self.server.url, self.server.bucket_name, access_key_id, secret)

    def configure(self, changes: Mapping[str, str | None], private: Mapping[str, str | None]) -> None:
        """A right configuration with these changes to [storage] and private/; None removes."""
        self.node.use_disk()
        for name in ("s3secret", "s3usertoken", "s3producttoken"):
            self.node.private(name).unlink(missing_ok=True)
        self.node.set_options("storage", {"debug_discard": None, "plugins": None})
        self.node.use_s3(self.backend)
        self.node.set_options("storage", changes)
        for name, text in private.items():
            if text is None:
                self.node.private(name).unlink()
            else:
                self.node.write_private(name, text)

    def run(self) -> str:
        """Starts the node, which must end by itself with status 1; the one sentence that it says."""
        self.node.launch()
        status, said = self.node.wait_ended()
        assert status == 1, said
        assert "Traceback" not in said, said
        # Tahoe prints a blank line, "Configuration error:", the sentence, and a blank line.
        _, _, rest = said.partition("\nConfiguration error:\n")
        sentence, blank, _ = rest.partition("\n\n")
        assert blank, said
        assert "\n" not in sentence, sentence
        return sentence


@pytest_twisted.async_yield_fixture(scope="module")
async def node_folder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Grid, StorageNode]]:
    grid = Grid(tmp_path_factory.mktemp("refusals") / "grid", with_introducer=False)
    await deferToThread(grid.__enter__)
    yield grid, await deferToThread(grid.create_storage, "storage")
    await deferToThread(grid.stop)


@pytest.fixture
def setting(s3server: S3Server, node_folder: tuple[Grid, StorageNode]) -> Setting:
    return Setting(s3server, *node_folder)


def nothing(server: S3Server) -> None:
    """Leaves the S3 server as it is."""


def lock(server: S3Server) -> None:
    server.settings.object_lock = True


def move_region(server: S3Server) -> None:
    server.settings.region = "eu-west-1"


def set_clock(server: S3Server) -> None:
    """Refuses every request's time, whatever it is corrected to."""
    server.fail(None, status=403, code="RequestTimeTooSkewed", times=None)


@dataclass
class Case:
    """A wrong configuration or a service that cannot be used, and words of the sentence that says so."""

    name: str
    words: tuple[str, ...]
    changes: dict[str, str | None] = field(default_factory=dict)
    private: dict[str, str | None] = field(default_factory=dict)
    prepare: Callable[[S3Server], None] = nothing


CASES = [
    Case("unknown key", ("s3.buckett", "s3.bucket"), {"s3.buckett": "x"}),
    Case("unknown backend", ("cloud.s4", "cloud.s3"), {"backend": "cloud.s4"}),
    Case("keys without backend", ("s3.bucket", "backend = cloud.s3"), {"backend": None}),
    Case("no secret", ("private/s3secret",), private={"s3secret": None}),
    Case("empty secret", ("private/s3secret", "empty"), private={"s3secret": ""}),
    Case("product token alone", ("s3producttoken", "s3usertoken"), private={"s3producttoken": "p"}),
    Case("url with a path", ("s3.url", "/bucket"), {"s3.url": "https://s3.example/bucket"}),
    Case("url with a query", ("s3.url", "query"), {"s3.url": "https://s3.example?x=1"}),
    Case("url with userinfo", ("s3.url",), {"s3.url": "https://me:secret@s3.example"}),
    Case("debug_discard", ("debug_discard",), {"debug_discard": "true"}),
    Case("storage plugins", ("plugins",), {"plugins": "privatestorageio-zkapauthz-v2"}),
    Case("wrong region", ("us-east-2", "s3.region = eu-west-1"), {"s3.region": "us-east-2"}, prepare=move_region),
    Case("no such bucket", ("s3.bucket", "no-such-bucket-here"), {"s3.bucket": "no-such-bucket-here"}),
    Case("wrong secret", ("private/s3secret", "SignatureDoesNotMatch"), private={"s3secret": "wrong"}),
    Case("wrong key id", ("s3.access_key_id", "InvalidAccessKeyId"), {"s3.access_key_id": "AKIDNOBODY"}),
    Case("object lock", ("object lock",), prepare=lock),
    Case("wrong clock", ("clock",), prepare=set_clock),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@ensureDeferred
async def test_one_sentence(setting: Setting, case: Case) -> None:
    case.prepare(setting.server)
    setting.configure(case.changes, case.private)
    sentence = await deferToThread(setting.run)
    for word in case.words:
        assert word in sentence
    for secret in (setting.backend.secret, "me:secret"):
        assert secret not in setting.node.log_end()


@ensureDeferred
async def test_the_first_start_needs_an_answer(setting: Setting) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    setting.configure({"s3.url": url}, {})
    sentence = await deferToThread(setting.run)
    assert url in sentence
    assert "cannot be reached" in sentence


@ensureDeferred
async def test_something_that_is_not_s3(setting: Setting) -> None:
    from twisted.internet import reactor

    class Page(Resource):
        isLeaf = True

        def render(self, request: Any) -> bytes:
            request.setHeader("content-type", "text/html")
            return b"<html><body>It works!</body></html>"

    port = reactor.listenTCP(0, Site(Page()), interface="127.0.0.1")  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{port.getHost().port}"
    setting.configure({"s3.url": url}, {})
    sentence = await deferToThread(setting.run)
    await port.stopListening()
    assert url in sentence
    assert "not an S3 service" in sentence


@ensureDeferred
async def test_a_bucket_that_belongs_to_another_node(setting: Setting) -> None:
    """The second node refuses to start and says whose the bucket is; the first goes on undisturbed."""
    setting.configure({}, {})
    grid, second = setting.grid, setting.node
    first = await deferToThread(grid.create_storage, "first")
    first.use_s3(setting.backend)
    await deferToThread(first.start)
    owner = (first.folder / "my_nodeid").read_text().strip()
    sentence = await deferToThread(setting.run)
    assert f"belongs to the node {owner}" in sentence
    assert setting.server.bucket_name in sentence
    # Nor may it nest: below the first one's place, or (were the first one's prefix longer) above it.
    second.set_options("storage", {"s3.prefix": "inside/"})
    assert f"belongs to the node {owner}" in await deferToThread(setting.run)
    # Its own place elsewhere is fine, once the first one has one too; and after a restart the first still owns its.
    await deferToThread(first.restart)
    await deferToThread(first.stop)
    grid.nodes.remove(first)
    shutil.rmtree(first.folder)


@ensureDeferred
async def test_a_longer_prefix_that_belongs_to_another_node(setting: Setting) -> None:
    setting.configure({}, {})
    first = await deferToThread(setting.grid.create_storage, "nested")
    first.use_s3(setting.backend)
    first.set_options("storage", {"s3.prefix": "deep/inside/"})
    await deferToThread(first.start)
    for prefix in ("deep/", None):
        setting.node.set_options("storage", {"s3.prefix": prefix})
        assert "deep/inside/owner.json" in await deferToThread(setting.run)
    await deferToThread(first.stop)


def test_no_such_bucket_on_a_real_service(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    with Grid(tmp_path / "grid", with_introducer=False) as grid:
        backend = S3Backend(seaweedfs.url, "not-made", seaweedfs.limited_key_id, seaweedfs.limited_secret)
        node = grid.create_storage("storage", backend)
        node.launch()
        status, said = node.wait_ended()
        assert status == 1
        assert "Traceback" not in said
        assert "not-made" in said
