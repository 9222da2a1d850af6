"""The past that a manifest knows: runs, earlier versions, conflicts. The tables are the manifest's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from p2psync.columns import ENTRY, entry_of
from p2psync.core.contested import makers
from p2psync.core.model import Entry, Resolution
from p2psync.core.paths import join, split
from p2psync.core.reconcile import Contest
from p2psync.core.replica import Change
from p2psync.core.revert import Changed
from p2psync.core.vector import ReplicaId
from p2psync.database import told


class Run(NamedTuple):
    """What changed a replica's tree, but for its users."""

    seq: int
    """Of the commit that recorded it."""
    name: str
    """What people call it, and its folder in the history."""
    at: int
    """Seconds since 1970."""
    kind: str
    """sync, undo, restore or repair."""
    peer: str
    """The other side's name, or what was undone or restored."""
    size: int
    """Bytes that it put into the history."""


class Remembered(NamedTuple):
    """A version of a path."""

    entry: Entry
    born: int
    """The sequence number under which it was recorded."""
    seq: int | None
    """The one under which it was replaced; None: it is the present one."""


class Past:
    """What an open manifest knows of the past."""

    def __init__(self, connection: sqlite3.Connection, entry: Callable[[bytes], Entry | None]) -> None:
        """Use the tables of a manifest, which tells the present entry of a path."""
        self._db = connection
        self._entry = entry

    def add_run(self, run: Run, conflicts: Iterable[tuple[bytes, str, bytes]]) -> None:
        """Remember a run, and the conflicts (path, resolution, copy) that it settled."""
        self._db.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?)", run)
        self._db.executemany(
            "INSERT OR REPLACE INTO conflict VALUES (?, ?, ?, ?)",
            ((run.seq, *conflict) for conflict in conflicts),
        )

    def name_run(self, seq: int, peer: str) -> None:
        """Remember whom a run was with."""
        self._db.execute("UPDATE run SET peer = ? WHERE seq = ?", (peer, seq))

    def runs(self) -> list[Run]:
        """Return all runs, the latest first."""
        return [Run(*columns) for columns in self._db.execute("SELECT * FROM run ORDER BY seq DESC")]

    def has_run(self, name: str) -> bool:
        """Was there a run of that name?"""
        return self._db.execute("SELECT 1 FROM run WHERE name = ?", (name,)).fetchone() is not None

    def kept_in_history(self) -> int:
        """Return how many bytes all runs together put into the history."""
        (size,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM run").fetchone()
        return int(size)

    def set_sizes(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Remember how many bytes are still kept from runs, by their names."""
        self._db.executemany(
            "UPDATE run SET size = ? WHERE name = ? AND size > ?",
            ((size, name, size) for name, size in sizes),
        )

    def changed_by(self, seq: int) -> list[Changed]:
        """Return what the run recorded under `seq` did, by path; what became of it since does not matter."""
        found = self._db.execute(f"SELECT {ENTRY}, path FROM remembered WHERE seq = ?", (seq,))
        before = {columns[8]: self._read(columns) for columns in found}
        after = {change.path: change.entry for change in self._recorded(seq)}
        found = self._db.execute(f"SELECT {ENTRY}, path FROM remembered WHERE born = ?", (seq,))
        after |= {columns[8]: self._read(columns) for columns in found}
        return [Changed(path, before.get(path), after[path]) for path in sorted(after)]

    def _recorded(self, seq: int) -> Iterator[Change]:
        """Yield the versions recorded under `seq` that are still the present ones, touched since or not."""
        found = self._db.execute(
            f"SELECT {ENTRY}, path, name FROM entry JOIN directory ON directory.id = entry.directory"
            " WHERE (seq = ? AND born = ?) OR (born = ? AND born < seq)",
            (seq, seq, seq),
        )
        return (Change(join(columns[8], columns[9]), self._read(columns)) for columns in found)

    def versions(self, path: bytes) -> list[Remembered]:
        """Return every version of a path that is known, the present one last."""
        found = self._db.execute(
            f"SELECT {ENTRY}, born, seq FROM remembered WHERE path = ? ORDER BY seq", (path,)
        )
        versions = [Remembered(self._read(columns), columns[8], columns[9]) for columns in found]
        directory, name = split(path)
        present = self._db.execute(
            f"SELECT {ENTRY}, born FROM entry WHERE name = ?"
            " AND directory = (SELECT id FROM directory WHERE path = ?)",
            (name, directory),
        ).fetchone()
        return [*versions, Remembered(self._read(present), present[8], None)] if present else versions

    def conflicts(self, path: bytes) -> dict[int, tuple[str, bytes]]:
        """Return how conflicts about a path ended: by the sequence number of the run, resolution and copy."""
        found = self._db.execute("SELECT seq, resolution, copy FROM conflict WHERE path = ?", (path,))
        return {seq: (resolution, copy) for seq, resolution, copy in found}

    def contests(self, here: ReplicaId, paths: Collection[bytes]) -> dict[bytes, Contest]:
        """Return, by path, the conflicts about these whose loser was set aside and is still there.

        Args:
            here: whose past this is.
            paths: from the root.
        """
        found = self._db.execute("SELECT path, max(seq), resolution, copy FROM conflict GROUP BY path")
        contests = {}
        for path, settled, resolution, copy in found.fetchall():
            loser = self._entry(copy) if path in paths and resolution == Resolution.SET_ASIDE else None
            if loser is None or not loser.alive:
                continue
            versions = self.versions(path)
            winner = next((version.entry for version in versions if version.born == settled), None)
            before = next((version.entry for version in versions if version.seq == settled), None)
            if winner and before:
                lost_here = not before.same_bytes(winner)
                made = next(version.entry for version in self.versions(copy) if version.entry.alive)
                had = {here} if lost_here else self._peer_of(settled)
                losers = {*had, makers(winner, made, [before]).loser} if had else ()
                contests[path] = Contest(winner.version, lost_here, copy, losers)
        return contests

    def _peer_of(self, seq: int) -> set[ReplicaId]:
        """Return the other side of a run; several, if they have one name; none, if it is not known."""
        found = self._db.execute(
            "SELECT replica FROM peer WHERE name = (SELECT peer FROM run WHERE seq = ?)", (seq,)
        )
        return {ReplicaId(replica) for (replica,) in found}

    def set_aside(self) -> list[tuple[bytes, bytes, int | None]]:
        """Return the conflict copies that syncs here made: for which path, where, and when (s since 1970).

        When is None, if the history of that sync was cleaned.
        """
        found = self._db.execute(
            "SELECT path, copy, max(at) FROM conflict LEFT JOIN run USING (seq)"
            " WHERE copy != x'' GROUP BY copy"
        )
        return [(path, copy, at) for path, copy, at in found]

    def forget_runs(self, names: Iterable[str]) -> None:
        """Forget runs whose history is gone, and the conflicts that they settled, but not open ones."""
        for name in names:
            found = self._db.execute(
                "SELECT path, seq, copy FROM conflict WHERE seq IN (SELECT seq FROM run WHERE name = ?)",
                (name,),
            )
            for path, seq, copy in found.fetchall():
                there = self._entry(copy) if copy else None
                if there is None or not there.alive:
                    self._db.execute("DELETE FROM conflict WHERE path = ? AND seq = ?", (path, seq))
            self._db.execute("DELETE FROM run WHERE name = ?", (name,))

    def collected_at(self) -> int:
        """Return when the history was last cleaned, or begun, in seconds since 1970; 0: that is not known."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'collected'").fetchone()
        return int(found[0]) if found else 0

    def set_collected(self, at: int) -> None:
        """Remember when the history was cleaned."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('collected', ?)", (at,))

    def _read(self, columns: Sequence[Any]) -> Entry:
        with told(self._db):
            return entry_of(columns)
