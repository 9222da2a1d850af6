"""Look: reads files and symlinks that no manifest vouches for. Owns how the work is shared.

Reading and hashing is most of a first scan: where there is much of it, two processes do it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_digest

from p2psync.core.detect import is_racy
from p2psync.core.model import Digest, Entry, Kind, Stat
from p2psync.core.paths import split
from p2psync.disk import Changing, Root, hash_file, lstat, stat_of
from p2psync.workers import share


class Seen(NamedTuple):
    """What is at a path."""

    digest: Digest
    size: int
    mode: int
    mtime_ns: int
    target: bytes
    stat: Stat | None
    """Of a file; None: it is a symlink."""
    racy: bool

    def entry(self) -> Entry:
        """Return what was seen as an entry that has no version yet."""
        kind = Kind.FILE if self.stat else Kind.SYMLINK
        return Entry(
            kind=kind,
            digest=self.digest,
            size=self.size,
            mode=self.mode,
            mtime_ns=self.mtime_ns,
            target=self.target,
        )


def look_at(root: Root, files: Sequence[tuple[bytes, int]]) -> Iterator[tuple[int, list[Seen | str]]]:
    """Look at files and symlinks.

    Args:
        root: where they are.
        files: their paths, and how many bytes there are to be read.

    Yields:
        The index of a file, and what was seen of it and those after it; why it cannot be read, if so.
    """
    for first, found in share(files, _Looker(root, files), lambda: _Looker(root, files)):
        yield first, msgspec.convert(found, list[Seen | str])


class _Looker:
    def __init__(self, root: Root, files: Sequence[tuple[bytes, int]]) -> None:
        self._root = root
        self._files = files

    def do(self, first: int, end: int) -> list[Seen | str]:
        return [self._look(path) for path, _ in self._files[first:end]]

    def finish(self) -> list[Seen | str]:
        return []

    def _look(self, path: bytes) -> Seen | str:
        folder, name = split(path)
        try:
            return _seen(name, self._root.directory(folder))
        except Changing as error:
            return str(error.args[1])
        except OSError as error:
            return f"cannot be read: {error.strerror}"


def _seen(name: bytes, directory: int) -> Seen:
    """Return what is at a name.

    Raises:
        OSError: it cannot be read.
    """
    now_ns = time.time_ns()
    try:
        digest, st = hash_file(name, directory)
    except OSError:
        st = lstat(name, directory)
        if not stat.S_ISLNK(st.st_mode):
            raise
        target = os.readlink(name, dir_fd=directory)
        return Seen(Digest(xxh3_128_digest(target)), 0, 0, stat_of(st).mtime_ns, target, None, False)
    return seen_file(digest, st, now_ns)


def seen_file(digest: Digest, st: os.stat_result, began_ns: int) -> Seen:
    """Return what a file is that was not read before `began_ns`, in nanoseconds since 1970."""
    return seen_as(digest, st.st_mode & 0o777, stat_of(st), began_ns)


def seen_as(digest: Digest, mode: int, found: Stat, began_ns: int) -> Seen:
    """The same, of what was found out elsewhere."""
    racy = is_racy(found.mtime_ns, found.ctime_ns, began_ns)
    return Seen(digest, found.size, mode, found.mtime_ns, b"", found, racy)
