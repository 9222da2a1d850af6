"""Collect: removes history that is too old or too much, and tombstones that nobody needs any more."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Container, Iterable

from p2psync.bases import BLOCK, Bases
from p2psync.chunks import ChunkLists
from p2psync.contents import Contents
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Extent, Kind
from p2psync.core.paths import split
from p2psync.core.retention import DAY_SECONDS, Collected, Kept, Limits, due, expired, in_order
from p2psync.disk import Root, exists
from p2psync.errors import NoRoom
from p2psync.history import History
from p2psync.leftover import LeftOver
from p2psync.manifest import Manifest
from p2psync.past import Run

TOMBSTONE_DAYS = 30
"""A deletion is remembered at least this long, and until all replicas that are known have it."""

FEW_LISTS = 256
"""Of chunks, that may be needed by nobody: of very large files some 30 MB."""


class Collector:
    """Cleans up behind one replica."""

    def __init__(
        self,
        root: Root,
        manifest: Manifest,
        history: History,
        contents: Contents,
        bases: Bases,
        lists: ChunkLists,
        left_over: LeftOver,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._history = history
        self._contents = contents
        self._bases = bases
        self._lists = lists
        self._left_over = left_over

    def collect_if_due(self, limits: Limits) -> None:
        """Collect if the last time is a day ago, or there is too much; raises as `collect`."""
        by_size = limits._replace(days=math.inf)
        until = due(time.time(), self._manifest.past.collected_at())
        if until is not None:
            self.collect(limits, until=until)
        elif self._is_too_much(by_size):
            self.collect(by_size, until=0)

    def _is_too_much(self, limits: Limits) -> bool:
        """Would any run go?

        The disk is looked at only where that is so by what was recorded: that may be gone, or have holes.
        """
        if self._manifest.past.kept_in_history() <= self._disk() * limits.percent / 100:
            return False
        kept = self._kept(0, limits)
        if self._expired(kept, 0, limits):
            return True
        with self._manifest.transaction():
            self._set_sizes(kept)
        return False

    def collect(self, limits: Limits, dry_run: bool = False, until: float | None = None) -> Collected:
        """Remove the history that `limits` do not allow; return what went, or, of a dry run, would go.

        Texts that a merge may still start from are kept among the bases, all others are forgotten there.

        Args:
            limits: what may stay.
            dry_run: remove nothing.
            until: when ages end, in seconds since 1970; 0: nothing is old; None: now.

        Raises:
            OSError: some of it cannot be removed.
            ReplicaError: the manifest cannot be written to.
        """
        until = time.time() if until is None else until
        runs = self._manifest.past.runs()
        kept = self._kept(until, limits)
        gone = self._expired(kept, until, limits)
        if dry_run:
            return Collected(gone, self._manifest.texts.count_old())
        names = {run.run for run in gone}
        for run in runs:
            if run.name in names:
                self._keep_bases(run)
        stay = {run.seq for run in runs if run.name not in names}
        texts_kept = self._bases.flush()
        try:
            self._forget(kept, names, stay, until, texts_kept)
        except NoRoom:  # what goes has to make it
            self._remove(gone)
            self._forget(kept, names, stay, until, texts_kept)
        self._left_over.tidy(until=until)
        trouble = self._remove(gone)
        self._forget_chunks()
        texts = self._forget_texts()  # last: it takes room to give some
        if trouble:
            raise trouble
        return Collected(gone, texts)

    def could_give(self, wanted: Iterable[Digest]) -> int:
        """Return how many bytes of history are removed if only the latest run has to stay.

        Runs that have any of the wanted contents do not count: they are needed here.
        """
        now, limits = time.time(), Limits(days=0)
        needed = {run for digest in wanted for run, _ in self._manifest.holders.replaced(digest)}
        if "" in needed:  # some run that died before it could be recorded
            needed.update(run.run for run in self._contents.unrecorded())
        gone = self._expired(self._kept(now, limits), now, limits)
        return sum(run.size for run in gone if run.run not in needed)

    def _kept(self, until: float, limits: Limits) -> list[Kept]:
        """Return what is kept from all runs: as recorded, or, if some would go by that, as it is there."""
        there = set(self._history.runs())
        kept = [
            Kept(run.name, run.at, run.size)
            if run.name in there or not run.size
            else Kept(run.name, run.at, 0, lost=True)
            for run in self._manifest.past.runs()[::-1]
        ]
        kept = [*in_order(kept), *self._contents.unrecorded()]
        if not self._expired(kept, until, limits):
            return kept
        return [
            run._replace(size=min(run.size, self._history.size(run.run))) if run.size else run for run in kept
        ]

    def _expired(self, kept: Iterable[Kept], until: float, limits: Limits) -> list[Kept]:
        return expired(kept, until, self._disk(), limits)

    def _set_sizes(self, kept: Iterable[Kept]) -> None:
        self._manifest.past.set_sizes((run.run, run.size) for run in kept if not run.lost)

    def _forget(
        self, kept: Iterable[Kept], runs: set[str], stay: set[int], until: float, texts: list[Extent]
    ) -> None:
        """Forget the runs of these names, and deletions that none of those that stay can bring back."""
        old = self._manifest.tombstones(int((until - TOMBSTONE_DAYS * DAY_SECONDS) * 1e6))
        with self._manifest.transaction():
            self._manifest.texts.keep(texts)
            self._set_sizes(kept)
            self._manifest.past.forget_runs(runs)
            pending = self._manifest.replicas.pending()
            self._manifest.forget([p for p in old if p not in pending and not self._is_needed(p, stay)])
            self._manifest.holders.forget_old()
            self._manifest.forget_folders()
            self._manifest.forget_ticks()
            self._manifest.forget_skipped(filter(self._is_gone, self._manifest.skipped()))
            if until:
                self._manifest.past.set_collected(int(time.time()))

    def forget_chunks_if_many(self) -> None:
        """Forget what nobody needs of how contents are cut, if that may be most; raises as `collect`.

        A large file that is synced at each edit would leave thousands of lists a day.
        """
        if self._lists.count() > 2 * self._manifest.lists() + FEW_LISTS:
            self._forget_chunks()

    def _forget_chunks(self) -> None:
        """Forget how contents are cut that are at no replica any more, and chunks that are in no file."""
        self._lists.collect(self._manifest.may_be_held)
        with self._manifest.transaction():
            self._manifest.set_lists(self._lists.count())
            self._manifest.samples.forget_old()

    def _forget_texts(self) -> int:
        """Forget texts that nobody needs, and keep those elsewhere of whose blocks little is left.

        Returns:
            How many were forgotten.
        """
        with self._manifest.transaction():
            forgotten, scattered = self._manifest.texts.forget_old(BLOCK // 4)
            moved = self._bases.move(scattered)
            self._manifest.texts.keep(moved.get(text.digest, text) for text in scattered)
        self._bases.free_all_but(self._manifest.texts.blocks())
        return forgotten

    def _remove(self, gone: Iterable[Kept]) -> OSError | None:
        """Remove what runs put away; return why something could not be, which keeps nothing else from it."""
        trouble: OSError | None = None
        for run in gone:
            try:
                self._history.remove(run.run)
            except OSError as error:
                trouble = error
        return trouble

    def _disk(self) -> int:
        disk = os.fstatvfs(self._root.fd)
        return disk.f_blocks * disk.f_frsize

    def _keep_bases(self, run: Run) -> None:
        """Keep the texts of a run's history that some replica may still have as its latest version."""
        if run.seq <= self._manifest.replicas.acknowledged():
            return
        replaced = (change.before for change in self._manifest.past.changed_by(run.seq))
        texts = {
            old.digest: old for old in replaced if old and old.kind is Kind.FILE and old.size <= MAX_TEXT
        }
        for digest, text in texts.items():
            with self._contents.in_history(digest) as fd:
                if fd is not None:
                    self._bases.add(digest, os.read(fd, text.size))

    def _is_needed(self, path: bytes, runs: Container[int]) -> bool:
        """Must a deletion be remembered? One of these runs can bring back what was there, or it is a ghost.

        A folder that was deleted but is still there holds ignored files, and must not look new.
        """
        if any(version.seq in runs for version in self._manifest.past.versions(path)):
            return True
        return not self._is_gone(path)

    def _is_gone(self, path: bytes) -> bool:
        """Is nothing at a path, for sure?"""
        folder, name = split(path)
        try:
            return not exists(name, self._root.directory(folder))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
