# SPDX-License-Identifier: GPL-2.0-or-later
"""What a contender is asked to do."""
from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

BUCKET = "bucket"
REGION = "us-east-1"
ACCESS_KEY_ID = "AKIDEXAMPLE"
SECRET = "a-secret-of-nobody"
THREADS = 64
"""Most requests in flight, and so connections and, where that is how it is done, threads."""

Payload = Literal["signed", "unsigned", "none"]
"""What a PUT says of its body: its SHA-256, UNSIGNED-PAYLOAD, or, where requests are not signed at all, nothing."""


class Site(NamedTuple):
    """Where the server is, and over https which file of certificates to trust."""

    url: str
    ca_file: str | None = None

    @property
    def https(self) -> bool:
        return self.url.startswith("https:")


class Load(NamedTuple):
    """`parallel` requests are kept in flight. A GET is of the whole object `key`, which has `size` bytes, or, where
    `ranged`, request i is of bytes [i*size, (i+1)*size) of it. A PUT's body has `size` bytes, in memory.

    The null server's objects are as long as their names say."""

    method: str
    key: str
    size: int
    parallel: int
    ranged: bool = False

    @property
    def body(self) -> bytes:
        """Of a PUT; made anew for each run. Not of zeros: those lie in one page that stays in the cache, where they
        were never written, which says more of the allocator than of who sends them."""
        return b"b" * self.size if self.method == "PUT" else b""

    def range_of(self, index: int) -> tuple[int, int]:
        """First and last byte of request `index`."""
        return index * self.size, (index + 1) * self.size - 1


class Contender(Protocol):
    """Keeps its connections from one run to the next. A result shorter than `load.size` is a ValueError.

    `payload` is what its PUTs say over this site; the row "audit" holds it against what the server saw."""

    name: str
    payload: Payload

    def run(self, load: Load, count: int) -> Any:
        """All of it before it returns, or before the Deferred it returns fires (apart.py waits for that)."""

    def close(self) -> Any: ...


def check(load: Load, data: Any) -> None:
    """The body of a GET."""
    if len(data) != load.size:
        raise ValueError(f"{len(data)} bytes came where {load.size} were asked for")
