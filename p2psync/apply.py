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
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from p2psync.core.detect import is_racy
from p2psync.core.model import Entry, Kind, Problem, Record, Row, Transition, needs_content
from p2psync.core.order import in_order
from p2psync.core.paths import split
from p2psync.disk import (
    Root,
    change_mode,
    exchange,
    hash_file,
    kind_of,
    lstat,
    make_directory,
    rename_new,
    stat_of,
)
from p2psync.store import Store

_T = TypeVar("_T")


class Refused(Exception):
    """A transition that must not be carried out; the message is its Problem."""


class Applier:
    """Carries out the transitions of one run."""

    def __init__(self, root: Root, store: Store, row_of: Callable[[bytes], Row | None]) -> None:
        self._root = root
        self._store = store
        self._row_of = row_of
        self._failed: set[bytes] = set()
        self._made: list[tuple[bytes, Entry]] = []

    def run(self, transitions: Iterable[Transition]) -> Iterator[Record | Problem]:
        """Carry out `transitions`; yield an outcome for each, in the order in which they were done."""
        ordered = in_order(transitions)
        self._store.expect(t.wanted for t in ordered if needs_content(t))
        self._root.forget()  # what the scan held open may have been moved away
        for transition in ordered:
            outcome = self._attempt(transition)
            if isinstance(outcome, Problem):
                self._failed.add(transition.path)
            yield outcome
        self._finish_directories()

    def _attempt(self, transition: Transition) -> Record | Problem:
        path = transition.path
        if not self._failed.isdisjoint(transition.after):
            return Problem(path, "left alone: its conflict copy could not be made")
        try:
            return Record(path, self._swap(transition), transition.expected)
        except Refused as refused:
            return Problem(path, str(refused))
        except OSError as error:
            return Problem(path, _explain(error))

    def _swap(self, transition: Transition) -> Row:
        path, expected, wanted = transition.path, transition.expected, transition.wanted
        row = self._row_of(path)
        if (row.entry if row else None) != expected:
            raise Refused("changed since the two sides were compared")
        if row is None or not row.entry.alive:
            return self._create(path, wanted) if wanted.alive else Row(wanted)
        directory, name = self._parent(path)
        _check_unchanged(name, directory, row)
        if wanted.kind is row.entry.kind and wanted.same_bytes(row.entry):
            return self._amend(name, directory, row, wanted)
        if not wanted.alive:
            return self._delete(path, row, wanted)
        return self._replace(path, row, wanted)

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        folder, name = split(path)
        return self._root.directory(folder), name

    # -- what can happen to a path

    def _create(self, path: bytes, wanted: Entry) -> Row:
        directory, name = self._parent(path)
        if wanted.kind is Kind.DIRECTORY:
            try:
                _write_in(directory, lambda: make_directory(name, wanted.mode, directory))
            except FileExistsError:
                if not stat.S_ISDIR(lstat(name, directory).st_mode):
                    raise
            self._dress(path, name, directory, wanted)
            return Row(wanted)
        staged = self._take(wanted)
        try:
            _write_in(directory, lambda: rename_new(staged, self._store.fd, name, directory))
        except OSError as error:
            self._store.discard(staged)
            if not (isinstance(error, FileExistsError) and _is_wanted(name, directory, wanted)):
                raise
            times = (wanted.mtime_ns, wanted.mtime_ns)
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
        return _row(wanted, name, directory)

    def _dress(self, path: bytes, name: bytes, directory: int, wanted: Entry) -> None:
        """Give a new directory its permissions; its time follows when it is filled."""
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
        directory, name = self._parent(path)
        if row.entry.kind is Kind.DIRECTORY:
            with contextlib.suppress(_NotEmpty):
                _write_in(directory, lambda: _remove_directory(name, directory))
            # What is left in it is ignored or no entry, and stays; what is new is found by the next scan.
            return Row(wanted)
        shelf, kept = self._store.shelf(path)
        _write_in(directory, lambda: rename_new(name, directory, kept, shelf))
        if not _is_expected(kept, shelf, row):
            _write_in(directory, lambda: rename_new(kept, shelf, name, directory))
            raise Refused("was changed while it was to be deleted")
        return Row(wanted)

    def _replace(self, path: bytes, row: Row, wanted: Entry) -> Row:
        """Swap the new for the old in one step: the old is in the history from that moment on (I3)."""
        directory, name = self._parent(path)
        shelf, kept = self._store.shelf(path)
        rename_new(self._take(wanted), self._store.fd, kept, shelf)
        new = lstat(kept, shelf).st_ino
        protected = row.entry.kind is Kind.DIRECTORY and not row.entry.mode & 0o200
        if protected:  # its `..` is about to change
            change_mode(name, directory, row.entry.mode | 0o200)
        try:
            if not _write_in(directory, lambda: exchange(kept, shelf, name, directory)):
                self._replace_in_steps(path, row, kept, shelf)
            elif not _put_away(kept, shelf, row):
                _write_in(directory, lambda: exchange(kept, shelf, name, directory))
                raise Refused(_IN_USE if row.entry.kind is Kind.DIRECTORY else _EDITED)
        except (OSError, Refused):
            _remove_unused(kept, shelf, new)
            if protected:
                with contextlib.suppress(OSError):
                    change_mode(name, directory, row.entry.mode)
            raise
        if wanted.kind is Kind.DIRECTORY:
            self._dress(path, name, directory, wanted)
        return _row(wanted, name, directory)

    def _replace_in_steps(self, path: bytes, row: Row, new: bytes, shelf: int) -> None:
        """Replace where the file system cannot exchange two names.

        RACE: for a moment nothing is at the path. Who dies there leaves a deletion, which the new version
        on the other side outlives.
        """
        directory, name = self._parent(path)
        _, kept = self._store.shelf(path)
        _write_in(directory, lambda: rename_new(name, directory, kept, shelf))
        if not _put_away(kept, shelf, row):
            _write_in(directory, lambda: rename_new(kept, shelf, name, directory))
            raise Refused(_IN_USE if row.entry.kind is Kind.DIRECTORY else _EDITED)
        _write_in(directory, lambda: rename_new(new, shelf, name, directory))

    def _take(self, wanted: Entry) -> bytes:
        try:
            return self._store.take(wanted)
        except FileNotFoundError:
            raise Refused("its contents changed while they were sent; the next sync will take them") from None

    def _finish_directories(self) -> None:
        """Give new directories their times, now that they are filled; it is no harm if one has gone again."""
        for path, wanted in reversed(self._made):
            with contextlib.suppress(OSError):
                os.utime(self._root.directory(path), ns=(wanted.mtime_ns, wanted.mtime_ns))


_EDITED = "was changed while it was to be replaced"
_IN_USE = "cannot be replaced: the folder holds files that are ignored or new"


class _NotEmpty(Exception):
    """A directory is not empty."""


def _check_unchanged(name: bytes, directory: int, row: Row) -> None:
    """Is at the path what the manifest says (I4)?

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
        same = row.stat == stat_of(st)
        if same and row.racy:
            same = hash_file(name, directory)[0] == entry.digest
    if not same:
        raise Refused("was changed meanwhile; the next sync will look at it")


def _is_wanted(name: bytes, directory: int, wanted: Entry) -> bool:
    """Is already there what was to be made? So it is after a run that died before it could commit."""
    st = lstat(name, directory)
    if kind_of(st.st_mode) is not wanted.kind:
        return False
    if wanted.kind is Kind.SYMLINK:
        return os.readlink(name, dir_fd=directory) == wanted.target
    return st.st_mode & 0o777 == wanted.mode and hash_file(name, directory)[0] == wanted.digest


def _remove_unused(name: bytes, shelf: int, inode: int) -> None:
    """Take out of the history what was to be swapped in and was not: inode tells it from what must stay."""
    with contextlib.suppress(OSError):
        st = lstat(name, shelf)
        if st.st_ino == inode:
            (os.rmdir if stat.S_ISDIR(st.st_mode) else os.unlink)(name, dir_fd=shelf)


def _is_expected(name: bytes, directory: int, row: Row) -> bool:
    """Is what came out of the tree what was there when it was checked? (A rename changes the ctime.)"""
    st = lstat(name, directory)
    if row.entry.kind is Kind.SYMLINK:
        return stat.S_ISLNK(st.st_mode) and os.readlink(name, dir_fd=directory) == row.entry.target
    return row.stat is not None and stat_of(st)._replace(ctime_ns=row.stat.ctime_ns) == row.stat


def _put_away(name: bytes, directory: int, row: Row) -> bool:
    """Keep what came out of the tree, or remove it if it is an empty directory; False if it must go back."""
    if row.entry.kind is not Kind.DIRECTORY:
        return _is_expected(name, directory, row)
    try:
        _remove_directory(name, directory)
    except _NotEmpty:
        return False
    return True


def _remove_directory(name: bytes, directory: int) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _NotEmpty from None
        raise


def _row(wanted: Entry, name: bytes, directory: int) -> Row:
    """Return the row for what was just put at a path."""
    if wanted.kind is not Kind.FILE:
        return Row(wanted)
    st = lstat(name, directory)
    # RACE: who writes to the file before this stat changes its size or time: then it is looked at again.
    touched = st.st_size != wanted.size or st.st_mtime_ns != wanted.mtime_ns
    return Row(wanted, stat_of(st), touched or is_racy(st.st_mtime_ns, time.time_ns()))


def _write_in(directory: int, action: Callable[[], _T]) -> _T:
    """Do something in a directory, also if it is write-protected: its permissions are synced, not obeyed.

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


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.EEXIST:
            return "something is there that was not when the two sides were compared"
        case errno.ENOTDIR | errno.ELOOP:
            return "a folder on the way to it is no folder"
        case _:
            return f"failed: {error.strerror}"
