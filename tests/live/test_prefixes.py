# SPDX-License-Identifier: GPL-2.0-or-later
"""Two nodes whose prefixes contain one another, or are the same: only one of them starts, in whatever order their
requests come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from allmydata.util.idlib import nodeid_b2a
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, DeferredList

from tahoe_s3 import errors
from tahoe_s3.store.opening import open_store

from ..support.s3server import S3Server
from .node_here import config_for

NODEIDS = {"upper": nodeid_b2a(b"u" * 20), "lower": nodeid_b2a(b"l" * 20)}
#: The prefixes of the two nodes.
PAIRS = [("", "a/"), ("", "a/b/c/"), ("a/", "a/b/"), ("a/", "a/")]
SAME = ("a/", "a/")


def begin(server: S3Server, folder: Path, who: str, prefix: str) -> Deferred[Any]:
    from dataclasses import replace

    from twisted.internet import reactor

    return open_store(
        reactor, replace(config_for(server), prefix=prefix), nodeid=NODEIDS[who], local_dir=folder / who,
        has_run_before=False,
    )  # fmt: skip


def owners(server: S3Server) -> dict[str, str]:
    """Node ids by the place of their marks."""
    found = {key: stored.body for key, stored in server.bucket.objects.items() if key.endswith("owner.json")}
    return {key[: -len("owner.json")]: json.loads(body)["nodeid"] for key, body in found.items()}


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("first", ["upper", "lower"])
@ensureDeferred
async def test_the_second_one_refuses(s3server: S3Server, tmp_path: Path, pair: Any, first: str) -> None:
    prefixes = dict(zip(("upper", "lower"), pair))
    second = "lower" if first == "upper" else "upper"
    store = await begin(s3server, tmp_path, first, prefixes[first])
    with pytest.raises((errors.OwnedByAnother, errors.NestedOwner)):
        await begin(s3server, tmp_path, second, prefixes[second])
    assert owners(s3server) == {prefixes[first]: NODEIDS[first]}, "and leaves no mark that would stop the first"
    assert await store.check_still_ours(priority=2) is None
    await store.close()


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("held", ["upper", "lower"])
@ensureDeferred
async def test_at_once_one_starts_at_most(s3server: S3Server, tmp_path: Path, pair: Any, held: str) -> None:
    """One has looked whether the place is free, and its mark is under way, while the other starts from end to end."""
    prefixes = dict(zip(("upper", "lower"), pair))
    other = "lower" if held == "upper" else "upper"
    gate = s3server.hold("PutObject", key="owner.json", times=1)
    slow = begin(s3server, tmp_path, held, prefixes[held])
    await gate.reached
    store = await begin(s3server, tmp_path, other, prefixes[other])
    gate.release()
    if pair == SAME:
        # The later mark counts; the one that has started already notices (tests/store/test_watch.py).
        late = await slow
        assert "has taken over" in await store.check_still_ours(priority=2)
        await late.close()
    else:
        with pytest.raises((errors.OwnedByAnother, errors.NestedOwner)):
            await slow
        assert owners(s3server) == {prefixes[other]: NODEIDS[other]}
        assert await store.check_still_ours(priority=2) is None
    await store.close()


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@ensureDeferred
async def test_side_by_side(s3server: S3Server, tmp_path: Path, pair: Any) -> None:
    """Whatever order comes out of it, no two of them serve."""
    starts = [begin(s3server, tmp_path, who, prefix) for who, prefix in zip(("upper", "lower"), pair)]
    results = await DeferredList(starts, consumeErrors=True)
    started = [store for succeeded, store in results if succeeded]
    for succeeded, failure in results:
        if not succeeded:
            assert failure.check(errors.OwnedByAnother, errors.NestedOwner), failure
    ours = [store for store in started if await store.check_still_ours(priority=2) is None]
    for store in started:
        await store.close()
    assert len(ours) <= 1, (len(started), owners(s3server))
