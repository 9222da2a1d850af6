"""Compare: how two replicas differ now, path by path. Changes nothing on either side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from p2psync.core.merge import MAX_TEXT, is_text
from p2psync.core.model import Digest, Entry, Kind, Problem
from p2psync.core.paths import is_within
from p2psync.core.replica import Home, Replica
from p2psync.sync import Progress, Session

_BATCH = 64


class Difference(NamedTuple):
    """A path at which two replicas differ."""

    path: bytes
    here: Entry | None
    """None: nothing is there."""
    there: Entry | None
    texts: tuple[bytes, bytes] | None
    """What is here and what is there, if both are texts, or one is and the other is nothing."""


@dataclass
class Differences:
    """How two replicas differ."""

    found: list[Difference]
    problems: list[Problem]


def compare(
    home: Home, peer: Replica, progress: Progress, within: Iterable[bytes] = (), texts: bool = True
) -> Differences:
    """Return how two open replicas differ.

    Args:
        home: the one here.
        peer: the other one.
        progress: is told how it goes.
        within: only these paths, and what is below them; all, if there are none.
        texts: fetch the texts of both sides.
    """
    session = Session(home, peer, progress)
    session.scan(keep=False)
    only = list(within)
    found = []
    for path, (ours, theirs) in sorted(session.differing().items()):
        if not only or any(is_within(path, folder) for folder in only):
            found.append(Difference(path, _alive(ours), _alive(theirs), None))
    if texts:
        found = _with_texts(home, peer, found)
    return Differences(found, session.problems())


def _alive(entry: Entry | None) -> Entry | None:
    return entry if entry is not None and entry.alive else None


def _with_texts(home: Replica, peer: Replica, found: list[Difference]) -> list[Difference]:
    filled = []
    for start in range(0, len(found), _BATCH):
        batch = found[start : start + _BATCH]
        here = _texts(home, [one.here for one in batch])
        there = _texts(peer, [one.there for one in batch])
        for one, ours, theirs in zip(batch, here, there, strict=True):
            both = (ours, theirs) if ours is not None and theirs is not None else None
            same_kind = one.here is None or one.there is None or not one.here.same_bytes(one.there)
            filled.append(one._replace(texts=both if same_kind else None))
    return filled


def _texts(replica: Replica, entries: list[Entry | None]) -> list[bytes | None]:
    """Return the texts of these files; nothing is an empty text, and what is no text is None."""
    wanted: dict[Digest, bytes | None] = {
        entry.digest: None
        for entry in entries
        if entry is not None and entry.kind is Kind.FILE and entry.size <= MAX_TEXT
    }
    for digest, text in zip(wanted, replica.texts(list(wanted)), strict=True):
        wanted[digest] = text if text is not None and is_text(text) else None
    return [
        b"" if entry is None else wanted.get(entry.digest) if entry.kind is Kind.FILE else None
        for entry in entries
    ]
