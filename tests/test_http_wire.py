# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP protocol: the same answers as Tahoe's own server.

The same conversations are held with Tahoe's HTTPServer over its StorageServer and with S3HTTPServer, over a
HeldServer and over S3StorageServer, and every status, header and body is compared.
"""
from __future__ import annotations

from typing import Any, Callable

from allmydata.storage.http_common import Secrets
from allmydata.storage.http_server import HTTPServer
from allmydata.storage.immutable import ShareFile
from allmydata.util.cbor import dumps

from tahoe_s3.http import S3HTTPServer

from .http_talk import DATA, ENABLER, IMMUTABLE, LEASE, LEASES, MUTABLE, UPLOAD, HTTPTestCase, Talk
from .raw_http import RawClient


def generic(talk: Talk) -> None:
    talk.ask("GET", "/storage/v1/version")
    talk.ask("GET", "/storage/v1/version", swissnum=b"wrong")
    talk.ask("GET", "/storage/v1/version", swissnum=None)
    talk.ask("GET", "/storage/v1/version", headers={"Accept": "image/gif"})
    talk.ask("GET", "/storage/v1/version", secrets=UPLOAD)
    talk.ask("POST", "/storage/v1/version")
    talk.ask("GET", "/storage/v1/elsewhere")
    talk.ask("GET", "/storage/v1/immutable/tooshort/shares")
    talk.ask("GET", f"{IMMUTABLE}/x")
    talk.ask("HEAD", "/storage/v1/version")


def uploads(talk: Talk) -> None:
    talk.allocate({0, 1, 7}, len(DATA))
    talk.allocate({0, 2}, len(DATA))
    talk.patch(0, 100, DATA[100:200])
    talk.patch(0, 150, DATA[150:300])
    talk.patch(0, 150, b"conflict" * 10)
    talk.patch(0, 0, DATA[:100], secrets={Secrets.UPLOAD: b"someone else's"})
    talk.patch(0, 0, DATA[:100], secrets={})
    talk.patch(3, 0, DATA)
    talk.ask("PATCH", f"{IMMUTABLE}/0", body=DATA, secrets=UPLOAD)
    talk.ask("PATCH", f"{IMMUTABLE}/0", body=DATA, secrets=UPLOAD, headers={"Content-Range": "sectors 0-9/*"})
    talk.get(IMMUTABLE + "/shares")
    talk.get(IMMUTABLE + "/0")
    talk.patch(0, 0, DATA)
    talk.patch(0, 0, DATA)
    talk.patch(7, 300, DATA[300:])
    talk.patch(7, 0, DATA[:300])
    talk.get(IMMUTABLE + "/shares")
    talk.ask("PUT", f"{IMMUTABLE}/0/abort", secrets=UPLOAD)
    talk.ask("PUT", f"{IMMUTABLE}/1/abort", secrets={Secrets.UPLOAD: b"someone else's"})
    talk.ask("PUT", f"{IMMUTABLE}/1/abort", secrets=UPLOAD)
    talk.ask("PUT", f"{IMMUTABLE}/1/abort", secrets=UPLOAD)
    talk.ask("PUT", f"{IMMUTABLE}/9/abort", secrets=UPLOAD)
    talk.patch(1, 0, DATA)
    talk.allocate({0, 1, 7}, len(DATA))


def bad_uploads(talk: Talk) -> None:
    talk.ask("POST", IMMUTABLE, body=b"not CBOR", secrets={**LEASES, **UPLOAD})
    talk.ask("POST", IMMUTABLE, body=dumps({"share-numbers": {1}}), secrets={**LEASES, **UPLOAD})
    talk.ask("POST", IMMUTABLE, body=b"x" * 9000, secrets={**LEASES, **UPLOAD})
    talk.ask("POST", IMMUTABLE, body=dumps({}), secrets=UPLOAD)
    talk.allocate({1}, 10, headers={"Content-Type": "text/plain"})
    talk.allocate(set(), 10)
    talk.allocate({1}, 10)
    talk.patch(1, 5, b"past the end")
    talk.ask("PATCH", f"{IMMUTABLE}/1", body=b"ab", secrets=UPLOAD, headers={"Content-Range": "bytes 0-8/*"})
    talk.ask("PATCH", f"{IMMUTABLE}/1", body=b"ab", secrets=UPLOAD, headers={"Content-Range": "bytes */10"})


RANGES = [
    None, "bytes=0-9", "bytes=0-0", "bytes=100-99999999", "bytes=2047-2047", "bytes=2048-2050", "bytes=9999-10000",
    "bytes=5-4", "bytes=-5", "bytes=5-", "bytes=0-1,5-6", "lines=0-3", "bytes=", "nonsense", "bytes=a-b", "",
]


def immutable_reads(talk: Talk) -> None:
    for span in ("bytes=0-9", "bytes=5-"):
        talk.get(IMMUTABLE + "/0", span)
    talk.upload(0, DATA)
    for span in RANGES:
        talk.get(IMMUTABLE + "/0", span)
        talk.get(IMMUTABLE + "/0", span, method="HEAD")
    talk.get(IMMUTABLE + "/1", "bytes=0-9")


def long_immutable_reads(talk: Talk) -> None:
    data = DATA * 700
    talk.upload(4, data)
    for span in (None, "bytes=1-1433000", "bytes=524288-1048575", "bytes=1000-524000", "bytes=0-99999999"):
        answer = talk.get(IMMUTABLE + "/4", span)
        assert answer.complete, span


def empty_share(talk: Talk) -> None:
    talk.change({3: ([], [], None)})
    for span in (None, "bytes=0-9", "bytes=5-"):
        talk.get(MUTABLE + "/3", span)


def leases(talk: Talk) -> None:
    talk.ask("PUT", LEASE, secrets=LEASES)
    talk.upload(0, DATA)
    talk.ask("PUT", LEASE, secrets=LEASES)
    talk.ask("PUT", LEASE, secrets={Secrets.LEASE_RENEW: b"n" * 32, Secrets.LEASE_CANCEL: b"m" * 32})
    talk.ask("PUT", LEASE, secrets={Secrets.LEASE_RENEW: b"short", Secrets.LEASE_CANCEL: b"m" * 32})
    talk.ask("PUT", LEASE)


def corruption(talk: Talk) -> None:
    reason = dumps({"reason": "bit rot \N{SNOWMAN}"})
    for path in (IMMUTABLE, MUTABLE):
        talk.ask("POST", path + "/0/corrupt", body=reason)
    talk.upload(0, DATA)
    for path in (IMMUTABLE, MUTABLE):
        talk.ask("POST", path + "/0/corrupt", body=reason)
        talk.ask("POST", path + "/1/corrupt", body=reason)
        talk.ask("POST", path + "/0/corrupt", body=dumps({"reason": ""}))
        talk.ask("POST", path + "/0/corrupt", body=b"x" * 40000)
        talk.ask("POST", path + "/0/corrupt", body=reason, headers={"Content-Type": "text/html"})


def mutable_changes(talk: Talk) -> None:
    talk.get(MUTABLE + "/shares")
    talk.get(MUTABLE + "/1")
    talk.get(MUTABLE + "/1", "bytes=5-")
    new = ([(0, 1, b"")], [(0, DATA)], None)
    talk.change({1: new, 2: new}, [(0, 10)])
    talk.change({1: new}, [(0, 10), (5, 99999)])
    talk.change({1: ([(0, 4, DATA[:4])], [(2, b"changed")], None)}, [(0, 12)])
    talk.change({1: ([], [(0, b"no")], None)}, secrets={**ENABLER, Secrets.WRITE_ENABLER: b"w" * 32})
    talk.change({1: ([], [], None)}, secrets=LEASES)
    talk.change({1: ([], [], 20)}, [(0, 5)])
    for span in RANGES:
        talk.get(MUTABLE + "/1", span)
        talk.get(MUTABLE + "/2", span)
        talk.get(MUTABLE + "/2", span, method="HEAD")
    talk.get(MUTABLE + "/shares")
    talk.change({2: ([], [], 0)})
    talk.get(MUTABLE + "/shares")
    talk.get(MUTABLE + "/2")
    talk.ask("POST", MUTABLE + "/read-test-write", body=b"not CBOR", secrets=ENABLER)
    talk.ask("PUT", LEASE, secrets=LEASES)


def long_mutable_reads(talk: Talk) -> None:
    talk.change({0: ([], [(i * 500_000, DATA[i:] * 250) for i in range(5)], None)})
    for span in (None, "bytes=0-1048575", "bytes=7-1048582", "bytes=0-1048576", "bytes=3-99999999"):
        answer = talk.get(MUTABLE + "/0", span)
        assert answer.complete, span


class ContractTests(HTTPTestCase):
    """S3HTTPServer answers as Tahoe's HTTPServer does."""

    def both(self, conversation: Callable[[Talk], None], errors: int = 0) -> None:
        expected = self.hold(conversation, self.tahoes(), errors)
        server, client = self.ours()
        for actual in (self.hold(conversation, client, errors),
                       self.hold(conversation, self.ours_on_a_bucket(), errors)):
            for (what, theirs), (_, our) in zip(expected.answers, actual.answers):
                self.assertEqual((theirs.status, theirs.headers), (our.status, our.headers), what)
                same = theirs.body == our.body
                self.assertTrue(same, f"{what}: {theirs.body[:300]!r} {our.body[:300]!r}")
                self.assertEqual(theirs.complete, our.complete, what)
        self.assertEqual(server.gate.cancelled, [])

    def hold(self, conversation: Callable[[Talk], None], client: RawClient, errors: int) -> Talk:
        """A conversation that makes the server log so many errors."""
        talk = Talk(client)
        conversation(talk)
        self.assertEqual(len(self.flushLoggedErrors()), errors)
        return talk

    def test_generic(self) -> None:
        self.both(generic)

    def test_uploads(self) -> None:
        self.both(uploads)

    def test_bad_uploads(self) -> None:
        self.both(bad_uploads, errors=3)

    def test_immutable_reads(self) -> None:
        self.both(immutable_reads)

    def test_long_immutable_reads(self) -> None:
        self.both(long_immutable_reads)

    def test_empty_share(self) -> None:
        self.both(empty_share)

    def test_leases(self) -> None:
        self.both(leases)

    def test_corruption(self) -> None:
        self.both(corruption)

    def test_mutable_changes(self) -> None:
        self.both(mutable_changes)

    def test_long_mutable_reads(self) -> None:
        self.both(long_mutable_reads)

    def test_a_write_that_the_disk_refused(self) -> None:
        """Its bytes are zeros in the spool: the share is stored when they were sent again, and not before."""
        talk = Talk(self.ours_on_a_bucket())
        talk.allocate({0}, len(DATA))
        write = ShareFile.write_share_data

        def refuse(share: Any, offset: int, data: bytes) -> None:
            write(share, offset, data[:10])
            raise OSError(28, "No space left on device")

        self.patch(ShareFile, "write_share_data", refuse)
        self.assertEqual(talk.patch(0, 0, DATA[:100]).status, 500)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.patch(ShareFile, "write_share_data", write)
        answer = talk.patch(0, 100, DATA[100:])
        self.assertEqual((answer.status, answer.body), (200, dumps({"required": [{"begin": 0, "end": 100}]})))
        self.assertEqual(talk.get(IMMUTABLE + "/0").status, 404)
        self.assertEqual(talk.patch(0, 0, DATA[:100]).status, 201)
        self.assertEqual(talk.get(IMMUTABLE + "/0").body, DATA)

    def test_every_route(self) -> None:
        """No route of Tahoe's is missing, with the methods it has there."""

        def routes(app: Any) -> set[tuple[str, frozenset[str]]]:
            return {(rule.rule, frozenset(rule.methods)) for rule in app.url_map.iter_rules()}

        self.assertEqual(routes(HTTPServer._app), routes(S3HTTPServer._app))
