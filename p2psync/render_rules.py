"""What people see of ignore rules, and of what becomes of a path. Words only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from p2psync.core.model import Action, action_of
from p2psync.core.paths import printable, shown
from p2psync.render import conflict_line
from p2psync.render_log import VersionShown, versions_text
from p2psync.rules import Rule
from p2psync.run import PeerRun
from p2psync.words import ACTION_WORDS, json_path


@dataclass
class Told:
    """All that is to be told of a path."""

    path: bytes
    exists: bool
    rule: Rule | None
    versions: Sequence[VersionShown]
    runs: Sequence[PeerRun]


def checked(found: Iterable[tuple[bytes, Rule | None]]) -> str:
    """Return which rule decides about each path, as `git check-ignore -v` has it."""
    return "".join(f"{_rule(rule)}\t{shown(path)}\n" for path, rule in found)


def _rule(rule: Rule | None) -> str:
    return f"{shown(rule.file)}:{rule.line}:{shown(rule.pattern)}" if rule else "::"


def in_force(found: Iterable[tuple[bytes, int, bytes]]) -> str:
    """Return the rules at the root."""
    return "".join(f"{shown(file)}:{line}:{shown(pattern)}\n" for file, line, pattern in found)


def added(pattern: bytes, file: bytes, new: bool, hits: int) -> str:
    """Return what came of adding a pattern."""
    if not new:
        return f"{shown(pattern)} is in {shown(file)} already"
    known = "no path that is known" if not hits else f"{hits} known path{'s' * (hits != 1)}"
    stays = ", which will not be synced any more" if hits else ""
    return f"added {shown(pattern)} to {shown(file)}: it hits {known}{stays}"


def why_text(told: Told) -> str:
    """Return all about a path as text."""
    lines = [shown(told.path) + ("" if told.exists else " (nothing is there now)")]
    if told.rule:
        verb = "ignored" if told.rule.ignored else "not ignored"
        where = f" (as {shown(told.rule.about)} is)" if told.rule.about != told.path else ""
        line = f"{shown(told.rule.file)}, line {told.rule.line}: {shown(told.rule.pattern)}"
        lines.append(f"{verb}{where} by {line}")
    else:
        lines.append("no ignore rule is about it")
    text = "\n".join(lines) + "\n"
    if told.versions:
        text += "versions, the present one first:\n"
        text += "".join(f"  {line}\n" for line in versions_text(told.path, told.versions).splitlines())
    else:
        text += "no sync has met it yet\n"
    return text + "".join(f"next sync with {line}\n" for line in _next(told))


def _next(told: Told) -> Iterable[str]:
    for run in told.runs:
        name = printable(run.peer.name)
        if run.error:
            yield f"{name}: not known: {printable(str(run.error))}"
            continue
        found = []
        for result in run.results:
            found += [conflict_line(c) for c in result.conflicts if c.path == told.path]
            found += ["left as it is on both sides" for path in result.left if path == told.path]
            for where, side in (("here", result.local), (f"on {name}", result.peer)):
                for step in side.transitions:
                    action = action_of(step)
                    if step.path == told.path and action is not Action.NOTHING:
                        found.append(f"{ACTION_WORDS[action]} {where}")
                found += [f"left alone {where}: {p.why}" for p in side.problems if p.path == told.path]
        yield f"{name}: {'; '.join(found) or 'nothing, it is in step'}"


def why_json(told: Told) -> str:
    """Return all about a path as one JSON document."""
    rule = None
    if told.rule:
        rule = {
            "file": json_path(told.rule.file),
            "line": told.rule.line,
            "pattern": json_path(told.rule.pattern),
            "ignored": told.rule.ignored,
            "about": json_path(told.rule.about),
        }
    document = {
        "path": json_path(told.path),
        "exists": told.exists,
        "rule": rule,
        "versions": [asdict(version) for version in told.versions],
        "next": [*_next(told)],
    }
    return json.dumps(document, indent=2) + "\n"
