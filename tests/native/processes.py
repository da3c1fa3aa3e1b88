# SPDX-License-Identifier: GPL-2.0-or-later
"""Python processes that load the same extension as this one, however it was built and preloaded."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tahoe_s3._native

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(tahoe_s3._native.__file__ or "").resolve().parents[1]
ELSEWHERE = "/"
"""Where such a process starts: it puts its folder first on the path, and that must not be one with our sources."""
KEPT = ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "PYTHONMALLOC")


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {"PYTHONPATH": f"{PACKAGES}:{ROOT}", "PATH": "/usr/bin:/bin", "TMPDIR": tempfile.gettempdir(), **kept}


def run_python(*arguments: str, limit_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter to its end."""
    return subprocess.run([sys.executable, "-X", "faulthandler", *arguments], capture_output=True, text=True,
                          timeout=limit_s, check=False, cwd=ELSEWHERE, env=environment())
