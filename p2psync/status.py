"""What `p2psync status` says: the state of one replica, found out without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from p2psync import config
from p2psync.core.model import Action, Problem, Transition, action_of
from p2psync.local import LocalReplica


@dataclass
class PeerStatus:
    """How it stands with one peer."""

    name: str
    address: str
    synced_at: int | None
    """Seconds since 1970 of the last time both were in step; None: never."""
    behind: int
    """Paths that changed here since."""


@dataclass
class Status:
    """How it stands with a replica."""

    root: bytes
    name: str
    changes: list[tuple[Action, bytes]]
    """What changed on disk since the last sync with any peer."""
    problems: list[Problem]
    peers: list[PeerStatus]


def status(root: bytes) -> Status:
    """Find out how it stands with the replica at `root`; needs no lock.

    Raises:
        ReplicaError: it cannot be read.
    """
    replica = LocalReplica(root, lock=False)
    try:
        found = replica.look()
        new = {record.path for record in found.changes}
        known = replica.peers()
        met = {record.address: record for record in known}
        last = max((record.acknowledged for record in known), default=0)
        changes = {
            record.path: action_of(Transition(record.path, record.replaces, record.row.entry))
            for record in found.changes
        }
        for path, action in replica.changes_since(last):
            changes.setdefault(path, action)
        peers = []
        for peer in config.peers(root):
            record = met.get(peer.address)
            behind = new | {path for path, _ in replica.changes_since(record.acknowledged if record else 0)}
            peers.append(PeerStatus(peer.name, peer.address, record and record.synced_at, len(behind)))
        shown = sorted((path, action) for path, action in changes.items() if action is not Action.NOTHING)
        return Status(root, replica.identity.name, [(a, p) for p, a in shown], found.problems, peers)
    finally:
        replica.close()
