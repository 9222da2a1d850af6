"""In which order transitions are carried out, so that a stop between any two of them loses nothing.

Also which of them are moves: a file that goes away here is what is to be made there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

from p2psync.core.model import Digest, Kind, Transition
from p2psync.core.paths import folders_of, split

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
    steps = list(transitions)
    folders = {
        step.path
        for step in steps
        if not _stays(step) and step.expected is not None and step.expected.kind is Kind.DIRECTORY
    }
    if not folders:
        return {}
    folders -= folders_of(step.path for step in steps if _stays(step))
    tops: dict[bytes, bytes] = {}
    for folder in sorted(folders):  # parents before children
        tops[folder] = tops.get(split(folder)[0], folder)
    found: dict[bytes, list[Transition]] = {}
    for step in steps:
        top = tops.get(step.path) or tops.get(split(step.path)[0])
        if top and step.expected is not None and step.expected.alive:
            found.setdefault(top, []).append(step)
    return {top: below for top, below in found.items() if len(below) >= WHOLE_FOLDER}


def _stays(step: Transition) -> bool:
    """Does something stay, or come to be, at this path, or does more depend on it than that it goes?"""
    return bool(step.wanted.alive or step.after or step.resolution)


def moves(transitions: Iterable[Transition]) -> dict[bytes, bytes]:
    """Return which files are to be moved rather than made and deleted: from where, by where to.

    Nothing that is deleted goes to two places, and no conflict copy is made so: it has to exist before what
    it is a copy of goes (I3).
    """
    gone: list[tuple[Digest, bytes]] = []
    coming: list[Transition] = []
    copies: set[bytes] = set()
    for step in transitions:
        expected, wanted = step.expected, step.wanted
        copies.update(step.after)
        if step.after or step.resolution:
            continue
        if expected is not None and expected.alive:
            if not wanted.alive and expected.kind is Kind.FILE and expected.size:
                gone.append((expected.digest, step.path))
        elif wanted.kind is Kind.FILE:
            coming.append(step)
    sources: dict[tuple[Digest, bytes], list[bytes]] = {}
    for digest, path in reversed(gone):  # the first is at the end, from where it is taken
        for name in (split(path)[1], b""):
            sources.setdefault((digest, name), []).append(path)
    found: dict[bytes, bytes] = {}
    taken: set[bytes] = set()
    for step in coming if gone else ():
        if step.path in copies:
            continue
        for name in (split(step.path)[1], b""):  # of the same name, else of any
            left = sources.get((step.wanted.digest, name), [])
            while left and left[-1] in taken:
                left.pop()
            if left:
                if left[-1].lower() != step.path.lower():  # else some file systems take both for one
                    found[step.path] = left[-1]
                    taken.add(left[-1])
                break
    return found


Move = tuple[Transition, Transition]
"""What takes a path away at its old place, and what makes it at its new one."""


def moved_folders(transitions: Iterable[Transition], moves: Mapping[bytes, bytes]) -> dict[bytes, list[Move]]:
    """Return which folders move with all that is in them, and nothing else, by where to.

    Args:
        transitions: all that is to be done.
        moves: what `moves` found among them.
    """
    steps = list(transitions) if moves else []
    copies = {path for step in steps for path in step.after}
    made = {step.path: step for step in steps if step.wanted.alive and step.path not in copies}
    paths = sorted(made)
    places = {old: new for new, old in moves.items()}
    found: dict[bytes, list[Move]] = {}
    for old, gone in whole_folders(steps).items():
        first = next((step.path for step in gone if step.path in places), None)
        if first is None:
            continue
        new = places[first].removesuffix(first[len(old) :])
        pairs = [(step, made.get(new + step.path[len(old) :])) for step in gone]
        together = [
            (step, step_there) for step, step_there in pairs if step_there and _is_move(step, step_there)
        ]
        inside = bisect_left(paths, new + b"0") - bisect_left(paths, new + b"/")  # 0 follows /
        if len(together) == len(gone) == inside + 1:
            found[new] = sorted(together, key=lambda move: move[0].path)
    return found


def moved(transitions: Iterable[Transition]) -> Iterator[list[Move]]:
    """Yield what moves, as people see it: a file, or a folder, first, with all that is in it."""
    steps = list(transitions)
    files = moves(steps)
    folders = moved_folders(steps, files)
    yield from folders.values()
    with_folder = {step.path for together in folders.values() for move in together for step in move}
    by_path = {step.path: step for step in steps} if files else {}
    for new, old in files.items():
        if with_folder.isdisjoint((new, old)):
            yield [(by_path[old], by_path[new])]


def _is_move(gone: Transition, made: Transition) -> bool:
    """Is what goes away just what is to be made?"""
    before, there, wanted = gone.expected, made.expected, made.wanted
    return (
        before is not None
        and not (made.after or made.resolution or (there is not None and there.alive))
        and wanted.same_content(before)
        and (before.kind is not Kind.FILE or wanted.mtime_ns == before.mtime_ns)
    )
