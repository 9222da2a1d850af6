"""What a scan finds on a real disk, and what it must never take for a deletion."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync import look as looking
from p2psync import scan
from p2psync.core.model import Digest, Entry, Kind, Row, Transition
from p2psync.core.paths import MAX_NAME, MAX_PATH
from p2psync.core.replica import Name, Scanned
from p2psync.core.vector import ReplicaId, Stamp
from p2psync.disk import Root, hash_file
from p2psync.fsck import fsck
from p2psync.manifest import Manifest
from p2psync.progress import Silent
from tests.support import (
    OLD_NS,
    Link,
    Tree,
    carry_out,
    digest,
    do_not_wait_for_disk,
    entries,
    make_tree,
    new_replica,
    not_as_root,
    opened,
    scanned,
    snapshot,
    sync,
    tombstone,
    write,
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty replica."""
    return new_replica(tmp_path / "replica")


def scan_once(root: Path) -> Scanned:
    with opened(root) as replica:
        return replica.scan(keep=True)


def known(root: Path) -> dict[bytes, Entry]:
    """What the manifest says, without looking at the disk."""
    with opened(root) as replica:
        return entries(replica)


def alive(found: dict[bytes, Entry]) -> set[bytes]:
    return {path for path, entry in found.items() if entry.alive}


def edit_behind_its_times(path: Path, data: bytes) -> None:
    """Write other bytes of the same length, and set the mtime back; only the ctime tells."""
    before = path.stat()
    assert before.st_size == len(data)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of some file systems is coarse
        write(os.fsencode(path), data)
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of all files that are hashed."""
    names: list[bytes] = []

    def look(name: bytes, dir_fd: int) -> tuple[Digest, os.stat_result]:
        names.append(name)
        return hash_file(name, dir_fd)

    monkeypatch.setattr(looking, "hash_file", look)
    return names


# -- what is there


def test_files_directories_and_symlinks_are_found(root: Path) -> None:
    make_tree(root, {b"f": b"text", b"d/empty": b"", b"d/link": Link(b"../nowhere")})
    os.chmod(root / "f", 0o640)
    os.chmod(root / "d", 0o750)

    found = scanned(root)

    assert set(found) == {b"f", b"d", b"d/empty", b"d/link"}
    file, link = found[b"f"], found[b"d/link"]
    assert (file.kind, file.digest, file.size) == (Kind.FILE, digest(b"text"), 4)
    assert (file.mode, file.mtime_ns, file.revision) == (0o640, OLD_NS, 1)
    assert (found[b"d"].kind, found[b"d"].mode) == (Kind.DIRECTORY, 0o750)
    assert (found[b"d/empty"].digest, found[b"d/empty"].size) == (digest(b""), 0)
    assert (link.kind, link.target, link.digest) == (Kind.SYMLINK, b"../nowhere", digest(b"../nowhere"))
    assert link.mtime_ns == OLD_NS


def test_names_of_any_bytes_are_found(root: Path) -> None:
    names = {b"\xff\xfe", b"new\nline", b"\x01", b"-rf", b" ", b"...", b"n" * 255, "\u00e9".encode()}
    make_tree(root, {name: name for name in names})
    assert set(scanned(root)) == names


def test_a_file_larger_than_a_block_is_hashed_whole(root: Path) -> None:
    data = bytes(range(256)) * 8192 + b"end"
    make_tree(root, {b"f": data})
    assert scanned(root)[b"f"].digest == digest(data)


def test_setuid_and_sticky_bits_are_not_recorded(root: Path) -> None:
    make_tree(root, {b"f": b"", b"d": None})
    os.chmod(root / "f", 0o4755)
    os.chmod(root / "d", 0o1777)
    found = scanned(root)
    assert (found[b"f"].mode, found[b"d"].mode) == (0o755, 0o777)


def test_a_new_file_is_a_first_version_stamped_by_its_replica(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    with opened(root) as replica:
        replica.scan(keep=True)
        (stamp,) = entries(replica)[b"f"].version
        assert stamp.replica == replica.identity.replica
        assert stamp.tick < replica.stamp().tick


def test_special_files_are_told_once_and_are_no_entries(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(root / "socket"))
    assert sorted(scan_once(root).skipped) == [b"fifo", b"socket"]
    make_tree(root, {b"f": b"so that the folder is looked at again"})
    assert scan_once(root).skipped == []
    assert set(known(root)) == {b"f"}


def test_names_that_some_system_takes_for_the_sidecar_are_told_and_left_alone(root: Path) -> None:
    make_tree(root, {b".P2PSYNC/x": b"", b"d/p2psyn~1": b"", b"d/.p2psync.": b""})
    assert sorted(scan_once(root).skipped) == [b".P2PSYNC", b"d/.p2psync.", b"d/p2psyn~1"]
    assert set(known(root)) == {b"d"}


def test_the_sidecars_of_nested_replicas_are_skipped_without_a_word(tmp_path: Path) -> None:
    new_replica(tmp_path / "root" / "d" / "inner", {b"f": b"1"})
    root = new_replica(tmp_path / "root")
    assert scan_once(root).skipped == []
    assert set(known(root)) == {b"d", b"d/inner", b"d/inner/f"}


def test_nothing_in_a_sidecar_is_hashed(tmp_path: Path, hashed: list[bytes]) -> None:
    new_replica(tmp_path / "root" / "inner", {b"f": b"1"})
    scan_once(new_replica(tmp_path / "root"))
    assert hashed == [b"f"]


def test_a_scan_that_is_not_kept_is_forgotten(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    with opened(root) as replica:
        replica.scan(keep=False)
        assert set(entries(replica)) == {b"f"}
    assert known(root) == {}


# -- what has changed


def test_an_edit_follows_the_version_it_replaces(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    before = scanned(root)[b"f"]
    make_tree(root, {b"f": b"2"})
    after = scanned(root)[b"f"]
    assert before.version <= after.version != before.version
    assert (after.revision, after.digest) == (2, digest(b"2"))
    with opened(root) as replica:
        assert replica.bases([b"f"]) == [[before]]


def test_an_edit_of_the_same_size_in_place_is_found(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    scan_once(root)
    make_tree(root, {b"f": b"2"}, OLD_NS + 1)
    assert scanned(root)[b"f"].digest == digest(b"2")


def test_an_edit_whose_mtime_was_set_back_is_found(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    scan_once(root)
    edit_behind_its_times(root / "f", b"2")
    assert scanned(root)[b"f"].digest == digest(b"2")


def test_another_file_of_the_same_size_and_time_is_found(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    scan_once(root)
    make_tree(root, {b"new": b"2"})
    (root / "new").rename(root / "f")
    assert scanned(root)[b"f"].digest == digest(b"2")


def test_a_touch_is_a_new_time_but_no_new_version(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"l": Link(b"x")})
    before = scanned(root)
    for name in ("f", "l"):
        os.utime(root / name, ns=(OLD_NS + 5, OLD_NS + 5), follow_symlinks=False)
    after = scanned(root)
    assert {entry.mtime_ns for entry in after.values()} == {OLD_NS + 5}
    assert [entry.version for entry in after.values()] == [entry.version for entry in before.values()]


def test_other_permissions_are_a_new_version(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"d": None})
    before = scanned(root)
    os.chmod(root / "f", 0o600)
    os.chmod(root / "d", 0o700)
    after = scanned(root)
    assert [after[path].mode for path in (b"f", b"d")] == [0o600, 0o700]
    assert [after[path].revision for path in (b"f", b"d")] == [2, 2]
    assert after[b"f"].same_bytes(before[b"f"])


def test_what_happens_in_a_directory_does_not_change_it(root: Path) -> None:
    make_tree(root, {b"d/f": b"1"})
    before = scanned(root)[b"d"]
    make_tree(root, {b"d/g": b"2"})
    assert scanned(root)[b"d"] == before


def test_a_deleted_directory_leaves_a_tombstone_for_all_that_was_in_it(root: Path) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/l": Link(b"x"), b"g": b"2"})
    before = scanned(root)
    (root / "d").rename(root.parent / "away")
    found = scanned(root)
    assert alive(found) == {b"g"}
    assert set(found) == set(before)
    assert all(before[path].version <= entry.version for path, entry in found.items())


def test_a_directory_that_comes_back_is_found_with_all_that_is_in_it(root: Path) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/e/g": None})
    before = scanned(root)
    (root / "d").rename(root.parent / "away")
    scan_once(root)
    (root.parent / "away").rename(root / "d")
    found = scanned(root)
    assert alive(found) == set(before)
    assert all(entry.revision == 3 for entry in found.values())


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"1"),
    "symlink": lambda path: path.symlink_to("twin"),
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_what_takes_the_place_of_a_directory_drops_all_below(root: Path, kind: str) -> None:
    make_tree(root, {b"d/e/f": b"1", b"twin/e/f": b"1"})
    scan_once(root)
    (root / "d").rename(root.parent / "away")
    REPLACEMENTS[kind](root / "d")
    found = scanned(root)
    assert not found[b"d/e"].alive
    assert not found[b"d/e/f"].alive
    assert found[b"d"].kind is {"file": Kind.FILE, "symlink": Kind.SYMLINK, "fifo": Kind.TOMBSTONE}[kind]


def test_a_directory_takes_the_place_of_a_file(root: Path) -> None:
    make_tree(root, {b"d": b"1"})
    before = scanned(root)[b"d"]
    (root / "d").unlink()
    make_tree(root, {b"d/f": b"2"})
    found = scanned(root)
    assert found[b"d"].kind is Kind.DIRECTORY
    assert before.version <= found[b"d"].version
    assert found[b"d/f"].alive


# -- what is not looked at again


class CountingManifest:
    """A manifest that tells which directories were compared row by row."""

    def __init__(self, manifest: Manifest) -> None:
        self.compared: list[bytes] = []
        self._manifest = manifest

    def rows(self, directory: bytes) -> dict[bytes, Row]:
        self.compared.append(directory)
        return self._manifest.rows(directory)

    def row(self, path: bytes) -> Row | None:
        return self._manifest.row(path)

    def fingerprint(self, directory: bytes) -> bytes | None:
        return self._manifest.fingerprint(directory)

    def mounts(self) -> set[bytes]:
        return self._manifest.mounts()


def compared(root: Path) -> list[bytes]:
    """Return the directories of which a scan now reads rows."""
    manifest = Manifest.open(os.fsencode(root / ".p2psync" / "manifest.db"))
    counting = CountingManifest(manifest)
    tree = Root.open(os.fsencode(root))
    scan.scan(tree, counting, Stamp(ReplicaId(1), 1), b"")
    tree.close()
    manifest.close()
    return counting.compared


def test_an_unchanged_directory_reads_no_rows(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"d/f": b"2", b"d/e/f": b"3", b"d/l": Link(b"x")})
    scan_once(root)
    assert compared(root) == []
    make_tree(root, {b"d/e/f": b"4"}, OLD_NS + 1)
    assert compared(root) == [b"d/e"]


def test_an_unchanged_tree_writes_nothing(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"d/f": b"2"})
    scan_once(root)
    before = (root / ".p2psync" / "manifest.db").read_bytes()
    scan_once(root)
    assert (root / ".p2psync" / "manifest.db").read_bytes() == before


def test_other_rules_make_every_directory_below_be_compared_again(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"d/f": b"2", b"e/f": b"2"})
    scan_once(root)
    make_tree(root, {b"d/.p2pignore": b"*.o\n"})
    assert compared(root) == [b"d"]


def test_a_file_just_modified_is_looked_at_again(
    root: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"old": b"1"})
    make_tree(root, {b"racy": b"1"}, time.time_ns())
    scan_once(root)
    assert sorted(hashed) == [b"old", b"racy"]
    hashed.clear()
    scan_once(root)
    assert hashed == [b"racy"]
    hashed.clear()

    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    scan_once(root)  # ten seconds later, it is known to be still the same
    scan_once(root)
    assert hashed == [b"racy"]
    assert compared(root) == []


def test_a_file_from_the_future_is_looked_at_every_time(root: Path, hashed: list[bytes]) -> None:
    make_tree(root, {b"f": b"1"}, time.time_ns() + 10**15)
    scan_once(root)
    scan_once(root)
    assert hashed == [b"f", b"f"]


# -- what cannot be read is no deletion (I6)


@not_as_root
def test_an_unreadable_file_is_a_problem_and_keeps_its_entry(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    before = scanned(root)
    make_tree(root, {b"f": b"2"}, OLD_NS + 1)
    (root / "f").chmod(0)
    found = scan_once(root)
    assert [problem.path for problem in found.problems] == [b"f"]
    assert known(root) == before
    (root / "f").chmod(0o644)
    assert scanned(root)[b"f"].digest == digest(b"2")


@not_as_root
@pytest.mark.parametrize("mode", [0o000, 0o300, 0o600], ids=oct)
def test_an_unreadable_directory_is_a_problem_and_keeps_all_entries_below(root: Path, mode: int) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/g": b"1"})
    before = scanned(root)
    (root / "d").chmod(mode)
    try:
        found = scan_once(root)
    finally:
        (root / "d").chmod(0o755)
    assert [problem.path for problem in found.problems] == [b"d"]
    assert alive(known(root)) == alive(before)


@not_as_root
def test_an_unreadable_ignore_file_is_a_problem_and_deletes_nothing(root: Path) -> None:
    make_tree(root, {b"d/.p2pignore": b"*.o\n", b"d/f": b"1"})
    before = scanned(root)
    (root / "d" / "f").unlink()
    (root / "d" / ".p2pignore").chmod(0)
    assert [problem.path for problem in scan_once(root).problems] == [b"d"]
    assert known(root) == before


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_read_error_of_a_file_is_a_problem_and_keeps_its_entry(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    make_tree(root, {b"f": b"1", b"g": b"1"})
    before = scanned(root)
    make_tree(root, {b"f": b"2", b"g": b"2"}, OLD_NS + 1)

    def look(name: bytes, dir_fd: int) -> tuple[Digest, os.stat_result]:
        if name == b"f":
            raise OSError(code, os.strerror(code))
        return hash_file(name, dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(looking, "hash_file", look)
        problems = scan_once(root).problems
    assert [(problem.path, os.strerror(code) in problem.why) for problem in problems] == [(b"f", True)]
    assert known(root)[b"f"] == before[b"f"]
    assert known(root)[b"g"].digest == digest(b"2")
    assert scanned(root)[b"f"].digest == digest(b"2")  # nothing vouches for what could not be read


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_read_error_of_a_directory_keeps_all_entries_below(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    make_tree(root, {b"d/e/f": b"1", b"g": b"1"})
    before = scanned(root)
    broken = (root / "d").stat().st_ino

    def scandir(fd: int) -> Iterator[os.DirEntry[str]]:
        if os.fstat(fd).st_ino == broken:
            raise OSError(code, os.strerror(code))
        return real(fd)

    real = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        assert [problem.path for problem in scan_once(root).problems] == [b"d"]
    assert known(root) == before


def test_a_file_that_vanishes_while_it_is_looked_at_is_no_deletion_yet(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"f": b"1"})
    before = scanned(root)
    make_tree(root, {b"f": b"2"}, OLD_NS + 1)

    def look(name: bytes, dir_fd: int) -> tuple[Digest, os.stat_result]:
        os.unlink(name, dir_fd=dir_fd)
        return hash_file(name, dir_fd)

    monkeypatch.setattr(looking, "hash_file", look)
    assert [problem.path for problem in scan_once(root).problems] == [b"f"]
    assert known(root) == before
    assert not scanned(root)[b"f"].alive


def test_a_file_that_is_written_to_while_it_is_read_is_a_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"f": b"1"})

    def read(fd: int, length: int) -> bytes:
        data = real(fd, length)
        if data == b"1":
            write(os.fsencode(root / "f"), b"12")
        return data

    real = os.read
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        (problem,) = scan_once(root).problems
    assert (problem.path, problem.why) == (b"f", "is being written to")
    assert known(root) == {}
    assert scanned(root)[b"f"].digest == digest(b"12")


# -- what is ignored is no deletion either


def test_a_rule_takes_nothing_back(root: Path) -> None:
    make_tree(root, {b"f.o": b"1", b"d/f": b"1"})
    before = scanned(root)
    make_tree(root, {b".p2pignore": b"*.o\nd/\n"})
    with opened(root) as replica:
        replica.scan(keep=True)
        found = replica.lookup([Name(b"f.o", False), Name(b"d/f", False), Name(b".p2pignore", False)])
        assert found.entries[:2] == [None, None]  # they are none of the peer's business
        assert [replica.manifest.entry(path) for path in found.ignored] == [before[b"f.o"], before[b"d/f"]]
        assert found.ignored == [b"f.o", b"d/f"]
        assert set(entries(replica)) == {b".p2pignore"}


def test_what_is_deleted_while_it_is_ignored_is_not_known_when_the_rule_goes(root: Path) -> None:
    make_tree(root, {b"f.o": b"1", b"d/e/f": b"1"})
    scan_once(root)
    make_tree(root, {b".p2pignore": b"*.o\nd/\n"})
    (root / "f.o").unlink()
    (root / "d").rename(root.parent / "away")
    scan_once(root)
    with opened(root) as replica:
        kept = replica.lookup([Name(b"f.o", False), Name(b"d/e/f", False)]).entries
    assert [entry is not None and entry.alive for entry in kept] == [True, True]
    make_tree(root, {b".p2pignore": b""})
    assert set(scanned(root)) == {b".p2pignore"}


@pytest.mark.parametrize("how", ["at once", "after a scan", "by another rule"])
def test_what_is_deleted_once_no_rule_hides_it_is_deleted(root: Path, how: str) -> None:
    make_tree(root, {b"f.o": b"1", b"d/e/f": b"1", b"d/g": b"2"})
    scan_once(root)
    if how != "at once":
        make_tree(root, {b".p2pignore": b"*.o\nd/\n"})
        scan_once(root)
        make_tree(root, {b".p2pignore": b"*.a\n" if how == "by another rule" else b""})
        scan_once(root)
    (root / "f.o").unlink()
    (root / "d").rename(root.parent / "away")
    found = scanned(root)
    assert {path for path, entry in found.items() if not entry.alive} == {
        b"f.o",
        b"d",
        b"d/e",
        b"d/e/f",
        b"d/g",
    }


def test_what_is_ignored_in_a_folder_that_goes_is_not_known_when_the_rule_goes(root: Path) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/g": b"2", b".p2pignore": b"e\n"})
    make_tree(root, {b".p2pignore": b""})
    scan_once(root)
    make_tree(root, {b".p2pignore": b"e\n"})
    scan_once(root)
    (root / "d").rename(root.parent / "away")
    scan_once(root)
    make_tree(root, {b".p2pignore": b""})
    found = scanned(root)
    assert {path for path, entry in found.items() if not entry.alive} == {b"d", b"d/g"}
    assert not {b"d/e", b"d/e/f"} & found.keys()


def test_what_goes_from_a_folder_while_that_is_ignored_is_not_known_either(root: Path) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/e/g": b"2", b"d/h": b"3"})
    scan_once(root)
    make_tree(root, {b".p2pignore": b"d/\n"})
    scan_once(root)
    (root / "d" / "e" / "f").unlink()
    (root / "d" / "h").write_bytes(b"edited")
    make_tree(root, {b".p2pignore": b""})
    found = scanned(root)
    assert b"d/e/f" not in found
    assert all(entry.alive for entry in found.values())
    assert found[b"d/h"].digest == digest(b"edited")
    (root / "d" / "e" / "g").unlink()
    assert not scanned(root)[b"d/e/g"].alive


def test_the_ignore_file_of_the_sidecar_rules_here_alone(root: Path) -> None:
    (root / ".p2psync" / "ignore").write_bytes(b"*.o\n")
    make_tree(root, {b"f.o": b"1", b"f": b"1"})
    assert set(scanned(root)) == {b"f"}


def test_the_fingerprint_of_the_rules_changes_with_them_alone(root: Path) -> None:
    make_tree(root, {b"d/.p2pignore": b"*.o\n"})
    first = scan_once(root).rules
    make_tree(root, {b"d/f": b"1"})
    assert scan_once(root).rules == first
    make_tree(root, {b"d/.p2pignore": b"*.a\n"})
    assert scan_once(root).rules != first


# -- ghosts: deleted by a peer, still here for what is ignored


@pytest.fixture
def ghost(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas; the first has a directory that the second deleted, since it holds an ignored file."""
    here, there = new_replica(tmp_path / "here", {b"d/e/f": b"1", b"d/e/f.o": b"2"}), tmp_path / "there"
    (here / ".p2psync" / "ignore").write_bytes(b"*.o\n")
    sync(here, new_replica(there))
    (there / "d").rename(tmp_path / "away")
    assert sync(here, there).in_step
    assert set(snapshot(here)) == {b"d", b"d/e", b"d/e/f.o"}
    return here, there


def test_a_ghost_stays_deleted(ghost: tuple[Path, Path]) -> None:
    here, there = ghost
    assert alive(scanned(here)) == set()
    result = sync(here, there)
    assert not result.local.transitions
    assert not result.peer.transitions
    assert snapshot(there) == {}


def test_a_ghost_comes_to_life_with_a_new_file_in_it(ghost: tuple[Path, Path]) -> None:
    here, there = ghost
    make_tree(here, {b"d/e/g": b"3"})
    assert sync(here, there).in_step
    assert set(snapshot(there)) == {b"d", b"d/e", b"d/e/g"}


@pytest.mark.parametrize("changed", [True, False])
def test_a_deleted_directory_that_still_holds_an_entry_is_no_ghost(root: Path, changed: bool) -> None:
    make_tree(root, {b"d/e/f": b"1", b"d/e/g": b"1"} if changed else {b"d/e/f": b"1"})
    with opened(root) as replica:
        replica.scan(keep=True)
        found = entries(replica)
        gone = [Transition(path, found[path], tombstone()) for path in (b"d", b"d/e")]
        assert carry_out(replica, gone) == (2, [])
    (root / "d" / "e" / "g").unlink(missing_ok=True)
    assert alive(scanned(root)) == {b"d", b"d/e", b"d/e/f"}


def test_a_ghost_that_holds_nothing_any_more_is_a_directory(ghost: tuple[Path, Path]) -> None:
    here, there = ghost
    (here / "d" / "e" / "f.o").unlink()
    assert sync(here, there).in_step
    assert set(snapshot(here)) == set(snapshot(there)) == {b"d", b"d/e"}


@pytest.mark.parametrize("made", [{b"d/e": None}, {b"d/e/g": b"3"}], ids=["empty", "filled"])
def test_a_ghost_is_the_directory_that_the_peer_makes_again(ghost: tuple[Path, Path], made: Tree) -> None:
    here, there = ghost
    make_tree(there, made)
    assert sync(here, there).in_step
    assert alive(scanned(here)) == alive(scanned(there)) == set(snapshot(there))


# -- size


DEPTH = 3100
"""Directories: with names of two bytes, more than twice PATH_MAX."""


def make_deep(root: Path, name: str, depth: int) -> int:
    """Make a chain of directories; return a descriptor of the last."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def remove_deep(root: Path, name: str) -> None:
    """Remove such a chain, in linear time."""
    while (root / name).exists():
        (root / name).rename(root / "top")
        if (root / "top" / name).exists():
            (root / "top" / name).rename(root / name)
        shutil.rmtree(root / "top")


@pytest.fixture
def deep(root: Path) -> Iterator[Path]:
    """A replica with a file at the end of a path longer than the system takes."""
    last = make_deep(root, "dd", DEPTH)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=last))
    os.utime("f", ns=(OLD_NS, OLD_NS), dir_fd=last)
    os.close(last)
    yield root
    remove_deep(root, "dd")


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_tree_deeper_than_any_path_is_scanned_and_synced(
    deep: Path, tmp_path: Path, few_descriptors: None
) -> None:
    found = scanned(deep)
    assert len(found) == DEPTH + 1
    assert compared(deep) == []
    other = new_replica(tmp_path / "other")
    try:
        assert sync(deep, other).in_step
        assert scanned(other).keys() == found.keys()
    finally:
        remove_deep(other, "dd")


@pytest.fixture
def few_calls() -> Iterator[int]:
    """How deep calls may be."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    yield 300
    sys.setrecursionlimit(limit)


def test_a_chain_of_folders_that_is_deeper_than_calls_may_be_is_moved(
    root: Path, tmp_path: Path, few_calls: int
) -> None:
    last = make_deep(root, "dd", few_calls)
    os.write(fd := os.open("f", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=last), b"moved")
    os.close(fd)
    os.close(last)
    other = new_replica(tmp_path / "other")
    try:
        assert sync(root, other).in_step
        (root / "dd").rename(root / "ee")
        assert sync(root, other).in_step
        assert os.listdir(other / "ee") == ["dd"]
        with opened(other) as replica:
            assert fsck(os.fsencode(other), replica, None, False, Silent()).findings == []
    finally:
        for tree in (root, other):
            if (tree / "ee").exists():
                (tree / "ee").rename(tree / "dd")
            remove_deep(tree, "dd")


def test_what_lies_deeper_than_any_peer_would_believe_is_told_and_left_alone(root: Path) -> None:
    name = "d" * MAX_NAME
    depth = MAX_PATH // (MAX_NAME + 1)
    os.close(make_deep(root, name, depth + 2))
    try:
        (told,) = scan_once(root).skipped
        assert len(told) > MAX_PATH
        assert len(known(root)) == depth
    finally:
        remove_deep(root, name)


def test_a_mount_that_cannot_be_read_stays_known_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root, {b"d/mount/f": b"1"})
    scanned(root)
    with opened(root) as replica:
        with replica.manifest.transaction():
            replica.manifest.set_mounts({b"d/mount"})

        def unreadable(directory: int) -> dict[bytes, os.stat_result]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(scan, "_children", unreadable)
        assert replica.scan(keep=True).problems
        assert replica.manifest.mounts() == {b"d/mount"}
