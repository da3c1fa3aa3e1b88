# SPDX-License-Identifier: GPL-2.0-or-later
"""Scratch folders for read-test-write: one folder of the shape of Tahoe's storage directory for all slots.

A slot's folder is taken by the one call that holds the lock of its storage index, and given back with its files
removed. Empty folders are kept and renamed for the next slot, since removing a folder takes milliseconds on some
file systems where renaming takes microseconds.

Owner: MutableSlots. Thread: the reactor's. Limits: MAX_SPARE empty folders, and one for each two-letter prefix.
Errors: OSError from take(); what cannot be tidied is logged, and removed at the next start with all of incoming/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from allmydata.storage.common import storage_index_to_dir
from twisted.logger import Logger

MAX_SPARE = 64


class Scratch:
    """The folders below `root`, which need not exist yet."""

    log = Logger()

    def __init__(self, root: Path) -> None:
        self.sharedir = root / "shares"
        self._spare_dir = root / "spare"
        self._spare: list[Path] = []
        self._count = 0

    def take(self, storage_index: bytes) -> Path:
        """An empty folder where Tahoe's code will look for the shares of this storage index."""
        folder: Path = self.sharedir / storage_index_to_dir(storage_index)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        if self._spare:
            try:
                return self._spare.pop().rename(folder)
            except OSError as error:
                self.log.warn("cannot use a spare folder again: {error}", error=str(error))
        folder.mkdir()
        return folder

    def give_back(self, folder: Path) -> None:
        """Remove what is in a folder that was taken. It may be gone itself."""
        try:
            if not folder.exists():
                return
            for path in folder.iterdir():
                path.unlink()
            if len(self._spare) < MAX_SPARE:
                self._spare_dir.mkdir(exist_ok=True)
                self._count += 1
                self._spare.append(folder.rename(self._spare_dir / str(self._count)))
            else:
                folder.rmdir()
        except OSError as error:
            self.log.warn("cannot tidy {path}: {error}", path=str(folder), error=str(error))
