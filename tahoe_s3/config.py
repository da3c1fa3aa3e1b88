# SPDX-License-Identifier: GPL-2.0-or-later
"""tahoe.cfg and private/ -> one frozen S3Config, or one sentence about what is wrong.

Owner: plugin.py calls :func:`read_s3_config` once at a node's start; nothing here is read again later. No network, no
reactor. Reads only: tahoe.cfg through allmydata.node._Config, private/s3secret, private/s3usertoken,
private/s3producttoken, and the file that s3.ca_bundle names. Errors are the classes of errors.py. Sizes are in bytes.
Every key is described in docs/configuration.rst.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

BACKEND = "cloud.s3"


@dataclass(frozen=True)
class S3Config:
    """What tahoe.cfg and private/ say about the bucket, checked. Secrets are not part of repr()."""

    access_key_id: str
    secret: bytes = field(repr=False)
    bucket: str
    url: str
    """scheme://host[:port], lower case, no trailing slash."""
    region: str
    region_is_explicit: bool
    """False: the service may name another one, which is then adopted."""
    prefix: str
    """"" or ends with "/"; put before every key."""
    path_style: bool
    """s3.addressing, with `auto` decided."""
    ca_bundle: Optional[Path]
    max_connections: int
    part_size_bytes: int
    token: Optional[str] = field(repr=False, default=None)
    """The value of x-amz-security-token: `user` or `user,product`; None without DevPay or STS."""
    warnings: tuple[str, ...] = ()
    """Sentences for the log, such as that https is wanted."""


@dataclass(frozen=True)
class NodeSettings:
    """What open_storage must know of the node beyond the bucket."""

    nickname: str
    readonly: bool
    reserved_space_bytes: int
    has_permutation_seed: bool
    """False: the node must know whether it has shares before it can start (errors.Unreachable otherwise)."""
