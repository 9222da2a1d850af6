"""Scan: finds out what changed in a tree since the manifest was written. Reads only.

Owns the walk. What a change means is `core.detect`'s business, what is ignored `core.ignore`'s. What
cannot be read, or is ignored, keeps its entry: it is never taken for deleted (I6). Nothing below a
sidecar is ever opened: closing any descriptor of the manifest would drop SQLite's locks on it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec
from msgspec.structs import replace
from xxhash import xxh3_128_digest

from p2psync.core.detect import observe, vanish
from p2psync.core.ignore import Ignore
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Entry, Kind, Problem, Record, Row
from p2psync.core.paths import IGNORE_FILE, MAX_PATH, SIDECAR, ancestors, is_reserved, is_within, join, split
from p2psync.core.replica import Unread
from p2psync.core.vector import Stamp
from p2psync.disk import Root, kind_of, open_file, stat_of
from p2psync.look import Seen, look_at

MAX_RULES = 1024 * 1024
"""Bytes read of an ignore file: git has no limit, a mistake should have one."""


class Known(Protocol):
    """What a scan compares with: the manifest."""

    def rows(self, directory: bytes) -> dict[bytes, Row]:
        """Return the rows of the children of a directory."""

    def row(self, path: bytes) -> Row | None:
        """Return the row of one path."""

    def fingerprint(self, directory: bytes) -> bytes | None:
        """Return the fingerprint of a directory at the last scan."""

    def mounts(self) -> set[bytes]:
        """Return the directories on which something was mounted at the last scan."""


class Doubted:
    """A manifest whose stats vouch for nothing: every file is read again."""

    def __init__(self, known: Known) -> None:
        """Doubt `known`."""
        self._known = known

    def rows(self, directory: bytes) -> dict[bytes, Row]:
        """See `Known.rows`."""
        return {name: _doubted(row) for name, row in self._known.rows(directory).items()}

    def row(self, path: bytes) -> Row | None:
        """See `Known.row`."""
        row = self._known.row(path)
        return row and _doubted(row)

    def fingerprint(self, directory: bytes) -> bytes | None:
        """No directory is as it was."""
        return None

    def mounts(self) -> set[bytes]:
        """See `Known.mounts`."""
        return self._known.mounts()


def _doubted(row: Row) -> Row:
    return row._replace(racy=True) if row.stat else row


@dataclass
class Scan:
    """What a scan found."""

    changes: list[Record] = field(default_factory=list)
    vouched: list[Record] = field(default_factory=list)
    """Unchanged entries with a new stat, or hidden."""
    forgotten: list[bytes] = field(default_factory=list)
    """What went while it was ignored: nobody knows when, so what others have of it comes back."""
    fingerprints: dict[bytes, bytes | None] = field(default_factory=dict)
    """Of the directories in which something moved."""
    problems: list[Problem] = field(default_factory=list)
    special: list[bytes] = field(default_factory=list)
    """Sockets, fifos, devices and reserved names in the directories looked at."""
    ignores: dict[bytes, Ignore] = field(default_factory=dict)
    """The rules in force in each directory."""
    rules: bytes = b""
    """Fingerprint of all rules; empty: there are none."""
    mounts: set[bytes] = field(default_factory=set)
    """Directories on which something is mounted, or should be."""
    away: set[bytes] = field(default_factory=set)
    """Directories whose disk is not mounted, or that another hides: what is in them is not known."""
    unread: list[Unread] = field(default_factory=list)
    """Large files never met before that were left to be read later."""

    @property
    def touches_manifest(self) -> bool:
        """Is there something to be written to it?"""
        return bool(self.changes or self.vouched or self.forgotten or self.fingerprints or self.special)


class _Visit(NamedTuple):
    path: bytes
    ignore: Ignore | None
    """The rules of the parent; None for the root."""
    gone: bool = False
    """It is no directory any more: all that was below it is gone too."""
    device: int | None = None
    """Of the parent."""
    deep: bool = True
    """Look at what is below it too; if not, only at what is new there."""
    hidden: bool = False
    """It, or what it is in, was ignored at the last scan."""


class Part(NamedTuple):
    """What to look at: all else is as at the last scan, and nothing of it is taken for deleted (I6)."""

    folders: Mapping[bytes, bool] | None
    """Directories in which something happened, and whether to look at all below them; None: everywhere."""
    busy: Container[bytes] = ()
    """Files that are being written to: they stay what they were."""
    ignores: Mapping[bytes, Ignore] = MappingProxyType({})
    """The rules in force in each directory, as the last scan found them."""
    watch: Callable[[bytes, int], None] = lambda path, directory: None
    """Is told of each directory, and of a descriptor of it, before what is in it is looked at."""


WHOLE = Part(None)


class _Leaf(NamedTuple):
    """A file or symlink that the manifest does not vouch for."""

    path: bytes
    row: Row | None
    size: int


def scan(
    root: Root,
    known: Known,
    stamp: Stamp,
    exclude: bytes,
    note: Callable[[Scan], None] | None = None,
    part: Part = WHOLE,
    leave_large: bool = False,
    accepted: Container[bytes] = (),
) -> Scan:
    """Walk the tree, or the part of it in which something happened.

    Args:
        root: the replica's directory.
        known: the manifest to compare with.
        stamp: marks the changes.
        exclude: text of the replica's own, unshared ignore file.
        note: is told what was found, when all rows are compared, and as files are read; it may take `changes`
            and `vouched` away. Fingerprints hold only when all is found.
        part: what to look at.
        leave_large: leave large files that are new to be read later.
        accepted: directories that are as they should be, whatever disk was or is mounted on them.
    """
    return _Scanner(root, known, stamp, exclude, note, part, leave_large, accepted).run()


def first_seen(path: bytes, seen: Seen, stamp: Stamp) -> Record:
    """Return what is to be recorded of a file that was left unread, and is read now."""
    return Record(path, Row(observe(None, seen.entry(), stamp), seen.stat, seen.racy))


class _Scanner:
    def __init__(
        self,
        root: Root,
        known: Known,
        stamp: Stamp,
        exclude: bytes,
        note: Callable[[Scan], None] | None,
        part: Part,
        leave_large: bool,
        accepted: Container[bytes],
    ) -> None:
        self._root = root
        self._part = part
        self._leave_large = leave_large
        self._note = note
        self._leaves: list[_Leaf] = []
        self._known = known
        self._stamp = stamp
        self._exclude = exclude
        self._found = Scan()
        self._ghosts: dict[bytes, Record] = {}
        self._accepted = accepted
        self._mounts = {path for path in known.mounts() if path not in accepted}
        root.forget()  # what was open at the last scan may have been moved away
        self._stack = [_Visit(b"", None)] if part.folders is None else self._starts(part.folders)

    def _starts(self, folders: Mapping[bytes, bool]) -> list[_Visit]:
        """Return where to look: the folders, or those above them if they are new or gone."""
        self._found.ignores = dict(self._part.ignores)
        self._found.mounts = set(self._mounts)
        starts: dict[bytes, bool] = {}
        for path, deep in folders.items():
            while path and not self._is_known(path):
                path, deep = split(path)[0], False
            starts[path] = starts.get(path, False) or deep
        visits = []
        for path, deep in sorted(starts.items()):
            above = [b"", *ancestors(path)] if path else []
            if any(starts.get(ancestor) for ancestor in above):
                continue
            if not path:
                visits.append(_Visit(path, None, deep=deep))
                continue
            parent = split(path)[0]
            try:
                device = os.fstat(self._root.directory(parent)).st_dev
            except OSError:  # it has just gone, or cannot be entered: whoever comes from above will see
                return [_Visit(b"", None)]
            visits.append(_Visit(path, self._part.ignores[parent], device=device, deep=deep))
        return visits

    def _is_new(self, path: bytes) -> bool:
        """Has no scan met this directory yet? A sync may have made it, and its row."""
        return path not in self._part.ignores

    def _is_known(self, path: bytes) -> bool:
        """Is it a directory, and was it one at the last scan?"""
        row = self._known.row(path)
        if self._is_new(path) or row is None or row.entry.kind is not Kind.DIRECTORY:
            return False
        try:
            self._root.directory(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return error.errno != errno.ELOOP  # else it is there, and cannot be read
        return True

    def run(self) -> Scan:
        while self._stack:
            visit = self._stack.pop()
            if visit.gone:
                assert visit.ignore is not None
                self._forget_below(visit.path, visit.ignore, visit.hidden)
            else:
                self._visit(visit)
        self._leave_what_is_alone()
        self._look_at_leaves()
        places = [
            path + b"\0" + ignore.fingerprint
            for path, ignore in sorted(self._found.ignores.items())
            if not ignore.empty
        ]
        self._found.rules = xxh3_128_digest(b"\0".join(places)) if places else b""
        return self._found

    def _visit(self, visit: _Visit) -> None:
        path = visit.path
        try:
            directory = self._root.directory(path)
            self._part.watch(path, directory)
            device = os.fstat(directory).st_dev
            children = _children(directory)
            ignore = self._rules(visit, directory, children)
        except OSError as error:
            self._problem(path, error)
            self._keep_mounts(path)
            return
        if visit.deep and self._part.folders is not None:
            self._forget_rules(path)
        self._found.ignores[path] = ignore
        if visit.device is not None and self._is_away(path, device, visit.device):
            self._found.away.add(path)
            why = _UNMOUNTED if device == visit.device else _HIDDEN
            self._found.problems.append(Problem(path, f"{why}: {_NOT_TAKEN}"))
            self._keep_mounts(path)
            return
        if visit.device is not None and device != visit.device:
            self._found.mounts.add(path)
        if not children:
            self._reveal(path)
        fingerprint = _fingerprint(children, ignore)
        if fingerprint == self._known.fingerprint(path):
            if visit.deep:
                self._enter(path, ignore, children, device, visit.hidden)
            return
        trusted = self._compare(path, children, ignore, device, visit)
        self._found.fingerprints[path] = fingerprint if trusted else None

    def _keep_mounts(self, path: bytes) -> None:
        """Go on to know on what disks were mounted at and below a path that is not looked at."""
        self._found.mounts |= {mount for mount in self._mounts if is_within(mount, path)}

    def _is_away(self, path: bytes, device: int, above: int) -> bool:
        """Is a disk not mounted that was, or does one that was not, or is empty, hide a directory?"""
        if device == above or path in self._accepted:
            return path in self._mounts
        try:
            if path in self._mounts and set(os.listdir(self._root.directory(path))) - _OF_EMPTY_DISKS:
                return False
        except OSError:  # to look at it will tell
            return False
        return any(row.entry.alive for row in self._known.rows(path).values())

    def _rules(self, visit: _Visit, directory: int, children: dict[bytes, os.stat_result]) -> Ignore:
        """Return the rules in force in a directory, its own ignore file included."""
        text = b""
        if IGNORE_FILE in children and stat.S_ISREG(children[IGNORE_FILE].st_mode):
            try:
                with open(open_file(IGNORE_FILE, directory), "rb") as file:
                    text = file.read(MAX_RULES)
            except OSError as error:
                own = os.fsdecode(IGNORE_FILE)
                raise OSError(error.errno, f"{own} in it: {error.strerror}") from error
        if visit.ignore is None:
            return Ignore.top(self._exclude, text)
        return visit.ignore.below(visit.path.rpartition(b"/")[2], text)

    def _enter(
        self,
        path: bytes,
        ignore: Ignore,
        children: dict[bytes, os.stat_result],
        device: int,
        hidden: bool,
    ) -> None:
        """Go on below a directory in which nothing moved."""
        for name, st in children.items():
            if stat.S_ISDIR(st.st_mode):
                if ignore.matches(name, True):
                    self._keep_mounts(join(path, name))
                else:
                    self._stack.append(_Visit(join(path, name), ignore, device=device, hidden=hidden))

    def _forget_rules(self, path: bytes) -> None:
        """Forget the rules below a directory: those that are still in force will be found again."""
        for folder in [folder for folder in self._found.ignores if is_within(folder, path)]:
            del self._found.ignores[folder]

    def _compare(
        self,
        path: bytes,
        children: dict[bytes, os.stat_result],
        ignore: Ignore,
        device: int,
        visit: _Visit,
    ) -> bool:
        """Compare a directory with its rows; return whether the rows can be trusted next time.

        If only the files that are still to be looked at can be.
        """
        rows = self._known.rows(path)
        trusted = True
        for name, st in children.items():
            kind = kind_of(st.st_mode)
            row = rows.get(name)
            if ignore.matches(name, kind is Kind.DIRECTORY):
                self._keep_mounts(join(path, name))
                if row:
                    del rows[name]
                    self._hide(join(path, name), row)
                continue
            child = join(path, name)
            if kind is None or is_reserved(name) or len(child) > MAX_PATH:
                self._found.special.append(child)
                continue
            rows.pop(name, None)
            if kind is Kind.DIRECTORY:
                hidden = visit.hidden or (row is not None and row.hidden)
                is_known = row is not None and row.entry.kind is Kind.DIRECTORY and not self._is_new(child)
                if visit.deep or hidden or not is_known:
                    self._stack.append(_Visit(child, ignore, device=device, hidden=hidden))
                trusted &= not self._is_away(child, st.st_dev, device) and self._directory(child, row, st)
            elif kind is Kind.FILE and child in self._part.busy:
                trusted = False
            elif row and _vouched(row, kind, st):
                self._reveal_above(child)
            elif self._leave_large and row is None and kind is Kind.FILE and st.st_size > MAX_TEXT:
                self._reveal_above(child)
                self._found.unread.append(Unread(child, st.st_size))
                trusted = False
            else:
                self._leaves.append(_Leaf(child, row, st.st_size))
            if row and row.entry.kind is Kind.DIRECTORY and kind is not Kind.DIRECTORY:
                hidden = visit.hidden or row.hidden
                self._stack.append(_Visit(child, ignore.below(name), gone=True, hidden=hidden))
        self._vanish(path, rows, ignore, visit.hidden)
        return trusted

    def _hide(self, path: bytes, row: Row) -> None:
        """Remember that nobody sees any more what becomes of a path."""
        if row.entry.alive and not row.hidden:
            self._found.vouched.append(Record(path, Row(row.entry, None, True), row.entry))

    def _directory(self, path: bytes, row: Row | None, st: os.stat_result) -> bool:
        """Look at a directory; return whether its row tells all there is to know."""
        known = row.entry if row else None
        seen = Entry(kind=Kind.DIRECTORY, mode=st.st_mode & 0o777, mtime_ns=stat_of(st).mtime_ns)
        entry = observe(known, seen, self._stamp)
        if known is None or known.alive:
            self._record(path, Row(entry), known, row)
            return True
        # Deleted by a peer, but still here: a ghost, unless it holds more than what is ignored.
        self._ghosts[path] = Record(path, Row(entry), known)
        return False

    def _leave_what_is_alone(self) -> None:
        """Leave unread only what has a size of its own: what may be the same is hashed, and sent once."""
        sizes = Counter(size for _, size in self._found.unread)
        self._leaves += [_Leaf(path, None, size) for path, size in self._found.unread if sizes[size] > 1]
        self._found.unread = [unread for unread in self._found.unread if sizes[unread.size] == 1]

    def _look_at_leaves(self) -> None:
        """Read what the manifest does not vouch for."""
        self._tell()
        for number, seen in look_at(self._root, [(leaf.path, leaf.size) for leaf in self._leaves]):
            for leaf, one in zip(self._leaves[number : number + len(seen)], seen, strict=True):
                self._leaf(leaf, one)
            self._tell()

    def _leaf(self, leaf: _Leaf, seen: Seen | str) -> None:
        path, row, _ = leaf
        known = row.entry if row else None
        if isinstance(seen, str):
            self._found.problems.append(Problem(path, seen))
            self._distrust(path)
            return
        entry = seen.entry()
        if row and row.stat and row.stat.mtime_ns == entry.mtime_ns:
            # Not touched since the entry was applied; the file system may keep times less exactly than it.
            entry = replace(entry, mtime_ns=row.entry.mtime_ns)
        if seen.racy:
            self._distrust(path)
        self._record(path, Row(observe(known, entry, self._stamp), seen.stat, seen.racy), known, row)

    def _distrust(self, path: bytes) -> None:
        """Have the directory of a file compared row by row again next time."""
        self._found.fingerprints[split(path)[0]] = None

    def _tell(self) -> None:
        """Tell what is found by now."""
        if self._note:
            self._note(self._found)

    def _vanish(
        self, path: bytes, rows: dict[bytes, Row], ignore: Ignore, hidden: bool, gone: bool = False
    ) -> None:
        """Record what is not there any more, with all that was below.

        What is ignored may come back, as an edit, where the directory is still there; else it is forgotten.
        """
        for name, row in rows.items():
            was_directory = row.entry.kind is Kind.DIRECTORY
            if not row.entry.alive:
                continue
            child = join(path, name)
            is_ignored = ignore.matches(name, was_directory)
            if is_ignored and not gone:
                self._hide(child, row)
                continue
            was_hidden = hidden or row.hidden or is_ignored
            if was_hidden:
                self._found.forgotten.append(child)
            else:
                self._record(child, Row(vanish(row.entry, self._stamp)), row.entry)
            if was_directory:
                self._stack.append(_Visit(child, ignore.below(name), gone=True, hidden=was_hidden))

    def _forget_below(self, path: bytes, ignore: Ignore, hidden: bool) -> None:
        self._found.ignores.pop(path, None)
        self._found.mounts.discard(path)
        self._found.fingerprints[path] = None  # should it come back, its rows say that it is gone
        self._vanish(path, self._known.rows(path), ignore, hidden, gone=True)

    def _record(self, path: bytes, row: Row, known: Entry | None, old: Row | None = None) -> None:
        if row.entry.alive:
            self._reveal_above(path)
        if row.entry is not known:
            self._found.changes.append(Record(path, row, known))
        elif old is not None and row != old:
            self._found.vouched.append(Record(path, row, known))

    def _reveal_above(self, path: bytes) -> None:
        if self._ghosts:
            for ancestor in ancestors(path):
                self._reveal(ancestor)

    def _reveal(self, path: bytes) -> None:
        """A directory that a peer deleted has come to life again."""
        ghost = self._ghosts.pop(path, None)
        if ghost:
            self._found.changes.append(ghost)
            self._reveal_above(path)

    def _problem(self, path: bytes, error: OSError) -> None:
        self._found.problems.append(Problem(path or b".", f"cannot be read: {error.strerror}"))


_UNMOUNTED = "was a mounted disk and is not mounted now"
_HIDDEN = "has files, and a disk is mounted on it that was not, or is empty"
_NOT_TAKEN = (
    "nothing in it is taken for deleted, and nothing is written there. If it is to go, remove the folder;"
    " if it is to be as it is now, run `p2psync sync --accept-folder PATH` in this replica"
)
_OF_EMPTY_DISKS = {os.fsdecode(SIDECAR), "lost+found"}


def _children(directory: int) -> dict[bytes, os.stat_result]:
    """Return what is in a directory, without sidecars, in the order of the names."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name.encode(_ENCODING, _ERRORS)
            if name == SIDECAR:
                continue
            try:
                found.append((name, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:
                continue
    found.sort(key=_NAME)
    return dict(found)


_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""As in os.fsencode, which takes five times as long to find them out."""
_NAME = itemgetter(0)


def _fingerprint(children: dict[bytes, os.stat_result], ignore: Ignore) -> bytes:
    """Return a digest of all that a change of a file in the directory would change."""
    stats = [
        (name, st.st_mode)
        if stat.S_ISDIR(st.st_mode)
        else (name, st.st_mode, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)
        for name, st in children.items()
    ]
    return xxh3_128_digest(_encoder.encode((stats, ignore.fingerprint)))


_encoder = msgspec.msgpack.Encoder()


def _vouched(row: Row, kind: Kind, st: os.stat_result) -> bool:
    """Does the manifest vouch for this file as it is?"""
    return (
        kind is Kind.FILE
        and not row.racy
        and row.entry.kind is Kind.FILE
        and row.stat == stat_of(st)
        and row.entry.mode == st.st_mode & 0o777
    )
