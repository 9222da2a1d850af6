"""Contents straight from the other tree on this machine, and the rows that are written before they arrive."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync import disk
from p2psync.apply import _NOT_STAGED
from p2psync.core.model import Entry, Transition
from p2psync.core.replica import Content, Taken
from p2psync.disk import WriteBehind
from p2psync.local import LocalReplica
from p2psync.take import _Taker
from tests.cli_support import wait_for
from tests.support import (
    Link,
    Tree,
    directory,
    do_not_wait_for_disk,
    entries,
    file,
    give,
    make_tree,
    new_replica,
    opened,
    scanned,
    snapshot,
)

LARGE = b"\0large " * 300_000
"""More than is kept for merges."""
PATIENCE_SECONDS = 20

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[LocalReplica]:
    """An empty replica, beside a folder `other`."""
    with opened(new_replica(tmp_path / "replica")) as replica:
        (tmp_path / "other").mkdir()
        replica.neighbour = os.fsencode(tmp_path / "other")
        yield replica


def take(replica: LocalReplica, wanted: dict[bytes, Entry]) -> list[Content]:
    """Have `replica` take what it can; return what it lacks then."""
    replica.prepare([Transition(path, None, entry) for path, entry in wanted.items()])
    return [content for taken in replica.take() for content in taken.lacking]


def files(tree: Tree) -> dict[bytes, Entry]:
    """Return the entries of a tree of files, and of their folders."""
    made = {path: file(data) for path, data in tree.items() if isinstance(data, bytes)}
    return {path.rpartition(b"/")[0]: directory() for path in made if b"/" in path} | made


def test_files_are_taken_as_they_are_in_the_other_tree(tmp_path: Path, replica: LocalReplica) -> None:
    tree: Tree = {b"d/f": b"1", b"d/large": LARGE, b"empty": b"", b"g": b"2"}
    make_tree(tmp_path / "other", tree)
    assert take(replica, files(tree)) == []
    assert sum(applied.done for applied in replica.apply()) == 5
    assert snapshot(tmp_path / "replica") == snapshot(tmp_path / "other")


def test_who_takes_tells_how_much_and_the_last_of_it(tmp_path: Path, replica: LocalReplica) -> None:
    make_tree(tmp_path / "other", {b"f": b"12", b"g": b"345", b"h": b"other"})
    wanted = files({b"f": b"12", b"g": b"345", b"h": b"6"})
    replica.prepare([Transition(path, None, entry) for path, entry in wanted.items()])
    assert next(iter(replica.take())) == Taken(2, 5, path=b"g")


def test_a_folder_in_the_place_of_a_file_has_changed_and_no_trouble_with_this_disk(
    tmp_path: Path, replica: LocalReplica
) -> None:
    for name in ("small", "large"):
        (tmp_path / "other" / name).mkdir()
    wanted = files({b"small": b"1", b"large": LARGE})
    assert len(take(replica, wanted)) == 2
    assert [(one.done, {p.why for p in one.problems}) for one in replica.apply()] == [(0, {_NOT_STAGED})]


def test_thousands_of_files_are_taken_by_two_processes_and_kept_for_merges(
    tmp_path: Path, replica: LocalReplica
) -> None:
    tree: Tree = {b"d%d/f%d" % (number % 9, number): b"text %d" % number for number in range(2000)}
    make_tree(tmp_path / "other", tree)
    wanted = files(tree)
    assert take(replica, wanted) == []
    assert sum(applied.done for applied in replica.apply()) == 2009
    assert snapshot(tmp_path / "replica") == snapshot(tmp_path / "other")
    texts = [data for data in tree.values() if isinstance(data, bytes)]
    make_tree(tmp_path / "replica", dict.fromkeys(tree, b"edited"))
    assert replica.texts([wanted[path].digest for path in tree]) == texts


def die_after(patch: pytest.MonkeyPatch, place: Path, deed: Callable[[_Taker, int, int], object]) -> None:
    """Have the second process die after a deed, before it tells; this one begins when it has."""
    mine, do, died = os.getpid(), _Taker.do, place / "died"

    def doing(self: _Taker, first: int, end: int) -> object:
        if os.getpid() == mine:
            wait_for(died.exists, "the second process does nothing")
            return do(self, first, end)
        deed(self, first, end)
        died.touch()
        os._exit(1)

    patch.setattr(_Taker, "do", doing)


MANY: Tree = {b"d/f%d" % number: b"text %d" % number for number in range(2000)}


def test_what_a_second_process_wrote_and_died_before_it_told_is_written_again(
    tmp_path: Path, replica: LocalReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "other", MANY)
    die_after(monkeypatch, tmp_path, _Taker.do)
    assert take(replica, files(MANY)) == []
    assert not [problem for applied in replica.apply() for problem in applied.problems]
    assert snapshot(tmp_path / "replica") == snapshot(tmp_path / "other")


def test_a_part_that_a_second_process_left_of_what_is_there_no_more_does_not_come_with_its_folder(
    tmp_path: Path, replica: LocalReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "other", MANY)

    def leave_a_part(taker: _Taker, first: int, end: int) -> None:
        path, _ = taker._files[first]
        make_tree(tmp_path / "replica/.p2psync/stage", {path: b"te"})
        (tmp_path / "other" / os.fsdecode(path)).unlink()

    die_after(monkeypatch, tmp_path, leave_a_part)
    assert len(take(replica, files(MANY))) == 1
    assert len([problem for applied in replica.apply() for problem in applied.problems]) == 1
    assert snapshot(tmp_path / "replica") == snapshot(tmp_path / "other")


@pytest.mark.parametrize(
    "instead",
    [b"g", b"edit", LARGE, Link(b"real"), None],
    ids=["same size", "edit", "large", "link", "folder"],
)
def test_what_is_something_else_there_is_lacking(
    tmp_path: Path, replica: LocalReplica, instead: bytes | Link | None
) -> None:
    make_tree(tmp_path / "other", {b"real": b"f", b"f": instead})
    assert take(replica, files({b"f": b"f"})) == [Content(file(b"f").digest, 1)]


def test_what_cannot_be_had_comes_the_other_way(tmp_path: Path, replica: LocalReplica) -> None:
    make_tree(tmp_path / "other", {b"d/f": b"1"})
    assert take(replica, files({b"d/f": b"1", b"d/g": b"2"})) == [Content(file(b"2").digest, 1)]
    give(replica, b"2")
    assert sum(applied.done for applied in replica.apply()) == 3
    assert {path: seen.data for path, seen in snapshot(tmp_path / "replica").items() if seen.data} == {
        b"d/f": b"1",
        b"d/g": b"2",
    }


@pytest.mark.parametrize("trouble", ["file gone", "folder is a file", "disk fails"])
def test_what_is_wrong_there_is_not_told_as_if_it_were_here(
    tmp_path: Path, replica: LocalReplica, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    make_tree(tmp_path / "other", {b"d": b"1"} if trouble == "folder is a file" else {b"d/f": b"1"})
    if trouble == "file gone":
        (tmp_path / "other/d/f").unlink()
    replica.prepare([Transition(path, None, entry) for path, entry in files({b"d/f": b"1"}).items()])
    with monkeypatch.context() as patch:
        if trouble == "disk fails":
            patch.setattr(os, "read", _fails)
        assert [len(taken.lacking) for taken in replica.take()] == [0, 1]
    [problem] = [problem for applied in replica.apply() for problem in applied.problems]
    assert (problem.path, problem.why) == (b"d/f", _NOT_STAGED)


def _fails(fd: int, size: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_without_a_neighbour_all_is_lacking(tmp_path: Path, replica: LocalReplica) -> None:
    make_tree(tmp_path / "other", {b"f": b"1"})
    replica.neighbour = None
    assert take(replica, files({b"f": b"1"})) == [Content(file(b"1").digest, 1)]


def test_rows_of_what_comes_with_new_folders_are_written_while_it_is_taken(
    tmp_path: Path, replica: LocalReplica
) -> None:
    tree: Tree = {b"d/f": b"1", b"e/f": b"3", b"top": b"4"}
    make_tree(tmp_path / "other", tree)
    assert take(replica, files(tree)) == []
    written = replica.manifest.rows_at([b"d/f", b"e/f", b"top"])
    assert [row.entry if row else None for row in written] == [file(b"1"), file(b"3"), None]


def test_the_disk_begins_to_write_while_there_is_more_to_take(
    tmp_path: Path, replica: LocalReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def write_back(fd: int) -> None:
        begun.set()
        raise OSError(errno.EIO, "told of again when it is waited for")

    monkeypatch.setattr(WriteBehind, "_BYTES", 2)
    monkeypatch.setattr(disk, "sync_file_system", write_back)
    make_tree(tmp_path / "other", {b"f": b"1"})
    assert take(replica, files({b"f": b"1"})) == []
    assert not begun.is_set()
    make_tree(tmp_path / "other", {b"g": b"2"})
    assert take(replica, files({b"f": b"1", b"g": b"2"})) == []
    assert begun.wait(PATIENCE_SECONDS)


def test_a_file_that_does_not_arrive_as_foreseen_is_not_known_as_that(
    tmp_path: Path, replica: LocalReplica
) -> None:
    tree: Tree = {b"d/f": b"1", b"d/g": b"2", b"e/f": b"3"}
    make_tree(tmp_path / "other", tree)
    assert take(replica, files(tree)) == []
    make_tree(tmp_path / "replica", {b"d/f": b"somebody else's"})
    problems = [problem.path for applied in replica.apply() for problem in applied.problems]
    assert problems == [b"d/f"]
    assert set(entries(replica)) == {b"d", b"d/g", b"e", b"e/f"}
    replica.close()
    found = scanned(tmp_path / "replica")
    assert found[b"d/f"] == file(b"somebody else's", seen=found[b"d/f"].version)
    assert found[b"d/g"] == file(b"2")


@pytest.mark.parametrize("arrives", [True, False])
def test_a_deletion_below_a_new_folder_and_what_was_before_it_are_known_until_the_file_is_there(
    tmp_path: Path, replica: LocalReplica, arrives: bool
) -> None:
    make_tree(tmp_path / "replica", {b"d/f": b"old"})
    replica.scan(keep=True)
    old = replica.manifest.entry(b"d/f")
    shutil.rmtree(tmp_path / "replica/d")
    replica.scan(keep=True)
    gone = replica.manifest.entry(b"d/f")
    with replica.manifest.transaction():
        replica.manifest.forget_present([b"d"])
    make_tree(tmp_path / "other", {b"d/f": b"1"})
    steps = [(b"d", None, directory()), (b"d/f", gone, file(b"1"))]
    replica.prepare([Transition(*step) for step in steps])
    assert [content for taken in replica.take() for content in taken.lacking] == []
    if not arrives:
        make_tree(tmp_path / "replica", {b"d/f": b"somebody else's"})
    problems = [problem for applied in replica.apply() for problem in applied.problems]
    assert len(problems) == (0 if arrives else 1)
    versions = [version.entry for version in replica.manifest.past.versions(b"d/f")]
    assert versions == [old, gone, *([file(b"1")] if arrives else [])]


def test_what_was_foreseen_and_never_applied_is_forgotten(tmp_path: Path, replica: LocalReplica) -> None:
    tree: Tree = {b"d/f": b"1"}
    make_tree(tmp_path / "other", tree)
    assert take(replica, files(tree)) == []
    replica.close()
    assert scanned(tmp_path / "replica") == {}


def test_what_was_foreseen_does_not_outlive_another_plan(tmp_path: Path, replica: LocalReplica) -> None:
    tree: Tree = {b"d/f": b"1"}
    make_tree(tmp_path / "other", tree)
    assert take(replica, files(tree)) == []
    replica.prepare([Transition(b"e", None, directory())])
    assert sum(applied.done for applied in replica.apply()) == 1
    assert set(entries(replica)) == {b"e"}
