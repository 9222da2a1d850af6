"""Contents that arrive: all of them are staged and kept once, whichever process does it and whoever dies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2psync import receive
from p2psync.core.model import Entry, Transition
from p2psync.core.replica import MAX_PIECES, More, Piece
from p2psync.local import LocalReplica
from tests.support import digest, directory, do_not_wait_for_disk, file, new_replica, opened, scanned

TEXTS = {b"d/%04d" % number: b"text number %d\n" % number for number in range(3 * MAX_PIECES)}
WANTED: dict[bytes, Entry] = {b"d": directory(), **{path: file(text) for path, text in TEXTS.items()}}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)
    monkeypatch.setattr(receive, "_PROCESSORS", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return new_replica(tmp_path / "replica")


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which each process adds a line when it writes a batch."""
    noted = tmp_path / "worked"
    noted.touch()
    do = receive._Writer.do

    def note(self: receive._Writer, job: bytes) -> object:
        with noted.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        return do(self, job)

    monkeypatch.setattr(receive._Writer, "do", note)
    return noted


def batches(texts: Mapping[bytes, bytes]) -> list[list[Piece]]:
    pieces = [Piece(digest(data), data, More.LAST) for data in texts.values()]
    return [pieces[start : start + 250] for start in range(0, len(pieces), 250)]


def take_in(replica: LocalReplica) -> None:
    """Apply what is wanted, as if a peer had sent it."""
    replica.prepare([Transition(path, None, entry) for path, entry in WANTED.items()])
    replica.stage(iter(batches(TEXTS)))
    problems = [problem for applied in replica.apply() for problem in applied.problems]
    assert problems == []


def all_is_there(root: Path) -> bool:
    """Are all files there, known as they are, and their texts kept?"""
    assert {path: (root / os.fsdecode(path)).read_bytes() for path in TEXTS} == TEXTS
    with opened(root) as replica:
        kept = replica.manifest.kept([digest(text) for text in TEXTS.values()])
        newest = replica.newest()
        replica.scan(keep=True)
        return len(kept) == len(TEXTS) and replica.newest() == newest


def test_many_small_files_are_written_by_two_processes(root: Path, worked: Path) -> None:
    with opened(root) as replica:
        take_in(replica)
    assert str(os.getpid()) not in worked.read_text().split()  # it writes what it has not given away
    assert worked.read_text()
    assert all_is_there(root)
    assert scanned(root).keys() == WANTED.keys()


def test_what_the_second_process_was_given_and_died_of_is_written_by_the_first(
    root: Path, worked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, do = os.getpid(), receive._Writer.do

    def die(self: receive._Writer, job: bytes) -> object:
        if os.getpid() != mine:
            os._exit(1)
        return do(self, job)

    monkeypatch.setattr(receive._Writer, "do", die)
    with opened(root) as replica:
        take_in(replica)
    assert str(mine) in worked.read_text().split()
    assert all_is_there(root)


def test_few_files_are_written_by_one_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    few = dict(list(WANTED.items())[:200])
    with opened(root) as replica:
        replica.prepare([Transition(path, None, entry) for path, entry in few.items()])
        replica.stage(iter(batches({path: TEXTS[path] for path in few if path in TEXTS})))
        assert not [problem for applied in replica.apply() for problem in applied.problems]


def test_where_processors_are_few_there_is_one_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_PROCESSORS", 1 << 20)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    with opened(root) as replica:
        take_in(replica)
    assert all_is_there(root)


def test_a_piece_of_a_large_file_is_not_given_away(root: Path) -> None:
    large = os.urandom(3 << 20)
    parts = [large[at : at + (1 << 20)] for at in range(0, len(large), 1 << 20)]
    more = [More.MORE, More.MORE, More.LAST]
    pieces = [[Piece(digest(large), part, kind)] for part, kind in zip(parts, more, strict=True)]
    wanted = {**WANTED, b"large": file(large)}
    with opened(root) as replica:
        replica.prepare([Transition(path, None, entry) for path, entry in wanted.items()])
        replica.stage(iter([*batches(TEXTS), *pieces]))
        assert not [problem for applied in replica.apply() for problem in applied.problems]
    assert (root / "large").read_bytes() == large
    assert all_is_there(root)
