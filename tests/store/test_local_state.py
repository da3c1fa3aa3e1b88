# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever lies in the node's storage folder at a start, the bucket is the truth.

Missing, stale, damaged, of another bucket or another node: the node starts and answers as the bucket has it, or says
one sentence and leaves everything as it was.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tahoe_s3 import errors
from tahoe_s3.server import S3StorageServer
from tahoe_s3.store.index import Index, ShareRow
from tahoe_s3.store.keys import lease_key, share_key
from tahoe_s3.store.leases import Lease, overlay_from_json, overlay_to_json
from tahoe_s3.store.store import Store

from .helpers import NODEID, error_of, immutable_object, now, pattern
from .servers import CANCEL, RENEW, open_files
from .starting import Node, stop

IMMUTABLE_SI, MUTABLE_SI, LATER_SI = b"immutable-share-", b"mutable-share---", b"later-share-----"
WRITER = b"w" * 32
OTHERS_LEASE = Lease(7, b"o" * 32, b"p" * 32, 9_000_000_000, NODEID)
SEEDS = range(3)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "storage")
    yield made
    assert open_files(tmp_path) == []


class Run:
    """A node that serves."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.store: Store = node.start()
        self.server = S3StorageServer(str(node.folder), NODEID, clock=node.clock, backend=self.store)

    def upload(self, si: bytes, data: bytes, shnum: int = 0) -> None:
        writer = now(self.server.allocate_buckets(si, RENEW, CANCEL, {shnum}, len(data)))[1][shnum]
        now(writer.write(0, data))
        now(writer.close())

    def write(self, data: bytes) -> None:
        """Over the whole of the mutable share."""
        done, _ = now(self.server.slot_testv_and_readv_and_writev(
            MUTABLE_SI, (WRITER, RENEW, CANCEL), {0: ([], [(0, data)], len(data))}, []
        ))  # fmt: skip
        assert done

    def assert_right(self, *, immutable: bytes, mutable: bytes, later: bytes | None = None) -> None:
        """What the bucket has, through every way of asking."""
        for si, data in ((IMMUTABLE_SI, immutable), (LATER_SI, later)):
            readers = now(self.server.get_buckets(si))
            assert set(readers) == (set() if data is None else {0})
            if data is not None:
                assert now(readers[0].read(0, 10_000)) == data
        assert now(self.server.slot_readv(MUTABLE_SI, [], [(0, 10_000)])) == {0: [mutable]}
        assert now(self.server.get_mutable_share_length(MUTABLE_SI, 0)) == len(mutable)
        # A write that depends on what is there now, and builds on it.
        test = {0: ([(0, len(mutable), b"eq", mutable)], [(3, b"***")], None)}
        done, _ = now(self.server.slot_testv_and_readv_and_writev(MUTABLE_SI, (WRITER, RENEW, CANCEL), test, []))
        assert done
        changed = mutable[:3] + b"***" + mutable[6:]
        assert now(self.server.slot_readv(MUTABLE_SI, [0], [(0, 10_000)])) == {0: [changed]}
        self.write(mutable)
        # A lease that is added keeps those that are there.
        now(self.server.add_lease(IMMUTABLE_SI, b"s" * 32, b"t" * 32))
        leases = overlay_from_json(self.node.client.objects[lease_key(IMMUTABLE_SI)].data)
        assert OTHERS_LEASE in leases and len(leases) >= 2
        rows = self.store.index.query("SELECT COUNT(*), SUM(size) FROM shares", {})
        assert rows == [(self.store.index.share_count, self.store.index.used_bytes)]

    def stop(self) -> None:
        now(self.server.stopService())


IMMUTABLE, MUTABLE = pattern(2000), pattern(700, 2)


def lived_in(node: Node) -> None:
    """A bucket that the node knows, and a folder after a clean stop that has everything there can be in it."""
    node.client.store(lease_key(IMMUTABLE_SI), overlay_to_json([OTHERS_LEASE]))
    run = Run(node)
    run.upload(IMMUTABLE_SI, IMMUTABLE)
    run.write(pattern(900, 3))
    run.write(MUTABLE)
    now(run.store.overlay.read(IMMUTABLE_SI))
    run.stop()
    # The other's lease came first; the upload's own lies in the container.
    assert {path.name for path in node.folder.iterdir()} >= {"index.sqlite", "cache", "incoming"}


def sentence_of(node: Node) -> str:
    """Why it does not even ask the bucket."""
    before = sum(node.client.requests.values())
    error = error_of(node.begin())
    assert isinstance(error, errors.UnusableFolder), repr(error)
    assert sum(node.client.requests.values()) in (0, before) and node.clock.getDelayedCalls() == []
    return str(error)


def start_is_right(node: Node, *, kept: bool | None = None, later: bytes | None = None) -> None:
    run = Run(node)
    if kept is not None:
        assert run.store.index.was_kept is kept
    run.assert_right(immutable=IMMUTABLE, mutable=MUTABLE, later=later)
    run.stop()
    run = Run(node)
    assert run.store.index.was_kept, "and the next stop was a clean one"
    run.assert_right(immutable=IMMUTABLE, mutable=MUTABLE, later=later)
    run.stop()


def test_nothing_is_wrong(node: Node) -> None:
    lived_in(node)
    start_is_right(node, kept=True)


# missing


@pytest.mark.parametrize("what", ["", "index.sqlite", "index.sqlite.sum", "cache", "incoming"])
def test_missing(node: Node, what: str) -> None:
    lived_in(node)
    path = node.folder / what
    path.unlink() if path.is_file() else shutil.rmtree(path)
    start_is_right(node, kept=what in ("cache", "incoming"))


# stale


def copied(node: Node, name: str) -> Path:
    target = node.folder.with_name(name)
    shutil.copytree(node.folder, target)
    return target


def put_back(node: Node, copy: Path, *names: str) -> None:
    """The folder, or parts of it, as it was."""
    for name in names or tuple(path.name for path in copy.iterdir()):
        there = node.folder / name
        shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
        source = copy / name
        shutil.copytree(source, there) if source.is_dir() else shutil.copy(source, there)


OLD_PARTS = [(), ("index.sqlite", "index.sqlite.sum"), ("cache",), ("index.sqlite",), ("index.sqlite.sum",)]


@pytest.mark.parametrize("parts", OLD_PARTS)
def test_an_older_copy(node: Node, parts: tuple[str, ...]) -> None:
    """A backup of the folder that was restored. It says that it was stopped cleanly, and it was."""
    node.client.store(lease_key(IMMUTABLE_SI), overlay_to_json([]))
    run = Run(node)
    run.upload(IMMUTABLE_SI, IMMUTABLE)
    run.write(pattern(900, 3))
    run.stop()
    old = copied(node, "old")
    node.client.store(lease_key(IMMUTABLE_SI), overlay_to_json([OTHERS_LEASE]))
    run = Run(node)
    run.write(MUTABLE)
    run.upload(LATER_SI, pattern(50, 9))
    run.stop()
    put_back(node, old, *parts)
    start_is_right(node, later=pattern(50, 9))


def test_the_bucket_was_changed_while_the_node_was_stopped(node: Node) -> None:
    lived_in(node)
    node.client.store(share_key(LATER_SI, 0), immutable_object(pattern(50, 9)))
    start_is_right(node, kept=True, later=pattern(50, 9))


@pytest.mark.parametrize("whose", ["another bucket", "another node"])
def test_the_folder_is_of(node: Node, whose: str, tmp_path: Path) -> None:
    other = Node(tmp_path / "other")
    run = Run(other)
    run.upload(LATER_SI, pattern(77))
    run.upload(IMMUTABLE_SI, pattern(88))
    run.stop()
    lived_in(node)
    put_back(node, other.folder)
    if whose == "another node":
        index = Index(node.folder / "index.sqlite", identity="another node's")
        index.put_share(LATER_SI, ShareRow(0, 100, "etag", True, 1))
        index.close()
    else:
        # The node was given another bucket in tahoe.cfg, and has used it.
        store = node.start(bucket="another")
        assert not store.index.was_kept
        stop(store)
    start_is_right(node, kept=False)


# damaged


def flip(path: Path, seed: int, *, count: int) -> None:
    chosen = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(count):
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)


def cut(path: Path, seed: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.Random(seed).randrange(len(data))])


def garbage(path: Path, seed: int) -> None:
    path.write_bytes(random.Random(seed).randbytes(5000))


DAMAGE: dict[str, Callable[[Path, int], None]] = {
    "one bit": lambda path, seed: flip(path, seed, count=1),
    "many bits": lambda path, seed: flip(path, seed, count=200),
    "cut off": cut,
    "garbage": garbage,
    "empty": lambda path, _: path.write_bytes(b""),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite.sum"])
def test_damaged_index(node: Node, name: str, damage: str, seed: int) -> None:
    lived_in(node)
    path = node.folder / name
    before = path.read_bytes()
    DAMAGE[damage](path, seed)
    assert path.read_bytes() != before
    start_is_right(node, kept=False)


def test_a_row_that_rotted_is_not_believed(node: Node) -> None:
    """What SQLite itself cannot notice: a lease that would end early, or a share that would be another kind."""
    lived_in(node)
    db = sqlite3.connect(str(node.folder / "index.sqlite"))
    db.execute("UPDATE shares SET kind=3-kind, latest_s=5, data_length=1, modified_s=5")
    db.commit()
    db.close()
    start_is_right(node, kept=False)


@pytest.mark.parametrize("name", ["index.sqlite-wal", "index.sqlite-shm", "index.sqlite-journal"])
def test_leftovers_beside_the_index(node: Node, name: str) -> None:
    lived_in(node)
    (node.folder / name).write_bytes(random.Random(1).randbytes(9000))
    start_is_right(node)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["table", "copies"])
def test_damaged_cache(node: Node, which: str, damage: str, seed: int) -> None:
    lived_in(node)
    files = [path for path in (node.folder / "cache").iterdir() if path.name.endswith("json") == (which == "table")]
    assert files
    for path in files:
        DAMAGE[damage](path, seed)
    start_is_right(node, kept=True)


def test_a_cache_full_of_strangers(node: Node) -> None:
    lived_in(node)
    (node.folder / "cache" / "a file of somebody's").write_bytes(b"x")
    (node.folder / "cache" / "a folder").mkdir()
    start_is_right(node, kept=True)


# what cannot be worked with


@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite.sum", "index.sqlite-wal"])
def test_a_folder_in_place_of_a_file(node: Node, name: str) -> None:
    lived_in(node)
    path = node.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "something of somebody's").write_bytes(b"x")
    sentence = sentence_of(node)
    assert str(node.folder) in sentence and (path / "something of somebody's").exists()
    shutil.rmtree(path)
    start_is_right(node)


@pytest.mark.parametrize("name", ["incoming", "cache", ""])
def test_a_file_in_place_of_a_folder(node: Node, name: str) -> None:
    lived_in(node)
    path = node.folder / name
    shutil.rmtree(path)
    path.write_bytes(b"x")
    assert str(path) in sentence_of(node) and path.read_bytes() == b"x"
    path.unlink()
    start_is_right(node)


def test_an_index_that_another_process_has_open(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    lived_in(node)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: real(path, timeout=0.01, **options))
    other = real(str(node.folder / "index.sqlite"))
    other.execute("BEGIN EXCLUSIVE")
    assert "locked" in sentence_of(node)
    other.close()
    start_is_right(node, kept=True)


@pytest.mark.parametrize("what", ["folder", "index.sqlite", "parent"])
def test_what_the_node_may_not_write(what: str) -> None:
    """As somebody who is not root, since root may write anywhere."""
    with tempfile.TemporaryDirectory() as outer:
        nobody = 65534
        Path(outer).chmod(0o755)
        node = Node(Path(outer) / "storage")
        lived_in(node)
        if what == "parent":
            shutil.rmtree(node.folder)
        elif what == "folder":
            node.folder.chmod(0o555)
        else:
            (node.folder / what).chmod(0o444)
            for folder in (node.folder, node.folder / "cache", node.folder / "incoming"):
                folder.chmod(0o777)
        before = sorted(stat.S_IMODE(path.stat().st_mode) for path in node.folder.rglob("*"))
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(nobody)
            elif what == "parent":
                Path(outer).chmod(0o555)
            if what == "index.sqlite":
                # It can be made anew where the folder can be written.
                store = node.start()
                assert not store.index.was_kept
                now(store.close())
            else:
                assert str(node.folder) in sentence_of(node)
                assert before == sorted(stat.S_IMODE(path.stat().st_mode) for path in node.folder.rglob("*"))
        finally:
            if is_root:
                os.seteuid(0)
            Path(outer).chmod(0o755)
            if node.folder.exists():
                node.folder.chmod(0o755)


def test_the_sentence_names_folder_cause_and_cure() -> None:
    sentence = str(errors.UnusableFolder(storage_dir="/x/storage", detail="[Errno 13] Permission denied: '/x/storage'"))
    assert sentence.startswith("The storage folder /x/storage cannot be used ([Errno 13] Permission denied")
    assert "moved away" in sentence
