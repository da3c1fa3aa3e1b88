# SPDX-License-Identifier: GPL-2.0-or-later
"""Subinterpreters: the import is refused with a sentence, whatever they share with the main one, which goes on."""
from __future__ import annotations

import sys

import pytest

from .processes import run_python

IMPORT = """
import sys
sys.path[:] = {path}
for _ in range(2):
    try:
        import tahoe_s3._native
    except ImportError as error:
        assert "subinterpreter" in str(error) or "does not support loading in subinterpreters" in str(error), str(error)
    else:
        raise SystemExit("imported")
"""
MAIN = """
import select, sys
from tahoe_s3._native import Engine
engine = Engine(endpoint="http://127.0.0.1:9", region="r", bucket="b")
engine.set_credentials("AKID", b"secret")
engine.submit("GET", "k", attempts=3)
code = {code!r}.replace("{{path}}", repr(sys.path))
for _ in range(3):
    {run}
    assert not failed, failed
    engine.submit("GET", "k", attempts=1)
events = []
while len(events) < 4:
    assert select.select([engine.fileno()], [], [], 10)[0]
    events += engine.drain()
assert all(event.failure.kind == "transport" for event in events), events
engine.close()
print("refused")
"""
OF_THE_LIBRARY = """try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    made = interpreters.create({})
    failed = interpreters.run_string(made, code)
    interpreters.destroy(made)"""
SHARES_THE_GIL = {(3, 12): "isolated=False", (3, 13): "'legacy'"}
WAYS = {
    "as the library makes them": OF_THE_LIBRARY.format(""),
    "with one GIL for all": OF_THE_LIBRARY.format(SHARES_THE_GIL.get(sys.version_info[:2], "")),
    "as the C API makes them": "import _testcapi; failed = _testcapi.run_in_subinterp(code)",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_subinterpreter_is_told_why_not(way: str) -> None:
    if "_testcapi" in WAYS[way]:
        pytest.importorskip("_testcapi", reason="this Python comes without CPython's own test modules")
    done = run_python("-c", MAIN.format(code=IMPORT, run=WAYS[way]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", ""), done.stderr
