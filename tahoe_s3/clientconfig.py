# SPDX-License-Identifier: GPL-2.0-or-later
"""What an S3 client needs to know, in one frozen object. It says nothing of Tahoe, and checks nothing: the engine and
open_client do."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ClientConfig:
    """All that a client needs to know. Sizes in bytes, no times. The secret and the token are not in its repr."""

    endpoint: str
    """Scheme, host and perhaps port: "https://s3.eu-west-1.amazonaws.com"."""
    region: str
    bucket: str
    access_key_id: str
    secret: bytes = field(repr=False)
    token: str | None = field(default=None, repr=False)
    """Sent, signed, as x-amz-security-token with every request."""
    addressing: Literal["path", "virtual"] = "path"
    prefix: str = ""
    """Put before every key; ends with "/" unless empty."""
    ca_file: str | None = None
    """A bundle of certificates in PEM to trust instead of the system's."""
    proxy: str = field(default="", repr=False)
    """http://[user:password@]host:port, empty for none; the environment is never looked at."""
    max_connections: int = 32
    max_queue: int = 1024
    """Most requests inside the engine."""
    max_waiting: int = 16_384
    """Most requests that wait for room in the engine; one more fails with Busy."""
    buffer_budget_bytes: int = 128 * 1024 * 1024
    """All memory of downloads under way and of windows not closed yet."""
    workers: int = 2
    attempts: int = 5
