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
from p2psync.core.paths import ancestors
from p2psync.core.vector import NOTHING, Stamp


class Changed(NamedTuple):
    """What was done to a path."""

    path: bytes
    before: Entry | None
    after: Entry


class Reverted(NamedTuple):
    """What to do, and what is left alone."""

    transitions: list[Transition]
    left: list[Problem]


def revert(
    changes: Iterable[Changed],
    present: Mapping[bytes, Entry | None],
    children: Mapping[bytes, Collection[bytes]],
    stamp: Stamp,
    force: bool = False,
) -> Reverted:
    """Return how paths become what they were before `changes`.

    Args:
        changes: what was done, a path once.
        present: what the manifest says now, of these paths and all folders above them.
        children: what lives in each folder that `changes` made.
        stamp: marks the new versions.
        force: also where a path was changed since.
    """
    wanted: dict[bytes, Entry] = {}
    left: dict[bytes, str] = {}
    for path, before, after in changes:
        now = present.get(path)
        goal = before if before is not None and before.alive else None
        if now is None or _same(goal, now) or _same(goal, after):
            continue
        if not force and not _same(after if after.alive else None, now):
            left[path] = "was changed since"
            continue
        wanted[path] = _again(goal, now, stamp) if goal else vanish(now, stamp)
    for path in sorted(wanted, reverse=True):
        now = present[path]
        if now and now.kind is Kind.DIRECTORY and wanted[path].kind is not Kind.DIRECTORY:
            gone = {child for child in children.get(path, ()) if child in wanted and not wanted[child].alive}
            if len(gone) < len(children.get(path, ())):
                del wanted[path]
                left[path] = "holds what came since"
    for path in sorted(wanted):
        if wanted[path].alive:
            why = _make_way(path, wanted, present, stamp)
            if why:
                del wanted[path]
                left[path] = why
    transitions = [Transition(path, present.get(path), wanted[path]) for path in sorted(wanted)]
    return Reverted(transitions, [Problem(path, why) for path, why in sorted(left.items())])


def _same(goal: Entry | None, now: Entry) -> bool:
    """Is at the path what should be there? None: nothing should."""
    return not now.alive if goal is None else now.same_content(goal)


def _again(goal: Entry, now: Entry, stamp: Stamp) -> Entry:
    return replace(goal, version=now.version.bump(stamp), revision=now.revision + 1)


def _make_way(
    path: bytes, wanted: dict[bytes, Entry], present: Mapping[bytes, Entry | None], stamp: Stamp
) -> str | None:
    """See that the folders above a path are there; return why they cannot be, if so."""
    for folder in ancestors(path):
        now = present.get(folder)
        there = wanted.get(folder, now)
        if there is not None and there.alive:
            if there.kind is not Kind.DIRECTORY:
                return "a folder on the way to it is none any more"
            continue
        made = Entry(kind=Kind.DIRECTORY, mode=0o755)
        wanted[folder] = _again(made, now or Entry(kind=Kind.TOMBSTONE, version=NOTHING), stamp)
    return None
