# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving a node's shares from disk to bucket and back is a plain copy of its storage folder's shares, with the commands
of docs/moving.rst just as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.grid import Grid, StorageNode, dump_share
from ..support.nodes import S3Backend
from ..support.page import Page, Shell
from ..support.services import Service, files_below
from .stored_files import StoredFiles

PAGE = Page(Path(__file__).resolve().parents[2] / "docs" / "moving.rst")
SHARES = (2, 1, 4)


class Files(StoredFiles):
    """What was stored, and what must come back."""

    def change_all(self) -> None:
        """Every mutable file changes, and leases are renewed on the others."""
        super().change_all()
        self.renew(self.immutable)

    def restart(self, node: StorageNode) -> None:
        node.start()
        self.client.wait_connected(1)


@pytest.mark.timeout(240)
def test_from_disk_to_bucket_and_back(seaweedfs: Service, tmp_path: Path) -> None:
    with Grid(tmp_path / "grid") as grid:
        node = grid.add_storage("storage")
        client = grid.add_client("client", force_foolscap=False, shares=SHARES)
        files = Files(client, 100, 1_500_000)
        node.stop()
        client.wait_connected(0)
        backend = S3Backend.of(seaweedfs)
        shell = Shell(tmp_path, {**seaweedfs.aws_variables(), "NODE": str(node.folder), "BUCKET": backend.bucket})
        on_disk = node.storage_dir / "shares"
        unfinished = on_disk / "incoming" / "aa" / "aaaaaaaaaaaaaaaaaaaaaaaaaa" / "0"
        unfinished.parent.mkdir(parents=True)
        unfinished.write_bytes(b"never finished")
        copy, move_away = PAGE.commands("From disk to the bucket")
        shell.run(copy)
        copied = len(seaweedfs.objects(backend.bucket))
        assert copied >= 4 * (2 + 2 + 3 + 1)
        assert copied == len(list(files_below(on_disk))) - 1, "all but what was never finished"

        # The shares on disk would vanish from the grid, so the node refuses to start beside them.
        node.use_s3(backend)
        node.launch()
        status, said = node.wait_ended()
        assert status == 1
        assert f"The folder {node.storage_dir} holds shares of the disk backend" in said
        assert "Traceback" not in said
        shell.run(move_away)

        files.restart(node)
        files.read_all()
        files.change_all()
        files.store(700_000)
        files.read_all()
        node.stop()
        client.wait_connected(0)

        # And back: a copy of the objects, and the keys taken out of tahoe.cfg.
        for command in PAGE.commands("From the bucket to disk"):
            shell.run(command)
        assert len(list(files_below(on_disk))) == copied + 4
        node.use_disk()
        files.restart(node)
        files.read_all()
        files.change_all()
        files.read_all()
        for path in sorted(on_disk.rglob("*"))[-3:]:
            if path.is_file():
                assert "verify-cap: URI:" in dump_share(path)
