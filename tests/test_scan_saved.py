"""What an interrupted scan has found is not lost, and the next one finds the rest: no more, and no less."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2psync import local, workers
from p2psync import look as looking
from p2psync.core.model import Digest, Entry, Kind
from p2psync.core.vector import NOTHING
from p2psync.disk import Root, hash_file
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.scan import scan
from tests.support import do_not_wait_for_disk, entries, make_tree, new_replica, opened, scanned, sync
from tests.test_scan_part import OPERATIONS, operate

FILES = 400
_KILLED = """
import os, signal, sys
from p2psync import local, look
local.SAVE_SECONDS = 0
left, hash_file = int(sys.argv[2]), look.hash_file
def counted(name, dir_fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return hash_file(name, dir_fd)
look.hash_file = counted
local.LocalReplica(os.fsencode(sys.argv[1])).scan(keep=True)
"""


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait_for_disk(patch)
        yield


class Interrupt(BaseException):
    """Somebody has no more patience."""


class Hashed:
    """Counts the files that are hashed, and interrupts the scan at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.last: int | None = None
        patch.setattr(looking, "hash_file", self._hash)

    def _hash(self, name: bytes, dir_fd: int) -> tuple[Digest, os.stat_result]:
        if self.count == self.last:
            raise Interrupt
        self.count += 1
        return hash_file(name, dir_fd)


def interrupted(replica: LocalReplica, after: int) -> None:
    """Scan, saving whatever can be saved, until that many files are hashed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "SAVE_SECONDS", 0)
        patch.setattr(workers, "_JOB_FILES", 1)
        Hashed(patch).last = after
        with contextlib.suppress(Interrupt):
            replica.scan(keep=True)


def essence(found: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Leave out what two scans of two trees do not share."""
    return {path: replace(entry, version=NOTHING, mtime_ns=0) for path, entry in found.items()}


def living(found: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: replace(e, revision=0) for path, e in essence(found).items() if e.alive}


def on_disk(root: Path, manifest: Path) -> dict[bytes, Entry]:
    """Return what a scan finds that knows nothing."""
    known, tree = Manifest.create(os.fsencode(manifest), "unknowing"), Root.open(os.fsencode(root))
    try:
        return {
            record.path: record.row.entry for record in scan(tree, known, known.next_stamp(), b"").changes
        }
    finally:
        known.close()
        tree.close()


def test_a_first_scan_that_is_killed_leaves_only_the_rest_to_be_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_replica(tmp_path / "replica")
    make_tree(root, {b"%d/%d" % (n % 7, n): b"%d" % n for n in range(FILES)})
    first = random.Random(os.urandom(8)).randrange(FILES)

    ran = subprocess.run([sys.executable, "-c", _KILLED, str(root), str(first)])
    hashed = Hashed(monkeypatch)
    found = scanned(root)

    assert ran.returncode == -signal.SIGKILL
    assert FILES - first <= hashed.count < FILES - first + workers._JOB_FILES
    assert sum(entry.kind is Kind.FILE for entry in found.values()) == FILES


def test_a_scan_is_not_saved_where_nothing_is_to_be_kept(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "replica", {b"d/%d" % n: b"" for n in range(5)})

    with pytest.MonkeyPatch.context() as patch, opened(root) as replica:
        patch.setattr(local, "SAVE_SECONDS", 0)
        replica.scan(keep=False)

    with opened(root) as replica:
        assert entries(replica) == {}


def test_files_read_again_for_their_new_stats_are_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_replica(tmp_path / "replica", {b"d/%d" % n: b"" for n in range(5)})
    scanned(root)
    for number in range(5):  # as on a disk that was copied
        (root / "d" / str(number)).chmod(0o600)
        (root / "d" / str(number)).chmod(0o644)

    with opened(root) as replica:
        interrupted(replica, 3)
        hashed = Hashed(monkeypatch)
        replica.scan(keep=True)

    assert hashed.count == 2


def test_a_disk_mounted_while_a_scan_was_interrupted_may_be_gone_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_replica(tmp_path / "replica", {b"mount/%d" % n: b"" for n in range(5)})
    fstat = os.fstat

    def elsewhere(fd: int) -> os.stat_result:
        st = fstat(fd)
        return os.stat_result([*st[:2], 1, *st[3:]]) if st.st_ino == inode else st

    inode = (root / "mount").stat().st_ino
    with opened(root) as replica:
        with monkeypatch.context() as patch:
            patch.setattr("p2psync.scan.os.fstat", elsewhere)
            interrupted(replica, 3)
        for file in (root / "mount").iterdir():
            file.unlink()
        replica.scan(keep=True)
        found = entries(replica)

    assert sum(entry.kind is Kind.FILE for entry in found.values()) == 3


def test_a_file_deleted_between_two_scans_of_a_manifest_made_anew_is_no_deletion(tmp_path: Path) -> None:
    root, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    make_tree(root, {b"%d" % n: b"%d" % n for n in range(5)})
    sync(root, there)
    (root / ".p2psync" / "manifest.db").unlink()
    with opened(root) as replica:
        interrupted(replica, 3)
        saved = entries(replica)
    for name in saved:
        (root / os.fsdecode(name)).unlink()
    sync(root, there)
    assert len(saved) == 3
    assert sorted(os.listdir(root)) == sorted(os.listdir(there)) == [".p2psync", *"01234"]


ROUNDS = st.lists(
    st.tuples(st.lists(OPERATIONS, min_size=1, max_size=6), st.integers(0, 5)), min_size=1, max_size=5
)


@settings(max_examples=100)
@given(ROUNDS)
def test_an_interrupted_scan_that_is_continued_finds_what_another_finds_at_once(
    rounds: list[tuple[list[tuple[str, bytes, bytes]], int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other = new_replica(Path(folder) / "one"), new_replica(Path(folder) / "other")
        with opened(one) as broken, opened(other) as whole:
            for operations, after in rounds:
                for operation in operations:
                    for root in (one, other):
                        operate(os.fsencode(root), operation)
                interrupted(broken, after)
                broken.scan(keep=True)
                whole.scan(keep=True)
                assert essence(entries(broken)) == essence(entries(whole))


@settings(max_examples=150)
@given(ROUNDS)
@example(  # a folder is away just while a scan is interrupted
    [
        ([("mkdir", b"a", b""), ("mkdir", b"a/b", b""), ("write", b"a/b/c", b"1")], 5),
        ([("rename", b"a/b", b"b"), ("write", b"c", b"1")], 1),
        ([("rename", b"b", b"a/b")], 5),
    ]
)
def test_whatever_happens_between_two_interrupted_scans_the_last_one_finds_what_is_there(
    rounds: list[tuple[list[tuple[str, bytes, bytes]], int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = new_replica(Path(folder) / "replica")
        with opened(root) as replica:
            for operations, after in rounds:
                for operation in operations:
                    if operation[0] != "ignore":  # what is ignored keeps its entry
                        operate(os.fsencode(root), operation)
                interrupted(replica, after)
            replica.scan(keep=True)
            assert living(entries(replica)) == living(on_disk(root, Path(folder) / "manifest"))
