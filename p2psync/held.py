"""Held: what this replica has of large contents that it lacks, to make them of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from p2psync.chunks import ChunkLists
from p2psync.contents import Contents
from p2psync.core.chunking import unit_of
from p2psync.core.model import NO_DIGEST, Digest
from p2psync.core.replica import Ask, Cuts, Source
from p2psync.disk import Span

_TOLD_BYTES = 8 << 20
"""Of lists of chunks in an answer: well within a frame, there and back."""


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
        self._sources: dict[Digest, list[Digest]] = {}
        self._room = 0
        self._opened = ExitStack()
        self._current = NO_DIGEST
        self._fds: list[int | None] = []

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """Tell what contents may be made of; see `Replica.sources`."""
        self._sources, self._current = {}, NO_DIGEST
        self._room = _TOLD_BYTES
        return [self._sources_of(ask) for ask in asks]

    def _sources_of(self, ask: Ask) -> list[Source]:
        wanted, size = ask.content
        found = []
        for digest in (*ask.bases, NO_DIGEST):
            with self._file(wanted, digest) as fd:
                if fd is None:
                    continue
                chunks = None if digest in ask.known else self._lists.of(digest, unit_of(size), fd)
                if chunks is None and digest not in ask.known:
                    continue
                cuts = Cuts.of(chunks) if chunks else None
                told = len(cuts.lengths) + len(cuts.hashes) if cuts else 0
                if told <= self._room:  # else the other side does without
                    self._room -= told
                    found.append(Source(digest, cuts))
        self._sources[wanted] = [source.digest for source in found]
        return found

    def span(self, wanted: Digest, source: int, offset: int, size: int) -> Span | None:
        """Return a part of one of the sources that were told for `wanted`; None: there is none."""
        if wanted != self._current:
            self._opened.close()
            self._opened, self._current = ExitStack(), wanted
            files = (self._file(wanted, digest) for digest in self._sources.get(wanted, ()))
            self._fds = [self._opened.enter_context(file) for file in files]
        fd = self._fds[source] if source < len(self._fds) else None
        return Span(fd, offset, size) if fd is not None else None

    @contextmanager
    def _file(self, wanted: Digest, source: Digest) -> Iterator[int | None]:
        if source != NO_DIGEST:
            with self._contents.opened(source) as fd:
                yield fd
            return
        fd = self._left_over(wanted)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)
