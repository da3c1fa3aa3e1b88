# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an answer of ours may differ from the disk backend's, and why. There are no others.

The oracle asks for one of them by its name, and only after it has seen that the case is there; what it then expects
of ours is written beside the call (pair.py). `met` counts them, so that a long run shows which were tried.
"""

from __future__ import annotations

from collections import Counter

#: Name -> the reason.
INTENDED = {
    "a lease belongs to the storage index": (
        "Later leases lie in one object for all shares of a storage index, since a bucket would charge a request for "
        "each. So a share that came after a lease has it too, and a renewal succeeds where any share has the lease: "
        "the disk backend gives up at the first share that has not, in the order of a directory."
    ),
    "a lease needs no room here": (
        "The disk backend refuses a new lease when its disk is full or read-only (and an allocation with it, where "
        "there are shares already); a bucket takes it, and refusing would let shares expire that clients still want."
    ),
    "a kind that nobody has read yet": (
        "After a rebuild from listings the index does not know whether a share is mutable. Asking for shares costs "
        "no request, so the wrong kind of question is answered with an error only when the share is read."
    ),
    "all or nothing": (
        "Where the disk backend raises in the middle of a read-test-write (too large, no room for a lease), what it "
        "wrote before stays. Here the bucket is touched only when Tahoe's code has succeeded."
    ),
    "which of two errors": (
        "A slot with a share of another kind and one with another write enabler has two reasons to refuse; the disk "
        "backend names the one that comes first in the order of a directory."
    ),
    "an upload that has ended": (
        "A second close has the outcome of the first, since an HTTP client that got no answer sends its last PATCH "
        "again; the disk backend stops at an assertion, or at a timer that was cancelled already. A write is an error "
        "in both, of whatever class."
    ),
}

#: How often each was met in this process.
met: Counter[str] = Counter()


def intended(name: str) -> None:
    """The answers differ here, for the reason of that name."""
    assert name in INTENDED, f"{name!r} is not in the list of differences"
    met[name] += 1
