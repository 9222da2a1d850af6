"""Take: contents straight from the tree of another replica on this machine. Owns how the work is shared.

Nothing passes through the other side's process: this one opens its files, copies and verifies them, with a
second process where there is enough to do for two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from p2psync.bases import Bases
from p2psync.core.model import Extent, Stat
from p2psync.core.replica import Taken
from p2psync.disk import Root
from p2psync.stage import Stage
from p2psync.workers import Files, share


def take(stage: Stage, bases: Bases, sidecar: int, other: bytes) -> Iterator[Taken]:
    """Stage what waits for contents and is at the same path in the tree of another replica.

    Args:
        stage: waits for contents.
        bases: keep the texts.
        sidecar: descriptor of this replica's sidecar.
        other: the root of the other replica.

    Yields:
        How much more is staged.
    """
    source = Root.open(other)
    try:
        yield from _take(stage, bases, sidecar, source, stage.waiting())
        # Apart, and after the others: a second process does not learn what has been staged since it began.
        yield from _take(stage, bases, sidecar, source, stage.waiting(unsure=True))
    finally:
        source.close()


def _take(stage: Stage, bases: Bases, sidecar: int, source: Root, files: Files) -> Iterator[Taken]:
    mine = _Taker(stage, bases, source, files)
    for first, result in share(files, mine, lambda: _Taker(stage, Bases(sidecar), source, files)):
        done = msgspec.convert(result, _Result)
        bases.adopt(done.extents)
        count = taken = 0
        last = b""
        for (path, size), found in zip(files[first : first + len(done.found)], done.found, strict=True):
            stage.took(path, found)
            if isinstance(found, Stat):
                count, taken, last = count + 1, taken + size, path
        yield Taken(count, taken, path=last)


class _Result(NamedTuple):
    found: list[Stat | int | None]
    """For each file of the job, as `Stage.take` returns it."""
    extents: list[Extent]
    """Where texts are kept that were not told of yet."""


class _Taker:
    def __init__(self, stage: Stage, bases: Bases, source: Root, files: Files) -> None:
        self._stage = stage
        self._bases = bases
        self._source = source
        self._files = files

    def do(self, first: int, end: int) -> _Result:
        paths = [path for path, _ in self._files[first:end]]
        found = self._stage.take(paths, self._source, self._bases.add)
        return _Result(found, self._bases.written())

    def finish(self) -> _Result:
        return _Result([], self._bases.flush())
