# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP protocol over a bucket: nothing is answered before the bucket has answered.

Answers are held back, operations fail, clients hang up or read slowly.
"""
from __future__ import annotations

import gc
from typing import Any

from allmydata.storage.immutable import BucketReader as StockReader
from allmydata.util.cbor import dumps
from cbor2 import loads
from twisted.internet.defer import CancelledError
from twisted.logger import formatEvent, globalLogPublisher

from tahoe_s3.http_stream import MUTABLE_PIECE_BYTES, PIECE_BYTES, ShareChanged
from tahoe_s3.s3errors import Unavailable
from tahoe_s3.wire import UNAVAILABLE_TEXT

from .http_talk import DATA, ENABLER, IMMUTABLE, LEASE, LEASES, MUTABLE, UPLOAD, HTTPTestCase, Talk
from .raw_http import Answer, Exchange

S3_DOWN = Unavailable("the proxy said no", operation="PutObject", method="PUT", key="shares/zz/zzz/0", status=503)
BODY_503 = UNAVAILABLE_TEXT.encode("utf-8")


class WaitingTestCase(HTTPTestCase):
    """S3HTTPServer over a HeldServer."""

    def setUp(self) -> None:
        super().setUp()
        self.server, self.client = self.ours()
        self.gate = self.server.gate
        self.talk = Talk(self.client)
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)
        self.addCleanup(self.nothing_cancelled)

    def nothing_cancelled(self) -> None:
        self.assertEqual(self.gate.cancelled, [])

    def warnings(self) -> list[str]:
        """What tahoe-s3 logged."""
        return [
            str(formatEvent(line)) for line in self.lines if line.get("log_namespace", "").startswith("tahoe_s3")
        ]

    def begin_patch(self, number: int, start: int, data: bytes) -> Exchange:
        headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/*"}
        return self.client.begin("PATCH", f"{IMMUTABLE}/{number}", body=data, headers=headers, secrets=UPLOAD)

    def begin_change(self) -> Exchange:
        vectors = {"test-write-vectors": {0: {"test": [], "write": [{"offset": 0, "data": DATA}], "new-length": None}},
                   "read-vector": []}
        return self.client.begin("POST", MUTABLE + "/read-test-write", body=dumps(vectors), secrets=ENABLER)

    def shares(self) -> set[int]:
        shares: set[int] = loads(self.talk.get(IMMUTABLE + "/shares").body)
        return shares

    def assert_waits(self, exchange: Exchange, name: str) -> None:
        """The operation was begun and its client has heard nothing."""
        exchange.run()
        self.assertIn(name, self.gate.waiting())
        self.assertEqual(exchange.transport.value(), b"")

    def assert_unavailable(self, answer: Answer) -> None:
        self.assertEqual((answer.status, answer.body, answer.complete), (503, BODY_503, True))
        self.assertNotIn("content-range", answer.headers)
        self.assertIn(answer.headers["content-type"], (["text/plain;charset=utf-8"], ["application/octet-stream"]))
        self.assertIn(str(S3_DOWN), self.warnings()[-1])
        self.assertNotIn("Traceback", self.warnings()[-1])
        self.assertEqual(self.flushLoggedErrors(), [])


class UploadWaitingTests(WaitingTestCase):
    def test_close_is_waited_for(self) -> None:
        """201 comes after the bucket's answer, and nobody sees the share before."""
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("close")
        exchange = self.begin_patch(0, 0, DATA)
        self.assert_waits(exchange, "close")
        self.assertEqual(self.shares(), set())
        self.gate.release("close")
        answer = exchange.answer()
        self.assertEqual((answer.status, loads(answer.body)), (201, {"required": []}))
        self.assertEqual(self.shares(), {0})

    def test_repeated_last_patch_shares_the_outcome(self) -> None:
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("close")
        exchanges = [self.begin_patch(0, 0, DATA), self.begin_patch(0, 100, DATA[100:])]
        for exchange in exchanges:
            self.assert_waits(exchange, "close")
        self.assertEqual(self.gate.calls.count("close"), 1)
        self.gate.release("close")
        self.assertEqual([exchange.answer().status for exchange in exchanges], [201, 201])

    def test_failed_close(self) -> None:
        """503, the share is absent, and the upload is over."""
        self.talk.allocate({0}, len(DATA))
        self.gate.fail("close", S3_DOWN)
        self.assert_unavailable(self.talk.patch(0, 0, DATA))
        self.assertEqual(self.shares(), set())
        self.assertEqual(self.talk.patch(0, 0, DATA).status, 404)
        self.assertEqual(loads(self.talk.allocate({0}, len(DATA)).body)["allocated"], {0})

    def test_hanging_up_does_not_stop_a_close(self) -> None:
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("close")
        exchange = self.begin_patch(0, 0, DATA)
        self.assert_waits(exchange, "close")
        exchange.hang_up()
        self.gate.release("close")
        self.assertEqual(self.shares(), {0})

    def test_hanging_up_before_the_last_write_is_welcome(self) -> None:
        """All bytes have come, only the writer was busy: the share is closed all the same."""
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("write")
        exchange = self.begin_patch(0, 0, DATA)
        self.assert_waits(exchange, "write")
        exchange.hang_up()
        self.gate.release("write")
        self.assertEqual(self.shares(), {0})

    def test_failed_close_of_a_client_that_hung_up(self) -> None:
        """It is logged in one line, and is no unhandled error."""
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("close")
        self.gate.fail("close", S3_DOWN)
        exchange = self.begin_patch(0, 0, DATA)
        self.assert_waits(exchange, "close")
        exchange.hang_up()
        self.gate.release("close")
        del exchange
        gc.collect()
        self.assertEqual(self.warnings(), [f"closing a share failed: {S3_DOWN}"])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_writes_wait_for_room(self) -> None:
        """A long body is written in pieces, the next when the writer has room; a client that hangs up ends it."""
        data = DATA * 2500
        self.talk.allocate({0, 1}, len(data))
        self.gate.hold("write")
        exchange = self.begin_patch(0, 0, data)
        for written in range(1, 4):
            self.assert_waits(exchange, "write")
            self.assertEqual(self.gate.calls.count("write"), written)
            self.gate.release("write")
        self.assertEqual(exchange.answer().status, 201)
        gone = self.begin_patch(1, 0, data)
        self.assert_waits(gone, "write")
        gone.hang_up()
        self.gate.release("write")
        self.assertEqual(self.gate.waiting(), [])
        self.assertEqual(self.gate.calls.count("write"), 4)

    def test_failed_write(self) -> None:
        self.talk.allocate({0}, len(DATA))
        self.gate.fail("write", S3_DOWN)
        self.assert_unavailable(self.talk.patch(0, 0, DATA[:10]))

    def test_allocation_survives_its_client(self) -> None:
        """The writers of a client that hung up meanwhile are remembered, with its secret."""
        self.gate.hold("allocate")
        body = dumps({"share-numbers": {0}, "allocated-size": len(DATA)})
        exchange = self.client.begin("POST", IMMUTABLE, body=body, secrets={**LEASES, **UPLOAD})
        self.assert_waits(exchange, "allocate")
        exchange.hang_up()
        self.gate.release("allocate")
        self.assertEqual(self.talk.patch(0, 0, DATA).status, 201)

    def test_failed_allocation(self) -> None:
        self.gate.fail("allocate", S3_DOWN)
        self.assert_unavailable(self.talk.allocate({0}, 10))

    def test_abort_waits(self) -> None:
        self.talk.allocate({0}, len(DATA))
        self.gate.hold("abort")
        exchange = self.client.begin("PUT", f"{IMMUTABLE}/0/abort", secrets=UPLOAD)
        self.assert_waits(exchange, "abort")
        self.gate.release("abort")
        self.assertEqual(exchange.answer().status, 200)
        self.assertEqual(self.talk.patch(0, 0, DATA).status, 404)

    def test_abort_while_closing(self) -> None:
        """It waits for the close: 405 if the share was stored after all, 200 if it was not."""
        self.talk.allocate({0, 1}, len(DATA))
        self.gate.hold("close")
        self.gate.fail("close", S3_DOWN, after=1)
        for number, status in ((0, 405), (1, 200)):
            patch = self.begin_patch(number, 0, DATA)
            self.assert_waits(patch, "close")
            abort = self.client.begin("PUT", f"{IMMUTABLE}/{number}/abort", secrets=UPLOAD)
            self.assert_waits(abort, "close")
            self.gate.release("close")
            self.assertEqual(abort.answer().status, status)
        self.assertEqual(self.shares(), {0})


class OtherWaitingTests(WaitingTestCase):
    def test_version_never_waits(self) -> None:
        self.gate.hold("allocate", "get_buckets", "read", "get_length", "close", "rtw", "slot_readv", "enumerate")
        self.begin_change()
        self.assertEqual(self.talk.get("/storage/v1/version").status, 200)

    def test_lease(self) -> None:
        self.talk.upload(0, DATA)
        self.gate.hold("add_lease")
        exchange = self.client.begin("PUT", LEASE, secrets=LEASES)
        self.assert_waits(exchange, "add_lease")
        self.gate.release("add_lease")
        self.assertEqual(exchange.answer().status, 204)
        self.gate.fail("add_lease", S3_DOWN)
        exchange = self.client.begin("PUT", LEASE, secrets=LEASES)
        self.gate.release("add_lease")
        self.assert_unavailable(exchange.answer())

    def test_lease_on_what_is_not_listed_yet(self) -> None:
        """While the bucket is being listed, the index's "no shares" is not believed."""
        self.talk.upload(0, DATA)
        known, self.server.get_shares = self.server.get_shares, lambda _: []  # type: ignore[method-assign]
        enumerate_shares = self.server.enumerate_mutable_shares

        def listed(storage_index: bytes) -> Any:
            self.server.get_shares = known  # type: ignore[method-assign]
            return enumerate_shares(storage_index)

        self.server.enumerate_mutable_shares = listed  # type: ignore[method-assign]
        self.assertEqual(self.talk.ask("PUT", LEASE, secrets=LEASES).status, 204)

    def test_read_test_write(self) -> None:
        self.gate.hold("rtw")
        exchange = self.begin_change()
        self.assert_waits(exchange, "rtw")
        self.gate.release("rtw")
        self.assertEqual(loads(exchange.answer().body), {"success": True, "data": {}})

    def test_hanging_up_does_not_stop_a_read_test_write(self) -> None:
        self.gate.hold("rtw")
        exchange = self.begin_change()
        exchange.hang_up()
        self.gate.release("rtw")
        self.assertEqual(self.talk.get(MUTABLE + "/0").body, DATA)

    def test_failures_of_a_read_test_write(self) -> None:
        self.gate.fail("rtw", S3_DOWN)
        self.assert_unavailable(self.begin_change().answer())
        self.gate.hold("rtw")
        self.gate.fail("rtw", ZeroDivisionError("a defect"))
        exchange = self.begin_change()
        exchange.hang_up()
        self.gate.release("rtw")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_questions_that_fail(self) -> None:
        for name, path in (("get_buckets", IMMUTABLE + "/shares"), ("get_buckets", IMMUTABLE + "/0"),
                           ("enumerate", MUTABLE + "/shares"), ("length", MUTABLE + "/0")):
            self.gate.fail(name, S3_DOWN)
            self.assert_unavailable(self.talk.get(path))


class ImmutableReadingTests(WaitingTestCase):
    """Shares of several pieces, as bodies of answers."""

    PATH = IMMUTABLE + "/0"

    def setUp(self) -> None:
        super().setUp()
        self.data = DATA * 1000
        self.talk.upload(0, self.data)
        self.gate.calls.clear()

    def reads(self) -> int:
        return self.gate.calls.count("read")

    def test_bytes_are_handed_on_as_they_come(self) -> None:
        self.gate.hold("read")
        exchange = self.client.begin("GET", self.PATH, headers={"Range": f"bytes=1-{PIECE_BYTES + 1}"})
        self.assert_waits(exchange, "read")
        self.gate.release("read")
        answer = exchange.answer()
        self.assertEqual((answer.status, answer.complete), (206, False))
        self.assertEqual(answer.body, self.data[1 : PIECE_BYTES + 1])
        self.assertEqual(answer.headers["content-range"], [f"bytes 1-{PIECE_BYTES + 1}/*"])
        self.gate.release("read")
        answer = exchange.answer()
        self.assertEqual((answer.body, answer.complete), (self.data[1 : PIECE_BYTES + 2], True))

    def test_no_faster_than_the_client_reads(self) -> None:
        self.gate.hold("read")
        exchange = self.client.begin("GET", self.PATH)
        self.gate.release("read")
        exchange.pause()
        self.gate.release("read")
        exchange.run()
        self.assertEqual((self.reads(), self.gate.waiting()), (2, []))
        exchange.resume()
        self.assertEqual(self.reads(), 3)
        while self.gate.waiting():
            self.gate.release("read")
        answer = exchange.answer()
        self.assertEqual((answer.status, answer.body, answer.complete), (200, self.data, True))

    def test_error_before_the_first_byte(self) -> None:
        for name in ("read", "get_length", "get_buckets"):
            self.gate.fail(name, S3_DOWN)
            self.assert_unavailable(self.talk.get(self.PATH, "bytes=0-9"))
            self.gate.fail(name, S3_DOWN)
            self.assert_unavailable(self.talk.get(self.PATH))

    def test_error_after_the_first_byte(self) -> None:
        """The connection is cut, so that the client cannot take the part for the whole."""
        for error in (S3_DOWN, CancelledError()):
            self.gate.fail("read", error, after=1)
            exchange = self.client.begin("GET", self.PATH)
            answer = exchange.answer()
            self.assertEqual((answer.status, answer.complete), (200, False))
            self.assertTrue(exchange.transport.aborted)
            exchange.hang_up()
        self.assertIn(str(S3_DOWN), self.warnings()[0])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_share_shorter_than_its_length(self) -> None:
        read = StockReader.read
        self.patch(StockReader, "read", lambda reader, offset, length: read(reader, offset, length)[:-1])
        self.assertEqual(self.talk.get(self.PATH).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ShareChanged)), 1)

    def test_share_that_vanishes(self) -> None:
        """404 as long as nothing was sent."""
        for name in ("get_length", "read"):
            self.gate.fail(name, KeyError(0))
            answer = self.talk.get(self.PATH, "bytes=0-99")
            self.assertEqual((answer.status, answer.body), (404, b""))

    def test_hanging_up_stops_the_reading(self) -> None:
        self.gate.hold("read")
        waiting = self.client.begin("GET", self.PATH)
        streaming = self.client.begin("GET", self.PATH)
        paused = self.client.begin("GET", self.PATH)
        self.gate.release("read")
        self.gate.release("read")
        self.gate.release("read")
        waiting.pause()
        self.gate.release("read")
        waiting.hang_up()
        paused.pause()
        streaming.hang_up()
        paused.hang_up()
        begun = self.reads()
        while self.gate.waiting():
            self.gate.release("read")
        self.assertEqual(self.reads(), begun)
        self.assertEqual((self.flushLoggedErrors(), self.warnings()), ([], []))

    def test_head_reads_nothing(self) -> None:
        self.assertEqual(self.talk.get(self.PATH, "bytes=0-9", method="HEAD").status, 206)
        self.assertEqual(self.reads(), 0)


class MutableReadingTests(WaitingTestCase):
    PATH = MUTABLE + "/0"

    def setUp(self) -> None:
        super().setUp()
        self.data = DATA * 1000
        self.talk.change({0: ([], [(0, self.data)], None)})
        self.gate.calls.clear()

    def test_one_call_for_what_fits(self) -> None:
        """A range of up to 1 MiB is one call, so from one version of the share."""
        for end in (9, MUTABLE_PIECE_BYTES - 1):
            self.assertEqual(self.talk.get(self.PATH, f"bytes=0-{end}").body, self.data[: end + 1])
        self.assertEqual(self.gate.calls, ["slot_readv", "slot_readv"])

    def test_long_ranges_come_in_pieces(self) -> None:
        self.assertEqual(self.talk.get(self.PATH).body, self.data)
        self.assertEqual(self.gate.calls, ["length", "slot_readv", "slot_readv"])

    def test_share_that_vanishes(self) -> None:
        """404 as long as nothing was sent, whatever was asked for; a cut connection afterwards."""
        for span in (None, "bytes=0-99", f"bytes=0-{MUTABLE_PIECE_BYTES + 5}"):
            self.gate.fail("slot_readv", KeyError(0))
            answer = self.talk.get(self.PATH, span)
            self.assertEqual((answer.status, answer.body), (404, b""))
        self.gate.fail("slot_readv", KeyError(0), after=1)
        exchange = self.client.begin("GET", self.PATH)
        self.assertFalse(exchange.answer().complete)
        self.assertTrue(exchange.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_share_that_shrinks(self) -> None:
        """Shortened between the question for its length and the read, it is asked again."""
        self.gate.hold("length")
        exchange = self.client.begin("GET", self.PATH)
        self.gate.hold("slot_readv")
        self.gate.release("length")
        self.talk.change({0: ([], [], 50)})
        self.gate.release("slot_readv")
        self.gate.release("length")
        self.gate.release("slot_readv")
        answer = exchange.answer()
        self.assertEqual((answer.status, answer.body, answer.complete), (200, self.data[:50], True))

    def test_errors(self) -> None:
        for span in (None, "bytes=0-99", "bytes=5-"):
            self.gate.fail("length" if span is None or span[-1] == "-" else "slot_readv", S3_DOWN)
            self.assert_unavailable(self.talk.get(self.PATH, span))
