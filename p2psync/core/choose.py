"""Choose: which part of a plan a run carries out; the rest waits for another run.

Owns modes and filters, and what waits for room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2psync.core.ignore import Ignore, views
from p2psync.core.model import Action, Entry, Kind, Transition, action_of
from p2psync.core.paths import ancestors, folders_of, is_conflict_copy, is_within, original
from p2psync.core.reconcile import Plan


class Mode(StrEnum):
    """Which way changes go."""

    TWO_WAY = "two-way"
    PUSH = "push"
    """Nothing is changed here."""
    PULL = "pull"
    """Nothing is changed on the peer."""
    MIRROR = "mirror"
    """The peer becomes like this replica; what it has of its own goes to its history."""


@dataclass(frozen=True)
class Filter:
    """What a run is about."""

    mode: Mode = Mode.TWO_WAY
    within: tuple[bytes, ...] = ()
    """Only these paths, with what is below them and their conflict copies; empty: all."""
    patterns: bytes = b""
    """What is left out, as an ignore file at the root has it."""
    max_size: int | None = None
    """Larger files are left out, in bytes."""
    one_file_system: bool = False
    """What is on a file system mounted in the tree is left out."""

    @property
    def is_partial(self) -> bool:
        """May it leave something out?"""
        return self != Filter() and self != Filter(Mode.MIRROR)


EVERYTHING = Filter()

MOST_TOO_LARGE = 10
"""If more than so many files have to wait for room, it is the tree that does not fit."""
SPARSE_BYTES = 16 << 20
"""Of files as large it is asked what they really take, before they wait."""


def parse_size(text: str) -> int:
    """Return how many bytes `500`, `100K`, `10M`, `1.5G` are.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise ValueError("give a size: 500 (bytes), 100K, 10M, 1.5G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def choose(
    plan: Plan, wanted: Filter, mounts: Collection[bytes] = (), unread: Collection[bytes] = ()
) -> list[bytes]:
    """Take out of a plan what a run is not about; return these paths.

    What belongs together stays together: a conflict copy and what displaces its original are carried out both
    or neither, a folder is not deleted while something in it is left, and the folders above what comes, come.

    Args:
        plan: what is to be done; it is changed.
        wanted: what the run is about.
        mounts: directories on which something is mounted, on either side.
        unread: what could not be read here: a mirror must not take it for what is not there (I6).
    """
    hidden = unread if wanted.mode is Mode.MIRROR else ()
    if not wanted.is_partial and not hidden:
        return []
    admits = _admits(wanted, mounts)
    steps: dict[bytes, list[Transition]] = {}
    for step in (*plan.ours, *plan.theirs):
        steps.setdefault(step.path, []).append(step)
    out = {path for path, both in steps.items() if not all(map(admits, both))}
    if hidden:
        out |= {path for path in steps if any(is_within(path, folder) for folder in hidden)}
    if wanted.mode is Mode.PUSH:
        out |= _changed(plan.ours)
    elif wanted.mode is Mode.PULL:
        out |= _changed(plan.theirs)
    groups = [{step.path, *step.after} for both in steps.values() for step in both if step.after]
    before = -1
    while before != len(out):
        before = len(out)
        for group in groups:
            if not group.isdisjoint(out):
                out |= group
        out |= _held_up(steps, out)
    out -= _ways(steps, out)
    out &= steps.keys()
    plan.ours = [step for step in plan.ours if step.path not in out]
    plan.theirs = [step for step in plan.theirs if step.path not in out]
    plan.conflicts = [conflict for conflict in plan.conflicts if conflict.path not in out]
    return sorted(out)


def too_large(sizes: Mapping[bytes, int], room: int) -> set[bytes] | None:
    """Return which files, the largest first, must wait so that the rest fits; None: too many.

    Args:
        sizes: what each file takes, in bytes.
        room: for all of them, in bytes.
    """
    room -= sum(sizes.values())
    waiting = set()
    for path in sorted(sizes, key=sizes.__getitem__, reverse=True)[:MOST_TOO_LARGE]:
        if room >= 0:
            break
        waiting.add(path)
        room += sizes[path]
    return waiting if room >= 0 else None


def _admits(wanted: Filter, mounts: Collection[bytes]) -> Callable[[Transition], bool]:
    view_of = views(Ignore.top(rules=wanted.patterns))

    def of(path: bytes) -> tuple[bytes, ...]:
        return (path, original(path)) if is_conflict_copy(path) else (path,)

    def admits(step: Transition) -> bool:
        path = step.path
        if action_of(step) is Action.NOTHING:  # only what is known of it changes
            return True
        if wanted.within and not any(is_within(one, folder) for one in of(path) for folder in wanted.within):
            return False
        if wanted.one_file_system and any(is_within(path, mount) and path != mount for mount in mounts):
            return False
        sides: Iterable[Entry | None] = (step.expected, step.wanted)
        if wanted.max_size is not None and any(one and one.size > wanted.max_size for one in sides):
            return False
        folder, _, name = path.rpartition(b"/")
        view = view_of(folder)
        is_dir = any(one is not None and one.kind is Kind.DIRECTORY for one in sides)
        return view is not None and not view.matches(name, is_dir)

    return admits


def _changed(steps: Iterable[Transition]) -> set[bytes]:
    return {step.path for step in steps if action_of(step) is not Action.NOTHING}


def _held_up(steps: Mapping[bytes, list[Transition]], out: Collection[bytes]) -> set[bytes]:
    """Return what cannot be done while the paths in `out` stay as they are.

    A folder that goes, or becomes a file, while something in it stays; and what is in a folder that is to
    take the place of a file that stays.
    """
    held = {path for path in folders_of(out) & steps.keys() if any(map(_takes_folder, steps[path]))}
    files = {path for path in out if any(map(_displaces_file, steps.get(path, ())))}
    if files:
        held |= {path for path in steps if not files.isdisjoint(ancestors(path))}
    return held


def _takes_folder(step: Transition) -> bool:
    before = step.expected
    return before is not None and before.kind is Kind.DIRECTORY and step.wanted.kind is not Kind.DIRECTORY


def _displaces_file(step: Transition) -> bool:
    before = step.expected
    is_leaf = before is not None and before.alive and before.kind is not Kind.DIRECTORY
    return is_leaf and step.wanted.kind is Kind.DIRECTORY


def _ways(steps: Mapping[bytes, list[Transition]], out: set[bytes]) -> set[bytes]:
    """Return the new folders that were left out, but in which something comes."""
    needed = folders_of(
        path for path, both in steps.items() if path not in out and any(step.wanted.alive for step in both)
    )
    return {path for path in needed & out if all(map(_is_new, steps.get(path, ())))}


def _is_new(step: Transition) -> bool:
    return step.expected is None or not step.expected.alive
