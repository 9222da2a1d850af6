"""Texts: where those are that merges may start from, and which of them are still needed.

The table is the manifest's, the file that it points into is that of `bases`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from p2psync.columns import BASES, IS_COMMON, VALUES, blob
from p2psync.core.model import Digest, Extent

_NEEDED = f"""
SELECT digest FROM entry WHERE kind = 1
UNION ALL SELECT digest FROM remembered WHERE kind = 1 AND path IN (SELECT path FROM conflict)
UNION ALL SELECT digest FROM (
    SELECT *, row_number() OVER (PARTITION BY path ORDER BY seq DESC) AS place FROM remembered)
    WHERE kind = 1 AND (place <= {BASES} OR {IS_COMMON})"""


class Texts:
    """The texts that an open manifest knows of."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use the tables of a manifest."""
        self._db = connection

    def extent(self, digest: Digest) -> Extent | None:
        """Return where the text with this digest is kept."""
        found = self._db.execute("SELECT * FROM kept WHERE digest = ?", (digest,)).fetchone()
        return Extent(*found) if found else None

    def kept(self, digests: Sequence[Digest]) -> set[Digest]:
        """Return which of these texts are kept."""
        found: set[Digest] = set()
        for start in range(0, len(digests), VALUES):
            chunk = digests[start : start + VALUES]
            marks = ",".join("?" * len(chunk))
            rows = self._db.execute(f"SELECT digest FROM kept WHERE digest IN ({marks})", chunk)
            found.update(digest for (digest,) in rows)
        return found

    def keep(self, extents: Iterable[Extent]) -> None:
        """Remember where texts are kept."""
        self._db.executemany(
            "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)",
            ((blob(digest), *place) for digest, *place in extents),
        )

    def count_old(self) -> int:
        """Return how many texts `forget_old` would forget."""
        found = self._db.execute(f"SELECT count(*) FROM kept WHERE digest NOT IN ({_NEEDED})")
        return int(found.fetchone()[0])

    def forget_old(self, little: int) -> tuple[int, list[Extent]]:
        """Forget the texts that no merge may start from any more.

        Of each path the present one stays, those of the versions of `Manifest.bases`, and where a conflict is
        remembered those of all versions.

        Args:
            little: a block that lost some, and of which less than so many bytes are left, is given up.

        Returns:
            How many were forgotten, and the texts that were in such blocks, to be kept elsewhere.
        """
        before = self.blocks()
        forgotten = self._db.execute(f"DELETE FROM kept WHERE digest NOT IN ({_NEEDED})").rowcount
        after = self.blocks() if forgotten else before
        given_up = {block for block, size in after.items() if size < min(little, before[block])}
        if not given_up:
            return forgotten, []
        texts = [text for text in self.all() if (text.offset, text.length) in given_up]
        self.forget(text.digest for text in texts)
        return forgotten, texts

    def forget(self, digests: Iterable[Digest]) -> None:
        """Forget where these texts are kept."""
        self._db.executemany("DELETE FROM kept WHERE digest = ?", ((digest,) for digest in digests))

    def blocks(self) -> dict[tuple[int, int], int]:
        """Return how many bytes of text are in each block, by offset and length, in the file's order."""
        found = self._db.execute(
            "SELECT offset, length, sum(size) FROM kept GROUP BY offset, length ORDER BY offset"
        )
        return {(offset, length): size for offset, length, size in found}

    def all(self) -> Iterator[Extent]:
        """Yield where all texts are kept, in the order of the file."""
        return map(Extent._make, self._db.execute("SELECT * FROM kept ORDER BY offset"))
