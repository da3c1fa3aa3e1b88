# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of tahoe-s3; conftest.py says how they are written."""

import signal

# Who starts the tests in the background of a shell has SIGINT ignored in them and in all that they start, where no
# node would hear of Ctrl-C, and no interpreter raise KeyboardInterrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
