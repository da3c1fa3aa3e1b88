# SPDX-License-Identifier: GPL-2.0-or-later
"""Every entry point of the extension, with calls that succeed and calls that fail, for the leak checks.

`CASES` maps the name of an entry point ("sign", "Engine.submit", "Window.ready") to the calls that try it. A call
leaves nothing behind: what it makes is gone when it returns or raises. `found()` lists the entry points that the
module really has, so that one without calls is noticed.
"""
from __future__ import annotations

import os
import select
import subprocess
import sys
import types
from typing import Any, Callable

from tahoe_s3 import _native

from .processes import ELSEWHERE, environment

Call = Callable[["Scene"], object]
CASES: dict[str, list[Call]] = {}
EXCEPTIONS = ("EngineError", "EngineForked", "EngineClosed", "QueueFull", "BudgetExhausted")
ROWS: dict[str, int] = {"Entry": 5, "Page": 4, "Upload": 3, "Uploads": 3, "Failure": 7, "Event": 16, "FileRegion": 3,
                        "ErrorDocument": 6}
"""The named tuples, and how many fields they have."""

LISTING = b"""<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>
<Contents><Key>p/\xc3\xa9b</Key><Size>1</Size><ETag>"e"</ETag><LastModified>2023-01-01T00:00:00Z</LastModified>
<StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/a</Key><Size>2</Size><LastModified>2023-01-01T00:00:00Z</LastModified></Contents>
<CommonPrefixes><Prefix>p/c/</Prefix></CommonPrefixes></ListBucketResult>"""
ERROR = b"<Error><Code>NoSuchKey</Code><Message>m</Message><RequestId>r</RequestId><HostId>h</HostId></Error>"
ANSWERS: dict[str, tuple[str, bytes]] = {
    "bytes": ("200 OK", b"0123456789"),
    "list": ("200 OK", LISTING),
    "deleted": ("200 OK", b"<DeleteResult><Deleted><Key>p/a</Key></Deleted><Error><Key>p/b</Key>"
                          b"<Code>AccessDenied</Code></Error></DeleteResult>"),
    "create": ("200 OK", b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"),
    "complete": ("200 OK", b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'),
    "copy": ("200 OK", b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>'),
    "uploads": ("200 OK", b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
                          b"<NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>p/a</Key><UploadId>u</UploadId>"
                          b"<Initiated>2023-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>"),
    "none": ("200 OK", b""),
    "error": ("404 Not Found", ERROR),
    "html": ("200 OK", b"<html>no listing</html>"),
}
"""By the key that is asked for: what the server process (below) says."""


class Scene:
    """An engine, and a server in another process: failing allocations are of this process alone."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-m", "tests.native.entry_points"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=ELSEWHERE, env=environment())
        assert self._server.stdout is not None
        self.url = self._server.stdout.readline().strip()
        self.engine = self.make()
        self.window = self.engine.window(100)
        self.closed_window = self.engine.window(1)
        self.closed_window.close()
        self.closed = self.make()
        self.closed.close()
        self.file = os.memfd_create("body")
        os.truncate(self.file, 1000)

    def make(self, **changes: Any) -> _native.Engine:
        values: dict[str, Any] = {"endpoint": self.url, "region": "us-east-1", "bucket": "bucket", "max_queue": 1,
                                  "max_connections": 4, "buffer_budget_bytes": 1 << 20, **changes}
        engine = _native.Engine(**values)
        engine.set_credentials("AKID", b"secret")
        return engine

    def done(self) -> list[_native.Event]:
        """Waits for one event, and takes it."""
        while True:
            assert select.select([self.engine.fileno()], [], [], 10)[0]
            events = self.engine.drain()
            if events:  # the descriptor may be readable once for nothing
                return events

    def settle(self) -> None:
        """Takes what a failed call may have left behind."""
        while self.engine.stats()["queued"] + self.engine.stats()["in_flight"] + self.engine.stats()["undrained"]:
            select.select([self.engine.fileno()], [], [], 0.1)
            try:
                self.engine.drain()
            except MemoryError:
                continue

    def close(self) -> None:
        self.engine.close()
        os.close(self.file)
        self._server.communicate("", timeout=10)


def found() -> set[str]:
    """The module's functions and constants, and its types' constructors, methods and attributes."""
    names: set[str] = set()
    for name, value in vars(_native).items():
        if name.startswith("__"):
            continue
        names.add(name)
        if name in ("Engine", "Window"):
            names |= {f"{name}.{member}" for member, what in vars(value).items()
                      if isinstance(what, (types.MethodDescriptorType, types.GetSetDescriptorType,
                                           types.MemberDescriptorType, types.WrapperDescriptorType))}
    return names


def case(name: str) -> Callable[[Call], Call]:
    def add(call: Call) -> Call:
        CASES.setdefault(name, []).append(call)
        return call

    return add


def cases(name: str, *calls: Call) -> None:
    CASES.setdefault(name, []).extend(calls)


# ---- functions and constants ----

SIGN: dict[str, Any] = {
    "method": "GET", "host": "h", "path": "/é", "query": [("a", "b")], "headers": (("x-a", b"b"),),
    "payload_sha256": "UNSIGNED-PAYLOAD", "time_s": 1_700_000_000, "region": "r", "access_key_id": "a", "secret": b"s",
}
cases("sign",
      lambda _: _native.sign(**SIGN),
      lambda _: _native.sign(**{**SIGN, "secret": os.urandom(10), "service": "s3"}),
      lambda _: _native.sign(**{**SIGN, "region": ""}),
      lambda _: _native.sign(**{**SIGN, "time_s": 1 << 70}),
      lambda _: _native.sign(**{**SIGN, "query": [("a",)]}),
      lambda _: _native.sign(**{**SIGN, "query": [("a", "b")] * 1000}),
      lambda _: _native.sign(**{**SIGN, "headers": 7}),
      lambda _: _native.sign(**{**SIGN, "headers": [("a", 7)]}),
      lambda _: _native.sign(**{**SIGN, "host": "\udc80"}),
      lambda _: _native.sign(**{**SIGN, "unknown": 1}),
      lambda _: _native.sign(1),  # type: ignore[call-arg, misc]
      lambda _: _native.sign())  # type: ignore[call-arg]
cases("parse_list", lambda _: _native.parse_list(LISTING), lambda _: _native.parse_list(LISTING[:-1]),
      lambda _: _native.parse_list(ERROR), lambda _: _native.parse_list("x"))  # type: ignore[arg-type]
cases("parse_error", lambda _: _native.parse_error(ERROR), lambda _: _native.parse_error(b"<html/>"),
      lambda _: _native.parse_error(None))  # type: ignore[arg-type]
cases("LIBCURL_VERSION", lambda _: _native.LIBCURL_VERSION)
cases("TLS_VERSION", lambda _: _native.TLS_VERSION)
for _name in EXCEPTIONS:
    cases(_name, lambda _, name=_name: getattr(_native, name)("why"),
          lambda _, name=_name: str(getattr(_native, name)()))
for _name, _count in ROWS.items():
    cases(_name,
          lambda _, name=_name, count=_count: repr(getattr(_native, name)(*[object()] * count)),
          lambda _, name=_name, count=_count: getattr(_native, name)(*[object()] * (count + 1)))

# ---- Engine ----


@case("Engine")
def _new(scene: Scene) -> None:
    scene.make().close()


cases("Engine",
      lambda scene: scene.make(),
      lambda scene: scene.make(endpoint="gopher://x"),
      lambda scene: scene.make(endpoint="https://h", ca_file="/dev/null"),
      lambda scene: scene.make(endpoint="https://h", ca_file="/no/such/file"), lambda scene: scene.make(proxy="http://p:1"),
      lambda scene: scene.make(max_queue=0), lambda scene: scene.make(buffer_budget_bytes=-1),
      lambda scene: scene.make(workers=1 << 40), lambda scene: scene.make(region=None),
      lambda scene: scene.make(unknown=1), lambda _: _native.Engine())  # type: ignore[call-arg]


class Body(bytearray):
    """Not made in the call: CPython 3.12 crashes where there is no memory for a new function."""

    engine: Any


@case("Engine")
def _cycle(scene: Scene) -> None:
    """Dropped with a request under way, through the garbage collector."""
    body = Body(100)
    body.engine = scene.make(max_connections=1)
    body.engine.submit("PUT", "none", body=body)


cases("Engine.set_credentials",
      lambda scene: scene.engine.set_credentials("AKID", b"secret", None),
      lambda scene: scene.engine.set_credentials(access_key_id="AKID", secret=b"secret"),
      lambda scene: scene.engine.set_credentials("AKID", b"secret", "a\nb"),
      lambda scene: scene.engine.set_credentials("a\0", b"secret"),
      lambda scene: scene.engine.set_credentials("AKID", b"s" * 100_000),
      lambda scene: scene.engine.set_credentials("AKID", "secret"),  # type: ignore[arg-type]
      lambda scene: scene.engine.set_credentials())  # type: ignore[call-arg]
cases("Engine.fileno", lambda scene: scene.engine.fileno(), lambda scene: scene.engine.fileno(1))  # type: ignore[call-arg]
cases("Engine.region", lambda scene: scene.engine.region())
cases("Engine.stats", lambda scene: scene.engine.stats())
cases("Engine.close", lambda scene: scene.closed.close(), lambda scene: scene.make().close())
cases("Engine.window",
      lambda scene: scene.engine.window(1000).close(), lambda scene: scene.engine.window(1000),
      lambda scene: scene.engine.window(1000, whole=True).close(), lambda scene: scene.engine.window(1000, whole=True),
      lambda scene: scene.engine.window(1 << 30, whole=True), lambda scene: scene.engine.window(0, whole=True),
      lambda scene: scene.closed.window(1, whole=True), lambda scene: scene.engine.window(1, whle=1),  # type: ignore[call-arg]
      lambda scene: scene.engine.window(0), lambda scene: scene.engine.window(-1),
      lambda scene: scene.engine.window(1 << 30), lambda scene: scene.engine.window("1"),  # type: ignore[arg-type]
      lambda scene: scene.closed.window(1))
cases("Engine.cancel", lambda scene: scene.engine.cancel(1), lambda scene: scene.engine.cancel(1 << 64),
      lambda scene: scene.engine.cancel("1"))  # type: ignore[arg-type]
cases("Engine.drain", lambda scene: scene.engine.drain(), lambda scene: scene.engine.drain(0),
      lambda scene: scene.closed.drain(), lambda scene: scene.engine.drain("1"),  # type: ignore[arg-type]
      lambda scene: scene.engine.drain(1, 2))  # type: ignore[call-arg]


def _parse(kind: str, **options: Any) -> Call:
    def call(scene: Scene) -> None:
        scene.engine.submit("POST" if kind == "deleted" else "GET", kind, **{"parse": kind, **options})
        (event,) = scene.done()
        assert event.failure is None, event

    return call


for _kind in ("bytes", "list", "deleted", "create", "complete", "copy", "uploads", "none"):
    cases("Engine.drain", _parse(_kind))
    cases("Engine.submit", _parse(_kind, strip="p/"))


@case("Engine.drain")
def _failure(scene: Scene) -> None:
    scene.engine.submit("GET", "error", parse="list")
    (event,) = scene.done()
    assert event.failure is not None


@case("Engine.drain")
def _not_a_listing(scene: Scene) -> None:
    scene.engine.submit("GET", "html", parse="list", attempts=1)
    (event,) = scene.done()
    assert event.failure is not None


@case("Engine.submit")
def _with_everything(scene: Scene) -> None:
    scene.engine.submit("PUT", "é\udc80", query=[("a", b"b")], headers=(("x-amz-meta-a", "b"),), body=bytearray(500),
                        priority=2, attempts=1, first_byte_ms=5000, stall_ms=5000, deadline_ms=5000, strip="x",
                        max_answer_bytes=10, offset=0, expect_etag=None)
    scene.done()


@case("Engine.submit")
def _from_a_file(scene: Scene) -> None:
    scene.engine.submit("PUT", "none", body=_native.FileRegion(scene.file, 0, 1000))
    scene.done()


@case("Engine.submit")
def _into_a_window(scene: Scene) -> None:
    window = scene.engine.window(10)
    scene.engine.submit("GET", "bytes", into=window, attempts=1)
    scene.done()


@case("Engine.submit")
def _into_a_window_taken_whole(scene: Scene) -> None:
    window = scene.engine.window(10, whole=True)
    scene.engine.submit("GET", "bytes", into=window, attempts=1)
    scene.done()
    window.read(0, window.ready)


@case("Engine.submit")
def _too_many(scene: Scene) -> None:
    try:
        while True:
            scene.engine.submit("GET", "none")
    except _native.QueueFull:
        scene.settle()
        raise


for _options in (
    {"parse": "unknown"}, {"parse": 1}, {"body": 7}, {"body": memoryview(bytes(10))[::2]}, {"into": 7}, {"offset": -1},
    {"priority": 3}, {"attempts": 0}, {"attempts": "1"}, {"headers": [("Host", "x")]}, {"query": [("a", 1)]},
    {"query": [("a", "b")] * 65}, {"expect_etag": "a\0"}, {"strip": 7}, {"strip": "\ud800"}, {"unknown": 1},
    {"body": _native.FileRegion(-1, 0, 0)}, {"body": _native.FileRegion(10_000, 0, 1)},
    {"body": _native.FileRegion("x", 0, 0)},  # type: ignore[arg-type]
    {"max_answer_bytes": 1 << 40}, {"deadline_ms": 1 << 40},
):
    cases("Engine.submit", lambda scene, options=_options: scene.engine.submit("PUT", "k", **options))
cases("Engine.submit",
      lambda scene: scene.engine.submit("PATCH", "k"),  # type: ignore[arg-type]
      lambda scene: scene.engine.submit("GET", "k" * 2000), lambda scene: scene.engine.submit("GET", "\ud800"),
      lambda scene: scene.engine.submit("GET", 7),  # type: ignore[arg-type]
      lambda scene: scene.engine.submit("GET", "k", into=scene.closed_window),
      lambda scene: scene.engine.submit("GET", "k", method="GET"),  # type: ignore[misc]
      lambda scene: scene.engine.submit("GET"), lambda scene: scene.engine.submit(*"abc"),  # type: ignore[call-arg, arg-type]
      lambda scene: scene.closed.submit("GET", "k"))

# ---- Window ----

cases("Window", lambda _: _native.Window())
cases("Window.size", lambda scene: scene.window.size, lambda scene: setattr(scene.window, "size", 1))
cases("Window.ready", lambda scene: scene.window.ready, lambda scene: scene.closed_window.ready)
cases("Window.arm", lambda scene: scene.window.arm(0), lambda scene: scene.window.arm(50),
      lambda scene: scene.window.arm(101), lambda scene: scene.window.arm(-1), lambda scene: scene.closed_window.arm(0),
      lambda scene: scene.window.arm("1"))  # type: ignore[arg-type]
cases("Window.read", lambda scene: scene.window.read(0, 0), lambda scene: scene.window.read(1, 1),
      lambda scene: scene.window.read(1), lambda scene: scene.window.read(0, "1"),  # type: ignore[call-arg, arg-type]
      lambda scene: scene.closed_window.read(0, 0))
cases("Window.close", lambda scene: scene.closed_window.close(), lambda scene: scene.engine.window(5).close())
cases("Window.__repr__", lambda scene: repr(scene.window), lambda scene: repr(scene.closed_window))


@case("Window.read")
def _read(scene: Scene) -> None:
    window = scene.engine.window(10)
    scene.engine.submit("GET", "bytes", into=window)
    window.arm(5)
    scene.settle()
    assert window.read(0, window.ready) == b"0123456789"[: window.ready]


@case("_stop_engines")
def _stop(_: Scene) -> None:
    """In a process of its own, since nothing can be made after it: see test_leaks.py."""


def main() -> None:
    """The server: answers by the last part of the path until its input ends."""
    from .scripted import ScriptedServer, answer

    def respond(what: str, _body: bytes) -> bytes:
        key = what.partition("?")[0].rpartition("/")[2]
        status, body = ANSWERS.get(key, ANSWERS["none"])
        return answer(body, status=status, headers='ETag: "e"\r\nx-amz-request-id: R\r\n')

    server = ScriptedServer(respond)
    print(server.url, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
