# SPDX-License-Identifier: GPL-2.0-or-later
"""For the tests of Tahoe's that walk storage/shares on the disk: a copy of the buckets in folders of the
same shape.

The copy lies beside the test's own folder, so no node ever sees it. What a test changes in a share file of
the copy goes back to the bucket, and the node forgets what it knew of that share, as after a change of the
bucket.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allmydata.test.test_system import SystemTest
from allmydata.util.base32 import a2b
from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from .on_s3 import Buckets


class Mirror:
    """The copies of one process's buckets."""

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets

    def refresh(self, basedir: str) -> Path:
        """Copies the shares of every node below `basedir` anew; the folder that stands for it."""
        real = Path(basedir).absolute()
        copy = real.with_name(real.name + "-mirror")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for folder, bucket in self.buckets.of_folder.items():
            if folder.parent == real:
                shares = copy / folder.name / "storage" / "shares"
                self.buckets.service.copy_out(bucket, shares, "shares/")
        return copy

    def copy_back(self, test: SystemTest, filename: str) -> None:
        """Puts one share file of a copy into its bucket."""
        path = Path(filename)
        client, _, _, prefix, storage_index, shnum = path.parts[-6:]
        node = test.clients[int(client[len("client") :])]
        folder = Path(test.getdir(client)).absolute()
        key = f"shares/{prefix}/{storage_index}/{shnum}"
        self.buckets.service.put(self.buckets.of_folder[folder], key, path.read_bytes())
        node.getServiceNamed("storage").store.share_changed(a2b(storage_index.encode()), int(shnum))


class Elsewhere:
    """A test, but for the folder that it believes to be its own."""

    def __init__(self, test: SystemTest, folder: Path) -> None:
        self._test = test
        self.basedir = str(folder)

    def getdir(self, name: str) -> str:
        return str(Path(self.basedir) / name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._test, name)


def install(buckets: Buckets) -> None:
    """Points the three helpers of SystemTest that read the disk at the copies."""
    mirror = Mirror(buckets)
    find, corrupt, runner = (
        SystemTest._find_all_shares,
        SystemTest._corrupt_mutable_share,
        SystemTest._test_runner,
    )

    def find_all_shares(self: SystemTest, basedir: str) -> Any:
        return find(self, str(mirror.refresh(basedir)))

    def corrupt_mutable_share(self: SystemTest, filename: str, which: str) -> None:
        corrupt(self, filename, which)
        mirror.copy_back(self, filename)

    def test_runner(self: SystemTest, result: Any) -> Deferred[Any]:
        found: Deferred[Any] = runner(Elsewhere(self, mirror.refresh(self.basedir)), result)
        return found

    SystemTest._find_all_shares = find_all_shares
    SystemTest._corrupt_mutable_share = corrupt_mutable_share
    SystemTest._test_runner = test_runner
