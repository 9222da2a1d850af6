"""The few system calls that keep a sync inside its root and its files whole. Owns no policy.

Every path is opened component by component from the root's descriptor, never across a symlink (I7):
checking a resolved name first and using it later is how rsync, tar and others were led outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from threading import Thread
from typing import NamedTuple, TypeVar

from xxhash import xxh3_128, xxh3_128_digest

from p2psync.core.model import Digest, Kind, Stat
from p2psync.core.paths import join, split

_T = TypeVar("_T")

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: a fifo that took a file's place must not hang us."""

BLOCK = 1024 * 1024
_LIMIT = 1 << 63
"""SQLite's integers end there; in nanoseconds that is the year 2262."""

_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


class Changing(OSError):
    """A file was written to while it was read."""


class Root:
    """A directory, and a cursor that opens directories below it."""

    _KEEP = 32
    """Descriptors kept on the way down, so that trees may be deeper than RLIMIT_NOFILE."""

    def __init__(self, fd: int, make: bool = False) -> None:
        """Take over `fd`, the directory.

        Args:
            make: create directories that are missing (0o700).
        """
        self.fd = fd
        self._make = make
        self._names: list[bytes] = []
        self._path: bytes | None = None
        """Where the cursor is, if that is known."""
        self._fds: list[int] = []

    @classmethod
    def open(cls, path: bytes, make: bool = False) -> Root:
        """Open the directory at `path`; the path itself may hold symlinks, it is the user's."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), make)

    def directory(self, path: bytes) -> int:
        """Return a descriptor of the directory at `path`, good until the next call.

        Raises:
            OSError: NotADirectoryError or ELOOP where a component is no directory.
        """
        if path == self._path and self._fds:
            return self._fds[-1]
        self._path = None  # until it is open: whoever fails here is anywhere
        names = path.split(b"/") if path else []
        same = 0
        for mine, wanted in zip(self._names, names, strict=False):
            if mine != wanted:
                break
            same += 1
        self._forget_from(same)
        while self._fds and self._fds[-1] < 0:
            self._forget_from(len(self._fds) - 1)
        for name in names[len(self._fds) :]:
            self._fds.append(self._open_below(self._fds[-1] if self._fds else self.fd, name))
            self._names.append(name)
            if len(self._fds) > self._KEEP and self._fds[-self._KEEP] >= 0:
                os.close(self._fds[-self._KEEP])
                self._fds[-self._KEEP] = -1
        self._path = path
        return self._fds[-1] if self._fds else self.fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return the directory that `path` is in, as `directory` does, and its name there."""
        folder, name = split(path)
        return self.directory(folder), name

    def forget(self) -> None:
        """Drop what the cursor holds: directories have been replaced."""
        self._forget_from(0)

    def close(self) -> None:
        """Close all descriptors."""
        self._forget_from(0)
        os.close(self.fd)

    def _open_below(self, parent: int, name: bytes) -> int:
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not self._make:
                raise
        os.mkdir(name, 0o700, dir_fd=parent)
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent)

    def _forget_from(self, length: int) -> None:
        while len(self._fds) > length:
            fd = self._fds.pop()
            self._names.pop()
            if fd >= 0:
                os.close(fd)


def size_below(root: Root, top: bytes) -> int:
    """Return how much room the files below a directory take, at most their bytes: they may have holes.

    What cannot be looked at does not count.
    """
    total = 0
    folders = [top]
    for folder in folders:
        with contextlib.suppress(OSError):
            directory = root.directory(folder)
            for name in map(os.fsencode, os.listdir(directory)):
                st = lstat(name, directory)
                if stat.S_ISDIR(st.st_mode):
                    folders.append(join(folder, name))
                else:
                    total += min(st.st_size, st.st_blocks * 512 or st.st_size)  # some tell of no blocks
    root.forget()
    return total


def sweep(root: Root, top: bytes, keep: Callable[[bytes, bytes, int], bool]) -> None:
    """Remove what is below a directory of the sidecar, and the directories that are empty then.

    What cannot be removed, somebody else's for example, stays.

    Args:
        root: where `top` is; permissions below do not matter, they are changed.
        top: the directory, which stays.
        keep: told path (from the root), name and directory of each file; what it wants stays.
    """
    folders = [top]
    device: int | None = None
    for folder in folders:
        with contextlib.suppress(OSError):
            directory = root.directory(folder)
            device = os.fstat(directory).st_dev if device is None else device
            if os.fstat(directory).st_dev != device:
                continue  # another disk is mounted there: what it holds is not ours to remove
            for name in map(os.fsencode, os.listdir(directory)):
                path = join(folder, name)
                if stat.S_ISDIR(lstat(name, directory).st_mode):
                    folders.append(path)
                    with contextlib.suppress(OSError):
                        change_mode(name, directory, 0o700)
                elif not keep(path, name, directory):
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=directory)
    for folder in reversed(folders[1:]):
        above, name = split(folder)
        with contextlib.suppress(OSError):  # it holds what was kept
            os.rmdir(name, dir_fd=root.directory(above))
    root.forget()


def kind_of(mode: int) -> Kind | None:
    """Return what an `st_mode` stands for; None for sockets, fifos and devices."""
    return _KINDS.get(stat.S_IFMT(mode))


def stat_of(st: os.stat_result) -> Stat:
    """Return what vouches for the contents of a file."""
    mtime_ns = st.st_mtime_ns
    if not -_LIMIT <= mtime_ns < _LIMIT:
        mtime_ns = -_LIMIT if mtime_ns < 0 else _LIMIT - 1
    return Stat(st.st_size, mtime_ns, st.st_ctime_ns, st.st_ino & (_LIMIT - 1))


def lstat(name: bytes, dir_fd: int) -> os.stat_result:
    """Stat what is at a name, not what a link there points to."""
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def exists(name: bytes, dir_fd: int) -> bool:
    """Is anything at the name?"""
    try:
        lstat(name, dir_fd)
    except FileNotFoundError:
        return False
    return True


def is_open(name: bytes, dir_fd: int) -> bool:
    """Has this process the file at a name open?

    SQLite makes an absolute path of any: who moved a directory at that moment led it to another one.
    """
    return opened_as(lstat(name, dir_fd)) is not None


def opened_as(wanted: os.stat_result) -> int | None:
    """Return the descriptor by which this process has a file open, None if it has not."""
    for fd in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the one of the listing itself is closed by now
            if os.path.samestat(os.fstat(fd), wanted):
                return fd
    return None


def open_file(name: bytes, dir_fd: int) -> int:
    """Open a regular file for reading.

    Raises:
        OSError: it is not there, not readable, or no regular file.
    """
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file")
    return fd


def blocks_of(fd: int) -> Iterator[bytes]:
    """Yield what is to be read from an open file."""
    while data := os.read(fd, BLOCK):
        yield data


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, however little the system takes at once."""
    while data:
        data = data[os.write(fd, data) :]


HOLE = 64 * 1024
_ZEROS = bytes(HOLE)


def write_sparse(fd: int, data: bytes) -> None:
    """Write all of `data` but long runs of zeros: what is left out is a hole, and reads as zeros.

    A hole at the end of a file is none yet: `os.ftruncate` makes it.
    """
    written = 0
    for at in range(0, len(data), HOLE):
        if data.startswith(_ZEROS, at):
            write_all(fd, data[written:at])
            written = at + HOLE
            os.lseek(fd, HOLE, os.SEEK_CUR)
    write_all(fd, data[written:] if written else data)


class Span(NamedTuple):
    """A part of an open file."""

    fd: int
    offset: int
    size: int
    """Bytes."""


def copy_span(span: Span, fd: int) -> None:
    """Append a part of a file to the file open as `fd`.

    The bytes do not pass through this process where the system can do without, and on file systems that
    share blocks (btrfs, xfs) nothing is copied at all. Holes stay holes. What the source does not hold (any
    more) reads as zeros, or is not there.
    """
    shift = os.lseek(fd, 0, os.SEEK_CUR) - span.offset
    for start, end in _extents(span):
        for one, other in _aligned(start, end, shift):
            _copy_range(span.fd, one, other, fd, one + shift)
    os.lseek(fd, span.offset + span.size + shift, os.SEEK_SET)


def _extents(span: Span) -> Iterator[tuple[int, int]]:
    """Yield beginning and end of the parts of a span that are no holes."""
    at, end = span.offset, span.offset + span.size
    st = os.fstat(span.fd)
    if st.st_blocks * 512 >= st.st_size or not hasattr(os, "SEEK_DATA"):
        yield at, end
        return
    while at < end:
        try:
            start = os.lseek(span.fd, at, os.SEEK_DATA)
        except OSError:  # there is no more
            return
        at = min(end, os.lseek(span.fd, start, os.SEEK_HOLE))
        if start < at:
            yield start, at


def taken_by(fd: int) -> int:
    """Return how many bytes of an open file are in no hole."""
    return sum(end - start for start, end in _extents(Span(fd, 0, os.fstat(fd).st_size)))


def can_share(source: int, folder: int) -> bool:
    """Can a copy of an open file, in a directory, have the same blocks, so that it takes no room?"""
    if sys.platform != "linux":
        return False
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _CLONE_RANGE, struct.pack("qQQQ", source, 0, _CLONED, 0))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


_CLONE_RANGE = 0x4020940D  # FICLONERANGE in <linux/fs.h>
_CLONED = 64 * 1024
"""Of a larger file: a multiple of any size of blocks."""
_SHARED = 4096
"""Only whole blocks of this size can be shared, if they lie alike in both files."""


def _aligned(start: int, end: int, shift: int) -> Iterator[tuple[int, int]]:
    """Split a range such that its middle can be shared; all of it, if it does not lie alike in both files."""
    first, last = -(-start // _SHARED) * _SHARED, end // _SHARED * _SHARED
    cuts = (start, first, last, end) if shift % _SHARED == 0 and first < last else (start, end)
    for one, other in itertools.pairwise(cuts):
        if one < other:
            yield one, other


def _copy_range(source: int, start: int, end: int, target: int, at: int) -> None:
    if sys.platform == "linux":
        try:
            while start < end:
                copied = os.copy_file_range(source, target, min(end - start, _MOST), start, at)
                if not copied:  # the end, or a file system that cannot, and does not say so
                    break
                begin_to_write(target, at, copied)
                start, at = start + copied, at + copied
        except OSError as error:
            if error.errno not in (*_UNSUPPORTED, errno.EXDEV, errno.EPERM):
                raise
    while data := os.pread(source, min(end - start, BLOCK), start):
        os.lseek(target, at, os.SEEK_SET)
        write_all(target, data)
        start, at = start + len(data), at + len(data)


_MOST = 32 << 20
"""Bytes that are copied in one call."""


def begin_to_write(fd: int, offset: int, size: int) -> None:
    """Have the disk begin to write a part of a file, meanwhile: then there is less to wait for in the end."""
    begin = getattr(_libc(), "sync_file_range", None)
    if begin is not None:
        wide = ctypes.c_int64
        begin(fd, wide(offset), wide(size), 2)  # SYNC_FILE_RANGE_WRITE in <linux/fs.h>; it may fail


def free_on(fd: int) -> int:
    """Return how many bytes anyone may still write to the disk of an open file; root may often write more."""
    disk = os.fstatvfs(fd)
    return disk.f_bavail * disk.f_frsize


def files_on(fd: int) -> int:
    """Return how many files anyone may still make on the disk of an open file; many set no limit."""
    disk = os.fstatvfs(fd)
    return disk.f_favail if disk.f_files else sys.maxsize


def no_files_left(folder: bytes) -> bool:
    """Has the disk of a folder all the files that it can hold?"""
    try:
        disk = os.statvfs(folder)
    except OSError:  # it has gone
        return False
    return bool(disk.f_files) and not disk.f_favail


NO_FILES_LEFT = "its disk has no inodes left: it holds as many files as it can, whatever room there is"


def allocate(fd: int, size: int) -> None:
    """Have the disk set aside `size` bytes for an open file that is empty, or holds no more than zeros.

    Raises:
        OSError: it has not so many.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        write_all(fd, bytes(size))


def free_range(fd: int, offset: int, size: int) -> None:
    """Make a part of a file a hole, so that its space is free; where that cannot be done it stays."""
    _fallocate(fd, 3, offset, size)  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def fill_holes(fd: int, size: int) -> bool:
    """Have the disk set aside what it has not yet of the first `size` bytes of a file; False if it is full.

    What others write there meanwhile stays, which `allocate` does not promise; where that cannot be done
    there are holes.
    """
    return _fallocate(fd, 0, 0, size) != errno.ENOSPC


def _fallocate(fd: int, mode: int, offset: int, size: int) -> int:
    """Return the number of the error, 0 if there was none, or the system knows no such call."""
    change = getattr(_libc(), "fallocate", None)
    wide = ctypes.c_int64
    return ctypes.get_errno() if change is not None and change(fd, mode, wide(offset), wide(size)) else 0


def digest_of(fd: int) -> Digest:
    """Return the digest of what is to be read from an open file."""
    state = xxh3_128()
    buffer = memoryview(bytearray(BLOCK))
    with open(fd, "rb", buffering=0, closefd=False) as file:
        while length := file.readinto(buffer):
            state.update(buffer[:length])
    return Digest(state.digest())


def hash_file(name: bytes, dir_fd: int) -> tuple[Digest, os.stat_result]:
    """Return the digest of a regular file and the stat that goes with it.

    The stat is of the open file, from before it was read, and still the same after.

    Raises:
        Changing: it was written to meanwhile.
        OSError: it cannot be read.
    """
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        if before.st_size < BLOCK:
            digest = Digest(xxh3_128_digest(os.read(fd, before.st_size + 1)))
        else:
            digest = digest_of(fd)
        after = os.fstat(fd)
        if after.st_mtime_ns != before.st_mtime_ns or after.st_ctime_ns != before.st_ctime_ns:
            raise Changing(errno.EAGAIN, "is being written to")
        return digest, after
    finally:
        os.close(fd)


def change_mode(name: bytes, dir_fd: int, mode: int) -> None:
    """Change the permissions of what is at a name, readable or not; never of what a link points to."""
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, mode, dir_fd=dir_fd, follow_symlinks=False)
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def rename_new(source: bytes, source_fd: int, target: bytes, target_fd: int) -> None:
    """Rename, never over anything.

    Raises:
        FileExistsError: something is at the target.
    """
    try:
        _rename(source, source_fd, target, target_fd, _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # RACE: without the flag, what appears at the target between these two calls is replaced.
        if exists(target, target_fd):
            raise FileExistsError(errno.EEXIST, "exists") from None
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


def write_in(directory: int, action: Callable[[], _T]) -> _T:
    """Do something in a directory, also if it is write-protected: its permissions are synced, not obeyed.

    RACE: who dies before it is protected again leaves it open to its owner, which the next scan takes for a
    change of the user's.

    Raises:
        OSError: it cannot be done all the same.
    """
    try:
        return action()
    except PermissionError:
        mode = os.fstat(directory).st_mode & 0o777
        if mode & 0o300 == 0o300:
            raise
        os.fchmod(directory, mode | 0o300)
        try:
            return action()
        finally:
            os.fchmod(directory, mode)


def rename_between(name: bytes, source: int, made: bytes, target: int) -> None:
    """Rename from one directory into another, write-protected or not; never over anything."""
    write_in(source, lambda: write_in(target, lambda: rename_new(name, source, made, target)))


def exchange(one: bytes, one_fd: int, other: bytes, other_fd: int) -> bool:
    """Swap two names in one step; False if this file system cannot."""
    try:
        _rename(one, one_fd, other, other_fd, _EXCHANGE)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


FULL_SYNC = sys.platform == "darwin"
"""Does `fsync` leave what it writes in the cache of the disk, unless F_FULLFSYNC is asked for?"""


def sync_file_system(fd: int) -> None:
    """Wait until all that was written to the file system of `fd` is on disk."""
    for name, flags in _SYNCS:
        call = getattr(_libc(), name, None)
        if call is None:
            continue
        if not call(fd, *flags):
            return
        code = ctypes.get_errno()
        if code not in (*_UNSUPPORTED, errno.ENOTTY):
            raise OSError(code, os.strerror(code))
    os.sync()


_SYNCS: tuple[tuple[str, tuple[int, ...]], ...] = (("syncfs", ()), ("fsync_volume_np", (3,)))
"""Of Linux, and of macOS: SYNC_VOLUME_FULLSYNC | SYNC_VOLUME_WAIT in <unistd.h>."""


def begin_sync(fd: int) -> Callable[[], None]:
    """Begin `sync_file_system` meanwhile; return what waits for its end and raises what it raised."""
    errors: list[OSError] = []

    def work() -> None:
        try:
            sync_file_system(fd)
        except OSError as error:
            errors.append(error)

    def wait() -> None:
        thread.join()
        if errors:
            raise errors[0]

    thread = Thread(target=work)
    thread.start()
    return wait


class WriteBehind:
    """Has the disk write what many small files hold while more are written: less to wait for in the end.

    An error shows when the file system is synced by another descriptor: each is told of it once.
    """

    _BYTES = 64 << 20

    def __init__(self, fd: int) -> None:
        """Work on the file system that `fd` is on."""
        self._fd = fd
        self._size = 0
        self._thread: Thread | None = None

    def wrote(self, size: int) -> None:
        """Take note of that many bytes more."""
        self._size += size
        if self._size >= self._BYTES and not (self._thread and self._thread.is_alive()):
            self._size = 0
            self._thread = Thread(target=self._sync, daemon=True)
            self._thread.start()

    def _sync(self) -> None:
        with contextlib.suppress(OSError):
            sync_file_system(self._fd)


_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)

if sys.platform == "darwin":
    _RENAME, _NOREPLACE, _EXCHANGE = "renameatx_np", 0x4, 0x2  # RENAME_EXCL, RENAME_SWAP in <sys/stdio.h>
else:
    _RENAME, _NOREPLACE, _EXCHANGE = "renameat2", 0x1, 0x2  # <linux/fs.h>


def _rename(source: bytes, source_fd: int, target: bytes, target_fd: int, flags: int) -> None:
    rename: Callable[..., int] | None = getattr(_libc(), _RENAME, None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(source_fd, source, target_fd, target, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(source), None, os.fsdecode(target))


def prepare_to_end_with_parent() -> Callable[[], None]:
    """Return what has a forked process killed when the thread that forked it ends, however it ends.

    Where the system cannot do that, it does nothing.
    """
    parent, prctl = os.getpid(), getattr(_libc(), "prctl", None)

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG in <linux/prctl.h>
            if os.getppid() != parent:  # it has gone already
                os._exit(1)

    return end_with_parent


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
