"""Held: what this replica has of large contents that it lacks, to make them of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from p2psync.chunks import ChunkLists, cut_all
from p2psync.contents import Contents
from p2psync.core.chunking import Chunks, ranges, unit_of
from p2psync.core.model import NO_DIGEST, Digest
from p2psync.core.replica import Ask, Source
from p2psync.disk import Span


@dataclass
class _Base:
    """A file that is held."""

    digest: Digest
    """`NO_DIGEST`: what a broken transfer left."""
    unit: int
    chunks: Chunks | None = None
    """None: not cut yet."""
    starts: Sequence[int] = ()
    """Where each chunk begins, and the last one ends."""


class Held:
    """What is held of the contents that were asked about last."""

    def __init__(
        self, contents: Contents, lists: ChunkLists, left_over: Callable[[Digest], int | None]
    ) -> None:
        """Look among `contents`.

        Args:
            contents: finds files.
            lists: knows how files are cut.
            left_over: opens what a broken transfer left of contents.
        """
        self._contents = contents
        self._lists = lists
        self._left_over = left_over
        self._bases: dict[Digest, list[_Base]] = {}
        self._opened = ExitStack()
        self._current = NO_DIGEST
        self._fds: list[int | None] = []

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """Tell what contents may be made of; see `Replica.sources`."""
        self._bases, self._current = {}, NO_DIGEST
        return [self._sources(ask) for ask in asks]

    def _sources(self, ask: Ask) -> list[Source]:
        wanted = ask.content.digest
        found = []
        bases = self._bases[wanted] = []
        for digest in (*ask.bases, NO_DIGEST):
            with self._file(wanted, digest) as fd:
                if fd is None:
                    continue
                base = _Base(digest, unit_of(ask.content.size))
                hashes = b"" if digest in ask.known else self._cut(base, fd).hashes
            bases.append(base)
            found.append(Source(digest, hashes))
        return found

    def spans(self, wanted: Digest, first: int, count: int) -> Iterator[Span]:
        """Yield where a run of chunks is, counted through all the sources that were told for `wanted`.

        Nothing where there are no such chunks: what is made without them will not have its digest.
        """
        self._open(wanted)
        for base, fd in zip(self._bases.get(wanted, ()), self._fds, strict=False):
            if fd is None or count <= 0:
                return
            here = len(self._cut(base, fd).lengths)
            if first < here:
                end = min(first + count, here)
                yield Span(fd, base.starts[first], base.starts[end] - base.starts[first])
                first, count = end, count - (end - first)
            first -= here

    def _open(self, wanted: Digest) -> None:
        """Have the files of one contents' sources open, and no others."""
        if wanted != self._current:
            self._opened.close()
            self._opened, self._current = ExitStack(), wanted
            files = (self._file(wanted, base.digest) for base in self._bases.get(wanted, ()))
            self._fds = [self._opened.enter_context(file) for file in files]

    @contextmanager
    def _file(self, wanted: Digest, base: Digest) -> Iterator[int | None]:
        if base != NO_DIGEST:
            with self._contents.opened(base) as fd:
                yield fd
            return
        fd = self._left_over(wanted)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def _cut(self, base: _Base, fd: int) -> Chunks:
        """Return how a file is cut.

        Raises:
            OSError: it cannot be read.
        """
        if base.chunks is None:
            chunks = self._lists.get(base.digest, base.unit)
            if chunks is None:
                digest, chunks = cut_all(fd, base.unit)
                if digest == base.digest:
                    self._lists.put(digest, chunks)
            base.chunks, base.starts = chunks, ranges(chunks.lengths)
        return base.chunks
