"""A replica that was copied, put back from a backup, or lost its manifest: nothing is lost or undone."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2psync import run
from p2psync.config import Peer
from p2psync.core.model import Prefer
from p2psync.core.vector import ReplicaId
from p2psync.errors import Exit
from p2psync.local import LocalReplica
from p2psync.progress import Silent
from p2psync.run import Options
from p2psync.sync import _newest_common
from tests.support import (
    contents_of,
    entries,
    history,
    make_tree,
    new_replica,
    opened,
    snapshot,
    sync,
    sync_open,
    write,
)

Break = Callable[[Path, Path], None]
"""Does something to the replica at the first path, of which an earlier state was copied to the second."""

PAGE_BYTES = 4096
"""Of SQLite."""


def copy(source: Path, target: Path) -> None:
    """As `cp -a` does."""
    shutil.copytree(source, target, symlinks=True)


def settle(*roots: Path) -> None:
    """Sync until there is nothing more to do."""
    for _ in range(3):
        for one, other in itertools.combinations(roots, 2):
            sync(one, other)
    quiet = [sync(one, other) for one, other in itertools.combinations(roots, 2)]
    assert not any(result.local.transitions or result.peer.transitions for result in quiet)
    assert len({tuple(snapshot(root).items()) for root in roots}) == 1


def identity(root: Path) -> int:
    with opened(root) as replica:
        return replica.identity.replica


def everything(*roots: Path) -> set[bytes]:
    """Return all contents that are in the trees or the histories."""
    return contents_of(roots).union(*(history(root) for root in roots))


def manifest_of(root: Path) -> Path:
    return root / ".p2psync" / "manifest.db"


# -- copies


def test_a_copy_becomes_a_replica_of_its_own_and_the_original_stays_what_it_is(tmp_path: Path) -> None:
    original = new_replica(tmp_path / "original", {b"f": b"1"})
    before = identity(original)
    copy(original, tmp_path / "copy")
    assert identity(tmp_path / "copy") != before
    assert identity(original) == before
    assert identity(tmp_path / "copy") == identity(tmp_path / "copy")


def test_a_replica_that_moves_stays_what_it_is(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root")
    before = identity(root)
    root.rename(tmp_path / "moved")
    assert identity(tmp_path / "moved") == before


def commit(root: Path, times: int) -> None:
    """Make a number of commits."""
    for number in range(times):
        make_tree(root, {b"often": b"%d" % number}, mtime_ns=number)
        with opened(root) as replica:
            replica.scan(keep=True)


def recall_little(monkeypatch: pytest.MonkeyPatch, changes: int, step: int) -> None:
    for module in ("manifest", "sync"):
        monkeypatch.setattr(f"p2psync.{module}.RECALLED", changes)
        monkeypatch.setattr(f"p2psync.{module}.RECALLED_STEP", step)


def test_who_was_away_for_more_changes_than_are_recalled_takes_nobody_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall_little(monkeypatch, 3, 100)
    root, stick, third = (new_replica(tmp_path / name) for name in ("root", "stick", "third"))
    make_tree(root, {b"f": b"1"})
    sync(root, stick)
    commit(root, 5)
    make_tree(root, {b"deleted": b"2"})
    sync(root, third)
    (third / "deleted").unlink()
    before = identity(root)
    sync(root, stick)
    assert identity(root) == before
    settle(root, third, stick)
    assert not (root / "deleted").exists()


@pytest.mark.parametrize("step", [1, 2, 3, 50])
@pytest.mark.parametrize(("shared", "here", "there"), [(9, 2, 1), (9, 1, 9), (4, 9, 2), (3, 0, 4), (3, 4, 0)])
def test_what_two_states_of_a_replica_have_in_common_is_found_among_what_they_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, shared: int, here: int, there: int
) -> None:
    recall_little(monkeypatch, 4, step)
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    root = new_replica(tmp_path / "root")
    commit(root, shared)
    copy(root, tmp_path / "copy")
    commit(root, here)
    commit(tmp_path / "copy", there)
    with opened(root) as home, opened(tmp_path / "copy") as other:
        common = _newest_common(home, other)
        assert common <= shared
        recalled = {point.seq for point in home.recalled()} & {point.seq for point in other.recalled()}
        assert common == max((seq for seq in recalled if seq <= shared), default=0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_edits_of_a_copy_and_its_original_are_told_apart(tmp_path: Path, order: Sequence[int]) -> None:
    original, third = new_replica(tmp_path / "original", {b"f": b"base", b"g": b"base"}), tmp_path / "third"
    sync(original, new_replica(third))
    copy(original, tmp_path / "copy")
    make_tree(original, {b"f": b"of the original", b"new": b"new"})
    make_tree(tmp_path / "copy", {b"f": b"of the copy"})
    (tmp_path / "copy" / "g").unlink()
    pairs = [(original, third), (tmp_path / "copy", third), (original, tmp_path / "copy")]
    for number in order:
        sync(*pairs[number])
    settle(original, tmp_path / "copy", third)
    assert contents_of([third]) == {b"of the original", b"of the copy", b"new"}


def test_a_copy_that_cannot_be_told_by_its_place_is_told_by_what_it_recalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of one disk: their inodes are the same."""
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    original, third = new_replica(tmp_path / "original", {b"f": b"base"}), new_replica(tmp_path / "third")
    sync(original, third)
    copy(original, tmp_path / "copy")
    make_tree(original, {b"f": b"of the original"})
    make_tree(tmp_path / "copy", {b"f": b"of the copy"})
    sync(original, third)
    settle(tmp_path / "copy", third)
    assert contents_of([third]) == {b"of the original", b"of the copy"}


def test_another_stick_at_the_same_place_is_waited_for_beside_the_first(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"f": b"1"})
    first, second = new_replica(tmp_path / "first"), new_replica(tmp_path / "second")
    for stick in (first, second):
        with opened(root) as home, opened(stick) as peer:
            home.met(peer.identity.replica, "/mnt/stick", peer.recalls)
            if stick == first:
                sync_open(home, peer)
    with opened(root) as home:
        assert identity(first) in {record.replica for record in home.manifest.replicas.waited_for()}


def test_what_was_scanned_before_a_replica_became_another_is_told_as_it_is_marked_now(tmp_path: Path) -> None:
    with opened(new_replica(tmp_path / "root", {b"f": b"1", b"d/g": b"2"})) as replica:
        replica.scan(keep=True)
        replica.remint(ReplicaId(7), 0)
        told = entries(replica)
        assert told == {path: replica.manifest.entry(path) for path in (b"f", b"d", b"d/g")}
        assert {stamp.replica for entry in told.values() for stamp in entry.version} == {
            replica.identity.replica
        }


# -- backups


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_a_backup_that_was_put_back_takes_over_what_came_since(
    tmp_path: Path, in_place: bool, order: Sequence[int]
) -> None:
    root, others = new_replica(tmp_path / "root", {b"f": b"1", b"g": b"1"}), []
    for name in ("one", "two"):
        others.append(new_replica(tmp_path / name))
        sync(root, others[-1])
    copy(root, tmp_path / "backup")
    make_tree(root, {b"f": b"2", b"new": b"2"})
    (root / "g").unlink()
    for other in others:
        sync(root, other)
    put_back(tmp_path / "backup", root, in_place)
    for number in order:
        sync(root, others[number])
    settle(root, *others)
    assert {path: seen.data for path, seen in snapshot(root).items()} == {b"f": b"2", b"new": b"2"}


def put_back(backup: Path, root: Path, in_place: bool) -> None:
    """Restore a backup; in place, into the folders that there are, as rsync and tar do."""
    if in_place:
        for folder in (root / ".p2psync", root):
            for path in folder.iterdir():
                if path.name != ".p2psync":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(backup, root, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.rmtree(root)
        copy(backup, root)


@pytest.mark.parametrize("back", ["copied", "a snapshot"])
@pytest.mark.parametrize("clock", ["right", "set back"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_edits_after_a_backup_was_put_back_dispute_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: str, clock: str, order: Sequence[int]
) -> None:
    """The same replica must not have marked two contents alike, nor one as what follows the other."""
    if back == "a snapshot":  # of a whole disk: inodes come back too
        monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    root, others = new_replica(tmp_path / "root", {b"f": b"1", b"g": b"1"}), []
    for name in ("one", "two"):
        others.append(new_replica(tmp_path / name))
        sync(root, others[-1])
    copy(root, tmp_path / "backup")
    make_tree(root, {b"f": b"lost edit"})
    for other in others:
        sync(root, other)
    put_back(tmp_path / "backup", root, in_place=True)
    if clock == "set back":
        monkeypatch.setattr("p2psync.manifest.time.time_ns", lambda: 1)
    make_tree(root, {b"f": b"edit after"})
    (root / "g").unlink()
    for number in order:
        sync(root, others[number])
    settle(root, *others)
    assert contents_of([root]) == {b"lost edit", b"edit after"}
    assert not (root / "g").exists()


@pytest.mark.parametrize("has_met", [True, False])
@pytest.mark.parametrize("syncs_first", [True, False])
@pytest.mark.parametrize("made_by", ["root", "met"])
def test_what_a_snapshot_lost_is_not_taken_for_seen_by_who_has_it_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_met: bool, syncs_first: bool, made_by: str
) -> None:
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)  # inodes come back too
    root, met, heard = (new_replica(tmp_path / name) for name in ("root", "met", "heard"))
    make_tree(tmp_path / made_by, {b"f": b"\0001", b"g": b"\0001"})
    sync(root, met)
    sync(met, heard)
    if has_met:
        sync(heard, root)
    copy(root, tmp_path / "backup")
    make_tree(root, {b"f": b"\0lost edit", b"g": b"\0lost too"})
    sync(root, met)
    sync(met, heard)
    put_back(tmp_path / "backup", root, in_place=True)
    make_tree(root, {b"f": b"\0edit after"})
    (root / "g").unlink()
    if syncs_first:
        sync(root, new_replica(tmp_path / "new"))
    sync(heard, root)
    sync(met, heard)
    settle(root, met, heard)
    assert contents_of([met]) == {b"\0lost edit", b"\0edit after", b"\0lost too"}
    assert (root / "g").read_bytes() == b"\0lost too"


def met(here: Path, there: Path) -> None:
    """Sync as the command does, which knows a replica by its address too."""
    (ran,) = run.sync(
        os.fsencode(here), [Peer("there", str(there))], Options(), Silent(), lambda question: False
    )
    assert ran.exit_code is Exit.IN_STEP


def test_who_has_become_another_in_a_run_is_known_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    here, root = new_replica(tmp_path / "here"), new_replica(tmp_path / "root", {b"f": b"1"})
    met(here, root)
    copy(root, tmp_path / "backup")
    make_tree(root, {b"f": b"2"})
    met(here, root)
    put_back(tmp_path / "backup", root, in_place=True)
    before = identity(root)
    met(here, root)
    with opened(here) as replica:
        assert replica.manifest.replicas.answers_at(str(root)) == identity(root) != before


def test_what_a_replica_has_marked_anew_is_asked_for_by_who_takes_it_for_the_one_it_was(
    tmp_path: Path,
) -> None:
    """Its versions have other marks now, under the numbers that they had: the old epoch does not count."""
    here, root = new_replica(tmp_path / "here"), new_replica(tmp_path / "root", {b"f": b"1\n2\n3\n"})
    met(here, root)
    with opened(root) as replica:  # as a third replica has it do that finds out that it is an older state
        replica.remint(ReplicaId(99), 0)
    met(here, root)
    make_tree(here, {b"f": b"1\n2\nhere\n"})
    make_tree(root, {b"f": b"root\n2\n3\n"})
    met(here, root)
    assert contents_of([here]) == {b"root\n2\nhere\n"}


# -- manifests that are lost


def lose(root: Path) -> None:
    manifest_of(root).unlink()


def truncate_to_nothing(root: Path) -> None:
    os.truncate(manifest_of(root), 0)


def truncate(root: Path) -> None:
    os.truncate(manifest_of(root), manifest_of(root).stat().st_size // 2)


def scramble(root: Path) -> None:
    data = manifest_of(root).read_bytes()
    manifest_of(root).write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def fill_with_nonsense(root: Path) -> None:
    manifest_of(root).write_bytes(b"nonsense" * 1000)


LOSSES = (lose, truncate_to_nothing, truncate, scramble, fill_with_nonsense)


def sync_twice(one: Path, other: Path) -> None:
    """Sync; where a damage is found only on the way, the next run mends it."""
    for _ in range(2):
        try:
            sync(one, other)
        except Exception as error:
            assert "made anew" in str(error) or "damaged" in str(error), error


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_a_lost_manifest_is_made_anew_and_nothing_is_lost_or_undone(
    tmp_path: Path, loss: Callable[[Path], None], order: Sequence[int]
) -> None:
    many = {b"many/%d" % number: b"%d" % number for number in range(300)}
    root = new_replica(
        tmp_path / "root", {b"same": b"1", b"theirs": b"1", b"mine": b"1", b"gone": b"1", **many}
    )
    others = [new_replica(tmp_path / "one"), new_replica(tmp_path / "two")]
    for other in others:
        sync(root, other)
    loss(root)
    make_tree(root, {b"mine": b"my edit", b"mine too": b"new"})
    make_tree(others[0], {b"theirs": b"their edit", b"theirs too": b"new there"})
    (others[0] / "gone").unlink()
    for number in order:
        sync_twice(root, others[number])
    settle(root, *others)
    found = {path: seen.data for path, seen in snapshot(root).items() if not path.startswith(b"many")}
    assert b"gone" not in found
    assert found.pop(b"theirs") == b"their edit"
    # Nobody knows any more that the edit here follows the version there: it is kept beside it.
    assert set(found.values()) == {b"1", b"my edit", b"new", b"new there"}
    assert found[b"same"] == b"1"
    assert len([path for path in found if path.startswith(b"mine")]) == 3
    assert {path: b"%d" % n for n, path in enumerate(many)} == {
        path: seen.data for path, seen in snapshot(root).items() if path in many
    }
    assert list(root.glob(".p2psync/manifest.db.damaged-*")) or loss is lose


@pytest.mark.parametrize("damage", ["zeros", pytest.param("noise", marks=pytest.mark.slow)])
def test_a_manifest_of_which_any_page_is_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    tree = {b"d/" + b"x" * 100 + b"%d" % number: b"%d" % number for number in range(100)}
    root, other = new_replica(tmp_path / "root", tree), new_replica(tmp_path / "other")
    sync(root, other)
    pages = manifest_of(root).stat().st_size // PAGE_BYTES
    assert pages > 20
    rng = random.Random(1)
    for page in range(pages):
        assert not manifest_of(root).with_name("manifest.db-wal").exists()
        with manifest_of(root).open("r+b") as raw:
            raw.seek(page * PAGE_BYTES)
            raw.write(bytes(PAGE_BYTES) if damage == "zeros" else rng.randbytes(PAGE_BYTES))
        make_tree(root, {b"here": b"%d" % page})
        make_tree(other, {b"there": b"%d" % page})
        sync_twice(root, other)
        assert sync(root, other).in_step
        assert snapshot(root) == snapshot(other)
        assert tree == {path: seen.data for path, seen in snapshot(root).items() if path in tree}


def test_a_lost_manifest_is_told_of_with_what_becomes_of_deletions(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"gone there": b"1", b"gone here": b"1", b"stays": b"1"})
    other = new_replica(tmp_path / "other")
    sync(root, other)
    lose(root)
    (other / "gone there").unlink()
    (root / "gone here").unlink()
    (problem,) = sync(root, other).local.problems
    assert set(snapshot(root)) == set(snapshot(other)) == {b"gone here", b"stays"}
    assert "what was deleted there goes here too" in problem.why
    assert "missing here is not taken for deleted, and comes back" in problem.why


def test_two_replicas_that_both_lost_their_manifests_adopt_what_is_the_same(tmp_path: Path) -> None:
    one, two = new_replica(tmp_path / "one", {b"same": b"1", b"other": b"1"}), new_replica(tmp_path / "two")
    sync(one, two)
    lose(one)
    lose(two)
    make_tree(two, {b"other": b"2", b"new": b"3"})
    settle(one, two)
    assert contents_of([one]) == {b"1", b"2", b"3"}
    assert len(snapshot(one)) == 4


@pytest.mark.parametrize("first", [0, 1])
def test_an_edit_is_not_undone_by_old_contents_after_both_that_had_it_lost_their_manifests(
    tmp_path: Path, first: int
) -> None:
    one, two, behind = (new_replica(tmp_path / name) for name in ("one", "two", "behind"))
    make_tree(one, {b"f": b"old"})
    settle(one, two, behind)
    write(os.fsencode(one / "f"), b"edited")
    lose(one)
    lose(two)
    sync(one, two)
    sync(behind, (one, two)[first])
    settle(one, two, behind)
    assert (behind / "f").read_bytes() == b"edited"
    assert contents_of([behind]) == {b"old", b"edited"}


def test_a_re_creation_of_what_was_deleted_is_not_undone_by_a_lost_manifest_elsewhere(tmp_path: Path) -> None:
    one, two, three = (new_replica(tmp_path / name) for name in ("one", "two", "three"))
    make_tree(one, {b"f": b"1"})
    settle(one, two, three)
    (one / "f").unlink()
    settle(one, two, three)
    make_tree(two, {b"f": b"1"})
    lose(three)
    settle(three, one, two)
    assert contents_of([three]) == {b"1"}


def test_a_damage_found_in_the_middle_of_a_run_is_mended_by_the_next(tmp_path: Path) -> None:
    files = {b"%d" % number: b"%d" % number for number in range(500)}
    one, two = new_replica(tmp_path / "one", files), new_replica(tmp_path / "two")
    sync(one, two)
    page = 4096
    with manifest_of(one).open("r+b") as file:
        for number in range(2, manifest_of(one).stat().st_size // page):
            file.seek(number * page)
            file.write(b"\xff" * page)
    sync_twice(one, two)
    settle(one, two)
    assert contents_of([one]) == set(files.values())


def test_a_manifest_of_a_newer_p2psync_is_left_alone(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root")
    with sqlite3.connect(manifest_of(root)) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = manifest_of(root).read_bytes()
    with pytest.raises(Exception, match="upgrade p2psync"), opened(root):
        pass
    assert manifest_of(root).read_bytes() == before


def test_what_a_preference_would_displace_is_kept_when_nobody_knows_the_past(tmp_path: Path) -> None:
    one, two = new_replica(tmp_path / "one", {b"f": b"1"}), new_replica(tmp_path / "two")
    sync(one, two)
    lose(one)
    write(os.fsencode(one / "f"), b"mine")
    write(os.fsencode(two / "f"), b"theirs")
    sync(one, two, Prefer.NEWEST)
    assert everything(one, two) >= {b"mine", b"theirs"}


# -- rows and identities beyond all bounds


def test_a_deletion_in_the_original_is_not_undone_by_a_copy_with_its_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalReplica, "_settle", lambda self, sidecar: None)
    original, third = (
        new_replica(tmp_path / "original", {b"f": b"1", b"g": b"1"}),
        new_replica(tmp_path / "3"),
    )
    sync(original, third)
    copy(original, tmp_path / "copy")
    (original / "f").unlink()
    make_tree(original, {b"g": b"2"})
    sync(original, tmp_path / "copy")
    assert {path: seen.data for path, seen in snapshot(tmp_path / "copy").items()} == {b"g": b"2"}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entry SET version = x'00'",
        "UPDATE entry SET version = 'text'",
        "UPDATE entry SET kind = 9",
        "UPDATE entry SET kind = 'file'",
        "DELETE FROM meta WHERE key = 'epoch'",
        "UPDATE meta SET value = 'many' WHERE key = 'tick'",
        "UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = 'name'",
        "UPDATE peer SET mark = x'c1'",
        "UPDATE peer SET mark = 'text'",
        "DROP TABLE sample",
    ],
)
def test_what_cannot_be_read_in_a_manifest_is_a_damage_too(tmp_path: Path, damage: str) -> None:
    one, two = new_replica(tmp_path / "one", {b"f": b"1"}), new_replica(tmp_path / "two")
    sync(one, two)
    with contextlib.closing(sqlite3.connect(manifest_of(one))) as database, database:
        database.execute(damage)
    make_tree(one, {b"f": b"2"})
    sync_twice(one, two)
    settle(one, two)
    assert b"2" in contents_of([two])


def test_more_identities_than_a_version_holds_do_no_harm(tmp_path: Path) -> None:
    root, other = new_replica(tmp_path / "root", {b"f": b"1"}), new_replica(tmp_path / "other")
    sync(root, other)
    for number in range(260):
        with opened(root) as replica:
            replica.remint(other_id := replica.identity.replica, replica.newest())
            assert replica.identity.replica != other_id
            make_tree(root, {b"f": b"%d" % number})
            replica.scan(keep=True)
    settle(root, other)
    assert b"259" in contents_of([other])
