# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of a few MiB that a test can fill up: a real one where mounting is allowed, and one that is only pretended.

    with MountedDisk(folder, size_bytes) as disk: ...       # a tmpfs; CannotMount where this process may not
    disk = PretendedDisk(folder, size_bytes, monkeypatch)   # the writes of share files and copies raise ENOSPC
    disk.leave(4096)                                        # another program takes all but so many bytes
    disk.leave(None)                                        # and gives them back

Owner: one test.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from allmydata.storage.immutable import ShareFile
from allmydata.storage.mutable import MutableShareFile
from allmydata.util import fileutil

from tahoe_s3.store import mutable

BALLAST = "of another program"


class CannotMount(Exception):
    """This process may not mount a file system; the text says what it was told."""


class MountedDisk:
    """A tmpfs at `folder`, which is made."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder, self._size_bytes = folder, size_bytes

    def __enter__(self) -> MountedDisk:
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self.folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise CannotMount(str(error)) from None
        if done.returncode:
            raise CannotMount(done.stderr.partition("\n")[0])
        return self

    def __exit__(self, *_: object) -> None:
        if subprocess.run(["umount", str(self.folder)], stderr=subprocess.DEVNULL).returncode:
            # A test that failed has left files open: it goes when they are closed.
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def leave(self, free_bytes: int | None) -> None:
        ballast = self.folder / BALLAST
        ballast.unlink(missing_ok=True)
        if free_bytes is not None and self.free_bytes > free_bytes:
            ballast.write_bytes(bytes(self.free_bytes - free_bytes))


class PretendedDisk:
    """Counts the files below `folder`, and refuses what would be too much. The index counts for nothing."""

    def __init__(self, folder: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._size_bytes = folder, size_bytes
        self._ballast_bytes = 0
        folder.mkdir(parents=True)

        def written(_self: Any, _offset: int, data: bytes) -> int:
            return len(data)

        def written_vector(_self: Any, vectors: Any, _new_length: Any) -> int:
            return sum(len(data) for _, data in vectors)

        for place, name, size in (
            (ShareFile, "write_share_data", written),
            (MutableShareFile, "writev", written_vector),
            (mutable, "copy_file", lambda source, target: source.stat().st_size),
            (Path, "write_bytes", lambda path, data: len(data) if folder in path.parents else 0),
        ):
            monkeypatch.setattr(place, name, self._refusing(getattr(place, name), size))
        monkeypatch.setattr(fileutil, "get_disk_stats", self._stats)

    def __enter__(self) -> PretendedDisk:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was mounted."""

    @property
    def free_bytes(self) -> int:
        files = {(found.st_ino, found.st_blocks * 512) for found in map(os.lstat, self._files())}
        return max(0, self._size_bytes - self._ballast_bytes - sum(size for _, size in files))

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("index.")]

    def leave(self, free_bytes: int | None) -> None:
        self._ballast_bytes = 0
        self._ballast_bytes = 0 if free_bytes is None else max(0, self.free_bytes - free_bytes)

    def _refusing(self, write: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def refusing(*arguments: Any, **keywords: Any) -> Any:
            if size(*arguments, **keywords) > self.free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*arguments, **keywords)

        return refusing

    def _stats(self, _folder: str, reserved_space: int = 0) -> dict[str, int]:
        free = self.free_bytes
        return {
            "total": self._size_bytes, "free_for_root": free, "free_for_nonroot": free,
            "used": self._size_bytes - free, "avail": max(0, free - reserved_space),
        }  # fmt: skip
