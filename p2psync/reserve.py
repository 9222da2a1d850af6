"""The reserve: room on the disk that a replica keeps for its manifest, for when others have filled it. Owns
`reserve`.

SQLite makes two files before it answers its first question. Where they find no room nothing could be done any
more, not even what makes room. A run that finds the disk full has the room of the reserve instead, and makes
it again when it ends.
"""

from __future__ import annotations

import contextlib
import os

from p2psync.disk import allocate, free_on, lstat, sync_file_system

SIZE = 1 << 20
"""What the runs of some thousand paths write to the manifest, in bytes."""
LEAST = SIZE // 8
"""With less no run begins, in bytes: what SQLite shares with other processes is a file in memory, and where a
page of it finds no room, the process dies."""
PLENTY = 16 << 20
"""Only where so much is free a reserve is made that was not there before, in bytes."""


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def has_room(sidecar: int) -> bool:
    """Is there room to open a manifest on the disk of the directory open as `sidecar`?"""
    if free_on(sidecar) >= LEAST:
        return True
    trial = f"trial-{os.getpid()}"
    try:  # root may write more than that tells, and others less
        fd = os.open(trial, _NEW_FILE, 0o600, dir_fd=sidecar)
        try:
            os.unlink(trial, dir_fd=sidecar)
            allocate(fd, LEAST)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


class Reserve:
    """The reserve of one replica; only who has its lock may use it."""

    def __init__(self, sidecar: int) -> None:
        """Use the file `reserve` of the sidecar directory open as `sidecar`."""
        self._sidecar = sidecar
        self.lent = 0
        """Bytes that are free only while this run lasts."""

    def lend(self) -> bool:
        """Give the room of the reserve to this run, if it needs that; is there enough for the manifest?"""
        if free_on(self._sidecar) >= SIZE:
            return True
        self.lent = self._size()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("reserve", dir_fd=self._sidecar)
        return has_room(self._sidecar)

    def take_back(self) -> None:
        """Make the reserve again, now that nothing more is written; a smaller one, if some of it is gone."""
        with contextlib.suppress(OSError):  # then there is none
            if self._size():
                return
            if self.lent:  # what this run removed can be used again only then, on ext4
                sync_file_system(self._sidecar)
            size = SIZE if self.lent or free_on(self._sidecar) >= PLENTY else 0
            while size >= LEAST and not self._make(size):
                size //= 2

    def _size(self) -> int:
        """Return how many bytes the disk keeps; 0 of one that was not made whole, or copied as a hole."""
        try:
            st = lstat(b"reserve", self._sidecar)
        except FileNotFoundError:
            return 0
        return min(st.st_size, st.st_blocks * 512)

    def _make(self, size: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("reserve", dir_fd=self._sidecar)
        fd = os.open("reserve", _NEW_FILE, 0o600, dir_fd=self._sidecar)
        try:
            allocate(fd, size)
        except OSError:
            os.unlink("reserve", dir_fd=self._sidecar)
            return False
        finally:
            os.close(fd)
        return True
