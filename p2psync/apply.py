"""Apply: carries out transitions on disk, each a compare-and-swap. Owns the guards of I3, I4 and I7.

Before a path is touched it is compared with what the manifest says was there; what is replaced is looked
at once more when it has come out, and put back if it is not what was expected. Nothing is overwritten or
deleted: it is moved to the history. One path's trouble is a Problem and stops nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from p2psync.core.detect import is_racy
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Entry, Kind, Problem, Record, Row, Stat, Transition, makes
from p2psync.core.order import in_order
from p2psync.core.paths import ancestors, split
from p2psync.disk import (
    NO_FILES_LEFT,
    Root,
    change_mode,
    exchange,
    files_on,
    hash_file,
    kind_of,
    lstat,
    rename_between,
    rename_new,
    stat_of,
    sync_file_system,
    write_in,
)
from p2psync.folders import STUCK, Folders, RowsOf, rows_of_all
from p2psync.history import History
from p2psync.stage import Stage


class Refused(Exception):
    """A transition that must not be carried out; the message is its Problem."""


class Applier:
    """Carries out the transitions of one run."""

    def __init__(
        self,
        root: Root,
        stage: Stage,
        history: History,
        rows_of: RowsOf,
        foreseen: Mapping[bytes, Row] = MappingProxyType({}),
        moves: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        """Work on the tree at `root`.

        Args:
            root: the directory.
            stage: has what is to be put in place.
            history: takes what is replaced or deleted.
            rows_of: tells what the manifest has for paths; asked for many at once, before they are touched.
            foreseen: the rows that files will have if they arrive with their folder.
            moves: files that are not staged but moved, from where, by where to; see `core.order.moves`.
        """
        self._root = root
        self._stage = stage
        self._history = history
        self._rows_of = rows_of
        self._foreseen = foreseen
        self._moves = moves
        self._filled = {split(path)[0] for path in moves}
        self._sources: dict[bytes, Row | None] = {}
        """Of what is to be moved."""
        self._moved: dict[bytes, bool] = {}
        """What was, and what could not be."""
        self._failed: set[bytes] = set()
        self._failed_in: set[bytes] = set()
        """Folders in which something failed."""
        self._unmade: set[bytes] = set()
        """Folders that could not be made: if there is one, it is somebody else's."""
        self._made: list[tuple[bytes, Entry]] = []
        self._arrived: dict[bytes, int] = {}
        """Directories that were put in place whole, and when (ns)."""

    def run(self, transitions: Iterable[Transition]) -> Iterator[Record | Problem]:
        """Carry out `transitions`; yield an outcome for each, in the order in which they were done."""
        self._root.forget()  # what the scan held open may have been moved away
        ordered = in_order(transitions)
        copies = {path for transition in ordered for path in transition.after}
        folders = Folders(self._root, self._history, self._rows_of, ordered, self._moves)
        together = folders.paths
        rows = rows_of_all([step.path for step in ordered if step.path not in together], self._rows_of)
        away = [old for new, old in self._moves.items() if new not in together]
        self._sources = dict(zip(away, self._rows_of(away), strict=True)) if away else {}
        unsynced = False
        for transition in ordered:
            path = transition.path
            row = next(rows) if path not in together else None
            if transition.after and unsynced:  # I3 holds for power cuts too
                sync_file_system(self._root.fd)
                unsynced = False
            unsynced |= path in copies
            if path in self._foreseen and split(path)[0] in self._arrived:
                yield Record(path, self._foreseen[path])
                continue
            outcome: Record | Problem | None = self._without_folder(path)
            if outcome is None and path in together:
                outcome = folders.carry_out(transition)
            if outcome is None:
                if path in together:
                    (row,) = self._rows_of([path])
                outcome = self._attempt(transition, row)
            if isinstance(outcome, Problem):
                self._failed.add(path)
                self._failed_in.update(ancestors(path))
                if transition.wanted.kind is Kind.DIRECTORY and makes(transition):
                    self._unmade.add(path)
            yield outcome
        self._finish_directories()

    def _without_folder(self, path: bytes) -> Problem | None:
        """Leave a path alone if its folder could not be made: no scan would look for it in another one."""
        if not self._unmade or self._unmade.isdisjoint(ancestors(path)):
            return None
        if path in self._moves:
            self._moved[self._moves[path]] = False
        return Problem(path, "left alone: the folder that it belongs in could not be made")

    def _attempt(self, transition: Transition, row: Row | None) -> Record | Problem:
        path = transition.path
        if transition.after and not self._failed.isdisjoint(transition.after):
            return Problem(path, "left alone: what has to be done before, like a conflict copy, could not be")
        try:
            return Record(path, self._swap(transition, row), transition.expected)
        except Refused as refused:
            return Problem(path, str(refused))
        except OSError as error:
            return Problem(path, _explain(error, self._root.fd))

    def _swap(self, transition: Transition, row: Row | None) -> Row:
        path, expected, wanted = transition.path, transition.expected, transition.wanted
        if (row.entry if row else None) != expected:
            raise Refused("changed since the two sides were compared")
        if path in self._moves:
            return self._move(self._moves[path], path, wanted)
        if path in self._moved:
            if not self._moved[path]:
                raise Refused("left alone: it could not be moved")
            return Row(wanted)
        if row is None or not row.entry.alive:
            return self._create(path, wanted) if wanted.alive else Row(wanted)
        directory, name = self._root.parent(path)
        amends = wanted.kind is row.entry.kind and wanted.same_bytes(row.entry)
        _check_unchanged(name, directory, row, wanted if amends else row.entry)
        if amends:
            return self._amend(name, directory, row, wanted)
        if row.entry.kind is Kind.DIRECTORY and path in self._failed_in:
            # Be it empty now: no scan would find what the manifest still has in it.
            raise Refused("holds what could not be deleted")
        if not wanted.alive:
            return self._delete(path, row, wanted)
        return self._replace(path, row, wanted)

    # -- what can happen to a path

    def _create(self, path: bytes, wanted: Entry) -> Row:
        folder, name = split(path)
        if self._arrived and folder in self._arrived:
            return self._account(path, wanted, self._arrived[folder])
        source, staged = self._staged(path)
        directory = self._root.directory(folder)
        now = time.time_ns()
        try:
            if wanted.kind is Kind.DIRECTORY:
                _move_directory(staged, source, name, directory, wanted.mode)
                self._arrive(path, wanted, now)
            else:
                write_in(directory, lambda: rename_new(staged, source, name, directory))
        except FileExistsError:
            if wanted.kind is Kind.DIRECTORY:
                self._adopt_directory(path, wanted)
            elif _is_named(name, directory) and _is_wanted(name, directory, wanted):
                times = (wanted.mtime_ns, wanted.mtime_ns)
                os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
                # RACE: see `_amend`.
                return _row(wanted, name, directory)._replace(racy=wanted.kind is Kind.FILE)
            else:
                raise
        return _row(wanted, name, directory)

    def _move(self, old: bytes, new: bytes, wanted: Entry) -> Row:
        """Move a file within the tree; it is as it was wherever that fails."""
        if old not in self._sources:  # it was to move with its folder
            (self._sources[old],) = self._rows_of([old])
        row = self._sources[old]
        self._moved[old] = False
        if row is None or not row.entry.same_bytes(wanted):
            raise Refused(_NOT_STAGED)
        target = os.dup(self._root.parent(new)[0])
        try:
            source, name = self._root.parent(old)
            made = split(new)[1]
            _check_unchanged(name, source, row, row.entry)
            if wanted.size <= MAX_TEXT and hash_file(name, source)[0] != wanted.digest:
                raise Refused(_NOT_STAGED)  # the disk has lost it
            rename_between(name, source, made, target)
            if not _is_expected(made, target, row):
                rename_between(made, target, name, source)
                raise Refused("was changed while it was to be moved")
            self._moved[old] = True
            if row.entry.mode != wanted.mode:
                change_mode(made, target, wanted.mode)
            touched = row.entry.mtime_ns != wanted.mtime_ns
            if touched:
                os.utime(made, ns=(wanted.mtime_ns, wanted.mtime_ns), dir_fd=target, follow_symlinks=False)
            # RACE: see `_amend`.
            moved = _row(wanted, made, target)
            return moved._replace(racy=moved.racy or touched)
        finally:
            os.close(target)

    def _account(self, path: bytes, wanted: Entry, arrived_ns: int) -> Row:
        """Return the row of what has come with the directory that it is in."""
        try:
            found = self._stage.check(path)
        except FileNotFoundError:
            raise Refused(_NOT_STAGED) from None
        if found is not None:
            return vouched(wanted, found, arrived_ns)
        if wanted.kind is Kind.DIRECTORY:
            self._arrive(path, wanted, arrived_ns)
        return Row(wanted)

    def _arrive(self, path: bytes, wanted: Entry, now_ns: int) -> None:
        """Take note of a directory that is in place, with all that is in it but what is moved there."""
        self._arrived[path] = now_ns
        if path in self._filled:
            self._made.append((path, wanted))

    def _adopt_directory(self, path: bytes, wanted: Entry) -> None:
        """Take the directory that is there already: it holds ignored files, or a run died that made it.

        Raises:
            FileExistsError: it is something else.
        """
        directory, name = self._root.parent(path)
        if not stat.S_ISDIR(lstat(name, directory).st_mode) or not _is_named(name, directory):
            raise FileExistsError(errno.EEXIST, "exists")
        source, staged = self._stage.place(path)
        change_mode(staged, source, 0o700)  # what is in it will be taken out
        change_mode(name, directory, wanted.mode)
        self._made.append((path, wanted))

    def _amend(self, name: bytes, directory: int, row: Row, wanted: Entry) -> Row:
        """Change permissions and times where they differ; the contents are the wanted ones already."""
        times = (wanted.mtime_ns, wanted.mtime_ns)
        if wanted.kind is Kind.SYMLINK:
            if row.entry.mtime_ns != wanted.mtime_ns:
                os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
            return Row(wanted)
        touched = wanted.kind is Kind.FILE and row.entry.mtime_ns != wanted.mtime_ns
        if row.entry.mode == wanted.mode and not touched:
            return row._replace(entry=wanted)
        if row.entry.mode != wanted.mode:
            change_mode(name, directory, wanted.mode)
        if touched:
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
        # RACE: an edit before this would be hidden by the time that was set: look again.
        return _row(wanted, name, directory)._replace(racy=wanted.kind is Kind.FILE)

    def _delete(self, path: bytes, row: Row, wanted: Entry) -> Row:
        directory, name = self._root.parent(path)
        if row.entry.kind is Kind.DIRECTORY:
            # What is left in it is ignored or no entry, and stays; what is new is found by the next scan.
            with contextlib.suppress(_NotEmpty):
                write_in(directory, lambda: _remove_directory(name, directory))
            return Row(wanted)
        shelf, kept = self._history.shelf(path)
        write_in(directory, lambda: rename_new(name, directory, kept, shelf))
        if not _is_expected(kept, shelf, row):
            _bring_back(kept, shelf, name, directory)
            raise Refused("was changed while it was to be deleted")
        return Row(wanted)

    def _replace(self, path: bytes, row: Row, wanted: Entry) -> Row:
        """Swap the new for the old in one step: the old is in the history from that moment on (I3)."""
        source, staged = self._staged(path)
        directory, name = self._root.parent(path)
        shelf, kept = self._history.shelf(path)
        now = time.time_ns()
        if wanted.kind is Kind.DIRECTORY:  # its `..` is about to change
            change_mode(staged, source, wanted.mode | 0o200)
        rename_new(staged, source, kept, shelf)
        new = lstat(kept, shelf).st_ino
        protected = row.entry.kind is Kind.DIRECTORY and not row.entry.mode & 0o200
        if protected:  # likewise
            change_mode(name, directory, row.entry.mode | 0o200)
        try:
            if not write_in(directory, lambda: exchange(kept, shelf, name, directory)):
                self._replace_in_steps(path, row, kept, shelf)
            elif not _put_away(kept, shelf, row):
                write_in(directory, lambda: _put_back(kept, shelf, name, directory, new))
                raise Refused(_IN_USE if row.entry.kind is Kind.DIRECTORY else _EDITED)
        except (OSError, Refused):
            with contextlib.suppress(OSError):
                if lstat(kept, shelf).st_ino == new:  # else it is what must stay
                    rename_new(kept, shelf, staged, source)
            if protected:
                with contextlib.suppress(OSError):
                    change_mode(name, directory, row.entry.mode)
            raise
        if wanted.kind is Kind.DIRECTORY:
            change_mode(name, directory, wanted.mode)
            self._arrive(path, wanted, now)
        return _row(wanted, name, directory)

    def _replace_in_steps(self, path: bytes, row: Row, new: bytes, shelf: int) -> None:
        """Replace where the file system cannot exchange two names.

        RACE: for a moment nothing is at the path. Who dies there leaves a deletion, which the new version
        on the other side outlives.
        """
        directory, name = self._root.parent(path)
        _, kept = self._history.shelf(path)
        write_in(directory, lambda: rename_new(name, directory, kept, shelf))
        if not _put_away(kept, shelf, row):
            _bring_back(kept, shelf, name, directory)
            raise Refused(_IN_USE if row.entry.kind is Kind.DIRECTORY else _EDITED)
        try:
            write_in(directory, lambda: rename_new(new, shelf, name, directory))
        except OSError:
            if row.entry.kind is not Kind.DIRECTORY:
                _bring_back(kept, shelf, name, directory)
            raise

    def _staged(self, path: bytes) -> tuple[int, bytes]:
        try:
            return self._stage.place(path)
        except FileNotFoundError:
            raise Refused(_NOT_STAGED) from None

    def _finish_directories(self) -> None:
        """Give the directories their times, now that they are filled; it is no harm if one has gone again."""
        for path, wanted in reversed(self._made):
            with contextlib.suppress(OSError):
                os.utime(self._root.directory(path), ns=(wanted.mtime_ns, wanted.mtime_ns))


_NOT_STAGED = "its contents changed while they were sent; the next sync will take them"
_EDITED = "was changed while it was to be replaced"
_IN_USE = "cannot be replaced: the folder holds files that are ignored or new"


class _NotEmpty(Exception):
    """A directory is not empty."""


def _check_unchanged(name: bytes, directory: int, row: Row, wanted: Entry) -> None:
    """Is at the path what the manifest says (I4)? A file may have the permissions and time that are wanted.

    Raises:
        Refused: it is something else.
    """
    st = lstat(name, directory)
    entry = row.entry
    same = kind_of(st.st_mode) is entry.kind
    if same and entry.kind is Kind.SYMLINK:
        same = os.readlink(name, dir_fd=directory) == entry.target
    elif same and entry.kind is Kind.DIRECTORY:
        same = st.st_mode & 0o777 == entry.mode
    elif same and entry.kind is Kind.FILE:
        same = stat_of(st) == row.stat
        if row.racy or not same:  # another link to it went, maybe, or was amended
            same = (
                _is_like(st, row, wanted.mtime_ns)
                and st.st_mode & 0o777 in (entry.mode, wanted.mode)
                and hash_file(name, directory)[0] == entry.digest
            )
    if not same:
        raise Refused("was changed meanwhile; the next sync will look at it")


def _is_named(name: bytes, directory: int) -> bool:
    """Is that its very name? Some file systems take `Foo` for `foo`."""
    return os.fsdecode(name) in os.listdir(directory)


def _is_wanted(name: bytes, directory: int, wanted: Entry) -> bool:
    """Is already there what was to be made? So it is after a run that died before it could commit."""
    st = lstat(name, directory)
    if kind_of(st.st_mode) is not wanted.kind:
        return False
    if wanted.kind is Kind.SYMLINK:
        return os.readlink(name, dir_fd=directory) == wanted.target
    return st.st_mode & 0o777 == wanted.mode and hash_file(name, directory)[0] == wanted.digest


def _is_expected(name: bytes, directory: int, row: Row) -> bool:
    """Is what came out of the tree what was there when it was checked? (A rename changes the ctime.)"""
    st = lstat(name, directory)
    if row.entry.kind is Kind.SYMLINK:
        return stat.S_ISLNK(st.st_mode) and os.readlink(name, dir_fd=directory) == row.entry.target
    return _is_like(st, row)


def _is_like(st: os.stat_result, row: Row, *times: int) -> bool:
    """Is a file what it was, by all but its ctime, or with one of some mtimes?"""
    found, known = stat_of(st), row.stat
    return (
        known is not None
        and found.mtime_ns in (known.mtime_ns, *times)
        and found._replace(mtime_ns=known.mtime_ns, ctime_ns=known.ctime_ns) == known
    )


def _put_away(name: bytes, directory: int, row: Row) -> bool:
    """Keep what came out of the tree, or remove it if it is an empty directory; False if it must go back."""
    if row.entry.kind is not Kind.DIRECTORY:
        return _is_expected(name, directory, row)
    try:
        _remove_directory(name, directory)
    except _NotEmpty:
        return False
    return True


def _bring_back(kept: bytes, shelf: int, name: bytes, directory: int) -> None:
    """Put back into the tree what was taken out of it.

    Raises:
        Refused: somebody has put something else there.
    """
    try:
        write_in(directory, lambda: rename_new(kept, shelf, name, directory))
    except FileExistsError:
        raise Refused(STUCK) from None


def _put_back(kept: bytes, shelf: int, name: bytes, directory: int, new: int) -> None:
    """Exchange again, until nothing comes out that somebody has just put in."""
    while True:
        inside, new = new, lstat(kept, shelf).st_ino
        exchange(kept, shelf, name, directory)
        if lstat(kept, shelf).st_ino == inside:
            return


def _remove_directory(name: bytes, directory: int) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _NotEmpty from None
        raise


def _move_directory(source: bytes, source_fd: int, target: bytes, target_fd: int, mode: int) -> None:
    """Rename a directory, never over anything.

    RACE: its `..` changes, so only root may move it if it is write-protected. Who else dies before it is
    protected again leaves it as it is then.
    """
    try:
        write_in(target_fd, lambda: rename_new(source, source_fd, target, target_fd))
    except PermissionError:
        if mode & 0o200:
            raise
        change_mode(source, source_fd, mode | 0o200)
        write_in(target_fd, lambda: rename_new(source, source_fd, target, target_fd))
        change_mode(target, target_fd, mode)


def _row(wanted: Entry, name: bytes, directory: int) -> Row:
    """Return the row for what was just put at a path."""
    if wanted.kind is not Kind.FILE:
        return Row(wanted)
    return vouched(wanted, stat_of(lstat(name, directory)), time.time_ns())


def vouched(wanted: Entry, found: Stat, seen_ns: int) -> Row:
    """Return the row of a file that was put at a path, with the stat that it has there.

    Args:
        wanted: what it is.
        found: its stat.
        seen_ns: when that was looked at.
    """
    # RACE: who writes to the file before this stat changes its size or time: then it is looked at again.
    touched = found.size != wanted.size or found.mtime_ns != wanted.mtime_ns
    return Row(wanted, found, touched or is_racy(found.mtime_ns, found.ctime_ns, seen_ns))


def _explain(error: OSError, root: int) -> str:
    match error.errno:
        case errno.ENOSPC if not files_on(root):
            return f"failed: {NO_FILES_LEFT}"
        case errno.EEXIST:
            return "something is there that was not when the two sides were compared"
        case errno.ENOENT:
            return "it, or a folder on the way to it, went meanwhile; the next sync will look at it"
        case errno.ENOTDIR | errno.ELOOP:
            return "a folder on the way to it is no folder"
        case errno.EXDEV:
            return "left alone: it is on another file system than the replica, where nothing is written"
        case _:
            return f"failed: {error.strerror}"
