"""Undo, restore and show on real replicas: what a run took comes back, and what came since is not touched."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync import apply
from p2psync.contents import Contents
from p2psync.core.model import Action, Entry, action_of
from p2psync.core.revert import CHANGED, HOLDS_MORE, OPEN_CONFLICT
from p2psync.disk import exchange
from p2psync.errors import Exit, ReplicaError
from p2psync.undo import NOT_KEPT, NotFound, Outcome, contents, past, restore, undo, write_copy
from tests.support import (
    OLD_NS,
    Link,
    Seen,
    Tree,
    do_not_wait_for_disk,
    history,
    make_tree,
    new_replica,
    not_as_root,
    opened,
    scanned,
    snapshot,
    staged,
    sync,
    write,
)

needs_any_name = pytest.mark.skipif(sys.platform == "darwin", reason="APFS takes only UTF-8 names")

BASE = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n"
BINARY = bytes(range(256)) * 5000
"""No text, and more than a block."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        do_not_wait_for_disk(patch)
        yield


# -- what the tests do


def pair(folder: Path, tree: Tree) -> tuple[Path, Path]:
    """Make two replicas that hold `tree`, which the first one made, and know it."""
    here, there = new_replica(folder / "here", tree), new_replica(folder / "there")
    assert sync(here, there).in_step
    return here, there


def taken_over(folder: Path, before: Tree, after: Tree) -> tuple[Path, Path, dict[bytes, Seen]]:
    """Make two replicas of which the first has just taken `after` from the other; return what it had, too."""
    here, there = pair(folder, before)
    was = snapshot(here)
    for path in sorted(os.listdir(bytes(there))):
        if path != b".p2psync":
            remove(there, path)
    for path, what in after.items():
        make_tree(there, {path: what}, OLD_NS if before.get(path) == what else OLD_NS + 10**9)
    assert sync(here, there).in_step
    return here, there, was


def remove(root: Path, path: bytes) -> None:
    """Remove what is at a path, and all below it."""
    full = os.path.join(bytes(root), path)
    if stat.S_ISDIR(os.lstat(full).st_mode):
        for name in os.listdir(full):
            remove(root, os.path.join(path, name))
        os.rmdir(full)
    else:
        os.unlink(full)


def put(root: Path, path: bytes, data: bytes) -> None:
    write(os.path.join(bytes(root), path), data)


def undo_at(root: Path, run: str | None = None, dry_run: bool = False) -> Outcome:
    with opened(root) as replica:
        return undo(replica, run, dry_run)


def restore_at(root: Path, path: bytes, run: str | None = None, dry_run: bool = False) -> Outcome:
    with opened(root) as replica:
        return restore(replica, path, run, dry_run)


def show_at(root: Path, path: bytes, run: str | None = None) -> bytes:
    with opened(root) as replica:
        return b"".join(contents(replica, past(replica, path, run)))


def runs(root: Path) -> list[str]:
    """Return the names of all runs, the latest first."""
    with opened(root) as replica:
        return [run.name for run in replica.manifest.past.runs()]


def kinds(root: Path) -> list[str]:
    with opened(root) as replica:
        return [run.kind for run in replica.manifest.past.runs()]


def done(outcome: Outcome) -> dict[bytes, Action]:
    """Return what was done to which path, by an undo that left nothing alone."""
    assert outcome.problems == []
    return {step.path: action_of(step) for step in outcome.transitions}


def left(outcome: Outcome) -> dict[bytes, str]:
    assert outcome.exit_code is (Exit.CONFLICTS if outcome.problems else Exit.IN_STEP)
    return {problem.path: problem.why for problem in outcome.problems}


def data_of(root: Path) -> dict[bytes, bytes]:
    """Return the bytes of files and the targets of links."""
    return {path: seen.data for path, seen in snapshot(root).items() if seen.kind != "directory"}


# -- undo

FULL: Tree = {
    b"file": b"before",
    b"empty": b"",
    b"binary": BINARY,
    b"link": Link(b"to nowhere"),
    b"d/e/file": b"deep",
    b"d/none": None,
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({b"f": b"1"}, {b"f": b"2"}),
        ({b"f": BINARY}, {b"f": BINARY[1:]}),
        (FULL, {b"other": b"1"}),
        ({b"other": b"1"}, FULL),
        ({b"l": Link(b"1")}, {b"l": Link(b"2")}),
        ({b"p": b"file"}, {b"p/a": b"1", b"p/d/b": b"2"}),
        ({b"p/a": b"1", b"p/d/b": b"2"}, {b"p": b"file"}),
        ({b"p": Link(b"p")}, {b"p": None}),
        ({b"p": None}, {b"p": Link(b"p")}),
        ({b"p": b"file"}, {b"p": Link(b"p")}),
        ({b"a": b"1", b"b": b"2"}, {b"a": b"2", b"b": b"1"}),
    ],
    ids=[
        "a file",
        "a large file",
        "all deleted",
        "all made",
        "a link",
        "a file that became a folder",
        "a folder that became a file",
        "a link that became a folder",
        "a folder that became a link",
        "a file that became a link",
        "two files that changed places",
    ],
)
def test_all_that_a_run_did_here_is_taken_back_and_by_another_undo_done_again(
    tmp_path: Path, before: Tree, after: Tree
) -> None:
    here, _, was = taken_over(tmp_path, before, after)
    became = snapshot(here)
    assert left(undo_at(here)) == {}
    assert snapshot(here) == was
    assert left(undo_at(here)) == {}
    assert snapshot(here) == became


def test_permissions_are_put_back(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"1", b"d/g": b"2"})
    was = snapshot(here)
    (there / "f").chmod(0o600)
    (there / "d").chmod(0o500)
    sync(here, there)
    assert done(undo_at(here)) == {b"f": Action.MODE, b"d": Action.MODE}
    assert snapshot(here) == was


def test_what_is_in_a_protected_folder_is_put_back_and_the_folder_stays_protected(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"d/f": b"1"})
    put(there, b"d/f", b"2")
    for root in (here, there):
        (root / "d").chmod(0o500)
    sync(here, there)
    assert done(undo_at(here)) == {b"d/f": Action.UPDATE}
    assert data_of(here) == {b"d/f": b"1"}
    assert stat.S_IMODE((here / "d").stat().st_mode) == 0o500


def test_a_merge_is_taken_back(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": BASE})
    mine = BASE.replace(b"2", b"two")
    put(here, b"f", mine)
    put(there, b"f", BASE.replace(b"8", b"eight"))
    sync(here, there)
    assert data_of(here)[b"f"] == mine.replace(b"8", b"eight")
    assert done(undo_at(here)) == {b"f": Action.UPDATE}
    assert data_of(here) == {b"f": mine}
    assert sync(here, there).conflicts == []
    assert data_of(there) == {b"f": mine}


def test_a_conflict_is_taken_back_with_its_copy(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\0"})
    put(here, b"f", b"\0mine")
    put(there, b"f", b"\0theirs")
    os.utime(here / "f", ns=(OLD_NS, OLD_NS))
    sync(here, there)
    assert sorted(data_of(here).values()) == [b"\0mine", b"\0theirs"]
    assert sorted(done(undo_at(here)).values()) == [Action.DELETE, Action.UPDATE]
    assert data_of(here) == {b"f": b"\0mine"}


def test_who_has_won_a_conflict_does_not_settle_it_by_an_undo(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\0"})
    put(here, b"f", b"\0mine")
    put(there, b"f", b"\0theirs")
    put(here, b"g", b"new")
    os.utime(here / "f", ns=(OLD_NS, OLD_NS))
    sync(there, here)
    both = {path: data for path, data in data_of(there).items() if path != b"g"}
    outcome = undo_at(there)
    assert [problem.why for problem in outcome.problems] == [OPEN_CONFLICT]
    assert [step.path for step in outcome.transitions] == [b"g"]
    sync(there, here)
    assert data_of(there) == data_of(here) == both


def test_only_the_run_that_is_named_is_taken_back(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"a": b"1", b"b": b"1"})
    put(there, b"a", b"2")
    sync(here, there)
    put(there, b"b", b"2")
    sync(here, there)
    outcome = undo_at(here, runs(here)[1])
    assert (outcome.run, data_of(here)) == (runs(here)[2], {b"a": b"1", b"b": b"2"})


def test_runs_are_taken_back_one_after_the_other(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"1"})
    for data in (b"2", b"3"):
        put(there, b"f", data)
        sync(here, there)
    latest, first = runs(here)
    undo_at(here, latest)
    assert data_of(here) == {b"f": b"2"}
    undo_at(here, first)
    assert data_of(here) == {b"f": b"1"}
    assert kinds(here) == ["undo", "undo", "sync", "sync"]


def test_an_undo_that_was_carried_out_has_nothing_more_to_do(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2", b"g": b"3"})
    run = runs(here)[0]
    undo_at(here, run)
    outcome = undo_at(here, run)
    assert (outcome.transitions, outcome.problems, outcome.carried_out) == ([], [], False)
    assert kinds(here) == ["undo", "sync"]


def test_without_a_name_the_latest_run_that_changed_something_is_taken_back(tmp_path: Path) -> None:
    here, there, was = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2"})
    for root in (here, there):
        put(root, b"same", b"on both sides")
    sync(here, there)
    os.utime(there / "f", ns=(1, 1))
    sync(here, there)
    undo_at(here)
    assert data_of(here) == {**{path: seen.data for path, seen in was.items()}, b"same": b"on both sides"}


def test_what_an_undo_displaces_is_in_the_history(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2", b"g": b"3"})
    undo_at(here)
    assert sorted(history(here)) == [b"1", b"2", b"3"]


def test_a_dry_run_tells_what_would_be_done_and_does_none_of_it(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, FULL, {b"file": b"after", b"new": b""})
    put(here, b"new", b"edited since")
    entries, before = scanned(here), snapshot(here)
    planned = undo_at(here, dry_run=True)
    assert not planned.carried_out
    assert (scanned(here), snapshot(here), kinds(here), staged(here)) == (entries, before, ["sync"], [])
    carried_out = undo_at(here)
    assert [(step.path, action_of(step)) for step in planned.transitions] == [
        (step.path, action_of(step)) for step in carried_out.transitions
    ]
    assert planned.problems == carried_out.problems


# -- what came since


@pytest.mark.parametrize("at", [undo_at, lambda root, dry_run: restore_at(root, b"d", dry_run=dry_run)])
def test_whether_equal_contents_are_kept_is_found_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[..., Outcome]
) -> None:
    same = dict.fromkeys((b"d/%d" % number for number in range(20)), b"\0same")
    one, _, _ = taken_over(tmp_path, {**same, b"other": b"1"}, {b"other": b"1"})
    asked: list[Entry] = []
    real = Contents.has

    def has(self: Contents, entry: Entry) -> bool:
        asked.append(entry)
        return real(self, entry)

    monkeypatch.setattr(Contents, "has", has)
    assert len(done(at(one, dry_run=True))) == 21
    assert len(asked) <= 3


def test_a_path_that_was_edited_since_is_left_alone_and_told_of(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"a": b"1", b"b": b"1"}, {b"a": b"2", b"b": b"2", b"c": b"2"})
    put(here, b"a", b"edited")
    remove(here, b"c")
    outcome = undo_at(here)
    assert left(outcome) == {b"a": CHANGED}
    assert data_of(here) == {b"a": b"edited", b"b": b"1"}


def test_a_path_that_was_deleted_since_stays_deleted(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"a": b"1", b"b": b"1"}, {b"a": b"2", b"b": b"2"})
    remove(here, b"a")
    assert left(undo_at(here)) == {b"a": CHANGED}
    assert data_of(here) == {b"b": b"1"}


def test_a_path_that_another_run_changed_since_is_left_alone(tmp_path: Path) -> None:
    here, there, _ = taken_over(tmp_path, {b"a": b"1"}, {b"a": b"2"})
    put(there, b"a", b"3")
    sync(here, there)
    assert left(undo_at(here, runs(here)[-1])) == {b"a": CHANGED}
    assert data_of(here) == {b"a": b"3"}


def test_a_path_that_was_only_touched_since_is_put_back(tmp_path: Path) -> None:
    here, _, was = taken_over(tmp_path, {b"a": b"1"}, {b"a": b"2"})
    os.utime(here / "a", ns=(1, 1))
    assert left(undo_at(here)) == {}
    assert snapshot(here) == was


def test_what_a_peer_only_touched_is_not_taken_for_made_by_the_run(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"touched": b"1", b"f": b"1"})
    put(there, b"f", b"2")
    os.utime(there / "touched", ns=(OLD_NS + 1, OLD_NS + 1))
    sync(here, there)
    assert set(done(undo_at(here))) == {b"f"}
    assert data_of(here) == {b"touched": b"1", b"f": b"1"}


def test_a_path_that_was_touched_before_another_sync_is_put_back_too(tmp_path: Path) -> None:
    here, there, was = taken_over(tmp_path, {b"a": b"1"}, {b"a": b"2", b"new": b"2"})
    for name in ("a", "new"):
        os.utime(here / name, ns=(OLD_NS + 10**10, OLD_NS + 10**10))
    sync(here, there)
    assert set(done(undo_at(here))) == {b"a", b"new"}
    assert snapshot(here) == was


@pytest.mark.parametrize("new", [b"d/new", b"d/e/new"])
def test_a_folder_that_came_stays_while_it_holds_something_new(tmp_path: Path, new: bytes) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"1", b"d/e/g": b"2"})
    put(here, new, b"mine")
    outcome = undo_at(here)
    assert set(left(outcome).values()) == {HOLDS_MORE}
    assert data_of(here) == {b"f": b"1", new: b"mine"}


def test_a_folder_that_came_and_holds_what_is_ignored_stays_but_is_gone_for_the_others(
    tmp_path: Path,
) -> None:
    here, there, _ = taken_over(tmp_path, {b".p2pignore": b"*.o\n"}, {b".p2pignore": b"*.o\n", b"d/f": b"2"})
    put(here, b"d/x.o", b"mine")
    undo_at(here)
    assert data_of(here) == {b".p2pignore": b"*.o\n", b"d/x.o": b"mine"}
    assert sync(here, there).in_step
    assert b"d" not in snapshot(there)


def test_a_folder_that_was_deleted_since_is_made_again_as_it_was(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"d/e/f": b"1", b"d/e/g": b"2"})
    remove(there, b"d/e/f")
    sync(here, there)
    run = runs(here)[0]
    (here / "d").chmod(0o700)
    scanned(here)
    remove(here, b"d")
    assert left(undo_at(here, run)) == {}
    assert data_of(here) == {b"d/e/f": b"1"}
    assert [stat.S_IMODE((here / name).stat().st_mode) for name in ("d", "d/e")] == [0o700, 0o755]


def test_nothing_is_put_back_through_a_file_that_took_the_place_of_a_folder(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"d/f": b"1", b"g": b"1"})
    remove(there, b"d/f")
    remove(there, b"g")
    sync(here, there)
    remove(here, b"d")
    put(here, b"d", b"a file now")
    assert set(left(undo_at(here))) == {b"d/f"}
    assert data_of(here) == {b"d": b"a file now", b"g": b"1"}


@not_as_root
def test_what_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"a": b"1", b"b": b"1"}, {b"a": b"2", b"b": b"2"})
    put(here, b"a", b"unreadable")
    (here / "a").chmod(0)
    for dry_run in (True, False):
        outcome = undo_at(here, dry_run=dry_run)
        assert [problem.path for problem in outcome.problems] == [b"a"]
        assert [step.path for step in outcome.transitions] == [b"b"]
    (here / "a").chmod(0o644)
    assert data_of(here) == {b"a": b"unreadable", b"b": b"1"}


# -- and then a sync


def test_an_undo_is_carried_to_all_other_replicas_and_comes_back_from_none(tmp_path: Path) -> None:
    here, there, was = taken_over(tmp_path, FULL, {b"file": b"after", b"new": b"2", b"link": None})
    third = new_replica(tmp_path / "third")
    sync(there, third)
    undo_at(here)
    for one, other in ((here, there), (there, third), (third, here)):
        result = sync(one, other)
        assert (result.conflicts, result.in_step) == ([], True)
    assert data_of(here) == data_of(there) == data_of(third)
    assert snapshot(here) == was


def test_an_edit_elsewhere_and_an_undo_here_are_a_conflict_that_loses_nothing(tmp_path: Path) -> None:
    here, there, _ = taken_over(tmp_path, {b"f": b"\x001"}, {b"f": b"\x002"})
    put(there, b"f", b"\x003")
    undo_at(here)
    assert len(sync(here, there).conflicts) == 1
    assert set(data_of(here).values()) == {b"\x001", b"\x003"}
    assert data_of(here) == data_of(there)


def test_a_replica_can_undo_what_another_has_undone(tmp_path: Path) -> None:
    here, there, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2"})
    undo_at(here)
    sync(here, there)
    assert data_of(there) == {b"f": b"1"}
    undo_at(there)
    sync(here, there)
    assert data_of(here) == data_of(there) == {b"f": b"2"}


# -- restore


def test_a_file_comes_back_as_a_run_found_it_whatever_has_become_of_it(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"1"})
    for data in (b"2", b"3"):
        put(there, b"f", data)
        sync(here, there)
    put(here, b"f", b"edited")
    first = runs(here)[-1]
    outcome = restore_at(here, b"f", first)
    assert (outcome.run, done(outcome), data_of(here)) == (first, {b"f": Action.UPDATE}, {b"f": b"1"})
    assert b"edited" in history(here)
    assert kinds(here)[0] == "restore"


def test_a_folder_comes_back_with_all_that_a_run_took_from_it(tmp_path: Path) -> None:
    before: Tree = {b"d/f": b"1", b"d/e/g": BINARY, b"d/l": Link(b"x"), b"d/none": None, b"other": b"1"}
    here, _, was = taken_over(tmp_path, before, {b"new": b"2"})
    restore_at(here, b"d")
    assert snapshot(here) == {
        path: seen for path, seen in {**was, **snapshot(here)}.items() if path != b"other"
    }
    assert data_of(here) == {b"d/f": b"1", b"d/e/g": BINARY, b"d/l": b"x", b"new": b"2"}


def test_of_a_folder_only_what_was_taken_comes_back_and_what_came_since_stays(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"d/a": b"1", b"d/b": b"1"}, {b"d/a": b"1", b"d/c": b"2"})
    put(here, b"d/new", b"mine")
    assert done(restore_at(here, b"d")) == {b"d/b": Action.CREATE}
    assert data_of(here) == {b"d/a": b"1", b"d/b": b"1", b"d/c": b"2", b"d/new": b"mine"}


def test_a_name_that_only_begins_alike_is_another_path(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"d/f": b"1", b"d.txt": b"1", b"d2/f": b"1"}, {b"x": b"2"})
    restore_at(here, b"d", runs(here)[0])
    assert data_of(here) == {b"d/f": b"1", b"x": b"2"}


def test_what_the_user_deleted_comes_back_if_its_text_is_kept_for_merges(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"text\n", b"d/g": b"more\n", b"d/empty": b""})
    remove(there, b"f")
    assert done(restore_at(there, b"f")) == {b"f": Action.CREATE}
    remove(there, b"d")
    assert set(done(restore_at(there, b"d"))) == {b"d", b"d/g", b"d/empty"}
    assert snapshot(there) == snapshot(here)


def test_what_the_user_edited_comes_back_if_its_text_is_kept_for_merges(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1\n"}, {b"f": b"2\n"})
    put(here, b"f", b"3\n")
    assert show_at(here, b"f") == b"2\n"
    outcome = restore_at(here, b"f")
    assert (outcome.run, data_of(here)) == (None, {b"f": b"2\n"})
    restore_at(here, b"f")
    assert data_of(here) == {b"f": b"3\n"}


def test_without_a_run_the_latest_version_that_is_kept_comes_back(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\x001"})
    put(there, b"f", b"\x002")
    sync(here, there)
    put(here, b"f", b"\x003")  # nobody keeps the second one here
    assert show_at(here, b"f") == b"\x001"
    restore_at(here, b"f")
    assert data_of(here) == {b"f": b"\x001"}


def test_a_restored_file_that_is_as_it_was_is_not_written_again(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2"})
    run = runs(here)[0]
    restore_at(here, b"f", run)
    assert restore_at(here, b"f", run).transitions == []
    assert kinds(here) == ["restore", "sync"]


def test_what_lost_no_contents_in_a_conflict_can_be_restored_too(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\0"})
    put(there, b"f", b"\0theirs")
    put(here, b"f", b"\0mine and newer")
    os.utime(there / "f", ns=(OLD_NS, OLD_NS))
    sync(here, there)
    assert data_of(here)[b"f"] == b"\0mine and newer"
    run = runs(here)[0]
    put(here, b"f", b"\0edited")
    outcome = restore_at(here, b"f", run)
    assert left(outcome) == {b"f": NOT_KEPT}  # it was not taken away then, so nobody kept it
    os.rename(here / "f", here / "moved")
    put(here, b"f", b"\0mine and newer")
    os.rename(here / "f", here / "again")
    assert done(restore_at(here, b"f", run)) == {b"f": Action.CREATE}


def test_a_file_does_not_push_away_a_folder_that_holds_something(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"p": b"1"}, {b"p/new": b"2"})
    assert left(restore_at(here, b"p")) == {b"p": HOLDS_MORE}
    assert data_of(here) == {b"p/new": b"2"}


def test_a_dry_restore_changes_nothing(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, FULL, {b"x": b"2"})
    entries, before = scanned(here), snapshot(here)
    planned = restore_at(here, b"d", dry_run=True)
    assert set(done(planned)) == {b"d", b"d/e", b"d/e/file", b"d/none"}
    assert (scanned(here), snapshot(here), kinds(here), staged(here)) == (entries, before, ["sync"], [])


# -- contents that are gone


def forget_contents(root: Path, *paths: str) -> None:
    """Take files out of the history, as people may."""
    for path in paths:
        (file,) = (root / ".p2psync" / "history").glob(f"*/{path}")
        file.unlink()


def test_what_is_not_kept_any_more_is_told_of_and_all_else_comes_back(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"a": b"1", b"b": b"2", b"d/e/c": b"3"}, {b"x": b"4"})
    forget_contents(here, "a", "d/e/c")
    for dry_run in (True, False):
        outcome = undo_at(here, dry_run=dry_run)
        assert left(outcome) == {b"a": NOT_KEPT, b"d/e/c": NOT_KEPT}
    assert data_of(here) == {b"b": b"2"}


def test_for_a_file_that_is_not_kept_no_folder_is_made(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"d/f": b"1"})
    remove(there, b"d/f")
    sync(here, there)
    forget_contents(here, "d/f")
    remove(here, b"d")
    assert left(undo_at(here)) == {b"d/f": NOT_KEPT}
    assert snapshot(here) == {}


def test_what_was_tampered_with_in_the_history_is_not_put_back(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"x": b"2"})
    (kept,) = (here / ".p2psync" / "history").glob("*/f")
    kept.write_bytes(b"9")
    assert left(undo_at(here)) == {b"f": NOT_KEPT}
    assert data_of(here) == {}
    with pytest.raises(NotFound, match="not kept"):
        show_at(here, b"f")


def test_what_is_not_in_the_history_any_more_may_be_elsewhere_in_the_tree(tmp_path: Path) -> None:
    here, _, was = taken_over(tmp_path, {b"f": BINARY, b"copy": BINARY}, {b"copy": BINARY})
    forget_contents(here, "f")
    undo_at(here)
    assert snapshot(here) == was


def test_what_was_moved_is_moved_back(tmp_path: Path) -> None:
    here, _, was = taken_over(tmp_path, {b"d/f": BINARY}, {b"e/moved": BINARY})
    inode = (here / "e" / "moved").stat().st_ino
    undo_at(here)
    assert snapshot(here) == was
    assert (here / "d" / "f").stat().st_ino == inode


# -- show, and copies


@pytest.mark.parametrize("data", [b"", b"text\n", b"no newline", b"\r\n\0\xff", BINARY, b"x" * (1 << 20 | 1)])
def test_the_exact_bytes_are_shown(tmp_path: Path, data: bytes) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": data}, {b"x": b"2"})
    assert show_at(here, b"f") == show_at(here, b"f", runs(here)[0]) == data


def test_of_a_link_it_is_shown_where_it_pointed(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"l": Link(b"to\xffnowhere")}, {b"x": b"2"})
    assert show_at(here, b"l") == b"to\xffnowhere"


@pytest.mark.parametrize("data", [b"text\n", b""])
def test_what_the_user_deleted_just_now_is_shown(tmp_path: Path, data: bytes) -> None:
    _, there = pair(tmp_path, {b"f": data})
    with pytest.raises(NotFound):
        show_at(there, b"f")
    remove(there, b"f")
    assert show_at(there, b"f") == data


def test_a_touched_file_is_not_taken_for_an_earlier_version(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"f": b"2"})
    os.utime(here / "f", ns=(1, 1))
    assert show_at(here, b"f") == b"1"


def test_a_copy_is_written_with_its_permissions_and_time(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": BINARY})
    (here / "f").chmod(0o750)
    sync(here, there)
    remove(there, b"f")
    sync(here, there)
    with opened(here) as replica:
        write_copy(replica, past(replica, b"f", None), str(tmp_path / "copy"))
    assert snapshot(tmp_path)[b"copy"] == Seen("file", 0o750, OLD_NS, BINARY)
    assert data_of(here) == {}


def test_a_copy_of_a_link_is_a_link(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"l": Link(b"x")}, {b"y": b"2"})
    with opened(here) as replica:
        write_copy(replica, past(replica, b"l", None), str(tmp_path / "copy"))
    assert os.readlink(tmp_path / "copy") == "x"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_copy_is_never_written_over_anything(tmp_path: Path, kind: str) -> None:
    here, _, _ = taken_over(tmp_path, {b"file": b"1", b"link": Link(b"x")}, {b"y": b"2"})
    write(bytes(tmp_path / "copy"), b"mine")
    with opened(here) as replica, pytest.raises(ReplicaError, match="copy is there already"):
        write_copy(replica, past(replica, kind.encode(), None), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"mine"


def test_a_copy_for_which_there_is_no_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    here, _, _ = taken_over(tmp_path, {b"f": b"1"}, {b"x": b"2"})
    with opened(here) as replica, pytest.raises(ReplicaError, match="nowhere/copy"):
        write_copy(replica, past(replica, b"f", None), str(tmp_path / "nowhere" / "copy"))


# -- what there is none of


def test_where_no_run_has_changed_anything_there_is_nothing_to_undo(tmp_path: Path) -> None:
    here, _ = pair(tmp_path, {b"f": b"1"})
    with pytest.raises(NotFound, match="nothing to undo"):
        undo_at(here)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ((undo_at, "nonsense"), "there is no run nonsense"),
        ((restore_at, b"f", "20010101-000000"), "there is no run 20010101-000000"),
        ((show_at, b"f", "20010101-000000"), "there is no run 20010101-000000"),
        ((restore_at, b"kept", "RUN"), "took nothing away at kept; `p2psync log kept`"),
        ((show_at, b"kept", "RUN"), "took nothing away at kept; `p2psync log kept`"),
        ((show_at, b"new", "RUN"), "took nothing away at new"),
        ((restore_at, b"new"), "no earlier version of new is kept"),
        ((restore_at, b"nothing"), "no earlier version of nothing is kept"),
        ((show_at, b"nothing"), "no earlier version of nothing is kept"),
        ((show_at, b"-rf"), "`p2psync log -- -rf` shows what is known of it"),
        ((show_at, b"d"), "d was a folder then"),
    ],
    ids=range(11),
)
def test_what_there_is_none_of_is_an_error_that_names_it_and_changes_nothing(
    tmp_path: Path, what: tuple[object, ...], why: str
) -> None:
    here, _, _ = taken_over(
        tmp_path, {b"kept": b"1", b"f": b"1", b"d": None}, {b"kept": b"1", b"f": b"2", b"new": b"3"}
    )
    entries, before = scanned(here), snapshot(here)
    function, *arguments = what
    assert callable(function)
    arguments = [runs(here)[0] if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(NotFound, match=why):
        function(here, *arguments)
    assert (scanned(here), snapshot(here), kinds(here)) == (entries, before, ["sync"])


# -- odd names

ODD = [
    b"with spaces",
    b"new\nline",
    b"a@b",
    b"@",
    b"x@20240101-000000",
    b"-n",
    "\N{SNOWMAN}".encode(),
    b"n" * 255,
]


@pytest.mark.parametrize(
    "name", [*ODD, pytest.param(b"\xff\xfe", marks=needs_any_name)], ids=lambda name: ascii(name)[:20]
)
def test_any_name_comes_back(tmp_path: Path, name: bytes) -> None:
    here, _, was = taken_over(tmp_path, {name: b"1", b"d/" + name: b"2"}, {b"x": b"3"})
    run = runs(here)[0]
    assert show_at(here, name, run) == b"1"
    restore_at(here, name, run)
    restore_at(here, b"d/" + name)
    remove(here, b"x")
    assert snapshot(here) == was


# -- a run that died


class Died(BaseException):
    """As good as a power cut: nothing is done any more."""


@pytest.fixture
def died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two replicas, of which the first died between a file that it replaced and its commit."""
    here, there = pair(tmp_path, {b"f": b"\x001"})
    put(there, b"f", b"\x002")

    def die_after(one: bytes, one_fd: int, other: bytes, other_fd: int) -> bool:
        exchange(one, one_fd, other, other_fd)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(apply, "exchange", die_after)
        with pytest.raises(Died):
            sync(here, there)
    return here, there


def test_a_run_that_died_before_its_commit_leaves_what_it_took_in_the_history(
    died: tuple[Path, Path],
) -> None:
    here, there = died
    for _ in range(2):
        assert (data_of(here), history(here), runs(here)) == ({b"f": b"\x002"}, [b"\x001"], [])
        with opened(here) as replica:
            (kept,) = replica.contents.unrecorded()
        (folder,) = (here / ".p2psync" / "history").iterdir()
        assert (kept.run, kept.size) == (folder.name, 2)
        scanned(here)
    assert sync(here, there).in_step
    assert (data_of(here), history(here)) == ({b"f": b"\x002"}, [b"\x001"])


def test_what_a_run_took_that_died_before_its_commit_can_be_restored(died: tuple[Path, Path]) -> None:
    here, there = died
    assert sync(here, there).in_step
    assert show_at(here, b"f") == b"\x001"
    restore_at(here, b"f")
    assert data_of(here) == {b"f": b"\x001"}
