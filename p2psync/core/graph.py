"""Graph: who met whom, drawn with letters: a lane for each replica, a row for each event."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple


class Event(NamedTuple):
    """Something that happened on one replica, and what it took in of others."""

    lane: int
    others: Collection[int] = ()
    """Lanes of those that it met."""


def header(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines that tell whose each lane is."""
    for lane, name in enumerate(names):
        yield "| " * lane + name


def rows(events: Sequence[Event], lanes: int) -> Iterator[str]:
    """Yield a row for each event: `*` where it happened, `o` whom it met, joined by a line."""
    for event in events:
        met = {event.lane, *event.others}
        row = ""
        for lane in range(lanes):
            row += "*" if lane == event.lane else "o" if lane in met else "|"
            if lane + 1 < lanes:
                row += "-" if min(met) <= lane < max(met) else " "
        yield row
