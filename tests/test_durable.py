"""In which order a run reaches the disk (I8): a power cut at any moment leaves what was, or what will be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from p2psync import database, disk
from p2psync.core.model import Transition
from tests.support import carry_out, file, new_replica, opened, scanned, tombstone, version

if TYPE_CHECKING:
    from sqlite3 import _Parameters

WAIT, RENAME, COMMIT = "wait for the disk", "rename", "commit"


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
    monkeypatch.setattr("p2psync.local.begin_sync", lambda fd: telling(WAIT, lambda: None))
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
    assert WAIT in steps[:first]
    assert COMMIT not in steps[:last]
    assert WAIT in steps[last : steps.index(COMMIT, last)]


def test_a_manifest_is_on_disk_when_it_says_so(tmp_path: Path) -> None:
    root = new_replica(tmp_path / "replica")
    with opened(root) as replica:
        (level,) = replica.manifest._db.execute("PRAGMA synchronous").fetchone()
    full = 2  # https://sqlite.org/pragma.html#pragma_synchronous
    assert level == full
