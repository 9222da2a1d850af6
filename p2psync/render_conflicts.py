"""What people and scripts see of open conflicts, and of settling them. Words only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from p2psync.conflicts import Open, Settled
from p2psync.core.model import Entry, Kind
from p2psync.core.paths import printable, shown
from p2psync.core.vector import ReplicaId
from p2psync.words import complain, json_path, problem_lines, size_of, when

Names = Mapping[ReplicaId, str]


_UNDECIDED = "left as it is on each side: a conflict, or a problem that the sync told of"


def text(conflicts: Sequence[Open], undecided: Sequence[bytes], names: Names, here: ReplicaId) -> str:
    """Return open conflicts as text: for each, the version that kept the path and the one set aside."""
    lines = []
    for one in conflicts:
        lines.append(shown(one.path))
        edited = ", edited since" if one.is_edited else ""
        lines.append(f"  {'kept':<9}  {_version(one.winner, one.winner_by, names, here)}{edited}")
        lines.append(f"  {'set aside':<9}  {_version(one.loser, one.loser_by, names, here)}")
        lines.append(f"  {'':<9}  as {shown(one.copy)}")
    lines += [f"{shown(path)}\n  {_UNDECIDED}" for path in undecided]
    return "".join(f"{line}\n" for line in lines)


def _version(entry: Entry | None, by: ReplicaId | None, names: Names, here: ReplicaId) -> str:
    if entry is None:
        return "deleted"
    size = size_of(entry.size) if entry.kind is Kind.FILE else entry.kind.name.lower()
    return f"{size:>10}  {when(entry.mtime_ns)}  {_by(by, names, here)}".rstrip()


def _by(by: ReplicaId | None, names: Names, here: ReplicaId) -> str:
    if by is None:
        return ""
    return "by this replica" if by == here else f"by {printable(names.get(by) or f'{by:016x}')}"


def as_json(conflicts: Sequence[Open], undecided: Sequence[bytes], names: Names) -> str:
    """Return open conflicts as one JSON document."""
    document = {
        "conflicts": [
            {
                "path": json_path(one.path),
                "copy": json_path(one.copy),
                "kept": _json(one.winner, one.winner_by, names),
                "set_aside": _json(one.loser, one.loser_by, names),
                "lost_here": one.lost_here,
                "edited": one.is_edited,
                "at": one.settled_at,
            }
            for one in conflicts
        ],
        "undecided": [json_path(path) for path in undecided],
    }
    return json.dumps(document, indent=2) + "\n"


def _json(entry: Entry | None, by: ReplicaId | None, names: Names) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        "kind": entry.kind.name.lower(),
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "digest": entry.digest.hex(),
        "by": (names.get(by) or f"{by:016x}") if by is not None else None,
    }


def report(settled: Settled, dry_run: bool, as_json: bool) -> str:
    """Return what came of settling conflicts; problems go to stderr."""
    if as_json:
        document = {
            "settled": [
                {"path": json_path(one.path), "copy": json_path(one.copy), "kept": kept}
                for one, kept in settled.conflicts
            ],
            "problems": [{"path": json_path(p.path), "why": p.why} for p in settled.problems],
            "done": not dry_run,
        }
        return json.dumps(document, indent=2) + "\n"
    for line in problem_lines(settled.problems, colon=":"):
        complain(line, "left alone")
    would = "would be " if dry_run else ""
    return "".join(f"{shown(one.path)}: {would}settled, kept: {kept}\n" for one, kept in settled.conflicts)
