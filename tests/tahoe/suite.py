# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs some of Tahoe's own tests under trial, in this process: on stock Tahoe, or with every node on a
bucket.

    python -m tests.tahoe.suite --folder F [--service URL,KEY_ID,SECRET,REGION] NAME...

Its exit status and its last lines are trial's. run.py starts it, one process a class of tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where trial makes its temporary folder")
    parser.add_argument("--service", help="URL,KEY_ID,SECRET,REGION of an S3 service; without it, stock Tahoe")
    parser.add_argument("names", nargs="+")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    # Tahoe's HTTP client and its command line read these variables; the tests talk to 127.0.0.1 only.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    if given.service is None:
        from .stock import require_stock

        require_stock()
    else:
        from .on_s3 import install

        install(*given.service.split(","))
    from .harness import install as mend_harness

    mend_harness()
    from twisted.scripts import trial

    temporary = str(given.folder / "_trial_temp")
    sys.argv = ["trial", "--reporter=verbose", f"--temp-directory={temporary}", *given.names]
    trial.run()


if __name__ == "__main__":
    main()
