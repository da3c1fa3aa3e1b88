# SPDX-License-Identifier: GPL-2.0-or-later
"""https to a service whose certificate an authority of the operator's own has signed, and every way to be refused.

The S3 server is the tests' own (tests/support/s3server.py), behind TLS; it checks every signature.
"""
from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from allmydata import client as tahoe
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.ssl import TLSVersion
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols import portforward

from tahoe_s3 import _hook, errors
from tahoe_s3._native import Engine
from tahoe_s3.client import NotFound, S3Client, S3Error, Unavailable, Untrusted
from tahoe_s3.store.opening import RETRY_S

from .live.node_here import fresh_index, open_here
from .native.scripted import ScriptedServer, answer
from .support.authority import Authority
from .support.nodefolder import keys, make_folder
from .support.s3server import S3Server
from .test_client import SECRET, configure, opened

_hook.register()

#: libcurl's words for a certificate of somebody whom nobody knows: before 8.17, and since.
NO_ISSUER = (
    r"SSL certificate (problem: unable to get local issuer certificate|"
    r"OpenSSL verify result: unable to get local issuer certificate \(20\))"
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_twisted.async_yield_fixture
async def secure(authority: Authority) -> AsyncIterator[S3Server]:
    """An S3 server whose certificate is good for 127.0.0.1."""
    server = S3Server(reactor, min_part_bytes=1)
    server.start(tls=authority.server("127.0.0.1"))
    yield server
    await server.stop()


async def refusal(url: str, **options: Any) -> S3Error:
    """What a PUT fails with; the service got nothing."""
    client = opened(url, **options)
    try:
        with pytest.raises(S3Error) as caught:
            await client.put("k", b"body")
    finally:
        await client.close()
    return caught.value


@ensureDeferred
async def test_objects_listings_and_parts(secure: S3Server, authority: Authority) -> None:
    client = opened(secure.url, ca_file=str(authority.bundle), token="user,product")
    secure.settings.token = "user,product"
    body = os.urandom(3_000_000)
    etag = (await client.put("shares/aa/one é", body)).etag
    got = await client.get("shares/aa/one é", offset=1_000_000, length=1_500_000, expect_etag=etag)
    assert got.data == body[1_000_000:2_500_000]
    upload = await client.create_multipart("shares/aa/two")
    parts = [(number, await client.upload_part("shares/aa/two", upload, number, body)) for number in (1, 2)]
    await client.complete_multipart("shares/aa/two", upload, parts, expect_size=6_000_000)
    assert (await client.get("shares/aa/two")).data == body * 2
    assert [entry.size for entry in (await client.list_page("shares/")).entries] == [3_000_000, 6_000_000]
    assert await client.delete_many(["shares/aa/one é", "shares/aa/two"]) == []
    with pytest.raises(NotFound):
        await client.head("shares/aa/two")
    assert not secure.refused
    assert all(seen.values("x-amz-security-token") == ["user,product"] for seen in secure.log)
    await client.close()


@ensureDeferred
async def test_payloads_are_signed_unless_told_otherwise(secure: S3Server, authority: Authority) -> None:
    """The server answers 400 to UNSIGNED-PAYLOAD unless it is told to take it."""
    client = opened(secure.url, ca_file=str(authority.bundle))
    await client.put("k", b"signed")
    await client.close()
    secure.settings.allow_unsigned = True
    config = configure(secure.url, ca_file=str(authority.bundle))
    engine = Engine(endpoint=config.endpoint, region=config.region, bucket=config.bucket, path_style=True,
                    ca_file=config.ca_file, sign_payload=False)
    engine.set_credentials(config.access_key_id, config.secret)
    client = S3Client(reactor, engine, config)  # type: ignore[arg-type]
    await client.put("k", b"not signed")
    assert (await client.get("k")).data == b"not signed"
    payloads = [seen.values("x-amz-content-sha256") for seen in secure.log if seen.operation == "PutObject"]
    assert [payload == ["UNSIGNED-PAYLOAD"] for payload in payloads] == [False, True]
    await client.close()


class Tunnel(portforward.ProxyServer):
    """A proxy that is asked for a tunnel by CONNECT, to the one place it goes to."""

    head = b""

    def connectionMade(self) -> None:
        """Nothing before it is asked."""

    def dataReceived(self, data: bytes) -> None:
        if self.peer is not None:
            super().dataReceived(data)
            return
        self.head += data
        if b"\r\n\r\n" in self.head:
            self.factory.heads.append(self.head)
            self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            super().connectionMade()


@ensureDeferred
async def test_through_a_tunnel(secure: S3Server, authority: Authority) -> None:
    """The proxy learns where to, and who asks, but nothing of the requests."""
    port = int(secure.url.rsplit(":", 1)[1])
    factory = portforward.ProxyFactory("127.0.0.1", port)
    factory.protocol, factory.heads = Tunnel, []
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    client = opened(secure.url, ca_file=str(authority.bundle), max_connections=1,
                    proxy=f"http://127.0.0.1:{listening.getHost().port}")
    body = os.urandom(1_000_000)
    await client.put("shares/aa/one é", body)
    assert (await client.get("shares/aa/one é")).data == body
    await client.close()
    await listening.stopListening()
    (head,) = factory.heads
    lines = head.decode().split("\r\n")
    assert lines[0] == f"CONNECT 127.0.0.1:{port} HTTP/1.1"
    assert "User-Agent: tahoe-s3" in lines
    assert not [line for line in lines if line.lower().startswith(("authorization", "x-amz"))]
    assert [seen.values("user-agent") for seen in secure.log] == [["tahoe-s3"]] * 2
    assert not secure.refused


@ensureDeferred
async def test_one_handshake_serves_many_requests(secure: S3Server, authority: Authority) -> None:
    client = opened(secure.url, ca_file=str(authority.bundle), max_connections=2)
    for number in range(10):
        await client.put(f"k{number}", b"x")
    assert len(secure._open) == 1
    await client.close()


@pytest.mark.parametrize(
    "options", [{"lowerMaximumSecurityTo": TLSVersion.TLSv1_2}, {"raiseMinimumTo": TLSVersion.TLSv1_3}]
)
@ensureDeferred
async def test_both_versions_of_today(authority: Authority, options: dict[str, Any]) -> None:
    server = S3Server(reactor)
    server.start(tls=authority.server("127.0.0.1", **options))
    client = opened(server.url, ca_file=str(authority.bundle))
    await client.put("k", b"body")
    assert (await client.get("k")).data == b"body"
    await client.close()
    await server.stop()


@ensureDeferred
async def test_many_at_once(secure: S3Server, authority: Authority) -> None:
    """More requests than connections, and more new connections than handshakes are begun at a time."""
    client = opened(secure.url, ca_file=str(authority.bundle), max_connections=16)
    bodies = {f"k{number}": os.urandom(50_000 + number) for number in range(60)}
    await gatherResults([client.put(key, body) for key, body in bodies.items()])
    found = await gatherResults([client.get(key, offset=10, length=49_000) for key in bodies])
    assert [got.data for got in found] == [body[10:49_010] for body in bodies.values()]
    assert len(secure._open) <= 16
    await client.close()


@ensureDeferred
async def test_an_answer_that_breaks_off(secure: S3Server, authority: Authority) -> None:
    """A connection that ends without TLS's own goodbye is a cut, and the rest is fetched."""
    client = opened(secure.url, ca_file=str(authority.bundle))
    body = os.urandom(500_000)
    await client.put("k", body)
    secure.drop("GetObject", body_limit_bytes=123_456)
    assert (await client.get("k", offset=0, length=500_000)).data == body
    secure.drop("PutObject", applied=True)
    await client.put("k", b"again")
    assert (await client.get("k")).data == b"again"
    await client.close()


@ensureDeferred
async def test_an_unknown_authority(secure: S3Server, tmp_path: Path) -> None:
    """Not tried again, and nothing was sent; neither an authority of one's own nor the system's will do."""
    other = str(Authority(tmp_path, "other").bundle)
    for options in ({"ca_file": other}, {}):
        error = await refusal(secure.url, **options)
        assert type(error) is Untrusted
        assert (error.kind, error.attempts, error.outcome, error.status) == ("transport", 1, "not_applied", 0)
        assert re.fullmatch(rf"PUT k: CertificateNotTrusted \({NO_ISSUER}\)", str(error))
    assert secure.log == []


@ensureDeferred
async def test_another_host_name(secure: S3Server, authority: Authority) -> None:
    error = await refusal(f"https://localhost:{secure.port}", ca_file=str(authority.bundle))
    assert type(error) is Untrusted
    assert "localhost" in error.message
    assert (error.attempts, secure.log) == (1, [])


@ensureDeferred
async def test_a_host_name_and_a_bucket_before_it(authority: Authority) -> None:
    """With virtual addressing the certificate must cover the bucket's name as well."""
    server = S3Server(reactor, min_part_bytes=1)
    server.start(tls=authority.server("localhost"))
    try:
        client = opened(f"https://localhost:{server.port}", ca_file=str(authority.bundle))
        await client.put("k", b"body")
        assert (await client.get("k")).data == b"body"
        await client.close()
        options = {"ca_file": str(authority.bundle), "addressing": "virtual"}
        error = await refusal(f"https://localhost:{server.port}", **options)
        assert isinstance(error, Unavailable)
        assert error.outcome == "not_applied"
    finally:
        await server.stop()


@pytest.mark.parametrize("days", [(-5, -1), (1, 5)])
@ensureDeferred
async def test_a_certificate_out_of_its_time(authority: Authority, days: tuple[int, int]) -> None:
    server = S3Server(reactor)
    server.start(tls=authority.server("127.0.0.1", days=days))
    error = await refusal(server.url, ca_file=str(authority.bundle))
    await server.stop()
    assert type(error) is Untrusted
    assert ("expired" if days[1] < 0 else "not yet valid") in error.message
    assert error.attempts == 1


@ensureDeferred
async def test_a_bundle_without_a_usable_certificate(secure: S3Server, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    error = await refusal(secure.url, ca_file=str(bundle))
    assert type(error) is Untrusted
    assert str(bundle) in error.message
    with pytest.raises(ValueError, match="cannot be read"):
        opened(secure.url, ca_file=str(tmp_path / "absent.pem"))


@ensureDeferred
async def test_plain_http_to_a_port_that_wants_https(secure: S3Server) -> None:
    error = await refusal(f"http://127.0.0.1:{secure.port}", attempts=2)
    assert type(error) is Unavailable
    assert (error.kind, error.status, secure.log) == ("transport", 0, [])


class PlainSpeaker:
    """Answers the first bytes of a connection, whatever they are, as a web server answers what is not HTTP."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        reactor.addReader(self)  # type: ignore[attr-defined]

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def fileno(self) -> int:
        return self._listener.fileno()

    def logPrefix(self) -> str:
        return "plain"

    def connectionLost(self, reason: object) -> None:
        self._listener.close()

    def doRead(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(5)
            self.received.append(connection.recv(4096))
            connection.sendall(answer(b"<html>Bad Request</html>", status="400 Bad Request"))

    def close(self) -> None:
        reactor.removeReader(self)  # type: ignore[attr-defined]
        self._listener.close()


@ensureDeferred
async def test_https_to_a_port_that_speaks_http(authority: Authority) -> None:
    """Nothing of the request leaves before there is TLS."""
    plain = PlainSpeaker()
    try:
        error = await refusal(f"https://127.0.0.1:{plain.port}", ca_file=str(authority.bundle), attempts=2)
    finally:
        plain.close()
    assert type(error) is Unavailable
    assert (error.kind, error.outcome, error.attempts) == ("transport", "not_applied", 2)
    assert "wrong version number" in error.message
    assert plain.received
    assert all(b"AKIDTESTTEST" not in bytes_ for bytes_ in plain.received)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@ensureDeferred
async def test_no_redirect_is_followed(secure: S3Server, authority: Authority, status: int) -> None:
    """Least of all one from https to http: the plain server is never spoken to."""
    plain = ScriptedServer(lambda _what, _body: answer(b"x"))
    place = f"{plain.url}/bucket/k"
    original = secure._send

    def send(request: Any, call: Any, reply: Any, **options: Any) -> None:
        request.setHeader("location", place)
        original(request, call, reply, **options)

    secure._send = send  # type: ignore[method-assign]
    secure.fail(None, status=status, code="PermanentRedirect" if status < 303 else "TemporaryRedirect", times=None)
    client = opened(secure.url, ca_file=str(authority.bundle))
    attempts: list[Callable[[], Deferred[Any]]] = [
        lambda: client.get("k"), lambda: client.head("k"), lambda: client.put("k", b"body"), client.probe,
    ]
    for attempt in attempts:
        with pytest.raises(S3Error) as caught:
            await attempt()
        assert caught.value.attempts == 1
    assert plain.seen == []
    await client.close()
    plain.close()


# a node


@ensureDeferred
async def test_a_node(secure: S3Server, authority: Authority, tmp_path: Path) -> None:
    """One PUT, parts, ranged reads, a mutable file, and all of it again after a restart."""
    secure.settings.token = "user,product"
    options = {"ca_bundle": authority.bundle, "part_size_bytes": 2**20, "token": "user,product"}
    node = await open_here(reactor, secure, tmp_path, **options)
    small, large, slot = fresh_index(), fresh_index(), fresh_index()
    data = {number: os.urandom(4_000_000) for number in (0, 1)}
    await node.upload(small, {3: b"small share"})
    await node.upload(large, data)
    assert await node.write_slot(slot, [0, 1], b"mutable")
    for _ in range(2):
        assert await node.read(small, 3, [(0, 100)]) == [b"small share"]
        assert await node.read(large, 1, [(3_999_000, 1000), (0, 4_000_000)]) == [data[1][3_999_000:], data[1]]
        assert await node.read_slot(slot) == {0: b"mutable", 1: b"mutable"}
        await node.close()
        node = await open_here(reactor, secure, tmp_path, **options)
    await node.close()
    assert secure.count()["UploadPart"] == 8
    assert not secure.refused


async def refused(basedir: Path, storage: dict[str, str | None]) -> errors.ConfigError:
    make_folder(basedir, storage, secret=SECRET)
    with pytest.raises(errors.ConfigError) as caught:
        await tahoe.create_client(str(basedir))
    assert "\n" not in str(caught.value)
    return caught.value


@ensureDeferred
async def test_a_first_start_with_another_authority(secure: S3Server, tmp_path: Path) -> None:
    bundle = Authority(tmp_path, "other").bundle
    error = await refused(tmp_path / "node", keys(secure, s3__ca_bundle=str(bundle)))
    assert re.fullmatch(
        rf"The certificate of the S3 service at {re.escape(secure.url)} is not trusted \({NO_ISSUER}\); the file that "
        rf"s3\.ca_bundle in tahoe\.cfg names, {re.escape(str(bundle))}, must hold the certificate of the authority "
        r"that signed it, and it must be valid today for the host in s3\.url\.",
        str(error),
    )
    assert secure.log == []


@ensureDeferred
async def test_a_first_start_without_an_authority(secure: S3Server, tmp_path: Path) -> None:
    error = await refused(tmp_path / "node", keys(secure))
    assert type(error) is errors.UntrustedCertificate
    assert str(error).startswith(f"The certificate of the S3 service at {secure.url} is not trusted (")
    assert "let s3.ca_bundle in tahoe.cfg name a file with that authority's certificate" in str(error)


@ensureDeferred
async def test_a_first_start_with_the_wrong_scheme(secure: S3Server, authority: Authority, tmp_path: Path) -> None:
    error = await refused(tmp_path / "one", keys(secure, s3__url=f"http://127.0.0.1:{secure.port}"))
    assert type(error) is errors.Unreachable
    plain = PlainSpeaker()
    try:
        url = f"https://127.0.0.1:{plain.port}"
        error = await refused(tmp_path / "two", keys(s3__url=url, s3__ca_bundle=str(authority.bundle)))
    finally:
        plain.close()
    assert type(error) is errors.Unreachable
    assert "wrong version number" in str(error)


@ensureDeferred
async def test_a_certificate_that_expired_does_not_stop_a_node(authority: Authority, tmp_path: Path) -> None:
    """It says why, starts, and finds its bucket again when the certificate was renewed."""
    server = S3Server(reactor)
    server.start(tls=authority.server("127.0.0.1", days=(-2, -1)))
    said: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_level") is not None and event["log_level"].name == "error":
            said.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        node = await open_here(reactor, server, tmp_path, ca_bundle=authority.bundle)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert any("certificate has expired" in line and "s3.ca_bundle" in line for line in said)
    with pytest.raises(Unavailable):
        await node.server.get_buckets(b"\0" * 16)
    port = server.port
    await server.stop()
    server.start(port, tls=authority.server("127.0.0.1"))
    for _ in range(100):
        node.clock.advance(RETRY_S)
        await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]
        if node.server.store.problem is None:
            break
    assert await node.server.get_buckets(b"\0" * 16) == {}
    await node.close()
    await server.stop()
