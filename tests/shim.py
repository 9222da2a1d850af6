"""Processes in which one chosen call goes wrong: they are killed at it, or it fails.

Owned here: the shim that counts the calls of a process to the disk and the database, and strikes at the
N-th; the nursery, a process that has everything loaded and forks for each run. Loads nothing of the tests:
a far end behind ssh starts here each time.

Between a fork and the first change nothing is shared but the code, so a run is what a user's is, a process
for each side, at a twentieth of the cost. What SQLite does within a statement is not seen; that is its own
promise. Nobody waits for the disk: only a power cut would tell (see `tests.powercut`).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import selectors
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, NoReturn, cast

REPOSITORY = Path(__file__).parent.parent
PYTHONPATH = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
"""Where the tests are found by processes that run in other folders."""
HANGS = 60
"""Seconds; a run takes some hundredths of one."""

Side = Literal["near", "far", "both"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, and where."""

    side: Side = "near"
    at: int = 0
    """At which call; 0: at none."""
    code: int | None = None
    """The `errno` of the failure; None: the process is killed."""
    lasting: bool = False
    """Every later call fails too, where it can with this code."""
    log: str = ""
    """A file to which all calls are written as they are made."""
    clock: float = 0
    """By how many seconds the clock of that side is wrong."""
    roomy: bool = False
    """Disks seem to have room; when they are written to, someone else has filled them."""
    record: bool = False
    """What both sides do is recorded; see `tests.powercut`."""
    hit: str = ""
    """A file to which the call is written at which it went wrong."""


# -- the shim

CHANGING = (
    *("mkdir", "rename", "replace", "link", "unlink", "rmdir", "symlink", "utime", "chmod", "fchmod"),
    *("truncate", "ftruncate", "fsync", "fdatasync", "sync", "pwrite", "copy_file_range", "sendfile"),
)
LOOKING = ("pread", "scandir", "listdir", "stat", "lstat", "readlink", "fstat")

_ANY_CHANGE = {errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS}
_CODES = (
    (CHANGING, {errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS}),
    (("_rename",), {errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS}),
    (("open to write",), {errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE}),
    (("write", "syncfs", "fsync", "fdatasync"), {errno.ENOSPC, errno.EIO}),
    (("open",), {errno.EIO, errno.EACCES, errno.EMFILE}),
    (("scandir", "listdir"), {errno.EIO, errno.EACCES, errno.EMFILE}),
    (("stat", "lstat", "readlink"), {errno.EIO, errno.EACCES}),
    (("read", "pread", "fstat"), {errno.EIO}),
    (("dup", "pipe"), {errno.EMFILE}),
    (("database",), {errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.EROFS}),
    (("database reads",), {errno.EIO}),
)
CAN_FAIL = {call: codes for calls, codes in _CODES for call in calls}
"""Which codes a call can end with."""

_DATABASE_SAYS = {
    errno.ENOSPC: "database or disk is full",
    errno.EIO: "disk I/O error",
    errno.EROFS: "attempt to write a readonly database",
}

_open, _write, _read, _fstat, _readlink = os.open, os.write, os.read, os.fstat, os.readlink
_stat, _close, _lseek = os.stat, os.close, os.lseek


class Shim:
    """Counts calls, and strikes at the one that was chosen."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._lock = threading.Lock()
        self._calls = 0
        self.active = fault.side != "far"
        """Does this process play the side that is counted?"""

    def meet(self, call: str, what: object, half: Callable[[], object] | None = None) -> None:
        """A call is about to be made.

        Args:
            call: its name.
            what: what it is about, for the log.
            half: does a part of it, for who is killed in the middle.

        Raises:
            OSError: so it was chosen.
        """
        if not self.active:
            return
        fault = self._fault
        line = " ".join(f"{call} {what}".split()).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            self._calls += 1
            if fault.log:
                _append(fault.log, line)
            due = self._calls == fault.at or (fault.lasting and 0 < fault.at < self._calls)
            if not due or (fault.code is not None and fault.code not in CAN_FAIL[call]):
                return
            if fault.hit:
                _append(fault.hit, b"%d " % self._calls + line)
            if fault.code is None:
                if half:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)
        assert fault.code is not None
        if call.startswith("database"):
            raise sqlite3.OperationalError(_DATABASE_SAYS.get(fault.code, "unable to open database file"))
        raise OSError(fault.code, os.strerror(fault.code))

    def become_far(self) -> None:
        """From here on this process plays the far end."""
        self.active = self._fault.side != "near"

    # -- what is watched

    def install(self) -> None:
        """Watch all calls of this process from now on."""
        import p2psync.connect
        import p2psync.disk

        be_far_end = p2psync.connect._be_far_end

        def far_end(*args: Any) -> NoReturn:  # noqa: ANN401
            self.become_far()
            be_far_end(*args)

        _put(p2psync.connect, "_be_far_end", far_end)
        if self._fault.clock:
            self._set_clock(time.time, time.time_ns, self._fault.clock)
        _put(os, "open", self._opening)
        _put(os, "write", self._writing(os.write))
        for name in filter(functools.partial(hasattr, os), CHANGING):
            _put(os, name, self._watched(name, getattr(os, name)))
        rename = p2psync.disk._rename
        _put(p2psync.disk, "_rename", self._watched("_rename", rename))
        _put(p2psync.disk, "_libc", functools.cache(lambda: _Libc(self)))
        _put(sqlite3, "connect", self._connecting(sqlite3.connect))
        if self._fault.code is not None:
            for name in LOOKING:
                _put(os, name, self._watched(name, getattr(os, name)))
            _put(os, "read", self._reading)
            for name in ("dup", "pipe"):
                _put(os, name, self._watched(name, getattr(os, name)))

    def _set_clock(self, real: Callable[[], float], real_ns: Callable[[], int], wrong: float) -> None:
        _put(time, "time", lambda: real() + wrong * self.active)
        _put(time, "time_ns", lambda: real_ns() + int(wrong * 1e9) * self.active)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if not (args and _is_of_the_system(args[0])):
                self.meet(name, args[:2])
            return function(*args, **kwargs)

        return call

    def _opening(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # noqa: ANN401
        if _is_of_the_system(path):
            pass
        elif flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.meet("open to write", path)
        elif self._fault.code is not None:
            self.meet("open", path)
        return _open(path, flags, mode, dir_fd=dir_fd)

    def _writing(self, function: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def write(fd: int, data: Any) -> int:  # noqa: ANN401
            if self._fault.code is None or stat.S_ISREG(_fstat(fd).st_mode):
                self.meet("write", len(data), lambda: _write(fd, data[: len(data) // 2]))
            return function(fd, data)

        return write

    def _reading(self, fd: int, size: int) -> bytes:
        if stat.S_ISREG(_fstat(fd).st_mode):
            self.meet("read", size)
        return _read(fd, size)

    def _connecting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def connect(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            factory = kwargs.pop("factory", sqlite3.Connection)
            self.meet("database", "open")
            watched = type("Watched", (factory, _Watched), {"shim": self})
            return function(*args, **kwargs, factory=watched)

        return connect


class _Watched(sqlite3.Connection):
    """A database whose statements are watched, below all that p2psync makes of their errors."""

    shim: Shim

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        self._meet(sql)
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
        self._meet(sql)
        return super().executemany(sql, *args)

    def cursor(self, *_: object) -> sqlite3.Cursor:  # type: ignore[override]
        return super().cursor(functools.partial(_Cursor, shim=self.shim))

    def _meet(self, sql: str) -> None:
        if not sql.startswith("SELECT"):
            self.shim.meet("database", sql[:40])
        elif self.shim._fault.code is not None:
            self.shim.meet("database reads", sql[:40])


class _Cursor(sqlite3.Cursor):
    """Rows, of which the second may fail to come: the first comes with the statement."""

    def __init__(self, connection: sqlite3.Connection, shim: Shim) -> None:
        super().__init__(connection)
        self._shim = shim
        self._rows = 0

    def __next__(self) -> Any:  # noqa: ANN401
        self._rows += 1
        if self._rows == 2 and self._shim._fault.code is not None:
            self._shim.meet("database reads", "the next row")
        return super().__next__()


class _Libc:
    """The C library, but for the call that waits for the disk."""

    def __init__(self, shim: Shim) -> None:
        import ctypes

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._shim = shim

    def syncfs(self, fd: int) -> int:
        self._shim.meet("syncfs", "")
        return 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._libc, name)


_SYSTEM = (sys.prefix, sys.base_prefix, "/usr/", "/etc/", os.devnull, "/dev/fd")


def _is_of_the_system(path: object) -> bool:
    return isinstance(path, str | bytes) and os.fsdecode(path).startswith(_SYSTEM)


def _put(module: ModuleType, name: str, function: Callable[..., Any]) -> None:
    if hasattr(module, name):
        setattr(module, name, function)


def _append(path: str, data: bytes) -> None:
    fd = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _write(fd, data)
    _close(fd)


# -- the nursery


class Ran(NamedTuple):
    """What came of a run."""

    code: int
    """Negative: killed by that signal."""
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout, after what the commands before it said."""
        document: dict[str, Any] = json.loads(self.out[self.out.index("{") :])
        return document


class Nursery:
    """A process that has everything loaded and bears one for each run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.shim", "nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "LC_ALL": "C.UTF-8"},
        )

    def run(self, folder: Path, *commands: Sequence[str], fault: Fault | None = None) -> Ran:
        """Run commands, one after the other in one process, which starts in `folder`.

        All that it has started is over too when this returns. The code is that of the last command
        that was run: one that fails is the last.
        """
        request = {
            "folder": str(folder),
            "commands": [list(command) for command in commands],
            "fault": dataclasses.asdict(fault or Fault()),
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return Ran(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def far_command(fault: Fault) -> str:
    """Return the `--remote-command` of a far end with a fault."""
    told = json.dumps(dataclasses.asdict(fault))
    python = [sys.executable, "-P", "-m", "tests.shim", "far", told]
    return shlex.join(["env", f"PYTHONPATH={PYTHONPATH}", *python])


def _nurse() -> None:
    for module in ("cli", "run", "render", "config", "status"):
        __import__(f"p2psync.{module}")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out:
            ends = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                for fd, standard in ((nothing, 0), (out.fileno(), 1), (ends[1], 2)):
                    os.dup2(fd, standard)
                for fd in (*ends, nothing, out.fileno(), answers.fileno()):
                    os.close(fd)
                _run(request["folder"], request["commands"], Fault(**request["fault"]))
            os.close(ends[1])
            err = _read_until_all_ended(ends[0], pid)
            os.close(ends[0])
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            said = [os.fsdecode(data) for data in (out.read(), err)]
        answers.write(json.dumps([code, *said]).encode() + b"\n")


def _read_until_all_ended(source: int, pid: int) -> bytes:
    """Read what a run and all that it has started say, until the last of them has ended."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while True:
            if not selector.select(HANGS):
                os.killpg(pid, signal.SIGKILL)
                return said + b"\nTraceback: it hangs"
            data = os.read(source, 65536)
            if not data:
                return said
            said += data


def _run(folder: str, commands: Iterable[list[str]], fault: Fault) -> NoReturn:
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    Shim(fault).install()
    if fault.roomy:
        plenty = os.statvfs_result((4096, 4096, *[1 << 40] * 6, 0, 255))
        for name in ("statvfs", "fstatvfs"):
            _put(os, name, lambda path: plenty)
    if fault.record:
        from tests.powercut import Recorder

        Recorder(folder).install()
    code = 0
    for command in commands:
        code = _command(command)
        if code not in (0, 1):
            break
    os._exit(code)


def _command(arguments: list[str]) -> int:
    from p2psync import __main__ as entry

    entry._exit = cast(Any, sys.exit)  # the next command runs in this process too
    sys.argv = ["p2psync", *arguments]
    folder = os.getcwd()
    try:
        entry.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
        os.chdir(folder)


def _be_far(told: str, arguments: list[str]) -> NoReturn:
    shim = Shim(Fault(**json.loads(told)))
    shim.become_far()
    shim.install()
    os._exit(_command(arguments))


def _main(arguments: list[str]) -> None:
    match arguments:
        case ["nursery"]:
            _nurse()
        case ["far", told, *command]:
            _be_far(told, command)
        case _:
            raise SystemExit("not to be run by hand")


if __name__ == "__main__":
    _main(sys.argv[1:])
