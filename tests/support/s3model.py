# SPDX-License-Identifier: GPL-2.0-or-later
"""One bucket in memory with S3's semantics: objects, ranges, listings, multipart uploads; no HTTP, no clock
of its own.

Raises Denied (sigcheck.py) where S3 answers with an error. Thread: whoever owns the S3Server. Limits: memory.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .sigcheck import Denied


@dataclass(frozen=True)
class Stored:
    """An object as it lies in the bucket; `modified_s` is a wall-clock time, `etag` has its quotes."""

    body: bytes
    etag: str
    modified_s: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    started_s: float
    metadata: Mapping[str, str]
    parts: dict[int, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """One page: keys with objects, common prefixes, and where the next one starts (None: there is none)."""

    entries: Sequence[tuple[str, Stored]]
    prefixes: Sequence[str]
    next_after: str | None


def etag_of(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


class Bucket:
    """The objects and uploads of one bucket."""

    def __init__(self, *, min_part_bytes: int = 5 * 2**20) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.min_part_bytes = min_part_bytes
        self._serial = itertools.count(1)

    def put(self, key: str, body: bytes, *, now_s: float, metadata: Mapping[str, str] | None = None) -> Stored:
        stored = Stored(body, etag_of(body), now_s, dict(metadata or {}))
        self.objects[key] = stored
        return stored

    def get(self, key: str) -> Stored:
        try:
            return self.objects[key]
        except KeyError:
            raise Denied(404, "NoSuchKey", "The specified key does not exist", Key=key) from None

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def list(self, *, prefix: str, delimiter: str, after: str, limit: int) -> Listing:
        """At most `limit` keys and prefixes, in UTF-8 order, strictly behind `after` (a key or a whole
        prefix).
        """
        entries: list[tuple[str, Stored]] = []
        prefixes: list[str] = []
        last = after
        for key in sorted(self.objects, key=str.encode):
            if not key.startswith(prefix) or key.encode() <= after.encode():
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            group = key[: cut + len(delimiter)] if cut >= 0 else None
            if group is not None and (group == after or (prefixes and prefixes[-1] == group)):
                continue
            if len(entries) + len(prefixes) >= limit:
                return Listing(entries, prefixes, last)
            if group is None:
                entries.append((key, self.objects[key]))
            else:
                prefixes.append(group)
            last = key if group is None else group
        return Listing(entries, prefixes, None)

    def create_upload(self, key: str, *, now_s: float, metadata: Mapping[str, str]) -> str:
        upload_id = hashlib.sha256(f"{key} {next(self._serial)}".encode()).hexdigest()[:32]
        self.uploads[upload_id] = Upload(key, now_s, dict(metadata))
        return upload_id

    def upload(self, key: str, upload_id: str) -> Upload:
        found = self.uploads.get(upload_id)
        if found is None or found.key != key:
            raise Denied(404, "NoSuchUpload", "The specified multipart upload does not exist", UploadId=upload_id)
        return found

    def put_part(self, key: str, upload_id: str, number: int, body: bytes, *, now_s: float) -> Stored:
        if not 1 <= number <= 10_000:
            raise Denied(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        part = Stored(body, etag_of(body), now_s)
        self.upload(key, upload_id).parts[number] = part
        return part

    def listed_uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Keys and upload ids of those under way, in order."""
        rows = ((upload.key, upload_id) for upload_id, upload in self.uploads.items())
        return sorted(row for row in rows if row[0].startswith(prefix))

    def complete(self, key: str, upload_id: str, wanted: Sequence[tuple[int, str]], *, now_s: float) -> Stored:
        """Makes the object of the parts named by number and ETag, in ascending order."""
        upload = self.upload(key, upload_id)
        if [number for number, _ in wanted] != sorted({number for number, _ in wanted}) or not wanted:
            raise Denied(400, "InvalidPartOrder", "The list of parts was not in ascending order")
        chosen = []
        for number, etag in wanted:
            part = upload.parts.get(number)
            if part is None or part.etag.strip('"') != etag.strip('"'):
                raise Denied(400, "InvalidPart", f"Part {number} was not uploaded or its ETag differs")
            chosen.append(part)
        if any(len(part.body) < self.min_part_bytes for part in chosen[:-1]):
            raise Denied(400, "EntityTooSmall", "A part that is not the last one is too small")
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag.strip('"')) for part in chosen)).hexdigest()
        stored = Stored(b"".join(part.body for part in chosen), f'"{digest}-{len(chosen)}"', now_s, upload.metadata)
        self.objects[key] = stored
        del self.uploads[upload_id]
        return stored

    def abort(self, key: str, upload_id: str) -> None:
        self.upload(key, upload_id)
        del self.uploads[upload_id]


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, end) of a Range header of one range, None without one; Denied 416 where nothing of it is
    there.
    """
    if header is None or not header.startswith("bytes=") or "," in header:
        return None
    first_text, _, last_text = header[len("bytes=") :].partition("-")
    if first_text:
        first = int(first_text)
        end = min(int(last_text) + 1, size) if last_text else size
    else:
        first, end = max(size - int(last_text), 0), size
    if first >= size or first >= end:
        raise Denied(416, "InvalidRange", "The requested range is not satisfiable", ActualObjectSize=str(size))
    return first, end
