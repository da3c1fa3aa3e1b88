# SPDX-License-Identifier: GPL-2.0-or-later
"""The web pages of a node on a bucket: what they say, that others' text stays text, and what stays Tahoe's.

Requests go through Tahoe's own resources, changed as a node's start changes them; the storage server works on a bucket
in memory, or on tests/support/s3server.py where the counts must be those that a service saw.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from allmydata.stats import StatsProvider
from allmydata.storage.server import StorageServer
from allmydata.web.status import Statistics
from allmydata.web.storage import StorageStatus
from prometheus_client.openmetrics import parser
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.web.test.requesthelper import DummyRequest

from tahoe_s3 import plugin
from tahoe_s3.metrics import BOUNDS_S
from tahoe_s3.prices import Prices
from tahoe_s3.report import printable
from tahoe_s3.s3errors import NoSuchBucket, S3Error, Unavailable
from tahoe_s3.store.health import DOWN_AFTER
from tahoe_s3.store.keys import ShareId
from tahoe_s3.store.ownership import OwnerMark
from tahoe_s3.store.reconcile import Progress

from .live.node_here import fresh_index, open_here
from .store.helpers import NODEID, SI, now, pattern
from .store.servers import ServerPlace, config_of
from .support.s3server import S3Server

START_S = 1_790_000_000.0
HOSTILE = '<script>alert("x")</script>&amp;\x00\x1b[31m\u202egnp\ud800"\'\n]]>'


@pytest.fixture(autouse=True)
def pages() -> None:
    """What a node's start does where it has a web port."""
    plugin._show_pages()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ServerPlace]:
    made = ServerPlace(tmp_path, start_s=START_S)
    made.client.follow(made.clock)
    made.store.config = config_of(prefix="grids/a/", prices=Prices(5.0, 0.5, 0.02, 0.09, "EUR"))
    made.store.mark = OwnerMark("nodeid", "instance", int(START_S))
    yield made
    now(made.server.stopService())


def fail(place: ServerPlace, error: S3Error, at_s: float) -> None:
    """A request has failed. What feeds recent_errors is another matter (store/health.py)."""
    counters = place.client.counters
    counters.ended(error.operation, now_s=at_s, attempts=1, well=False)
    counters.failed(error, at_s)
    place.store.recent_errors.append((at_s, str(error)))


def ask(resource: Any, kind: str = "") -> str:
    """The body of what a resource answers to ?t=kind."""
    request = DummyRequest([b""])
    request.fields = None
    request.args = {b"t": [kind.encode()]} if kind else {}
    request.dont_apply_extra_processing = True
    result = resource.render(request)
    return (result if isinstance(result, bytes) else b"".join(request.written)).decode("utf-8")


def html(place: ServerPlace) -> str:
    return ask(StorageStatus(place.server, "nickname"))


def in_json(place: ServerPlace) -> Any:
    found = json.loads(ask(StorageStatus(place.server, "nickname"), "json"), parse_constant=no_constant)
    return found["tahoe_s3"]


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def statistics(*producers: Any) -> Statistics:
    provider = StatsProvider(None)
    for producer in producers:
        provider.stats_producers.append(producer)
    return Statistics(provider)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a parser of OpenMetrics makes of a page, and that nothing comes twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            which = (sample.name, tuple(sorted(sample.labels.items())))
            assert which not in found, which
            found[which] = sample.value
    return found


def text_of(page: str) -> str:
    """What a reader sees; fails where the page is no well-formed document."""
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", page))
    for style in root.iter("style"):
        style.text = ""
    return re.sub(r"\s+", " ", " ".join(root.itertext()))


# the status page


def test_the_page_tells_of_the_bucket(place: ServerPlace) -> None:
    place.upload(pattern(50))
    place.upload(pattern(50), 1)
    place.store.foreign_keys = 3
    page = html(place)
    said = text_of(page)
    assert page.index("Storage Server Status</h1>") < page.index('id="tahoe-s3"') < page.index("Total disk space")
    for sentence in (
        "In use.", "http://127.0.0.1:1, region us-east-1", "grids/a/", "2 of 1 files and directories",
        f"{place.index.used_bytes} bytes", "Keys that are not ours 3", "agrees with this machine's", "no limit given",
        "PUT, COPY, POST, LIST 3 = 0.0150 EUR", "None since the node's start.", "tahoe-s3 0.1.0, libcurl ",
        "Lease Expiration Crawler", "The shares themselves lie in the bucket.",
    ):  # fmt: skip
        assert sentence in said, f"{sentence!r} is not in {said}"
    assert "instance" in said and "2026-09-21 14:13:20 UTC" in said


def test_what_others_wrote_stays_text(place: ServerPlace) -> None:
    error = S3Error(HOSTILE, operation="GetObject", method="GET", key=HOSTILE, status=400, code=HOSTILE)
    fail(place, error, START_S + 1)
    place.store.config = config_of(bucket="b", url="http://h")
    for problem in (None, HOSTILE):
        place.store.problem = problem
        page = html(place)
        assert "<script" not in page and "\x00" not in page and "\x1b" not in page and "\u202e" not in page
        said = text_of(page)
        assert '<script>alert("x")</script>&amp;' in said, "as text it is there"
        assert "<script" not in ask(StorageStatus(place.server, HOSTILE)).replace("&lt;script", "")
        told = [error["text"] for error in in_json(place)["recent_errors"]]
        assert told and all(text.isprintable() for text in told)
    place.store.problem = None
    assert not [key for key in samples(ask(statistics(place.server), "openmetrics")) if "<" in str(key)]
    assert len(printable("x" * 10_000)) == 500


def test_no_secret_is_on_any_page(place: ServerPlace) -> None:
    place.store.config = config_of(secret=b"s3cr3t-value", token="t0ken-value")
    place.upload(pattern(50))
    provider = statistics(place.server)
    shown = html(place) + json.dumps(in_json(place)) + ask(provider, "openmetrics") + ask(provider, "json")
    assert "s3cr3t" not in shown and "t0ken" not in shown and "AKID" not in shown


def test_a_bucket_that_cannot_be_used(place: ServerPlace) -> None:
    place.upload(pattern(50))
    place.store.problem = "the bucket has gone"
    said = text_of(html(place))
    assert "The bucket cannot be used. The bucket has gone." in said
    assert "Accepting new shares: No" in said
    assert (in_json(place)["usable"], in_json(place)["problem"]) == (False, "the bucket has gone")
    assert samples(ask(statistics(place.server), "openmetrics"))["tahoe_s3_bucket_usable", ()] == 0
    place.store.problem = None


def test_requests_that_fail_are_told_until_one_succeeds(place: ServerPlace) -> None:
    counters = place.client.counters
    counters.ended("GetObject", now_s=START_S, attempts=1)
    details = {"operation": "GetObject", "method": "GET", "key": "k", "status": 404, "code": "NoSuchBucket"}
    error = NoSuchBucket("no such bucket", **details)  # type: ignore[arg-type]
    fail(place, error, START_S + 9)
    said = text_of(html(place))
    assert 'class="state bad"' in html(place), "nothing will change before somebody has mended it"
    assert "The last request to the bucket failed. None has succeeded since 2026-09-21 14:13:20 UTC." in said
    assert "At 2026-09-21 14:13:29 UTC: GET k: 404 NoSuchBucket (no such bucket)" in said
    assert said.count("GET k: 404 NoSuchBucket") == 2, "it is under the last errors too"
    counters.ended("GetObject", now_s=START_S + 10, attempts=1)
    said = text_of(html(place))
    assert "In use." in said and said.count("GET k: 404 NoSuchBucket") == 1
    fail(place, Unavailable("no answer", operation="GetObject", kind="timeout"), START_S + 11)
    assert 'class="state doubt"' in html(place), "the next one may succeed"


def test_while_the_bucket_is_listed(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.upload(pattern(50))
    begun = Progress(False, False, keys=12_000, part=0.125, since_s=START_S, problem=HOSTILE)
    rebuild = SimpleNamespace(answers_for_all=False, progress=begun)
    monkeypatch.setattr(place.store, "rebuild", rebuild)
    page = html(place)
    said = text_of(page)
    assert "In use, while the bucket is being listed. 12% of it, 12,000 keys so far. What has not been" in said
    assert "It does not go on at the moment: <script>alert" in said and "<script" not in page
    assert "1 of 1 files and directories so far; not all of the bucket is known yet" in said
    assert "Total buckets: Not computed yet" in said and "Current crawl 12.5% complete (next work in 0us)" in said
    report = in_json(place)
    assert report["rebuild"]["since"] == "2026-09-21T14:13:20Z" and report["counts_are_complete"] is False
    assert "storage_server.total_bucket_count" not in place.server.get_stats()
    rebuild.answers_for_all, rebuild.progress = True, replace(begun, answers_for_all=True, problem=None)
    said = text_of(html(place))
    assert "so far. The index answers for all of it." in said and "1 of 1 files and directories Their" in said
    rebuild.progress = replace(rebuild.progress, is_complete=True, part=1.0)
    assert "In use. The service" in text_of(html(place)) or "In use. Service" in text_of(html(place))


def test_a_capacity_and_a_service_in_trouble(place: ServerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.upload(pattern(866))
    monkeypatch.setattr(place.store.space, "capacity_bytes", 10_000_000)
    assert place.store.space.promise(ShareId(b"p" * 16, 0), bucket_bytes=2_000_000) is not None
    for number in range(DOWN_AFTER):
        place.store.health.heard(Unavailable(f"number {number}", operation="GetObject", kind="timeout"))
    said = text_of(html(place))
    assert "Capacity (s3.capacity) 10.00 MB (10,000,000 bytes), 0.0% used, 2.00 MB promised to uploads" in said
    assert "Requests to the bucket fail. None has succeeded since 2026-09-21 14:13:20 UTC. " in said
    assert "The S3 service gives no usable answer (number 2)." in said
    assert samples(ask(statistics(place.server), "openmetrics"))["tahoe_s3_capacity_bytes", ()] == 10_000_000


def test_only_the_last_errors_are_kept(place: ServerPlace) -> None:
    for number in range(50):
        fail(place, Unavailable(f"number {number}.", operation="GetObject", kind="timeout"), START_S)
    assert len(place.store.recent_errors) == 20
    texts = [error["text"] for error in in_json(place)["recent_errors"]]
    assert texts == [f"GetObject: number {number}." for number in range(49, 39, -1)]


def test_readonly(tmp_path: Path) -> None:
    place = ServerPlace(tmp_path, readonly_storage=True)
    said = text_of(html(place))
    assert "In use, read-only." in said and "Accepting new shares: No" in said
    assert in_json(place)["readonly"] is True
    now(place.server.stopService())


def test_uploads_under_way(place: ServerPlace, tmp_path: Path) -> None:
    writers = place.allocate([0, 1], 1000)[1]
    now(writers[0].write(0, pattern(300)))
    now(writers[0].write(700, pattern(100)))
    assert in_json(place)["uploads"] == {
        "count": 2, "allocated_bytes": 2000, "written_bytes": 400, "arrived_bytes": 0
    }  # fmt: skip
    assert "2 of 2.00 kB together: 400 B written by clients, 0 B of that in the bucket" in text_of(html(place))
    parts = ServerPlace(tmp_path / "parts", part_bytes=1000)
    writer = parts.allocate([0], 5000)[1][0]
    held = parts.client.hold("UploadPart")
    writing = writer.write(0, pattern(3500))
    held.release(2)
    assert in_json(parts)["uploads"]["arrived_bytes"] == 2000
    held.release()
    now(writing)
    assert in_json(parts)["uploads"]["arrived_bytes"] == 3000
    now(parts.server.stopService())


def test_stocks_numbers_are_those_of_the_spools_disk(place: ServerPlace) -> None:
    place.upload(pattern(50))
    stats = json.loads(ask(StorageStatus(place.server, "n"), "json"))["stats"]
    assert stats["storage_server.total_bucket_count"] == 1
    assert stats["storage_server.disk_total"] > 10**6 * place.index.used_bytes, "of a disk, not of the bucket"
    assert stats["storage_server.disk_used"] + stats["storage_server.disk_free_for_root"] == pytest.approx(
        stats["storage_server.disk_total"], rel=0.01
    )
    place.allocate([7], 12_345, si=b"o" * 16)
    assert place.server.get_stats()["storage_server.allocated"] == 12_345


def test_a_node_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    place = ServerPlace(tmp_path)
    said = text_of(html(place))
    assert "this node has not claimed the bucket since its start" in said and "not known yet" in said
    assert in_json(place)["requests"]["today"]["costs"]["sum"] is None
    assert "no price given" in said and "Costs" not in said
    now(place.server.stopService())


SCHEMA: dict[str, Any] = {
    "service": str, "region": str, "bucket": str, "prefix": str, "usable": bool, "problem": type(None),
    "trouble": type(None), "counts_are_complete": bool, "promised_bytes": object,
    "last_request_failed": bool, "last_request_refused": bool,
    "last_error": type(None), "last_error_at": type(None), "last_success_at": object,
    "last_answer_at": object, "readonly": bool, "owner": {"nodeid": str, "instance": str, "since": str},
    "shares": int, "share_bytes": int, "storage_indexes": int, "lease_bytes": int, "foreign_keys": int,
    "capacity_bytes": type(None),
    "uploads": {"count": int, "allocated_bytes": int, "written_bytes": int, "arrived_bytes": int},
    "rebuild": {
        "complete": bool, "index_answers_for_all": bool, "keys": int, "part": float, "since": object,
        "problem": type(None),
    },
    "requests": {"today": dict, "since_start": {
        "since": str, "put": int, "get": int, "delete": int, "bytes_up": int, "bytes_down": int,
        "costs": {"put": float, "get": float, "transfer_out": float, "sum": float},
    }},
    "storage_cost_a_month": float, "currency": str,
    "operations": {"PutObject": {
        "requests": int, "retries": int, "errors": dict, "bytes_up": int, "bytes_down": int, "ended": int,
        "seconds": float, "half_within": float, "most_within": float, "latency": list,
    }},
    "recent_errors": list, "clock_difference": float,
    "versions": {"tahoe-s3": str, "tahoe-lafs": str, "libcurl": str, "tls": str, "python": str},
}  # fmt: skip


def assert_shape(found: Any, shape: Any, where: str = "tahoe_s3") -> None:
    if isinstance(shape, dict):
        assert set(found) == set(shape), where
        for name, inner in shape.items():
            assert_shape(found[name], inner, f"{where}.{name}")
    else:
        assert isinstance(found, shape), f"{where} is {found!r}"


def test_the_json_has_the_documented_shape(place: ServerPlace) -> None:
    place.upload(pattern(50))
    assert_shape(in_json(place), SCHEMA)
    stock = json.loads(ask(StorageStatus(place.server, "n"), "json"))
    assert set(stock) == {"stats", "bucket-counter", "lease-checker", "lease-checker-progress", "tahoe_s3"}
    document = (Path(__file__).parent.parent / "docs" / "status.rst").read_text()
    missing = [name for name in SCHEMA if f"``{name}``" not in document]
    assert not missing, f"docs/status.rst says nothing of {missing}"


def test_today_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = ServerPlace(tmp_path, start_s=START_S)
    first.client.follow(first.clock)
    first.upload(pattern(50))
    now(first.server.stopService())
    second = ServerPlace(tmp_path, start_s=START_S + 60)
    second.client.follow(second.clock)
    second.upload(pattern(50), 1)
    requests = in_json(second)["requests"]
    assert (requests["today"]["put"], requests["since_start"]["put"]) == (3, 2), "the second share brings a lease"
    assert (requests["today"]["since"], requests["since_start"]["since"]) == (
        "2026-09-21T14:13:20Z", "2026-09-21T14:14:20Z"
    )  # fmt: skip
    second.store.index.remember("requests of today", "{")
    now(second.server.stopService())


# statistics


def test_both_forms_of_statistics_tell_the_same(place: ServerPlace) -> None:
    place.upload(pattern(50))
    counters = place.client.counters
    for seconds in (0.004, 0.2, 99):
        counters.ended("GetObject", now_s=START_S, attempts=2, total_us=int(seconds * 1e6), bytes_down=7)
    counters.failed(Unavailable("", operation="GetObject", kind="timeout"), START_S)
    page = statistics(place.server)
    flat = json.loads(ask(page, "json"), parse_constant=no_constant)["stats"]
    found = samples(ask(page, "openmetrics"))
    get = (("operation", "GetObject"),)
    assert found["tahoe_s3_requests_total", get] == flat["tahoe_s3.requests.GetObject"] == 6
    assert found["tahoe_s3_retries_total", get] == flat["tahoe_s3.retries.GetObject"] == 3
    assert found["tahoe_s3_received_bytes_total", get] == flat["tahoe_s3.bytes_down.GetObject"] == 21
    assert found["tahoe_s3_errors_total", (("code", "timeout"), *get)] == flat["tahoe_s3.errors.GetObject.timeout"] == 1
    assert found["tahoe_s3_request_duration_seconds_count", get] == flat["tahoe_s3.latency.GetObject.count"] == 3
    assert found["tahoe_s3_request_duration_seconds_sum", get] == flat["tahoe_s3.latency.GetObject.sum"]
    for bound_s, count in zip(BOUNDS_S, [1] * 5 + [2] * 8):
        le = (("le", str(bound_s)), *get)
        assert found["tahoe_s3_request_duration_seconds_bucket", le] == count
        assert flat[f"tahoe_s3.latency.GetObject.le_{round(bound_s * 1000)}_ms"] == count
    assert found["tahoe_s3_shares", ()] == flat["tahoe_s3.shares"] == 1
    assert found["tahoe_s3_share_bytes", ()] == flat["tahoe_s3.used_bytes"] == place.index.used_bytes
    assert found["tahoe_stats_storage_server_disk_total", ()] == flat["storage_server.disk_total"]


def test_leases_do_not_break_the_page(place: ServerPlace) -> None:
    place.upload(pattern(50))
    now(place.server.add_lease(SI, b"1" * 32, b"2" * 32))
    text = ask(statistics(place.server), "openmetrics")
    assert "NaN" not in text and "None" not in text
    assert samples(text)["tahoe_stats_storage_server_latencies_add_lease_samplesize", ()] == 1
    assert all(math.isfinite(value) for value in samples(text).values())


def test_names_stay_legal_whatever_is_counted(place: ServerPlace) -> None:
    class Producer:
        def get_stats(self) -> dict[str, Any]:
            return {
                "a.b-c": 1, "a.b_c": 2, "x{y} z\n": 3, "nan": math.nan, "inf": math.inf, "none": None, "text": "1",
                "l.add-lease.50_0_percentile": 0.5, "l.add-lease.99_9_percentile": 0.9, "yes": True, "1st": 4,
            }  # fmt: skip

    found = samples(ask(statistics(place.server, Producer()), "openmetrics"))
    assert found["tahoe_stats_l_add_lease", (("quantile", "0.500"),)] == 0.5
    assert found["tahoe_stats_l_add_lease", (("quantile", "0.999"),)] == 0.9
    assert found["tahoe_stats_a_b_c", ()] in (1, 2) and found["tahoe_stats_yes", ()] == 1
    assert not [name for name, _ in found if re.fullmatch("tahoe_stats_(nan|inf|none|text)", name)]


def test_flat_names_suit_tahoes_own_page_too(place: ServerPlace) -> None:
    place.upload(pattern(50))
    place.client.counters.failed(S3Error("", operation="PutObject", status=400, code=HOSTILE), START_S)
    for name, value in place.server.get_stats().items():
        if name.startswith("tahoe_s3."):
            assert re.fullmatch(r"[A-Za-z0-9_.]+", name), name
            assert isinstance(value, (int, float)) and math.isfinite(value), name


@ensureDeferred
async def test_the_counts_are_what_the_service_saw(s3server: S3Server, tmp_path: Path) -> None:
    node = await open_here(reactor, s3server, tmp_path, part_size_bytes=100_000)
    s3server.fail("PutObject", status=503, code="SlowDown", times=2)
    small, large, slot = fresh_index(), fresh_index(), fresh_index()
    await node.upload(small, {0: pattern(5000), 1: pattern(5000)})
    await node.upload(large, {0: pattern(350_000)}, piece_bytes=50_000)
    await node.write_slot(slot, [0], b"mutable")
    await node.server.add_lease(small, b"s" * 32, b"c" * 32)
    await node.read(large, 0, [(0, 350_000)])
    s3server.fail("HeadObject", status=403, code="AccessDenied")
    with pytest.raises(S3Error):
        await node.server.store.client.head("shares/x")
    report = node.server.bucket_report()
    operations = report["operations"]
    assert {name: row["requests"] for name, row in operations.items()} == s3server.count()
    assert operations["PutObject"]["retries"] == 2 and operations["HeadObject"]["errors"] == {"403": 1}
    for name, row in operations.items():
        assert row["bytes_up"] == sum(seen.body_bytes for seen in s3server.log if seen.operation == name), name
        assert row["ended"] == row["requests"] - row["retries"] == row["latency"][-1][1], name
    assert operations["GetObject"]["bytes_down"] >= 350_000
    today = report["requests"]["today"]
    assert (today["put"], today["get"], today["delete"]) == (
        sum(count for name, count in s3server.count().items() if re.match("Put|List|.*Multipart|UploadPart", name)),
        sum(count for name, count in s3server.count().items() if re.match("Get|Head", name)),
        0,
    )
    engine = node.server.store.client.stats()
    assert engine["bytes_up"] == today["bytes_up"] and engine["bytes_down"] == today["bytes_down"]
    assert report["owner"]["instance"] in s3server.bucket.objects["owner.json"].body.decode()
    assert report["recent_errors"][0]["text"].startswith("HEAD shares/x: 403")
    await node.close()


# what stays Tahoe's


def test_stock_nodes_have_stock_pages(tmp_path: Path) -> None:
    server = StorageServer(str(tmp_path), NODEID, clock=Clock())
    page = StorageStatus(server, "nickname")
    for method in ("render_HTML", "render_JSON"):
        stock = getattr(getattr(StorageStatus, method), plugin._MARK)
        changed = ask(SimpleNamespace(render=lambda request, name=method: in_bytes(getattr(page, name)(request))))
        before = ask(SimpleNamespace(render=lambda request, stock=stock: in_bytes(stock(page, request))))
        assert steady(changed) == steady(before)
        assert "tahoe_s3" not in changed and "tahoe-s3" not in changed
    numbers = statistics(server)
    stock_openmetrics = getattr(Statistics.render_OPENMETRICS, plugin._MARK)
    stock_text = ask(SimpleNamespace(render=lambda request: in_bytes(stock_openmetrics(numbers, request))))
    assert steady(ask(numbers, "openmetrics")) == steady(stock_text)


def in_bytes(result: Any) -> Any:
    """As MultiFormatResource.render makes it."""
    return result.encode("utf-8") if isinstance(result, str) else result


def steady(text: str) -> str:
    """Without what differs from call to call: how full the disk is, and the time used."""
    return re.sub(r"\d[\d.]*", "0", text)


def test_hooking_twice_changes_nothing() -> None:
    before = StorageStatus.render_HTML, StorageStatus.render_JSON, Statistics.render_OPENMETRICS
    plugin._show_pages()
    assert (StorageStatus.render_HTML, StorageStatus.render_JSON, Statistics.render_OPENMETRICS) == before
