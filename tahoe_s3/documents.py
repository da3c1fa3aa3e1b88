# SPDX-License-Identifier: GPL-2.0-or-later
"""The small XML documents that are sent to S3, and the two that are read without the engine's parsers.

Pure functions. Source: DeleteObjects, CompleteMultipartUpload, GetBucketVersioning and GetObjectLockConfiguration
in the Amazon S3 API reference.
"""
from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write."""

_WHITE: Final = {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
_MD5: Final = re.compile("[0-9a-f]{32}")
_MULTIPART_MD5: Final = re.compile("[0-9a-f]{32}-[0-9]+")
_STATUS: Final = re.compile(rb"<Status>\s*([A-Za-z]+)\s*</Status>")
_LOCK: Final = re.compile(rb"<ObjectLockEnabled>\s*([A-Za-z]+)\s*</ObjectLockEnabled>")


def delete(keys: Iterable[str]) -> bytes:
    """The body of DeleteObjects, quiet: only failures are answered. No key may match NOT_XML."""
    objects = "".join(f"<Object><Key>{escape(key, _WHITE)}</Key></Object>" for key in keys)
    return f'<Delete xmlns="{NAMESPACE}"><Quiet>true</Quiet>{objects}</Delete>'.encode()


def complete(parts: Sequence[tuple[int, str]]) -> bytes:
    """The body of CompleteMultipartUpload, from (number, ETag without quotes), sorted by number."""
    body = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>"
        for number, etag in sorted(parts)
    )
    return f'<CompleteMultipartUpload xmlns="{NAMESPACE}">{body}</CompleteMultipartUpload>'.encode()


def multipart_etag(etags: Sequence[str]) -> str | None:
    """The ETag that an object of these parts gets where a part's ETag is its MD5; None where it is not."""
    if not etags or not all(_MD5.fullmatch(etag) for etag in etags):
        return None
    joined = b"".join(bytes.fromhex(etag) for etag in etags)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"


def is_multipart_md5(etag: str) -> bool:
    """Whether an object's ETag looks like one made by multipart_etag's rule."""
    return _MULTIPART_MD5.fullmatch(etag) is not None


def versioning(document: bytes) -> str | None:
    """ "Enabled", "Suspended" or "Disabled" (never set); None for another document."""
    if b"VersioningConfiguration" not in document:
        return None
    found = _STATUS.search(document)
    return found.group(1).decode("ascii").capitalize() if found else "Disabled"


def object_lock(document: bytes) -> str | None:
    """ "Enabled", or None where no lock is configured or this is another document."""
    found = _LOCK.search(document)
    return found.group(1).decode("ascii").capitalize() if found else None
