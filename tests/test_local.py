"""LocalReplica beyond the protocol: making one, finding one, its lock, and what it keeps for merges."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from p2psync import apply, local
from p2psync.connect import connect_local
from p2psync.core.model import Action, Resolution, Transition
from p2psync.core.replica import VERSIONS, Applied, Identity, Mark
from p2psync.core.vector import ReplicaId
from p2psync.disk import exchange
from p2psync.errors import Locked, NotAReplica, ReplicaError
from p2psync.local import LocalReplica, init, open_replica
from p2psync.root import find_root
from tests.support import (
    OLD_NS,
    carry_out,
    contents_of,
    digest,
    do_not_wait_for_disk,
    entries,
    file,
    give,
    history,
    make_tree,
    new_replica,
    not_as_root,
    opened,
    scanned,
    snapshot,
    sync,
    sync_open,
    tombstone,
    version,
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


def identity(root: Path) -> Identity:
    with opened(root) as replica:
        return replica.identity


# -- init


def test_init_makes_a_replica_of_a_folder_and_touches_nothing_in_it(tmp_path: Path) -> None:
    make_tree(tmp_path, {b"d/f": b"1"})
    before = snapshot(tmp_path)
    assert init(os.fsencode(tmp_path))
    assert snapshot(tmp_path) == before
    assert identity(tmp_path).name.endswith(f":{tmp_path.name}")
    assert set(scanned(tmp_path)) == {b"d", b"d/f"}


def test_init_makes_the_folder_if_it_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "new" / "er"
    assert init(os.fsencode(root), "its name")
    assert identity(root).name == "its name"


def test_init_of_a_replica_changes_nothing(tmp_path: Path) -> None:
    init(os.fsencode(tmp_path), "first")
    before = identity(tmp_path)
    assert not init(os.fsencode(tmp_path), "second")
    assert identity(tmp_path) == before


def test_init_carries_on_where_another_died(tmp_path: Path) -> None:
    (tmp_path / ".p2psync").mkdir()
    (tmp_path / ".p2psync" / "manifest.new").write_bytes(b"half a manifest")
    (tmp_path / ".p2psync" / "manifest.new-wal").write_bytes(b"half a log")
    with pytest.raises(ReplicaError):
        LocalReplica(os.fsencode(tmp_path))
    assert init(os.fsencode(tmp_path))
    assert scanned(tmp_path) == {}


def test_a_sidecar_is_for_its_owner_only(tmp_path: Path) -> None:
    init(os.fsencode(tmp_path))
    assert (tmp_path / ".p2psync").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("below", ["inner", "d/e"])
def test_a_replica_holds_no_other(tmp_path: Path, below: str) -> None:
    init(os.fsencode(tmp_path / "outer"))
    inner = tmp_path / "outer" / below
    inner.mkdir(parents=True)
    with pytest.raises(ReplicaError, match="inside the replica"):
        init(os.fsencode(inner))
    (tmp_path / "link").symlink_to(inner)
    with pytest.raises(ReplicaError, match="inside the replica"):
        init(os.fsencode(tmp_path / "link"))
    assert not (inner / ".p2psync").exists()


@not_as_root
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "read-only"
    root.mkdir(0o555)
    with pytest.raises(ReplicaError, match="Permission denied"):
        init(os.fsencode(root))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for root in ("file", "file/below"):
        with pytest.raises(ReplicaError, match="cannot make"):
            init(os.fsencode(tmp_path / root))


# -- finding and opening


def test_the_root_is_found_from_anywhere_below_it(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"d/e": None}).resolve()
    (tmp_path / "link").symlink_to(root / "d")
    for start in (root, root / "d" / "e", root / ".p2psync", tmp_path / "link"):
        assert find_root(os.fsencode(start)) == os.fsencode(root)
    assert find_root(os.fsencode(tmp_path)) is None


def test_the_nearest_root_is_found(tmp_path: Path) -> None:
    inner = new_replica(tmp_path / "outer" / "inner", {b"d": None})
    new_replica(tmp_path / "outer")
    assert find_root(os.fsencode(inner / "d")) == os.fsencode(inner.resolve())


@pytest.mark.parametrize("root", ["nothing", "file", "folder"])
def test_what_is_no_replica_is_said_to_be_none(tmp_path: Path, root: str) -> None:
    make_tree(tmp_path, {b"file": b"1", b"folder": None})
    with pytest.raises(NotAReplica, match="p2psync init"):
        LocalReplica(os.fsencode(tmp_path / root))


@pytest.mark.parametrize("name", ["stage", "chunks", "history"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_the_sidecar_that_is_none_is_named(tmp_path: Path, name: str, kind: str) -> None:
    root = new_replica(tmp_path / "root")
    place = root / ".p2psync" / name
    if place.exists():
        place.rmdir()
    place.write_bytes(b"") if kind == "file" else place.symlink_to(tmp_path)
    with pytest.raises(ReplicaError, match=rf"cannot open .*root: \.p2psync/{name} is no folder") as raised:
        LocalReplica(os.fsencode(root))
    assert type(raised.value) is ReplicaError
    place.unlink()
    LocalReplica(os.fsencode(root)).close()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_an_ignore_file_that_is_none_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = new_replica(tmp_path / "root")
    make(root / ".p2psync/ignore")
    with (
        opened(root) as replica,
        pytest.raises(ReplicaError, match=r"cannot read .*root/\.p2psync/ignore: "),
    ):
        replica.scan(keep=True)


@not_as_root
@pytest.mark.parametrize("folder", ["", ".p2psync"])
def test_a_replica_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path, folder: str) -> None:
    root = new_replica(tmp_path / "root")
    (root / folder).chmod(0o300)
    try:
        with pytest.raises(ReplicaError, match="Permission denied"):
            LocalReplica(os.fsencode(root))
    finally:
        (root / folder).chmod(0o700)


def test_a_sidecar_that_is_a_link_is_no_sidecar(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".p2psync").symlink_to(root / ".p2psync")
    with pytest.raises(ReplicaError):
        LocalReplica(os.fsencode(tmp_path / "other"))


def test_a_replica_that_could_not_be_opened_is_not_locked(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root")
    manifest = root / ".p2psync" / "manifest.db"
    manifest.rename(root / "kept")
    manifest.mkdir()
    with pytest.raises(ReplicaError):
        LocalReplica(os.fsencode(root))
    manifest.rmdir()
    (root / "kept").rename(manifest)
    with opened(root):
        pass


# -- lock


def test_a_look_needs_no_lock(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"f": b"1"})
    with opened(root):
        looking = LocalReplica(os.fsencode(root), lock=False)
        assert [record.path for record in looking.look().changes] == [b"f"]
        looking.close()
    with opened(root) as replica:
        assert entries(replica) == {}


HOLD = """
import sys
from p2psync.local import LocalReplica
replica = LocalReplica(sys.argv[1].encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match="another run"):
            LocalReplica(os.fsencode(root))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with opened(root):
        pass


# -- ticks, across everything that uses them (I2)


def test_no_two_changes_share_a_stamp_although_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_replica(tmp_path / "root")
    seen: list[int] = []
    now = time.time_ns()
    for number, clock in enumerate((now, now, now - 10**15, 0, now - 10**12)):
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        make_tree(root, {b"f": b"%d" % number}, OLD_NS + number)
        with opened(root) as replica:
            replica.scan(keep=True)
            stamp = replica.stamp()
            replica.use_stamp(stamp)
            seen += [entries(replica)[b"f"].version.tick_of(stamp.replica), stamp.tick]
    assert seen == sorted(set(seen))


def test_a_decision_that_only_the_peer_carried_out_has_a_tick_that_is_never_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home dies before its part of it, and then its clock is put back."""
    here, there = new_replica(tmp_path / "here", {b"f": b"1"}), new_replica(tmp_path / "there")
    make_tree(there, {b"f": b"2"}, OLD_NS + 1)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    with opened(here) as ours, opened(there) as theirs:
        monkeypatch.setattr(ours, "apply", dies)
        with pytest.raises(Died):
            sync_open(ours, theirs)
        decided = [entry.version.tick_of(ours.identity.replica) for entry in entries(theirs).values()]
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)
    with opened(here) as ours:
        assert ours.stamp().tick > max(decided) >= now // 1000


def test_what_came_since_the_scan_is_told_with_what_that_found(tmp_path: Path) -> None:
    with opened(new_replica(tmp_path / "r", {b"found": b"1"})) as replica:
        before = replica.newest()
        replica.scan(keep=True)
        carry_out(replica, [Transition(b"came", None, file(b"2"))], b"2")
        assert entries(replica, before).keys() == {b"found", b"came"}


class Died(Exception):
    """What stands for a death: the other side still gets done."""


def dies() -> Iterator[Applied]:
    raise Died


def test_what_was_given_up_is_not_carried_out(tmp_path: Path) -> None:
    with opened(new_replica(tmp_path)) as replica:
        replica.prepare([Transition(b"f", None, file(b"1"))])
        give(replica, b"1")
        assert not replica.give_up("a peer that failed")
        assert list(replica.apply()) == []
    assert snapshot(tmp_path) == {}


def test_what_a_run_took_that_was_given_up_is_found_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_replica(tmp_path, {b"f": b"1", b"g": b"2"})
    known = scanned(root)[b"f"]
    make_tree(root, {b"g": b"3"})

    def die_after(one: bytes, one_fd: int, other: bytes, other_fd: int) -> bool:
        exchange(one, one_fd, other, other_fd)
        raise Died

    with opened(root) as replica:
        replica.scan(keep=True)
        with replica.contents.in_history(digest(b"2")) as fd:
            assert fd is None
        replica.prepare([Transition(b"f", known, file(b"4"))])
        give(replica, b"4")
        monkeypatch.setattr(apply, "exchange", die_after)
        with pytest.raises(Died):
            list(replica.apply())
        assert replica.give_up("a peer that failed")
        replica.scan(keep=True)
        with replica.contents.in_history(digest(b"1")) as fd:
            assert fd is not None


def test_a_file_is_not_moved_from_or_to_a_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write there may all the same not change its permissions: a copy is made instead."""
    root = new_replica(tmp_path / "root", {b"p": b"1"})
    inode = (root / "p").stat().st_ino
    with opened(root) as replica:
        replica.scan(keep=True)
        gone = Transition(b"p", entries(replica)[b"p"], tombstone(version(9)))
        monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
        assert carry_out(replica, [gone, Transition(b"q", None, file(b"1"))]) == (2, [])
    assert (root / "q").stat().st_ino != inode
    assert history(root) == [b"1"]


def test_a_conflict_that_failed_among_many_others_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BATCH", 1)
    root = new_replica(tmp_path / "replica", {b"a": b"1", b"b": b"2"})
    with opened(root) as replica:
        replica.scan(keep=True)
        known = entries(replica)
        make_tree(root, {b"a": b"edited meanwhile"})
        steps = [
            Transition(path, known[path], file(b"new", seen=version(9)), resolution=Resolution.DISPLACED)
            for path in (b"a", b"b")
        ]
        _, problems = carry_out(replica, [*steps, Transition(b"c", None, file(b"last"))], b"new", b"last")
        assert [problem.path for problem in problems] == [b"a"]
        past = replica.manifest.past
        assert [len(past.conflicts(path)) for path in (b"a", b"b")] == [0, 1]


# -- what is kept for merges


def test_edits_of_both_sides_merge_by_the_text_that_both_had(tmp_path: Path) -> None:
    one, other = new_replica(tmp_path / "one", {b"f": b"1\n2\n3\n4\n"}), new_replica(tmp_path / "other")
    sync(one, other)
    make_tree(one, {b"f": b"one\n2\n3\n4\n"}, OLD_NS + 1)
    make_tree(other, {b"f": b"1\n2\n3\nfour\n"}, OLD_NS + 2)
    (conflict,) = sync(one, other).conflicts
    assert conflict.resolution is Resolution.MERGED
    assert contents_of([one]) == contents_of([other]) == {b"one\n2\n3\nfour\n"}


def test_a_text_that_both_sides_had_from_the_start_is_a_base_too(tmp_path: Path) -> None:
    one = new_replica(tmp_path / "one", {b"f": b"1\n2\n3\n4\n"})
    other = new_replica(tmp_path / "other", {b"f": b"1\n2\n3\n4\n"})
    sync(one, other)
    make_tree(one, {b"f": b"one\n2\n3\n4\n"}, OLD_NS + 1)
    make_tree(other, {b"f": b"1\n2\n3\nfour\n"}, OLD_NS + 2)
    assert [conflict.resolution for conflict in sync(one, other).conflicts] == [Resolution.MERGED]


def test_without_its_bases_a_conflict_is_set_aside(tmp_path: Path) -> None:
    one, other = new_replica(tmp_path / "one", {b"f": b"1\n2\n3\n4\n"}), new_replica(tmp_path / "other")
    sync(one, other)
    for root in (one, other):
        (root / ".p2psync" / "bases").write_bytes(b"")
    make_tree(one, {b"f": b"one\n2\n3\n4\n"}, OLD_NS + 1)
    make_tree(other, {b"f": b"1\n2\n3\nfour\n"}, OLD_NS + 2)
    assert [conflict.resolution for conflict in sync(one, other).conflicts] == [Resolution.SET_ASIDE]
    assert contents_of([one]) == contents_of([other]) == {b"one\n2\n3\n4\n", b"1\n2\n3\nfour\n"}


@pytest.mark.parametrize("comes", ["in the same sync", "later"])
def test_a_text_that_was_lost_is_kept_anew_when_it_comes_again(tmp_path: Path, comes: str) -> None:
    root, text = new_replica(tmp_path / "replica"), b"1\n2\n"
    peer = Identity(ReplicaId(7), "peer", 1)

    def come(replica: LocalReplica) -> None:
        replica.keep(digest(text), text)
        replica.acknowledge(peer, Mark(1, 0, b""))

    with opened(root) as replica:
        come(replica)
    (root / ".p2psync" / "bases").write_bytes(b"")
    with opened(root) as replica:
        assert replica.texts([digest(text)]) == [None]
        if comes == "later":
            replica.acknowledge(peer, Mark(1, 0, b""))
            assert replica.manifest.texts.kept([digest(text)]) == set()
        else:
            come(replica)
    with opened(root) as replica:
        if comes == "later":
            come(replica)
        assert replica.texts([digest(text)]) == [text]


@pytest.mark.parametrize("good", [b"a", b"b", b"c"])
def test_of_several_files_with_the_same_contents_a_good_one_is_copied(tmp_path: Path, good: bytes) -> None:
    root = new_replica(tmp_path, dict.fromkeys((b"a", b"b", b"c"), b"1"))
    scanned(root)
    make_tree(root, {path: b"2" for path in (b"a", b"b", b"c") if path != good})
    with opened(root) as replica:
        step = Transition(b"d", None, file(b"1"))
        assert replica.prepare([step]) == []
        assert [(one.done, one.problems) for one in replica.apply()] == [(1, [])]
    assert snapshot(root)[b"d"].data == b"1"


# -- what is told


def test_a_replica_of_an_older_format_can_be_looked_at(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "replica", {b"f": b"1"})
    scanned(root)
    with contextlib.closing(sqlite3.connect(root / ".p2psync" / "manifest.db")) as database:
        database.execute("DROP TABLE holder")
        database.execute("PRAGMA user_version = 3")
    with contextlib.closing(LocalReplica(os.fsencode(root), lock=False)) as replica:
        assert replica.files() == 1


def test_what_happened_since_is_told_in_the_words_of_transitions(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"edited": b"1", b"deleted": b"1", b"moded": b"1"})
    with opened(root) as replica:
        replica.scan(keep=True)
        then = replica.newest()
        make_tree(root, {b"edited": b"2", b"new": b"1"}, OLD_NS + 1)
        (root / "deleted").unlink()
        (root / "moded").chmod(0o600)
        replica.scan(keep=True)
        assert dict(replica.changes_since(then)) == {
            b"edited": Action.UPDATE,
            b"new": Action.CREATE,
            b"deleted": Action.DELETE,
            b"moded": Action.MODE,
        }


def test_who_was_met_and_how_far_it_is_in_step_is_told(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "root", {b"f": b"1"})
    with opened(root) as replica:
        replica.scan(keep=True)
        replica.met(ReplicaId(5), "host:path")
        replica.acknowledge(Identity(ReplicaId(5), "peer", 1), Mark(1, 2, b""))
        (peer,) = replica.peers()
        assert (peer.name, peer.address, peer.acknowledged) == ("peer", "host:path", replica.newest())
        assert peer.synced_at is not None


def test_a_file_of_which_very_many_replicas_have_versions_of_their_own_can_be_in_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_not_wait_for_disk(monkeypatch)
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there", {b"f": b"\0first"})
    sync(here, there)
    with opened(there) as replica:
        for number in range(VERSIONS + 10):
            (there / "f").write_bytes(b"\0edit %d" % number)
            replica.scan(True)
            replica.acknowledge(Identity(ReplicaId(1000 + number), "clone", 1), Mark(1, 1, b""))
    sync(here, there)
    for root in (here, there):
        (root / "f").write_bytes(b"\0" + os.fsencode(root))
    with opened(here) as ours, closing(connect_local(os.fsencode(there), open_replica, False)) as theirs:
        assert len(sync_open(ours, theirs).conflicts) == 1
