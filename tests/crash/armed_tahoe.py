# SPDX-License-Identifier: GPL-2.0-or-later
"""The program `tahoe`, in a process that is armed: python -m tests.crash.armed_tahoe POINT TIMES FOLDER ARGUMENT...

POINT may be "none". What is noted in FOLDER says that it was the point which killed it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tahoe_s3.store import points

from .node import Killer


def main() -> None:
    name, times, folder, *arguments = sys.argv[1:]
    killer = Killer(Path(folder))
    if name != "none":
        killer.arm([name, int(times)])
    points.on_reach = killer.reach
    # The runner takes its default arguments when it is imported.
    sys.argv = ["tahoe", *arguments]
    from allmydata.scripts.runner import run

    sys.exit(run())


if __name__ == "__main__":
    main()
