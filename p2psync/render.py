"""What people and scripts see of a sync: text for terminals and logs, JSON for programs.

stdout is data, stderr is talk. Without a terminal there are no control characters; names are escaped
always, for a name may hold any byte (CVE-2019-6109).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from p2psync.core.model import Action, Conflict, Kind, Resolution, Transition, action_of
from p2psync.core.order import Move, moved
from p2psync.core.paths import printable, shown
from p2psync.errors import Exit, P2PSyncError
from p2psync.run import PeerRun, worst
from p2psync.sync import Result, Side
from p2psync.words import ACTION_WORDS, complain, json_path, plural, problem_lines, size_of


def report(
    runs: Sequence[PeerRun], *, quiet: bool, verbose: bool, dry_run: bool, colour: bool = False
) -> None:
    """Print what came of a run: its talk of trouble to stderr, all else to stdout."""
    told: set[tuple[str, bytes]] = set()
    for run in runs:
        name = printable(run.peer.name)
        if run.error:
            complain(f"{name}: {run.error}")
        if run.same_as and not quiet:
            print(f"{name}: the same replica as {printable(run.same_as.peer.name)}")
        for result in run.results:
            if dry_run:
                print(_table(name, result, colour), end="")
            _report_result(name, result, quiet, verbose, dry_run, told)


def _table(name: str, result: Result, colour: bool) -> str:
    """Return what would be done, the greatest surprises first: what, where, how big, to what, and why."""
    rows = []
    conflicts = {conflict.path: conflict.resolution for conflict in result.conflicts}
    copies = {conflict.copy for conflict in result.conflicts if conflict.copy}
    for where, side, source in (("here", result.local, f"on {name}"), (f"on {name}", result.peer, "here")):
        for told in _told(side.transitions):
            step = told.step
            entry = step.expected if told.word == "deleted" and step.expected else step.wanted
            size = size_of(entry.size) if entry.kind is Kind.FILE else ""
            if told.paths > 1:
                size = plural(told.paths, "path")
            if step.path in conflicts:
                why = "merged" if conflicts[step.path] is Resolution.MERGED else "conflict"
            elif step.path in copies:
                why = "the other version of a conflict"
            else:
                why = f"{told.word} {source}"
            surprise = _SURPRISES.get(told.word, 3) if why != "conflict" else 1
            rows.append((surprise, told.what, (told.word, where, size), why))
    rows.sort(key=lambda row: row[:2])
    widths = [max((len(row[2][at]) for row in rows), default=0) for at in range(3)]
    lines = []
    for surprise, what, (word, where, size), why in rows:
        cells = f"{word:<{widths[0]}}  {where:<{widths[1]}}  {size:>{widths[2]}}  {what}  ({why})"
        code = _SURPRISE_COLOURS.get(surprise) if colour else None
        lines.append(f"\x1b[{code}m{cells}\x1b[0m\n" if code else f"{cells}\n")
    return "".join(lines)


_SURPRISES = {"deleted": 0, "replaced": 2}
_SURPRISE_COLOURS = {0: "31", 1: "33", 2: "33"}


def _report_result(
    name: str, result: Result, quiet: bool, verbose: bool, dry_run: bool, told: set[tuple[str, bytes]]
) -> None:
    """Report one round; `told` are the skipped paths that were mentioned already."""
    sides = (("here", result.local), (name, result.peer))
    if not quiet:
        for where, side in sides:
            for path in (path for path in side.scanned.skipped if (where, path) not in told):
                told.add((where, path))
                complain(
                    f"{where}: skipped, no file, folder or link, or a reserved name: {shown(path)}", "note"
                )
    if verbose and not dry_run:  # else the table has told it
        for where, side in sides:
            for told_of in _told(side.transitions):
                print(f"{where:>12}  {told_of.word:<11}  {told_of.what}")
    for conflict in result.conflicts:
        if conflict.open or not quiet:
            print(conflict_line(conflict))
    for where, side in sides:
        for line in problem_lines(side.problems, everything=verbose):
            complain(f"{where}: {line}", "problem")
    if result.refusal:
        complain(f"{name}: this would be refused: {result.refusal}", "guard")
    if not quiet:
        print(_summary(name, result, dry_run))


def conflict_line(conflict: Conflict) -> str:
    """Return a line that tells of a conflict."""
    path = shown(conflict.path)
    match conflict.resolution:
        case Resolution.MERGED:
            return f"merged: {path}"
        case Resolution.KEPT:
            return f"conflict: {path}: kept, it was changed on one side and deleted on the other"
        case Resolution.SET_ASIDE | Resolution.OVERTAKEN:
            return f"conflict: {path}: the other version is set aside as {shown(conflict.copy or b'')}"
        case Resolution.DISPLACED:
            return f"conflict: {path}: the other version is in the history of the side that had it"
        case Resolution.SKIPPED:
            return f"conflict: {path}: both sides left as they are"


def _summary(name: str, result: Result, dry_run: bool) -> str:
    parts = count_changes(name, result)
    if dry_run:
        left = [f"{plural(len(result.left), 'path')} left as they are"] if result.left else []
        left += [f"{plural(len(result.left_out), 'path')} left out"] if result.left_out else []
        would = "; ".join(parts + left)
        return f"{name}: " + (f"would be: {would}" if would else "in step, nothing to do")
    end = "in step" if result.in_step else "not in step: see the problems above"
    if result.left:
        end = f"{plural(len(result.left), 'path')} left as they are"
    if result.left_out:
        end = "done" if result.in_step else end
        end += f", {plural(len(result.left_out), 'path')} left out"
    if not parts:
        return f"{name}: {end}"
    copied = f", {size_of(result.transferred)} copied" if result.transferred else ""
    return f"{name}: {'; '.join(parts)}{copied} in {result.seconds:.1f} s; {end}"


def count_changes(name: str, result: Result) -> list[str]:
    """Return how many paths changed, on each side on which some did."""
    parts = []
    for where, side in (("here", result.local), (f"on {name}", result.peer)):
        failed = {problem.path for problem in side.problems}
        moving, others = _moving(step for step in side.transitions if step.path not in failed)
        counts = Counter({"moved": sum(map(len, moving))} if moving else ())
        counts.update(ACTION_WORDS[action_of(step)] for step in others)
        if counts:
            parts.append(", ".join(f"{count} {word}" for word, count in counts.items()) + f" {where}")
    return parts


class _Told(NamedTuple):
    """What happens on one side, as people see it."""

    word: str
    what: str
    step: Transition
    """Of a move, what makes the path at its new place."""
    paths: int = 1


def _told(transitions: Iterable[Transition]) -> list[_Told]:
    moving, others = _moving(transitions)
    told = [
        _Told("moved", f"{shown(old.path)} -> {shown(new.path)}", new, len(together))
        for together in moving
        for old, new in together[:1]
    ]
    told += [_Told(ACTION_WORDS[action_of(step)], shown(step.path), step) for step in others]
    return told


def _moving(transitions: Iterable[Transition]) -> tuple[list[list[Move]], list[Transition]]:
    """Return what moves, and all else that people see."""
    steps = _visible(transitions)
    moving = [*moved(steps)]
    apart = {step.path for together in moving for move in together for step in move}
    return moving, [step for step in steps if step.path not in apart] if apart else steps


def changes_of(side: Side) -> list[tuple[Action, bytes]]:
    """Return what was done to which path, or would be."""
    failed = {problem.path for problem in side.problems}
    return [(action_of(step), step.path) for step in _visible(side.transitions) if step.path not in failed]


def _visible(transitions: Iterable[Transition]) -> list[Transition]:
    return [transition for transition in transitions if action_of(transition) is not Action.NOTHING]


# -- JSON


def as_json(runs: Sequence[PeerRun], error: P2PSyncError | None = None) -> str:
    """Return what came of a run as one JSON document; p2psync-json(5) tells its keys.

    Args:
        runs: what came of each peer.
        error: what kept the whole run from being done.
    """
    exit_code = Exit(error.exit_code) if error else worst(runs)
    document: dict[str, Any] = {
        "plan": [],
        "outcomes": [],
        "conflicts": [],
        "problems": [],
        "peers": [],
        "error": str(error) if error else None,
        "stats": {"exit_code": int(exit_code), "seconds": 0.0, "copied": 0, "sent": 0, "received": 0},
    }
    for run in runs:
        peer = {"peer": run.peer.name, "address": run.peer.address, "exit_code": int(run.exit_code)}
        plan = run.results[-1].plan if run.results else ""
        left_out = len(run.results[-1].left_out) if run.results else 0
        error_text = str(run.error) if run.error else None
        same_as = run.same_as.peer.name if run.same_as else None
        document["peers"].append(
            {**peer, "error": error_text, "same_as": same_as, "plan": plan, "left_out": left_out}
        )
        document["stats"]["sent"] += run.sent
        document["stats"]["received"] += run.received
        for result in run.results:
            _add_result(document, run.peer.name, result)
    return json.dumps(document, indent=2)


def _add_result(document: dict[str, Any], peer: str, result: Result) -> None:
    document["stats"]["seconds"] += round(result.seconds, 3)
    document["stats"]["copied"] += result.transferred
    for conflict in result.conflicts:
        copy = json_path(conflict.copy) if conflict.copy else None
        document["conflicts"].append(
            {"peer": peer, "path": json_path(conflict.path), "resolution": conflict.resolution, "copy": copy}
        )
    for where, side in (("local", result.local), ("peer", result.peer)):
        _add_side(document, {"peer": peer, "side": where}, side)


def _add_side(document: dict[str, Any], place: dict[str, str], side: Side) -> None:
    for problem in side.problems:
        document["problems"].append({**place, "path": json_path(problem.path), "why": problem.why})
    failed = {problem.path for problem in side.problems}
    for transition in _visible(side.transitions):
        step = {**place, "path": json_path(transition.path), "action": action_of(transition)}
        kind = (
            transition.wanted.kind
            if transition.wanted.alive or transition.expected is None
            else (transition.expected.kind)
        )
        document["plan"].append({**step, "kind": kind.name.lower(), "size": transition.wanted.size})
        if side.carried_out:
            document["outcomes"].append({**step, "done": transition.path not in failed})
