"""Room: whether a disk takes what comes, looked at before anything is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from p2psync.collect import Collector
from p2psync.contents import Contents, file_at
from p2psync.core.choose import SPARSE_BYTES, too_large
from p2psync.core.model import Digest, Transition, makes, needs_content
from p2psync.core.paths import printable
from p2psync.core.replica import Content
from p2psync.disk import Root, can_share, files_on, taken_by
from p2psync.errors import GuardTripped
from p2psync.reserve import Reserve
from p2psync.stage import ENTRY_BYTES, Stage
from p2psync.words import size_of

RESERVE_BYTES = 8 << 20
"""What stays free on a disk, or a hundredth of a small one: the manifest has to be written too."""
RESERVE_FILES = 40
"""So many can still be made on a disk that contents have filled with files: of the manifest, and folders of
the history for what is deleted."""


class Weighed(NamedTuple):
    """What was found out of what comes, as `Stage.expect` has it."""

    tight: bool
    """There is room only if what broken runs left goes."""
    waiting: dict[bytes, str]
    """The paths that have to wait even then, and why: a few large files, and those without inodes."""
    unsure: set[bytes]
    """Those that may take less than their size, or more than there is."""
    stays: int
    """So many bytes have to stay free."""


class Room:
    """The room on the disk of one replica."""

    def __init__(
        self,
        path: bytes,
        root: Root,
        sidecar: int,
        stage: Stage,
        contents: Contents,
        collector: Collector,
        reserve: Reserve,
    ) -> None:
        self._path = path
        self._root = root
        self._sidecar = sidecar
        self._stage = stage
        self._contents = contents
        self._collector = collector
        self._reserve = reserve

    def weigh(
        self,
        transitions: Sequence[Transition],
        sparse: Iterable[Content],
        own: bool,
        neighbour: bytes | None,
    ) -> Weighed:
        """Look, before anything is written, whether there is room for what comes.

        Args:
            transitions: what is to be done.
            sparse: what the other side says of contents that come.
            own: it is wanted back from the history here, so nobody is told to clean that.
            neighbour: the root of the other side, if that is on this machine.

        Raises:
            GuardTripped: more would have to wait than a few.
        """
        coming = [step for step in transitions if needs_content(step)]
        left = files_on(self._root.fd) or sys.maxsize  # some disks say that there are none, and take files
        left -= RESERVE_FILES + sum(map(makes, transitions)) - len(coming)
        few_files = _FEW_FILES if own else f"{_FEW_FILES}, or leave some out (--exclude)"
        waiting = {step.path: few_files for step in coming[max(0, left) :]}
        if waiting:
            coming = [step for step in coming if step.path not in waiting]
        room, stays = self._free()
        if not coming or sum(step.wanted.size + ENTRY_BYTES for step in coming) <= room:
            return Weighed(False, waiting, set(), stays)
        sizes, unsure = self._at_least(coming, dict(sparse), neighbour or self._path)
        needed = sum(sizes.values())
        if needed <= room:
            return Weighed(False, waiting, unsure, stays)
        most = room + self._stage.size()  # what a run that died has left counts: it is used, or removed
        large = too_large(sizes, most)
        by_gc = (lambda lacking: "") if own else self._by_gc(coming)
        if large is None:
            largest = printable(os.fsdecode(max(sizes, key=sizes.__getitem__)))
            or_less = f"sync again, or leave out what is large (--max-size, --exclude), as {largest} is"
            raise GuardTripped(
                f"{os.fsdecode(self._path)} has room for {size_of(most)}, and {size_of(needed)} are needed."
                f" Nothing was changed: make room there{by_gc(needed - most)} and"
                f" {'try again' if own else or_less}"
            )
        needed -= sum(map(sizes.__getitem__, large))
        rest = most - needed
        or_not = " and try again" if own else ", or leave it out (--max-size)"
        refused = {
            path: f"there is no room for it: it takes {size_of(sizes[path])}, and beside all else that comes"
            f" {size_of(rest)} are left; make room there{by_gc(sizes[path] - rest)}{or_not}"
            for path in large
        }
        return Weighed(needed > room, waiting | refused, unsure - large, stays)

    def free(self) -> int:
        """Return how many bytes may come."""
        return self._free()[0]

    def _free(self) -> tuple[int, int]:
        """Return how many bytes may come, and how many have to stay free."""
        disk = os.fstatvfs(self._root.fd)
        stays = self._reserve.lent + min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 100)
        return max(0, disk.f_bavail * disk.f_frsize - stays), stays

    def _at_least(
        self, coming: Iterable[Transition], sparse: Mapping[Digest, int], other: bytes
    ) -> tuple[dict[bytes, int], set[bytes]]:
        """Return what each file that comes takes at least, and which may take more, up to their size.

        Args:
            coming: the files.
            sparse: what contents take that have holes, if they are not held here.
            other: the root of the other side; of this one, if that is on another machine.
        """
        sizes: dict[bytes, int] = {}
        unsure = set()
        source = Root.open(other)
        try:
            for step in coming:
                size = taken = step.wanted.size
                if size >= SPARSE_BYTES:
                    taken = min(size, self._takes(step, source, sparse.get(step.wanted.digest, size)))
                if taken < size:
                    unsure.add(step.path)
                sizes[step.path] = taken + ENTRY_BYTES
        finally:
            source.close()
        return sizes, unsure

    def _takes(self, step: Transition, source: Root, size: int) -> int:
        """Return what a large file takes at least; nothing, if it may have the blocks of another.

        Args:
            step: brings the file.
            source: of what is at the same path there it is made, if it is not held here.
            size: what it takes if that does not share its blocks.
        """
        digest = step.wanted.digest
        held = self._contents.opened(digest, self._contents.is_as_known)
        for place in (held, self._contents.in_history(digest)):
            with place as fd:
                if fd is not None:
                    return 0 if can_share(fd, self._sidecar) else taken_by(fd)
        with file_at(step.path, source) as fd:
            return 0 if fd is not None and can_share(fd, self._sidecar) else size

    def _by_gc(self, coming: Sequence[Transition]) -> Callable[[int], str]:
        """Return what says how to get so many bytes from the history, if it has them beside what comes."""
        size = self._collector.could_give({step.wanted.digest for step in coming})
        told = f" (`p2psync gc --days 0` removes {size_of(size)} of history)"
        return lambda lacking: told if size >= lacking else ""


_FEW_FILES = "its disk has too few inodes left: delete files there"
