"""What people and scripts see: text for terminals and logs, JSON for programs. Owns every word of output.

stdout is data, stderr is talk. Without a terminal there are no control characters; names are escaped
always, for a name may hold any byte (CVE-2019-6109).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from p2psync.core.model import Action, Conflict, Kind, Resolution, Transition, action_of
from p2psync.core.order import moved
from p2psync.core.paths import printable, shown
from p2psync.errors import Exit, P2PSyncError
from p2psync.run import PeerRun, worst
from p2psync.sync import Result, Side

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from p2psync.status import PeerStatus, Status

ACTION_WORDS = {
    Action.CREATE: "new",
    Action.UPDATE: "changed",
    Action.DELETE: "deleted",
    Action.REPLACE: "replaced",
    Action.MODE: "permissions",
    Action.TOUCH: "touched",
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_of(count: int) -> str:
    """Return a number of bytes as people say it."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    for limit, divisor, unit in ((90, 1, "second"), (5400, 60, "minute"), (129600, 3600, "hour")):
        if seconds < limit:
            return _plural(max(0, round(seconds / divisor)), unit) + " ago"
    return _plural(round(seconds / 86400), "day") + " ago"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def when(mtime_ns: int) -> str:
    """Return a time of a file by the reader's clock, to the second."""
    try:
        return datetime.fromtimestamp(mtime_ns // 10**9, UTC).astimezone().isoformat(" ", "seconds")[:19]
    except (OverflowError, ValueError, OSError):
        return "at no time"


def columns(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Return rows as aligned lines; the column `right` is aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if number == right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


# -- progress


class Silent:
    """Tells nobody."""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Plain(Silent):
    """A line for each step, and now and then one that tells how far it is: for logs."""

    _EVERY_SECONDS = 10.0

    def __init__(self, as_json: bool = False) -> None:
        self._lock = threading.Lock()
        self._as_json = as_json
        self._every = 1.0 if as_json else self._EVERY_SECONDS
        self._step = ("", 0, 0)
        self._done = (0, 0)
        self._path = b""
        self._told = 0.0

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""
        with self._lock:
            self._step, self._done = (step, files, size), (0, 0)
            self._tell()

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""
        with self._lock:
            self._done = (self._done[0] + files, self._done[1] + size)
            self._path = path
            if time.monotonic() - self._told >= self._every:
                self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        (step, files, size), (done, done_size) = self._step, self._done
        if self._as_json:
            told: dict[str, Any] = {
                "step": step,
                "files": done,
                "of_files": files,
                "bytes": done_size,
                "of_bytes": size,
            }
            told["path"] = json_path(self._path)
            print(json.dumps(told), file=sys.stderr, flush=True)
            return
        counted = f" {done:,}/{files:,} files" if files else ""
        counted += f", {size_of(done_size)}/{size_of(size)}" if size else ""
        print(f"p2psync: {step}{counted}", file=sys.stderr, flush=True)


def progress(how: str) -> Silent:
    """Return who tells of progress: `line`, `plain`, `json`, or nobody."""
    if how == "line":
        return Line()
    return Plain(how == "json") if how in ("plain", "json") else Silent()


class Line(Silent):
    """One line on a terminal: files, bytes, rate, time left."""

    _QUICK_SECONDS = 0.3
    """A run that is over by then shows no line, and does not pay for loading rich."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Both sides report, each from its own thread."""
        self._started = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._step = ("", 0, 0)
        self._files = 0
        self._bytes = 0
        self._path = b""

    def begin(self, step: str, files: int = 0, size: int = 0) -> None:
        """A step begins."""
        with self._lock:
            self._step = (step, files, size)
            self._files = self._bytes = 0
            self._path = b""
            self._show()

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        """Something was done."""
        with self._lock:
            self._files += files
            self._bytes += size
            self._path = path
            self._show()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self) -> None:
        if self._bar is None and time.monotonic() - self._started < self._QUICK_SECONDS:
            return
        step, files, size = self._step
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.start()
        if self._task is None or self._bar.tasks[0].description != step:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(step, total=size or files or None, files="", path="")
        counted = f"{self._files:,}/{files:,} files" if files else ""
        counted += f"  {size_of(self._bytes)}/{size_of(size)}" if size else ""
        done = self._bytes if size else self._files
        self._bar.update(self._task, completed=done, files=counted, path=shown(self._path))


def _make_bar() -> Bar:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            copying = task.description == "copying"
            return Text(f"{size_of(int(task.speed))}/s" if copying and task.speed else "")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[files]}"),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[path]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        expand=True,
        console=Console(stderr=True),
        transient=True,
    )


# -- text


def report(
    runs: Sequence[PeerRun], *, quiet: bool, verbose: bool, dry_run: bool, colour: bool = False
) -> None:
    """Print what came of a run: its talk of trouble to stderr, all else to stdout."""
    told: set[tuple[str, bytes]] = set()
    for run in runs:
        name = printable(run.peer.name)
        if run.error:
            complain(f"{name}: {run.error}")
        for result in run.results:
            if dry_run:
                print(_table(name, result, colour), end="")
            _report_result(name, result, quiet, verbose and not dry_run, dry_run, told)


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
                size = _plural(told.paths, "path")
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
    if verbose:
        for where, side in sides:
            for told_of in _told(side.transitions):
                print(f"{where:>12}  {told_of.word:<11}  {told_of.what}")
    for conflict in result.conflicts:
        if conflict.open or not quiet:
            print(conflict_line(conflict))
    for where, side in sides:
        for problem in side.problems:
            complain(f"{where}: {shown(problem.path)} {problem.why}", "problem")
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
        left = [f"{_plural(len(result.left), 'path')} left as they are"] if result.left else []
        left += [f"{_plural(len(result.left_out), 'path')} left out"] if result.left_out else []
        would = "; ".join(parts + left)
        return f"{name}: " + (f"would be: {would}" if would else "in step, nothing to do")
    end = "in step" if result.in_step else "not in step: see the problems above"
    if result.left:
        end = f"{_plural(len(result.left), 'path')} left as they are"
    if result.left_out:
        end += f", {_plural(len(result.left_out), 'path')} left out"
    if not parts:
        return f"{name}: {end}"
    copied = f", {size_of(result.transferred)} copied" if result.transferred else ""
    return f"{name}: {'; '.join(parts)}{copied} in {result.seconds:.1f} s; {end}"


def count_changes(name: str, result: Result) -> list[str]:
    """Return how many paths changed, on each side on which some did."""
    parts = []
    for where, side in (("here", result.local), (f"on {name}", result.peer)):
        failed = {problem.path for problem in side.problems}
        counts: Counter[str] = Counter()
        for told in _told(step for step in side.transitions if step.path not in failed):
            counts[told.word] += told.paths
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
    steps = _visible(transitions)
    moving = [*moved(steps)]
    apart = {step.path for together in moving for move in together for step in move}
    told = [
        _Told("moved", f"{shown(old.path)} -> {shown(new.path)}", new, len(together))
        for together in moving
        for old, new in together[:1]
    ]
    told += [_Told(ACTION_WORDS[action_of(s)], shown(s.path), s) for s in steps if s.path not in apart]
    return told


def changes_of(side: Side) -> list[tuple[Action, bytes]]:
    """Return what was done to which path, or would be."""
    failed = {problem.path for problem in side.problems}
    return [(action_of(step), step.path) for step in _visible(side.transitions) if step.path not in failed]


def _visible(transitions: Iterable[Transition]) -> list[Transition]:
    return [transition for transition in transitions if action_of(transition) is not Action.NOTHING]


def complain(message: str, kind: str = "error") -> None:
    """Say on stderr what is wrong, and what to do."""
    print(f"p2psync: {kind}: {printable(message)}", file=sys.stderr)


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
        document["peers"].append({**peer, "error": error_text, "plan": plan, "left_out": left_out})
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


def json_path(path: bytes) -> str:
    """Return a path as a JSON string; bytes that are no UTF-8 become lone surrogates, as in os.fsdecode."""
    return path.decode("utf-8", "surrogateescape")


# -- status


def status_text(status: Status) -> str:
    """Return the status as text."""
    lines = [f"{shown(status.root)} ({status.name})"]
    for action, path in status.changes:
        lines.append(f"  {ACTION_WORDS[action]:<11}  {shown(path)}")
    for problem in status.problems:
        lines.append(f"  {'problem':<11}  {shown(problem.path)} {problem.why}")
    if not status.changes:
        lines.append("nothing changed here since the last sync")
    if status.conflicts:
        count = _plural(status.conflicts, "conflict")
        lines.append(f"{count} to be settled: `p2psync conflicts` tells which")
    width = max((len(peer.name) for peer in status.peers), default=0)
    for peer in status.peers:
        when = f"in step {ago(time.time() - peer.synced_at)}" if peer.synced_at else "never in step"
        behind = f", {_plural(peer.behind, 'path')} behind" if peer.behind else ""
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
        behind = f", {_plural(peer.behind, 'path')} behind" if peer.behind else ""
        lines.append(f"{printable(peer.name)}: {when}{behind}{_watched(peer)}\n")
    return "".join(lines)


def _watched(peer: PeerStatus) -> str:
    """Return how a running watch finds a peer."""
    if peer.watched is None:
        return ""
    if peer.watched.online:
        return ", watched"
    return f", offline since {ago(time.time() - peer.watched.since)}: {printable(peer.watched.why)}"


def status_json(status: Status) -> str:
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
