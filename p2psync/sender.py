"""Sender: reads contents for the other side: whole, or as what differs from what is held there."""

from __future__ import annotations

import collections
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from p2psync.chunks import ChunkLists, Cutter, cut_file
from p2psync.contents import Contents, written
from p2psync.core.chunking import WORTH_BYTES, Chunks, Index, parts, unit_of
from p2psync.core.model import Digest
from p2psync.core.paths import split
from p2psync.core.replica import MAX_PIECES, PIECE_BYTES, More, Piece, Source, Unread, Want, place_of
from p2psync.disk import Root, open_file, stat_of
from p2psync.look import Seen, seen_file
from p2psync.manifest import Manifest


class Sender:
    """Sends what one replica has."""

    def __init__(self, manifest: Manifest, contents: Contents, lists: ChunkLists) -> None:
        self._manifest = manifest
        self._contents = contents
        self._lists = lists

    def read(self, digests: Sequence[Digest], remember: bool) -> Iterator[list[Piece]]:
        """Yield contents; see `Replica.read`.

        Args:
            digests: of the contents.
            remember: how large files are cut: they may be edited one day.
        """
        return _batches(self._whole(digests, remember))

    def _whole(self, digests: Sequence[Digest], remember: bool) -> Iterator[Piece]:
        holder = self._manifest.holders.any_of(digests)
        for digest in digests:
            with self._opened(digest, holder.get(digest)) as fd:
                size = os.fstat(fd).st_size if fd is not None else 0
                cutter = Cutter(unit_of(size)) if remember and size >= WORTH_BYTES else None
                for piece in _pieces(digest, fd):
                    yield piece
                    if cutter:
                        collections.deque(cutter.feed(piece.data), maxlen=0)
                if cutter:
                    collections.deque(cutter.end(), maxlen=0)
                    self._lists.learn(digest, unit_of(size), cutter)

    def unread(
        self, files: Iterable[Unread], root: Root, note: Callable[[bytes, Seen], None]
    ) -> Iterator[list[Piece]]:
        """Yield large files that nobody has read yet; see `Replica.read_unread`.

        Args:
            files: their paths, and their sizes in bytes as they were seen.
            root: what they are below.
            note: is told what one is, just before its last piece goes.
        """
        return _batches(piece for path, size in files for piece in self._unread(path, size, root, note))

    def _unread(
        self, path: bytes, size: int, root: Root, note: Callable[[bytes, Seen], None]
    ) -> Iterator[Piece]:
        place, now_ns = place_of(path), time.time_ns()
        folder, name = split(path)
        try:
            fd = open_file(name, root.directory(folder))
        except OSError:
            yield Piece(place, b"", More.GONE)
            return
        try:
            before, left, cutter = stat_of(os.fstat(fd)), size, Cutter(unit_of(size))
            while before.size == size:
                data = os.read(fd, min(left, PIECE_BYTES))
                after = os.fstat(fd)
                left -= len(data)
                if not data or stat_of(after) != before:
                    break
                collections.deque(cutter.feed(data), maxlen=0)
                if not left:
                    collections.deque(cutter.end(), maxlen=0)
                    digest, chunks = cutter.result()
                    self._lists.put(digest, unit_of(size), chunks)
                    note(path, seen_file(digest, after, now_ns))
                    yield Piece(place, data, More.LAST)
                    return
                yield Piece(place, data, More.MORE)
        except OSError:  # cannot be read: the next scan will tell
            pass
        finally:
            os.close(fd)
        yield Piece(place, b"", More.GONE)

    def _opened(self, digest: Digest, first: bytes | None = None) -> AbstractContextManager[int | None]:
        """Open contents that are to be sent: what was written to would be sent for nothing, at every sync."""
        return self._contents.opened(digest, self._contents.is_as_known, first)

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        """Yield contents as what differs from what is held there; see `Replica.differences`."""
        return _batches(piece for want in wants for piece in self._parts(want))

    def _parts(self, want: Want) -> Iterator[Piece]:
        digest, unit = want.content.digest, unit_of(want.content.size)
        with self._opened(digest) as fd:
            if fd is None:
                yield Piece(digest, b"", More.GONE)
                return
            known = [self._chunks(source, unit) for source in want.sources]
            cutter = Cutter(unit)
            try:
                before = written(fd)
                for part in parts(cut_file(fd, cutter), Index(known), PIECE_BYTES):
                    yield Piece(digest, part.data, More.MORE, part.source, part.offset, part.size)
                    if written(fd) != before:
                        yield Piece(digest, b"", More.GONE)
                        return
            except OSError:  # cannot be read: the path that wants it becomes a problem
                yield Piece(digest, b"", More.GONE)
                return
            yield Piece(digest, b"", More.LAST)
            self._lists.learn(digest, unit, cutter)

    def _chunks(self, source: Source, unit: int) -> Chunks:
        chunks = source.cuts.chunks() if source.cuts else self._lists.get(source.digest, unit)
        return chunks or Chunks(array("I"), b"")


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.data)
        if size >= PIECE_BYTES or len(batch) >= MAX_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(digest: Digest, fd: int | None) -> Iterator[Piece]:
    """Yield the contents of an open file; no more of it once it is written to."""
    if fd is None:
        yield Piece(digest, b"", More.GONE)
        return
    try:
        left, before = os.fstat(fd).st_size, written(fd)
        while left > PIECE_BYTES:
            data = os.read(fd, PIECE_BYTES)
            yield Piece(digest, data, More.MORE)
            if not data or written(fd) != before:
                yield Piece(digest, b"", More.GONE)
                return
            left -= len(data)
        yield Piece(digest, os.read(fd, left), More.LAST)
    except OSError:  # cannot be read: the path that wants it becomes a problem
        yield Piece(digest, b"", More.GONE)
