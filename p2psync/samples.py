"""Samples: some chunks of large contents, by which it is found what new contents may be made of.

The table is the manifest's; which chunks are taken, `chunks.samples_of` says.
"""

from __future__ import annotations

import collections
import sqlite3
from collections.abc import Iterable, Sequence

from p2psync.columns import VALUES
from p2psync.core.model import Digest
from p2psync.core.paths import join
from p2psync.core.replica import Content


class Samples:
    """The samples that an open manifest knows of."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use the tables of a manifest."""
        self._db = connection

    def add(self, samples: Iterable[tuple[bytes, Digest]]) -> None:
        """Remember chunks, by their hashes, and in which contents they are; see `chunks.samples_of`."""
        self._db.executemany("INSERT OR IGNORE INTO sample VALUES (?, ?)", samples)

    def are_any(self) -> bool:
        """Is any chunk remembered?"""
        return self._db.execute("SELECT 1 FROM sample LIMIT 1").fetchone() is not None

    def contents_with(self, hashes: Sequence[bytes], most: int) -> list[Digest]:
        """Return in which contents most of these chunks are, those with the most of them first."""
        found: collections.Counter[Digest] = collections.Counter()
        for start in range(0, len(hashes), VALUES):
            chunk = hashes[start : start + VALUES]
            marks = ",".join("?" * len(chunk))
            rows = self._db.execute(f"SELECT digest FROM sample WHERE hash IN ({marks})", chunk)
            found.update(digest for (digest,) in rows)
        return [digest for digest, _ in found.most_common(most)]

    def unsampled(self, since: int, least: int, most: int, count: int) -> list[tuple[bytes, Content]]:
        """Return the files not changed after `since`, from `least` to `most` bytes, that were not sampled.

        The latest `count` of them.
        """
        found = self._db.execute(
            "SELECT path, name, digest, size FROM entry JOIN directory ON directory.id = entry.directory"
            " WHERE kind = 1 AND +seq <= ? AND size BETWEEN ? AND ? AND NOT EXISTS"
            " (SELECT 1 FROM sample WHERE hash = x'' AND sample.digest = entry.digest)"
            " ORDER BY +seq DESC LIMIT ?",
            (since, least, most, count),
        )
        return [(join(folder, name), Content(digest, size)) for folder, name, digest, size in found]

    def forget_old(self) -> None:
        """Forget the chunks of contents that are in no file any more."""
        self._db.execute("DELETE FROM sample WHERE digest NOT IN (SELECT digest FROM entry WHERE kind = 1)")
