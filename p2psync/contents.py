"""Contents: finds them by their digest, wherever a replica has them: tree, bases, history. Writes nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from xxhash import xxh3_128, xxh3_128_digest

from p2psync.bases import Bases
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest
from p2psync.core.paths import split
from p2psync.disk import Root, blocks_of, open_file
from p2psync.history import History, Shelf
from p2psync.manifest import Manifest


class Contents:
    """All contents that one replica has."""

    def __init__(self, root: Root, manifest: Manifest, bases: Bases, history: History) -> None:
        self._root = root
        self._manifest = manifest
        self._bases = bases
        self._history = history

    def has(self, digest: Digest) -> bool:
        """Are these contents anywhere here?"""
        with self.find(digest) as blocks:
            return blocks is not None

    @contextlib.contextmanager
    def find(self, digest: Digest) -> Iterator[Iterator[bytes] | None]:
        """Give the contents with this digest, from the bases, the tree or the history; None: not here."""
        extent = self._manifest.extent(digest)
        text = self._bases.read(extent) if extent else None
        if text is not None:
            yield iter((text,))
            return
        for place in (self._in_tree, self.in_history):
            with place(digest) as fd:
                if fd is not None:
                    yield blocks_of(fd)
                    return
        yield None

    def text(self, digest: Digest) -> bytes | None:
        """Return contents of at most `MAX_TEXT` bytes, None if they are not here."""
        extent = self._manifest.extent(digest)
        kept = self._bases.read(extent) if extent else None
        if kept is not None:
            return kept
        for place in (self.opened, self.in_history):
            with place(digest) as fd:
                if fd is not None and os.fstat(fd).st_size <= MAX_TEXT:
                    text = os.read(fd, MAX_TEXT)
                    if xxh3_128_digest(text) == digest:
                        return text
        return None

    @contextlib.contextmanager
    def opened(self, digest: Digest, holders: Iterable[bytes] | None = None) -> Iterator[int | None]:
        """Open a file of the tree that should have these contents, or None.

        Args:
            digest: of the contents.
            holders: the files to try; None: all that have them.
        """
        paths = self._manifest.holders([digest]).get(digest, []) if holders is None else holders
        for path in paths:
            folder, name = split(path)
            try:
                fd = open_file(name, self._root.directory(folder))
            except OSError:
                continue
            try:
                yield fd
            finally:
                os.close(fd)
            return
        yield None

    @contextlib.contextmanager
    def _in_tree(self, digest: Digest) -> Iterator[int | None]:
        """Open a file of the tree that has these contents, or None."""
        for path in self._manifest.holders([digest]).get(digest, []):
            with self.opened(digest, [path]) as fd:
                if fd is not None and _is_all(fd, digest):
                    yield fd
                    return
        yield None

    @contextlib.contextmanager
    def in_history(self, digest: Digest) -> Iterator[int | None]:
        """Open what the history has with this digest, or None."""
        for run, path in self._manifest.replaced(digest):
            for shelf in self._history.places(run, path):
                with _opened_shelf(shelf) as fd:
                    if fd is not None and _is_all(fd, digest):
                        yield fd
                        return
        yield None


@contextlib.contextmanager
def _opened_shelf(shelf: Shelf) -> Iterator[int | None]:
    """Open a file of the history, or None if it is none."""
    try:
        fd = open_file(shelf.name, shelf.directory)
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
    for block in blocks_of(fd):
        state.update(block)
    os.lseek(fd, 0, os.SEEK_SET)
    return state.digest() == digest
