# SPDX-License-Identifier: GPL-2.0-or-later
"""Local copies of mutable shares: only of the right version, only with the right bytes, within the budget."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tahoe_s3.store.cache import ALWAYS_HASHED_BYTES, TABLE, MutableCache, copy_file, file_digest
from tahoe_s3.store.keys import ShareId

from .helpers import SI, pattern

SHARE = ShareId(SI, 3)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_copy_is_found_for_its_version_only(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path)
    cache.put_bytes(SHARE, "one", b"data")
    copy = cache.find(SHARE, "one")
    assert copy is not None and copy.path.read_bytes() == b"data"
    assert cache.find(SHARE, "two") is None
    assert cache.find(ShareId(SI, 4), "one") is None
    cache.put_bytes(SHARE, "two", b"other")
    assert cache.find(SHARE, "one") is None
    assert len(files(tmp_path)) == 1
    cache.drop(SHARE)
    assert files(tmp_path) == [] and cache.stats()["bytes"] == 0


def test_a_file_is_moved_in(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path / "cache")
    source = tmp_path / "source"
    source.write_bytes(b"data")
    copy = cache.adopt(SHARE, "one", source, sha256=file_digest(source))
    assert copy is not None and not source.exists()
    assert cache.find_verified(SHARE, "one") is copy


@pytest.mark.parametrize("size", [1000, ALWAYS_HASHED_BYTES + 1])
def test_a_damaged_copy_is_dropped(tmp_path: Path, size: int) -> None:
    cache = MutableCache(tmp_path)
    copy = cache.put_bytes(SHARE, "one", pattern(size))
    assert copy is not None and cache.find_verified(SHARE, "one") is copy
    with copy.path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"!")
    os.utime(copy.path, ns=(1, 1))
    assert cache.find_verified(SHARE, "one") is None
    assert files(tmp_path) == [] and cache.stats()["damaged"] == 1


@pytest.mark.parametrize("harm", ["truncate", "remove", "replace with a folder"])
def test_a_copy_that_is_no_longer_what_it_was(tmp_path: Path, harm: str) -> None:
    cache = MutableCache(tmp_path)
    copy = cache.put_bytes(SHARE, "one", pattern(1000))
    assert copy is not None
    if harm == "truncate":
        os.truncate(copy.path, 999)
    else:
        copy.path.unlink()
        if harm != "remove":
            copy.path.mkdir()
    assert cache.find(SHARE, "one") is None
    assert cache.find_verified(SHARE, "one") is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path, budget_bytes=1000)
    for number in range(4):
        cache.put_bytes(ShareId(SI, number), "e", bytes(250))
    cache.find(ShareId(SI, 0), "e")
    cache.put_bytes(ShareId(SI, 4), "e", bytes(300))
    assert [number for number in range(5) if cache.find(ShareId(SI, number), "e")] == [0, 3, 4]
    assert cache.stats()["bytes"] == sum(path.stat().st_size for path in files(tmp_path)) == 800


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path / "cache", budget_bytes=1000)
    cache.put_bytes(SHARE, "e", bytes(900))
    other = ShareId(SI, 9)
    assert cache.put_bytes(other, "e", bytes(1001)) is None
    source = tmp_path / "source"
    source.write_bytes(bytes(1001))
    assert cache.adopt(other, "e", source, sha256="") is None
    assert source.exists() and cache.find(SHARE, "e") is not None


def test_copies_survive_a_clean_stop(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path)
    cache.put_bytes(SHARE, "one", b"data")
    cache.close()
    again = MutableCache(tmp_path)
    copy = again.find_verified(SHARE, "one")
    assert copy is not None and copy.path.read_bytes() == b"data"
    assert not (tmp_path / TABLE).exists(), "a crash from here on leaves no table"


def test_nothing_survives_a_crash(tmp_path: Path) -> None:
    MutableCache(tmp_path).put_bytes(SHARE, "one", b"data")
    again = MutableCache(tmp_path)
    assert again.find(SHARE, "one") is None and files(tmp_path) == []


def test_a_copy_damaged_while_the_node_was_stopped(tmp_path: Path) -> None:
    cache = MutableCache(tmp_path)
    copy = cache.put_bytes(SHARE, "one", b"data")
    assert copy is not None
    cache.close()
    copy.path.write_bytes(b"dat!")
    assert MutableCache(tmp_path).find_verified(SHARE, "one") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"version": 1}', '{"version": 2, "copies": []}', '{"version": 1, "copies": [{}]}',
        '{"version": 1, "copies": [{"key": "k", "file": "f", "size": 1, "etag": "e", "sha256": "s"}]}',
        '{"version": 1, "copies": [{"key": "shares/aa/aaaqeayeaudaocajbifqydiob4/3", "file": "../../etc/passwd", '
        '"size": 1, "etag": "e", "sha256": "s"}]}',
        "\xff",
    ],
)  # fmt: skip
def test_a_damaged_table_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / TABLE).write_bytes(text.encode("latin-1"))
    (tmp_path / "stray").write_bytes(b"x")
    cache = MutableCache(tmp_path)
    assert cache.stats()["copies"] == 0 and files(tmp_path) == []
    assert cache.put_bytes(SHARE, "one", b"data") is not None


def test_a_folder_that_cannot_be_written_only_costs_fetching(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = MutableCache(folder)
    folder.rmdir()
    assert cache.put_bytes(SHARE, "one", b"data") is None
    assert cache.find(SHARE, "one") is None
    cache.close()


def test_a_copied_file_and_its_digest(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(pattern(3_000_000))
    assert copy_file(source, target) == file_digest(target) == hashlib.sha256(pattern(3_000_000)).hexdigest()
    with pytest.raises(FileExistsError):
        copy_file(source, target)
