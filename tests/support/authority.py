# SPDX-License-Identifier: GPL-2.0-or-later
"""A certificate authority that lives as long as a test, and the server certificates that it signs.

    authority = Authority(tmp_path, "one")
    server.start(tls=authority.server("127.0.0.1"))   # and s3.ca_bundle = authority.bundle

Keys are P-256, since they are made in a millisecond. Owner: the test; everything lies in its folder.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Authority:
    """`bundle` is the file with its own certificate, in PEM."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _subject(f"tahoe-s3 test {name}")
        builder = self._builder(self._subject, self._key.public_key(), days=(-2, 30))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.bundle = folder / f"{name}.pem"
        self.bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, days: tuple[int, int]
    ) -> x509.CertificateBuilder:
        now = datetime.now(timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * _DAY)
            .not_valid_after(now + days[1] * _DAY)
        )

    def server(self, *names: str, days: tuple[int, int] = (-1, 10), **options: Any) -> Any:
        """What listenSSL takes, for a server of these host names or addresses; valid from and to, in days from
        now. `options` are those of Twisted's CertificateOptions."""
        from twisted.internet.ssl import CertificateOptions, PrivateCertificate

        loaded = PrivateCertificate.loadPEM(self.server_pem(*names, days=days))
        return CertificateOptions(privateKey=loaded.privateKey.original, certificate=loaded.original, **options)

    def server_pem(self, *names: str, days: tuple[int, int] = (-1, 10)) -> bytes:
        """The same server's certificate and its key, for a server without Twisted."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_subject("server"), key.public_key(), days=days)
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        certificate = builder.add_extension(alternatives, critical=False).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM) + _pem_of_key(key)
