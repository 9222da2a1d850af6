"""What `status` prints."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from p2psync.core.paths import printable, shown
from p2psync.words import ACTION_WORDS, ago, json_path, plural, problem_lines

if TYPE_CHECKING:
    from p2psync.status import PeerStatus, Status


def text(status: Status) -> str:
    """Return the status as text."""
    lines = [f"{shown(status.root)} ({status.name})"]
    for together in status.moves:
        (old, new), paths = together[0], len(together)
        what = f"{shown(old.path)} -> {shown(new.path)}"
        lines.append(f"  {'moved':<11}  {what}" + (f"  ({plural(paths, 'path')})" if paths > 1 else ""))
    apart = {step.path for together in status.moves for move in together for step in move}
    for action, path in status.changes:
        if path in apart:
            continue
        lines.append(f"  {ACTION_WORDS[action]:<11}  {shown(path)}")
    lines += [f"  {'problem':<11}  {line}" for line in problem_lines(status.problems)]
    if not status.changes:
        lines.append("nothing changed here since the last sync")
    if status.conflicts:
        count = plural(status.conflicts, "conflict")
        lines.append(f"{count} to be settled: `p2psync conflicts` tells which")
    width = max((len(peer.name) for peer in status.peers), default=0)
    for peer in status.peers:
        when = f"in step {ago(time.time() - peer.synced_at)}" if peer.synced_at else "never in step"
        behind = f", {plural(peer.behind, 'path')} behind" if peer.behind else ""
        lines.append(f"peer {peer.name:<{width}}  {when}{behind}{_watched(peer)}  {peer.address}")
    if status.watch:
        started = ago(time.time() - status.watch.started)
        lines.append(f"a watch is running (process {status.watch.pid}), started {started}")
    if not status.peers:
        lines.append("no peers: `p2psync peer add NAME ADDRESS` adds one")
    return "\n".join(lines) + "\n"


def late_text(peers: Sequence[PeerStatus]) -> str:
    """Return a line for each peer that has been out of step for too long."""
    lines = []
    for peer in peers:
        when = f"last in step {ago(time.time() - peer.synced_at)}" if peer.synced_at else "never in step"
        behind = f", {plural(peer.behind, 'path')} behind" if peer.behind else ""
        lines.append(f"{printable(peer.name)}: {when}{behind}{_watched(peer)}\n")
    return "".join(lines)


def _watched(peer: PeerStatus) -> str:
    """Return how a running watch finds a peer."""
    if peer.watched is None:
        return ""
    if peer.watched.online:
        return ", watched"
    return f", offline since {ago(time.time() - peer.watched.since)}: {printable(peer.watched.why)}"


def as_json(status: Status) -> str:
    """Return the status as one JSON document."""
    document = {
        "root": json_path(status.root),
        "name": status.name,
        "changes": [{"path": json_path(path), "action": action} for action, path in status.changes],
        "problems": [{"path": json_path(problem.path), "why": problem.why} for problem in status.problems],
        "peers": [
            {**asdict(peer), "watched": peer.watched._asdict() if peer.watched else None}
            for peer in status.peers
        ],
        "conflicts": status.conflicts,
        "watch": {"pid": status.watch.pid, "started": status.watch.started} if status.watch else None,
    }
    return json.dumps(document, indent=2) + "\n"
