# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's own expire.* keys for a node on a bucket: what works, and the sentence for what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tahoe_s3 import errors

from .test_config import NodeFolder


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return NodeFolder(tmp_path)


@pytest.mark.parametrize(
    "expire",
    [
        {},
        {"enabled": "false", "mode": "age", "cutoff_date": "2026-01-16"},
        {"enabled": "True", "mode": "age"},
        {"enabled": "on", "mode": "age", "override_lease_duration": "60 days", "mutable": "no"},
        {"enabled": "1", "mode": "cutoff-date", "cutoff_date": "2026-01-16", "immutable": "off"},
        {"override_lease_duration": "2mo"},
    ],
)
def test_expire_keys_that_work(node: NodeFolder, expire: dict[str, str]) -> None:
    assert node.read(**{f"stock_expire.{key}": value for key, value in expire.items()}).bucket == "my-shares"


@pytest.mark.parametrize(
    ("expire", "said"),
    [
        ({"enabled": "maybe"}, "expire.enabled in tahoe.cfg is 'maybe'; write true or false."),
        ({"mutable": "2"}, "expire.mutable in tahoe.cfg is '2'; write true or false."),
        ({"immutable": ""}, "expire.immutable in tahoe.cfg is ''; write true or false."),
        ({"enabled": "true"}, "expire.mode in tahoe.cfg is missing, while expire.enabled is on; write expire.mode ="),
        ({"mode": "Age"}, "expire.mode in tahoe.cfg is 'Age'; write expire.mode = age, or"),
        ({"mode": "cutoff-date"}, "expire.cutoff_date in tahoe.cfg is missing, while expire.mode is cutoff-date;"),
        ({"mode": "cutoff-date", "cutoff_date": "January 16"}, "expire.cutoff_date in tahoe.cfg is 'January 16'; "),
        ({"mode": "cutoff-date", "cutoff_date": "2026-13-45"}, "write a date such as 2026-01-16."),
        ({"override_lease_duration": "60"}, "expire.override_lease_duration in tahoe.cfg is '60'; write a number of"),
        ({"override_lease_duration": "-7 days"}, "expire.override_lease_duration in tahoe.cfg is '-7 days'; "),
        ({"override_lease_duration": "0days"}, "that is not 0, such as 60 days, 2mo or 1 year."),
        (
            {"enabled": "true", "mode": "age", "cutoff_date": "2026-01-16"},
            "expire.cutoff_date in tahoe.cfg has no meaning while expire.mode is age; remove the line, or change",
        ),
        (
            {"enabled": "true", "mode": "cutoff-date", "cutoff_date": "2026-01-16", "override_lease_duration": "2mo"},
            "expire.override_lease_duration in tahoe.cfg has no meaning while expire.mode is cutoff-date;",
        ),
    ],
)
def test_expire_keys_that_do_not(node: NodeFolder, expire: dict[str, str], said: str) -> None:
    with pytest.raises(errors.BadValue) as caught:
        node.read(**{f"stock_expire.{key}": value for key, value in expire.items()})
    assert said in str(caught.value)
