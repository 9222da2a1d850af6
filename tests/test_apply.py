"""What apply does to a disk, and what it must not do when someone else is at work there too."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from p2psync import apply, disk, folders
from p2psync.core.model import Digest, Entry, Problem, Record, Row, Transition
from p2psync.core.replica import Name
from p2psync.history import History, Shelf
from tests.support import (
    OLD_NS,
    Link,
    Seen,
    Tree,
    carry_out,
    contents_of,
    digest,
    directory,
    do_not_wait_for_disk,
    entries,
    file,
    history,
    make_tree,
    mounted,
    new_replica,
    not_as_root,
    opened,
    scanned,
    snapshot,
    staged,
    symlink,
    sync,
    tombstone,
    version,
    write,
)

NEW_NS = OLD_NS + 987_654_321
Meanwhile = Callable[[], object]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty replica."""
    return new_replica(tmp_path / "replica")


def no_renameat2(patch: pytest.MonkeyPatch, code: int = errno.ENOSYS) -> None:
    """As on a kernel or file system that has no such call."""

    def rename(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    patch.setattr(disk, "_rename", rename)


@pytest.fixture(params=["renameat2", "ENOSYS", "EINVAL"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that exchange names in one step, and those that do not."""
    if request.param != "renameat2":
        no_renameat2(monkeypatch, getattr(errno, request.param))


def carry_out_at(
    root: Path,
    wanted: Mapping[bytes, Entry],
    *contents: bytes,
    meanwhile: Meanwhile = lambda: None,
    after: Mapping[bytes, tuple[bytes, ...]] | None = None,
) -> list[Problem]:
    """Scan, let something happen, have what is wanted applied; return the problems."""
    with opened(root) as replica:
        assert replica.scan(keep=True).problems == []
        known = replica.lookup([Name(path, False) for path in wanted]).entries
        meanwhile()
        transitions = [
            Transition(path, expected, wanted[path], (after or {}).get(path, ()))
            for path, expected in zip(wanted, known, strict=True)
        ]
        done, problems = carry_out(replica, transitions, *contents)
        assert done + len(problems) == len(wanted)
        return problems


def in_manifest(root: Path, *paths: bytes) -> list[Entry | None]:
    with opened(root) as replica:
        return replica.lookup([Name(path, False) for path in paths]).entries


def nothing_left_to_find(root: Path) -> bool:
    """Does the manifest say what is there, and vouch for it?"""
    with opened(root) as replica:
        before = replica.newest()
        replica.scan(keep=True)
        return replica.newest() == before


# -- every transition

STATES: dict[str, tuple[Tree, Entry]] = {
    "nothing": ({}, tombstone(version(9))),
    "file": ({b"p": b"old"}, file(b"new", 0o640, NEW_NS, version(9))),
    "symlink": ({b"p": Link(b"old")}, symlink(b"new", NEW_NS, version(9))),
    "directory": ({b"p/child": b"old"}, directory(0o750, NEW_NS, version(9))),
}


@pytest.mark.parametrize("after", STATES)
@pytest.mark.parametrize("before", STATES)
@pytest.mark.usefixtures("any_system")
def test_whatever_is_there_becomes_whatever_is_wanted(root: Path, before: str, after: str) -> None:
    make_tree(root, STATES[before][0])
    wanted = {b"p": STATES[after][1]}
    if before == "directory" != after:
        wanted[b"p/child"] = tombstone(version(9))

    assert carry_out_at(root, wanted, b"new") == []

    found = snapshot(root)
    match after:
        case "nothing":
            assert found == {}
        case "file":
            assert found == {b"p": ("file", 0o640, NEW_NS, b"new")}
        case "symlink":
            assert found == {b"p": ("symlink", 0, NEW_NS, b"new")}
        case "directory":
            assert found[b"p"] == ("directory", 0o750, 0, b"")
    assert history(root) == ([] if before == "nothing" or before == after == "directory" else [b"old"])
    assert in_manifest(root, b"p") == [wanted[b"p"]]
    assert nothing_left_to_find(root)


def test_directories_are_made_before_what_is_in_them_and_deleted_after(root: Path) -> None:
    make_tree(root, {b"old/a/b": b"1", b"old/c": b"2"})
    gone = {path: tombstone(version(9)) for path in (b"old", b"old/a", b"old/a/b", b"old/c")}
    made = {b"new/a/b": file(b"3"), b"new/a": directory(), b"new": directory()}
    assert carry_out_at(root, gone | made, b"3") == []
    assert set(snapshot(root)) == {b"new", b"new/a", b"new/a/b"}


def test_a_deletion_of_what_was_never_here_is_remembered(root: Path) -> None:
    gone = tombstone(version(9))
    assert carry_out_at(root, {b"f": gone, b"d/f": gone}) == []
    assert in_manifest(root, b"f", b"d/f") == [gone, gone]
    assert snapshot(root) == {}


def test_permissions_and_times_change_in_place(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"g": b"1", b"l": Link(b"x"), b"d": None})
    inodes = {name: os.lstat(root / name).st_ino for name in ("f", "g", "l", "d")}
    wanted = {
        b"f": file(b"1", 0o600, OLD_NS, version(9)),
        b"g": file(b"1", 0o644, NEW_NS, version(9)),
        b"l": symlink(b"x", NEW_NS, version(9)),
        b"d": directory(0o700, NEW_NS, version(9)),
    }
    assert carry_out_at(root, wanted) == []
    found = snapshot(root)
    assert [found[path].mode for path in (b"f", b"g", b"d")] == [0o600, 0o644, 0o700]
    assert [found[path].mtime_ns for path in (b"f", b"g", b"l")] == [OLD_NS, NEW_NS, NEW_NS]
    assert {name: os.lstat(root / name).st_ino for name in inodes} == inodes
    assert history(root) == []
    assert nothing_left_to_find(root)


def test_new_things_have_their_times_to_the_nanosecond(root: Path) -> None:
    wanted = {
        b"d": directory(mtime_ns=NEW_NS),
        b"d/f": file(b"1", mtime_ns=NEW_NS + 1),
        b"d/l": symlink(b"x", NEW_NS + 2),
        b"d/before 1970": file(b"1", mtime_ns=-1_500_000_000),
    }
    assert carry_out_at(root, wanted, b"1") == []
    assert {path: os.lstat(root / os.fsdecode(path)).st_mtime_ns for path in wanted} == {
        path: entry.mtime_ns for path, entry in wanted.items()
    }


def test_the_umask_takes_nothing_from_permissions(root: Path) -> None:
    before = os.umask(0o077)
    try:
        assert carry_out_at(root, {b"f": file(b"1", 0o664), b"d": directory(0o775)}, b"1") == []
    finally:
        os.umask(before)
    assert {path: seen.mode for path, seen in snapshot(root).items()} == {b"f": 0o664, b"d": 0o775}


def test_the_umask_of_others_is_left_alone(root: Path) -> None:
    before = os.umask(0o027)
    try:
        with opened(root) as replica:
            replica.scan(keep=True)
            replica.prepare([Transition(b"%d" % n, None, symlink(b"x")) for n in range(1500)])
            outcomes = replica.apply()
            next(outcomes)
            during = os.umask(0o027)
            list(outcomes)
            assert (during, os.umask(0o027)) == (0o027, 0o027)
    finally:
        os.umask(before)


def test_setuid_bits_go_when_a_peer_has_its_say(root: Path) -> None:
    make_tree(root, {b"replaced": b"1", b"changed": b"1", b"folder": None})
    for name in ("replaced", "changed", "folder"):
        os.chmod(root / name, 0o6755)
    wanted = {
        b"replaced": file(b"2", 0o755, seen=version(9)),
        b"changed": file(b"1", 0o711, seen=version(9)),
        b"folder": directory(0o711, seen=version(9)),
    }
    assert carry_out_at(root, wanted, b"2") == []
    assert {path: seen.mode for path, seen in snapshot(root).items()} == {
        path: entry.mode for path, entry in wanted.items()
    }


def test_one_content_goes_to_many_paths(root: Path) -> None:
    wanted = {b"f%d" % n: file(b"same", 0o600 + n, OLD_NS + n) for n in range(4)}
    assert carry_out_at(root, wanted, b"same") == []
    found = snapshot(root)
    assert {path: (seen.mode, seen.mtime_ns, seen.data) for path, seen in found.items()} == {
        path: (entry.mode, entry.mtime_ns, b"same") for path, entry in wanted.items()
    }
    assert len({os.stat(root / os.fsdecode(path)).st_ino for path in found}) == 4


def test_two_files_trade_places(root: Path) -> None:
    make_tree(root, {b"f": b"1", b"g": b"2"})
    assert (
        carry_out_at(root, {b"f": file(b"2", seen=version(9)), b"g": file(b"1", seen=version(9))}, b"1", b"2")
        == []
    )
    assert {path: seen.data for path, seen in snapshot(root).items()} == {b"f": b"2", b"g": b"1"}


def test_empty_files_are_made_and_made_of_others(root: Path) -> None:
    make_tree(root, {b"f": b"1"})
    assert carry_out_at(root, {b"f": file(b"", seen=version(9)), b"g": file(b"")}, b"") == []
    assert {path: seen.data for path, seen in snapshot(root).items()} == {b"f": b"", b"g": b""}


def test_names_of_any_bytes_are_made_replaced_and_deleted(root: Path) -> None:
    make_tree(root, {b"\xff/\n": b"1", b"\xfe" * 255: b"1", b"n" * 255: b"1"})
    wanted = {
        b"\xff/\n": file(b"2", seen=version(9)),
        b"\xfe" * 255: tombstone(version(9)),
        b"n" * 255: file(b"2", seen=version(9)),
        b"\x01" * 255: file(b"2"),
    }
    assert carry_out_at(root, wanted, b"2") == []
    assert set(snapshot(root)) == {b"\xff", b"\xff/\n", b"n" * 255, b"\x01" * 255}
    assert history(root) == [b"1"] * 3


def test_the_history_has_what_was_at_which_path(root: Path) -> None:
    make_tree(root, {b"d/f": b"file", b"d/l": Link(b"target"), b"g": b"replaced"})
    gone = {path: tombstone(version(9)) for path in (b"d", b"d/f", b"d/l")}
    assert carry_out_at(root, {**gone, b"g": file(b"new", seen=version(9))}, b"new") == []
    (run,) = (root / ".p2psync" / "history").iterdir()
    kept = {path: seen.data for path, seen in snapshot(run).items() if seen.kind != "directory"}
    assert kept == {b"d/f": b"file", b"d/l": b"target", b"g": b"replaced"}


def test_a_directory_that_holds_ignored_files_stays(root: Path) -> None:
    (root / ".p2psync" / "ignore").write_bytes(b"*.o\n")
    make_tree(root, {b"d/f": b"1", b"d/f.o": b"2"})
    assert carry_out_at(root, {path: tombstone(version(9)) for path in (b"d", b"d/f")}) == []
    assert contents_of([root]) == {b"2"}
    assert nothing_left_to_find(root)


# -- compare and swap: what someone does between scan and apply survives (I4)


def edited(root: Path) -> None:
    make_tree(root, {b"p": b"edited"}, NEW_NS + 5)


def edited_behind_its_times(root: Path) -> None:
    """Same size, same mtime; wait for a coarse clock."""
    path = root / "p"
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        write(os.fsencode(path), b"OLD")
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


def replaced_by_another(root: Path) -> None:
    make_tree(root, {b"q": b"OLD"})
    (root / "q").rename(root / "p")


def made_a_link(root: Path) -> None:
    (root / "p").unlink()
    make_tree(root, {b"p": Link(b"elsewhere")})


def made_a_directory(root: Path) -> None:
    (root / "p").unlink()
    make_tree(root, {b"p/new": b"inside"})


def made_private(root: Path) -> None:
    (root / "p").chmod(0o600)


def deleted(root: Path) -> None:
    (root / "p").unlink()


def made_a_fifo(root: Path) -> None:
    (root / "p").unlink()
    os.mkfifo(root / "p")


CHANGES = {
    change.__name__: change
    for change in (
        edited,
        edited_behind_its_times,
        replaced_by_another,
        made_a_link,
        made_a_directory,
        made_private,
        deleted,
        made_a_fifo,
    )
}
WANTED = {
    "replace": file(b"new", seen=version(9)),
    "delete": tombstone(version(9)),
    "chmod": file(b"old", 0o755, seen=version(9)),
    "touch": file(b"old", mtime_ns=NEW_NS, seen=version(9)),
    "link": symlink(b"new", seen=version(9)),
    "folder": directory(seen=version(9)),
}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("goes", ["folder/p", "folder"])
def test_what_goes_between_scan_and_apply_is_told_of_as_gone(root: Path, wanted: str, goes: str) -> None:
    make_tree(root, {b"folder/p": b"old"})

    def meanwhile() -> None:
        (root / goes).rename(root.parent / "gone")

    (problem,) = carry_out_at(root, {b"folder/p": WANTED[wanted]}, b"new", meanwhile=meanwhile)

    assert problem.why == "it, or a folder on the way to it, went meanwhile; the next sync will look at it"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.usefixtures("any_system")
def test_what_changes_between_scan_and_apply_is_left_alone(root: Path, change: str, wanted: str) -> None:
    make_tree(root, {b"p": b"old"})
    entry = scanned(root)[b"p"]
    after_change: list[object] = []

    def meanwhile() -> None:
        CHANGES[change](root)
        after_change.append(snapshot(root))

    problems = carry_out_at(root, {b"p": WANTED[wanted]}, b"new", meanwhile=meanwhile)

    assert [problem.path for problem in problems] == [b"p"]
    assert [snapshot(root)] == after_change
    assert in_manifest(root, b"p") == [entry]


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.usefixtures("any_system")
def test_a_racy_file_that_changes_without_a_trace_is_left_alone(root: Path, wanted: str) -> None:
    """Its stat cannot tell: its bytes are compared."""
    now = time.time_ns()
    make_tree(root, {b"p": b"old"}, now)
    with opened(root) as replica:
        replica.scan(keep=True)
        expected = entries(replica)[b"p"]
        make_tree(root, {b"p": b"OLD"}, now)
        st = os.stat(root / "p")
        replica._manifest._db.execute("UPDATE entry SET stat_ctime_ns = ?", (st.st_ctime_ns,))
        _, problems = carry_out(replica, [Transition(b"p", expected, WANTED[wanted])], b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert snapshot(root)[b"p"].data == b"OLD"


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
@pytest.mark.usefixtures("any_system")
def test_what_appears_between_scan_and_apply_is_never_overwritten(root: Path, kind: str) -> None:
    wanted = {"file": file(b"new"), "link": symlink(b"new"), "directory": directory(0o700)}[kind]
    appearances: list[Tree] = [{b"p": b"mine"}, {b"p": Link(b"mine")}, {b"p/f": b"mine"}]
    for appeared in appearances[: 2 if kind == "directory" else 3]:  # two folders would be one
        (problem,) = carry_out_at(
            root, {b"p": wanted}, b"new", meanwhile=functools.partial(make_tree, root, appeared)
        )
        assert problem.path == b"p"
        assert contents_of([root]) == {b"mine"}
        shutil.rmtree(root / "p") if b"p/f" in appeared else (root / "p").unlink()


def test_what_appears_just_as_it_is_wanted_gets_the_time_that_is_wanted(root: Path) -> None:
    appear: Tree = {b"f": b"new", b"l": Link(b"new")}
    wanted = {b"f": file(b"new", mtime_ns=NEW_NS), b"l": symlink(b"new", NEW_NS)}
    assert carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, appear)) == []
    assert [seen.mtime_ns for seen in snapshot(root).values()] == [NEW_NS, NEW_NS]


def test_an_edit_of_what_is_there_already_is_found_though_it_gets_the_time_that_is_wanted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited_then(name: bytes, folder: int) -> tuple[Digest, os.stat_result]:
        found = disk.hash_file(name, folder)
        make_tree(root, {b"f": b"NEW"})
        return found

    wanted = {b"f": file(b"new", mtime_ns=NEW_NS)}
    with monkeypatch.context() as patch:
        patch.setattr(apply, "hash_file", edited_then)
        assert carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, {b"f": b"new"})) == []
    assert scanned(root)[b"f"].digest == digest(b"NEW")


def test_what_appears_as_it_is_wanted_but_with_other_permissions_is_not_what_is_wanted(root: Path) -> None:
    def appear() -> None:
        make_tree(root, {b"p": b"new"})
        (root / "p").chmod(0o600)

    problems = carry_out_at(root, {b"p": file(b"new")}, b"new", meanwhile=appear)
    assert [problem.path for problem in problems] == [b"p"]
    assert snapshot(root)[b"p"].mode == 0o600


@pytest.mark.usefixtures("any_system")
def test_a_folder_with_something_new_in_it_is_not_replaced(root: Path) -> None:
    make_tree(root, {b"p/f": b"old"})
    wanted = {b"p": file(b"new", seen=version(9)), b"p/f": tombstone(version(9))}
    problems = carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, {b"p/g": b"mine"}))
    assert [problem.path for problem in problems] == [b"p"]
    assert contents_of([root]) == {b"mine"}


def test_a_folder_with_something_new_in_it_is_not_deleted(root: Path) -> None:
    make_tree(root, {b"p/f": b"old"})
    wanted = {b"p": tombstone(version(9)), b"p/f": tombstone(version(9))}
    assert carry_out_at(root, wanted, meanwhile=lambda: make_tree(root, {b"p/g": b"mine"})) == []
    found = scanned(root)
    assert found[b"p"].alive
    assert found[b"p/g"].alive
    assert version(9) <= found[b"p"].version  # it has come to life again: no peer's deletion is disputed


def test_a_folder_stays_deleted_although_what_is_in_it_could_not_be_deleted_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"p/d/f": b"old"})
    wanted = {path: tombstone(version(9)) for path in (b"p", b"p/d", b"p/d/f")}

    def broken(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_rename", broken)
        assert {problem.path for problem in carry_out_at(root, wanted)} == set(wanted)
    assert carry_out_at(root, wanted) == []
    assert snapshot(root) == {}
    assert in_manifest(root, *wanted) == list(wanted.values())


def test_what_is_on_another_file_system_is_told_as_that(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root, {b"f": b"old"})
    no_renameat2(monkeypatch, errno.EXDEV)
    (problem,) = carry_out_at(root, {b"f": tombstone(version(9))})
    assert "on another file system" in problem.why
    assert (root / "f").read_bytes() == b"old"


@pytest.mark.parametrize("becomes", [tombstone(version(9)), file(b"new", seen=version(9))])
def test_a_folder_is_not_gone_before_what_the_manifest_has_in_it(root: Path, becomes: Entry) -> None:
    make_tree(root, {b"p/d/f": b"old"})
    inode = os.lstat(root / "p").st_ino

    def swapped() -> None:
        (root / "p").rename(root / "elsewhere")
        (root / "p").mkdir()

    wanted = {b"p": becomes, b"p/d": tombstone(version(9)), b"p/d/f": tombstone(version(9))}
    problems = carry_out_at(root, wanted, b"new", meanwhile=swapped)
    assert {problem.path for problem in problems} == set(wanted)
    found = scanned(root)
    assert os.lstat(root / "elsewhere").st_ino == inode
    assert not found[b"p/d"].alive
    assert not found[b"p/d/f"].alive


def test_permissions_of_a_folder_that_change_between_scan_and_apply_are_left_alone(root: Path) -> None:
    make_tree(root, {b"p": None})
    os.chmod(root / "p", 0o755)
    wanted = {b"p": directory(0o750, seen=version(9))}
    problems = carry_out_at(root, wanted, meanwhile=lambda: os.chmod(root / "p", 0o700))
    assert [problem.path for problem in problems] == [b"p"]
    assert snapshot(root)[b"p"].mode == 0o700


def test_an_entry_that_is_not_the_expected_one_is_left_alone(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    scanned(root)
    with opened(root) as replica:
        transition = Transition(b"p", file(b"never was here"), file(b"new", seen=version(9)))
        _, problems = carry_out(replica, [transition], b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert contents_of([root]) == {b"old"}


def test_one_problem_stops_nothing_else(root: Path) -> None:
    make_tree(root, {b"a": b"old", b"b": b"old", b"c": b"old"})
    wanted = {path: file(b"new", seen=version(9)) for path in (b"a", b"b", b"c")}
    problems = carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, {b"b": b"mine"}, NEW_NS))
    assert [problem.path for problem in problems] == [b"b"]
    assert {path: seen.data for path, seen in snapshot(root).items()} == {
        b"a": b"new",
        b"b": b"mine",
        b"c": b"new",
    }


def test_what_was_never_staged_is_a_problem_and_changes_nothing(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    problems = carry_out_at(root, {b"p": file(b"new", seen=version(9)), b"q": file(b"new")})
    assert sorted(problem.path for problem in problems) == [b"p", b"q"]
    assert {path: seen.data for path, seen in snapshot(root).items()} == {b"p": b"old"}


def test_a_name_that_the_file_system_takes_for_another_is_not_the_file_that_is_wanted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"foo": b"same"})
    os.chmod(root / "foo", 0o644)

    def exists(source: bytes, source_fd: int, target: bytes, target_fd: int) -> None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    with monkeypatch.context() as patch:
        patch.setattr("p2psync.apply.rename_new", exists)
        patch.setattr("p2psync.apply.lstat", lambda name, fd: disk.lstat(name.lower(), fd))
        patch.setattr("p2psync.apply.hash_file", lambda name, fd: disk.hash_file(name.lower(), fd))
        patch.setattr("p2psync.apply.os.utime", lambda *args, **kwargs: None)
        problems = carry_out_at(root, {b"Foo": file(b"same")}, b"same")
    assert [problem.path for problem in problems] == [b"Foo"]
    assert in_manifest(root, b"Foo") == [None]


def test_a_file_that_cannot_be_replaced_in_steps_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_renameat2(monkeypatch)
    make_tree(root, {b"p": b"old"})
    real, into_tree = os.rename, []

    def rename(source: bytes, target: bytes, **places: int) -> None:
        if target == b"p~1":  # the old one goes to the history; the new one comes next
            into_tree.append(True)
        elif into_tree and source == b"p":
            into_tree.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target, **places)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        problems = carry_out_at(root, {b"p": file(b"new", seen=version(9))}, b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert snapshot(root)[b"p"].data == b"old"


def test_a_conflict_copy_is_on_disk_before_what_displaces_it_is_renamed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"p": b"loser"})
    steps: list[bytes] = []
    real = disk._rename

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
        steps.append(target)
        real(source, source_fd, target, target_fd, flags)

    monkeypatch.setattr(disk, "_rename", rename)
    monkeypatch.setattr("p2psync.apply.sync_file_system", lambda fd: steps.append(b"sync"))
    wanted = {b"p": file(b"winner", seen=version(9)), b"z copy": file(b"loser")}
    assert carry_out_at(root, wanted, b"winner", b"loser", after={b"p": (b"z copy",)}) == []
    assert steps.index(b"z copy") < steps.index(b"sync") < len(steps) - 1 - steps[::-1].index(b"p")


def test_a_path_stays_when_its_conflict_copy_cannot_be_made(root: Path) -> None:
    make_tree(root, {b"p": b"loser"})
    wanted = {b"p": file(b"winner", seen=version(9)), b"copy": file(b"loser")}
    problems = carry_out_at(
        root,
        wanted,
        b"winner",
        b"loser",
        meanwhile=lambda: make_tree(root, {b"copy": b"in the way"}),
        after={b"p": (b"copy",)},
    )
    assert {problem.path for problem in problems} == {b"p", b"copy"}
    assert contents_of([root]) == {b"loser", b"in the way"}


def test_a_conflict_copy_is_made_before_what_displaces_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"a": b"loser"})
    seen: list[set[bytes]] = []
    before_rename(monkeypatch, EXCHANGE, lambda: seen.append(set(snapshot(root))))
    wanted = {b"a": file(b"winner", seen=version(9)), b"z copy": file(b"loser")}
    assert carry_out_at(root, wanted, b"winner", b"loser", after={b"a": (b"z copy",)}) == []
    assert seen == [{b"a", b"z copy"}]
    assert snapshot(root)[b"z copy"].data == b"loser"


# -- races: what someone does at the very moment

CREATE, EXCHANGE = disk._NOREPLACE, disk._EXCHANGE


def before_rename(patch: pytest.MonkeyPatch, flags: int, action: Meanwhile) -> None:
    """Have `action` done right before the first rename with these flags."""
    pending = [action]

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, given: int) -> None:
        if given == flags and pending:
            pending.pop()()
        real(source, source_fd, target, target_fd, given)

    real = disk._rename
    patch.setattr(disk, "_rename", rename)


def before_plain_rename(patch: pytest.MonkeyPatch, path: bytes, action: Meanwhile) -> None:
    """The same where there is no renameat2: before `path` is moved out of the tree."""
    no_renameat2(patch)
    pending = [action]

    def rename(
        source: bytes, target: bytes, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        if source == path and pending:
            pending.pop()()
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    real = os.rename
    patch.setattr(os, "rename", rename)


RACES = {
    change.__name__: change
    for change in (edited, replaced_by_another, made_a_link, made_a_directory, made_a_fifo)
}


@pytest.mark.parametrize("change", RACES)
@pytest.mark.parametrize("wanted", ["replace", "link", "folder", "delete"])
@pytest.mark.parametrize("system", ["renameat2", "plain"])
def test_what_changes_as_it_is_replaced_or_deleted_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, system: str, wanted: str, change: str
) -> None:
    make_tree(root, {b"p": b"old"})
    after_change: list[object] = []

    def race() -> None:
        CHANGES[change](root)
        after_change.append(snapshot(root))

    with monkeypatch.context() as patch:
        if system == "plain":
            before_plain_rename(patch, b"p", race)
        else:
            before_rename(patch, CREATE if wanted == "delete" else EXCHANGE, race)
        problems = carry_out_at(root, {b"p": WANTED[wanted]}, b"new")

    assert [problem.path for problem in problems] == [b"p"]
    assert [snapshot(root)] == after_change
    assert history(root) == []


@pytest.mark.parametrize("system", ["renameat2", "plain"])
@pytest.mark.parametrize("wanted", ["replace", "delete"])
def test_an_edit_whose_place_is_taken_as_it_is_put_back_is_told_where_it_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, system: str
) -> None:
    if wanted == "replace" and system == "renameat2":
        pytest.skip("there a name is never free")
    make_tree(root, {b"p": b"old"})
    if system == "plain":
        no_renameat2(monkeypatch)
    pending = [b"edited in place", b"saved by another program"]

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int) -> None:
        saving = pending and os.path.samestat(os.fstat(source_fd), root.stat())
        if saving:
            write(os.fsencode(root / "p"), pending.pop(0))
        disk.rename_new(source, source_fd, target, target_fd)
        if saving:
            write(os.fsencode(root / "p"), pending.pop(0))

    monkeypatch.setattr(apply, "rename_new", rename)
    assert carry_out_at(root, {b"p": WANTED[wanted]}, b"new") == [Problem(b"p", folders.STUCK)]
    assert (root / "p").read_bytes() == b"saved by another program"
    assert b"edited in place" in history(root)


@pytest.mark.parametrize("wanted", ["delete", "replace"])
def test_a_file_of_which_another_link_went_is_what_it_was(root: Path, wanted: str) -> None:
    make_tree(root, {b"p": b"old"})
    os.link(root / "p", root / "q")
    assert carry_out_at(root, {b"p": WANTED[wanted], b"q": WANTED[wanted]}, b"new") == []
    assert set(contents_of([root])) == (set() if wanted == "delete" else {b"new"})


@pytest.mark.parametrize(
    "wanted", [file(b"old", 0o600, seen=version(9)), file(b"old", 0o644, NEW_NS, version(9))]
)
def test_what_was_done_to_another_link_is_no_change_of_this_one(root: Path, wanted: Entry) -> None:
    make_tree(root, {b"p": b"old"})
    os.link(root / "p", root / "q")
    assert carry_out_at(root, {b"p": wanted, b"q": wanted}) == []
    seen = Seen("file", wanted.mode, wanted.mtime_ns, b"old")
    assert snapshot(root) == {b"p": seen, b"q": seen}
    assert nothing_left_to_find(root)


@pytest.mark.parametrize("wanted", [tombstone(version(9)), file(b"new", 0o600, NEW_NS, version(9))])
def test_permissions_that_changed_are_no_ones_that_are_wanted_with_other_contents(
    root: Path, wanted: Entry
) -> None:
    make_tree(root, {b"p": b"old"})
    problems = carry_out_at(root, {b"p": wanted}, b"new", meanwhile=lambda: os.chmod(root / "p", wanted.mode))
    assert len(problems) == 1
    assert contents_of([root]) == {b"old"} and history(root) == []


# -- moves


def moved(mode: int = 0o644, mtime_ns: int = OLD_NS) -> dict[bytes, Entry]:
    """What is wanted when `p` becomes `d/q`."""
    return {
        b"p": tombstone(version(9)),
        b"d": directory(seen=version(9)),
        b"d/q": file(b"old", mode, mtime_ns, seen=version(9)),
    }


@pytest.mark.parametrize("wanted", [moved(), moved(0o600), moved(mtime_ns=NEW_NS), moved(0o400, NEW_NS)])
@pytest.mark.usefixtures("any_system")
def test_a_file_that_moves_is_renamed_and_is_as_it_is_wanted(root: Path, wanted: dict[bytes, Entry]) -> None:
    make_tree(root, {b"p": b"old"})
    inode = (root / "p").stat().st_ino
    assert carry_out_at(root, wanted) == []
    entry = wanted[b"d/q"]
    assert snapshot(root) == {
        b"d": Seen("directory", 0o755, 0, b""),
        b"d/q": Seen("file", entry.mode, entry.mtime_ns, b"old"),
    }
    assert (root / "d" / "q").stat().st_ino == inode
    assert (root / "d").stat().st_mtime_ns == wanted[b"d"].mtime_ns
    assert in_manifest(root, *wanted) == [*wanted.values()]
    assert nothing_left_to_find(root)
    assert history(root) == []


def test_a_file_moves_out_of_and_into_read_only_folders(root: Path) -> None:
    make_tree(root, {b"a/p": b"old", b"b": None})
    for folder in ("a", "b"):
        (root / folder).chmod(0o555)
    assert carry_out_at(root, {b"a/p": tombstone(version(9)), b"b/q": file(b"old", seen=version(9))}) == []
    assert {path: seen.mode for path, seen in snapshot(root).items()} == {
        b"a": 0o555,
        b"b": 0o555,
        b"b/q": 0o644,
    }


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("any_system")
def test_what_changes_before_it_is_moved_is_left_alone(root: Path, change: str) -> None:
    make_tree(root, {b"p": b"old"})
    after_change: dict[bytes, object] = {}

    def meanwhile() -> None:
        CHANGES[change](root)
        after_change.update(snapshot(root))

    problems = carry_out_at(root, moved(), meanwhile=meanwhile)
    assert [problem.path for problem in problems] == [b"d/q", b"p"]
    assert snapshot(root) == {**after_change, b"d": Seen("directory", 0o755, 0, b"")}


@pytest.mark.parametrize("change", RACES)
def test_what_changes_as_it_is_moved_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    make_tree(root, {b"p": b"old", b"d": None})
    after_change: list[object] = []

    def race() -> None:
        CHANGES[change](root)
        after_change.append(snapshot(root))

    wanted = moved()
    del wanted[b"d"]
    with monkeypatch.context() as patch:
        before_rename(patch, CREATE, race)
        problems = carry_out_at(root, wanted)
    assert [problem.path for problem in problems] == [b"d/q", b"p"]
    assert [snapshot(root)] == after_change


def test_what_is_where_a_file_is_to_be_moved_stays_and_so_does_the_file(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    problems = carry_out_at(root, moved(), meanwhile=lambda: make_tree(root, {b"d/q": b"mine"}))
    assert {problem.path for problem in problems} == {b"d/q", b"p"}
    assert {path: seen.data for path, seen in snapshot(root).items() if seen.kind == "file"} == {
        b"d/q": b"mine",
        b"p": b"old",
    }


# -- folders that go as a whole

FOLDER = {
    b"d": None,
    b"d/empty": None,
    b"d/link": Link(b"x"),
    **{b"d/e/%d" % number: b"%d" % number for number in range(9)},
}


def folder_gone(root: Path) -> dict[bytes, Entry]:
    return {path: tombstone(version(9)) for path in scanned(root) if path.startswith(b"d")}


def renames(patch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect what is renamed."""
    seen: list[bytes] = []
    real = disk._rename

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
        seen.append(source)
        real(source, source_fd, target, target_fd, flags)

    patch.setattr(disk, "_rename", rename)
    return seen


def test_what_belongs_in_a_folder_that_could_not_be_made_is_not_put_into_somebody_elses(root: Path) -> None:
    make_tree(root, {b"d": b"file", b"old": b"moved" * 9, b"other": b"gone" * 9})
    wanted: dict[bytes, Entry] = {
        b"d": directory(seen=version(9)),
        b"d/f": file(b"1", seen=version(9)),
        b"d/e": directory(seen=version(9)),
        b"d/e/new": file(b"moved" * 9, seen=version(9)),
        b"d/link": symlink(b"x", seen=version(9)),
        b"old": tombstone(version(9)),
        b"other": tombstone(version(9)),
    }

    def makes_a_folder() -> None:
        (root / "d").unlink()
        make_tree(root, {b"d/mine": b"mine"})

    problems = carry_out_at(root, wanted, b"1", meanwhile=makes_a_folder)
    assert {problem.path for problem in problems} == wanted.keys() - {b"other"}
    assert list(snapshot(root)) == [b"d", b"d/mine", b"old"]
    assert in_manifest(root, b"d/f", b"d/e", b"d/e/new", b"d/link") == [None] * 4


def test_a_folder_goes_to_the_history_in_one_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root, {**FOLDER, b"other": b"stays"})
    if os.geteuid() == 0:  # others cannot move a folder in which they may not write
        (root / "d").chmod(0o555)
    was, gone = snapshot(root), folder_gone(root)
    with monkeypatch.context() as patch:
        seen = renames(patch)
        assert carry_out_at(root, gone) == []
    assert seen == [b"d"]
    assert list(snapshot(root)) == [b"other"]
    (kept,) = (root / ".p2psync" / "history").iterdir()
    assert {path: seen for path, seen in was.items() if path != b"other"} == snapshot(kept)
    assert in_manifest(root, *gone) == [*gone.values()]
    assert nothing_left_to_find(root)


def appears(root: Path) -> None:
    make_tree(root, {b"d/e/new": b"new"})


def ignored_appears(root: Path) -> None:
    make_tree(root, {b"d/empty/new": b"new"})


def link_changes(root: Path) -> None:
    (root / "d/link").unlink()
    make_tree(root, {b"d/link": Link(b"y")})


def inside_is_edited(root: Path) -> None:
    make_tree(root, {b"d/e/3": b"edited"}, NEW_NS)


def inside_becomes_another(root: Path) -> None:
    make_tree(root, {b"q": b"3"})
    (root / "q").rename(root / "d/e/3")


def inside_is_made_private(root: Path) -> None:
    (root / "d/e").chmod(0o700)


INSIDE = {
    change.__name__: change
    for change in (
        appears,
        ignored_appears,
        link_changes,
        inside_is_edited,
        inside_becomes_another,
        inside_is_made_private,
    )
}


@pytest.mark.parametrize("change", INSIDE)
@pytest.mark.parametrize("when", ["before", "as it goes"])
def test_of_a_folder_in_which_something_changes_that_stays_and_the_rest_goes(
    root: Path, monkeypatch: pytest.MonkeyPatch, when: str, change: str
) -> None:
    make_tree(root, FOLDER)
    gone = folder_gone(root)
    before = snapshot(root)
    changed: dict[bytes, object] = {}

    def meanwhile() -> None:
        INSIDE[change](root)
        now = snapshot(root)
        changed.update({path: seen for path, seen in now.items() if before.get(path) != seen})

    with monkeypatch.context() as patch:
        if when == "before":
            problems = carry_out_at(root, gone, meanwhile=meanwhile)
        else:
            before_rename(patch, CREATE, meanwhile)
            problems = carry_out_at(root, gone)
    left = {path: seen for path, seen in snapshot(root).items() if path in changed}
    assert left == changed
    assert not any(path.startswith(b"d/e/0") for path in snapshot(root))
    assert {problem.path for problem in problems} >= {path for path in changed if path in before}


def test_a_folder_that_must_stay_is_not_moved_for_an_instant(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who dies then must not leave what nobody has looked at in the history."""
    make_tree(root, FOLDER)
    gone = folder_gone(root)
    with monkeypatch.context() as patch:
        seen = renames(patch)
        carry_out_at(root, gone, meanwhile=lambda: make_tree(root, {b"d/empty/ignored": b"mine"}))
    assert b"d" not in seen
    assert snapshot(root)[b"d/empty/ignored"].data == b"mine"


def test_an_interrupt_while_a_folder_is_looked_at_puts_it_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, FOLDER)
    before, gone = snapshot(root), folder_gone(root)
    real, calls = folders._is_whole, []

    def interrupted(*arguments: object) -> bool:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_is_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            carry_out_at(root, gone)
    assert snapshot(root) == before


def test_what_is_made_anew_while_a_folder_goes_stays_and_the_old_one_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, FOLDER)
    gone = folder_gone(root)
    real, calls = folders._is_whole, []

    def changing(*arguments: object) -> bool:
        calls.append(arguments)
        if len(calls) == 2:
            make_tree(root, {b"d/new": b"new"})
            return False
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_is_whole", changing)
        problems = carry_out_at(root, gone)
    assert {problem.path for problem in problems} == set(gone)
    assert all(".p2psync/history" in problem.why for problem in problems)
    assert list(snapshot(root)) == [b"d", b"d/new"]


def folder_moved(root: Path) -> dict[bytes, Entry]:
    """What is wanted when `d` becomes `other/n`."""
    there = {
        b"other/n" + path[1:]: structs.replace(entry, version=version(9))
        for path, entry in scanned(root).items()
        if path.startswith(b"d")
    }
    return folder_gone(root) | there


@pytest.mark.usefixtures("any_system")
def test_a_folder_that_moves_is_renamed_with_all_that_is_in_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    before, wanted = snapshot(root), folder_moved(root)
    inode = (root / "d/e/3").stat().st_ino
    with monkeypatch.context() as patch:
        seen = renames(patch)
        assert carry_out_at(root, wanted, b"") == []
    assert seen == [b"d"]
    assert snapshot(root) == {
        b"other/n" + path[1:] if path.startswith(b"d") else path: seen for path, seen in before.items()
    }
    assert (root / "other/n/e/3").stat().st_ino == inode
    assert in_manifest(root, *wanted) == [*wanted.values()]
    assert nothing_left_to_find(root)
    assert history(root) == []


@pytest.mark.parametrize("change", INSIDE)
@pytest.mark.parametrize("when", ["before", "as it goes"])
def test_of_a_folder_in_which_something_changes_that_stays_and_the_rest_is_moved(
    root: Path, monkeypatch: pytest.MonkeyPatch, when: str, change: str
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    wanted, before = folder_moved(root), snapshot(root)
    changed: dict[bytes, object] = {}

    def meanwhile() -> None:
        INSIDE[change](root)
        now = snapshot(root)
        changed.update({path: seen for path, seen in now.items() if before.get(path) != seen})

    with monkeypatch.context() as patch:
        if when == "before":
            problems = carry_out_at(root, wanted, b"", meanwhile=meanwhile)
        else:
            before_rename(patch, CREATE, meanwhile)
            problems = carry_out_at(root, wanted, b"")
    after = snapshot(root)
    assert {path: seen for path, seen in after.items() if path in changed} == changed
    assert b"d/e/0" not in after
    assert after[b"other/n/e/0"].data == b"0"
    assert {problem.path for problem in problems} >= {path for path in changed if path in before}


def test_a_file_that_is_deleted_as_its_folder_moves_is_not_said_to_have_come(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    wanted = folder_moved(root)
    with monkeypatch.context() as patch:
        before_rename(patch, CREATE, (root / "d/e/3").unlink)
        problems = carry_out_at(root, wanted, b"")
    assert b"other/n/e/3" in {problem.path for problem in problems}
    assert in_manifest(root, b"other/n/e/3") == [None]
    assert snapshot(root)[b"other/n/e/0"].data == b"0"
    assert b"other/n/e/3" not in snapshot(root)


@pytest.mark.parametrize("what", [KeyboardInterrupt, PermissionError])
def test_a_folder_that_moves_is_put_back_if_it_cannot_be_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch, what: type[BaseException]
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    before, wanted = snapshot(root), folder_moved(root)
    real, calls = folders._is_whole, []

    def failing(*arguments: object) -> bool:
        calls.append(arguments)
        if len(calls) == 2:
            raise what
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(folders, "_is_whole", failing)
        assert carry_out_at(root, wanted, b"") == []  # one by one
    after = snapshot(root)
    assert after == before if what is KeyboardInterrupt else after[b"other/n/e/0"].data == b"0"


def test_a_racy_file_in_a_folder_that_moves_is_read(root: Path) -> None:
    now = time.time_ns()
    make_tree(root, FOLDER | {b"other": None}, now)
    with opened(root) as replica:
        replica.scan(keep=True)
        known = {path: entry for path, entry in entries(replica).items() if path.startswith(b"d")}
        make_tree(root, {b"d/e/3": b"X"}, now)
        st = (root / "d/e/3").stat()
        replica._manifest._db.execute(
            "UPDATE entry SET stat_ctime_ns = ?, stat_inode = ? WHERE name = x'33'",
            (st.st_ctime_ns, st.st_ino),
        )
        steps = [Transition(path, entry, tombstone(version(9))) for path, entry in known.items()]
        steps += [Transition(b"other/n" + path[1:], None, entry) for path, entry in known.items()]
        carry_out(replica, steps, b"")
    assert b"other/n/e/3" not in snapshot(root)
    assert snapshot(root)[b"d/e/3"].data == b"X"


def test_a_folder_is_not_moved_as_a_whole_to_where_the_manifest_has_what_was_not_expected(
    root: Path,
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    wanted = folder_moved(root)
    with opened(root) as replica:
        steps = [Transition(path, entries(replica).get(path), entry) for path, entry in wanted.items()]
        with replica._manifest.transaction():
            replica._manifest.record([Record(b"other/n/e/3", Row(tombstone(version(5))))])
        _, problems = carry_out(replica, steps, b"")
    assert [problem.path for problem in problems] == [b"other/n/e/3"]
    assert b"other/n/e/3" not in snapshot(root)
    assert snapshot(root)[b"other/n/e/0"].data == b"0"
    assert b"3" in history(root)


@pytest.mark.parametrize("becomes", [folder_gone, folder_moved])
@pytest.mark.parametrize("holds", [{b"precious": b"precious"}, {}], ids=["full", "empty"])
def test_a_disk_that_is_mounted_in_a_folder_that_goes_or_moves_is_left_alone(
    root: Path, becomes: Callable[[Path], dict[bytes, Entry]], holds: Tree
) -> None:
    make_tree(root, FOLDER | {b"other": None})
    wanted = becomes(root)
    with mounted(root / "d/empty"):
        make_tree(root / "d/empty", holds)
        carry_out_at(root, wanted, b"")
        assert os.path.ismount(root / "d/empty")
        assert {path: seen.data for path, seen in snapshot(root / "d/empty").items()} == holds


@pytest.mark.parametrize("foreign", ["the folder", "what is around it"])
def test_a_folder_on_another_device_is_not_moved_as_a_whole_though_nothing_is_mounted_on_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    """So is a subvolume of btrfs, which the system would rename."""
    make_tree(root, FOLDER)
    gone = folder_gone(root)
    look, where = ("lstat", folders) if foreign == "the folder" else ("fstat", os)
    real = getattr(where, look)

    def elsewhere(*arguments: object) -> object:
        found = real(*arguments)
        return SimpleNamespace(st_mode=found.st_mode, st_dev=-1)

    is_whole = folders._is_whole

    def looked_at(*arguments: object) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(where, look, elsewhere)
            return is_whole(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_is_whole", looked_at)
        seen = renames(patch)
        carry_out_at(root, gone)
    assert b"d" not in seen
    assert contents_of([root]) == set()


def test_a_racy_file_in_a_folder_that_goes_is_read(root: Path) -> None:
    """Its stat cannot tell that it was written to: it must not go with the folder."""
    now = time.time_ns()
    make_tree(root, FOLDER, now)
    with opened(root) as replica:
        replica.scan(keep=True)
        known = {path: entry for path, entry in entries(replica).items() if path.startswith(b"d")}
        make_tree(root, {b"d/e/3": b"X"}, now)
        for path in (b"d/e/%d" % number for number in range(9)):
            st = os.stat(os.path.join(os.fsencode(root), path))
            replica._manifest._db.execute(
                "UPDATE entry SET stat_ctime_ns = ? WHERE name = ?", (st.st_ctime_ns, path[-1:])
            )
        _, problems = carry_out(
            replica, [Transition(path, entry, tombstone(version(9))) for path, entry in known.items()]
        )
    assert snapshot(root)[b"d/e/3"].data == b"X"
    assert b"d/e/3" in {problem.path for problem in problems}


def test_a_folder_of_other_permissions_is_not_the_one_that_goes(root: Path) -> None:
    make_tree(root, FOLDER)
    problems = carry_out_at(root, folder_gone(root), meanwhile=lambda: (root / "d").chmod(0o700))
    assert b"d" in {problem.path for problem in problems}
    assert snapshot(root)[b"d"].mode == 0o700


def test_a_folder_whose_place_in_the_history_is_taken_goes_file_by_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, FOLDER)
    gone = folder_gone(root)
    real = History.shelf

    def taken(self: History, path: bytes) -> Shelf:
        shelf = real(self, path)
        return shelf._replace(name=shelf.name + b"~1") if path == b"d" else shelf

    monkeypatch.setattr(History, "shelf", taken)
    assert carry_out_at(root, gone) == []
    assert {b"%d" % number for number in range(9)} <= set(history(root))
    assert not list((root / ".p2psync/history").glob("*/d~1"))


def change_without_a_trace(root: Path, path: bytes, data: bytes) -> None:
    """Have the disk hold other bytes of the same size, with nothing in the stat that tells."""
    place = os.path.join(os.fsencode(root), path)
    stat = os.stat(place)
    write(place, data)
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with contextlib.closing(sqlite3.connect(root / ".p2psync" / "manifest.db")) as database, database:
        database.execute(
            "UPDATE entry SET stat_ctime_ns = ? WHERE name = ?",
            (os.stat(place).st_ctime_ns, os.path.basename(path)),
        )


def test_a_file_whose_bytes_rotted_is_not_moved_as_if_it_were_good(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    problems = carry_out_at(root, moved(), meanwhile=lambda: change_without_a_trace(root, b"p", b"rot"))
    assert [problem.path for problem in problems] == [b"d/q", b"p"]
    assert snapshot(root)[b"p"].data == b"rot"


# -- and again: what happens at the same time


@pytest.mark.parametrize("system", ["renameat2", "plain"])
def test_what_appears_in_a_folder_as_it_is_replaced_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    make_tree(root, {b"p": None})
    with monkeypatch.context() as patch:
        if system == "plain":
            before_plain_rename(patch, b"p", lambda: make_tree(root, {b"p/f": b"mine"}))
        else:
            before_rename(patch, EXCHANGE, lambda: make_tree(root, {b"p/f": b"mine"}))
        problems = carry_out_at(root, {b"p": file(b"new", seen=version(9))}, b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert contents_of([root]) == {b"mine"}


def test_what_replaces_what_is_put_back_is_put_back_instead(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"p": b"old"})
    exchanges = 0

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
        nonlocal exchanges
        if flags == EXCHANGE and exchanges < 3:
            exchanges += 1
            (root / "mine").write_bytes(b"edit %d" % exchanges)
            os.rename(root / "mine", root / "p")
        real(source, source_fd, target, target_fd, flags)

    real = disk._rename
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_rename", rename)
        problems = carry_out_at(root, {b"p": file(b"new", seen=version(9))}, b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert contents_of([root]) == {b"edit 3"}


def test_what_vanishes_as_it_is_replaced_stays_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root, {b"p": b"old"})
    before_rename(monkeypatch, EXCHANGE, lambda: deleted(root))
    problems = carry_out_at(root, {b"p": file(b"new", seen=version(9))}, b"new")
    assert [problem.path for problem in problems] == [b"p"]
    assert snapshot(root) == {}


@not_as_root
@pytest.mark.parametrize("wanted", ["replace", "delete"])
def test_what_changes_in_a_read_only_folder_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    make_tree(root, {b"d/p": b"old"})
    os.chmod(root / "d", 0o555)
    before_rename(
        monkeypatch,
        CREATE if wanted == "delete" else EXCHANGE,
        lambda: write(os.fsencode(root / "d" / "p"), b"edited"),
    )
    try:
        problems = carry_out_at(root, {b"d/p": WANTED[wanted]}, b"new")
    finally:
        mode = stat.S_IMODE(os.stat(root / "d").st_mode)
        os.chmod(root / "d", 0o755)
    assert [problem.path for problem in problems] == [b"d/p"]
    assert contents_of([root]) == {b"edited"}
    assert mode == 0o555


def test_an_edit_just_before_a_touch_is_found_by_the_next_scan(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"p": b"old"})
    pending = [lambda: write(os.fsencode(root / "p"), b"OLD")]

    def utime(
        path: bytes | int, *, ns: tuple[int, int], dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        if path == b"p" and pending:
            pending.pop()()
        real(path, ns=ns, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    real = os.utime
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", utime)
        carry_out_at(root, {b"p": file(b"old", mtime_ns=NEW_NS, seen=version(9))})
    assert not pending
    assert scanned(root)[b"p"].digest == digest(b"OLD")


def test_an_edit_just_before_a_file_that_moved_gets_its_time_is_found_by_the_next_scan(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"p": b"old"})
    real = os.utime

    def utime(path: bytes | int, **options: Any) -> None:  # noqa: ANN401
        if path == b"q":
            write(os.fsencode(root / "d" / "q"), b"OLD")
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", utime)
        assert carry_out_at(root, moved(mtime_ns=NEW_NS)) == []
    assert scanned(root)[b"d/q"].digest == digest(b"OLD")


def test_a_file_that_moved_soon_after_it_was_written_is_read_by_the_next_scan(root: Path) -> None:
    now = time.time_ns()
    make_tree(root, {b"p": b"old"}, now)
    assert carry_out_at(root, moved(mtime_ns=now)) == []
    change_without_a_trace(root, b"d/q", b"OLD")
    assert scanned(root)[b"d/q"].digest == digest(b"OLD")


# -- nothing outside the root changes (I7)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of our business, laid out like the one in the replica."""
    folder = tmp_path / "outside"
    make_tree(folder, {b"e/f": b"old", b"e/g": None, b"e/h": Link(b"old")})
    return folder


SWAPPED = {
    "create a file": (b"d/e/new", file(b"new")),
    "create a link": (b"d/e/new", symlink(b"new")),
    "create a folder": (b"d/e/new", directory()),
    "replace": (b"d/e/f", file(b"new", seen=version(9))),
    "replace by a link": (b"d/e/f", symlink(b"new", seen=version(9))),
    "replace by a folder": (b"d/e/f", directory(seen=version(9))),
    "replace a folder": (b"d/e/g", file(b"new", seen=version(9))),
    "delete": (b"d/e/f", tombstone(version(9))),
    "delete a folder": (b"d/e/g", tombstone(version(9))),
    "chmod": (b"d/e/f", file(b"old", 0o777, seen=version(9))),
    "chmod a folder": (b"d/e/g", directory(0o777, seen=version(9))),
    "touch": (b"d/e/f", file(b"old", mtime_ns=NEW_NS, seen=version(9))),
    "touch a link": (b"d/e/h", symlink(b"old", NEW_NS, version(9))),
}


@pytest.mark.parametrize("case", SWAPPED)
@pytest.mark.parametrize("swapped", ["d", "d/e"])
@pytest.mark.usefixtures("any_system")
def test_no_way_leads_through_a_symlink(root: Path, outside: Path, case: str, swapped: str) -> None:
    make_tree(root, {b"d/e/f": b"old", b"d/e/g": None, b"d/e/h": Link(b"old"), b"a/visited last": b""})
    before = snapshot(outside)

    def swap() -> None:
        (root / swapped).rename(root.parent / "away")
        (root / swapped).symlink_to(outside if swapped == "d" else outside / "e")

    path, wanted = SWAPPED[case]
    problems = carry_out_at(root, {path: wanted}, b"new", meanwhile=swap)
    assert [problem.path for problem in problems] == [path]
    assert snapshot(outside) == before


@pytest.mark.parametrize("case", SWAPPED)
def test_a_folder_that_was_moved_out_of_the_replica_is_not_followed(
    root: Path, outside: Path, case: str
) -> None:
    make_tree(root, {b"d/e/f": b"old", b"d/e/g": None, b"d/e/h": Link(b"old")})
    path, wanted = SWAPPED[case]
    moved = outside / "moved"
    before: list[object] = []

    def move() -> None:
        (root / "d").rename(moved)
        before.append(snapshot(moved))

    problems = carry_out_at(root, {path: wanted}, b"new", meanwhile=move)
    assert [snapshot(moved)] == before
    assert [problem.path for problem in problems] == [path]


def test_a_link_to_outside_is_replaced_itself(root: Path, outside: Path) -> None:
    make_tree(root, {b"l": Link(os.fsencode(outside)), b"m": Link(os.fsencode(outside / "e" / "f"))})
    before = snapshot(outside)
    wanted = {b"l": tombstone(version(9)), b"m": file(b"new", 0o600, seen=version(9))}
    assert carry_out_at(root, wanted, b"new") == []
    assert snapshot(outside) == before
    assert contents_of([root]) == {b"new"}


# -- permissions are synced, not obeyed


@not_as_root
@pytest.mark.parametrize("any_system", ["renameat2", "ENOSYS"], indirect=True)
@pytest.mark.usefixtures("any_system")
def test_a_read_only_folder_is_written_to_and_stays_read_only(root: Path) -> None:
    make_tree(root, {b"d/replaced": b"old", b"d/deleted": b"old", b"d/folder": None})
    os.chmod(root / "d", 0o555)
    wanted = {
        b"d/new": file(b"new"),
        b"d/new folder": directory(0o500),
        b"d/new folder/f": file(b"new"),
        b"d/replaced": file(b"new", seen=version(9)),
        b"d/deleted": tombstone(version(9)),
        b"d/folder": tombstone(version(9)),
    }
    try:
        problems = carry_out_at(root, wanted, b"new")
        found = snapshot(root)
    finally:
        os.chmod(root / "d", 0o755)
        (root / "d" / "new folder").chmod(0o755)
    assert problems == []
    assert set(found) == {b"d", b"d/new", b"d/new folder", b"d/new folder/f", b"d/replaced"}
    assert (found[b"d"].mode, found[b"d/new folder"].mode) == (0o555, 0o500)
    assert found[b"d/replaced"].data == b"new"


@not_as_root
def test_a_read_only_folder_is_replaced_by_a_file(root: Path) -> None:
    make_tree(root, {b"d": None})
    os.chmod(root / "d", 0o555)
    assert carry_out_at(root, {b"d": file(b"new", seen=version(9))}, b"new") == []
    assert contents_of([root]) == {b"new"}


def test_a_new_read_only_folder_gets_its_children_and_then_its_mode(root: Path) -> None:
    wanted = {
        b"d": directory(0o555, NEW_NS),
        b"d/e": directory(0o500, NEW_NS),
        b"d/e/f": file(b"new", 0o444),
    }
    assert carry_out_at(root, wanted, b"new") == []
    found = snapshot(root)
    times = [os.stat(root / name).st_mtime_ns for name in ("d", "d/e")]
    (root / "d" / "e").chmod(0o755)
    (root / "d").chmod(0o755)
    assert [found[path].mode for path in wanted] == [0o555, 0o500, 0o444]
    assert times == [NEW_NS, NEW_NS]


# -- folders that arrive whole


def test_a_new_folder_arrives_whole_with_one_rename(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        b"d": directory(0o750, NEW_NS),
        b"d/e": directory(0o700, NEW_NS),
        b"d/e/f": file(b"new", 0o640, NEW_NS),
        b"d/l": symlink(b"x", NEW_NS),
    }
    renamed: list[bytes] = []

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
        renamed.append(target)
        real(source, source_fd, target, target_fd, flags)

    real = disk._rename
    monkeypatch.setattr(disk, "_rename", rename)
    assert carry_out_at(root, wanted, b"new") == []
    assert renamed == [b"d"]
    found = snapshot(root)
    assert {path: (seen.mode, seen.data) for path, seen in found.items()} == {
        b"d": (0o750, b""),
        b"d/e": (0o700, b""),
        b"d/e/f": (0o640, b"new"),
        b"d/l": (0, b"x"),
    }
    assert {os.lstat(root / os.fsdecode(path)).st_mtime_ns for path in wanted} == {NEW_NS}
    assert nothing_left_to_find(root)


def test_a_new_folder_arrives_without_what_did_not_come(root: Path) -> None:
    wanted = {b"d": directory(), b"d/f": file(b"new"), b"d/g": file(b"lost"), b"d/h": file(b"new")}
    problems = carry_out_at(root, wanted, b"new")
    assert [problem.path for problem in problems] == [b"d/g"]
    assert set(snapshot(root)) == {b"d", b"d/f", b"d/h"}
    assert in_manifest(root, b"d/f", b"d/g") == [wanted[b"d/f"], None]


@pytest.mark.parametrize("call", ["utime", "fchmod"])
def test_a_folder_never_arrives_with_other_permissions(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    wanted = {b"d": directory(0o750), b"d/e": directory(0o500), b"d/e/f": file(b"new")}

    def broken(fd: int, *args: int, **kwargs: object) -> None:
        if os.fstat(fd).st_mode & 0o170000 == 0o040000 and os.listdir(fd) == ["f"]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, *args, **kwargs)

    real = getattr(os, call)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        assert {problem.path for problem in carry_out_at(root, wanted, b"new")} == set(wanted)
    assert snapshot(root) == {}
    assert carry_out_at(root, wanted, b"new") == []
    assert [seen.mode for seen in snapshot(root).values()] == [0o750, 0o500, 0o644]


def test_a_link_never_arrives_with_another_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {b"d": directory(), b"d/l": symlink(b"x", NEW_NS)}

    def broken(path: bytes | int, **kwargs: object) -> None:
        if path == b"l":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, **kwargs)

    real: Any = os.utime
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", broken)
        assert [problem.path for problem in carry_out_at(root, wanted)] == [b"d/l"]
    assert set(snapshot(root)) == {b"d"}
    assert carry_out_at(root, wanted) == []
    assert snapshot(root)[b"d/l"].mtime_ns == NEW_NS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user who may move what is write-protected")
def test_a_read_only_folder_that_may_be_moved_as_it_is_is_never_writable(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a folder's permissions change once it is in place")

    with opened(root) as replica:
        replica.scan(keep=True)
        replica.prepare([Transition(b"d", None, directory(0o555))])
        monkeypatch.setattr("p2psync.apply.change_mode", forbidden)
        assert [outcome.done for outcome in replica.apply()] == [1]
    assert snapshot(root)[b"d"].mode == 0o555


@pytest.mark.usefixtures("any_system")
def test_a_folder_with_all_that_is_in_it_takes_the_place_of_a_file(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    wanted = {b"p": directory(0o555, NEW_NS, version(9)), b"p/d": directory(), b"p/d/f": file(b"new")}
    assert carry_out_at(root, wanted, b"new") == []
    assert os.stat(root / "p").st_mtime_ns == NEW_NS
    assert snapshot(root)[b"p"].mode == 0o555
    os.chmod(root / "p", 0o755)
    assert contents_of([root]) == {b"new"}
    assert history(root) == [b"old"]


@pytest.mark.usefixtures("any_system")
def test_a_folder_that_cannot_take_the_place_of_a_file_leaves_it(root: Path) -> None:
    make_tree(root, {b"p": b"old"})
    wanted = {b"p": directory(seen=version(9)), b"p/f": file(b"new")}
    problems = carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, {b"p": b"mine"}, NEW_NS))
    assert {problem.path for problem in problems} == {b"p", b"p/f"}
    assert contents_of([root]) == {b"mine"}


def test_a_folder_that_is_there_already_takes_in_what_is_new(root: Path) -> None:
    wanted = {
        b"d": directory(0o500, NEW_NS),
        b"d/e": directory(0o500),
        b"d/e/f": file(b"new"),
        b"d/g": file(b"new"),
    }
    there: Tree = {b"d/e/mine": b"mine"}
    assert carry_out_at(root, wanted, b"new", meanwhile=lambda: make_tree(root, there)) == []
    found = snapshot(root)
    assert os.stat(root / "d").st_mtime_ns == NEW_NS
    for path in (b"d", b"d/e"):
        assert found[path].mode == 0o500
        os.chmod(os.path.join(os.fsencode(root), path), 0o755)
    assert set(found) == {b"d", b"d/e", b"d/e/f", b"d/e/mine", b"d/g"}


# -- disks that are full


def test_a_full_disk_at_staging_changes_nothing_and_the_next_run_carries_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = new_replica(tmp_path / "here", {b"f": b"one" * 1000, b"g": b"two" * 1000})
    there = new_replica(tmp_path / "there")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        problems = sync(here, there).peer.problems
    assert [(problem.path, os.strerror(errno.ENOSPC) in problem.why) for problem in problems] == [
        (b"f", True),
        (b"g", True),
    ]
    assert snapshot(there) == {}
    assert sync(here, there).in_step
    assert snapshot(there) == snapshot(here)
    assert staged(there) == []


def test_a_full_disk_in_the_middle_of_apply_is_a_problem_for_each_path(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"f": b"old"})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = {b"d": directory(), b"l": symlink(b"x"), b"f": file(b"new", seen=version(9))}
    with monkeypatch.context() as patch:

        def fill_up() -> None:
            for name in ("mkdir", "symlink"):
                patch.setattr(os, name, full)

        problems = carry_out_at(root, wanted, b"new", meanwhile=fill_up)
    assert {problem.path for problem in problems} == {b"d", b"l", b"f"}
    assert contents_of([root]) == {b"old"}
    assert carry_out_at(root, wanted, b"new") == []


# -- the order that makes a power cut harmless (I8)


def test_contents_are_on_disk_before_renames_and_renames_before_the_manifest(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(root, {b"f": b"old"})
    steps: list[str] = []
    with opened(root) as replica:
        replica.scan(keep=True)
        known = entries(replica)
        monkeypatch.setattr("p2psync.local.begin_sync", lambda fd: lambda: steps.append("sync"))
        before_rename(monkeypatch, EXCHANGE, lambda: steps.append("rename"))
        replica._manifest._db.set_trace_callback(lambda sql: steps.append(sql.partition(" ")[0]))
        wanted = file(b"new", seen=version(9))
        assert carry_out(replica, [Transition(b"f", known[b"f"], wanted)], b"new") == (1, [])
    assert [step for step in steps if step in ("sync", "rename", "COMMIT")] == [
        "sync",
        "rename",
        "sync",
        "COMMIT",
    ]


@pytest.mark.parametrize("just_modified", [False, True])
def test_an_edit_the_moment_a_file_appears_is_found_by_the_next_scan(
    root: Path, monkeypatch: pytest.MonkeyPatch, just_modified: bool
) -> None:
    """What vouches for an entry is the stat of a file that someone may have written to (I5)."""
    mtime_ns, edited_ns = (time.time_ns(),) * 2 if just_modified else (OLD_NS, OLD_NS + 1)

    def rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
        real(source, source_fd, target, target_fd, flags)
        make_tree(root, {b"f": b"NEW"}, edited_ns)

    real = disk._rename
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_rename", rename)
        assert carry_out_at(root, {b"f": file(b"new", mtime_ns=mtime_ns)}, b"new") == []
    assert scanned(root)[b"f"].digest == digest(b"NEW")


def test_a_file_just_modified_elsewhere_is_looked_at_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stat is not trusted before it is two seconds old, wherever it was written."""
    assert (
        carry_out_at(root, {b"f": file(b"new", mtime_ns=time.time_ns()), b"g": file(b"old")}, b"new", b"old")
        == []
    )
    with opened(root) as replica:
        rows = replica._manifest.rows(b"")
    assert {name: row.racy for name, row in rows.items()} == {b"f": True, b"g": False}
