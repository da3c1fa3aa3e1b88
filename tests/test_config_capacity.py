# SPDX-License-Identifier: GPL-2.0-or-later
"""s3.capacity in tahoe.cfg: the sizes that it takes, and the sentence for those that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tahoe_s3 import config

from .test_config import NodeFolder, refused


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return NodeFolder(tmp_path)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (None, None), ("", None), ("1MB", 10**6), ("1000000", 10**6), ("500g", 500 * 10**9), ("2TiB", 2 << 40),
        ("4EiB", 4 << 60),
    ],
)  # fmt: skip
def test_sizes_are_written_as_tahoe_writes_them(node: NodeFolder, text: str | None, size_bytes: int | None) -> None:
    assert node.read(capacity=text).capacity_bytes == size_bytes


@pytest.mark.parametrize(
    "text", ["0", "500", "999999", "5EiB", "99999999999999999999", "1.5TB", "500 GB", "-1GB", "a lot"]
)
def test_what_is_no_size_or_forgets_its_unit(node: NodeFolder, text: str) -> None:
    assert refused(node, capacity=text) == (
        f"[storage]s3.capacity in tahoe.cfg is '{text}'; write a size from 1MB to 4EiB, such as 500GB, remove the line "
        "for no limit, or write readonly = true to take no shares."
    )


@pytest.mark.parametrize("key", ["capasity", "capacity_bytes", "quota", "limit", "max_size"])
def test_other_names_for_it(node: NodeFolder, key: str) -> None:
    assert refused(node, **{key: "500GB"}) == (
        f"[storage]s3.{key} in tahoe.cfg is not a key of tahoe-s3; write s3.capacity, the nearest one that is, or "
        "remove the line."
    )


def test_the_limits_are_those_of_the_sentence() -> None:
    assert (config.MIN_CAPACITY_BYTES, config.MAX_CAPACITY_BYTES) == (10**6, 4 << 60)
