"""Replicas: what a manifest knows of the others: how far each is in step, and where it answers.

The tables are the manifest's.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import msgspec

from p2psync.columns import WAITED_FOR
from p2psync.core.replica import MAX_PATHS, Identity, Mark
from p2psync.core.vector import ReplicaId, Stamp
from p2psync.database import told

READERS = 64
"""So many replicas that may only read here are remembered: any other costs a longer exchange."""


class PeerRecord(NamedTuple):
    """What is remembered of a replica that this one was in touch with."""

    replica: ReplicaId
    name: str
    address: str
    synced_at: int | None
    """Seconds since 1970; None: never in step."""
    acknowledged: int
    """A sequence number of this replica: all up to it, the other has too, but for what is pending."""


class Replicas:
    """The other replicas that an open manifest knows of."""

    def __init__(self, connection: sqlite3.Connection, newest: Callable[[], int]) -> None:
        """Use the tables of a manifest, which tells the sequence number of its newest change."""
        self._db = connection
        self._newest = newest

    # -- how far each is in step

    def mark(self, peer: ReplicaId) -> Mark | None:
        """Return how far the changes of `peer` are taken in."""
        found = self._db.execute("SELECT mark FROM peer WHERE replica = ?", (peer,)).fetchone()
        return self._mark(found[0]) if found and found[0] else None

    def set_mark(self, peer: Identity, mark: Mark, now: float) -> None:
        """Remember how far the changes of `peer` are taken in, and that it has taken in all that is here.

        A mark that leaves very much behind does not tell of all: the peer has what it had before then.
        """
        in_step = int(now) if mark.in_step and not mark.pending else None
        found = self._db.execute(
            "SELECT acknowledged FROM peer WHERE replica = ?", (peer.replica,)
        ).fetchone()
        before = found[0] if found else 0
        knows_nothing = mark.pending and not mark.seq
        self._db.execute(
            "INSERT INTO peer (replica, name, synced_at, acknowledged, mark) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (replica) DO UPDATE SET"
            " name = excluded.name, synced_at = coalesce(excluded.synced_at, synced_at),"
            " acknowledged = excluded.acknowledged, mark = excluded.mark",
            (
                peer.replica,
                peer.name,
                in_step,
                before if knows_nothing else self._newest(),
                msgspec.msgpack.encode(mark),
            ),
        )
        if not knows_nothing:
            self._set_left_behind(peer.replica, before, mark.pending)
        if peer.replica < 0:
            self._forget_readers(peer.replica)

    def _forget_readers(self, latest: ReplicaId) -> None:
        """Forget all but the latest of those that may only read: one may say that it is very many."""
        self._db.execute(
            "DELETE FROM peer WHERE replica < 0 AND replica NOT IN (SELECT replica FROM peer"
            " WHERE replica < 0 ORDER BY replica = ? DESC, synced_at DESC LIMIT ?)",
            (latest, READERS),
        )
        self._db.execute(
            "DELETE FROM left_behind WHERE replica < 0 AND replica NOT IN (SELECT replica FROM peer)"
        )

    def _set_left_behind(self, peer: ReplicaId, before: int, pending: Collection[bytes]) -> None:
        """Remember what a replica is left behind with; before, it had all up to that sequence number."""
        found = self._db.execute("SELECT pending FROM left_behind WHERE replica = ?", (peer,))
        known = {path for (path,) in found}
        self._db.executemany(
            "DELETE FROM left_behind WHERE replica = ? AND pending = ?",
            [(peer, path) for path in known.difference(pending)],
        )
        self._db.executemany(
            "INSERT INTO left_behind VALUES (?, ?, ?)",
            [(peer, path, before) for path in pending if path not in known],
        )

    def pending(self) -> set[bytes]:
        """Return the paths that some replica was left behind with that is waited for."""
        found = self._db.execute(f"SELECT mark FROM {WAITED_FOR}").fetchall()
        return {path for (data,) in found for path in self._mark(data).pending}

    def ask_again(self, paths: Iterable[bytes]) -> None:
        """Have all peers asked, at the next sync with each, what they have at these paths."""
        again = set(paths)
        for peer, data in self._db.execute(
            "SELECT replica, mark FROM peer WHERE mark IS NOT NULL"
        ).fetchall():
            mark = self._mark(data)
            pending = sorted(again.union(mark.pending))
            few = len(pending) <= MAX_PATHS  # else all is compared: there is no such epoch
            asked = msgspec.structs.replace(mark, **({"pending": pending} if few else {"epoch": 0}))
            place = (msgspec.msgpack.encode(asked), peer)
            self._db.execute("UPDATE peer SET mark = ? WHERE replica = ?", place)

    def acknowledged(self) -> int:
        """Return up to which sequence number all replicas that are waited for have the changes."""
        (found,) = self._db.execute(f"SELECT min(acknowledged) FROM {WAITED_FOR}").fetchone()
        return self._newest() if found is None else int(found)

    def acknowledged_by(self, peer: ReplicaId) -> int:
        """Return the sequence number up to which `peer` has taken in the changes, as far as is known."""
        found = self._db.execute("SELECT acknowledged FROM peer WHERE replica = ?", (peer,)).fetchone()
        return int(found[0]) if found else 0

    def seen(self, replica: ReplicaId) -> int:
        """Return the largest tick of a replica that any version here has had; 0: none."""
        found = self._db.execute("SELECT tick FROM seen WHERE replica = ?", (replica,)).fetchone()
        return int(found[0]) if found else 0

    def see(self, stamps: Iterable[Stamp]) -> None:
        """Take note of the ticks in versions that come to be here."""
        self._db.executemany(
            "INSERT INTO seen VALUES (?, ?)"
            " ON CONFLICT (replica) DO UPDATE SET tick = max(tick, excluded.tick)",
            set(stamps),
        )

    # -- who they are, and where they answer

    def all(self) -> list[PeerRecord]:
        """Return all replicas that this one was in touch with."""
        return self._records("peer")

    def waited_for(self) -> list[PeerRecord]:
        """Return those for which deletions and earlier versions are kept."""
        return self._records(WAITED_FOR)

    def _records(self, table: str) -> list[PeerRecord]:
        found = self._db.execute(
            f"SELECT replica, name, address, synced_at, acknowledged FROM {table} ORDER BY replica"
        )
        return [
            PeerRecord(replica, name, os.fsdecode(place), synced_at, acknowledged)
            for replica, name, place, synced_at, acknowledged in found
        ]

    def met(self, peer: ReplicaId, address: str) -> None:
        """Remember which replica answered at an address."""
        place = os.fsencode(address)
        self._db.execute("UPDATE peer SET address = x'' WHERE address = ?", (place,))
        self._db.execute(
            "INSERT INTO peer (replica, name, address) VALUES (?, '', ?)"
            " ON CONFLICT (replica) DO UPDATE SET address = excluded.address",
            (peer, place),
        )
        self._db.execute("INSERT OR IGNORE INTO answered VALUES (?, ?)", (place, peer))

    def answers_at(self, address: str) -> ReplicaId | None:
        """Return which replica answered last at an address."""
        found = self._db.execute("SELECT replica FROM peer WHERE address = ?", (os.fsencode(address),))
        return next((ReplicaId(replica) for (replica,) in found), None)

    def succeed(self, old: ReplicaId, new: ReplicaId) -> None:
        """Have one replica, which has become another, be that: what one had, the other has."""
        self._db.execute(
            "INSERT OR IGNORE INTO peer SELECT ?, name, x'', synced_at, acknowledged, mark"
            " FROM peer WHERE replica = ?",
            (new, old),
        )
        for table in ("answered", "left_behind"):
            self._db.execute(f"UPDATE OR IGNORE {table} SET replica = ? WHERE replica = ?", (new, old))
        self.forget_replica(old)

    def forget(self, address: str, others: Collection[str]) -> None:
        """Forget the replicas that answered at an address, if they did not at one of the others."""
        if address in others:
            return
        known: set[ReplicaId] = set()
        for other in others:
            known |= self.answered_at(other)
        for replica in self.answered_at(address) - known:
            self.forget_replica(replica)
        self._db.execute("DELETE FROM answered WHERE address = ?", (os.fsencode(address),))

    def answered_at(self, address: str) -> set[ReplicaId]:
        """Return which replicas have ever answered at an address."""
        found = self._db.execute("SELECT replica FROM answered WHERE address = ?", (os.fsencode(address),))
        return {ReplicaId(replica) for (replica,) in found}

    def forget_replica(self, replica: ReplicaId) -> None:
        """Forget all of a replica but its name, by which people know its versions."""
        self._db.execute("DELETE FROM left_behind WHERE replica = ?", (replica,))
        self._db.execute(
            "UPDATE peer SET address = x'', synced_at = NULL, acknowledged = 0, mark = NULL"
            " WHERE replica = ?",
            (replica,),
        )
        self._db.execute("DELETE FROM answered WHERE replica = ?", (replica,))

    def _mark(self, data: bytes) -> Mark:
        with told(self._db):
            try:
                return msgspec.msgpack.decode(data, type=Mark)
            except (msgspec.MsgspecError, TypeError) as error:
                raise sqlite3.DatabaseError(f"a mark that is none: {error}") from error
