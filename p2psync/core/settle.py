"""Settle: when what happened in a tree is over, so that it can be looked at. Owns these times, no clock.

A file that was closed after writing, or renamed into place, is finished; a few milliseconds more make one
version of what an editor does when it saves (write, rename, change the permissions). What is still being
written to is left until nothing has happened to it for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

FINISHED_SECONDS = 0.005
"""After the last sign that something is finished."""
QUIET_SECONDS = 0.05
"""Without a sign that it is finished."""
LONGEST = 10
"""So many times the quiet is waited for at most, whatever goes on."""

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0


class Settled(NamedTuple):
    """What can be looked at."""

    folders: dict[bytes, bool]
    """Directories in which something happened, and whether all below them is to be looked at."""
    busy: set[bytes]
    """Paths, there or elsewhere, that are still being written to."""


@dataclass
class _Folder:
    first: float
    last: float
    deep: bool = False
    writing: dict[bytes, float] = field(default_factory=dict)
    """Paths that were written to and not closed since, and when last."""


class Settling:
    """What happened in a tree and was not looked at yet. Times are seconds on any clock."""

    def __init__(self, quiet: float = QUIET_SECONDS) -> None:
        """Wait for `quiet` seconds without an event where nothing tells that a file is finished."""
        self._quiet = quiet
        self._folders: dict[bytes, _Folder] = {}

    def finished(self, folder: bytes, path: bytes, now: float, deep: bool = False) -> None:
        """Something in `folder` is as it will be: a file was closed, renamed or removed, say."""
        known = self._happened(folder, now)
        known.deep |= deep
        known.writing.pop(path, None)

    def written(self, folder: bytes, path: bytes, now: float) -> None:
        """A file was written to; more may follow."""
        self._happened(folder, now).writing[path] = now

    def due(self) -> float | None:
        """Return when the next folder can be looked at; None: nothing happened."""
        return min(map(self._due, self._folders.values()), default=None)

    def take(self, now: float) -> Settled:
        """Return, and forget, what can be looked at by now."""
        settled = Settled({}, set())
        for path, folder in list(self._folders.items()):
            busy = {name: last for name, last in folder.writing.items() if now < last + self._quiet}
            settled.busy.update(busy)
            if self._due(folder) <= now:
                del self._folders[path]
                settled.folders[path] = folder.deep
                for name, last in busy.items():
                    self.written(path, name, last)
        return settled

    def _happened(self, folder: bytes, now: float) -> _Folder:
        known = self._folders.setdefault(folder, _Folder(now, now))
        known.last = max(known.last, now)
        return known

    def _due(self, folder: _Folder) -> float:
        rest = self._quiet if folder.writing else min(FINISHED_SECONDS, self._quiet)
        return min(folder.last + rest, folder.first + LONGEST * self._quiet)


def retry_after(failures: int, chance: float) -> float:
    """Return after how many seconds to try again what has failed so often in a row.

    Twice as long each time, up to five minutes; half of it by chance, so that many who wait for one host do
    not come back at once ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015: equal jitter).

    Args:
        failures: at least 1.
        chance: from 0 to 1.
    """
    longest = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_RETRY_SECONDS)
    return longest * (1 + chance) / 2
