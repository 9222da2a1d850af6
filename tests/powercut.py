"""What a power cut may leave of a run, by a model of the disk that is as bad as file systems are.

Owned here: the recorder, which notes what a run does to both replicas; the model, which can tell what
may be on disk at any moment of it. Not owned: what must be true then.

What is modelled. Nothing of what was done since the last `syncfs` began has to be there. Names change in
the order in which they were changed, as far as they depend on each other: what happened to a name needs
what had happened to it before and the folder that it is in, and a folder goes after all that was in it. All
else may be there or not, as with the journals of ext4, XFS, btrfs and APFS, or worse. A name may be there
without any of the bytes, the time or the permissions of its file: each write may be missing, and is a hole
then. The two replicas are on disks of their own, and either or both may lose what they had not yet on disk.

What is not modelled: file systems that tear a rename or a write of one call (none of these does the first),
and SQLite, whose commits are taken to be on disk when they return, as it promises with `synchronous = FULL`;
nothing that it was about to commit is. Files get new inodes, to which the manifest is made to agree.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import itertools
import json
import os
import random
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Call = Callable[..., Any]

_open, _write, _stat, _fstat, _readlink, _close = os.open, os.write, os.stat, os.fstat, os.readlink, os.close

# -- the recorder


class Recorder:
    """Writes down what this process does to the replicas `near` and `far` in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = os.fsencode(folder)
        self._trace = os.path.join(self._folder, b"trace")

    def install(self) -> None:
        """Record from now on. What is watched for other reasons must be watched on top."""
        import p2psync.disk

        os.open = self._opening(os.open)
        os.write = self._writing(os.write)
        os.copy_file_range = self._copying(os.copy_file_range)
        os.ftruncate = self._cutting(os.ftruncate)
        os.mkdir = self._making(os.mkdir)
        os.symlink = self._linking(os.symlink)
        for name in ("unlink", "rmdir"):
            setattr(os, name, self._removing(getattr(os, name)))
        for name in ("utime", "chmod", "fchmod"):
            setattr(os, name, self._dressing(getattr(os, name)))
        p2psync.disk._rename = self._renaming(p2psync.disk._rename)
        libc = _Libc(p2psync.disk._libc(), self)
        setattr(p2psync.disk, "_libc", lambda: libc)  # noqa: B010
        connect = sqlite3.connect
        setattr(  # noqa: B010
            sqlite3, "connect", lambda *args, **kw: connect(*args, **{**kw, "factory": self._database(kw)})
        )

    def note(self, what: str, path: bytes, **more: object) -> None:
        """Write down a step, if it is about one of the replicas."""
        side, _, inner = path.removeprefix(self._folder + b"/").partition(b"/")
        if side in (b"near", b"far"):
            step = {"what": what, "side": side.decode(), "path": inner.decode("latin-1"), **more}
            fd = _open(self._trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            _write(fd, json.dumps(step).encode() + b"\n")
            _close(fd)

    def _made(self, path: bytes, target: bytes = b"") -> None:
        st = _stat(path, follow_symlinks=False)
        self.note(
            "make",
            path,
            mode=st.st_mode,
            mtime=st.st_mtime_ns,
            inode=st.st_ino,
            target=target.decode("latin-1"),
        )

    def _opening(self, function: Call) -> Call:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # noqa: ANN401
            full = _full(path, dir_fd)
            new = flags & os.O_CREAT and not os.path.lexists(full)
            fd: int = function(path, flags, mode, dir_fd=dir_fd)
            if new:
                self._made(full)
            return fd

        return call

    def _writing(self, function: Call) -> Call:
        def call(fd: int, data: Any) -> int:  # noqa: ANN401
            length: int = function(fd, data)
            if stat.S_ISREG(_fstat(fd).st_mode):
                start = os.lseek(fd, 0, os.SEEK_CUR) - length
                told = base64.b64encode(bytes(data)[:length]).decode()
                self.note("write", _path_of(fd), start=start, data=told)
            return length

        return call

    def _copying(self, function: Call) -> Call:
        def call(source: int, target: int, count: int, start: int, at: int) -> int:
            length: int = function(source, target, count, start, at)
            data = base64.b64encode(os.pread(source, length, start)).decode()
            self.note("write", _path_of(target), start=at, data=data)
            return length

        return call

    def _cutting(self, function: Call) -> Call:
        def call(fd: int, length: int) -> None:
            before = os.fstat(fd).st_size
            function(fd, length)
            assert length >= before, "nothing is cut off"
            if length > before:
                data = base64.b64encode(bytes(length - before)).decode()
                self.note("write", _path_of(fd), start=before, data=data)

        return call

    def _making(self, function: Call) -> Call:
        def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:  # noqa: ANN401
            function(path, mode, dir_fd=dir_fd)
            self._made(_full(path, dir_fd))

        return call

    def _linking(self, function: Call) -> Call:
        def call(target: Any, path: Any, *, dir_fd: int | None = None) -> None:  # noqa: ANN401
            function(target, path, dir_fd=dir_fd)
            self._made(_full(path, dir_fd), os.fsencode(target))

        return call

    def _removing(self, function: Call) -> Call:
        def call(path: Any, *, dir_fd: int | None = None) -> None:  # noqa: ANN401
            full = _full(path, dir_fd)
            function(path, dir_fd=dir_fd)
            self.note("remove", full)

        return call

    def _dressing(self, function: Call) -> Call:
        def call(path: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            function(path, *args, **kwargs)
            full = _path_of(path) if isinstance(path, int) else _full(path, kwargs.get("dir_fd"))
            if full.startswith(b"/proc/self/fd/"):
                full = _readlink(full)
            st = _stat(full, follow_symlinks=False)
            self.note("dress", full, mode=st.st_mode, mtime=st.st_mtime_ns)

        return call

    def _renaming(self, function: Call) -> Call:
        def call(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
            one, other = _full(source, source_fd), _full(target, target_fd)
            function(source, source_fd, target, target_fd, flags)
            inner = other.removeprefix(self._folder + b"/").partition(b"/")[2].decode("latin-1")
            self.note("exchange" if flags == 2 else "rename", one, other=inner)

        return call

    def _database(self, given: Mapping[str, Any]) -> type[sqlite3.Connection]:
        recorder = self

        class Recorded(given.get("factory", sqlite3.Connection)):  # type: ignore[misc]
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:  # noqa: ANN401
                cursor: sqlite3.Cursor = super().execute(sql, *args)
                if sql == "COMMIT":
                    (_, _, file), *_ = super().execute("PRAGMA database_list")
                    image = base64.b64encode(self.serialize()).decode()
                    recorder.note("commit", os.fsencode(file), image=image)
                return cursor

        return Recorded


class _Libc:
    def __init__(self, libc: Any, recorder: Recorder) -> None:  # noqa: ANN401
        self._libc = libc
        self._recorder = recorder
        self._numbers = itertools.count()

    def syncfs(self, fd: int) -> int:
        number, path = next(self._numbers), os.path.join(_path_of(fd), b"")
        self._recorder.note("sync begins", path, number=number)
        result: int = self._libc.syncfs(fd)
        self._recorder.note("sync ends", path, number=number)
        return result

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._libc, name)


def _path_of(fd: int) -> bytes:
    return os.fsencode(_readlink(f"/proc/self/fd/{fd}"))


def _full(path: Any, dir_fd: int | None) -> bytes:  # noqa: ANN401
    folder = _path_of(dir_fd) if dir_fd is not None else os.fsencode(os.getcwd())
    return os.path.join(folder, os.fsencode(path))


# -- the model


@dataclass
class File:
    """A file, directory or symlink, whatever names it has."""

    kind: int
    """The type bits of its mode."""
    mode: int
    mtime_ns: int
    data: bytes = b""
    target: bytes = b""
    inode: int = 0


Name = tuple[int, bytes]
"""A name: the number of a directory, and what it is called there."""


@dataclass
class Change:
    """A step, as a disk takes it."""

    names: dict[Name, int | None] = field(default_factory=dict)
    """What is at a name from now on."""
    born: dict[int, File] = field(default_factory=dict)
    emptied: int = -1
    """The directory that must be empty by then."""
    file: int = 0
    """The one that is written to."""
    write: tuple[int, bytes] | None = None
    dress: tuple[int, int] | None = None


_ROOT = 0
_APART = (b"manifest.db", b"manifest.db-wal", b"manifest.db-shm")


class Disk:
    """What is on a disk, or would be if all had got there."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.names: dict[Name, int] = {}

    @classmethod
    def of(cls, root: bytes) -> Disk:
        """Return what is in a folder."""
        disk = cls()
        disk._take(_ROOT, root)
        return disk

    def _take(self, number: int, path: bytes) -> None:
        st = os.lstat(path)
        file = File(stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_mtime_ns, inode=st.st_ino)
        self.files[number] = file
        if stat.S_ISLNK(st.st_mode):
            file.target = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            file.data = Path(os.fsdecode(path)).read_bytes()
        else:
            for name in sorted(set(os.listdir(path)) - set(_APART)):
                child = len(self.files)
                self.names[number, name] = child
                self._take(child, os.path.join(path, name))

    def find(self, path: bytes) -> Name:
        """Return the name that a path stands for."""
        *folders, name = path.split(b"/")
        folder = _ROOT
        for step in folders:
            folder = self.names[folder, step]
        return folder, name

    def take(self, change: Change) -> None:
        """Carry out a change."""
        self.files.update(copy.deepcopy(change.born))
        for name, file in change.names.items():
            if file is None:
                self.names.pop(name, None)
            else:
                self.names[name] = file
        if change.file in self.files:
            there = self.files[change.file]
            if change.write:
                start, data = change.write
                there.data = there.data[:start].ljust(start, b"\0") + data + there.data[start + len(data) :]
            if change.dress:
                there.mode, there.mtime_ns = change.dress

    def put(self, root: bytes) -> dict[bytes, int]:
        """Make a folder of it; return the paths of the files with the inodes that they had."""
        inodes: dict[bytes, int] = {}
        self._put(_ROOT, root, inodes)
        return {path.removeprefix(root + b"/"): inode for path, inode in inodes.items()}

    def _put(self, number: int, path: bytes, inodes: dict[bytes, int]) -> None:
        file = self.files[number]
        if stat.S_ISLNK(file.kind):
            os.symlink(file.target, path)
        elif stat.S_ISREG(file.kind):
            Path(os.fsdecode(path)).write_bytes(file.data)
            inodes[path] = file.inode
        else:
            os.mkdir(path)
            for (folder, name), child in list(self.names.items()):
                if folder == number:
                    self._put(child, os.path.join(path, name), inodes)
        if not stat.S_ISLNK(file.kind):
            os.chmod(path, file.mode)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns), follow_symlinks=False)


class Replay:
    """One side of a recorded run: what happened, and what of it was on disk for sure."""

    def __init__(self, root: Path) -> None:
        self._safe = Disk.of(bytes(root))
        self._now = copy.deepcopy(self._safe)
        self._numbers = itertools.count(len(self._now.files))
        self._pending: list[Change] = []
        self._syncing: dict[int, int] = {}
        with contextlib.closing(sqlite3.connect(root / ".p2psync" / "manifest.db")) as database:
            self._image = database.serialize()

    def step(self, step: Mapping[str, Any]) -> None:
        """Take in the next step of the trace."""
        match step["what"]:
            case "commit":
                self._image = base64.b64decode(step["image"])
            case "sync begins":
                self._syncing[step["number"]] = len(self._pending)
            case "sync ends":
                self._settle(self._syncing.pop(step["number"]))
            case _:
                change = self._change(step)
                self._now.take(change)
                self._pending.append(change)

    def _settle(self, count: int) -> None:
        for change in self._pending[:count]:
            self._safe.take(change)
        del self._pending[:count]
        self._syncing = {number: at - count for number, at in self._syncing.items()}

    def _change(self, step: Mapping[str, Any]) -> Change:
        name = self._now.find(step["path"].encode("latin-1"))
        here = self._now.names.get(name)
        match step["what"]:
            case "make":
                number = next(self._numbers)
                target = step["target"].encode("latin-1")
                kind, mode = stat.S_IFMT(step["mode"]), stat.S_IMODE(step["mode"])
                made = File(kind, mode, step["mtime"], target=target, inode=step["inode"])
                return Change({name: number}, {number: made})
            case "remove":
                return Change({name: None}, emptied=here or -1)
            case "rename" | "exchange":
                other = self._now.find(step["other"].encode("latin-1"))
                there = self._now.names[other] if step["what"] == "exchange" else None
                return Change({name: there, other: here})
        assert here is not None
        if step["what"] == "write":
            return Change(file=here, write=(step["start"], base64.b64decode(step["data"])))
        return Change(file=here, dress=(stat.S_IMODE(step["mode"]), step["mtime"]))

    def cut(self, keep: Callable[[Change], bool]) -> Disk:
        """Return what is on disk if the power goes now: of what may be, what `keep` says."""
        disk = copy.deepcopy(self._safe)
        names, folders, disturbed = set[Name](), set[int](), set[int]()  # of what is not there
        for change in self._pending:
            ready = (
                names.isdisjoint(change.names)
                and folders.isdisjoint(folder for folder, _ in change.names)
                and change.emptied not in disturbed
            )
            if ready and keep(change):
                disk.take(change)
            else:
                names |= change.names.keys()
                folders |= change.born.keys()
                disturbed |= {folder for folder, _ in change.names}
        return disk

    def put(self, disk: Disk, root: Path) -> None:
        """Make a replica of what is on a disk, with the manifest of the last commit."""
        inodes = disk.put(bytes(root))
        file = root / ".p2psync" / "manifest.db"
        file.write_bytes(self._image)
        with contextlib.closing(sqlite3.connect(file)) as database, database:
            for path, inode in inodes.items():
                st = os.lstat(os.path.join(bytes(root), path))
                folder, _, name = path.rpartition(b"/")
                database.execute(
                    "UPDATE entry SET stat_inode = ?, stat_ctime_ns = ? WHERE name = ? AND directory ="
                    " (SELECT id FROM directory WHERE path = ?) AND stat_inode = ?",
                    (st.st_ino, st.st_ctime_ns, name, folder, inode),
                )


def everything(change: Change) -> bool:
    return True


def nothing(change: Change) -> bool:
    return False


def names_only(change: Change) -> bool:
    return bool(change.names)


def at_random(seed: int) -> Callable[[Change], bool]:
    dice = random.Random(seed)
    return lambda change: dice.random() < 0.7


def steps(trace: Path) -> Iterator[dict[str, Any]]:
    """Yield what was recorded."""
    for line in trace.read_text().splitlines():
        yield json.loads(line)
