"""In which order transitions are carried out, so that a stop between any two of them loses nothing."""

from __future__ import annotations

from collections.abc import Iterable

from p2psync.core.model import Kind, Transition


def in_order(transitions: Iterable[Transition]) -> list[Transition]:
    """Return `transitions` in the order in which one replica applies them.

    What is made comes first, parents before children and conflict copies before what displaces them
    (I3). What is taken away comes last, children before parents: a leaf that replaces a directory is
    among it, since the directory must be empty by then.
    """
    pending = list(transitions)
    copies = {path for transition in pending for path in transition.after}

    def key(transition: Transition) -> tuple[bool, int, bool, bytes]:
        depth = transition.path.count(b"/")
        takes = takes_away(transition)
        return (takes, -depth if takes else depth, transition.path not in copies, transition.path)

    return sorted(pending, key=key)


def takes_away(transition: Transition) -> bool:
    """Does this transition delete something, or need an emptied directory?"""
    expected, wanted = transition.expected, transition.wanted
    makes_way = expected is not None and expected.kind is Kind.DIRECTORY and wanted.kind is not Kind.DIRECTORY
    return makes_way or not wanted.alive
