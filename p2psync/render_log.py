"""What people and scripts see of the past: runs, versions, what an undo did. Words only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click

from p2psync.core.graph import Event, header, rows
from p2psync.core.model import Action, Entry, Kind, Transition, action_of
from p2psync.core.paths import printable, shown
from p2psync.core.retention import Collected, Kept
from p2psync.local import LocalReplica
from p2psync.undo import NotFound, Outcome
from p2psync.words import ACTION_WORDS, columns, complain, json_path, problem_lines, size_of


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


# -- runs


def runs(replica: LocalReplica, limit: int) -> list[RunShown]:
    """Return the latest runs; those that changed nothing but what is known are left out."""
    found = [_unrecorded(kept) for kept in replica.contents.unrecorded()[::-1]][:limit]
    for run in replica.manifest.past.runs():
        if len(found) >= limit:
            break
        changes = _counts(replica, run.seq)
        if changes or run.size or run.kind != "sync":
            found.append(RunShown(run.name, _when(run.at), run.kind, run.peer, changes, run.size))
    return sorted(found, key=lambda run: run.at, reverse=True)


def _counts(replica: LocalReplica, seq: int) -> dict[str, int]:
    counts = Counter(
        action_of(Transition(path, before, after))
        for path, before, after in replica.manifest.past.changed_by(seq)
    )
    return {str(action): counts[action] for action in ACTION_WORDS if counts[action]}


def _unrecorded(kept: Kept) -> RunShown:
    return RunShown(kept.run, _when(kept.at), "unrecorded", "", {}, kept.size)


def runs_text(found: Sequence[RunShown]) -> str:
    """Return runs as lines of text, the latest first."""
    rows = [(run.run, _short(run.at), _about(run), _changes(run)) for run in found]
    return columns(rows) or "no run has changed anything here yet\n"


def _about(run: RunShown) -> str:
    words = {"sync": "sync with", "undo": "undo of", "resolve": "resolution of", "unrecorded": "not finished"}
    return (
        f"{words.get(run.kind, run.kind)} {printable(run.peer)}"
        if run.peer
        else words.get(run.kind, run.kind)
    )


def _changes(run: RunShown) -> str:
    what = ", ".join(f"{count} {ACTION_WORDS[Action(action)]}" for action, count in run.changes.items())
    if run.kind == "unrecorded":
        what = f"see .p2psync/history/{run.run}"
    kept = f"({size_of(run.kept)} kept)" if run.kept else ""
    return f"{what} {kept}".strip()


def runs_graph(found: Sequence[RunShown]) -> str:
    """Return runs as a graph: a lane for this replica and one for each that it met."""
    if not found:
        return runs_text(found)
    peers = list(dict.fromkeys(printable(run.peer) for run in found if run.kind == "sync"))
    lanes = {name: lane for lane, name in enumerate(["this replica", *peers])}
    events = [Event(0, [lanes[printable(run.peer)]] if run.kind == "sync" else []) for run in found]
    drawn = rows(events, len(lanes))
    told = runs_text(found).splitlines()
    return _graph(lanes, (f"{row}  {line}" for row, line in zip(drawn, told, strict=True)))


def _graph(names: Iterable[str], lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in (*header(list(names)), *lines))


def versions_graph(replica: LocalReplica, path: bytes, found: Sequence[VersionShown]) -> str:
    """Return versions as a graph: a lane for each replica that had a part in one; see `core.graph`."""
    entries = [version.entry for version in reversed(replica.manifest.past.versions(path))]
    names = replica.names()
    ids = dict.fromkeys(stamp.replica for entry in entries for stamp in entry.version)
    lanes = {replica_id: lane for lane, replica_id in enumerate(ids)}
    events = []
    for number, entry in enumerate(entries):
        made = max(entry.version, key=lambda stamp: stamp.tick, default=None)
        older = [one.version for one in entries[number + 1 :] if one.version <= entry.version]
        seen = [stamp for stamp in entry.version if made and stamp.replica != made.replica]
        met = [lanes[s.replica] for s in seen if all(v.tick_of(s.replica) < s.tick for v in older)]
        events.append(Event(lanes[made.replica] if made else 0, met))
    drawn = rows(events, max(len(lanes), 1))
    told = versions_text(path, found).splitlines()
    who = [printable(names.get(one) or f"{one:016x}") for one in lanes]
    return _graph(who, (f"{row}  {line}" for row, line in zip(drawn, told, strict=True)))


def runs_json(found: Sequence[RunShown]) -> str:
    """Return runs as one JSON document."""
    return json.dumps([asdict(run) for run in found], indent=2) + "\n"


# -- versions


def versions(replica: LocalReplica, path: bytes) -> list[VersionShown]:
    """Return every version of a path that is known, the present one first.

    Raises:
        NotFound: none is.
    """
    manifest = replica.manifest
    names = {record.replica: record.name for record in manifest.replicas.all()}
    names[replica.identity.replica] = replica.identity.name
    run_names = {run.seq: run.name for run in manifest.past.runs()}
    conflicts = manifest.past.conflicts(path)
    found = []
    for entry, born, seq in reversed(manifest.past.versions(path)):
        stamp = max(entry.version, key=lambda stamp: stamp.tick, default=None)
        resolution, copy = conflicts.get(born, (None, b""))
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
                kept=replica.contents.has(entry),
            )
        )
    if not found:
        raise NotFound(
            f"nothing is known of {shown(path)} here: no sync has met it; `p2psync log` shows the runs"
        )
    return found


def versions_text(path: bytes, found: Iterable[VersionShown]) -> str:
    """Return versions as lines of text, the present one first."""
    return columns(
        [
            (
                _short(version.at),
                size_of(version.size) if version.kind == Kind.FILE.name.lower() else version.kind,
                version.digest[:12],
                f"by {printable(version.replica)}",
                ", ".join(_notes(version)),
            )
            for version in found
        ],
        right=1,
    )


def _notes(version: VersionShown) -> Iterable[str]:
    if version.present:
        yield "(present)"
    elif version.replaced_by:
        yield f"@{version.replaced_by}"
    if version.copy:
        yield f"the other set aside as {shown(version.copy.encode('utf-8', 'surrogateescape'))}"
    elif version.conflict:
        yield version.conflict
    if not version.kept and version.kind != "deleted":
        yield "contents not kept here"


def versions_json(path: bytes, found: Sequence[VersionShown]) -> str:
    """Return versions as one JSON document."""
    document = {"path": json_path(path), "versions": [asdict(version) for version in found]}
    return json.dumps(document, indent=2) + "\n"


# -- what was done


def report(outcome: Outcome, done: str, dry_run: bool, as_json: bool) -> None:
    """Print what came of an undo or a restore."""
    failed = {problem.path for problem in outcome.problems}
    steps = [step for step in outcome.transitions if step.path not in failed]
    if as_json:
        document = {
            "run": outcome.run,
            "changes": [{"path": json_path(step.path), "action": action_of(step)} for step in steps],
            "problems": [{"path": json_path(p.path), "why": p.why} for p in outcome.problems],
            "done": outcome.carried_out,
        }
        click.echo(json.dumps(document, indent=2))
        return
    for step in steps:
        click.echo(f"{ACTION_WORDS.get(action_of(step), ''):<11}  {shown(step.path)}")
    for line in problem_lines(outcome.problems, colon=":"):
        complain(line, "left alone")
    before = f", as before {outcome.run}" if outcome.run else ""
    if not steps and not failed:
        click.echo(f"nothing to do: all is{before.lstrip(',') or ' as it was'} already")
        return
    would = "would be " if dry_run else ""
    click.echo(f"{_paths(len(steps))} {would}{done}{before}")


def written(to: str, entry: Entry, dry_run: bool, as_json: bool) -> str:
    """Return what came of writing a past version to a file."""
    if as_json:
        document = {"file": to, "size": entry.size, "digest": entry.digest.hex(), "done": not dry_run}
        return json.dumps(document, indent=2) + "\n"
    return f"{'would write' if dry_run else 'wrote'} {printable(to)}\n"


def collected(gone: Collected, dry_run: bool) -> str:
    """Return what a cleaning of the history came to."""
    runs, texts = gone
    would = "would be " if dry_run else ""
    told = []
    if runs:
        lines = columns([(run.run, _short(_when(run.at)), size_of(run.size)) for run in runs], right=2)
        count = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
        size = size_of(sum(run.size for run in runs))
        told.append(f"{lines}the history of {count} {would}removed, {size}")
    if texts:
        count = f"{texts} {'text' if texts == 1 else 'texts'}"
        told.append(f"{count} {would}forgotten, from which no merge starts any more")
    return "\n".join(told) or "nothing to remove: no history is too old or too much (the latest run stays)"


def _paths(count: int) -> str:
    return f"{count} path" if count == 1 else f"{count} paths"


def _short(at: str) -> str:
    """Return a time without its offset: it is the one of the reader's clock."""
    return at[:19]


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):  # a clock that was wrong by more than calendars have
        return "at no time"
