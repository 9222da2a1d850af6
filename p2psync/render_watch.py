"""What a watch says: a line for each event, for people and logs, or as JSON."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from p2psync.core.paths import printable
from p2psync.render import changes_of, conflict_line, count_changes
from p2psync.sync import Result
from p2psync.watch import Connected, Event, Lost, Started, Synced, Warned
from p2psync.words import json_path, problem_lines, size_of


def text(event: Event) -> list[str]:
    """Return the lines that tell people of an event, with the time, unless a journal notes that."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    return [stamp + line for line in _text(event)]


def _text(event: Event) -> list[str]:
    match event:
        case Started(peers):
            return [f"watching; {peers} peer{'' if peers == 1 else 's'}"]
        case Connected(peer):
            return [f"{printable(peer)}: connected"]
        case Lost(peer, why, seconds):
            return [f"{printable(peer)}: {printable(why)}; trying again in {_in_words(seconds)}"]
        case Warned(why):
            return [f"warning: {printable(why)}"]
        case Synced(run, seconds):
            name = printable(run.peer.name)
            if run.error:
                return [f"{name}: {printable(str(run.error))}; trying again in {_in_words(seconds)}"]
            return [line for result in run.results for line in _lines(name, result)]


def _lines(name: str, result: Result) -> list[str]:
    lines = [f"{name}: {conflict_line(conflict)}" for conflict in result.conflicts]
    for where, side in (("here", result.local), (name, result.peer)):
        lines += [f"{name}: problem: {where}: {printable(line)}" for line in problem_lines(side.problems)]
    changes = count_changes(name, result)
    if changes:
        copied = f", {size_of(result.transferred)} copied" if result.transferred else ""
        lines.append(f"{name}: {'; '.join(changes)}{copied} in {result.seconds:.2f} s")
    return lines


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def as_json(event: Event) -> list[str]:
    """Return an event as JSON, one object a line."""
    return [
        json.dumps({"event": type(event).__name__.lower(), "at": round(time.time(), 3), **fields})
        for fields in _fields(event)
    ]


def _fields(event: Event) -> list[dict[str, Any]]:
    if not isinstance(event, Synced):
        return [event._asdict()]
    peer = {"peer": event.run.peer.name}
    if event.run.error:
        return [{**peer, "error": str(event.run.error), "retry_seconds": event.retry_seconds}]
    return [{**peer, **_result_fields(result)} for result in event.run.results if _is_something(result)]


_HOOKS = {"on_change": "changes", "on_conflict": "conflicts", "on_error": "problems"}
"""What has to be there for which hook to be run."""


def for_hooks(event: Event) -> dict[str, dict[str, Any]]:
    """Return which hooks an event is for, and what they are told."""
    match event:
        case Lost(peer, why, _):
            return {"on_error": {"peer": peer, "error": why}}
        case Synced(run, _) if run.error:
            return {"on_error": {"peer": run.peer.name, "error": str(run.error)}}
        case Synced(run, _):
            wanted: dict[str, dict[str, Any]] = {}
            for result in run.results:
                about = {"peer": run.peer.name, **_result_fields(result)}
                about["conflicts"] = [c for c in about["conflicts"] if c["open"]]
                wanted |= {hook: about for hook, key in _HOOKS.items() if about[key]}
            return wanted
        case _:
            return {}


def _is_something(result: Result) -> bool:
    return bool(_lines("", result))


def _result_fields(result: Result) -> dict[str, Any]:
    return {
        "changes": [
            {"side": where, "path": json_path(path), "action": action}
            for where, side in (("local", result.local), ("peer", result.peer))
            for action, path in changes_of(side)
        ],
        "conflicts": [
            {
                "path": json_path(conflict.path),
                "resolution": conflict.resolution,
                "copy": json_path(conflict.copy) if conflict.copy else None,
                "open": conflict.open,
            }
            for conflict in result.conflicts
        ],
        "problems": [
            {"side": where, "path": json_path(problem.path), "why": problem.why}
            for where, side in (("local", result.local), ("peer", result.peer))
            for problem in side.problems
        ],
        "copied": result.transferred,
        "seconds": round(result.seconds, 3),
    }
