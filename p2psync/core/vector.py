"""Version vectors: what a version has seen. Owns their order, join and encoding, nothing else.

A version is a map from replica to tick. `a <= b` says that b has seen all that a has; two versions
neither of which is `<=` the other are concurrent, which is what makes a conflict.

Source: D. S. Parker et al., "Detection of Mutual Inconsistency in Distributed Systems", 1983; ticks
taken from the wall clock so that they survive a lost database, as Syncthing's `lib/protocol/vector.go`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, NewType

ReplicaId = NewType("ReplicaId", int)
"""63 random bits that name one replica."""

_PAIR = struct.Struct(">QQ")
_BEYOND = 1 << 63
"""More than SQLite can hold."""
MAX_REPLICAS = 256
"""A vector longer than this comes from a broken or hostile peer: 4 KiB for a single path."""

MAX_AHEAD_SECONDS = 366 * 24 * 3600
"""A tick further ahead than this would poison the clock of every replica that took it in."""


class Stamp(NamedTuple):
    """One tick of one replica's clock."""

    replica: ReplicaId
    tick: int


class Version:
    """An immutable version vector."""

    __slots__ = ("_encoded", "_next", "_ticks")

    def __init__(self, ticks: Mapping[ReplicaId, int] | None = None) -> None:
        self._ticks: dict[ReplicaId, int] = dict(ticks or {})
        self._encoded: bytes | None = None
        self._next: tuple[Stamp, Version] | None = None

    def __le__(self, other: Version) -> bool:
        """Has `other` seen everything that this version has?"""
        if self is other:
            return True
        theirs = other._ticks
        return all(theirs.get(replica, 0) >= tick for replica, tick in self._ticks.items())

    def __or__(self, other: Version) -> Version:
        """Return the join: what either has seen."""
        if other <= self:
            return self
        joined = dict(self._ticks)
        for replica, tick in other._ticks.items():
            joined[replica] = max(tick, joined.get(replica, 0))
        return Version(_bounded(joined))

    def bump(self, stamp: Stamp) -> Version:
        """Return the version that follows this one and is marked by `stamp`."""
        if self._next is None or self._next[0] != stamp:  # all that had one version has one again
            self._next = (stamp, Version(_bounded({**self._ticks, stamp.replica: stamp.tick})))
        return self._next[1]

    def tick_of(self, replica: ReplicaId) -> int:
        """Return the last tick of `replica` that this version has seen; 0 for none."""
        return self._ticks.get(replica, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._ticks == other._ticks

    def __hash__(self) -> int:
        return hash(frozenset(self._ticks.items()))

    def __iter__(self) -> Iterator[Stamp]:
        return (Stamp(replica, tick) for replica, tick in sorted(self._ticks.items()))

    def __len__(self) -> int:
        return len(self._ticks)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{replica:x}:{tick}" for replica, tick in self) + "}"

    def encode(self) -> bytes:
        """Return the canonical bytes: 16 per replica, in the order of their ids."""
        if self._encoded is None:
            self._encoded = b"".join(_PAIR.pack(replica, tick) for replica, tick in self)
        return self._encoded

    @staticmethod
    @lru_cache(maxsize=4096)
    def decode(data: bytes) -> Version:
        """Return the version that `encode` made `data` of; equal bytes share one object.

        Raises:
            ValueError: the bytes are not canonical, or hold a tick of 0, or a number above 2**63 - 1.
        """
        if len(data) % _PAIR.size or len(data) > MAX_REPLICAS * _PAIR.size:
            raise ValueError("a version vector of the wrong length")
        pairs = [(ReplicaId(replica), tick) for replica, tick in _PAIR.iter_unpack(data)]
        ids = [replica for replica, _ in pairs]
        if ids != sorted(set(ids)) or any(
            replica >= _BEYOND or not 0 < tick < _BEYOND for replica, tick in pairs
        ):
            raise ValueError("a version vector that is not canonical")
        return Version(dict(pairs))


def _bounded(ticks: dict[ReplicaId, int]) -> dict[ReplicaId, int]:
    """Forget the oldest of too many: at worst a version is taken for one that has not seen another."""
    if len(ticks) <= MAX_REPLICAS:
        return ticks
    return dict(sorted(ticks.items(), key=lambda pair: pair[1])[-MAX_REPLICAS:])


NOTHING = Version()
"""The version of a path that was never seen."""
