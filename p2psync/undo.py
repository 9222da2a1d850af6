"""Undo, restore and show: what a replica was, found again. Owns how a past version is chosen.

PATH@RUN is the version that RUN found at PATH and took away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from p2psync.core.model import Entry, Kind, Problem, Transition, needs_content
from p2psync.core.paths import ancestors, join, printable, shown
from p2psync.core.replica import Name
from p2psync.core.revert import Changed, Reverted, revert
from p2psync.disk import write_all
from p2psync.errors import Exit, P2PSyncError, ReplicaError
from p2psync.local import LocalReplica
from p2psync.manifest import Run


class NotFound(P2PSyncError):
    """There is no such run or version."""


@dataclass
class Outcome:
    """What came of an undo or a restore."""

    transitions: list[Transition]
    problems: list[Problem]
    """Paths left alone."""
    carried_out: bool

    @property
    def exit_code(self) -> Exit:
        """What the command ends with."""
        return Exit.CONFLICTS if self.problems else Exit.IN_STEP


def find_run(replica: LocalReplica, name: str | None) -> Run:
    """Return the run of that name, or the latest.

    Raises:
        NotFound: there is none.
    """
    runs = replica.manifest.runs()
    for run in runs:
        if name is None or run.name == name:
            return run
    what = "run yet" if name is None else f"run {printable(name)}"
    raise NotFound(f"there is no {what}; `p2psync log` shows the runs")


def undo(replica: LocalReplica, name: str | None, dry_run: bool = False) -> Outcome:
    """Put back every path that a run changed here; one that was changed since is left alone.

    Args:
        replica: open, and locked.
        name: of the run; None: the latest.
        dry_run: only tell what would be done.

    Raises:
        NotFound: there is no such run.
        ReplicaError: it cannot be carried out.
    """
    run = find_run(replica, name)
    return _revert(replica, replica.manifest.changed_by(run.seq), dry_run, "undo", run.name)


def restore(replica: LocalReplica, path: bytes, name: str | None, dry_run: bool = False) -> Outcome:
    """Put back a path, and all below it, as it was before a run, whatever has become of it since.

    Args:
        replica: open, and locked.
        path: from the root.
        name: of the run; None: the latest that took something away there.
        dry_run: only tell what would be done.

    Raises:
        NotFound: nothing is remembered of it.
        ReplicaError: it cannot be carried out.
    """
    for run in [find_run(replica, name)] if name else replica.manifest.runs():
        taken = [change for change in _below(replica, run, path) if change.before and change.before.alive]
        if taken:
            return _revert(replica, taken, dry_run, "restore", f"{shown(path)}@{run.name}", force=True)
    entry = _past(replica, path, name)
    present = replica.lookup([Name(path, False)]).entries[0]
    assert present is not None
    return _revert(replica, [Changed(path, entry, present)], dry_run, "restore", shown(path), force=True)


def _below(replica: LocalReplica, run: Run, path: bytes) -> list[Changed]:
    changes = replica.manifest.changed_by(run.seq)
    return [change for change in changes if change.path == path or change.path.startswith(join(path, b""))]


def past(replica: LocalReplica, path: bytes, name: str | None) -> Entry:
    """Return the version of a file that a run took away; without a run, the latest earlier one that is kept.

    Raises:
        NotFound: there is none, or it is no file.
    """
    entry = _past(replica, path, name)
    if entry.kind is Kind.DIRECTORY:
        raise NotFound(f"{shown(path)} was a folder then: `p2psync restore` brings it back")
    return entry


def _past(replica: LocalReplica, path: bytes, name: str | None) -> Entry:
    if name:
        for change in replica.manifest.changed_by(find_run(replica, name).seq):
            if change.path == path and change.before and change.before.alive:
                return change.before
        raise NotFound(f"run {printable(name)} took nothing away at {shown(path)}")
    versions = [version.entry for version in replica.manifest.versions(path)]
    for entry in reversed(versions[:-1]):
        differs = not (versions[-1].alive and entry.same_bytes(versions[-1]))
        kept = entry.kind is not Kind.FILE or replica.contents.has(entry.digest)
        if entry.alive and differs and kept:
            return entry
    raise NotFound(f"no earlier version of {shown(path)} is kept here")


def contents(replica: LocalReplica, entry: Entry) -> Iterator[bytes]:
    """Yield the bytes of a past version; of a symlink, where it points.

    Raises:
        NotFound: they are not kept any more.
    """
    if entry.kind is Kind.SYMLINK:
        yield entry.target
        return
    with replica.contents.find(entry.digest) as blocks:
        if blocks is None:
            raise NotFound("the contents of that version are not kept any more")
        yield from blocks


def write_copy(replica: LocalReplica, entry: Entry, target: str) -> None:
    """Write a past version to a new file, with its permissions and time.

    Raises:
        NotFound: its contents are not kept any more.
        ReplicaError: it cannot be written, or something is there already.
    """
    data = contents(replica, entry)
    first = next(data, b"")
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ReplicaError(f"cannot write {printable(target)}: {error.strerror}") from error
    try:
        write_all(fd, first)
        for block in data:
            write_all(fd, block)
        os.fchmod(fd, entry.mode if entry.kind is Kind.FILE else 0o600)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise ReplicaError(f"cannot write {printable(target)}: {error.strerror}") from error
    finally:
        os.close(fd)


def _revert(
    replica: LocalReplica, changes: list[Changed], dry_run: bool, kind: str, about: str, force: bool = False
) -> Outcome:
    found = replica.scan(not dry_run)
    paths = {path for change in changes for path in (change.path, *ancestors(change.path))}
    names = [Name(path, False) for path in sorted(paths)]
    present = dict(zip(sorted(paths), replica.lookup(names).entries, strict=True))
    made = (change.path for change in changes if change.after.kind is Kind.DIRECTORY)
    children = {folder: replica.children(folder) for folder in made}
    stamp = replica.stamp()
    reverted = revert(changes, present, children, stamp, force)
    unread = [problem for problem in found.problems if problem.path in paths]
    transitions, problems = _possible(replica, reverted, dry_run)
    if dry_run or not transitions:
        return Outcome(transitions, unread + problems, False)
    replica.use_stamp(stamp)
    for applied in replica.apply(kind, about):
        problems += applied.problems
    return Outcome(transitions, unread + problems, True)


def _possible(
    replica: LocalReplica, reverted: Reverted, dry_run: bool
) -> tuple[list[Transition], list[Problem]]:
    """Leave out what is not kept any more; stage the rest."""
    steps = reverted.transitions
    if dry_run:
        wanted = {step.wanted.digest for step in steps if needs_content(step)}
        lost = {digest for digest in wanted if not replica.contents.has(digest)}
    else:
        lost = {content.digest for content in replica.prepare(steps)}
    left = [*reverted.left]
    if lost:
        left += [
            Problem(step.path, "its contents are not kept any more")
            for step in steps
            if needs_content(step) and step.wanted.digest in lost
        ]
        steps = [step for step in steps if not (needs_content(step) and step.wanted.digest in lost)]
        if not dry_run:
            replica.prepare(steps)
    return steps, left
