# SPDX-License-Identifier: GPL-2.0-or-later
"""The Engine type: events, windows, limits, its end, forks, the interpreter's exit."""
from __future__ import annotations

import gc
import os
import re
import select
import textwrap
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tahoe_s3 import _native
from tahoe_s3._native import Engine, Event

from .processes import run_python
from .scripted import ScriptedServer, answer

OK = answer(b"0123456789", headers='ETag: "e1"\r\nLast-Modified: Sun, 01 Jan 2023 00:00:30 GMT\r\n'
                                    "x-amz-request-id: R1\r\nx-amz-id-2: H1\r\n")


def make(url: str, **changes: Any) -> Engine:
    values: dict[str, Any] = {"endpoint": url, "region": "us-east-1", "bucket": "bucket", "path_style": True,
                              "ca_file": None, "proxy": "", "max_connections": 4, "max_queue": 8,
                              "buffer_budget_bytes": 1 << 20, **changes}
    engine = Engine(**values)
    engine.set_credentials("AKID", b"secret", None)
    return engine


def wait(engine: Engine, count: int = 1, *, limit_s: float = 10) -> list[Event]:
    """So many final events (and whatever comes between)."""
    events: list[Event] = []
    end = time.monotonic() + limit_s
    while sum(event.final for event in events) < count:
        readable, _, _ = select.select([engine.fileno()], [], [], max(0, end - time.monotonic()))
        assert readable, f"only {events}"
        events += engine.drain()
    return events


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer(lambda _what, _body: OK)
    yield made
    made.close()


@pytest.fixture
def silent() -> Iterator[ScriptedServer]:
    """Takes requests and says nothing."""
    made = ScriptedServer(lambda _what, _body: b"")
    yield made
    made.close()


def test_an_event_says_everything(server: ScriptedServer) -> None:
    engine = make(server.url)
    request = engine.submit("GET", "a key", parse="bytes")
    (event,) = wait(engine)
    assert (event.id, event.final, event.failure, event.status) == (request, True, None, 200)
    assert (event.etag, event.size, event.modified_s, event.value) == ("e1", 10, 1672531230, b"0123456789")
    assert (event.request_id, event.host_id, event.attempts) == ("R1", "H1", 1)
    assert 0 <= event.queued_us <= event.first_byte_us <= event.total_us
    assert (event.bytes_up, event.bytes_down) == (0, 10)
    assert server.seen == ["GET /bucket/a%20key"]
    assert engine.drain() == []
    engine.close()


def test_ids_are_never_repeated_and_bodies_arrive() -> None:
    bodies: list[bytes] = []
    server = ScriptedServer(lambda _what, body: bodies.append(body) or OK)  # type: ignore[func-returns-value]
    engine = make(server.url)
    ids = [engine.submit("PUT", f"k{i}", body=str(i).encode()) for i in range(8)]
    events = wait(engine, 8)
    assert sorted(event.id for event in events) == sorted(ids)
    assert len(set(ids)) == 8
    assert 0 not in ids
    assert sorted(bodies) == [str(i).encode() for i in range(8)]
    engine.close()
    server.close()


def test_a_body_is_kept_until_its_event_was_drained(server: ScriptedServer) -> None:
    engine = make(server.url)
    body = bytearray(b"x" * 100)
    engine.submit("PUT", "k", body=memoryview(body))
    with pytest.raises(BufferError):
        body.append(1)
    wait(engine)
    body.append(1)
    engine.close()


def test_a_failure_says_what_and_why() -> None:
    document = b"<Error><Code>NoSuchKey</Code><Message>It is not there</Message></Error>"
    server = ScriptedServer(lambda _what, _body: answer(document, status="404 Not Found"))
    engine = make(server.url)
    engine.submit("GET", "k", parse="bytes")
    (event,) = wait(engine)
    assert event.failure is not None
    failure = event.failure
    assert (failure.kind, failure.outcome, failure.status) == ("service", "not_applied", 404)
    assert (failure.code, failure.message) == ("NoSuchKey", "It is not there")
    assert event.value is None
    engine.close()
    server.close()


def test_bytes_count_in_all_attempts() -> None:
    busy = b"<Error><Code>SlowDown</Code><Message>Later</Message></Error>"
    answers = [answer(busy, status="503 Slow Down")] * 2 + [OK]
    server = ScriptedServer(lambda _what, _body: answers.pop(0))
    engine = make(server.url)
    engine.submit("PUT", "k", body=b"x" * 1000)
    (event,) = wait(engine)
    assert (event.failure, event.attempts) == (None, 3)
    assert (event.bytes_up, event.bytes_down) == (3000, 2 * len(busy) + 10)
    stats = engine.stats()
    assert (stats["bytes_up"], stats["bytes_down"]) == (event.bytes_up, event.bytes_down)
    engine.close()
    server.close()


def test_a_listing_is_stripped_of_its_prefix() -> None:
    def entry(key: str) -> str:
        return (f"<Contents><Key>{key}</Key><LastModified>2023-01-01T00:00:30Z</LastModified>"
                f"<ETag>e</ETag><Size>1</Size></Contents>")

    document = ("<ListBucketResult><IsTruncated>false</IsTruncated>" + entry("p/b") + entry("p/a") + entry("q/c")
                + "<CommonPrefixes><Prefix>p/x/</Prefix></CommonPrefixes></ListBucketResult>")
    server = ScriptedServer(lambda _what, _body: answer(document.encode()))
    engine = make(server.url)
    engine.submit("GET", "", query=[("list-type", "2")], parse="list", strip="p/")
    (event,) = wait(engine)
    assert isinstance(event.value, _native.Page)
    assert [e.key for e in event.value.entries] == ["a", "b"]
    assert event.value.prefixes == ["x/"]
    engine.close()
    server.close()


def test_a_window(server: ScriptedServer) -> None:
    partial = answer(b"01234", status="206 Partial Content", headers="Content-Range: bytes 0-4/10\r\nETag: e1\r\n")
    server.respond = lambda _what, _body: partial
    engine = make(server.url)
    window = engine.window(5)
    assert (window.size, window.ready) == (5, 0)
    with pytest.raises(ValueError, match="ready"):
        window.read(0, 1)
    with pytest.raises(ValueError, match="upto"):
        window.arm(6)
    assert engine.stats()["budget_used_bytes"] == 5
    engine.submit("GET", "k", into=window)
    armed = window.arm(5)
    events = wait(engine)
    assert [event.final for event in events] == [True] if armed else [False, True]
    assert window.read(1, 3) == b"123"
    assert window.read(5, 0) == b""
    for offset, length in ((0, 6), (6, 0), (-1, 1), (1 << 70, 1)):
        with pytest.raises(ValueError):
            window.read(offset, length)
    window.close()
    window.close()
    with pytest.raises(ValueError, match="closed"):
        window.arm(1)
    assert engine.stats()["budget_used_bytes"] == 0
    engine.close()


def test_a_window_taken_whole(server: ScriptedServer) -> None:
    whole = answer(b"0123456789", headers="ETag: e1\r\n")
    stalls = answer(b"0123456789", headers="ETag: e1\r\n")[:-6]
    server.respond = lambda _what, _body: whole
    engine = make(server.url)
    with pytest.raises(ValueError):
        engine.window(0, whole=True)
    window = engine.window(10, whole=True)
    assert engine.stats()["budget_used_bytes"] == 10
    engine.submit("GET", "k", into=window)
    (event,) = wait(engine)
    assert event.failure is None
    assert window.read(2, 3) == b"234"
    taken = window.read(0, 10)
    assert taken == b"0123456789"
    assert window.read(0, 10) is taken, "it was copied"
    window.close()
    assert engine.stats()["budget_used_bytes"] == 0
    assert taken == b"0123456789"

    # Shorter than the window, and stalled: what is ready is copied.
    window = engine.window(20, whole=True)
    engine.submit("GET", "k", into=window)
    assert wait(engine)[0].failure is None
    assert window.read(0, window.ready) == b"0123456789"
    server.respond = lambda _what, _body: stalls
    window = engine.window(10, whole=True)
    engine.submit("GET", "k", into=window, attempts=1, stall_ms=100)
    assert wait(engine)[0].failure is not None
    assert window.read(0, window.ready) == b"0123"
    engine.close()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_a_large_window_taken_whole_asks_for_huge_pages(server: ScriptedServer) -> None:
    body = bytes(4 << 20)
    server.respond = lambda _what, _body: answer(body, headers="ETag: e1\r\n")
    engine = make(server.url, buffer_budget_bytes=2 * len(body))
    window = engine.window(len(body), whole=True)
    engine.submit("GET", "k", into=window)
    assert wait(engine)[0].failure is None
    taken = window.read(0, len(body))
    flags = flags_of_memory(id(taken) + len(body) // 2)
    assert "hg" in flags.split(), flags
    assert taken == body
    window.close()
    engine.close()


def flags_of_memory(address: int) -> str:
    """What the kernel knows of the mapping that has the address: VmFlags of proc(5), smaps."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match("([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            is_there = int(head[1], 16) <= address < int(head[2], 16)
        elif is_there and line.startswith("VmFlags:"):
            return line
    raise AssertionError(f"nothing is mapped at {address:x}")


def test_a_window_that_is_dropped_while_it_is_filled(server: ScriptedServer) -> None:
    body = bytes(range(256)) * 4096
    server.respond = lambda _what, _body: answer(body, headers="ETag: e1\r\n")
    engine = make(server.url)
    for _ in range(20):
        window: _native.Window | None = engine.window(len(body), whole=True)
        engine.submit("GET", "k", into=window)
        window = None  # the request alone keeps its memory now
        others = [bytes(len(body)) for _ in range(4)]  # which takes that memory, were it free
        assert wait(engine)[0].failure is None
        assert all(not any(other) for other in others), "it was written into memory that was free"
    assert engine.stats()["budget_used_bytes"] == 0
    window = engine.window(len(body), whole=True)
    engine.submit("GET", "k", into=window)
    del engine
    window.close()


def test_limits(silent: ScriptedServer) -> None:
    engine = make(silent.url, max_connections=1, max_queue=2, buffer_budget_bytes=1000)
    with pytest.raises(_native.BudgetExhausted):
        engine.window(1001)
    kept = engine.window(600)
    with pytest.raises(_native.BudgetExhausted):
        engine.window(600)
    del kept
    engine.window(600).close()
    for _ in range(3):
        engine.submit("GET", "k")
    with pytest.raises(_native.QueueFull):
        engine.submit("GET", "k")
    engine.close()


def test_windows_cannot_be_made_out_of_nothing() -> None:
    with pytest.raises(TypeError):
        _native.Window()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"method": "BREW"}, ValueError), ({"method": 1}, TypeError), ({"key": 1}, TypeError),
        ({"key": "k" * 1025}, ValueError), ({"parse": "all"}, ValueError), ({"priority": 3}, ValueError),
        ({"priority": -1}, ValueError), ({"attempts": 0}, ValueError), ({"attempts": "1"}, TypeError),
        ({"offset": -1}, ValueError), ({"body": "text"}, TypeError), ({"into": 5}, TypeError),
        ({"headers": [("authorization", "x")]}, ValueError), ({"headers": [("a", "b\nc")]}, ValueError),
        ({"query": [("a",)]}, TypeError), ({"query": [("a", "b")] * 65}, ValueError), ({"surplus": 1}, TypeError),
        ({"expect_etag": "a\0b"}, ValueError), ({"body": _native.FileRegion(-1, 0, 1)}, ValueError),
        ({"body": _native.FileRegion(987654, 0, 1), "method": "PUT"}, OSError), ({"deadline_ms": 1 << 40}, ValueError),
    ],
)
def test_bad_arguments_keep_nothing(server: ScriptedServer, arguments: dict[str, Any], error: type[Exception]) -> None:
    engine = make(server.url)
    given = {"method": "GET", "key": "k", **arguments}
    with pytest.raises(error):
        engine.submit(given.pop("method"), given.pop("key"), **given)
    assert engine.stats()["queued"] == 0
    engine.close()


def test_arguments_whose_making_closes_the_window(server: ScriptedServer) -> None:
    engine = make(server.url)
    window = engine.window(10)

    def pairs() -> Iterator[tuple[str, str]]:
        window.close()
        yield ("versionId", "1")

    headers: Any = pairs()
    with pytest.raises(ValueError, match="closed"):
        engine.submit("GET", "k", into=window, headers=headers)
    assert engine.stats()["queued"] == 0
    engine.close()


def test_drain_within_the_garbage_collection_of_drain() -> None:
    entries = "".join(f"<Contents><Key>k{n:04}</Key><LastModified>2023-01-01T00:00:30.000Z</LastModified>"
                      "<Size>5</Size></Contents>" for n in range(1000))
    page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
    server = ScriptedServer(lambda _what, _body: answer(page.encode()))
    engine = make(server.url)
    within: list[Event] = []

    def collecting(_phase: str, _info: dict[str, int]) -> None:
        within.extend(engine.drain())

    engine.submit("GET", "", parse="list")
    select.select([engine.fileno()], [], [], 10)
    before = gc.get_threshold()
    gc.callbacks.append(collecting)
    gc.set_threshold(1)
    try:
        events = engine.drain()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collecting)
    finals = [event for event in [*events, *within] if event.final]
    assert len(finals) == 1
    page_read = finals[0].value
    assert isinstance(page_read, _native.Page)
    assert len(page_read.entries) == 1000
    engine.close()
    server.close()


@pytest.mark.parametrize(
    "changes",
    [{"endpoint": "gopher://x"}, {"endpoint": "http://h/path"}, {"bucket": ""}, {"region": ""},
     {"max_connections": 0}, {"max_queue": 0}, {"workers": 0}, {"buffer_budget_bytes": -1}],
)
def test_a_bad_setting_is_one_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        make("http://127.0.0.1:1", **changes)
    assert len(str(caught.value)) > 10


def test_cancel(silent: ScriptedServer) -> None:
    engine = make(silent.url)
    request = engine.submit("PUT", "k", body=b"x")
    time.sleep(0.1)
    began = time.monotonic()
    engine.cancel(request)
    (event,) = wait(engine)
    assert time.monotonic() - began < 1
    assert event.failure is not None
    assert (event.failure.kind, event.failure.outcome) == ("cancelled", "unknown")
    engine.cancel(request)
    engine.cancel(999)
    engine.close()


def test_close_ends_requests_and_lets_drain(silent: ScriptedServer) -> None:
    engine = make(silent.url)
    for _ in range(6):
        engine.submit("GET", "k")
    time.sleep(0.1)
    began = time.monotonic()
    engine.close()
    engine.close()
    assert time.monotonic() - began < 1
    events = engine.drain()
    assert [event.failure.kind for event in events if event.failure] == ["closed"] * 6
    with pytest.raises(_native.EngineClosed):
        engine.submit("GET", "k")
    with pytest.raises(_native.EngineClosed):
        engine.window(1)


def test_an_engine_that_is_dropped_ends_in_time(silent: ScriptedServer) -> None:
    engine: Engine | None = make(silent.url)
    assert engine is not None
    window = engine.window(10)
    engine.submit("GET", "k", into=window)
    engine.submit("PUT", "k", body=b"x" * 1000)
    time.sleep(0.1)
    began = time.monotonic()
    engine = None
    assert time.monotonic() - began < 1
    assert window.ready == 0
    window.close()


class Owner(bytearray):
    """A body that can be part of a cycle."""

    engine: Engine


def test_a_cycle_through_a_body_is_collected(silent: ScriptedServer) -> None:
    body = Owner(b"x" * 100)
    body.engine = make(silent.url)
    body.engine.submit("PUT", "k", body=body)
    gone = weakref.ref(body)
    del body
    gc.collect()
    assert gone() is None


def test_nothing_leaks(server: ScriptedServer) -> None:
    engine = make(server.url)

    def round_trip() -> None:
        window = engine.window(100)
        engine.submit("PUT", "key", body=bytes(50), query=[("a", "b")], headers=[("x-amz-meta-a", "b")])
        engine.submit("GET", "key", parse="bytes")
        wait(engine, 2)
        window.close()

    for _ in range(5):
        round_trip()
    gc.collect()
    before, descriptors = len(gc.get_objects()), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        round_trip()
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1
    assert engine.stats()["attempts"] == 210
    engine.close()


def test_a_forked_child_may_not_and_the_parent_goes_on(silent: ScriptedServer, server: ScriptedServer) -> None:
    engine = make(server.url)
    engine.submit("GET", "k")
    wait(engine)
    engine.submit("GET", "k", parse="bytes")
    window = engine.window(10)
    child = os.fork()
    if child == 0:
        code = 0
        for call in (lambda: engine.submit("GET", "k"), engine.drain, engine.fileno, engine.close, engine.stats,
                     lambda: engine.window(1), lambda: engine.cancel(1), lambda: window.arm(1)):
            try:
                call()
                code = 1
            except _native.EngineForked:
                pass
        window.close()
        del engine, window, call
        gc.collect()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (event,) = wait(engine)
    assert event.value == b"0123456789"
    engine.close()


def test_the_interpreter_ends_in_the_middle_of_requests(silent: ScriptedServer) -> None:
    done = run_python(
        "-c",
        textwrap.dedent("""
        import sys, time
        from tahoe_s3._native import Engine
        engines = []
        for i in range(3):
            engine = Engine(endpoint=sys.argv[1], region="r", bucket="b", path_style=True, ca_file=None, proxy="",
                            max_connections=4, max_queue=50, buffer_budget_bytes=10000)
            engine.set_credentials("a", b"s")
            for j in range(20):
                engine.submit("PUT", f"k{j}", body=b"x")
            engines.append(engine)
        time.sleep(0.05)
        began = time.monotonic()
        import atexit
        atexit._run_exitfuncs()
        print(time.monotonic() - began)
        """),
        silent.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 3
