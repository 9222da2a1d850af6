"""The second process that shares the work: all is done once, whoever dies, and nobody stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from p2psync.workers import Aside, Files, share

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


def _note_pid(file: Path) -> None:
    (file.parent / "new").write_text(str(os.getpid()))
    os.rename(file.parent / "new", file)


class Counting:
    """Returns how many bytes it was given, and in the end by how many jobs."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._jobs = 0

    def do(self, job: bytes) -> int:
        self._before()
        self._jobs += 1
        return len(job)

    def finish(self) -> int:
        return self._jobs


@contextlib.contextmanager
def aside(before: Callable[[], None] = lambda: None) -> Iterator[Aside]:
    open_before = os.listdir("/dev/fd")
    other = Aside(lambda: Counting(before))
    try:
        yield other
    finally:
        other.end()
    assert os.listdir("/dev/fd") == open_before


def test_the_other_process_does_what_it_is_given_and_tells_in_order() -> None:
    jobs = [b"x" * size for size in (1, 3 << 20, 70_000, 2)]
    with aside() as other:
        told = []
        for job in jobs:
            while not other.has_time():
                told += [*other.done()]
            assert other.give(job)
        told += [*other.rest()]
    assert told == [*((job, len(job)) for job in jobs), (b"", len(jobs))]


def test_who_has_enough_to_do_takes_no_more(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with aside(before=lambda: wait_for(go)) as other:
        given = 0
        while other.has_time():
            assert other.give(b"y" * (2 << 20))  # nor does who gives wait for the one before
            given += 1
        assert not [*other.done()]
        go.touch()
        assert [*other.rest()][-1] == (b"", given)
    assert given == 2


def test_what_one_that_died_was_given_comes_back() -> None:
    with aside(before=lambda: os._exit(1)) as other:
        assert other.give(b"job")
        assert [*other.rest()] == [(b"job", None)]


def test_where_there_can_be_no_more_processes_nothing_is_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    with aside() as other:
        assert not other.has_time()
        assert not [*other.rest()]


def test_who_is_given_nothing_more_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def stay() -> None:
        _note_pid(pids)
        signal.pause()

    with aside(before=stay) as other:
        other.give(b"job")
        wait_for(pids)
    _, status = os.waitpid(int(pids.read_text()), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
