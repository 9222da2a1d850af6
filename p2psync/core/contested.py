"""Contested: who made the two versions of a conflict. Owns how that is read from what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from p2psync.core.model import Entry
from p2psync.core.vector import ReplicaId, Stamp, Version


class Makers(NamedTuple):
    """Who made the two versions, as far as that is known here."""

    winner: ReplicaId | None
    loser: ReplicaId | None
    lost_here: bool | None
    """Was the loser this replica's? None: neither version was."""


def makers(path: Entry, copy: Entry, before: Sequence[Entry]) -> Makers:
    """Tell who made the version that kept the path, and the one that was set aside.

    Who decided has marked both with one stamp: it is the latest of the copy. What is in a version besides,
    and was not in the other before, is the mark of its maker; if nothing is, who decided has made it.

    Args:
        path: the version that kept the path.
        copy: the one that was set aside.
        before: the earlier versions of the path that are remembered here, the latest last.
    """
    decision = latest(copy.version)
    if decision is None:
        return Makers(None, None, None)
    lost = next((entry for entry in reversed(before) if entry.same_bytes(copy)), None)
    won = next((entry for entry in reversed(before) if entry.same_bytes(path)), None)
    here = won if lost is None else lost
    if here is None:
        return Makers(
            _maker(path.version, copy.version, decision), _maker(copy.version, None, decision), None
        )
    mine = latest(here.version)
    owner = mine.replica if mine else None
    if lost is None:
        return Makers(owner, _maker(copy.version, here.version, decision), False)
    return Makers(_maker(path.version, here.version, decision), owner, True)


def latest(version: Version) -> Stamp | None:
    """Return the latest stamp of a version: who made it, when; None: it has none."""
    return max(version, key=lambda stamp: stamp.tick, default=None)


def _maker(version: Version, other: Version | None, decision: Stamp) -> ReplicaId | None:
    new = [
        stamp
        for stamp in version
        if stamp != decision and (other is None or other.tick_of(stamp.replica) < stamp.tick)
    ]
    return max(new, key=lambda stamp: stamp.tick, default=decision).replica
