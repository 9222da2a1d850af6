"""Holders: at which paths contents are, or were. Owns the table that finds them by their digest.

It has all paths at which contents ever were, and whoever asks compares them with the rows: so what goes costs
nothing here. An index of SQLite's would be written to for each row, at a random place, for digests are in no
order; this table is, once a transaction, in theirs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from p2psync.columns import IS_COMMON, VALUES
from p2psync.core.model import Digest
from p2psync.core.paths import join, split

_EARLIER = """
directory CROSS JOIN remembered
ON remembered.path = CAST(iif(directory.path = x'', name, directory.path || '/' || name) AS BLOB)
WHERE directory.id = holder.directory AND remembered.kind = 1 AND remembered.digest = holder.digest
"""
"""The earlier versions of a holder's path that had its contents. SQLite joins in the order written."""
_ADD = """
INSERT OR IGNORE INTO holder
SELECT digest, directory, name FROM entry WHERE seq = ?1 AND kind = 1
UNION ALL SELECT digest, id, name_of(remembered.path)
FROM remembered JOIN directory ON directory.path = folder_of(remembered.path)
WHERE born = ?1 AND +seq = ?1 AND kind = 1
ORDER BY digest, directory, name
"""
"""All that was recorded under a number; mostly no path was so twice."""
_FILES = "SELECT digest, directory, name FROM entry WHERE kind = 1"
_BEFORE = """
SELECT DISTINCT digest, id, name_of(remembered.path)
FROM remembered JOIN directory ON directory.path = folder_of(remembered.path) WHERE kind = 1
"""
MAKE = (
    "INSERT OR IGNORE INTO directory (path) SELECT folder_of(path) FROM remembered WHERE kind = 1",
    f"INSERT OR IGNORE INTO holder {_FILES} ORDER BY digest, directory, name",
    f"INSERT OR IGNORE INTO holder {_BEFORE}",
)
"""Statements that add all that lacks."""


class Holders:
    """What an open manifest knows of where contents are."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use the tables of a manifest."""
        self._db = connection
        connection.create_function("folder_of", 1, lambda path: split(path)[0])
        connection.create_function("name_of", 1, lambda path: split(path)[1])
        self._recorded = 0
        """Under which number rows were recorded that are to be added; 0: none were."""

    def recorded(self, seq: int, files: bool) -> None:
        """Rows are about to be recorded under this sequence number, some of them files or not."""
        if self._recorded != seq:
            self.add()  # what is recorded now may replace it
            self._recorded = seq if files else 0

    def add(self) -> None:
        """Add what was recorded: when a transaction ends, or when somebody asks."""
        if self._recorded:
            self._db.execute(_ADD, (self._recorded,))
            self._recorded = 0

    def roll_back(self) -> None:
        """The transaction is forgotten, and what was recorded in it."""
        self._recorded = 0

    def of(self, digest: Digest) -> Iterator[bytes]:
        """Yield the paths of the files that have these contents, read as they are asked for."""
        self.add()
        found = self._db.execute(
            "SELECT path, name FROM holder CROSS JOIN entry USING (directory, name)"
            " CROSS JOIN directory ON directory.id = directory"
            " WHERE holder.digest = ? AND kind = 1 AND entry.digest = holder.digest",
            (digest,),
        )
        return (join(directory, name) for directory, name in found)

    def any_of(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        """Return, for those of these contents that some file has, the path of one."""
        self.add()
        held: dict[Digest, bytes] = {}
        for start in range(0, len(digests), VALUES):
            chunk = digests[start : start + VALUES]
            found = self._db.execute(
                "SELECT first.digest, path, name, kind = 1 AND entry.digest = first.digest"
                " FROM (SELECT digest, min(directory) AS directory, name FROM holder"  # the name of the least
                f" WHERE digest IN ({','.join('?' * len(chunk))}) GROUP BY digest) AS first"
                " LEFT JOIN entry USING (directory, name) LEFT JOIN directory ON directory.id = directory",
                chunk,
            )
            for digest, folder, name, is_there in found.fetchall():
                path = join(folder, name) if is_there else next(self.of(digest), None)
                if path is not None:
                    held[digest] = path
        return held

    def before(self, digest: Digest) -> list[tuple[bytes, bool]]:
        """Return the paths that had these contents in an earlier version.

        And whether that was the present one when its path was last in step with some other replica.
        """
        self.add()
        found = self._db.execute(
            f"SELECT path, {IS_COMMON} FROM"
            f" (SELECT remembered.* FROM holder CROSS JOIN {_EARLIER} AND holder.digest = ?)",
            (digest,),
        )
        return [(path, bool(is_common)) for path, is_common in found]

    def replaced(self, digest: Digest) -> Iterator[tuple[str, bytes]]:
        """Yield where in the history a file with this digest should be: a run's name, and the path there.

        No name: it was found replaced; a run may have done so that died before it could be recorded.
        """
        self.add()
        yield from self._db.execute(
            "SELECT coalesce((SELECT name FROM run WHERE run.seq = remembered.seq), ''), remembered.path"
            f" FROM holder CROSS JOIN {_EARLIER} AND holder.digest = ?",
            (digest,),
        )

    def missing(self) -> int:
        """Return how many files, and earlier versions of some, would not be found by their contents."""
        found = self._db.execute(
            f"SELECT count(*) FROM (SELECT * FROM ({_FILES}) EXCEPT SELECT * FROM holder"
            f" UNION ALL SELECT * FROM (SELECT * FROM ({_BEFORE}) EXCEPT SELECT * FROM holder))"
        )
        return int(found.fetchone()[0])

    def make(self) -> None:
        """Add all that is missing."""
        for statement in MAKE:
            self._db.execute(statement)

    def forget_old(self) -> None:
        """Forget the paths at which nobody knows of the contents any more, if those are most."""
        counts = "(SELECT count(*) FROM holder), count(*) FROM"
        (rows, files) = self._db.execute(f"SELECT {counts} entry WHERE kind = 1").fetchone()
        (rows, before) = self._db.execute(f"SELECT {counts} remembered WHERE kind = 1").fetchone()
        if rows <= 2 * (files + before):
            return
        self._db.execute(
            "DELETE FROM holder WHERE digest IS NOT (SELECT entry.digest FROM entry"
            " WHERE entry.directory = holder.directory AND entry.name = holder.name AND kind = 1)"
            f" AND NOT EXISTS (SELECT 1 FROM {_EARLIER})"
        )
