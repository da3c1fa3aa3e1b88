# SPDX-License-Identifier: GPL-2.0-or-later
"""What Tahoe's tests need to run on busy machines and on Pythons that are newer than they are.

Connections: five nodes and their clients share one process in SystemTestMixin, and on a busy machine the TLS handshakes
of dozens of connections at once take longer than the second that Tahoe's tests allow; what fails then is the test's
client, which takes that server for one without shares. The limit stays below the ten seconds that the tests' end waits.

Names: Python 3.12 took failUnlessRaises and its like from unittest. Tahoe's own TestCases bring back those that its
tests call, but for that one.
"""

from __future__ import annotations

from typing import Any

from allmydata.test.common import AsyncTestCase, SyncTestCase
from allmydata.test.common_system import SystemTestMixin

LIMIT_S = 8


def install() -> None:
    """Patches this process; there is no way back."""
    _allow_for_busy_machines()
    for case in (SyncTestCase, AsyncTestCase):
        if not hasattr(case, "failUnlessRaises"):
            case.failUnlessRaises = case.assertRaises


def _allow_for_busy_machines() -> None:
    original = SystemTestMixin._got_new_http_connection_pool

    def got_new_pool(self: SystemTestMixin, pool: Any) -> None:
        from twisted.internet import reactor

        original(self, pool)
        get = pool.getConnection

        def get_connection(*args: Any, **kwargs: Any) -> Any:
            return get(*args, **kwargs).addTimeout(LIMIT_S, reactor)

        if hurried:
            pool.getConnection = get_connection

    hurried = SystemTestMixin.REDUCE_HTTP_CLIENT_TIMEOUT
    SystemTestMixin.REDUCE_HTTP_CLIENT_TIMEOUT = False
    SystemTestMixin._got_new_http_connection_pool = got_new_pool
