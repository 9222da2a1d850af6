"""Receive: contents that the other side sends. Owns how the work is shared.

What a small file costs is mostly Python's own time, to verify, write and keep it: where there are many, a
second process takes the batches that this one has no time for, if there is a processor for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from p2psync.bases import Bases
from p2psync.core.model import Digest, Extent, Stat
from p2psync.core.replica import More, Piece
from p2psync.stage import Held, Stage
from p2psync.workers import Aside

_ALONE_FILES = 500
"""As many are written before a second process would be at work."""
_PROCESSORS = 3
"""Of two, measured, the connection needs the second; another process takes more time than it saves."""


def receive(
    stage: Stage,
    bases: Bases,
    sidecar: int,
    batches: Iterable[list[Piece]],
    held: Held,
    staged: Callable[[], None],
) -> None:
    """Stage contents as they arrive, and keep the texts among them for merges to come.

    Whoever has a version has made it or taken it in; of two that have it, at least one keeps it.

    Args:
        stage: waits for contents.
        bases: keep the texts.
        sidecar: descriptor of this replica's sidecar.
        batches: the contents, in pieces.
        held: see `Stage.receive`.
        staged: is called now and then, when more is staged.

    Raises:
        ProtocolError: the pieces of a file do not follow one another.
    """
    sharing = _Sharing(stage, bases, sidecar, staged)
    try:
        stage.receive(sharing.left(batches), bases.add, held)
        sharing.finish()
    finally:
        sharing.end()


class _Result(NamedTuple):
    written: list[tuple[Digest, list[Stat | int] | None]]
    """What `Stage.write` returned, for each of the contents."""
    extents: list[Extent]
    """Where texts are kept that were not told of yet."""


class _Writer:
    """Writes batches of small files."""

    def __init__(self, stage: Stage, bases: Bases) -> None:
        self._stage = stage
        self._bases = bases

    def do(self, job: bytes) -> _Result:
        written = [(piece.digest, self._write(piece)) for piece in _decoder.decode(job)]
        return _Result(written, self._bases.written())

    def finish(self) -> _Result:
        return _Result([], self._bases.flush())

    def _write(self, piece: Piece) -> list[Stat | int] | None:
        written = self._stage.write(piece.digest, piece.data)
        if written is not None:
            self._bases.add(piece.digest, piece.data)
        return written


_decoder = msgspec.msgpack.Decoder(list[Piece])


class _Sharing:
    """Gives batches to a second process, and takes note of what it did."""

    def __init__(self, stage: Stage, bases: Bases, sidecar: int, staged: Callable[[], None]) -> None:
        self._mine = _Writer(stage, bases)
        self._stage = stage
        self._bases = bases
        self._sidecar = sidecar
        self._staged = staged
        self._other: Aside | None = None

    def left(self, batches: Iterable[list[Piece]]) -> Iterator[list[Piece]]:
        """Yield the batches that are for this process."""
        files = 0
        between = True
        for batch in batches:
            small = between and all(piece.more is More.LAST for piece in batch)
            between = not batch or batch[-1].more is not More.MORE
            files += len(batch) if small else 0
            if not (small and files > _ALONE_FILES and self._give(batch)):
                yield batch
            self._note(self._other.done() if self._other else ())
            self._staged()

    def _give(self, batch: list[Piece]) -> bool:
        if (os.cpu_count() or 1) < _PROCESSORS:
            return False
        if self._other is None:
            self._other = Aside(lambda: _Writer(self._stage, Bases(self._sidecar)))
        return self._other.has_time() and self._other.give(msgspec.msgpack.encode(batch))

    def finish(self) -> None:
        """Wait for the other process."""
        if self._other:
            self._note(self._other.rest())
            self._staged()

    def _note(self, done: Iterable[tuple[bytes, object]]) -> None:
        for job, result in done:
            # Where it died, this process does the rest.
            found = self._mine.do(job) if result is None else msgspec.convert(result, _Result)
            for digest, written in found.written:
                self._stage.wrote(digest, written)
            self._bases.adopt(found.extents)

    def end(self) -> None:
        """End the other process, whatever it does."""
        if self._other:
            self._other.end()
