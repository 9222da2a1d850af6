"""What people and scripts see of peers. Words only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from p2psync.config import Peer
from p2psync.core.paths import printable
from p2psync.facts import Facts
from p2psync.replicas import PeerRecord
from p2psync.words import columns, size_of, when


@dataclass
class Tested:
    """What was found out about a peer."""

    peer: Peer
    name: str
    """What the replica there calls itself."""
    round_trip: float
    """Seconds."""
    up: float
    """Bytes a second to the peer."""
    down: float
    clock: float
    """Seconds by which the clock there is ahead."""
    facts: Facts


_CAN = {
    "case": ("Foo and foo are two files", "Foo and foo are one file: one of two such names cannot be there"),
    "permissions": ("keeps permissions", "keeps no permissions: they will look changed"),
    "symlinks": ("has symlinks", "has no symlinks: they cannot be there"),
    "nanoseconds": ("keeps times to the nanosecond", "keeps coarser times: files will look touched"),
    "any names": ("takes any name", "takes only some names: others cannot be there"),
}


def tested_text(tested: Tested) -> str:
    """Return what was found out as text."""
    facts = tested.facts
    ahead = "ahead" if tested.clock > 0 else "behind"
    clock = "the same" if abs(tested.clock) < 1 else f"{abs(tested.clock):.1f} s {ahead}"
    rows = [
        ("replica", printable(tested.name)),
        ("address", printable(tested.peer.address)),
        (
            "p2psync",
            f"{printable(facts.version)}, Python {printable(facts.python)}, {printable(facts.system)}",
        ),
        ("round trip", f"{tested.round_trip * 1000:.1f} ms"),
        ("throughput", f"{size_of(int(tested.up))}/s there, {size_of(int(tested.down))}/s back"),
        ("clock", clock),
        ("free", size_of(facts.free)),
    ]
    for what, (good, bad) in _CAN.items():
        can = facts.file_system.get(what)
        if can is not None:
            rows.append(("file system", good if can else bad))
    return columns(rows)


def tested_json(tested: Tested) -> str:
    """Return what was found out as one JSON document."""
    document = {
        "peer": tested.peer.name,
        "address": tested.peer.address,
        "replica": tested.name,
        "round_trip_seconds": tested.round_trip,
        "up_bytes_per_second": int(tested.up),
        "down_bytes_per_second": int(tested.down),
        "clock_ahead_seconds": tested.clock,
        **msgspec.structs.asdict(tested.facts),
    }
    return json.dumps(document, indent=2) + "\n"


def list_text(peers: Sequence[Peer], others: Sequence[PeerRecord], for_people: bool = False) -> str:
    """Return peers as lines: tabs between name, address and what else there is to say, or tables for people.

    Args:
        peers: those that are configured.
        others: those that are waited for and are not.
        for_people: in tables.
    """
    if not for_people:
        lines = [(peer.name, peer.address) for peer in peers] + [_other(one) for one in others]
        return "".join("\t".join(line) + "\n" for line in lines)
    rows = [("name", "mode", "address", "only")]
    rows += [(one.name, one.mode, printable(one.address), printable(" ".join(one.paths))) for one in peers]
    told = columns(rows) if peers else "no peers: `p2psync peer add NAME ADDRESS` adds one\n"
    if others:
        told += "\nwaited for as well (`p2psync peer remove NAME` forgets one):\n"
        told += columns([_other(one) for one in others])
    return told


def _other(one: PeerRecord) -> tuple[str, str, str]:
    """Return name, address and what there is to say of who is waited for and is no peer."""
    what = "was synced with" if one.address else "syncs to here"
    since = f"last in step {when(one.synced_at * 10**9)}" if one.synced_at else "never in step"
    return printable(one.name) or "?", printable(one.address), f"{what}, {since}"


def list_json(peers: Sequence[Peer], others: Sequence[PeerRecord]) -> str:
    """Return the same as one JSON document."""
    document = {
        "peers": [asdict(peer) for peer in peers],
        "others": [{"name": one.name, "address": one.address, "synced_at": one.synced_at} for one in others],
    }
    return json.dumps(document, indent=2) + "\n"
