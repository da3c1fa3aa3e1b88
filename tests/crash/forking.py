# SPDX-License-Identifier: GPL-2.0-or-later
"""A Python that has imported everything and forks one node after the other, so that a node's start takes no second.

    python -m tests.crash.forking

Reads orders, one line of JSON each (node.py says what is in one), from standard input. For each it forks a node and,
when that has ended, writes one line of JSON: its wait status. It ends with its standard input.

Before a fork there is no engine, no thread and no running reactor. The poll reactor is chosen since it holds nothing in
the kernel that parent and child would share, as epoll's does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import traceback


def main() -> None:
    from twisted.internet import pollreactor

    pollreactor.install()
    from . import node

    node.preload()
    gc.collect()
    gc.freeze()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        assert threading.active_count() == 1, threading.enumerate()
        pid = os.fork()
        if pid == 0:
            try:
                node.run(order)
            except BaseException:
                traceback.print_exc()
                os._exit(70)
            os._exit(0)
        print(json.dumps({"ended": os.waitpid(pid, 0)[1]}), flush=True)


if __name__ == "__main__":
    main()
