"""The history: what runs replaced or deleted. Owns `history/`.

It is moved there by rename, into a folder of the run, under the path that it had: `history/RUN/PATH`, with
`~1`, `~2` at the end where that name is taken. What is there is found by its path and known by its bytes,
so that it needs no index to be of use: people may look into it, and take things out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from p2psync.core.paths import split
from p2psync.disk import Root, exists, size_below, sweep

_RUN = re.compile(r"\d{8}-\d{6}(-\d+)?", re.ASCII)


class Shelf(NamedTuple):
    """A place in the history."""

    directory: int
    """Good until the next call."""
    name: bytes


class History:
    """The history in one sidecar."""

    def __init__(self, sidecar: int) -> None:
        """Use the sidecar directory open as `sidecar`.

        Raises:
            OSError: what should be the history is no folder.
        """
        self._sidecar = Root(os.dup(sidecar), make=True)
        self._reader = Root(os.dup(sidecar))
        self._run = b""
        with contextlib.suppress(FileNotFoundError):
            self._reader.directory(b"history")

    def close(self) -> None:
        """Close all descriptors."""
        self._sidecar.close()
        self._reader.close()

    def begin_run(self, name: str) -> None:
        """Let what is replaced or deleted from now on go to the folder of the run of that name."""
        self._run = name.encode()

    def shelf(self, path: bytes) -> Shelf:
        """Return a place for what is at `path`, with a name that is free there."""
        folder, name = split(path)
        directory = self._sidecar.directory(b"/".join(filter(None, (b"history", self._run, folder))))
        return Shelf(directory, next(free for free in _names(name) if not exists(free, directory)))

    def places(self, run: str, path: bytes) -> Iterator[Shelf]:
        """Yield all that the history has from a run for a path."""
        folder, name = split(path)
        with contextlib.suppress(OSError):
            directory = self._reader.directory(b"/".join(filter(None, (b"history", run.encode(), folder))))
            for number, kept in enumerate(_names(name)):
                if exists(kept, directory):
                    yield Shelf(directory, kept)
                elif number:
                    return

    def has(self, run: str) -> bool:
        """Is there a folder of a run of that name?"""
        try:
            return exists(run.encode(), self._reader.directory(b"history"))
        except FileNotFoundError:
            return False

    def runs(self) -> list[str]:
        """Return the names of all runs that have a folder, the oldest first."""
        try:
            return sorted(filter(is_run, os.listdir(self._reader.directory(b"history"))))
        except FileNotFoundError:
            return []

    def remove(self, run: str) -> None:
        """Remove all that is kept from a run.

        Raises:
            OSError: some of it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            sweep(self._reader, b"history/" + run.encode(), lambda path, name, directory: False)
            os.rmdir(run, dir_fd=self._reader.directory(b"history"))

    def size(self, run: str) -> int:
        """Return how many bytes are kept from a run."""
        return size_below(self._reader, b"history/" + run.encode())


def begin_run(shelves: History, is_taken: Callable[[str], bool], at: float) -> str:
    """Begin a run under a name that was never used; return the name.

    Args:
        shelves: the history.
        is_taken: tells whether there was a run of a name, whatever it left.
        at: seconds since 1970.
    """
    base = name = name_at(at)
    number = 1
    while is_taken(name) or shelves.has(name):
        number += 1
        name = f"{base}-{number:03d}"
    shelves.begin_run(name)
    return name


def is_run(name: str) -> bool:
    """Can it be the name of a run?"""
    if not _RUN.fullmatch(name):
        return False
    try:
        began(name)
    except ValueError:  # digits, but no date
        return False
    return True


def name_at(at: float) -> str:
    """Return what a run that begins then is called.

    Args:
        at: seconds since 1970.
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%d-%H%M%S")


def began(run: str) -> float:
    """Return when a run began, in seconds since 1970, as its name tells."""
    return datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()


def _names(name: bytes) -> Iterator[bytes]:
    yield name
    number = 1
    while True:
        yield name[:240] + b"~%d" % number
        number += 1
