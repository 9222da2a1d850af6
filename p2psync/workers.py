"""A second process that shares the work of this one: forked for the work, gone after it. Owns the processes.

Where each file costs mostly Python's own time, two processes on two processors take half as long. Threads
would not: they share one interpreter. Both take their jobs from one pipe, so that the faster takes more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, Protocol

import msgspec

from p2psync.disk import prepare_to_end_with_parent

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
_RESULT_BYTES = 1 << 20

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
    helper = _Helper.start(jobs, make_other) if _is_much(files) and len(jobs) > 1 else None
    if helper:
        try:
            for number in helper.numbers():
                first, end = left.pop(number)
                yield first, mine.do(first, end)
                for number, result in helper.ready():
                    yield left.pop(number, (len(files),))[0], result
            for number, result in helper.rest():
                yield left.pop(number, (len(files),))[0], result
            helper.reap()
        finally:
            helper.end()
    for first, end in left.values():  # there was no other, or it died before it could tell of these
        yield first, mine.do(first, end)


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


class _Helper:
    """The other process, and the pipes to it."""

    def __init__(self, pid: int, queue: int, results: int) -> None:
        self._pid = pid
        self._queue = queue
        self._results = results
        self._data = bytearray()
        self._poll = select.poll()
        self._poll.register(results, select.POLLIN)

    @classmethod
    def start(cls, jobs: _Jobs, make_worker: Callable[[], Worker]) -> _Helper | None:
        """Start to work on jobs; None if there can be no more processes or descriptors."""
        while _killed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(_killed.pop(), 0)
        with contextlib.ExitStack() as opened:
            try:
                queue, filled = os.pipe()
                opened.callback(os.close, queue)
                with open(filled, "wb") as file:
                    file.write(b"".join(map(_NUMBER.pack, range(len(jobs)))))
                results, told = os.pipe()
                opened.callback(os.close, results)
                with open(told, "wb"):
                    if hasattr(fcntl, "F_SETPIPE_SZ"):
                        with contextlib.suppress(OSError):
                            fcntl.fcntl(told, fcntl.F_SETPIPE_SZ, _RESULT_BYTES)
                    pid = _fork(lambda: _help(jobs, queue, results, told, make_worker()))
            except OSError:
                return None
            opened.pop_all()
            return cls(pid, queue, results)

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
        os.close(self._queue)
        os.close(self._results)

    def numbers(self) -> Iterator[int]:
        """Yield the jobs that are for this process."""
        return _numbers(self._queue)

    def ready(self) -> Iterator[tuple[int, object]]:
        """Yield what can be had without waiting."""
        while self._poll.poll(0):
            if not self._read():
                return
            yield from self._whole()

    def rest(self) -> Iterator[tuple[int, object]]:
        """Yield all that comes until the helper ends."""
        while self._read():
            yield from self._whole()

    def _read(self) -> bool:
        data = os.read(self._results, _RESULT_BYTES)
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


def _numbers(queue: int) -> Iterator[int]:
    while number := os.read(queue, _NUMBER.size):  # of a pipe, a read takes all of a number or none
        yield _NUMBER.unpack(number)[0]


def _help(jobs: _Jobs, queue: int, results: int, told: int, worker: Worker) -> None:
    os.close(results)  # so that telling fails when nobody is there any more
    for number in _numbers(queue):
        _tell(told, number, worker.do(*jobs[number]))
    _tell(told, -1, worker.finish())


def _tell(told: int, number: int, result: object) -> None:
    message = msgspec.msgpack.encode((number, result))
    data = memoryview(_LENGTH.pack(len(message)) + message)
    while data:
        data = data[os.write(told, data) :]


def _fork(child: Callable[[], None]) -> int:
    end_with_parent = prepare_to_end_with_parent()
    with warnings.catch_warnings():
        # Of threads that wait for the other side or the disk none holds what the child needs: it makes
        # system calls and hashes, and never returns from here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _end_after(child, end_with_parent)
    return pid


def _end_after(child: Callable[[], None], end_with_parent: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        end_with_parent()  # else it would keep the lock of the replica until its job is done
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to all; the parent ends us
        child()
        code = 0
    finally:
        os._exit(code)
