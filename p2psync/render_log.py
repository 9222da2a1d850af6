"""What people and scripts see of the past: runs, versions, what an undo did. Words only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click

from p2psync.core.model import Action, Kind, Transition, action_of
from p2psync.core.paths import printable, shown
from p2psync.core.retention import Kept
from p2psync.local import LocalReplica
from p2psync.render import ACTION_WORDS, complain, json_path, size_of
from p2psync.undo import Outcome


@dataclass
class RunShown:
    """A run, as it is shown."""

    run: str
    at: str
    """Local time, to the second, with its offset."""
    kind: str
    peer: str
    """The other side; of an undo or a restore what it put back."""
    changes: dict[str, int]
    """How many paths, by action."""
    kept: int
    """Bytes in the history."""


@dataclass
class VersionShown:
    """A version of a path, as it is shown."""

    at: str
    replica: str
    """Who made it."""
    kind: str
    size: int
    digest: str
    conflict: str | None
    """How a conflict about it ended."""
    copy: str | None
    """Where the other version was set aside."""
    replaced_by: str | None
    """The run that took it away; None: it is the present one, or an edit replaced it."""
    present: bool
    kept: bool
    """Are its contents here?"""


def runs(replica: LocalReplica, limit: int) -> list[RunShown]:
    """Return the latest runs."""
    manifest = replica.manifest
    shown_runs = []
    for run in manifest.runs()[:limit]:
        steps = (Transition(path, before, after) for path, before, after in manifest.changed_by(run.seq))
        counts = Counter(str(action_of(step)) for step in steps)
        counts.pop(Action.NOTHING, None)
        shown_runs.append(RunShown(run.name, _when(run.at), run.kind, run.peer, dict(counts), run.size))
    return shown_runs


def runs_text(found: Iterable[RunShown]) -> str:
    """Return runs as lines of text, the latest first."""
    lines = []
    for run in found:
        what = ", ".join(f"{count} {ACTION_WORDS[Action(action)]}" for action, count in run.changes.items())
        kept = f"  ({size_of(run.kept)} kept)" if run.kept else ""
        about = (
            f"{run.kind} {'with ' if run.kind == 'sync' and run.peer else ''}{printable(run.peer)}".strip()
        )
        lines.append(f"{run.run}  {run.at}  {about}: {what or 'nothing to see'}{kept}\n")
    return "".join(lines) or "no run has changed anything here yet\n"


def runs_json(found: Sequence[RunShown]) -> str:
    """Return runs as one JSON document."""
    return json.dumps([asdict(run) for run in found], indent=2) + "\n"


def versions(replica: LocalReplica, path: bytes) -> list[VersionShown]:
    """Return every version of a path that is known, the present one first."""
    manifest = replica.manifest
    names = {record.replica: record.name for record in manifest.peers()}
    names[replica.identity.replica] = replica.identity.name
    run_names = {run.seq: run.name for run in manifest.runs()}
    conflicts = manifest.conflicts(path)
    found = []
    for entry, born, seq in reversed(manifest.versions(path)):
        stamp = max(entry.version, key=lambda stamp: stamp.tick, default=None)
        resolution, copy = conflicts.get(born, (None, b""))
        kept = entry.kind is not Kind.FILE or replica.contents.has(entry.digest)
        found.append(
            VersionShown(
                at=_when(stamp.tick // 1_000_000) if stamp else "",
                replica=(names.get(stamp.replica) or f"{stamp.replica:016x}") if stamp else "",
                kind="deleted" if not entry.alive else entry.kind.name.lower(),
                size=entry.size,
                digest=entry.digest.hex(),
                conflict=resolution,
                copy=json_path(copy) if copy else None,
                replaced_by=run_names.get(seq) if seq is not None else None,
                present=seq is None,
                kept=entry.alive and kept,
            )
        )
    return found


def versions_text(path: bytes, found: Iterable[VersionShown]) -> str:
    """Return versions as lines of text, the present one first."""
    lines = []
    for version in found:
        what = version.kind
        if version.kind == "file":
            what = f"{size_of(version.size)} {version.digest[:12]}"
        notes = [version.conflict] if version.conflict else []
        if version.copy:
            notes[-1:] = [f"{version.conflict}: {shown(version.copy.encode('utf-8', 'surrogateescape'))}"]
        if version.present:
            notes.append("present")
        elif version.replaced_by:
            notes.append(f"@{version.replaced_by}")
        if not version.kept and version.kind != "deleted":
            notes.append("contents not kept")
        lines.append(
            f"{version.at}  {what}  by {printable(version.replica)}  {', '.join(notes)}".rstrip() + "\n"
        )
    return "".join(lines) or f"nothing is known of {shown(path)}\n"


def versions_json(path: bytes, found: Sequence[VersionShown]) -> str:
    """Return versions as one JSON document."""
    document = {"path": json_path(path), "versions": [asdict(version) for version in found]}
    return json.dumps(document, indent=2) + "\n"


def report(outcome: Outcome, done: str, dry_run: bool, as_json: bool) -> None:
    """Print what came of an undo or a restore."""
    failed = {problem.path for problem in outcome.problems}
    steps = [step for step in outcome.transitions if step.path not in failed]
    if as_json:
        document = {
            "changes": [{"path": json_path(step.path), "action": action_of(step)} for step in steps],
            "problems": [{"path": json_path(p.path), "why": p.why} for p in outcome.problems],
            "done": outcome.carried_out,
        }
        click.echo(json.dumps(document, indent=2))
        return
    for step in steps:
        print(f"{ACTION_WORDS.get(action_of(step), ''):<11}  {shown(step.path)}")
    for problem in outcome.problems:
        complain(f"{shown(problem.path)} {problem.why}", "left alone")
    would = "would be " if dry_run else ""
    print(f"{len(steps)} {'path' if len(steps) == 1 else 'paths'} {would}{done}")


def collected(gone: Sequence[Kept], dry_run: bool) -> str:
    """Return what a cleaning of the history came to."""
    would = "would be " if dry_run else ""
    runs_gone = f"{len(gone)} {'run' if len(gone) == 1 else 'runs'}"
    return f"the history of {runs_gone} {would}removed, {size_of(sum(run.size for run in gone))}"


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):  # a clock that was wrong by more than calendars have
        return "at no time"
