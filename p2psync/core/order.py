"""In which order transitions are carried out, so that a stop between any two of them loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from p2psync.core.model import Kind, Transition
from p2psync.core.paths import split

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
