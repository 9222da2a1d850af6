"""The vocabulary: entries, transitions, outcomes, plans. Owns the values that all other modules pass on."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, NamedTuple, NewType

import msgspec

from p2psync.core.vector import NOTHING, Version

Digest = NewType("Digest", bytes)
"""xxh3-128 of a file's bytes or of a symlink's target: 16 bytes."""

NO_DIGEST = Digest(b"")


class Kind(IntEnum):
    """What a path is."""

    TOMBSTONE = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


_NOTHING = Kind.TOMBSTONE
"""Bound here: to look it up takes longer than to compare, and it is asked for of every path, often."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """One version of one path."""

    kind: Kind
    version: Version = NOTHING
    revision: int = 0
    """1 + the largest revision that this version follows."""
    digest: Digest = NO_DIGEST
    size: int = 0
    """Bytes of a file."""
    mode: int = 0
    """Permission bits (0o777) of a file or directory."""
    mtime_ns: int = 0
    target: bytes = b""
    """Where a symlink points; never resolved."""

    @property
    def alive(self) -> bool:
        """Is there something at the path?"""
        return self.kind is not _NOTHING

    def same_bytes(self, other: Entry) -> bool:
        """Are kind and contents equal, whatever the permissions and times?"""
        return self.kind is other.kind and self.digest == other.digest and self.size == other.size

    def same_content(self, other: Entry) -> bool:
        """Are kind, contents and permissions equal? Times are no content: a touch is not an edit."""
        return self.same_bytes(other) and self.mode == other.mode


def is_folder(entry: Entry | None) -> bool:
    """Is it a directory?"""
    return entry is not None and entry.kind is Kind.DIRECTORY


class Stat(NamedTuple):
    """What vouches for a digest: as long as these stand, the file was not written to."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Row(NamedTuple):
    """A manifest row: an entry, and what vouches for it."""

    entry: Entry
    stat: Stat | None = None
    """Of a file, else None."""
    racy: bool = False
    """The stat may stay the same although the file is written to: look again. Without a stat: `hidden`."""

    @property
    def hidden(self) -> bool:
        """Was it ignored when it was last looked at? Nobody saw what became of it since."""
        return self.racy and self.stat is None


class Record(NamedTuple):
    """A row to be written to the manifest."""

    path: bytes
    row: Row
    replaces: Entry | None = None
    """What the manifest had there; worth remembering as a base."""


class Extent(NamedTuple):
    """Where a kept text is: `size` bytes from `start` of a compressed block in the file of bases."""

    digest: Digest
    offset: int
    length: int
    start: int
    size: int


class Prefer(StrEnum):
    """What becomes of two versions that cannot be merged."""

    BOTH = "both"
    """The winner keeps the name, the loser becomes a conflict copy."""
    NEWEST = "newest"
    LOCAL = "local"
    PEER = "peer"
    SKIP = "skip"
    """Neither side is touched; the conflict stays open."""


class Resolution(StrEnum):
    """How a conflict ended."""

    MERGED = "merged"
    KEPT = "kept"
    """Edited on one side, deleted on the other: the edit lives."""
    SET_ASIDE = "set-aside"
    DISPLACED = "displaced"
    """The loser is in the history of the replica that had it."""
    SKIPPED = "skipped"
    OVERTAKEN = "overtaken"
    """The side that had lost wrote over the winner while the conflict was open: that is set aside too."""


class Transition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A compare-and-swap on one path of one replica."""

    path: bytes
    expected: Entry | None
    wanted: Entry
    after: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=16)] = ()
    """Paths whose transitions on the same side must not have failed: what is set aside there must
    exist before this one displaces it (I3)."""
    resolution: Resolution | None = None
    """How the conflict ended that this settles."""


class Action(StrEnum):
    """What a transition does, in the user's words."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    REPLACE = "replace"
    """By another kind: a file by a folder, say."""
    MODE = "mode"
    TOUCH = "touch"
    NOTHING = "nothing"
    """Only what is known of it changes."""


def action_of(transition: Transition) -> Action:
    """Return what a transition does."""
    expected, wanted = transition.expected, transition.wanted
    if expected is None or not expected.alive:
        return Action.CREATE if wanted.alive else Action.NOTHING
    if not wanted.alive:
        return Action.DELETE
    if expected.kind is not wanted.kind:
        return Action.REPLACE
    if not expected.same_bytes(wanted):
        return Action.UPDATE
    if expected.mode != wanted.mode:
        return Action.MODE
    if expected.mtime_ns != wanted.mtime_ns and wanted.kind is not Kind.DIRECTORY:
        return Action.TOUCH
    return Action.NOTHING


def makes(transition: Transition) -> bool:
    """Does it put something at the path that is not there yet, rather than change or remove what is?"""
    expected, wanted = transition.expected, transition.wanted
    return wanted.alive and not (expected is not None and expected.same_bytes(wanted))


def needs_content(transition: Transition) -> bool:
    """Does it take the contents of a file from the stage?"""
    return transition.wanted.kind is Kind.FILE and makes(transition)


ShownPath = Annotated[bytes, msgspec.Meta(max_length=1 << 16)]
"""A path that is told to people and used for nothing else: it may be one that cannot be synced."""


class Problem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why one path was left alone. Never a reason to stop, and never a deletion."""

    path: ShownPath
    why: str


class Conflict(NamedTuple):
    """Two concurrent versions of one path, and what was decided."""

    path: bytes
    resolution: Resolution
    copy: bytes | None = None
    """Where the loser was set aside."""

    @property
    def open(self) -> bool:
        """Is there something for a person to look at?"""
        return self.resolution in (Resolution.SET_ASIDE, Resolution.OVERTAKEN, Resolution.SKIPPED)
