# SPDX-License-Identifier: GPL-2.0-or-later
"""What the store does with files of this machine in more than one place.

Thread: any; off_reactor() is called from the reactor's. Errors: OSError.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool

T = TypeVar("T")

#: What SQLite has beside a database's file, behind its name, while it is open or after a crash.
BESIDE_A_DATABASE = ("-wal", "-shm", "-journal")


def off_reactor(reactor: Any, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
    """Run it in the reactor's thread pool, where there is one."""
    if not hasattr(reactor, "getThreadPool"):
        return maybeDeferred(work, *arguments)
    done: Deferred[T] = deferToThreadPool(reactor, reactor.getThreadPool(), work, *arguments)
    return done


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk itself."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def delete_database(path: Path) -> None:
    """Remove all files of an SQLite database that is not open; there may be none."""
    for suffix in ("", *BESIDE_A_DATABASE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
