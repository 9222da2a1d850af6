"""Revert: how a replica's paths become again what they were. Owns the rules of undo and restore.

What was, comes back as a new version that follows the present one: the other replicas take it over as
they would any edit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from p2psync.core.detect import vanish
from p2psync.core.model import Entry, Kind, Problem, Transition
from p2psync.core.paths import ancestors, is_conflict_copy, is_copy_of, original
from p2psync.core.vector import Stamp

CHANGED = "was changed since"
HOLDS_MORE = "holds what came since"
NO_FOLDER = "a folder on the way to it is no folder any more"
OPEN_CONFLICT = "is the other version of a conflict: `p2psync resolve` settles it"
NO_WAY = "a folder on the way to it is left alone"

_NEVER_WAS = Entry(kind=Kind.TOMBSTONE)


class Changed(NamedTuple):
    """What was done to a path."""

    path: bytes
    before: Entry | None
    after: Entry

    @property
    def goal(self) -> Entry | None:
        """What should be at the path again; None: nothing."""
        return self.before if self.before is not None and self.before.alive else None


class Present(NamedTuple):
    """What the manifest says now."""

    entries: Mapping[bytes, Entry | None]
    """Of the paths to be reverted, and all folders above them."""
    children: Mapping[bytes, Collection[bytes]]
    """What lives in each of these paths that is a folder."""
    former: Mapping[bytes, Entry]
    """What the folders above that are gone were."""


class Reverted(NamedTuple):
    """What to do, and what is left alone."""

    transitions: list[Transition]
    left: list[Problem]


def revert(changes: Iterable[Changed], present: Present, stamp: Stamp, force: bool = False) -> Reverted:
    """Return how paths become what they were before `changes`.

    Args:
        changes: what was done, a path once.
        present: how it stands now.
        stamp: marks the new versions.
        force: also where a path was changed since.
    """
    wanted: dict[bytes, Entry] = {}
    left: dict[bytes, str] = {}
    for change in changes:
        now = present.entries.get(change.path)
        if now is None or _same(change.goal, now) or not (force or differs(change)):
            continue
        if not force and not _same(change.after if change.after.alive else None, now):
            left[change.path] = CHANGED
        else:
            wanted[change.path] = again(change.goal, now, stamp) if change.goal else vanish(now, stamp)
    _spare_copies(wanted, left, present)
    _spare_folders(wanted, left, present)
    for path in sorted(path for path, entry in wanted.items() if entry.alive):
        if why := _make_way(path, wanted, left, present, stamp):
            del wanted[path]
            left[path] = why
    transitions = [Transition(path, present.entries.get(path), wanted[path]) for path in sorted(wanted)]
    return Reverted(transitions, [Problem(path, why) for path, why in sorted(left.items())])


def differs(change: Changed) -> bool:
    """Did it do anything to the contents or permissions? A touch did not, nor did a join of versions."""
    return not _same(change.goal, change.after)


def _same(goal: Entry | None, now: Entry) -> bool:
    return not now.alive if goal is None else now.same_content(goal)


def again(goal: Entry, now: Entry, stamp: Stamp) -> Entry:
    """Return what was, as a version that follows the present one."""
    return replace(goal, version=now.version.bump(stamp), revision=now.revision + 1)


def _spare_copies(wanted: dict[bytes, Entry], left: dict[bytes, str], present: Present) -> None:
    """Leave alone the conflict copies that would go, but for those whose contents have the path again.

    Else that would go everywhere, and settle the conflict against who made it.
    """
    for copy in [path for path, entry in wanted.items() if not entry.alive and is_conflict_copy(path)]:
        now, path = present.entries[copy], original(copy)
        there = wanted.get(path, present.entries.get(path))
        if now is None or (there is not None and there.same_bytes(now)):
            continue
        if is_copy_of(copy, path, now.mtime_ns, now.digest):
            del wanted[copy]
            left[copy] = OPEN_CONFLICT


def _spare_folders(wanted: dict[bytes, Entry], left: dict[bytes, str], present: Present) -> None:
    """Leave alone the folders that would go, but hold what stays; the deepest are looked at first."""
    for path in sorted(wanted, reverse=True):
        now = present.entries[path]
        if now and now.kind is Kind.DIRECTORY and wanted[path].kind is not Kind.DIRECTORY:
            children = present.children.get(path, ())
            if any(child not in wanted or wanted[child].alive for child in children):
                del wanted[path]
                left[path] = HOLDS_MORE


def _make_way(
    path: bytes, wanted: dict[bytes, Entry], left: Mapping[bytes, str], present: Present, stamp: Stamp
) -> str | None:
    """See that the folders above a path are there, or will be; return why they cannot, if so."""
    missing = []
    for folder in ancestors(path):
        there = wanted.get(folder, present.entries.get(folder))
        if there is not None and there.alive:
            if there.kind is not Kind.DIRECTORY:
                return NO_FOLDER
        elif folder in left:
            return NO_WAY
        else:
            missing.append(folder)
    for folder in missing:
        new = Entry(kind=Kind.DIRECTORY, mode=0o755, mtime_ns=stamp.tick * 1000)
        made = present.former.get(folder, new)
        wanted[folder] = again(made, present.entries.get(folder) or _NEVER_WAS, stamp)
    return None
