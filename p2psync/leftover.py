"""Left over: what broken runs left of large files, so that a transfer goes on where it was. Owns `partial/`.

Named by the digest of the whole, or, while no run wants it, by that of its path.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable

from p2psync.core.chunking import WORTH_BYTES
from p2psync.core.model import Digest
from p2psync.core.replica import Content, place_of
from p2psync.disk import Root, lstat, open_file, rename_new, size_below, sweep

_FOLDER = b"partial"
_BY_PATH = b".path"
_CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
KEEP_SECONDS = 14 * 86400
"""For how long something is kept after it was last wanted."""


class LeftOver:
    """What is left in one sidecar."""

    def __init__(self, sidecar: int) -> None:
        """Use the folder `partial` of the sidecar directory open as `sidecar`."""
        self._root = Root(os.dup(sidecar))
        self._is_closed = False
        self._came: dict[tuple[int, int, int], Digest] = {}
        """What was put by as it came, by inode, size and time."""

    def close(self) -> None:
        """Close all descriptors."""
        self._root.close()

    def size(self) -> int:
        """Return how many bytes are left."""
        return size_below(self._root, _FOLDER)

    def give_way(self) -> None:
        """Drop all, and take in nothing more until `tidy`: the room is needed."""
        self._is_closed = True
        sweep(self._root, _FOLDER, lambda path, name, directory: False)

    def opened(self, digest: Digest) -> int | None:
        """Open what is left of contents; None: nothing."""
        try:
            return open_file(_of(digest), self._root.directory(_FOLDER))
        except OSError:
            return None

    def keep(self, digest: Digest, name: bytes, directory: int) -> None:
        """Take in from the stage a part of contents, unless it is small or less than there is."""
        self._keep(_of(digest), name, directory)

    def put_by(self, path: bytes, name: bytes, directory: int) -> None:
        """Take in from the stage what no run wants now, unless it is small or less than there is."""
        self._keep(_at(place_of(path)), name, directory)

    def write(self, place: Digest, fill: Callable[[int], Digest | None]) -> Content | None:
        """Put by what comes for a place before its digest is known; return what it was.

        Args:
            place: see `place_of`.
            fill: writes it to an open file, and returns the digest, or None if it is not wanted.

        Raises:
            OSError: it cannot be written.
        """
        with contextlib.suppress(FileExistsError):
            os.mkdir(_FOLDER, 0o700, dir_fd=self._root.fd)
        parts, name = self._root.directory(_FOLDER), _at(place)
        fd = os.open(name, _CREATE, 0o600, dir_fd=parts)
        digest = None
        try:
            digest = fill(fd)
            st = os.fstat(fd)
        finally:
            os.close(fd)
            if digest is None:
                os.unlink(name, dir_fd=parts)
        if digest is None:
            return None
        self._came[_known_by(st)] = digest
        return Content(digest, st.st_size)

    def digest_of(self, name: bytes, directory: int) -> Digest | None:
        """Return the digest of a file that was put by as it came, and that nobody has written to since."""
        return self._came.get(_known_by(lstat(name, directory))) if self._came else None

    def forget_digests(self) -> None:
        """Forget what `digest_of` returns: what is wanted of it is in its place."""
        self._came = {}

    def _keep(self, kept: bytes, name: bytes, directory: int) -> None:
        with contextlib.suppress(OSError):
            st = lstat(name, directory)
            if self._is_closed or not stat.S_ISREG(st.st_mode) or st.st_size < WORTH_BYTES:
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(_FOLDER, 0o700, dir_fd=self._root.fd)
            parts = self._root.directory(_FOLDER)
            with contextlib.suppress(FileNotFoundError):
                if lstat(kept, parts).st_size >= st.st_size:
                    return
            os.rename(name, kept, src_dir_fd=directory, dst_dir_fd=parts)

    def bring_back(self, paths: Iterable[bytes], place: Callable[[bytes], tuple[int, bytes]]) -> None:
        """Put what was put by back into the stage.

        Args:
            paths: those that are wanted.
            place: returns directory and name of a path in the stage.
        """
        try:
            parts = self._root.directory(_FOLDER)
            names = set(map(os.fsencode, os.listdir(parts)))
        except OSError:
            return
        for path in paths if names else ():
            if (kept := _at(place_of(path))) in names:
                with contextlib.suppress(OSError):
                    directory, name = place(path)
                    rename_new(kept, parts, name, directory)

    def tidy(self, come: Iterable[Digest] = (), until: float = 0) -> None:
        """Drop what has come, what is old, and, the oldest first, what takes more than is free.

        Args:
            come: of what has come.
            until: when ages end, in seconds since 1970; 0: nothing is old.
        """
        self._is_closed = False
        try:
            parts = self._root.directory(_FOLDER)
            left = [(lstat(name, parts), name) for name in map(os.fsencode, os.listdir(parts))]
        except OSError:
            return
        if not left:
            return
        arrived = set(map(_of, come))
        disk = os.fstatvfs(parts)
        free, taken = disk.f_bavail * disk.f_frsize, sum(st.st_size for st, _ in left)
        for st, name in sorted(left, key=lambda one: one[0].st_ctime):
            if name in arrived or st.st_ctime < until - KEEP_SECONDS or taken > free:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=parts)
                taken, free = taken - st.st_size, free + st.st_size


def _of(digest: Digest) -> bytes:
    return digest.hex().encode()


def _at(place: Digest) -> bytes:
    return _of(place) + _BY_PATH


def _known_by(st: os.stat_result) -> tuple[int, int, int]:
    return st.st_ino, st.st_size, st.st_mtime_ns
