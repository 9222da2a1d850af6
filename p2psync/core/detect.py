"""Detect: what a look at the disk means for the manifest. Owns the rules of a local change."""

from __future__ import annotations

from msgspec.structs import replace

from p2psync.core.model import Entry, Kind
from p2psync.core.vector import NOTHING, Stamp

RACY_NS = 2_000_000_000
"""The coarsest clock in use (FAT): a file written less than this before it was hashed may be written to
again without a trace in its times."""


def observe(known: Entry | None, seen: Entry, stamp: Stamp) -> Entry:
    """Return the entry for `seen`, which is at the path now.

    What is unchanged stays `known`; a touch changes the time but makes no version, so that it never
    disputes an edit; all else follows `known` as a new version. The times of directories change with
    every child and mean nothing.

    Args:
        known: the manifest's entry, None if there is none.
        seen: what the disk shows; its version is not looked at.
        stamp: marks the new version.
    """
    if known is None or not known.same_content(seen):
        version = known.version if known else NOTHING
        revision = known.revision if known else 0
        return replace(seen, version=version.bump(stamp), revision=revision + 1)
    if seen.kind is Kind.DIRECTORY or seen.mtime_ns == known.mtime_ns:
        return known
    return replace(known, mtime_ns=seen.mtime_ns)


def vanish(known: Entry, stamp: Stamp) -> Entry:
    """Return the entry for a path where nothing is any more: its tombstone."""
    if not known.alive:
        return known
    return Entry(kind=Kind.TOMBSTONE, version=known.version.bump(stamp), revision=known.revision + 1)


def is_racy(mtime_ns: int, ctime_ns: int, hashed_at_ns: int) -> bool:
    """Could the file be written to again, after it was hashed, without a change of its mtime?

    Who gave a file a time in the future did so at its ctime, and nobody can choose that.

    Source: git, Documentation/technical/racy-git.txt.
    """
    return (ctime_ns if mtime_ns > hashed_at_ns else mtime_ns) > hashed_at_ns - RACY_NS
