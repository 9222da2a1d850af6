"""The reserve: room on the disk that a replica keeps for its manifest, for when others have filled it. Owns
`reserve/`.

SQLite makes two files before it answers its first question. Where they find no room nothing could be done any
more, not even what makes room. A run that finds the disk full, of bytes or of files, has the room of the
reserve instead, and makes it again when it ends. The folder stays: that it is not full tells that one had it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from p2psync.disk import OPEN_DIRECTORY, allocate, exists, files_on, free_on, lstat, sync_file_system

SIZE = 1 << 20
"""What the runs of some thousand paths write to the manifest, in bytes."""
PARTS = 16
"""Files that it is made of: as many can be made in their place, in the sidecar and in the history."""
LEAST = SIZE // 8
"""With less no run begins, in bytes: what SQLite shares with other processes is a file in memory, and where a
page of it finds no room, the process dies."""
PLENTY = 16 << 20
"""Only where so much is free a reserve is made that was not there before, in bytes."""

_PART = SIZE // PARTS
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE = 2
"""Files that SQLite makes."""


def has_room(sidecar: int) -> bool:
    """Is there room to open a manifest on the disk of the directory open as `sidecar`?"""
    if free_on(sidecar) >= LEAST and files_on(sidecar) >= _MADE:
        return True
    with contextlib.ExitStack() as opened:
        try:  # root may write more than that tells, and others less
            for size in (LEAST, 0):
                fd = os.open(b"trial", _FLAGS, 0o600, dir_fd=sidecar)
                opened.callback(os.close, fd)
                os.unlink(b"trial", dir_fd=sidecar)
                if size:
                    allocate(fd, size)
        except OSError:
            return False
    return True


class Reserve:
    """The reserve of one replica; only who has its lock may use it."""

    def __init__(self, sidecar: int) -> None:
        """Use the folder `reserve` of the sidecar directory open as `sidecar`."""
        self._sidecar = sidecar
        self.lent = 0
        """Bytes that are free only while this run lasts."""

    def lend(self) -> bool:
        """Give the room of the reserve to this run, if it needs that; is there enough for the manifest?"""
        kept = self._kept()
        if kept is None and free_on(self._sidecar) >= PLENTY and files_on(self._sidecar) >= 4 * PARTS:
            # What comes may fill the disk.
            with contextlib.suppress(OSError):
                self._make()
        elif kept is not None:
            self.lent = SIZE - kept  # of a run that died, or could not make it whole
            if free_on(self._sidecar) < SIZE or files_on(self._sidecar) < PARTS:
                self._drop()
                self.lent = SIZE
        return has_room(self._sidecar)

    def take_back(self) -> None:
        """Make the reserve again, now that nothing more is written; a smaller one, if some of it is gone."""
        with contextlib.suppress(OSError):  # then there is none
            kept = self._kept()
            if kept is None and free_on(self._sidecar) < PLENTY:
                return
            if kept is not None and kept < SIZE:  # what was removed can be used again only then, on ext4
                sync_file_system(self._sidecar)
            if kept != SIZE:
                self._make()

    def _kept(self) -> int | None:
        """Return how many bytes the disk keeps; None: it was never told to. A part that is a hole is none."""
        if not exists(b"reserve", self._sidecar):
            return None
        with self._opened() as folder:
            stats = [lstat(os.fsencode(name), folder) for name in os.listdir(folder)]
        return sum(min(st.st_size, _PART) for st in stats if st.st_blocks)

    def _drop(self) -> None:
        with self._opened() as folder:
            for name in os.listdir(folder):
                os.unlink(name, dir_fd=folder)

    def _make(self) -> None:
        """Make what is lacking; raises OSError when the disk is full."""
        with contextlib.suppress(FileExistsError):
            os.mkdir("reserve", 0o700, dir_fd=self._sidecar)
        with self._opened() as folder:
            for number in range(PARTS):
                fd = os.open(str(number), _FLAGS, 0o600, dir_fd=folder)
                try:
                    allocate(fd, _PART)
                except OSError:
                    os.unlink(str(number), dir_fd=folder)
                    raise
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            folder = os.open("reserve", OPEN_DIRECTORY, dir_fd=self._sidecar)
        except NotADirectoryError:  # as p2psync once had it
            os.unlink("reserve", dir_fd=self._sidecar)
            os.mkdir("reserve", 0o700, dir_fd=self._sidecar)
            folder = os.open("reserve", OPEN_DIRECTORY, dir_fd=self._sidecar)
        try:
            yield folder
        finally:
            os.close(folder)
