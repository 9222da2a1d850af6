"""Columns: how an entry is kept in the tables of a manifest, and what statements share. Owns their order."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from p2psync.core.model import Entry, Kind, Row, Stat
from p2psync.core.vector import Version

_T = TypeVar("_T")

ENTRY = "kind, version, revision, digest, size, mode, mtime_ns, target"
_KINDS = list(Kind)

BASES = 8
"""Earlier versions of a path that a merge may start from, whoever has them; and see `Manifest.bases`."""
WAITED_FOR = "(SELECT * FROM peer WHERE replica >= 0 AND mark IS NOT NULL)"
"""Those replicas that may come back with what they had when they were last in step. Those below 0 may only
read here, and nothing is kept for them."""
IS_COMMON = (
    f"(EXISTS (SELECT 1 FROM {WAITED_FOR} WHERE born <= acknowledged AND acknowledged < seq)"
    f" OR EXISTS (SELECT 1 FROM left_behind WHERE replica IN (SELECT replica FROM {WAITED_FOR})"
    " AND pending = path AND born <= acknowledged AND acknowledged < seq))"
)
"""Was a remembered version the present one when its path was last in step with another that is waited for?"""
VALUES = 500
"""Values bound to one statement: below SQLite's oldest limit, 999."""

blob = bytearray
"""Bytes to be written, for many rows: `sqlite3` asks of each that are `bytes` whether they are to be adapted
first, which takes as long as to write them."""


def entry_columns(entry: Entry) -> tuple[object, ...]:
    """Return an entry as the columns of `ENTRY`."""
    return (
        int(entry.kind),
        blob(entry.version.encode()),
        entry.revision,
        blob(entry.digest),
        entry.size,
        entry.mode,
        entry.mtime_ns,
        blob(entry.target),
    )


def version_of(data: bytes) -> Version:
    """Return the version that a column holds.

    Raises:
        sqlite3.DatabaseError: there is none.
    """
    try:
        return Version.decode(data)
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a version that is none: {error}") from error


def entry_of(columns: Sequence[Any]) -> Entry:
    """Return the entry that is in the first of these columns.

    Raises:
        sqlite3.DatabaseError: there is none.
    """
    try:
        kind, version, revision, digest, size, mode, mtime_ns, target = columns[:8]
        return Entry(
            kind=_KINDS[kind],
            version=Version.decode(version),
            revision=revision,
            digest=digest,
            size=size,
            mode=mode,
            mtime_ns=mtime_ns,
            target=target,
        )
    except (ValueError, IndexError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a row that is none: {error}") from error


def decoded(decode: Callable[[Sequence[Any]], _T], columns: Sequence[Any]) -> _T | None:
    """Return what is in columns of a manifest that may be damaged; None: nothing that could be."""
    try:
        return decode(columns)
    except (TypeError, sqlite3.DatabaseError):
        return None


def row_of(columns: Sequence[Any]) -> Row:
    """Return an entry and, in the four columns after it, what vouches for it; raises as `entry_of`."""
    entry = entry_of(columns)
    mtime_ns, ctime_ns, inode, racy = columns[8:12]
    if mtime_ns is None:
        return Row(entry, None, bool(racy))
    return Row(entry, Stat(entry.size, mtime_ns, ctime_ns, inode), bool(racy))
