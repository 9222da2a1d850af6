"""What `p2psync status` says: the state of one replica, found out without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from p2psync import config, watchfile
from p2psync.conflicts import open_conflicts
from p2psync.core.model import Action, Problem, Transition, action_of
from p2psync.core.order import Move, moved
from p2psync.local import LocalReplica
from p2psync.watchfile import PeerState, State


@dataclass
class PeerStatus:
    """How it stands with one peer."""

    name: str
    address: str
    synced_at: int | None
    """Seconds since 1970 of the last time both were in step; None: never."""
    behind: int
    """Paths that changed here since."""
    watched: PeerState | None = None
    """How a running watch finds it."""

    def out_of_step(self, now: float, max_age: float) -> bool:
        """Has it been out of step for longer than that, as far as is known here?

        Args:
            now: seconds since 1970.
            max_age: in seconds; 0: it has to be in step now.
        """
        if self.synced_at is None:
            return True
        if self.watched is not None and self.watched.online:
            return not self.watched.in_step or bool(self.behind and now - self.synced_at > max_age)
        if not self.behind and not max_age:
            return False
        return now - self.synced_at > max_age


@dataclass
class Status:
    """How it stands with a replica."""

    root: bytes
    name: str
    changes: list[tuple[Action, bytes]]
    """What changed on disk since the last sync with any peer."""
    moves: list[list[Move]]
    """What of this only moved since the last scan: a file, or a folder, first, with all that is in it."""
    problems: list[Problem]
    peers: list[PeerStatus]
    watch: State | None = None
    """The watch that is running, if one is."""
    conflicts: int = 0
    """How many nobody has settled yet."""


def parse_age(text: str) -> float:
    """Return how many seconds `90s`, `15m`, `2h` or `3d` are.

    Raises:
        ValueError: it is no such text.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit():
        raise ValueError("give a number and a unit: 90s, 15m, 2h or 3d")
    return int(number) * units[unit]


def status(root: bytes) -> Status:
    """Find out how it stands with the replica at `root`; needs no lock.

    Raises:
        ReplicaError: it cannot be read.
    """
    replica = LocalReplica(root, lock=False)
    try:
        found = replica.look()
        new = {record.path for record in found.changes}
        last = max((record.acknowledged for record in replica.peers()), default=0)
        steps = [Transition(record.path, record.replaces, record.row.entry) for record in found.changes]
        changes = {step.path: action_of(step) for step in steps}
        for path, action in replica.changes_since(last):
            changes.setdefault(path, action)
        watch = watchfile.read(root)
        watched = {state.name: state for state in watch.peers} if watch else {}
        peers = []
        for peer in config.peers(root):
            record = replica.peer_at(peer.address)
            behind = new | {path for path, _ in replica.changes_since(record.acknowledged if record else 0)}
            synced_at = record and record.synced_at
            state = watched.get(peer.name)
            peers.append(PeerStatus(peer.name, peer.address, synced_at, len(behind), state))
        shown = sorted((path, action) for path, action in changes.items() if action is not Action.NOTHING)
        return Status(
            root,
            replica.identity.name,
            [(action, path) for path, action in shown],
            [*moved(steps)],
            found.problems,
            peers,
            watch,
            len(open_conflicts(replica)),
        )
    finally:
        replica.close()
