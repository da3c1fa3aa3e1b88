# SPDX-License-Identifier: GPL-2.0-or-later
"""What requests may cost: section 5 of the design, as numbers for what lies in a bucket.

A share that fits one part goes up as one PutObject; a larger one as CreateMultipartUpload, an UploadPart
for every part and CompleteMultipartUpload. Reads of a share up to 1 MiB are one GetObject, then none while
it is cached; of a larger one front to back one for the tail and one for each window, which doubles from 256
KiB to 8 MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

MIB = 2**20
PART_BYTES = 8 * MIB
SMALL_SHARE_BYTES = MIB
FIRST_WINDOW_BYTES, LAST_WINDOW_BYTES = 256 * 1024, 8 * MIB


def of_upload(sizes_bytes: Iterable[int], *, part_bytes: int = PART_BYTES) -> dict[str, int]:
    """Requests by operation for new shares whose objects have these sizes."""
    found: Counter[str] = Counter()
    for size in sizes_bytes:
        if size <= part_bytes:
            found["PutObject"] += 1
        else:
            found["CreateMultipartUpload"] += 1
            found["UploadPart"] += -(-size // part_bytes)
            found["CompleteMultipartUpload"] += 1
    return dict(found)


def gets_of_share(size_bytes: int) -> int:
    """Most GetObjects for reading a whole share once that is not cached."""
    if size_bytes <= SMALL_SHARE_BYTES:
        return 1
    gets, done, window = 1, 0, FIRST_WINDOW_BYTES
    while done < size_bytes:
        gets, done, window = gets + 1, done + window, min(2 * window, LAST_WINDOW_BYTES)
    return gets


def of_reads(sizes_bytes: Iterable[int]) -> dict[str, int]:
    """Most requests for reading shares of these sizes once, front to back, none of them cached."""
    return {"GetObject": sum(gets_of_share(size) for size in sizes_bytes)}


def table(counted: Mapping[str, int], allowed: Mapping[str, int], *, exact: bool, seconds: float) -> tuple[str, bool]:
    """One line, "PutObject 10 (budget 10), ...", and whether the budget was kept."""
    names = sorted(set(counted) | set(allowed))
    kept = all(
        counted.get(name, 0) == allowed.get(name, 0) if exact else counted.get(name, 0) <= allowed.get(name, 0)
        for name in names
    )
    word = "budget" if exact else "budget at most"
    cells = [f"{name} {counted.get(name, 0)} ({word} {allowed.get(name, 0)})" for name in names]
    return f"{seconds:6.1f} s  {', '.join(cells) or 'no request'}{'' if kept else '  OVER THE BUDGET'}", kept
