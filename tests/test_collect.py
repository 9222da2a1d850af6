"""Cleaning up: what of the history goes, what stays, and what is forgotten only when nobody needs it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace

import pytest

from p2psync import history
from p2psync.bases import Bases
from p2psync.chunks import ChunkLists
from p2psync.collect import Collector
from p2psync.columns import BASES
from p2psync.config import history_limits
from p2psync.core.choose import Filter
from p2psync.core.model import Kind, Prefer, Resolution
from p2psync.core.retention import DAY_SECONDS, Kept, Limits
from p2psync.errors import ReplicaError
from p2psync.local import LocalReplica
from p2psync.manifest import Manifest
from p2psync.restrict import ReadOnly
from p2psync.sync import Session
from p2psync.texts import Texts
from p2psync.undo import contents, past, restore, undo
from tests.support import (
    Quiet,
    Tree,
    digest,
    do_not_wait_for_disk,
    make_tree,
    new_replica,
    opened,
    scanned,
    snapshot,
    sync,
    sync_open,
    write,
)
from tests.support import history as history_of

BASE = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n"
NOTHING_STAYS = Limits(0, 0)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        do_not_wait_for_disk(patch)
        yield


class Clock:
    """What the sidecars take for the time; files have the real one."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self.module = SimpleNamespace(
            time=self.now, time_ns=lambda: int(self.now() * 1e9), monotonic=time.monotonic
        )

    def now(self) -> float:
        return time.time() + self._ahead

    def pass_days(self, days: float) -> None:
        self._ahead += days * DAY_SECONDS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("collect", "local", "manifest"):
        monkeypatch.setattr(f"p2psync.{module}.time", clock.module)
    return clock


def pair(folder: Path, tree: Tree) -> tuple[Path, Path]:
    """Make two replicas in step, that by themselves clean up nothing."""
    here, there = new_replica(folder / "here", tree), new_replica(folder / "there")
    for root in (here, there):
        configure(root, "[history]\ndays = inf\n")
    assert sync(here, there).in_step
    return here, there


def put(root: Path, path: str, data: bytes) -> None:
    write(bytes(root / path), data)


_numbers = itertools.count()


def make_run(here: Path, there: Path, path: str = "f", data: bytes | None = None) -> str:
    """Have a run replace a file here; return its name."""
    put(there, path, data or b"\0%d" % next(_numbers))
    assert sync(here, there).in_step
    return runs(here)[0]


def runs(root: Path) -> list[str]:
    """Return the names of the runs that are remembered, the latest first."""
    with opened(root) as replica:
        return [run.name for run in replica.manifest.past.runs()]


def shelves(root: Path) -> list[str]:
    """Return the names of the folders in the history, the latest first."""
    return sorted(os.listdir(root / ".p2psync" / "history"), reverse=True)


def collect_at(root: Path, limits: Limits = Limits(), dry_run: bool = False) -> list[Kept]:  # noqa: B008
    with opened(root) as replica:
        return replica.collect(limits, dry_run).runs


def configure(root: Path, text: str) -> None:
    (root / ".p2psync" / "config.toml").write_text(text)


def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk be one of 1000 bytes, of which a tenth is what the history may take."""
    disk = SimpleNamespace(f_files=0, f_blocks=100, f_frsize=10, f_bavail=1 << 40, f_flag=0)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: disk)


# -- what goes


def test_what_is_older_than_a_month_goes_with_the_memory_of_the_run(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    old = make_run(here, there)
    clock.pass_days(31)
    new = make_run(here, there)
    assert (runs(here), shelves(here)) == ([new, old], [new, old])
    assert [kept.run for kept in collect_at(here)] == [old]
    assert (runs(here), shelves(here)) == ([new], [new])


def test_what_is_not_that_old_stays(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    old = make_run(here, there)
    clock.pass_days(29.9)
    new = make_run(here, there)
    assert collect_at(here) == []
    assert (runs(here), shelves(here)) == ([new, old], [new, old])


def test_what_is_too_much_for_the_disk_goes_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0" * 40})
    names = [make_run(here, there, data=b"\0" * 40 + b"%d" % number) for number in range(3)]
    small_disk(monkeypatch)
    assert [(kept.run, kept.size) for kept in collect_at(here)] == [(names[0], 40)]
    assert shelves(here) == [names[2], names[1]]


def test_the_latest_run_stays_and_can_still_be_undone(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a", b"gone": b"\0b"})
    make_run(here, there)
    (there / "gone").unlink()
    latest = make_run(here, there)
    was = b"\0" + str(next(_numbers) - 2).encode()
    clock.pass_days(400)
    sync(here, there)
    collect_at(here, NOTHING_STAYS)
    assert (runs(here), shelves(here)) == ([latest], [latest])
    with opened(here) as replica:
        assert undo(replica, None).problems == []
    assert {path: seen.data for path, seen in snapshot(here).items()} == {b"f": was, b"gone": b"\0b"}


def test_a_run_that_only_learned_something_does_not_push_out_the_latest_that_keeps_something(
    tmp_path: Path,
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    run = make_run(here, there)
    for root in (here, there):
        put(root, "same", b"on both sides")
    sync(here, there)
    collect_at(here, NOTHING_STAYS)
    assert shelves(here) == [run]
    assert run in runs(here)


def test_a_dry_run_tells_what_would_go_and_removes_nothing(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\0aa"})
    names = [make_run(here, there) for _ in range(3)][::-1]
    put(here, ".p2psync/history/config.toml", b"")
    died = here / ".p2psync" / "history" / "20010101-000000" / "none"
    died.mkdir(0o500, parents=True)
    before = snapshot(here / ".p2psync" / "history")
    gone = collect_at(here, NOTHING_STAYS, dry_run=True)
    assert [kept.run for kept in gone] == ["20010101-000000", names[2], names[1]]
    assert snapshot(here / ".p2psync" / "history") == before
    assert runs(here) == names
    assert collect_at(here, NOTHING_STAYS) == gone


def test_what_is_gone_is_told_of_in_the_versions_of_a_path(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    for _ in range(2):
        make_run(here, there)
        clock.pass_days(31)
    collect_at(here)
    with opened(here) as replica:
        versions = [version.entry for version in replica.manifest.past.versions(b"f")]
        assert [replica.contents.has(entry) for entry in versions] == [False, True, True]
        assert b"".join(contents(replica, past(replica, b"f", None))).startswith(b"\0")


# -- what is not there any more, or never took so much room


def lose_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, str, str]:
    """Have two runs keep 40 and 90 bytes, and somebody delete the latter; return replicas and runs."""
    here, there = pair(folder, {b"f": b"\0" * 40, b"g": b"\0" * 90})
    small, large = make_run(here, there), make_run(here, there, "g")
    shutil.rmtree(here / ".p2psync" / "history" / large)
    small_disk(monkeypatch)
    return here, there, small, large


def test_what_was_deleted_in_the_history_by_hand_makes_nothing_else_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, small, _ = lose_a_run(tmp_path, monkeypatch)
    latest = make_run(here, there)
    assert (runs(here), shelves(here)) == ([latest, small], [latest, small])


def test_the_latest_run_is_known_also_if_what_it_kept_was_deleted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, small, large = lose_a_run(tmp_path, monkeypatch)
    sync(here, there)
    assert collect_at(here, NOTHING_STAYS) == []
    assert (runs(here), shelves(here)) == ([large, small], [small])


def walked(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the runs whose folders are walked from now on."""
    seen: list[str] = []
    size = history.History.size

    def walk(self: history.History, run: str) -> int:
        seen.append(run)
        return size(self, run)

    patch.setattr(history.History, "size", walk)
    return seen


def test_a_hole_in_a_file_is_no_history_and_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0"})
    small_disk(monkeypatch)
    monkeypatch.setattr("p2psync.collect.Collector._disk", lambda self: 10 << 20)
    os.truncate(here / "f", 3 << 20)
    sync(here, there)
    with_hole = make_run(here, there)  # 3 MiB are recorded of the 1 MiB that may stay
    walks = walked(monkeypatch)
    latest = make_run(here, there)
    assert (runs(here), shelves(here)) == ([latest, with_hole], [latest, with_hole])
    assert sorted(walks) == [with_hole, latest]
    sync(here, there)
    assert len(walks) == 2


# -- what no manifest knows of


def test_what_a_run_left_that_died_stays_as_long_as_that_of_any_other(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    name = history.name_at(clock.now())
    died = here / ".p2psync" / "history" / name
    died.mkdir(parents=True)
    (died / "f").write_bytes(b"what it took")
    clock.pass_days(29)
    make_run(here, there)
    assert collect_at(here) == []
    clock.pass_days(2)
    make_run(here, there)
    assert collect_at(here) == [Kept(name, history.began(name), 12)]
    assert not died.exists()


@pytest.mark.parametrize(
    "name", ["mine", "99999999-999999", "20240230-000000", "20240101-000000.old", "٢٠٢٤٠١٠١-٠٠٠٠٠٠"]
)
def test_what_people_put_into_the_history_stays(tmp_path: Path, name: str) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    make_run(here, there)
    make_run(here, there)
    folder = here / ".p2psync" / "history" / name
    folder.mkdir()
    (folder / "f").write_bytes(b"mine")
    assert len(collect_at(here, NOTHING_STAYS)) == 1
    assert (folder / "f").read_bytes() == b"mine"


def test_what_people_took_out_of_the_history_is_no_trouble(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    first = make_run(here, there)
    second = make_run(here, there)
    (here / ".p2psync" / "history" / first / "f").unlink()
    (here / ".p2psync" / "history" / first).rmdir()
    assert [kept.run for kept in collect_at(here, NOTHING_STAYS)] == [first]
    assert runs(here) == [second]


# -- bases


def edit(root: Path, old: bytes, new: bytes) -> None:
    put(root, "f", (root / "f").read_bytes().replace(old, new))


def lose_bases(root: Path) -> None:
    (root / ".p2psync" / "bases").write_bytes(b"")


def test_a_text_that_another_replica_may_still_start_from_is_kept_when_its_history_goes(
    tmp_path: Path,
) -> None:
    """Only the history of `here` has the base of the two edits: its peer with it has lost what it kept."""
    here, there = pair(tmp_path, {b"f": BASE, b"g": b"\0"})
    behind = new_replica(tmp_path / "behind")
    sync(here, behind)
    edit(there, b"2", b"two")
    first = make_run(here, there, "x")
    make_run(here, there, "g")
    lose_bases(behind)
    assert first in [kept.run for kept in collect_at(here, NOTHING_STAYS)]
    assert BASE not in history_of(here)
    edit(behind, b"8", b"eight")
    result = sync(here, behind)
    assert [str(conflict.resolution) for conflict in result.conflicts] == ["merged"]
    assert (here / "f").read_bytes() == BASE.replace(b"2", b"two").replace(b"8", b"eight")


def test_a_text_that_all_others_are_past_is_not_kept(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": BASE, b"g": b"\0"})
    edit(there, b"2", b"two")
    make_run(here, there, "x")
    make_run(here, there, "g")
    make_run(here, there, "g")
    size = (here / ".p2psync" / "bases").stat().st_size
    assert collect_at(here, NOTHING_STAYS)
    assert (here / ".p2psync" / "bases").stat().st_size == size


def texts(root: Path) -> dict[bytes, bytes | None]:
    """Return the kept texts by their digests."""
    with opened(root) as replica:
        return {text.digest: replica.contents.text(text.digest) for text in replica.manifest.texts.all()}


def space_of_bases(root: Path) -> int:
    return (root / ".p2psync" / "bases").stat().st_blocks * 512


def long_text(number: int) -> bytes:
    """A text of 40 kB that compresses to a half."""
    return random.Random(number).randbytes(20_000).hex().encode()


def test_of_each_text_the_present_one_and_eight_before_it_are_kept_as_bases(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": long_text(0), b"other": BASE})
    for number in range(1, 20):
        put(here, "f", long_text(number))
        sync(here, there)
    before = space_of_bases(there)
    with opened(there) as replica:
        told = [replica.collect(NOTHING_STAYS, dry_run).texts for dry_run in (True, False, False)]
    assert told == [11, 11, 0]
    kept = [long_text(number) for number in range(11, 20)]
    assert texts(there) == {digest(text): text for text in (BASE, *kept)}
    assert space_of_bases(there) <= before * 0.6


def edit_often(here: Path, there: Path, times: int) -> None:
    """Have `there` take in so many versions of a small text, each with a sync of its own."""
    for number in range(times):
        put(here, "f", long_text(number)[:3000])
        sync(here, there)


def test_texts_smaller_than_what_a_disk_frees_are_freed_with_their_neighbours(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {})
    edit_often(here, there, 60)
    before = space_of_bases(there)
    collect_at(there, NOTHING_STAYS)
    assert len(texts(there)) == 9
    assert all(texts(there).values())
    assert space_of_bases(there) <= before / 3


def test_what_a_cleaning_that_was_killed_did_not_free_is_freed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {})
    edit_often(here, there, 60)
    before = space_of_bases(there)

    def killed(self: Bases, blocks: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bases, "free_all_but", killed)
        collect_at(there, NOTHING_STAYS)
    assert len(texts(there)) == 9
    collect_at(there, NOTHING_STAYS)
    assert space_of_bases(there) <= before / 3


def test_a_replica_that_is_some_versions_behind_gets_a_merge_after_that(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": BASE})
    behind = new_replica(tmp_path / "behind")
    sync(there, behind)
    for number in range(7):
        edit(here, b"1" + b"x" * number, b"1" + b"x" * (number + 1))
        sync(here, there)
    lose_bases(behind)
    collect_at(there, NOTHING_STAYS)
    edit(behind, b"8", b"eight")
    result = sync(there, behind)
    assert [str(conflict.resolution) for conflict in result.conflicts] == ["merged"]


def test_a_replica_that_is_weeks_behind_gets_a_merge_after_any_number_of_edits_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2psync.manifest.REMEMBERED", 20)
    here, there = pair(tmp_path, {})
    behind = new_replica(tmp_path / "behind", {b"f": BASE})
    sync(there, behind)  # who takes it in keeps it as a base
    sync(here, there)
    for number in range(25):
        edit(here, b"1" + b"x" * number, b"1" + b"x" * (number + 1))
        sync(here, there)
        edit(behind, b"9" + b"x" * number, b"9" + b"x" * (number + 1))
        scanned(behind)
    for root in (there, behind):
        collect_at(root, NOTHING_STAYS)
    assert len(texts(there)) <= 10
    result = sync(there, behind)
    assert [str(conflict.resolution) for conflict in result.conflicts] == ["merged"]
    assert (there / "f").read_bytes() == BASE.replace(b"1", b"1" + b"x" * 25).replace(b"9", b"9" + b"x" * 25)


def test_a_text_is_forgotten_when_the_last_replica_that_was_behind_has_caught_up(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {})
    behind = new_replica(tmp_path / "behind", {b"f": BASE})
    sync(there, behind)
    sync(here, there)
    edit_often(here, there, 12)
    collect_at(there, NOTHING_STAYS)
    assert digest(BASE) in texts(there)
    sync(there, behind)
    collect_at(there, NOTHING_STAYS)
    assert digest(BASE) not in texts(there)


def test_the_base_of_a_conflict_that_is_open_stays(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {b"f": BASE})
    edit(here, b"5", b"here")
    edit(there, b"5", b"there")
    assert len(sync(here, there).conflicts) == 1
    for number in range(12):
        put(here, "f", b"%d\n" % number)
        sync(here, there)
    collect_at(there, NOTHING_STAYS)
    assert digest(BASE) in texts(there)


def test_what_is_left_of_a_block_is_kept_elsewhere_and_its_space_is_free(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"%d" % number: long_text(number) for number in range(12)})
    for number in range(11):
        (here / str(number)).unlink()
    sync(here, there)
    clock.pass_days(31)
    make_run(there, here, "x")
    make_run(there, here, "x")
    before = space_of_bases(there)
    collect_at(there)
    assert texts(there) == {digest(long_text(11)): long_text(11)}
    assert space_of_bases(there) <= before / 3


def test_history_goes_also_where_there_is_no_room_to_forget_texts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": BASE, b"g": b"\0"})
    clock.pass_days(1)
    first = make_run(here, there)
    make_run(here, there)

    def no_room(manifest: Manifest, little: int) -> None:
        raise ReplicaError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Texts, "forget_old", no_room)
        with pytest.raises(ReplicaError, match="full"):
            collect_at(here, NOTHING_STAYS)
    assert first not in shelves(here) + runs(here)
    with opened(here) as replica:
        assert replica.manifest.past.collected_at() == pytest.approx(clock.now(), abs=60)


def test_texts_are_on_disk_elsewhere_before_their_old_place_is_forgotten(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"gone": BASE * 2, b"stays": BASE})
    (here / "gone").unlink()
    sync(here, there)
    clock.pass_days(31)
    make_run(there, here, "x")
    make_run(there, here, "x")
    happened: list[str] = []

    def noting(owner: object, name: str, what: str) -> None:
        real = getattr(owner, name)

        def note(*arguments: object) -> object:
            happened.append(what)
            return real(*arguments)

        patch.setattr(owner, name, note)

    with opened(there) as replica, monkeypatch.context() as patch:
        noting(os, "fsync", "on disk")
        noting(Texts, "keep", "known")
        noting(Bases, "free_all_but", "old one free")
        replica.collect(Limits())
    assert happened == ["known", "on disk", "known", "old one free"]


def test_what_cannot_be_kept_elsewhere_stays_where_it_is(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"gone": BASE * 2, b"stays": BASE})
    (here / "gone").unlink()
    sync(here, there)
    clock.pass_days(31)
    make_run(there, here, "x")
    make_run(there, here, "x")

    def no_room(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(there) as replica, monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room)
        replica.collect(Limits())
    (there / "stays").unlink()
    assert texts(there) == {digest(BASE): BASE}


# -- tombstones


def known(root: Path, path: bytes) -> bool:
    with opened(root) as replica:
        return replica.manifest.entry(path) is not None


def delete(root: Path, path: str) -> None:
    (root / path).unlink()
    with opened(root) as replica:
        assert replica.scan(keep=True).problems == []


def test_a_deletion_that_is_old_and_known_to_all_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0", b"gone": b"1"})
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(31)
    make_run(there, here)
    for root in (here, there):
        collect_at(root)
        assert not known(root, b"gone")
    assert sync(here, there).in_step
    assert snapshot(here).keys() == snapshot(there).keys() == {b"f"}


def test_a_deletion_that_is_not_old_is_not_forgotten(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"gone": b"1"})
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(29)
    collect_at(here, NOTHING_STAYS)
    assert known(here, b"gone")


def test_a_deletion_that_a_replica_does_not_know_of_is_not_forgotten(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"gone": b"1"})
    away = new_replica(tmp_path / "away")
    sync(here, away)
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(400)
    collect_at(here)
    assert known(here, b"gone")
    assert sync(here, away).in_step
    assert snapshot(here) == snapshot(away) == {}
    collect_at(here)
    assert not known(here, b"gone")


def remove_peer(root: Path, address: str, *others: str) -> None:
    with opened(root) as replica:
        replica.forget_peers(address, others)


def met_at(root: Path, other: Path, address: str) -> None:
    """Sync with a replica that is found at this address."""
    with opened(root) as ours, opened(other) as theirs:
        ours.met(theirs.identity.replica, address, theirs.recalls)
        assert sync_open(ours, theirs).in_step


def test_a_deletion_is_not_kept_for_a_peer_that_was_removed(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"gone": b"1", b"f": b"1"})
    lost = new_replica(tmp_path / "lost")
    met_at(here, lost, "stick")
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(31)
    collect_at(here)
    assert known(here, b"gone")
    remove_peer(here, "stick")
    collect_at(here)
    assert not known(here, b"gone")


def test_a_deletion_is_not_kept_for_who_may_only_read_and_need_not_come_back(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"gone": b"1", b"f": b"1"})
    with opened(new_replica(tmp_path / "reader")) as reader, opened(here) as replica:
        assert sync_open(reader, ReadOnly(replica)).in_step
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(31)
    collect_at(here)
    assert not known(here, b"gone")


@pytest.mark.parametrize("days", [29, 31])
def test_a_peer_that_was_removed_and_comes_back_loses_nothing_and_brings_what_was_deleted_long_ago(
    tmp_path: Path, clock: Clock, days: int
) -> None:
    here, there = pair(tmp_path, {b"gone": b"1", b"f": b"1", b"deleted there": b"1", b"edited there": b"1"})
    back = new_replica(tmp_path / "back")
    met_at(here, back, "stick")
    delete(here, "gone")
    sync(here, there)
    remove_peer(here, "stick")
    put(here, "f", b"edited")
    put(back, "edited there", b"2")
    (back / "deleted there").unlink()
    clock.pass_days(days)
    sync(here, there)
    for root in (here, there):
        collect_at(root, NOTHING_STAYS)
    met_at(here, back, "stick")
    assert sync(here, there).in_step
    found = {path: seen.data for path, seen in snapshot(here).items()}
    assert found == {b"f": b"edited", b"edited there": b"2"} | ({b"gone": b"1"} if days > 30 else {})
    assert snapshot(here) == snapshot(back) == snapshot(there)


def test_two_replicas_that_take_turns_at_an_address_are_both_waited_for(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"gone": b"1"})
    sticks = [new_replica(tmp_path / name) for name in ("one", "two")]
    for stick in (*sticks, sticks[0]):
        met_at(here, stick, "stick")
    delete(here, "gone")
    sync(here, there)
    met_at(here, sticks[0], "stick")
    clock.pass_days(100)
    collect_at(here)
    assert known(here, b"gone")
    met_at(here, sticks[1], "stick")
    assert snapshot(sticks[1]) == {}
    collect_at(here)
    assert not known(here, b"gone")


def test_a_replica_that_becomes_another_at_each_mount_is_waited_for_as_one(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"gone": b"1", b"f": b"1"})
    stick = new_replica(tmp_path / "stick")
    names = set()
    for _ in range(3):
        met_at(here, stick, "stick")
        (tmp_path / "moved").mkdir()
        shutil.copytree(stick, tmp_path / "moved", dirs_exist_ok=True)  # all inodes are others
        shutil.rmtree(stick)
        (tmp_path / "moved").rename(stick)
    with opened(here) as replica:
        names = {record.name for record in replica.peers()}
        waited_for = [record for record in replica.peers() if replica.mark(record.replica)]
    assert names == {"there", "stick"}
    assert len(waited_for) == 2
    delete(here, "gone")
    sync(here, there)
    clock.pass_days(31)
    collect_at(here)
    assert known(here, b"gone")
    met_at(here, stick, "stick")
    collect_at(here)
    assert not known(here, b"gone")
    assert snapshot(stick).keys() == {b"f"}


def test_a_deletion_that_a_replica_was_left_behind_with_is_not_forgotten(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"gone": b"1", b"f": b"1"})
    delete(here, "gone")
    with opened(here) as ours, opened(there) as theirs:
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True)
        put(there, "gone", b"edited meanwhile")
        assert not session.round(Prefer.BOTH).in_step
    clock.pass_days(40)
    collect_at(here)
    assert known(here, b"gone")


def test_of_very_many_ticks_the_first_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = pair(tmp_path, {b"f": b"1"})
    for number in range(4):
        put(here, "f", b"%d" % number)
        sync(here, there)
    monkeypatch.setattr("p2psync.manifest.RECALLED", 2)
    collect_at(here)
    with contextlib.closing(sqlite3.connect(here / ".p2psync" / "manifest.db")) as database:
        assert database.execute("SELECT count(*) FROM used").fetchone() == (2,)


@pytest.mark.parametrize("before", ["in step", "never met"])
def test_deletions_that_were_left_out_are_not_forgotten_where_they_are_too_many_to_be_named(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    monkeypatch.setattr("p2psync.sync.LEFT_BYTES", 2)
    tree: Tree = {b"gone/%d" % n: b"%d" % n for n in range(5)} | {b"stays/f": b"1"}
    here, there = pair(tmp_path, tree)
    if before == "never met":
        there = tmp_path / "third"
        new_replica(there, tree)
    rmtree(here / "gone")
    put(here, "stays/f", b"2")
    with opened(here) as ours, opened(there) as theirs:
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True)
        assert len(session.round(Prefer.BOTH, wanted=Filter(within=(b"stays",))).left_out) > 2
    clock.pass_days(40)
    collect_at(here)
    assert known(here, b"gone/1")
    assert sync(here, there).in_step
    assert snapshot(here) == snapshot(there)
    assert (here / "gone").exists() == (before == "never met")
    clock.pass_days(40)
    collect_at(here)
    assert known(here, b"gone/1") == (before == "never met")


@pytest.mark.parametrize("limit", ["LEFT_BYTES", "MAX_PATHS"])
def test_where_too_much_was_left_out_to_be_named_nobody_is_said_to_be_in_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"p2psync.sync.{limit}", 2)
    here = new_replica(tmp_path / "here", {b"%d" % n: b"%d" % n for n in range(9)})
    there = new_replica(tmp_path / "there")
    with opened(here) as ours, opened(there) as theirs:
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True)
        session.round(Prefer.BOTH, wanted=Filter(within=(b"1",)))
        assert [peer.synced_at for peer in ours.peers()] == [None]
        mark = ours.mark(theirs.identity.replica)
        assert mark and len(mark.pending) == 1
    assert sync(here, there).in_step
    assert snapshot(here) == snapshot(there)


@pytest.mark.parametrize("unnamed", [None, 5])
def test_what_was_left_out_of_many_runs_still_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: int | None
) -> None:
    """Also if one of them left out more than can be named, which says nothing of what was left out before."""
    here, there = pair(tmp_path, {b"t": BASE, b"f": b"1"})
    for n in range(BASES + 3):
        put(here, "t", BASE.replace(b"1", b"here %d" % n))
        put(there, "t", BASE.replace(b"9", b"there %d" % n))
        put(here, "f", b"%d" % n)
        with opened(here) as ours, opened(there) as theirs, monkeypatch.context() as patch:
            if n == unnamed:
                patch.setattr("p2psync.sync.LEFT_BYTES", 0)
            session = Session(ours, theirs, Quiet())
            session.scan(keep=True)
            session.round(Prefer.BOTH, wanted=Filter(patterns=b"*" if n == unnamed else b"t"))
        collect_at(here)
        collect_at(there)
    result = sync(here, there)
    assert [conflict.resolution for conflict in result.conflicts] == [Resolution.MERGED]
    put(here, "t", (here / "t").read_bytes() + b"more\n")
    assert sync(here, there).in_step
    with contextlib.closing(sqlite3.connect(here / ".p2psync" / "manifest.db")) as database:
        assert database.execute("SELECT * FROM left_behind").fetchall() == []


def test_a_deletion_that_a_run_brought_is_not_forgotten_while_it_can_be_undone(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0", b"gone": b"1"})
    (there / "gone").unlink()
    sync(here, there)
    clock.pass_days(100)
    sync(here, there)
    collect_at(here)
    with opened(here) as replica:
        assert restore(replica, b"gone", None).problems == []
    assert (here / "gone").read_bytes() == b"1"


def test_the_deletion_of_a_folder_that_is_still_there_is_not_forgotten(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b".p2pignore": b"*.o\n", b"f": b"\0", b"d/f": b"1"})
    put(here, "d/x.o", b"ignored")
    (there / "d" / "f").unlink()
    (there / "d").rmdir()
    sync(here, there)
    for _ in range(2):
        clock.pass_days(40)
        make_run(here, there)
        collect_at(here)
    assert not known(here, b"d/f")
    assert known(here, b"d")
    assert sync(here, there).in_step
    assert not (there / "d").exists()
    with opened(here) as replica:
        entry = replica.manifest.entry(b"d")
    assert entry is not None
    assert entry.kind is Kind.TOMBSTONE


def rows(root: Path, table: str) -> list[bytes]:
    """Return the paths in a table of the manifest."""
    with contextlib.closing(sqlite3.connect(root / ".p2psync" / "manifest.db")) as manifest:
        return sorted(path for (path,) in manifest.execute(f"SELECT path FROM {table}"))


def test_folders_are_forgotten_with_the_last_that_is_known_of_what_was_in_them(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0", b"gone/below/g": b"1", b"empty": None, b"part/gone": b"1"})
    put(here, "part/stays", b"1")
    shutil.rmtree(here / "gone")
    (here / "part" / "gone").unlink()
    sync(here, there)
    before = rows(here, "directory")
    clock.pass_days(31)
    with opened(here) as replica:
        assert replica.scan(keep=True).problems == []
        replica.collect(Limits())
        assert replica.manifest.entry(b"gone") is None
        make_tree(here, {b"gone/below/g": b"2"})
        assert replica.scan(keep=True).problems == []
        assert replica.manifest.entry(b"gone/below/g") is not None
    shutil.rmtree(here / "gone")
    sync(here, there)
    clock.pass_days(31)
    for root in (here, there):
        collect_at(root, NOTHING_STAYS)
    assert before == [b"", b"empty", b"gone", b"gone/below", b"part"]
    assert rows(here, "directory") == [b"", b"empty", b"part"]
    with opened(here) as replica:
        assert replica.manifest.homeless() == []
    assert sync(here, there).in_step
    assert snapshot(here).keys() == {b"empty", b"f", b"part", b"part/stays"}


def test_what_was_skipped_and_is_gone_is_told_of_again_if_it_comes_back(tmp_path: Path) -> None:
    here, _ = pair(tmp_path, {b"d/f": b"1"})
    for path in ("stays", "gone", "d/gone"):
        os.mkfifo(here / path)
    with opened(here) as replica:
        assert set(replica.scan(keep=True).skipped) == {b"stays", b"gone", b"d/gone"}
    (here / "gone").unlink()
    shutil.rmtree(here / "d")
    collect_at(here)
    assert rows(here, "skipped") == [b"stays"]
    os.mkfifo(here / "gone")
    with opened(here) as replica:
        assert replica.scan(keep=True).skipped == [b"gone"]


# -- by itself


def test_a_sync_cleans_up_by_itself_when_a_day_has_passed(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    configure(here, "[history]\ndays = 0.25\n")
    first = make_run(here, there)
    clock.pass_days(0.5)
    second = make_run(here, there)
    assert runs(here) == [second, first]  # not yet: it was done half a day ago
    clock.pass_days(0.6)
    third = make_run(here, there)
    assert (runs(here), shelves(here)) == ([third], [third])


def test_a_new_replica_has_nothing_to_clean_up_for_a_day(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[Limits] = []
    monkeypatch.setattr(
        "p2psync.collect.Collector.collect", lambda self, limits, until: cleaned.append(limits)
    )
    here, there = new_replica(tmp_path / "here", {b"f": b"\0a"}), new_replica(tmp_path / "there")
    sync(here, there)
    assert cleaned == []
    clock.pass_days(1.1)
    sync(here, there)
    assert len(cleaned) == 2


def test_also_a_sync_that_has_nothing_to_do_cleans_up(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    first = make_run(here, there)
    second = make_run(here, there)
    configure(here, "")
    clock.pass_days(31)
    sync(here, there)
    clock.pass_days(1.1)
    sync(here, there)
    assert (runs(here), first in shelves(here)) == ([second], False)


def test_history_goes_also_where_chunk_lists_cannot_be_forgotten(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0" * 60})
    first = make_run(here, there, data=b"\0" * 61)
    small_disk(monkeypatch)

    def fail(self: Collector) -> None:
        raise ReplicaError("there is no room")

    monkeypatch.setattr(Collector, "forget_chunks_if_many", fail)
    monkeypatch.setattr(ChunkLists, "are_new", lambda self: True)
    second = make_run(here, there)
    assert first != second
    assert runs(here) == [second]


def test_a_clock_that_is_wrong_for_a_while_costs_no_history_and_puts_nothing_off(
    tmp_path: Path, clock: Clock
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    configure(here, "")
    names = [make_run(here, there) for _ in range(3)]
    for days in (330, -330, -18_000, 18_000, 340, 0.5, -340.5):
        clock.pass_days(days)
        names.append(make_run(here, there))
    assert (runs(here), shelves(here)) == (names[::-1], sorted(names, reverse=True))
    for _ in range(2):
        clock.pass_days(31)
        sync(here, there)
    assert runs(here) == names[:2:-1]  # what follows the first that was ahead stays with it
    clock.pass_days(365)
    for _ in range(2):
        sync(here, there)
        clock.pass_days(1.1)
    assert runs(here) == [names[-1]]


def test_what_is_too_much_goes_in_the_order_in_which_it_came_whatever_the_clock_said(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0" * 60})
    first = make_run(here, there, data=b"\0" * 30)
    clock.pass_days(-18_000)
    behind = make_run(here, there, data=b"\0" * 50)
    clock.pass_days(18_000)
    small_disk(monkeypatch)
    latest = make_run(here, there)
    assert first not in runs(here)
    assert runs(here) == [latest, behind]


def test_who_syncs_once_a_year_has_history_go_a_year_later(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    configure(here, "")
    names: list[str] = []
    for _ in range(4):
        names.insert(0, make_run(here, there))
        clock.pass_days(365)
    assert runs(here) == names[:2]


def test_each_side_cleans_up_by_its_own_settings(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    for _ in range(2):
        make_run(here, there)
        make_run(there, here)
    latest, theirs = runs(here)[0], runs(there)
    configure(here, "[history]\ndays = 0\n")
    clock.pass_days(2)
    sync(here, there)
    assert (runs(here), runs(there)) == ([latest], theirs)


def test_a_sync_cleans_up_at_once_when_there_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0" * 60})
    make_run(here, there, data=b"\0" * 61)
    small_disk(monkeypatch)
    second = make_run(here, there)
    assert (runs(here), shelves(here)) == ([second], [second])


def test_a_run_that_alone_is_too_much_has_no_sync_clean_up_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0" * 200})
    small_disk(monkeypatch)
    latest = make_run(here, there)
    walks = walked(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("p2psync.collect.Collector.collect", lambda *arguments, **named: pytest.fail("cleaned"))
        sync(here, there)
    assert (shelves(here), walks) == ([latest], [])


def test_a_replica_that_is_not_to_clean_up_keeps_all(tmp_path: Path, clock: Clock) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    first = make_run(here, there)
    configure(here, "")
    clock.pass_days(100)
    put(there, "f", b"\0new")
    with opened(there) as theirs, contextlib.closing(LocalReplica(bytes(here), cleans=False)) as ours:
        assert sync_open(ours, theirs).in_step
    assert runs(here)[1:] == [first]


def test_what_cannot_be_removed_does_not_fail_a_sync_and_does_not_keep_the_rest_from_going(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair(tmp_path, {b"f": b"\0a"})
    first, second = make_run(here, there), make_run(here, there)
    configure(here, "")
    clock.pass_days(31)
    sync(here, there)
    clock.pass_days(1.1)
    remove = history.History.remove

    def refuse(self: history.History, run: str) -> None:
        if run == first:
            raise PermissionError(13, "Permission denied")
        remove(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(history.History, "remove", refuse)
        third = make_run(here, there)
        assert shelves(here) == [third, first]
        with pytest.raises(ReplicaError, match="cannot clean the history: Permission denied"):
            collect_at(here)
    assert [kept.run for kept in collect_at(here)] == [first]
    assert shelves(here) == [third]
    assert second not in runs(here)


# -- settings


def limits_of(root: Path, text: str) -> Limits:
    configure(root, text)
    return history_limits(bytes(root))


def test_the_limits_are_those_in_the_configuration_or_a_month_and_a_tenth(tmp_path: Path) -> None:
    here = new_replica(tmp_path / "here")
    assert history_limits(bytes(here)) == Limits(30, 10)
    assert limits_of(here, "[history]\n") == Limits(30, 10)
    assert limits_of(here, "[history]\ndays = 7\n") == Limits(7, 10)
    assert limits_of(here, "[history]\npercent = 2.5\n") == Limits(30, 2.5)
    assert limits_of(here, "[history]\ndays = inf\npercent = 0\n") == Limits(float("inf"), 0)


@pytest.mark.parametrize(
    "line", ["days = -1", "days = '7'", "days = true", "weeks = 4", "percent = [1]", "days = 2024-01-01"]
)
def test_a_limit_that_makes_no_sense_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    here = new_replica(tmp_path / "here")
    with pytest.raises(ReplicaError, match=rf"config.toml:2: \[history\]: .*{line.split()[0]}"):
        limits_of(here, f"[history]\n{line}\n")


def test_nothing_is_due_in_a_new_replica(tmp_path: Path) -> None:
    here = new_replica(tmp_path / "here")
    assert collect_at(here, NOTHING_STAYS) == []
    make_tree(here, {b"f": b"1"})
    assert not (here / ".p2psync" / "history").exists()
