"""The second process that shares the work: all is done once, whoever dies, and nobody stays behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from p2psync.workers import Files, share

MANY: Files = [(b"%d" % number, 1) for number in range(1000)]
PATIENCE_SECONDS = 20


class Noting:
    """Returns which files it was given, and whose process it ran in."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before

    def do(self, first: int, end: int) -> list[object]:
        self._before()
        return [os.getpid(), list(range(first, end))]

    def finish(self) -> list[object]:
        return [os.getpid(), []]


def wait_for(there: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not there.exists():
        assert time.monotonic() < deadline, "the other process does nothing"
        time.sleep(0.001)


def both_at_work(folder: Path) -> tuple[Noting, Callable[[], Noting]]:
    """Return workers each of which waits until the other is at work too."""
    here, there = folder / "here", folder / "there"

    def meet(mine: Path, other: Path) -> None:
        mine.touch()
        wait_for(other)

    return Noting(lambda: meet(here, there)), lambda: Noting(lambda: meet(there, here))


def done_by(results: list[tuple[int, object]]) -> dict[int, list[int]]:
    """Return which files each process did."""
    done: dict[int, list[int]] = {}
    for first, result in results:
        assert isinstance(result, list)
        pid, numbers = result
        assert not numbers or first == numbers[0]
        done.setdefault(pid, []).extend(numbers)
    return done


def test_two_processes_do_all_files_once(tmp_path: Path) -> None:
    done = done_by(list(share(MANY, *both_at_work(tmp_path))))
    assert sorted(chain(*done.values())) == list(range(len(MANY)))
    assert len(done) == 2
    assert all(done.values())


def test_what_is_left_by_one_that_died_is_done_here(tmp_path: Path) -> None:
    mark = tmp_path / "dying"

    def die() -> None:
        mark.touch()
        os._exit(1)

    mine = Noting(before=lambda: wait_for(mark))
    done = done_by(list(share(MANY, mine, lambda: Noting(before=die))))
    assert list(done) == [os.getpid()]
    assert sorted(done[os.getpid()]) == list(range(len(MANY)))


def test_few_files_are_not_worth_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    done = done_by(list(share(MANY[:100], Noting(), Noting)))
    assert done == {os.getpid(): list(range(100))}


def test_a_few_large_files_are(tmp_path: Path) -> None:
    files = [(b"large", 100 << 20), (b"larger", 200 << 20)]
    done = done_by(list(share(files, *both_at_work(tmp_path))))
    assert sorted(map(len, done.values())) == [1, 1]


def test_where_there_can_be_no_more_processes_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    before = os.listdir("/dev/fd")
    done = done_by(list(share(MANY, Noting(), Noting)))
    assert done == {os.getpid(): list(range(len(MANY)))}
    assert os.listdir("/dev/fd") == before


def test_nobody_stays_behind_when_the_work_is_given_up(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    mine = Noting(before=lambda: wait_for(pids))
    before = os.listdir("/dev/fd")
    with contextlib.closing(share(MANY, mine, lambda: Noting(lambda: _note_pid(pids)))) as results:  # type: ignore[type-var]
        next(results)
    _, status = os.waitpid(int(pids.read_text()), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert os.listdir("/dev/fd") == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its job")
def test_it_ends_with_the_process_that_is_killed_in_the_middle_of_a_job(tmp_path: Path) -> None:
    alive, inherited = os.pipe()
    pid = os.fork()
    if not pid:
        mine, make_other = both_at_work(tmp_path)
        list(share(MANY, _Stuck(mine), lambda: _Stuck(make_other())))
        os._exit(1)
    os.close(inherited)
    try:
        wait_for(tmp_path / "here")
        wait_for(tmp_path / "there")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert select.select([alive], [], [], PATIENCE_SECONDS)[0], "the other process goes on"
    finally:
        os.close(alive)


class _Stuck:
    """Does its job, and is not done before the test is."""

    def __init__(self, worker: Noting) -> None:
        self._worker = worker

    def do(self, first: int, end: int) -> object:
        self._worker.do(first, end)
        return select.select([], [], [], 2 * PATIENCE_SECONDS)

    def finish(self) -> object:
        return None


def _note_pid(file: Path) -> None:
    (file.parent / "new").write_text(str(os.getpid()))
    os.rename(file.parent / "new", file)
