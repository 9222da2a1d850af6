"""Every error that ends a command, as a tree. Each class carries its exit code; its message says what,
why and what to do next.

    P2PSyncError              3
    ├── AddressError          2   an address that means nothing (in `peer`)
    ├── ConfigError           2   a peer or setting that makes no sense (in `config`)
    ├── RequestError          2   a key must not do what it was used for (in `restrict`)
    ├── NotFound              3   there is no such run or version (in `undo`)
    ├── ReplicaError          3   a root or its sidecar cannot be used
    │   ├── NotAReplica       3   there is no sidecar
    │   ├── NoRoom            3   its disk is full
    │   └── Damaged           3   the manifest is no database any more
    ├── GuardTripped          4   it would do too much harm if it were a mistake
    ├── Locked                6   another run has the replica
    └── PeerError             3   the peer did something it must not
        ├── Unreachable       5   it could not be reached, or the connection broke
        └── ProtocolError     3   it speaks another version, or nonsense

`Problem` (core.model) is not here: it is about one path, and stops nothing.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; stable."""

    IN_STEP = 0
    CONFLICTS = 1
    USAGE = 2
    FAILED = 3
    GUARD = 4
    UNREACHABLE = 5
    LOCKED = 6
    INTERRUPTED = 130


class P2PSyncError(Exception):
    """The command cannot go on."""

    exit_code = Exit.FAILED


class ReplicaError(P2PSyncError):
    """A root or its sidecar cannot be used."""


class NotAReplica(ReplicaError):
    """There is no sidecar at the root."""


class NoRoom(ReplicaError):
    """The disk takes no more of what has to be written in the sidecar."""


class Damaged(ReplicaError):
    """The manifest is no database any more."""


class GuardTripped(P2PSyncError):
    """It would do too much harm if it were a mistake; nothing was changed."""

    exit_code = Exit.GUARD


class Locked(P2PSyncError):
    """Another run has the replica."""

    exit_code = Exit.LOCKED


class PeerError(P2PSyncError):
    """The peer did something it must not, or failed."""


class Unreachable(PeerError):
    """The peer could not be reached, or the connection broke."""

    exit_code = Exit.UNREACHABLE


class ProtocolError(PeerError):
    """The peer speaks another protocol version, or nonsense."""
