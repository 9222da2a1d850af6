"""In which order transitions are carried out, so that a stop between any two of them loses nothing.

Also which of them are moves: a file that goes away here is what is to be made there.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from p2psync.core.model import Digest, Kind, Transition
from p2psync.core.paths import ancestors, split

_PATH = attrgetter("path")


def in_order(transitions: Iterable[Transition]) -> list[Transition]:
    """Return `transitions` in the order in which one replica applies them.

    What is made comes first, parents before children and conflict copies before what displaces them
    (I3). What is taken away comes last, children before parents: a leaf that replaces a directory is
    among it, since the directory must be empty by then.
    """
    makes: list[Transition] = []
    takes: list[Transition] = []
    for transition in transitions:
        (takes if takes_away(transition) else makes).append(transition)
    copies = {path for step in (*makes, *takes) for path in step.after}
    makes.sort(key=_PATH)  # parents before children
    if copies:
        makes.sort(key=lambda step: (split(step.path)[0], step.path not in copies))
    takes.sort(key=lambda step: (-step.path.count(b"/"), step.path not in copies, step.path))
    return makes + takes


def takes_away(transition: Transition) -> bool:
    """Does this transition delete something, or need an emptied directory?"""
    expected, wanted = transition.expected, transition.wanted
    makes_way = expected is not None and expected.kind is Kind.DIRECTORY and wanted.kind is not Kind.DIRECTORY
    return makes_way or not wanted.alive


WHOLE_FOLDER = 8
"""Fewer paths than this are deleted one by one."""


def whole_folders(transitions: Iterable[Transition]) -> dict[bytes, list[Transition]]:
    """Return the topmost folders that go away with all that is in them, as far as the plan tells.

    Each with its transitions, and those of all that is below it.
    """
    folders: set[bytes] = set()
    stays: set[bytes] = set()
    steps = list(transitions)
    for step in steps:
        if step.wanted.alive or step.after or step.resolution:
            stays.update(ancestors(step.path))
        elif step.expected is not None and step.expected.kind is Kind.DIRECTORY:
            folders.add(step.path)
    folders -= stays
    found: dict[bytes, list[Transition]] = {}
    for step in steps:
        inside = [folder for folder in (*ancestors(step.path), step.path) if folder in folders]
        if inside and step.expected is not None and step.expected.alive:
            found.setdefault(min(inside, key=len), []).append(step)
    return {top: below for top, below in found.items() if len(below) >= WHOLE_FOLDER}


def moves(transitions: Iterable[Transition]) -> dict[bytes, bytes]:
    """Return which files are to be moved rather than made and deleted: from where, by where to.

    Nothing that is deleted goes to two places, and no conflict copy is made so: it has to exist before what
    it is a copy of goes (I3).
    """
    going: dict[Digest, list[bytes]] = {}
    coming: list[Transition] = []
    copies: set[bytes] = set()
    for step in transitions:
        expected, wanted = step.expected, step.wanted
        copies.update(step.after)
        if step.after or step.resolution:
            continue
        if expected is not None and expected.alive:
            if not wanted.alive and expected.kind is Kind.FILE and expected.size:
                going.setdefault(expected.digest, []).append(step.path)
        elif wanted.kind is Kind.FILE:
            coming.append(step)
    found: dict[bytes, bytes] = {}
    for step in coming if going else ():
        sources = going.get(step.wanted.digest)
        if sources and step.path not in copies:
            name = split(step.path)[1]
            same = next((path for path in sources if split(path)[1] == name), sources[0])
            if same.lower() != step.path.lower():  # else some file systems take both for one
                sources.remove(same)
                found[step.path] = same
    return found
