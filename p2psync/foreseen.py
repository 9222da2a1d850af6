"""Foreseen: rows that are written while their files are still on their way. Owns the transaction they are in.

Of what comes with a new folder all is known as soon as it is staged. What does not arrive as foreseen is
corrected when the transaction ends (I5).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence

from p2psync.apply import vouched
from p2psync.bases import Bases
from p2psync.core.model import Entry, Kind, Record, Row, Stat, Transition
from p2psync.core.paths import split
from p2psync.manifest import Manifest

_BATCH = 1000
"""Rows that are written at once."""


class Foreseen:
    """The rows of the files that arrive with the new folders of one plan."""

    def __init__(self, manifest: Manifest, transitions: Iterable[Transition] = ()) -> None:
        """Foresee what `transitions` do; nothing is written yet."""
        self._manifest = manifest
        self._folders: set[bytes] = set()
        self._known: set[bytes] = set()
        """Paths that have rows: those, tombstones mostly, stay until what replaces them is there."""
        for step in transitions:
            if step.expected is not None:
                self._known.add(step.path)
            elif step.wanted.kind is Kind.DIRECTORY:
                self._folders.add(step.path)
        self._seq = 0
        """Under which sequence number they are written; 0: there are none."""
        self.rows: dict[bytes, Row] = {}
        """By path: those that are written, and have not arrived yet."""

    @property
    def has_begun(self) -> bool:
        """Is there a transaction?"""
        return bool(self._seq)

    def write(self, staged: Iterable[tuple[bytes, Entry, Stat]], bases: Bases) -> None:
        """Write the rows of those of the staged files that will arrive so, and where their texts are kept."""
        now_ns = time.time_ns()
        arriving = (new for new in staged if split(new[0])[0] in self._folders and new[0] not in self._known)
        while batch := list(itertools.islice(arriving, _BATCH)):
            if not self._seq:
                self._manifest.begin()
                self._seq = self._manifest.next_seq()
            records = [Record(path, vouched(entry, stat, now_ns)) for path, entry, stat in batch]
            self._manifest.record_under(self._seq, records)
            self._manifest.texts.keep(bases.written())
            self.rows.update((path, row) for path, row, _ in records)

    def known(self, paths: Sequence[bytes]) -> list[Row | None]:
        """Return the rows of paths as they are without what is only foreseen."""
        rows = self._manifest.rows_at([path for path in paths if path not in self.rows])
        return [None if path in self.rows else next(rows) for path in paths]

    def has_arrived(self, record: Record) -> bool:
        """Is this just what was foreseen? Then its row is written; it is asked once of each path."""
        return self.rows.pop(record.path, None) == record.row

    def correct(self, records: Sequence[Record]) -> int:
        """Write what came otherwise than foreseen; return the sequence number of all."""
        seq, self._seq = self._seq, 0
        if not seq:
            return self._manifest.record(records)
        self._manifest.forget_present(self.rows)
        self.rows = {}
        self._manifest.record_under(seq, records)
        return seq
