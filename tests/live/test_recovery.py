# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/operation.rst as an operator follows it: its commands run just as they stand there, in bash, with `tahoe`, `aws`
and SeaweedFS; then a client reads back all its files, renews its leases and changes its mutable files.

The one thing done besides the commands is what the page says in words: tahoe.cfg is edited, Ctrl-C is pressed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.grid import ClientNode, Grid, RequestFailed, StorageNode
from ..support.nodes import S3Backend, free_endpoint, wait_until
from ..support.page import Page, Running, Shell
from ..support.services import SeaweedFS
from .stored_files import StoredFiles

PAGE = Page(Path(__file__).resolve().parents[2] / "docs" / "operation.rst")
RUN = 'tahoe run "$NODE"'
PREFIX = "grids/one/"
SHARES = (2, 1, 4)
START_LIMIT_S = 120


class Files(StoredFiles):
    """What a client has stored, and what must come back."""

    def renew_all(self) -> None:
        self.renew([*self.immutable, *self.mutable, self.folder])


class Operator:
    """Somebody at the shell of the machine that the node runs on."""

    def __init__(self, grid: Grid, service: SeaweedFS, client: ClientNode, bucket: str) -> None:
        self.grid, self.service, self.client, self.bucket = grid, service, client, bucket
        self.node: StorageNode | None = None
        self.running: Running | None = None
        self.shell = Shell(
            grid.folder,
            {
                **service.aws_variables(),
                "BACKUP": str(grid.folder / "tahoe-keys.tar.gz"),
                "BUCKET": bucket,
                "PREFIX": PREFIX,
            },
        )

    def sit_at(self, node: StorageNode) -> None:
        self.node = node
        self.shell.set("NODE", str(node.folder))

    @property
    def log(self) -> Path:
        assert self.node is not None
        return self.grid.folder / f"{self.node.folder.name}.log"

    def follow(self, title: str) -> None:
        """Every command of a section, in order; when one starts the node, it serves before the next."""
        for command in PAGE.commands(title):
            self.type(command)

    def type(self, command: str) -> None:
        if command != RUN:
            self.shell.run(command)
            return
        node = self.node
        assert node is not None
        # A node.url from before would look as if the node served already.
        assert not (node.folder / "node.url").exists() or (node.folder / "node.url").unlink() is None
        running = self.running = self.shell.begin(command, self.log)

        def serves() -> bool:
            assert running.poll() is None, f"the node ended\n{self.said()}"
            return node.is_ready()

        wait_until(serves, limit_s=START_LIMIT_S, what="the node to serve", said=self.said)
        self.client.wait_connected(1)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def press_ctrl_c(self) -> None:
        assert self.running is not None
        self.running.press_ctrl_c()
        self.running = None
        self.client.wait_connected(0)

    def lose_power(self) -> None:
        assert self.running is not None
        self.running.kill()
        self.running = None

    def refused(self) -> str:
        """Starts the node, which must end by itself with status 1; what it said."""
        running = self.running = self.shell.begin(RUN, self.log)
        assert running.wait(START_LIMIT_S) == 1, self.said()
        self.running = None
        return " ".join(self.said().split())


def new_node(grid: Grid, service: SeaweedFS, bucket: str, name: str) -> StorageNode:
    backend = S3Backend(
        service.url, bucket, service.access_key_id, service.secret, options={"prefix": PREFIX.rstrip("/")}
    )
    return grid.create_storage(name, backend)


@pytest.fixture
def operator(seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[Operator]:
    """At a node with a client that has stored nothing yet."""
    with Grid(tmp_path / "grid") as grid:
        client = grid.add_client("client", force_foolscap=False, shares=SHARES, servers=0)
        bucket = seaweedfs.make_bucket()
        operator = Operator(grid, seaweedfs, client, bucket)
        operator.sit_at(new_node(grid, seaweedfs, bucket, "storage"))
        try:
            operator.type(RUN)
            yield operator
        finally:
            if operator.running is not None:
                operator.running.kill()


def test_the_page_names_all_that_is_to_be_set() -> None:
    named = PAGE.variables("Operating a node")
    assert named == {
        "NODE", "BACKUP", "BUCKET", "PREFIX", "URL",
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION",
    }  # fmt: skip


@pytest.mark.timeout(300)
def test_everything_comes_back(operator: Operator) -> None:
    grid, service, client = operator.grid, operator.service, operator.client
    old = operator.node
    assert old is not None
    files = Files(client, 60_000)

    # A backup of before, and then everything goes on: files, leases, a restart that counts the announcements on.
    operator.follow("What to back up")
    files.store(1_500_000)
    operator.press_ctrl_c()
    operator.type(RUN)
    files.change_all()
    files.renew_all()
    operator.lose_power()
    in_bucket = service.objects(operator.bucket, PREFIX)

    # The machine is lost, with its disk; the new one has another address.
    shutil.rmtree(old.folder)
    client.wait_connected(0)
    replaced = StorageNode(grid.folder / "new machine")
    operator.sit_at(replaced)
    commands = PAGE.commands("The machine is lost")
    assert commands[-1] == RUN
    port, location = free_endpoint()
    for number, command in enumerate(commands):
        operator.type(command)
        if number == 0:
            replaced.set_options("node", {"tub.port": port, "tub.location": location})
    files.read_all()
    files.renew_all()
    files.change_all()
    files.store(700_000)
    assert set(in_bucket) <= set(service.objects(operator.bucket, PREFIX))

    # The local folder is lost, and with it nothing.
    operator.press_ctrl_c()
    operator.follow("The local storage folder is lost")
    files.read_all()
    files.renew_all()
    files.change_all()

    # New credentials, which may do less.
    commands = PAGE.commands("A normal day")
    operator.shell.run(commands[0], typed=service.limited_secret + "\n")
    assert replaced.private("s3secret").stat().st_mode & 0o777 == 0o600
    replaced.set_options("storage", {"s3.access_key_id": service.limited_key_id})
    operator.press_ctrl_c()
    operator.type(RUN)
    files.read_all()
    files.change_all()
    operator.press_ctrl_c()

    # Another bucket and another prefix.
    there = service.make_bucket()
    operator.shell.set("NEW", f"{there}/elsewhere")
    operator.type(commands[1])
    replaced.set_options("storage", {"s3.bucket": there, "s3.prefix": "elsewhere"})
    operator.type(RUN)
    files.read_all()
    files.renew_all()
    files.change_all()


@pytest.mark.timeout(200)
def test_another_node_takes_the_bucket_over(operator: Operator) -> None:
    grid, service, client = operator.grid, operator.service, operator.client
    old = operator.node
    assert old is not None
    files = Files(client, 60_000)
    operator.lose_power()
    owner = (old.folder / "my_nodeid").read_text().strip()
    shutil.rmtree(old.folder)
    operator.sit_at(new_node(grid, service, operator.bucket, "newcomer"))
    said = operator.refused()
    assert f"belongs to the node {owner}" in said
    assert f"delete the object {PREFIX}owner.json" in said
    operator.follow("The keys are lost too")
    files.read_all()
    files.renew_all()
    with pytest.raises(RequestFailed) as refused:
        files.client.overwrite(next(iter(files.mutable)), b"changed")
    assert "passed the wrong write enabler" in refused.value.text
    # What the page tells to do with them.
    for body in list(files.mutable.values()):
        files.mutable[client.put(body, kind="SDMF")] = body
    files.store(5000)
    files.read_all()
