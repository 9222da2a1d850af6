"""Folders that go away, or move, with all that is in them. Owns that one rename, and its guards (I4, I7).

Each is looked at before, and again when it is there. Where one cannot go as a whole, what is in it goes one
by one, which is the applier's business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2psync.core.model import Kind, Problem, Record, Row, Transition
from p2psync.core.order import Move, moved_folders, whole_folders
from p2psync.core.paths import join, split
from p2psync.disk import Root, kind_of, lstat, rename_between, rename_new, stat_of, write_in
from p2psync.history import History

_BATCH = 1000
"""Rows read at once."""

RowsOf = Callable[[Sequence[bytes]], Sequence[Row | None]]


def rows_of_all(paths: Sequence[bytes], rows_of: RowsOf) -> Iterator[Row | None]:
    """Yield what `rows_of` tells of paths, however many."""
    for start in range(0, len(paths), _BATCH):
        yield from rows_of(paths[start : start + _BATCH])


class Folders:
    """What goes, or moves, with its folder in one run."""

    def __init__(
        self,
        root: Root,
        history: History,
        rows_of: RowsOf,
        ordered: Sequence[Transition],
        moves: Mapping[bytes, bytes],
    ) -> None:
        """Find out which folders those are; nothing is touched yet.

        Args:
            root: the directory.
            history: takes what is deleted.
            rows_of: tells what the manifest has for paths.
            ordered: the transitions of the run, in their order.
            moves: files that are moved, from where, by where to; see `core.order.moves`.
        """
        self._root = root
        self._history = history
        self._rows_of = rows_of
        self._going = _going(ordered, moves)
        self._moving = moved_folders(ordered, moves)
        self._gone: set[bytes] = set()
        """What was moved away with its folder."""
        self._came: dict[bytes, Row] = {}
        """And as what it is at its new place."""
        self.paths = self._going.keys() | {
            step.path for together in self._moving.values() for move in together for step in move
        }
        """All that is in such folders, before and after."""

    def carry_out(self, transition: Transition) -> Record | Problem | None:
        """Have the folder that a path is in go or move as a whole; return what became of the path.

        The first path in a folder does it for all; None if it could not be done.
        """
        path, expected, wanted = transition.path, transition.expected, transition.wanted
        if path in self._moving:
            self._move(self._moving[path])
        if path in self._came:
            return Record(path, self._came[path], expected)
        folder = self._going.get(path)
        if path in self._gone or (folder and self._delete(folder)):
            return Record(path, Row(wanted), expected)
        return Problem(path, STUCK) if folder and folder.stuck else None

    def _delete(self, folder: _Folder) -> bool:
        """Move a folder to the history as a whole; False if there is something in it that must stay.

        It is looked at before, and again when it is there. RACE: what changes in between brings all of it
        back; who dies in between leaves that in the history. What a process that works in the folder makes in
        it afterwards, goes with it.
        """
        if folder.is_deleted is None:
            try:
                folder.is_deleted = self._put_folder_away(folder)
            except OSError:  # one by one they may go, or the trouble shows
                folder.is_deleted = False
        return folder.is_deleted

    def _put_folder_away(self, folder: _Folder) -> bool:
        rows = self._as_expected(folder.steps)
        directory, name = self._root.parent(folder.top)
        if rows is None or not _is_whole(name, directory, folder.top, rows):
            return False
        shelf, kept = self._history.shelf(folder.top)
        if kept != name:  # what is in it would not be found by its path
            return False
        write_in(directory, lambda: rename_new(name, directory, kept, shelf))
        whole = False
        try:
            with contextlib.suppress(OSError):
                whole = _is_whole(kept, shelf, folder.top, rows)
        finally:  # also for who is interrupted
            if not whole:
                try:
                    write_in(directory, lambda: rename_new(kept, shelf, name, directory))
                except OSError:
                    folder.stuck = True
        return whole

    def _move(self, together: Sequence[Move]) -> None:
        """Move a folder as a whole; what is in it is moved one by one where that cannot be.

        It is looked at before, and again when it is there; RACE: see `_delete`.
        """
        gone, made = zip(*together, strict=True)
        rows = self._as_expected(gone)
        there = rows_of_all([step.path for step in made], self._rows_of)
        if rows is None or any(
            (row and row.entry) != step.expected for step, row in zip(made, there, strict=True)
        ):
            return
        old, new, whole = gone[0].path, made[0].path, False
        with contextlib.suppress(OSError):
            target = os.dup(self._root.parent(new)[0])
            try:
                (source, name), renamed = self._root.parent(old), split(new)[1]
                if _is_whole(name, source, old, rows):
                    rename_between(name, source, renamed, target)
                    try:
                        whole = _is_whole(renamed, target, old, rows)
                    finally:  # also for who is interrupted
                        if not whole:
                            rename_between(renamed, target, name, source)
            finally:
                os.close(target)
        if whole:
            self._gone.update(rows)
            self._came.update(
                (step.path, row._replace(entry=step.wanted))
                for step, row in zip(made, rows.values(), strict=True)
            )

    def _as_expected(self, steps: Sequence[Transition]) -> dict[bytes, Row] | None:
        """Return the rows of what is to go, None if a file among it has to be looked at first."""
        rows: dict[bytes, Row] = {}
        for step, row in zip(steps, rows_of_all([step.path for step in steps], self._rows_of), strict=True):
            if row is None or row.entry != step.expected or row.racy:
                return None
            rows[step.path] = row
        return rows


@dataclass
class _Folder:
    """A folder that goes away with all that is in it."""

    top: bytes
    steps: list[Transition]
    is_deleted: bool | None = None
    """None: not tried yet."""
    stuck: bool = False
    """It is in the history, changed, and something else is in its place."""


STUCK = "changed as it was deleted, and something new is in its place: what was there is in .p2psync/history"


def _going(ordered: Sequence[Transition], moves: Mapping[bytes, bytes]) -> dict[bytes, _Folder]:
    """Return which folder goes away as a whole, by each path in it."""
    away = set(moves.values())
    return {
        step.path: folder
        for top, steps in whole_folders(ordered).items()
        if away.isdisjoint(step.path for step in steps)
        for folder in (_Folder(top, steps),)
        for step in steps
    }


def _is_whole(name: bytes, directory: int, path: bytes, expected: Mapping[bytes, Row]) -> bool:
    """Is in a folder just what should be, `path` as it is called in the tree?"""
    rows = dict(expected)
    top = lstat(name, directory)
    device = os.fstat(directory).st_dev
    if top.st_mode & 0o777 != rows.pop(path).entry.mode or top.st_dev != device:
        return False
    here = Root(os.dup(directory))
    try:
        folders = [b""]
        for folder in folders:
            with os.scandir(here.directory(join(name, folder) if folder else name)) as found:
                for entry in found:
                    below = join(folder, os.fsencode(entry.name))
                    row = rows.pop(join(path, below), None)
                    if row is None or not _is_same(entry, row, device):
                        return False
                    if row.entry.kind is Kind.DIRECTORY:
                        folders.append(below)
                    elif row.entry.kind is Kind.SYMLINK:
                        inside = here.directory(join(name, folder) if folder else name)
                        if os.readlink(os.fsencode(entry.name), dir_fd=inside) != row.entry.target:
                            return False
        return not rows
    finally:
        here.close()


def _is_same(found: os.DirEntry[str], row: Row, device: int) -> bool:
    st = found.stat(follow_symlinks=False)
    if kind_of(st.st_mode) is not row.entry.kind or st.st_dev != device:
        return False
    if row.entry.kind is Kind.DIRECTORY:
        return st.st_mode & 0o777 == row.entry.mode
    return row.entry.kind is Kind.SYMLINK or row.stat == stat_of(st)
