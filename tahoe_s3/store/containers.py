# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's two share containers, read from bytes: what kind an object is, where its data lies, what leases it has.

Tahoe's own ShareFile and MutableShareFile want a path; a share in a bucket has none. The formats are those of
allmydata/storage/immutable.py and mutable.py, the schemas (magic, versions, lease records) are Tahoe's objects.

Errors: UnknownImmutableContainerVersionError and UnknownMutableContainerVersionError as Tahoe raises them, but
never with more of the object than the 32 bytes that name its version, since a write enabler follows them in clear;
DamagedContainerError for an object that is cut off or contradicts itself.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Callable, NamedTuple

from allmydata.storage.common import UnknownImmutableContainerVersionError, UnknownMutableContainerVersionError
from allmydata.storage.immutable_schema import schema_from_version
from allmydata.storage.mutable_schema import schema_from_header

from tahoe_s3.store.index import IMMUTABLE, MUTABLE
from tahoe_s3.store.leases import MAX_LEASES, Lease

IMMUTABLE_HEADER_BYTES = 12
IMMUTABLE_LEASE_BYTES = 72
MAGIC_BYTES = 32
#: Magic, node id, write enabler, data length, offset of the extra leases: all that tells where the data is.
MUTABLE_HEADER_BYTES = 100
MUTABLE_LEASE_BYTES = 92
MUTABLE_LEASE_SLOTS = 4
MUTABLE_DATA_OFFSET = MUTABLE_HEADER_BYTES + MUTABLE_LEASE_SLOTS * MUTABLE_LEASE_BYTES
#: So many bytes of an object's start always suffice for parse_head.
HEAD_BYTES = MUTABLE_HEADER_BYTES

_IMMUTABLE_HEADER = struct.Struct(">LLL")
_MUTABLE_SIZES = struct.Struct(">QQ")
_MUTABLE_SIZES_OFFSET = MUTABLE_HEADER_BYTES - _MUTABLE_SIZES.size
_COUNT = struct.Struct(">L")

ReadRange = Callable[[int, int], bytes]
"""(offset, length) -> those bytes of the object, fewer where it ends."""


class DamagedContainerError(Exception):
    """An object under a share's key that cannot be a whole share container. Its text quotes no byte of it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"the share {name} is damaged: {problem}")
        self.name = name
        self.problem = problem


class Head(NamedTuple):
    """What a container's first bytes and its object's size tell. Offsets and lengths in bytes of the object.

    leases_offset: immutable: of the first lease; mutable: of the count of extra leases.
    lease_count: immutable: how many there are; mutable: 0, the count is at leases_offset.
    """

    kind: str
    version: int
    data_offset: int
    data_length: int
    leases_offset: int
    lease_count: int
    serializer: Any


def needed_head_bytes(object_size: int) -> int:
    """How many bytes of the start parse_head wants to see."""
    return min(HEAD_BYTES, object_size)


def parse_head(name: str, start: bytes, *, object_size: int) -> Head:
    """Read the start of an object (at least needed_head_bytes of it). `name` is for errors: the object's key."""
    schema = schema_from_header(start[:MAGIC_BYTES])
    if schema is not None:
        return _mutable_head(name, start, schema=schema, object_size=object_size)
    if len(start) < IMMUTABLE_HEADER_BYTES:
        raise DamagedContainerError(name, f"{object_size} bytes are less than a header")
    version, _, lease_count = _IMMUTABLE_HEADER.unpack_from(start)
    schema = schema_from_version(version)
    if schema is None:
        raise UnknownImmutableContainerVersionError(name, version)
    data_length = object_size - IMMUTABLE_HEADER_BYTES - lease_count * IMMUTABLE_LEASE_BYTES
    if data_length < 0:
        raise DamagedContainerError(name, f"{object_size} bytes are too few for the {lease_count} leases it claims")
    return Head(
        IMMUTABLE, version, IMMUTABLE_HEADER_BYTES, data_length, IMMUTABLE_HEADER_BYTES + data_length, lease_count,
        schema.lease_serializer,
    )  # fmt: skip


def _mutable_head(name: str, start: bytes, *, schema: Any, object_size: int) -> Head:
    if len(start) < MUTABLE_HEADER_BYTES or object_size < MUTABLE_DATA_OFFSET + _COUNT.size:
        raise DamagedContainerError(name, f"{object_size} bytes are less than a mutable container")
    data_length, leases_offset = _MUTABLE_SIZES.unpack_from(start, _MUTABLE_SIZES_OFFSET)
    if MUTABLE_DATA_OFFSET + data_length > leases_offset:
        raise DamagedContainerError(name, "its data reaches into its leases")
    if leases_offset + _COUNT.size > object_size:
        raise DamagedContainerError(name, f"its leases lie beyond its {object_size} bytes")
    return Head(
        MUTABLE, schema.version, MUTABLE_DATA_OFFSET, data_length, leases_offset, 0, schema.lease_serializer
    )


def require_mutable(name: str, start: bytes) -> None:
    """Raise as Tahoe's MutableShareFile does where `start`, a container's first bytes, is not a mutable one's."""
    if kind_of(start) != MUTABLE:
        raise UnknownMutableContainerVersionError(name, start[:MAGIC_BYTES])


def require_immutable(name: str, start: bytes) -> None:
    """Raise as Tahoe's ShareFile does where a mutable container is there instead."""
    if kind_of(start) == MUTABLE:
        raise UnknownImmutableContainerVersionError(name, mutable_instead())


def mutable_instead() -> int:
    """The version number that Tahoe's ShareFile reports when it is opened on a mutable container."""
    return int.from_bytes(b"Taho", "big")


def parse_leases(name: str, head: Head, read: ReadRange) -> tuple[Lease, ...]:
    """All leases of a container whose head is known. DamagedContainerError where they are cut off."""
    found: list[Lease] = []
    for record in _lease_records(name, head, read):
        info = head.serializer.unserialize(record)
        if head.kind == IMMUTABLE or info.owner_num != 0:
            found.append(Lease.from_tahoe(info))
    return tuple(found)


def _exactly(name: str, read: ReadRange, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise DamagedContainerError(name, "its leases are cut off")
    return data


def _lease_records(name: str, head: Head, read: ReadRange) -> list[bytes]:
    size = IMMUTABLE_LEASE_BYTES if head.kind == IMMUTABLE else MUTABLE_LEASE_BYTES
    count, offset, records = head.lease_count, head.leases_offset, b""
    if head.kind == MUTABLE:
        records = _exactly(name, read, MUTABLE_HEADER_BYTES, MUTABLE_LEASE_SLOTS * size)
        (count,) = _COUNT.unpack(_exactly(name, read, offset, _COUNT.size))
        offset += _COUNT.size
    if count > MAX_LEASES:
        raise DamagedContainerError(name, f"it claims {count} leases, more than {MAX_LEASES}")
    records += _exactly(name, read, offset, count * size)
    return [records[start : start + size] for start in range(0, len(records), size)]


class Container(NamedTuple):
    """A whole share object that was looked at: its head, its leases, its size in bytes."""

    head: Head
    leases: tuple[Lease, ...]
    size: int


def inspect_bytes(name: str, data: bytes) -> Container:
    """Look at a whole object in memory."""
    head = parse_head(name, data[:HEAD_BYTES], object_size=len(data))
    return Container(head, parse_leases(name, head, lambda offset, length: data[offset : offset + length]), len(data))


def inspect_file(name: str, path: Path) -> Container:
    """Look at a local copy of an object, reading its head and its leases only. OSError where it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        head = parse_head(name, os.pread(fd, HEAD_BYTES, 0), object_size=size)
        leases = parse_leases(name, head, lambda offset, length: os.pread(fd, length, offset))
        return Container(head, leases, size)
    finally:
        os.close(fd)


def kind_of(start: bytes) -> str | None:
    """The kind of container that starts with these bytes, or None where it is neither."""
    if schema_from_header(start[:MAGIC_BYTES]) is not None:
        return MUTABLE
    if len(start) >= IMMUTABLE_HEADER_BYTES and schema_from_version(_IMMUTABLE_HEADER.unpack_from(start)[0]):
        return IMMUTABLE
    return None
