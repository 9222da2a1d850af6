"""A second process that shares the work of this one: forked for the work, gone after it. Owns the processes.

Where each file costs mostly Python's own time, two processes on two processors take half as long. Threads
would not: they share one interpreter. What is known before is a list of jobs in one pipe, from which both
take, so that the faster takes more (`share`); what comes in bit by bit is given away as long as the other
keeps up (`Aside`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import NoReturn, Protocol

import msgspec

_NUMBER = struct.Struct(">I")
_LENGTH = struct.Struct(">I")
_JOB_FILES = 64
_JOB_BYTES = 4 << 20
"""A job is no larger, but for a single file: who waits for the last one waits for some milliseconds."""
_MAX_JOBS = 8192
"""Their numbers have to fit into a pipe that nobody reads yet."""
_ALONE_FILES = 500
_ALONE_BYTES = 64 << 20
"""Less than this is done before a second process would be at work."""
_PIPE_BYTES = 1 << 20
_AHEAD = 2
"""Jobs that the other process is given before the first of them is done."""

Files = Sequence[tuple[bytes, int]]
"""Paths, and the bytes that are to be read or written for each."""

_Jobs = Sequence[tuple[int, int]]
"""Index of the first file of each job, and of the one after its last."""


class Worker(Protocol):
    """What one of the two processes does."""

    def do(self, first: int, end: int) -> object:
        """Do what is to be done for these files; return what came of it, which msgpack can hold."""

    def finish(self) -> object:
        """End the work; return what is still to be told, as if of no files."""


class Hand(Protocol):
    """What the other process does with what it is given."""

    def do(self, job: bytes) -> object:
        """Do a job; return what came of it, which msgpack can hold."""

    def finish(self) -> object:
        """End the work; return what is still to be told."""


def share(files: Files, mine: Worker, make_other: Callable[[], Worker]) -> Iterator[tuple[int, object]]:
    """Work on all files, in two processes if they are many.

    What the other process does changes nothing in this one: what is to be known has to be in the results.

    Args:
        files: in an order in which those of a folder follow one another.
        mine: works on some of them in this process.
        make_other: called in the other process, returns who works on the rest.

    Yields:
        The index of a file, and what came of it and those after it, in any order.
    """
    jobs = _jobs(files)
    left = dict(enumerate(jobs))
    queue = _queue(len(jobs)) if _is_much(files) and len(jobs) > 1 else None
    if queue is not None:
        helper = _Process.start(lambda told: _help(jobs, queue, told, make_other()))
        try:
            if helper:
                for number in _numbers(queue):
                    first, end = left.pop(number)
                    yield first, mine.do(first, end)
                    for number, result in helper.ready():
                        yield left.pop(number, (len(files),))[0], result
                for number, result in helper.rest():
                    yield left.pop(number, (len(files),))[0], result
                helper.reap()
        finally:
            os.close(queue)
            if helper:
                helper.end()
    for first, end in left.values():  # there was no other, or it died before it could tell of these
        yield first, mine.do(first, end)


class Aside:
    """A second process that is given jobs as they come in, as long as it keeps up.

    What it does changes nothing in this one, and it knows nothing that this one learns after it was started.
    """

    def __init__(self, make_worker: Callable[[], Hand]) -> None:
        """Start it, if there can be one more process; `make_worker` is called there."""
        self._given: deque[bytes] = deque()
        """What it was given, and has not told of."""
        self._process: _Process | None = None
        self._jobs = -1
        try:
            source, self._jobs = os.pipe()
        except OSError:
            return
        _widen(self._jobs)
        self._process = _Process.start(lambda told: _work_off(source, self._jobs, told, make_worker()))
        os.close(source)

    def has_time(self) -> bool:
        """Could it do one more job?"""
        return self._process is not None and len(self._given) < _AHEAD

    def give(self, job: bytes) -> bool:
        """Have it do a job; False: it will not."""
        try:
            _write(self._jobs, _LENGTH.pack(len(job)) + job)
        except OSError:  # it has died
            return False
        self._given.append(job)
        return True

    def done(self) -> Iterator[tuple[bytes, object]]:
        """Yield the jobs that are done by now, and what came of each."""
        if self._process:
            for _, result in self._process.ready():
                yield self._given.popleft(), result

    def rest(self) -> Iterator[tuple[bytes, object]]:
        """Give no more; yield the rest, None for what was never done; last, what came of no job."""
        self._end_of_jobs()
        if self._process:
            for number, result in self._process.rest():
                yield (b"" if number < 0 else self._given.popleft()), result
            self._process.reap()
        for job in self._given:
            yield job, None

    def end(self) -> None:
        """End it, whatever it does."""
        self._end_of_jobs()
        if self._process:
            self._process.end()

    def _end_of_jobs(self) -> None:
        if self._jobs >= 0:
            os.close(self._jobs)
            self._jobs = -1


def _is_much(files: Files) -> bool:
    return len(files) >= _ALONE_FILES or sum(size for _, size in files) >= _ALONE_BYTES


def _jobs(files: Files) -> _Jobs:
    """Split files into jobs, such that a folder's files are mostly in one; return first and end of each."""
    most = max(_JOB_FILES, 2 * len(files) // _MAX_JOBS)
    most_bytes = max(_JOB_BYTES, 2 * sum(size for _, size in files) // _MAX_JOBS)
    starts = [0]
    taken = 0
    for number, (_, size) in enumerate(files):
        if number > starts[-1] and (number - starts[-1] == most or taken + size > most_bytes):
            starts.append(number)
            taken = 0
        taken += size
    return list(zip(starts, [*starts[1:], len(files)], strict=True)) if files else []


_killed: list[int] = []
"""Processes that were ended, and not waited for yet."""


class _Process:
    """The other process, and what it tells."""

    def __init__(self, pid: int, results: int) -> None:
        self._pid = pid
        self._results = results
        self._data = bytearray()
        self._poll = select.poll()
        self._poll.register(results, select.POLLIN)

    @classmethod
    def start(cls, work: Callable[[int], None]) -> _Process | None:
        """Start to work, told where to tell of it; None if there can be no more processes or descriptors."""
        while _killed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(_killed.pop(), 0)
        try:
            results, told = os.pipe()
        except OSError:
            return None

        def child() -> None:
            os.close(results)  # so that telling fails when nobody is there any more
            work(told)

        try:
            _widen(told)
            pid = _fork(child)
        except OSError:
            os.close(results)
            return None
        finally:
            os.close(told)
        return cls(pid, results)

    def reap(self) -> None:
        """Wait for the process, which has no more to do."""
        os.waitpid(self._pid, 0)
        self._pid = -1

    def end(self) -> None:
        """End the process, whatever it does; it is waited for when the next one starts: who is interrupted
        here has no time.
        """
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)
            _killed.append(self._pid)
        os.close(self._results)

    def ready(self) -> Iterator[tuple[int, object]]:
        """Yield what can be had without waiting."""
        while self._poll.poll(0):
            if not self._read():
                return
            yield from self._whole()

    def rest(self) -> Iterator[tuple[int, object]]:
        """Yield all that comes until the process ends."""
        while self._read():
            yield from self._whole()

    def _read(self) -> bool:
        data = os.read(self._results, _PIPE_BYTES)
        self._data += data
        return bool(data)

    def _whole(self) -> Iterator[tuple[int, object]]:
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            message = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield msgspec.msgpack.decode(message, type=tuple[int, object])


def _queue(count: int) -> int | None:
    """Return what that many numbers of jobs can be read from, by two processes; None: there can be none."""
    try:
        queue, filled = os.pipe()
    except OSError:
        return None
    with open(filled, "wb") as file:
        file.write(b"".join(map(_NUMBER.pack, range(count))))
    return queue


def _numbers(queue: int) -> Iterator[int]:
    while number := os.read(queue, _NUMBER.size):  # of a pipe, a read takes all of a number or none
        yield _NUMBER.unpack(number)[0]


def _help(jobs: _Jobs, queue: int, told: int, worker: Worker) -> None:
    for number in _numbers(queue):
        _tell(told, number, worker.do(*jobs[number]))
    _tell(told, -1, worker.finish())


def _work_off(source: int, given: int, told: int, worker: Hand) -> None:
    os.close(given)  # so that the jobs end
    jobs: SimpleQueue[bytes] = SimpleQueue()
    # They are read meanwhile: who gives one must not wait until the one before is done.
    Thread(target=_read_jobs, args=(source, jobs), daemon=True).start()
    for number, job in enumerate(iter(jobs.get, b"")):
        _tell(told, number, worker.do(job))
    _tell(told, -1, worker.finish())


def _read_jobs(source: int, jobs: SimpleQueue[bytes]) -> None:
    with open(source, "rb") as file:
        while header := file.read(_LENGTH.size):
            jobs.put(file.read(*_LENGTH.unpack(header)))
    jobs.put(b"")


def _tell(told: int, number: int, result: object) -> None:
    message = msgspec.msgpack.encode((number, result))
    _write(told, _LENGTH.pack(len(message)) + message)


def _write(pipe: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(pipe, left) :]


def _widen(pipe: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _fork(child: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        # Of threads that wait for the other side or the disk none holds what the child needs: it makes
        # system calls and hashes, and never returns from here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _end_after(child)
    return pid


def _end_after(child: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to all; the parent ends us
        child()
        code = 0
    finally:
        os._exit(code)
