"""Damage: what a check of a replica finds, and what of it is harm. Owns the rules of `fsck`."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from p2psync.core.model import Digest, Entry, Kind, Row, Stat
from p2psync.core.revert import Changed
from p2psync.core.vector import ReplicaId


class What(StrEnum):
    """What a finding is, in the user's words."""

    MANIFEST = "manifest"
    """What is remembered cannot be so."""
    BASE = "base"
    """A text that is kept for merges is not what it should be."""
    HISTORY = "history"
    """What a run took away is not what it was."""
    ROTTEN = "rotten"
    """The bytes of a file are others, and nobody has written to it."""
    DIFFERENT = "different"
    """Two replicas have other contents under the same version."""
    UNREADABLE = "unreadable"
    CHANGED = "changed since"
    """By somebody, since the last sync."""
    MISSING = "missing"
    """Somebody took it out of the history."""


_HARMLESS = {What.CHANGED, What.MISSING}


class Finding(NamedTuple):
    """Something that a check found."""

    what: What
    path: bytes
    """Empty: it is about no path, or none is known."""
    why: str = ""
    peer: str = ""
    """Where; empty: here."""

    @property
    def is_damage(self) -> bool:
        """Is it more than what people do every day? What cannot be read may be all there, or not."""
        return self.what not in _HARMLESS


def judge_bytes(row: Row, digest: Digest, stat: Stat) -> What | None:
    """Return what a file is whose bytes and stat are these; None: what its row says."""
    if digest == row.entry.digest:
        return None
    return What.ROTTEN if row.stat == stat and not row.racy else What.CHANGED


def is_lost(entry: Entry, parent: Entry | None, visited: bool) -> bool:
    """Does an entry live where nothing can?

    Args:
        entry: as the next scan will leave it.
        parent: of the folder that it is in, as the next scan will leave it.
        visited: the scan looks at the path; what is ignored, or cannot be read, outlives its folder.
    """
    if not entry.alive:
        return False
    return parent is None or (visited and parent.kind is not Kind.DIRECTORY)


def is_unissued(entry: Entry, replica: ReplicaId, clock: int) -> bool:
    """Does a version claim a tick that this replica has not reached? It would be used again (I2)."""
    return entry.version.tick_of(replica) > clock


def went_to_history(change: Changed) -> bool:
    """Did a run put the bytes of a file into the history?"""
    before = change.before
    return before is not None and before.kind is Kind.FILE and not before.same_bytes(change.after)


def is_comparable(ours: Entry, theirs: Entry | None) -> bool:
    """Do both sides know a file in the same version?"""
    return theirs is not None and theirs.kind is ours.kind and theirs.version == ours.version


def compare(path: bytes, ours: Entry, theirs: Entry, found: Digest | None, peer: str) -> Finding | None:
    """Judge a file that a peer has in the same version as this replica, whose own bytes are judged already.

    Args:
        path: of the file.
        ours: its entry here.
        theirs: its entry there.
        found: the digest of its bytes there; None: they cannot be read, or are being changed.
        peer: who it is.
    """
    if not ours.same_bytes(theirs):
        return Finding(What.DIFFERENT, path, "has other contents there, under the same version (I1)", peer)
    if found is None:
        return Finding(What.UNREADABLE, path, "could not be read there", peer)
    return Finding(What.ROTTEN, path, ROT, peer) if found != theirs.digest else None


ROT = "its bytes are not those that were synced, though nobody wrote to it"
