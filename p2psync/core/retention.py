"""Retention: which runs' history is to go, and when. Owns the rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

DAY_SECONDS = 24 * 3600
_MOMENT = 0.001


class Limits(NamedTuple):
    """How much history is kept."""

    days: float = 30
    percent: float = 10
    """Of the disk."""


class Kept(NamedTuple):
    """What is kept from one run."""

    run: str
    at: float
    """Seconds since 1970."""
    size: int
    """Bytes."""
    lost: bool = False
    """Somebody has taken away what it kept."""


class Collected(NamedTuple):
    """What a cleaning removed, or would remove."""

    runs: list[Kept]
    texts: int
    """How many, from which no merge starts any more."""


def due(now: float, last: float) -> float | None:
    """Is it time to clean up by itself? Return up to when ages count then; None: not yet.

    A clock is believed when a look at least a day later has found it no earlier: nothing is old because one
    is a year ahead for a while. Who syncs once a year has things stay a year longer.

    Args:
        now: what the clock says, in seconds since 1970.
        last: what it said the last time.
    """
    return min(now, last + DAY_SECONDS) if abs(now - last) > DAY_SECONDS else None


def in_order(kept: Iterable[Kept]) -> list[Kept]:
    """Make no run older than one that was before it: one of their clocks was wrong, and nobody knows which.

    So what follows a run whose clock was ahead stays as long as that, if it is not too much.

    Args:
        kept: all runs, in the order in which they were.
    """
    latest = 0.0
    ordered = []
    for run in kept:
        latest = max(latest + _MOMENT, run.at)
        ordered.append(run._replace(at=latest))
    return ordered


def expired(kept: Iterable[Kept], now: float, disk: int, limits: Limits) -> list[Kept]:
    """Return what is too old or lost, and the oldest beyond what is too much.

    The latest run stays, whatever it keeps, and so does the latest that keeps something.

    Args:
        kept: all runs.
        now: seconds since 1970.
        disk: bytes of the whole disk.
        limits: what may stay.
    """
    latest_first = sorted(kept, key=lambda run: (run.at, run.run), reverse=True)
    stays = {*latest_first[:1], *[run for run in latest_first if run.size][:1]}
    gone = []
    total = 0
    for run in latest_first:
        total += run.size
        too_old = now - run.at > limits.days * DAY_SECONDS
        too_much = run.size > 0 and total > disk * limits.percent / 100
        if run not in stays and (run.lost or too_old or too_much):
            gone.append(run)
    return gone[::-1]
