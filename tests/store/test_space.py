# SPDX-License-Identifier: GPL-2.0-or-later
"""The account of space by itself: what fits, what is promised, and that every promise ends exactly once."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3.store.keys import ShareId
from tahoe_s3.store.space import Promise, Space

SHARES = [ShareId(bytes([number]) * 16, number) for number in range(4)]
DISK = 10**9


class Account:
    """A Space whose surroundings are plain numbers."""

    def __init__(self, capacity_bytes: int | None) -> None:
        self.used = 0
        self.is_known = True
        self.unsure: set[ShareId] = set()
        self.space = Space(
            capacity_bytes=capacity_bytes, used_bytes=lambda: self.used, is_known=lambda: self.is_known,
            is_unsure=lambda share: share in self.unsure,
        )  # fmt: skip

    def promise(self, size: int, share: ShareId = SHARES[0], **options: Any) -> Promise | None:
        return self.space.promise(share, bucket_bytes=size, **options)

    def promised(self, size: int, share: ShareId = SHARES[0], **options: Any) -> Promise:
        promise = self.promise(size, share, **options)
        assert promise is not None
        return promise


def test_without_a_limit_the_disk_decides() -> None:
    account = Account(None)
    account.used = 10**30
    first = account.promised(100, spool_bytes=60, disk_free_bytes=100)
    assert account.promise(100, spool_bytes=60, disk_free_bytes=100) is None
    assert account.space.left_bytes is None and account.space.is_known
    assert account.space.room_bytes(100) == 100 and account.space.most_bytes(100) == 100
    account.space.end(first)
    account.space.left_the_disk(first)
    assert (account.space.room_bytes(100), account.space.promised_bytes) == (100, 0)


def test_what_is_promised_is_not_there_for_others() -> None:
    account = Account(1000)
    account.used = 300
    first = account.promised(400)
    assert account.space.left_bytes == 300 and account.space.room_bytes(DISK) == 300
    assert account.promise(301) is None and account.space.promised_bytes == 400
    account.promised(300)
    assert account.promise(1) is None and account.space.room_bytes(DISK) == 0
    account.used += 400
    account.space.end(first)
    assert account.space.left_bytes == 0 and account.space.most_bytes(DISK) == 1000


def test_a_bucket_that_holds_too_much_takes_what_takes_nothing() -> None:
    account = Account(1000)
    account.used = 5000
    assert account.space.left_bytes == -4000 and account.space.room_bytes(DISK) == 0
    assert account.promise(1) is None
    account.space.end(account.promised(0))


def test_nothing_is_given_while_nobody_knows_what_is_used() -> None:
    account = Account(1000)
    account.is_known = False
    assert not account.space.is_known and account.promise(1) is None
    assert account.space.room_bytes(DISK) == 1000, "what is told is an upper bound, not 0"
    account.space.end(account.promised(0))
    account.used = 1000
    assert account.space.room_bytes(DISK) == 0
    free = Account(None)
    free.is_known = False
    free.promised(1)


def test_bytes_of_the_disk_are_promised_until_the_file_is_gone() -> None:
    account = Account(None)
    space = account.space
    promise = account.promised(100, spool_bytes=100, disk_free_bytes=1000)
    for written in (30, 30, 70):
        space.spooled(promise, written)
        assert (space.spool_bytes, space.spooled_bytes) == (100, written)
        assert account.promise(1, spool_bytes=901, disk_free_bytes=1000) is None
    for _ in range(2):
        space.left_the_disk(promise)
        assert (space.spooled_bytes, space.spool_bytes) == (0, 0)
    assert space.promised_bytes == 100, "the bucket may still have it"


def test_what_is_unsure_stays_promised_until_it_is_settled() -> None:
    account = Account(1000)
    promise, other = account.promised(400), account.promised(100, SHARES[1])
    account.unsure = set(SHARES[:2])
    for _ in range(2):
        account.space.end(promise)
    account.space.end(other)
    assert account.space.promised_bytes == 500
    account.unsure.remove(SHARES[0])
    account.used = 400
    account.space.settled(SHARES[0])
    assert account.space.promised_bytes == 100 and account.space.left_bytes == 500
    account.space.settled(SHARES[1])
    assert account.space.promised_bytes == 100, "it is unsure again"
    account.unsure.clear()
    account.space.settled(SHARES[1])
    account.space.end(promise)
    assert account.space.promised_bytes == 0
    account.space.settled(SHARES[2])


STEPS = st.lists(
    st.tuples(st.sampled_from(["promise", "store", "fail", "unsure", "settle", "delete"]), st.integers(0, 400)),
    max_size=60,
)


@given(steps=STEPS)
def test_used_and_promised_never_exceed_the_capacity(steps: list[tuple[str, int]]) -> None:
    """`bucket`: what a service holds at worst. Nothing is refused that would fit, and at the end nothing is owed."""
    account = Account(1000)
    space, open_, stored, unsure = account.space, [], [], {}
    for what, number in steps:
        share = SHARES[number % 4]
        if what == "promise":
            promise = account.promise(number, share)
            left = 1000 - account.used - sum(size for _, size in [*open_, *unsure.values()])
            assert (promise is not None) == (number <= max(0, left))
            if promise is not None:
                open_.append((promise, number))
        elif what == "settle" and share in unsure:
            promise, size = unsure.pop(share)
            account.unsure.discard(share)
            account.used += size
            stored.append(size)
            space.settled(share)
        elif what == "delete" and stored:
            account.used -= stored.pop()
        elif what in ("store", "fail", "unsure") and any(promise.share not in unsure for promise, _ in open_):
            promise, size = next((promise, size) for promise, size in open_ if promise.share not in unsure)
            open_.remove((promise, size))
            if what == "store":
                account.used += size
                stored.append(size)
            elif what == "unsure":
                account.unsure.add(promise.share)
                unsure[promise.share] = (promise, size)
            space.end(promise)
        assert account.used + space.promised_bytes <= 1000
        assert space.promised_bytes == sum(size for _, size in [*open_, *unsure.values()])
    account.unsure.clear()
    for share in list(unsure):
        space.settled(share)
    for promise, _ in open_:
        space.end(promise)
    assert space.promised_bytes == 0
