"""Contents: finds them by their digest, wherever a replica has them: tree, bases, history. Writes nothing."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from xxhash import xxh3_128, xxh3_128_digest

from p2psync.bases import Bases
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Kind
from p2psync.core.paths import split
from p2psync.core.replica import PIECE_BYTES
from p2psync.core.retention import Kept
from p2psync.disk import Root, blocks_of, hash_file, kind_of, lstat, open_file, stat_of
from p2psync.history import History, Shelf, began
from p2psync.manifest import Manifest

_EMPTY = xxh3_128_digest(b"")


class Contents:
    """All contents that one replica has."""

    def __init__(self, root: Root, manifest: Manifest, bases: Bases, history: History) -> None:
        self._root = root
        self._manifest = manifest
        self._bases = bases
        self._history = history

    def has(self, entry: Entry) -> bool:
        """Is what a version holds anywhere here, as far as names and sizes tell? `find` makes sure."""
        if entry.kind is not Kind.FILE or entry.size == 0 or self._manifest.texts.extent(entry.digest):
            return entry.alive
        if any(map(self.at, self._manifest.holders.of(entry.digest))):
            return True
        return any(lstat(name, shelf).st_size == entry.size for shelf, name in self._shelves(entry.digest))

    def at(self, path: bytes) -> bool:
        """Is what the manifest says of a path still there?"""
        row = self._manifest.row(path)
        folder, name = split(path)
        try:
            st = lstat(name, self._root.directory(folder))
        except OSError:
            return False
        if row is None or row.entry.kind is not kind_of(st.st_mode):
            return False
        if row.entry.kind is not Kind.FILE or row.stat == stat_of(st):
            return True
        with self.file(path) as fd:
            return fd is not None and _is_all(fd, row.entry.digest)

    def unrecorded(self) -> list[Kept]:
        """Return what the history has from runs that died before they could be recorded."""
        return [Kept(name, began(name), self._history.size(name)) for name in self._unrecorded()]

    def look_again(self) -> None:
        """Look anew for runs that died: one has done so meanwhile."""
        self.__dict__.pop("_died", None)

    @contextlib.contextmanager
    def find(self, digest: Digest) -> Iterator[Iterator[bytes] | None]:
        """Give the contents with this digest, from the bases, the tree or the history; None: not here."""
        extent = self._manifest.texts.extent(digest)
        text = b"" if digest == _EMPTY else self._bases.read(extent) if extent else None
        if text is not None:
            yield iter((text,))
            return
        for place in (self.opened(digest, lambda _, fd: _is_all(fd, digest)), self.in_history(digest)):
            with place as fd:
                if fd is not None:
                    yield blocks_of(fd)
                    return
        yield None

    def text(self, digest: Digest) -> bytes | None:
        """Return contents of at most `MAX_TEXT` bytes, None if they are not here."""
        extent = self._manifest.texts.extent(digest)
        kept = self._bases.read(extent) if extent else None
        if kept is not None:
            return kept

        def is_it(path: bytes, fd: int) -> bool:
            return os.fstat(fd).st_size <= MAX_TEXT and _is_all(fd, digest)

        for place in (self.opened(digest, is_it), self.in_history(digest)):
            with place as fd:
                text = os.read(fd, MAX_TEXT) if fd is not None else b""
                if xxh3_128_digest(text) == digest:
                    return text
        return None

    def rehash(self, paths: Iterable[bytes]) -> list[Digest | None]:
        """Return the digests of the bytes that these files have now, whatever the manifest says they are.

        None for what the manifest does not vouch for: what was ignored and written to since is nobody's
        business, what is being written to has no digest.
        """
        return [self._rehash(path) for path in paths]

    def _rehash(self, path: bytes) -> Digest | None:
        row = self._manifest.row(path)
        if row is None or row.stat is None:
            return None
        folder, name = split(path)
        try:
            digest, st = hash_file(name, self._root.directory(folder))
        except OSError:
            return None
        return digest if stat_of(st) == row.stat else None

    def file(self, path: bytes) -> contextlib.AbstractContextManager[int | None]:
        """Open the file at a path of the tree, or None."""
        return file_at(path, self._root)

    @contextlib.contextmanager
    def opened(
        self, digest: Digest, is_good: Callable[[bytes, int], bool] | None = None, first: bytes | None = None
    ) -> Iterator[int | None]:
        """Open a file of the tree that should have these contents, or None.

        Args:
            digest: of the contents.
            is_good: told path and descriptor, says whether the file will do; None: any.
            first: one of the files, to be tried before the others are looked for.
        """
        for path in chain(() if first is None else (first,), self._manifest.holders.of(digest)):
            with self.file(path) as fd:
                if fd is not None and (is_good is None or is_good(path, fd)):
                    yield fd
                    return
        yield None

    def is_as_known(self, path: bytes, fd: int) -> bool:
        """Has nobody written to an open file since the scan, as size and time tell? Small ones pass."""
        return os.fstat(fd).st_size <= PIECE_BYTES or self.is_as_scanned(path, fd)

    def is_as_scanned(self, path: bytes, fd: int) -> bool:
        """Has nobody written to an open file since the scan, as size and time tell?"""
        row = self._manifest.row(path)
        return row is None or row.stat is None or row.stat[:2] == stat_of(os.fstat(fd))[:2]

    @contextlib.contextmanager
    def in_history(self, digest: Digest) -> Iterator[int | None]:
        """Open what the history has with this digest, or None."""
        for shelf in self._shelves(digest):
            with _opened(functools.partial(open_file, shelf.name, shelf.directory)) as fd:
                if fd is not None and _is_all(fd, digest):
                    yield fd
                    return
        yield None

    def _shelves(self, digest: Digest) -> Iterator[Shelf]:
        """Yield where the history should have a file with this digest."""
        for run, path in self._manifest.holders.replaced(digest):
            for name in (run,) if run else self._died:
                yield from self._history.places(name, path)

    @functools.cached_property
    def _died(self) -> list[str]:
        return self._unrecorded()

    def _unrecorded(self) -> list[str]:
        recorded = {run.name for run in self._manifest.past.runs()}
        return [name for name in self._history.runs() if name not in recorded]


def file_at(path: bytes, root: Root) -> contextlib.AbstractContextManager[int | None]:
    """Open the file at a path, or None."""
    folder, name = split(path)
    return _opened(lambda: open_file(name, root.directory(folder)))


def written(fd: int) -> tuple[int, int]:
    """Return what changes when an open file is written to."""
    st = os.fstat(fd)
    return st.st_size, st.st_mtime_ns


@contextlib.contextmanager
def _opened(opening: Callable[[], int]) -> Iterator[int | None]:
    """Give the descriptor of a file while it is open, or None if there is no such file."""
    try:
        fd = opening()
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _is_all(fd: int, digest: Digest) -> bool:
    """Does an open file hold just the contents with this digest? It is at its beginning afterwards."""
    state = xxh3_128()
    try:
        for block in blocks_of(fd):
            state.update(block)
    except OSError:  # a disk that fails: they may be elsewhere too
        return False
    os.lseek(fd, 0, os.SEEK_SET)
    return state.digest() == digest
