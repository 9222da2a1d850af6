"""Collect: removes history that is too old or too much, and tombstones that nobody needs any more."""

from __future__ import annotations

import contextlib
import os
import time

from p2psync.bases import Bases
from p2psync.contents import Contents
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Kind
from p2psync.core.paths import split
from p2psync.core.retention import DAY_SECONDS, Kept, Limits, expired
from p2psync.disk import Root, exists
from p2psync.history import History, began
from p2psync.manifest import Manifest, Run

TOMBSTONE_DAYS = 30
"""A deletion is remembered at least this long, and until all replicas that are known have it."""


class Collector:
    """Cleans up behind one replica."""

    def __init__(
        self, root: Root, manifest: Manifest, history: History, contents: Contents, bases: Bases
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._history = history
        self._contents = contents
        self._bases = bases

    def collect_if_due(self, limits: Limits) -> None:
        """Collect if the last time is a day ago, or there is too much; raises as `collect`."""
        too_much = self._manifest.kept_in_history() > self._disk() * limits.percent / 100
        if too_much or time.time() - self._manifest.collected_at() > DAY_SECONDS:
            self.collect(limits)

    def collect(self, limits: Limits, dry_run: bool = False) -> list[Kept]:
        """Remove the history that `limits` do not allow; return what went.

        Texts that a merge may still start from are kept among the bases.

        Raises:
            OSError: some of it cannot be removed.
            ReplicaError: the manifest cannot be written to.
        """
        now = time.time()
        runs = {run.name: run for run in self._manifest.runs()}
        kept = [self._kept(name, runs.get(name)) for name in {*runs, *self._history.runs()}]
        gone = expired(kept, now, self._disk(), limits)
        if dry_run:
            return gone
        for run in gone:
            if run.run in runs:
                self._keep_bases(runs[run.run])
        old = self._manifest.tombstones(int((now - TOMBSTONE_DAYS * DAY_SECONDS) * 1e6))
        with self._manifest.transaction():
            self._manifest.keep(self._bases.flush())
            self._manifest.forget_runs(run.run for run in gone)
            self._manifest.forget(path for path in old if not self._is_there(path))
            self._manifest.set_collected(int(now))
        for run in gone:
            self._history.remove(run.run)
        return gone

    def _kept(self, name: str, run: Run | None) -> Kept:
        # One that is not recorded died before it could be, or under a manifest that was lost.
        return Kept(name, run.at, run.size) if run else Kept(name, began(name), self._history.size(name))

    def _disk(self) -> int:
        disk = os.fstatvfs(self._root.fd)
        return disk.f_blocks * disk.f_frsize

    def _keep_bases(self, run: Run) -> None:
        """Keep the texts of a run's history that some replica may still have as its latest version."""
        if run.seq <= self._manifest.acknowledged():
            return
        for _, before, _ in self._manifest.changed_by(run.seq):
            if before and before.kind is Kind.FILE and before.size <= MAX_TEXT:
                with self._contents.in_history(before.digest) as fd:
                    if fd is not None:
                        self._bases.add(before.digest, os.read(fd, before.size))

    def _is_there(self, path: bytes) -> bool:
        """Is a folder that was deleted still there? It holds ignored files, and must not look new."""
        folder, name = split(path)
        with contextlib.suppress(OSError):
            return exists(name, self._root.directory(folder))
        return False
