"""In which order a run reaches the disk (I8): a power cut at any moment leaves what was, or what will be."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from p2psync import database, disk
from p2psync.bases import Bases
from p2psync.core.model import Transition
from p2psync.core.replica import Identity, Mark
from p2psync.core.vector import ReplicaId
from tests.support import carry_out, digest, file, new_replica, opened, scanned, tombstone, version

if TYPE_CHECKING:
    from sqlite3 import _Parameters

BEGIN, WAIT, RENAME, COMMIT = "have all written", "wait for the disk", "rename", "commit"
TEXT = "write texts"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk, in its order."""
    done: list[str] = []

    def telling(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            done.append(name)
            return function(*args)

        return call

    def execute(self: sqlite3.Connection, sql: str, parameters: _Parameters = ()) -> sqlite3.Cursor:
        if sql == "COMMIT":
            done.append(COMMIT)
        return sqlite3.Connection.execute(self, sql, parameters)

    monkeypatch.setattr(database.Database, "execute", execute)
    monkeypatch.setattr("p2psync.local.begin_sync", telling(BEGIN, lambda fd: telling(WAIT, lambda: None)))
    monkeypatch.setattr(Bases, "_write_block", telling(TEXT, Bases._write_block))
    monkeypatch.setattr(os, "fsync", telling(WAIT, os.fsync))
    monkeypatch.setattr(disk, "_rename", telling(RENAME, disk._rename))
    return done


def test_contents_reach_the_disk_before_names_and_names_before_the_manifest(
    tmp_path: Path, steps: list[str]
) -> None:
    root = new_replica(tmp_path / "replica", {b"deleted": b"1", b"replaced": b"2"})
    known = scanned(root)
    wanted = {
        b"deleted": tombstone(version(9)),
        b"replaced": file(b"new", seen=version(9)),
        b"made": file(b"new", seen=version(9)),
    }
    with opened(root) as replica:
        steps.clear()
        _, problems = carry_out(
            replica, [Transition(path, known.get(path), entry) for path, entry in wanted.items()], b"new"
        )
    assert problems == []
    first, last = steps.index(RENAME), len(steps) - 1 - steps[::-1].index(RENAME)
    assert steps[:first].index(BEGIN) < steps[:first].index(WAIT)
    assert COMMIT not in steps[:last]
    after = steps[last : steps.index(COMMIT, last)]
    assert after.index(BEGIN) < after.index(WAIT)


def test_texts_reach_the_disk_before_the_manifest_says_where_they_are(
    tmp_path: Path, steps: list[str]
) -> None:
    root = new_replica(tmp_path / "replica", {b"same": b"known"})
    same = scanned(root)[b"same"]
    joined = replace(same, version=version(9))
    with opened(root) as replica:
        steps.clear()
        made = Transition(b"made", None, file(b"new", seen=version(9)))
        assert carry_out(replica, [made, Transition(b"same", same, joined)], b"new") == (2, [])
        last = len(steps) - 1 - steps[::-1].index(TEXT)
        assert steps[last:].index(BEGIN) < steps[last:].index(WAIT) < steps[last:].index(COMMIT)
        assert COMMIT not in steps[:last]
        texts = [digest(b"known"), digest(b"new")]
        assert replica.texts(texts) == [b"known", b"new"]
        assert replica.manifest.texts.kept(texts) == set(texts)
        replica.keep(digest(b"base"), b"base")
        steps.clear()
        replica.acknowledge(Identity(ReplicaId(7), "peer", 1), Mark(1, 0, b""))
        assert steps == [TEXT, WAIT, COMMIT]


@pytest.mark.parametrize("failing", [1, 2], ids=["contents", "names"])
def test_what_a_disk_could_not_write_is_not_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    root = new_replica(tmp_path / "replica")
    calls = 0

    def sync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "sync_file_system", sync)
    with opened(root) as replica, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        carry_out(replica, [Transition(b"f", None, file(b"new"))], b"new")
    assert calls == failing
    with opened(root) as replica:
        assert not replica.newest()


SYNCS = {"syncfs": (5,), "fsync_volume_np": (5, 3), None: ()}
"""What a system has to sync a file system, and is given: on macOS, to flush the disk's cache and to wait."""


class System:
    """A libc with one of these calls, which fails with an error, and a sync of all that is written down."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str | None, error: int = 0) -> None:
        self.asked: list[tuple[str | None, tuple[int, ...]]] = []

        def sync(*arguments: int) -> int:
            self.asked.append((name, arguments))
            ctypes.set_errno(error)
            return -1 if error else 0

        if name:
            setattr(self, name, sync)
        patch.setattr(disk, "_libc", lambda: self)
        patch.setattr(os, "sync", lambda: self.asked.append((None, ())))


@pytest.mark.parametrize("name", SYNCS)
def test_a_file_system_is_synced_by_what_the_system_has_for_it(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    system = System(monkeypatch, name)
    disk.sync_file_system(5)
    assert system.asked == [(name, SYNCS[name])]


@pytest.mark.parametrize("name", ["syncfs", "fsync_volume_np"])
def test_an_error_that_the_system_tells_of_is_raised(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    System(monkeypatch, name, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.sync_file_system(5)


def test_a_volume_that_cannot_be_synced_alone_is_synced_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, "fsync_volume_np", errno.ENOTSUP)
    disk.sync_file_system(5)
    assert [name for name, _ in system.asked] == ["fsync_volume_np", None]


def test_a_manifest_is_on_disk_when_it_says_so(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "replica")
    with opened(root) as replica:
        (level,) = replica.manifest._db.execute("PRAGMA synchronous").fetchone()
    full = 2  # https://sqlite.org/pragma.html#pragma_synchronous
    assert level == full


@pytest.mark.parametrize("full", [None, False, True])
def test_a_commit_is_not_left_in_the_cache_of_the_disk_where_fsync_does_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool | None
) -> None:
    if full is not None:
        monkeypatch.setattr(database, "FULL_SYNC", full)
    with opened(new_replica(tmp_path / "replica")) as replica:
        (asked,) = replica.manifest._db.execute("PRAGMA fullfsync").fetchone()
    assert asked == (sys.platform == "darwin" if full is None else full)
